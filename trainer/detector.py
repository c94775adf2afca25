"""Finds faces: BlazeFace in LiteRT (Bazarevsky et al., "BlazeFace", CVPR workshop 2019; MediaPipe's weights).

Invariant: one Detector is one interpreter, used by one Python thread at a time; the same pixels give the same boxes,
with any number of cores. Boxes are shares of the picture's sides, and lie inside it.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from trainer.litert import ModelFormatError, interpreter

# Anchors by the network's input size: (stride in pixels, anchors in each cell); MediaPipe's ssd_anchors_calculator.cc
# with fixed_anchor_size. 128: short range, 192: full range, 256: back camera.
ANCHORS = {128: ((8, 2), (16, 6)), 192: ((4, 1),), 256: ((16, 2), (32, 6))}
HIGHEST = 80.0  # logit; beyond, MediaPipe clips, too
OVERLAP = 0.3  # intersection over union from which on two boxes are one face, as MediaPipe has it


@dataclass(frozen=True, slots=True)
class Face:
    """A face: how sure the detector is, 0 to 1, and its box as shares of the picture's width and height."""

    score: float
    left: float
    top: float
    width: float
    height: float


class Detector:
    """Finds faces in uint8 (H, W, 3), RGB. Raises ModelFormatError at creation for a file that is no such network."""

    def __init__(self, model: bytes, cores: int = 1) -> None:
        self._interpreter = interpreter(model, cores)
        taken, given = self._interpreter.get_input_details(), self._interpreter.get_output_details()
        self._size = int(taken[0]["shape"][1]) if len(taken) == 1 and len(taken[0]["shape"]) > 1 else 0
        if self._size not in ANCHORS or not _fits(taken, given, self._size):
            raise ModelFormatError("it is no face detector that is known: pictures in, boxes and scores out")
        self._anchors = _anchors(self._size)
        self._input, self._boxes, self._scores = taken[0]["index"], given[0]["index"], given[1]["index"]

    def __call__(self, pixels: NDArray[np.uint8], least_score: float) -> tuple[Face, ...]:
        """Return the faces that are at least so sure, the largest first."""
        square, scale_x, scale_y = _letterboxed(pixels, self._size)
        self._interpreter.set_tensor(self._input, square[np.newaxis])
        self._interpreter.invoke()
        logits = self._interpreter.get_tensor(self._scores)[0, :, 0]
        sure = np.flatnonzero(logits >= math.log(least_score / (1 - least_score)))
        scores = 1 / (1 + np.exp(-np.minimum(logits[sure].astype(np.float64), HIGHEST)))
        raw = self._interpreter.get_tensor(self._boxes)[0, sure, :4].astype(np.float64) / self._size
        centres, sides = raw[:, :2] + self._anchors[sure], raw[:, 2:]
        corners = np.concatenate([centres - sides / 2, centres + sides / 2], axis=1)
        corners = np.clip(corners / [scale_x, scale_y, scale_x, scale_y], 0.0, 1.0)
        whole = (corners[:, 2:] > corners[:, :2]).all(axis=1) & np.isfinite(corners).all(axis=1)
        found = (_face(*merged) for merged in _merged(corners[whole], scores[whole]))
        return tuple(sorted(found, key=lambda face: -face.width * face.height))


def _fits(taken: Any, given: Any, size: int) -> bool:
    """Tell whether a network takes pictures of `size` and gives boxes and scores of as many anchors."""
    anchors = sum((size // stride) ** 2 * each for stride, each in ANCHORS[size])
    shapes = [tuple(map(int, tensor["shape"])) for tensor in (*taken, *given)]
    kinds = {tensor["dtype"] for tensor in (*taken, *given)}
    return shapes == [(1, size, size, 3), (1, anchors, 16), (1, anchors, 1)] and kinds == {np.float32}


def _anchors(size: int) -> NDArray[np.float64]:
    """Return the centres (A, 2), x before y, as shares of the square."""
    layers = []
    for stride, each in ANCHORS[size]:
        cells = size // stride
        middles = (np.arange(cells) + 0.5) / cells
        grid = np.stack(np.meshgrid(middles, middles), axis=-1).reshape(-1, 2)
        layers.append(np.repeat(grid, each, axis=0))
    return np.concatenate(layers)


def _letterboxed(pixels: NDArray[np.uint8], size: int) -> tuple[NDArray[np.float32], float, float]:
    """Return the picture in the upper left of a black square, float32 in [-1, 1], and the shares that it fills."""
    height, width = pixels.shape[:2]
    scale = size / max(height, width)
    wide, high = max(1, round(width * scale)), max(1, round(height * scale))
    # halved first where that is enough, which costs a fraction of what it saves
    resized = Image.fromarray(pixels).resize((wide, high), Image.Resampling.BILINEAR, reducing_gap=1.0)
    square = np.full((size, size, 3), -1.0, np.float32)
    filled = square[:high, :wide]
    np.multiply(np.asarray(resized), np.float32(1 / 127.5), out=filled)
    filled -= 1.0
    return square, wide / size, high / size


def _merged(corners: NDArray[np.float64], scores: NDArray[np.float64]) -> Iterator[tuple[float, NDArray[np.float64]]]:
    """Yield (score, corners (4,)) of each face: boxes that overlap are one, the mean weighed by their scores.

    MediaPipe's weighted non-maximum suppression (non_max_suppression_calculator.cc).
    """
    left = np.argsort(-scores, kind="stable")
    while len(left):
        same = _overlap(corners[left[0]], corners[left]) > OVERLAP
        same[0] = True
        group = left[same]
        yield float(scores[group[0]]), np.average(corners[group], axis=0, weights=scores[group])
        left = left[~same]


def _overlap(box: NDArray[np.float64], boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the intersection over union of `box` (4,) with each of `boxes` (N, 4)."""
    sides = np.minimum(box[2:], boxes[:, 2:]) - np.maximum(box[:2], boxes[:, :2])
    common = np.prod(np.maximum(sides, 0.0), axis=1)
    area = np.prod(box[2:] - box[:2]) + np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    share: NDArray[np.float64] = common / np.maximum(area - common, 1e-12)
    return share


def _face(score: float, corners: NDArray[np.float64]) -> Face:
    left, top, right, bottom = map(float, corners)
    return Face(score, left, top, min(right - left, 1.0 - left), min(bottom - top, 1.0 - top))
