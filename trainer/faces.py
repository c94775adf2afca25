"""The faces in a picture, found and cut out as the face network takes them; used by training and serving alike.

Invariant: what is cut out depends on the picture's `detail` and the manifest's FaceRules alone, so that both sides see
the same crops; a picture that is hardly larger than a crop is taken for a face as a whole.
"""

import importlib.resources
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from trainer.detector import Detector, Face
from trainer.images import Picture
from trainer.manifest import FaceRules

DETECTOR = "face_detection_back.tflite"
LONGEST_FACE = 2  # times `whole_below`: a longer strip of a picture is no face
SMALLEST_CROP = 4  # pixels

Box = tuple[int, int, int, int]  # left, top, width, height in pixels of the full upright picture


@dataclass(frozen=True, slots=True)
class Found:
    """What was found in a picture: crops uint8 (K, S, S), grey, and where they were cut out.

    `is_face`: the one crop is the picture itself, which is so small that it is taken for a face.
    """

    crops: NDArray[np.uint8]
    boxes: tuple[Box, ...] = ()
    is_face: bool = False


class Finder:
    """Finds faces; for one thread. Raises ModelFormatError at creation where `detector` is no face detector."""

    def __init__(self, detector: bytes, rules: FaceRules, cores: int = 1) -> None:
        self._detect, self.rules = Detector(detector, cores), rules

    def __call__(self, picture: Picture) -> Found:
        """Return the faces in a picture that was decoded with its detail, the largest first."""
        if is_face(picture, self.rules):
            return Found(whole(picture, self.rules)[np.newaxis], is_face=True)
        faces = self.search(picture)
        crops = np.empty((len(faces), self.rules.size, self.rules.size), np.uint8)
        for crop, face in zip(crops, faces, strict=True):
            crop[:] = _cut(_detail_of(picture), face, self.rules)
        return Found(crops, tuple(_box(face, picture) for face in faces))

    def search(self, picture: Picture) -> tuple[Face, ...]:
        """Return what the detector finds, the largest first, also in a picture that is a face as a whole."""
        return self._detect(_detail_of(picture), self.rules.least_score)[: self.rules.most]


def shipped_detector() -> bytes:
    """Return the detector that comes with the package, a LiteRT file: what new bundles are made with."""
    return (importlib.resources.files("trainer.pretrained") / DETECTOR).read_bytes()


def is_face(picture: Picture, rules: FaceRules) -> bool:
    """Tell whether a picture is so small that all of it is taken for one face."""
    short, long = sorted((picture.width, picture.height))
    return short <= rules.whole_below and long <= LONGEST_FACE * rules.whole_below


def whole(picture: Picture, rules: FaceRules) -> NDArray[np.uint8]:
    """Return all of a picture as one crop, uint8 (S, S), grey."""
    return _scaled(_detail_of(picture), rules.size)


def _detail_of(picture: Picture) -> NDArray[np.uint8]:
    if picture.detail is None:
        raise ValueError("the picture was decoded without its detail")
    return picture.detail


def _box(face: Face, picture: Picture) -> Box:
    width, height = picture.width, picture.height
    return round(face.left * width), round(face.top * height), round(face.width * width), round(face.height * height)


def _cut(detail: NDArray[np.uint8], face: Face, rules: FaceRules) -> NDArray[np.uint8]:
    """Cut out a square around the box, `margin` times its longer side; beyond the picture its edge is repeated."""
    height, width = detail.shape[:2]
    side = max(SMALLEST_CROP, round(rules.margin * max(face.width * width, face.height * height)))
    left = round((face.left + face.width / 2) * width - side / 2)
    top = round((face.top + face.height * (0.5 - rules.raised)) * height - side / 2)
    rows = detail.take(np.arange(top, top + side), axis=0, mode="clip")  # one axis after the other: 4 ms saved of 5
    return _scaled(rows.take(np.arange(left, left + side), axis=1, mode="clip"), rules.size)


def _scaled(pixels: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    grey = Image.fromarray(pixels).convert("L")
    return np.asarray(grey.resize((size, size), Image.Resampling.BILINEAR, reducing_gap=3.0))
