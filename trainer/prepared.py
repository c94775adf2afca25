"""The prepared copy of the photos: PNG files at model size, made once by the product's own decoder.

Invariant: a file `<sha256>.png` holds exactly the pixels that `images.decode` gives for the photo with that hash, or it
is not there: it is written under another name, fsynced and renamed. Training reads these files and the daemon decodes
photos with the same function, so the two cannot see different pixels.
"""

import io
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin

from trainer import durable, images
from trainer.errors import FailureError
from trainer.progress import printable

COMPRESSION = 1  # zlib level: 3 times quicker than the default, files a tenth larger
KEY = "moodbox"  # of the PNG text that says what the photo's own file was


class Origin(NamedTuple):
    """What a photo's own file holds: the size of the upright picture in pixels, and its format."""

    width: int
    height: int
    format: str


@dataclass(frozen=True)
class Prepared:
    """A photo in the prepared copy: nothing is read until it is asked for."""

    path: Path

    @property
    def pixels(self) -> NDArray[np.uint8]:
        """Return uint8 (size, size, 3). Raises FailureError where the copy is damaged, OSError where it is gone."""
        try:
            return images.decode(self.path).pixels
        except images.ImageError as error:
            raise FailureError(
                f"{printable(self.path)}: this prepared copy is damaged ({error}): delete it, it is made anew"
            ) from None

    @property
    def origin(self) -> Origin | None:
        """Return what the photo's own file was; None in copies of before that was kept."""
        with Image.open(self.path, formats=["PNG"]) as image:
            said = str(image.info.get(KEY, "")).split()
        return Origin(int(said[0]), int(said[1]), said[2]) if said else None


@dataclass(frozen=True)
class Cache:
    """A folder of prepared photos of `size` pixels; `decode` fills it."""

    root: Path
    size: int
    max_pixels: int

    def path(self, sha256: str) -> Path:
        """Return where the photo with this hash is, or will be."""
        return self.root / f"{self.size}px-v{images.PREPROCESSING_VERSION}" / sha256[:2] / f"{sha256}.png"

    def add(self, sha256: str, data: bytes) -> Prepared | images.Picture:
        """Decode and keep a photo; nothing to do where it is there. Raises ImageError, and OSError from the disk."""
        path = self.path(sha256)
        if path.exists():
            return Prepared(path)
        picture = images.decode(data, size=self.size, max_pixels=self.max_pixels)
        text = PngImagePlugin.PngInfo()
        text.add_text(KEY, f"{picture.width} {picture.height} {picture.format}")
        png = io.BytesIO()
        Image.fromarray(picture.pixels).save(png, "PNG", compress_level=COMPRESSION, pnginfo=text)
        path.parent.mkdir(parents=True, exist_ok=True)
        durable.replace(path, png.getvalue())
        return picture


def link(cache: Cache, photos: Iterable[tuple[str, str, str]], view: Path) -> None:
    """Make `view/<split>/<class>/<sha256>.png` for each (split, class, sha256): what Keras reads a dataset from.

    Hard links into the cache, so that a view costs no space; copies where the file system has none.
    """
    for split, label, sha256 in photos:
        folder = view / split / label
        folder.mkdir(parents=True, exist_ok=True)
        _link_or_copy(cache.path(sha256), folder / f"{sha256}.png")


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
