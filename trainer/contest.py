"""Champion and challenger answer the same photos: files as they are served, the replay's by their features.

Invariant: both are asked about the same photos in the same order, and decide as the product does.
"""

import hashlib
from collections.abc import Container, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trainer import evaluate, heads
from trainer.bundle import Bundle
from trainer.dataset import Photo
from trainer.evaluate import Metrics
from trainer.lessons import Lessons
from trainer.teaching import Taught

MOST_ASKED = 200  # photos that people corrected, and as many of those that are doubted

Answers = NDArray[np.int_]


@dataclass(frozen=True)
class Answered:
    """What photos are, and what both said: class indices int (N,). The last `served` were answered as files."""

    labels: Answers
    champion: Answers
    challenger: Answers
    served: int

    @property
    def total(self) -> int:
        """How many photos there are."""
        return len(self.labels)


@dataclass(frozen=True)
class Agreement:
    """Of `new` photos, `asked` were asked about: how many both answer as people said, before and now.

    `heeded` are hashes of doubted photos that the challenger answers as people said; none unless it does so for half.
    """

    new: int
    asked: int
    before: int
    now: int
    heeded: frozenset[str] = frozenset()

    @property
    def is_learned(self) -> bool:
        """Whether the challenger heeds half of what is new, or more."""
        return 2 * self.now >= self.asked

    def __str__(self) -> str:
        """Say it; about a third of the new photos do not teach, but judge."""
        which = "the" if self.asked == self.new else f"{self.asked:,} of the"
        answered = f"{self.now:,} are answered as people said ({self.before:,} before)"
        return f"Of {which} {self.new:,} new photos, {answered}"


def between(material: Lessons, challenger: Bundle, taught: Taught | None, max_pixels: int) -> Answered:
    """Ask both about everything that may judge; the replay's photos only where the two have their features in common.

    Raises FailureError where a file cannot be read any more.
    """
    by_features = _by_features(material, taught) if taught else _nothing()
    by_files = _by_files(material, challenger, material.judges, max_pixels)
    together = [np.concatenate(pair) for pair in zip(by_features, by_files, strict=True)]
    return Answered(together[0], together[1], together[2], len(by_files[0]))


def agreement(material: Lessons, challenger: Bundle, doubted: Container[str], max_pixels: int) -> Agreement:
    """Ask both about new photos, and about those of earlier rounds whose labels are `doubted`; of many, about some."""
    new = _some(material.new, material.data.hash)
    labels, before, now = _by_files(material, challenger, new, max_pixels)
    fresh = {photo.sha256 for photo in material.new}
    earlier = _some(
        [p for p in material.data.photos if p.sha256 in doubted and p.sha256 not in fresh], material.data.hash
    )
    said, _, answers = _by_files(material, challenger, earlier, max_pixels)
    heeded = {photo.sha256 for photo, right in zip(earlier, answers == said, strict=True) if right}
    if 2 * len(heeded) < len(earlier):
        heeded = set()
    counts = len(labels), int((before == labels).sum()), int((now == labels).sum())
    return Agreement(len(material.new), *counts, frozenset(heeded))


def _some(photos: Sequence[Photo], salt: str) -> list[Photo]:
    """Return some of many photos, of all classes as they come; with another `salt`, others."""
    return sorted(photos, key=lambda photo: hashlib.sha256((salt + photo.sha256).encode()).digest())[:MOST_ASKED]


def metrics(answered: Answered, class_names: Sequence[str]) -> Metrics:
    """Return the challenger's figures."""
    confusion = np.zeros((len(class_names), len(class_names)), int)
    np.add.at(confusion, (answered.labels, answered.challenger), 1)
    return Metrics(tuple(class_names), tuple(tuple(map(int, row)) for row in confusion), None)


def _nothing() -> list[Answers]:
    return [np.empty(0, np.int_)] * 3


def _by_features(material: Lessons, taught: Taught) -> list[Answers]:
    """Ask the last layers alone: what the scene's part says."""
    assert material.replay is not None  # noqa: S101  something was taught from it
    rows = material.replayed_judges()
    values, labels = material.replay.features[rows], material.replay.labels[rows].astype(np.int_)
    pairs = ((material.champion, taught.champion), (taught.bundle, taught.last))
    return [labels, *(evaluate.decided(which, heads.probabilities(values, last)) for which, last in pairs)]


def _by_files(material: Lessons, challenger: Bundle, photos: Sequence[Photo], max_pixels: int) -> list[Answers]:
    if not photos:
        return _nothing()
    files = [(material.data.root / photo.path, photo.label) for photo in photos]
    asked = (material.champion, challenger)
    said = [evaluate.decided(which, evaluate.predict(which, files, max_pixels).scores) for which in asked]
    return [np.array([photo.label for photo in photos], np.int_), *said]
