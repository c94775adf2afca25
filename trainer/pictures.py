"""Pictures of pictures: photos in a grid with captions, a confusion matrix, thumbnails as one sprite.

Invariant: nothing here depends on a screen, on the fonts of the machine or on the time: the same input gives the same
pixels.
"""

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Pixels = NDArray[np.uint8]

MOST, ACROSS, SIDE, GAP, TEXT = 16, 4, 192, 8, 20
MOST_CLASSES = 30  # with more, names and counts in a confusion matrix cannot be read
INK, PAPER, DEEP = (30, 30, 30), (255, 255, 255), (31, 88, 160)


def font(size: int = 14) -> ImageFont.FreeTypeFont:
    """Return matplotlib's own font: it has Latin, Greek and Cyrillic letters, and is there on every machine."""
    return ImageFont.truetype(Path(mpl.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", size)


def grid(photos: NDArray[np.float32], captions: Sequence[str], below: NDArray[np.float32] | None = None) -> Pixels:
    """Draw at most MOST photos, each with its caption above and, where given, its other version `below`.

    Photos are (N, S, S, 3), RGB in [0, 255]; the result is uint8 (H, W, 3).
    """
    count = min(len(photos), MOST)
    across = min(count, ACROSS)
    high = TEXT + SIDE * (1 if below is None else 2) + GAP
    sheet = Image.new("RGB", (GAP + across * (SIDE + GAP), GAP + -(-count // across) * high), PAPER)
    draw, letters = ImageDraw.Draw(sheet), font()
    for index in range(count):
        x, y = GAP + index % across * (SIDE + GAP), GAP + index // across * high
        draw.text((x, y), _fitting(captions[index], letters, SIDE), INK, letters)
        for row, version in enumerate([photos] if below is None else [photos, below]):
            sheet.paste(_thumbnail(version[index], SIDE), (x, y + TEXT + row * SIDE))
    return np.asarray(sheet)


def confusion(matrix: NDArray[np.int64], class_names: Sequence[str], side: int = 72) -> Pixels:
    """Draw a confusion matrix (C, C), rows the truth: each cell's count, and its share of the row as its shade.

    Of more than MOST_CLASSES classes the shades alone: 200 would take a gigabyte, after each epoch.
    """
    letters, count, margin = font(), len(class_names), 110
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    if count > MOST_CLASSES:
        shades = np.array(PAPER) + (np.array(DEEP) - PAPER) * shares[..., np.newaxis]
        return np.asarray(shades, np.uint8)
    sheet = Image.new("RGB", (margin + count * side + GAP, TEXT * 3 + count * side + GAP), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((margin, GAP), "predicted", INK, letters)
    draw.text((GAP, GAP), "labelled", INK, letters)
    for row, name in enumerate(class_names):
        top = TEXT * 3 + row * side
        draw.text((GAP, top + side // 2), _fitting(name, letters, margin - 2 * GAP), INK, letters, anchor="lm")
        draw.text(
            (margin + row * side + side // 2, TEXT * 2), _fitting(name, letters, side - 4), INK, letters, anchor="mm"
        )
        for column in range(count):
            shade = tuple(int(p + (d - p) * shares[row, column]) for p, d in zip(PAPER, DEEP, strict=True))
            left = margin + column * side
            draw.rectangle((left, top, left + side - 2, top + side - 2), shade, outline=(200, 200, 200))
            ink = PAPER if shares[row, column] > 0.5 else INK  # noqa: PLR2004  the darker half
            draw.text((left + side // 2, top + side // 2), str(matrix[row, column]), ink, letters, anchor="mm")
    return np.asarray(sheet)


def sprite(thumbnails: Pixels) -> Image.Image:
    """Join thumbnails (N, h, w, 3) into the square sheet that TensorBoard's projector cuts up, row by row."""
    count, height, width, _ = thumbnails.shape
    across = int(np.ceil(np.sqrt(count)))
    sheet = np.full((across * across, height, width, 3), 255, np.uint8)
    sheet[:count] = thumbnails
    rows = sheet.reshape(across, across, height, width, 3).swapaxes(1, 2)
    return Image.fromarray(rows.reshape(across * height, across * width, 3))


def _thumbnail(photo: NDArray[np.float32], side: int) -> Image.Image:
    image = Image.fromarray(np.clip(np.rint(photo), 0, 255).astype(np.uint8))
    return image.resize((side, side), Image.Resampling.BICUBIC)


def _fitting(text: str, letters: ImageFont.FreeTypeFont, width: int) -> str:
    """Cut a text to a width in pixels."""
    if letters.getlength(text) <= width:
        return text
    while text and letters.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"
