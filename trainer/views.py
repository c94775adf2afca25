"""Two views of a picture, one answer: the scene as a whole and the faces in it, for training and serving alike.

Invariant: a picture is decoded by `Eye` and judged by `Predictor`, nowhere else. Where the scene is sure, or shows no
faces, it answers alone; a picture that is a face as a whole is answered by the face network alone.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from trainer import faces, images, litert
from trainer.faces import Box, Finder
from trainer.images import Picture
from trainer.manifest import FaceRules

Scores = NDArray[np.float32]  # (C,) probabilities
LEAST = 1e-6  # that a probability is taken to be, so that no view can rule a class out alone


@dataclass(frozen=True, slots=True)
class Judged:
    """What a model makes of a picture: the scores (C,) that decide, and those of each view that saw something.

    `boxes` are the faces that were found, None where nobody looked for any; `is_face`: the picture is one.
    """

    scores: Scores
    views: Mapping[str, Scores]
    boxes: tuple[Box, ...] | None = None
    is_face: bool = False


@dataclass(frozen=True)
class Eye:
    """Decodes pictures as a bundle's model takes them: `size` pixels, and the detail that faces are looked for in."""

    size: int
    rules: FaceRules | None = None

    def __call__(self, source: bytes | str | os.PathLike[str], max_pixels: int = 100_000_000) -> Picture:
        """Decode a file. Raises ImageError, and OSError where a path cannot be read."""
        detail = None if self.rules is None else self.rules.detail
        return images.decode(source, size=self.size, detail=detail, max_pixels=max_pixels)


class FaceReader:
    """The faces' part of a bundle's model, for one thread: finds them in a picture, and judges them together."""

    def __init__(self, finder: Finder, network: litert.Predictor) -> None:
        self.find, self.rules, self._network = finder, finder.rules, network

    def __call__(self, found: faces.Found) -> Scores:
        """Return what the crops say together (at least one)."""
        return combined([self._network(crop[..., np.newaxis]) for crop in found.crops])


class Predictor:
    """A bundle's model for one thread: a picture, to probabilities.

    With `ahead` faces are looked for while the scene is judged, at times in vain: sooner answered, for more CPU time.
    """

    def __init__(self, scene: litert.Predictor, reader: FaceReader | None = None, *, ahead: bool = False) -> None:
        self._scene, self._reader = scene, reader
        self._helper = ThreadPoolExecutor(1, "faces") if ahead else None

    def __call__(self, picture: Picture) -> Judged:
        """Judge a picture that was decoded by the bundle's Eye. Raises ValueError for another one."""
        reader = self._reader
        if reader is None:
            return self._by_scene(picture)
        found_in = self._look(reader, picture)
        if faces.is_face(picture, reader.rules):
            alone = reader(found_in())
            return Judged(alone, {"faces": alone}, (), is_face=True)
        by_scene = self._by_scene(picture)
        if by_scene.scores.max() >= reader.rules.sure:
            return by_scene
        found = found_in()
        if not len(found.crops):
            return Judged(by_scene.scores, by_scene.views, ())
        by_faces = reader(found)
        scores = together(by_scene.scores, by_faces, reader.rules)
        return Judged(scores, {**by_scene.views, "faces": by_faces}, found.boxes)

    def warm(self, size: int) -> None:
        """Run each network once, for scenes of `size` pixels, so that the first photo does not wait for them."""
        blank = np.zeros((size, size, 3), np.uint8)
        self._scene(blank)
        if self._reader is not None:
            self._reader.find.search(Picture(blank, size, size, "", blank))
            self._reader(faces.Found(np.zeros((1, self._reader.rules.size, self._reader.rules.size), np.uint8)))

    def _look(self, reader: FaceReader, picture: Picture) -> Callable[[], faces.Found]:
        """Return what gives the faces in a picture. The helper looks at one at a time, also where nobody waited."""
        if self._helper is None:
            return partial(reader.find, picture)
        return self._helper.submit(reader.find, picture).result

    def _by_scene(self, picture: Picture) -> Judged:
        scores = self._scene(picture.pixels)
        return Judged(scores, {"scene": scores})


def combined(scores: Sequence[Scores]) -> Scores:
    """Return probabilities (C,) whose logarithms are the mean of those of `scores` (K, C)."""
    return normalised(np.log(np.maximum(np.asarray(scores), LEAST)).mean(axis=0))


def together(scene: Scores, by_faces: Scores, rules: FaceRules) -> Scores:
    """Return the answer of both views, probabilities (…, C); NaN in `by_faces` (…, C) stands for no face.

    The log-odds add up, the faces' `weight` times; a scene that is `sure` answers alone.
    """
    both = normalised(np.log(np.maximum(scene, LEAST)) + rules.weight * np.log(np.maximum(by_faces, LEAST)))
    alone = np.isnan(by_faces).any(axis=-1, keepdims=True) | (scene.max(axis=-1, keepdims=True) >= rules.sure)
    return np.where(alone, scene, both)


def normalised(logits: NDArray[np.floating]) -> Scores:
    """Return the softmax over the last axis."""
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    scores: Scores = (powers / powers.sum(axis=-1, keepdims=True)).astype(np.float32)
    return scores
