"""The only decoder in the product: the bytes of a picture file in, upright RGB pixels out.

Invariant: a file gives a `Picture` or an `ImageError`, never another exception, a warning, or more memory than its
header promised; the same bytes give the same pixels in every thread, in training as in serving. ICC profiles are
ignored: numbers are taken as sRGB, as `image_dataset_from_directory` takes them. Of animations and multi-page files
only the first picture is read. Decoding has no time limit of its own: the caller's (`decode_seconds`) is the limit.
"""

import functools
import io
import os
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import pillow_heif
from PIL import AvifImagePlugin, Image

from trainer import memory
from trainer.headers import CHECKS, FORMATS, ImageError, check_size, ends_early, sniff

__all__ = ["FORMATS", "PREPROCESSING_VERSION", "ImageError", "Picture", "decode"]
PREPROCESSING_VERSION = 1  # raised whenever the pixels that decode() gives for a file change

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip


Pixels = np.ndarray[Any, np.dtype[np.uint8]]


@dataclass(frozen=True, slots=True)
class Picture:
    """Decoded pixels, uint8 (H, W, 3) RGB, C-contiguous, and the size of the full upright picture they came from.

    `detail`, where it was asked for, is the same picture larger and in its own shape, uint8 (H', W', 3) RGB.
    """

    pixels: Pixels
    width: int
    height: int
    format: str
    detail: Pixels | None = None


def decode(
    source: bytes | str | os.PathLike[str],
    *,
    size: int | None = None,
    detail: int | None = None,
    max_pixels: int = 100_000_000,
) -> Picture:
    """Decode a file's bytes (or the file at a path) to upright RGB.

    With `size` the pixels are uint8 (size, size, 3), the aspect ratio not kept (as Keras'
    `image_dataset_from_directory` does by default); without it (height, width, 3). With `detail` there is a second
    view from the same decoding, in the picture's own shape, its longer side at most `detail` pixels. Raises ImageError
    for whatever is wrong with the file, and OSError only where the path cannot be read. At worst (WebP) it takes 18
    bytes of memory per pixel of the file: 1.8 GB for a picture of the default `max_pixels`.
    """
    if size is not None and size < 1:
        raise ValueError(f"size {size} is not a number of pixels")
    if detail is not None and (size is None or detail < 1):
        raise ValueError(f"detail {detail}: it is a number of pixels, and needs a size beside it")
    if isinstance(source, bytes):
        data = source
    else:
        with open(source, "rb") as file:
            data = file.read()
    name = sniff(data)
    _set_up(max_pixels)
    _hush()
    try:
        return _picture(data, name, size, detail, max_pixels)
    except ImageError:
        raise
    except (MemoryError, Image.DecompressionBombError) as error:
        raise ImageError("too_many_pixels", f"this {name} file takes too much memory (tray.max_pixels)") from error
    except Exception as error:  # the plug-ins raise nearly every built-in type for a damaged file
        raise _explained(error, data, name) from error


def _picture(data: bytes, name: str, size: int | None, detail: int | None, max_pixels: int) -> Picture:
    if name in CHECKS:
        CHECKS[name](data, max_pixels)
    # The plug-in by its name: no other is within reach (EPS would run Ghostscript), and its reasons are not lost, as
    # they are in Image.open.
    with Image.OPEN[name][0](io.BytesIO(data), "") as image:
        width, height = image.size
        check_size(width, height, max_pixels)
        # libjpeg skips detail: the smallest DCT scale that is still enough. HEIF's draft would take a thumbnail.
        drafted = image.draft(None, _least(size, detail, width, height)) if size and name == "JPEG" else None
        image.load()
        if not drafted:
            width, height = image.size  # libheif may have corrected it
        turn = _orientation(image)
        upright = _resizable(image)
    box = drafted[1] if drafted else None
    large = None if detail is None else _turned(_resized(upright, _within(detail, width, height), box), turn)
    small = _turned(_resized(upright, (size, size), box) if size else upright, turn)
    if turn in (5, 6, 7, 8):
        width, height = height, width
    return Picture(small, width, height, name, large)


def _least(size: int, detail: int | None, width: int, height: int) -> tuple[int, int]:
    """Return the width and height that are enough for all that was asked for."""
    if detail is None:
        return size, size
    wide, high = _within(detail, width, height)
    return max(size, wide), max(size, high)


def _within(detail: int, width: int, height: int) -> tuple[int, int]:
    """Return the size of a picture whose longer side is brought down to `detail`; a smaller one is not enlarged."""
    scale = min(1.0, detail / max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


def _resized(image: Image.Image, size: tuple[int, int], box: tuple[float, float, float, float] | None) -> Image.Image:
    if size == image.size and box in (None, (0, 0, *size)):
        return image  # Pillow would copy it
    return image.resize(size, Image.Resampling.BILINEAR, box=box, reducing_gap=3.0)


def _turned(image: Image.Image, turn: int) -> Pixels:
    return np.array(_rgb(image.transpose(_TURNS[turn]) if turn in _TURNS else image))


@functools.cache
def _set_up(max_pixels: int) -> None:
    # Pillow checks it once more: its reading of a damaged GIF may differ from _check_gif's.
    Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS or 0, max_pixels)
    Image.init()
    memory.keep_buffers()
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # the daemon has a thread per core already
    pillow_heif.register_heif_opener(thumbnails=False, depth_images=False, aux_images=False, decode_threads=1)


def _hush() -> None:
    """Ignore Pillow's warnings (odd EXIF, odd TIFF tags) in the whole process: no caller can mend a photo.

    `warnings.catch_warnings` is not thread-safe, a filter is. It must be the first, and is looked for each time: others
    (pytest) take filters away again, or put their own before it.
    """
    first = warnings.filters[0] if warnings.filters else None
    if first is None or getattr(first[3], "pattern", "") != r"PIL\.":
        warnings.filterwarnings("ignore", module=r"PIL\.")


def _orientation(image: Image.Image) -> int:
    """Read the EXIF orientation of loaded pixels: PNG may have it at its end; TIFF and HEIF have then been turned."""
    try:
        turn = image.getexif().get(274)
    except Exception:  # noqa: BLE001  damaged EXIF must not cost a good picture, and any type is raised here too
        turn = None
    return turn if isinstance(turn, int) else 1


def _resizable(image: Image.Image) -> Image.Image:
    """Give 8-bit values that may be averaged: no palette indices."""
    if image.mode[0] in "IF":
        return _eight_bits(image)
    if image.has_transparency_data:
        return image if image.mode == "LA" else image.convert("RGBA")
    if image.mode == "1":
        return image.convert("L")
    return image if image.mode in ("L", "RGB", "CMYK") else image.convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    """Scale 16-bit (and TIFF's 12-bit) values by their range, 32-bit and float ones from least to largest."""
    values = np.asarray(image)
    if image.mode.startswith("I;16"):
        top = 4095 if getattr(image, "tag_v2", {}).get(258) == (12,) else 65_535
        return Image.fromarray(((values.astype(np.uint32) * 255 + top // 2) // top).astype(np.uint8))
    values = values.astype(np.float64)
    finite = values[np.isfinite(values)]
    low, high = (finite.min(), finite.max()) if finite.size else (0.0, 0.0)
    values = np.nan_to_num(values, copy=False, nan=low, posinf=high, neginf=low)
    return Image.fromarray(np.rint((values - low) * (255 / ((high - low) or 1))).astype(np.uint8))


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("LA", "RGBA"):
        white = Image.new("RGB", image.size, "white")
        white.paste(image, mask=image)
        return white
    return image if image.mode == "RGB" else image.convert("RGB")


def _explained(error: Exception, data: bytes, name: str) -> ImageError:
    text = "".join(c if c.isprintable() else " " for c in str(error))  # the file's own bytes may be in it
    said = " ".join(text.split())[:200] or type(error).__name__
    if any(word in said.lower() for word in ("unsupported", "not yet supported", "unknown pixel mode", "too large")):
        return ImageError("unsupported", f"an unusual kind of {name} file that cannot be read ({said})")
    if "truncated" in said.lower() or "not enough" in said.lower() or ends_early(data, name):
        return ImageError("truncated", f"the {name} file ends before its picture does ({said})")
    return ImageError("corrupt", f"the {name} file is damaged ({said})")
