"""Contact sheets: photos of a dataset side by side with captions, as a PNG to look through.

Invariant: a photo that cannot be read any more leaves an empty place and stops nothing; names are drawn with what is
unprintable as escapes; the file is written whole or not at all.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from trainer import durable, images
from trainer.pictures import font
from trainer.progress import printable

MOST = 60  # tiles; more are not looked at
WIDTH, HEIGHT, LINE, GAP = 208, 168, 17, 12  # pixels: the box of a photo, a line of text, the space between tiles
ACROSS = 6  # photos
INK, GREY, PAPER, FRAME = (30, 30, 30), (110, 110, 110), (255, 255, 255), (225, 225, 225)


@dataclass(frozen=True)
class Tile:
    """Photos that belong together, each with the name to draw below it, and a caption of one line."""

    photos: tuple[tuple[Path, str], ...]
    caption: str


def draw(path: Path, title: str, tiles: Sequence[Tile], max_pixels: int) -> None:
    """Draw the first MOST tiles, which hold the same number of photos each. Raises OSError."""
    shown = tiles[:MOST]
    each = max(len(tile.photos) for tile in shown)
    across = max(1, min(ACROSS // each, len(shown)))
    wide, high = each * WIDTH, HEIGHT + 2 * LINE
    width = max(GAP + across * (wide + GAP), 4 * WIDTH)  # wide enough for the title
    sheet = Image.new("RGB", (width, 3 * GAP + LINE + -(-len(shown) // across) * (high + GAP)), PAPER)
    pen, letters = ImageDraw.Draw(sheet), font(13)
    pen.text((GAP, GAP), _fitting(title, letters, width - 2 * GAP), INK, font(14))
    for index, tile in enumerate(shown):
        corner = (GAP + index % across * (wide + GAP), 2 * GAP + LINE + index // across * (high + GAP))
        _tile(sheet, pen, letters, tile, corner, max_pixels)
    file = io.BytesIO()
    sheet.save(file, "PNG")
    durable.replace(path, file.getvalue())


def _tile(
    sheet: Image.Image,
    pen: ImageDraw.ImageDraw,
    letters: ImageFont.FreeTypeFont,
    tile: Tile,
    corner: tuple[int, int],
    max_pixels: int,
) -> None:
    left, top = corner
    wide = len(tile.photos) * WIDTH
    pen.rectangle((left - 4, top - 4, left + wide + 3, top + HEIGHT + 2 * LINE + 1), outline=FRAME)
    for place, (path, name) in enumerate(tile.photos):
        photo, x = _photo(path, max_pixels), left + place * WIDTH
        if photo:
            sheet.paste(photo, (x + (WIDTH - photo.width) // 2, top + (HEIGHT - photo.height) // 2))
        else:
            pen.text((x + WIDTH // 2, top + HEIGHT // 2), "cannot be read", GREY, letters, anchor="mm")
        pen.text((x, top + HEIGHT), _fitting(name, letters, WIDTH - 6), GREY, letters)
    pen.text((left, top + HEIGHT + LINE), _fitting(tile.caption, letters, wide), INK, letters)


def _photo(path: Path, max_pixels: int) -> Image.Image | None:
    """Return a photo in its own shape, as large as its box allows; None where it cannot be read."""
    try:
        picture = images.decode(path, size=max(WIDTH, HEIGHT), max_pixels=max_pixels)
    except (images.ImageError, OSError):
        return None
    scale = min((WIDTH - 4) / picture.width, (HEIGHT - 4) / picture.height)
    shape = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    return Image.fromarray(picture.pixels).resize(shape)


def _fitting(text: str, letters: ImageFont.FreeTypeFont, width: int) -> str:
    """Cut a text to a width in pixels; its end, which tells one file from another, stays."""
    text = printable(text)
    cut = text
    while letters.getlength(cut) > width and len(text) > 1:
        text = text[: len(text) // 3] + text[len(text) // 3 + 1 :]
        cut = text[: len(text) // 3] + "…" + text[len(text) // 3 :]
    return cut
