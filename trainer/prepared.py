"""The prepared copy of the photos: PNG files at model size, made once by the eye of the product.

Invariant: a file `<sha256>.png` holds exactly the pixels that `views.Eye` sees of the photo with that hash, or it is
not there: it is written under another name, fsynced and renamed. Training reads these files and the daemon sees
photos with the same eye, so the two cannot see different pixels. Faces are in `<sha256>.faces.png`, one below the
other, and that file is written first.
"""

import hashlib
import io
import os
import shutil
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin

from trainer import durable, faces, images
from trainer.errors import FailureError
from trainer.manifest import FaceRules
from trainer.progress import printable
from trainer.settings import Settings
from trainer.views import Eye

COMPRESSION = 1  # zlib level: 3 times quicker than the default, files a tenth larger
KEY = "moodbox"  # of the PNG text that says what the photo's own file was


class Origin(NamedTuple):
    """What a photo's own file holds: the size of the upright picture in pixels, its format.

    `faces` says how many were found, `is_face` that the picture as a whole is one.
    """

    width: int
    height: int
    format: str
    faces: int = 0
    is_face: bool = False


@dataclass(frozen=True)
class Prepared:
    """A photo in the prepared copy: nothing is read until it is asked for."""

    path: Path

    @property
    def pixels(self) -> NDArray[np.uint8]:
        """Return uint8 (size, size, 3). Raises FailureError where the copy is damaged, OSError where it is gone."""
        return _decoded(self.path)

    @property
    def origin(self) -> Origin | None:
        """Return what the photo's own file was; None in copies of before that was kept."""
        try:
            with Image.open(self.path, formats=["PNG"]) as image:
                said = str(image.info.get(KEY, "")).split()
            faces_found = (int(said[3]), said[4] == "whole") if len(said) > len(Origin._fields) - 1 else (0, False)
            return Origin(int(said[0]), int(said[1]), said[2], *faces_found) if said else None
        except FileNotFoundError:
            raise
        except (OSError, ValueError, IndexError, SyntaxError) as error:  # what Pillow raises for a damaged PNG
            raise _damaged(self.path, error) from None

    def crops(self, count: int) -> NDArray[np.uint8]:
        """Return the photo's faces uint8 (count, S, S), grey. Raises FailureError, OSError as `pixels`."""
        path = _faces_path(self.path)
        strip = _decoded(path)[:, :, 0]
        height, side = strip.shape
        if height != count * side:
            raise _damaged(path, f"{side} x {height} pixels are not {count} faces")
        return strip.reshape(count, side, side)


@dataclass(frozen=True)
class Fresh:
    """A photo that was prepared just now."""

    pixels: NDArray[np.uint8]
    origin: Origin


@dataclass(frozen=True)
class Cache:
    """A folder of prepared photos of `size` pixels, with the faces that `rules` find; `add` fills it."""

    root: Path
    size: int
    max_pixels: int
    rules: FaceRules | None = None
    _own: threading.local = field(default_factory=threading.local, compare=False, repr=False)

    def path(self, sha256: str) -> Path:
        """Return where the photo with this hash is, or will be."""
        return self.root / self._folder() / sha256[:2] / f"{sha256}.png"

    def add(self, sha256: str, data: bytes) -> Prepared | Fresh:
        """Look at a photo and keep what is seen; nothing to do where it is there. Raises ImageError, OSError."""
        path = self.path(sha256)
        if self._is_kept(path):
            return Prepared(path)
        picture, found = self._look(data)
        path.parent.mkdir(parents=True, exist_ok=True)
        if len(found.crops):
            durable.replace(_faces_path(path), _png(found.crops.reshape(-1, found.crops.shape[-1])))
        origin = _origin(picture, found)
        said = f" {origin.faces} {'whole' if origin.is_face else 'found'}" if self.rules else ""
        text = PngImagePlugin.PngInfo()
        text.add_text(KEY, f"{origin.width} {origin.height} {origin.format}{said}")
        durable.replace(path, _png(picture.pixels, text))
        return Fresh(picture.pixels, origin)

    def _is_kept(self, path: Path) -> bool:
        """Tell whether a photo's copy is there, with its faces; what is damaged is made anew."""
        if not path.exists():
            return False
        if self.rules is None:
            return True
        try:
            origin = Prepared(path).origin
        except FailureError:
            return False
        return origin is not None and (not origin.faces or _faces_path(path).exists())

    def looked_at(self, data: bytes) -> Origin:
        """Return what a photo's own file is, without keeping anything. Raises ImageError."""
        return _origin(*self._look(data))

    def _folder(self) -> str:
        plain = f"{self.size}px-v{images.PREPROCESSING_VERSION}"
        if self.rules is None:
            return plain
        asked = self.rules.model_dump_json(exclude={"weight", "sure"})
        return f"{plain}-faces-{hashlib.sha256(asked.encode()).hexdigest()[:8]}"

    def _look(self, data: bytes) -> tuple[images.Picture, faces.Found]:
        """Decode a photo and find its faces; each thread has a finder of its own."""
        picture = Eye(self.size, self.rules)(data, self.max_pixels)
        if self.rules is None:
            return picture, faces.Found(np.empty((0, 0, 0), np.uint8))
        if not hasattr(self._own, "find"):
            self._own.find = faces.Finder(faces.shipped_detector(), self.rules)
        return picture, self._own.find(picture)


def shared(settings: Settings, size: int, rules: FaceRules | None) -> Cache:
    """Return the folder of prepared photos that all runs share."""
    return Cache(settings.trainer.runs / "prepared", size, settings.tray.max_pixels, rules)


def _origin(picture: images.Picture, found: faces.Found) -> Origin:
    return Origin(picture.width, picture.height, picture.format, len(found.crops), found.is_face)


def _faces_path(path: Path) -> Path:
    return path.with_suffix(".faces.png")


def _decoded(path: Path) -> NDArray[np.uint8]:
    try:
        return images.decode(path).pixels
    except images.ImageError as error:
        raise _damaged(path, error) from None


def _damaged(path: Path, why: object) -> FailureError:
    said = " ".join(str(why).split())
    return FailureError(f"{printable(path)}: this prepared copy is damaged ({said}): delete it, it is made anew")


def _png(pixels: NDArray[np.uint8], text: PngImagePlugin.PngInfo | None = None) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=COMPRESSION, pnginfo=text)
    return file.getvalue()


def link(cache: Cache, photos: Iterable[tuple[str, str, str]], class_names: Sequence[str], view: Path) -> None:
    """Make `view/<split>/<class>/<sha256>.png` for each (split, class, sha256): what Keras reads a dataset from.

    Keras wants a folder for each class, also for one that has no photo. The files are hard links into the cache, so
    that a view costs no space; copies where the file system has none.
    """
    for split, label, sha256 in photos:
        if not (view / split).exists():
            for name in class_names:
                (view / split / name).mkdir(parents=True)
        _link_or_copy(cache.path(sha256), view / split / label / f"{sha256}.png")


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
