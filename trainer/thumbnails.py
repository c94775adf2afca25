"""Photos as a report shows them: small, in their own shape, as data: URIs, beside what Grad-CAM says about them.

Invariant: a photo that cannot be drawn any more, or a network that cannot be explained, costs its picture and nothing
else. TensorFlow is loaded only where there is a Keras model to explain.
"""

import base64
import io
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from trainer import images
from trainer.bundle import Bundle, BundleError
from trainer.faces import Box
from trainer.quiet import importing, native_stderr

SIDE = 224  # pixels, of the longer side
QUALITY = 80  # of JPEG: 36 photos and their overlays take about half a megabyte
KERAS_MODEL = "model.keras"
BOX = (255, 190, 0)  # around a face

Pixels = NDArray[np.uint8]
Explainer = Callable[[Sequence[Pixels], Sequence[int]], tuple[Sequence[Pixels], str | None]]


@dataclass(frozen=True)
class Thumbnail:
    """A photo and its overlay as data: URIs; None where there is none."""

    photo: str | None
    overlay: str | None


def thumbnails(
    bundle: Bundle, photos: Sequence[tuple[Path, int, Sequence[Box]]], max_pixels: int
) -> tuple[tuple[Thumbnail, ...], str | None]:
    """Draw photos, each with the index of the class to explain and the boxes of its faces.

    Returns also why there are no overlays, where so.
    """
    pictures = [_read(path, bundle.manifest.input_size, max_pixels) for path, *_ in photos]
    readable = [i for i, picture in enumerate(pictures) if picture]
    if not readable:
        return (Thumbnail(None, None),) * len(photos), None
    pixels = [picture[0].pixels for picture in pictures if picture]
    overlays, why = explainer(bundle)(pixels, [photos[i][1] for i in readable])
    laid = dict(zip(readable, overlays, strict=False))
    return tuple(_thumbnail(picture, laid.get(i), photos[i][2]) for i, picture in enumerate(pictures)), why


def plain(path: Path, max_pixels: int) -> Thumbnail:
    """Draw a photo alone."""
    return _thumbnail(_read(path, SIDE, max_pixels), None, ())


def explainer(bundle: Bundle) -> Explainer:
    """Load the bundle's Keras model, and return what gives Grad-CAM overlays of pictures for the classes answered.

    It takes pictures, uint8 (S, S, 3) each, and class indices, and returns as many overlays; or none, and why.
    """
    try:
        data = _keras_file(bundle)
    except BundleError as error:
        return _none(str(error))
    if not zipfile.is_zipfile(io.BytesIO(data)):
        return _none(f"its {KERAS_MODEL} is no Keras file")
    with importing():
        from trainer import gradcam  # noqa: PLC0415  TensorFlow: seconds
    try:
        with native_stderr():
            model = gradcam.load(data)
    except gradcam.UnexplainableError as error:
        return _none(str(error))

    def overlays(pixels: Sequence[Pixels], classes: Sequence[int]) -> tuple[Sequence[Pixels], str | None]:
        try:
            heat = gradcam.heatmaps(model, np.stack(pixels), np.array(classes))
        except gradcam.UnexplainableError as error:
            return (), str(error)
        return [gradcam.overlay(picture, warm) for picture, warm in zip(pixels, heat, strict=True)], None

    return overlays


def _none(why: str) -> Explainer:
    return lambda _pixels, _classes: ((), why)


def _keras_file(bundle: Bundle) -> bytes:
    """Return the Keras model, its hash checked; one that is not published yet has no hashes. Raises BundleError."""
    if bundle.manifest.files:
        return bundle.read(KERAS_MODEL)
    try:
        return (bundle.path / KERAS_MODEL).read_bytes()
    except OSError as error:
        raise BundleError(f"{KERAS_MODEL} cannot be read: {error.strerror}") from None


def shaped(pixels: Pixels, width: int, height: int, side: int) -> Image.Image:
    """Return square pixels in the shape of the picture that they came from, its longer side `side`."""
    scale = side / max(width, height)
    return Image.fromarray(pixels).resize((max(1, round(width * scale)), max(1, round(height * scale))))


def boxed(pixels: Pixels, boxes: Sequence[Box], width: int) -> Pixels:
    """Return the pixels of an upright picture that was `width` pixels wide, with boxes drawn on it."""
    image = Image.fromarray(pixels)
    pen, scale = ImageDraw.Draw(image), image.width / width
    line = max(1, round(image.width / 120))
    for left, top, wide, high in boxes:
        pen.rectangle([scale * v for v in (left, top, left + wide, top + high)], outline=BOX, width=line)
    return np.array(image)


def _read(path: Path, size: int, max_pixels: int) -> tuple[images.Picture, images.Picture] | None:
    """Decode as the model sees it, and as a person does; None where the file cannot be read any more."""
    try:
        seen = images.decode(path, size=size, max_pixels=max_pixels)
        return seen, seen if size >= SIDE else images.decode(path, size=SIDE, max_pixels=max_pixels)
    except (images.ImageError, OSError):
        return None


def _thumbnail(
    picture: tuple[images.Picture, images.Picture] | None, overlay: Pixels | None, boxes: Sequence[Box]
) -> Thumbnail:
    if picture is None:
        return Thumbnail(None, None)
    shown = picture[1]
    photo = boxed(np.asarray(shaped(shown.pixels, shown.width, shown.height, SIDE)), boxes, shown.width)
    over = None if overlay is None else _uri(shaped(overlay, shown.width, shown.height, SIDE))
    return Thumbnail(_uri(Image.fromarray(photo)), over)


def _uri(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
