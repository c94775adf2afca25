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

from PIL import Image

from trainer import durable, images

COMPRESSION = 1  # zlib level: 3 times quicker than the default, files a tenth larger


@dataclass(frozen=True)
class Cache:
    """A folder of prepared photos of `size` pixels; `decode` fills it."""

    root: Path
    size: int
    max_pixels: int

    def path(self, sha256: str) -> Path:
        """Return where the photo with this hash is, or will be."""
        return self.root / f"{self.size}px-v{images.PREPROCESSING_VERSION}" / sha256[:2] / f"{sha256}.png"

    def add(self, sha256: str, data: bytes) -> None:
        """Decode and keep a photo; nothing to do where it is there. Raises ImageError, and OSError from the disk."""
        path = self.path(sha256)
        if path.exists():
            return
        pixels = images.decode(data, size=self.size, max_pixels=self.max_pixels).pixels
        png = io.BytesIO()
        Image.fromarray(pixels).save(png, "PNG", compress_level=COMPRESSION)
        path.parent.mkdir(parents=True, exist_ok=True)
        durable.replace(path, png.getvalue())


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
