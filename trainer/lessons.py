"""What a round of retraining learns from and is judged by: the photos of `training/`, and the champion's replay.

Invariant: nothing that the champion or the challenger learned from judges, and no label that is new in this round does.
A picture that the champion has in its replay keeps the split that it has there, and is there once, with its label of
today. Each photo is known by its content.
"""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trainer import known_labels, prepared, replay
from trainer.bundle import Bundle
from trainer.dataset import SPLITS, Dataset, Photo
from trainer.known_labels import Known
from trainer.promotion import LEAST_JUDGES, LEAST_OF_CLASS
from trainer.replay import Replay

MOST_OWN, MOST_ROWS = 25_000, 50_000  # photos that the last layer learns from; float32 features of all take 0.26 GB
TEST = SPLITS.index("test")


@dataclass(frozen=True)
class Lessons:
    """A round's material: the photos as the champion knows classes and splits, those that are new, those that judge."""

    champion: Bundle
    replay: Replay | None
    data: Dataset
    new: tuple[Photo, ...]
    judges: tuple[Photo, ...]

    def enough_for_all(self, full_from: int) -> bool:
        """Tell whether there are photos enough of each class to train anew, without those that the champion had."""
        own = self.data.counts()["train"]
        had = self._replayed() if self.replay else dict.fromkeys(own, 0)
        return all(own[name] >= max(full_from, had[name] / 2) for name in own)

    @property
    def can_judge(self) -> bool:
        """Whether there are photos enough in the folder that may judge."""
        counts = np.bincount([photo.label for photo in self.judges], minlength=len(self.data.class_names))
        return bool(counts.sum() >= LEAST_JUDGES and counts.min() >= LEAST_OF_CLASS)

    def _replayed(self) -> dict[str, int]:
        assert self.replay is not None  # noqa: S101  the caller asked
        counts = np.bincount(self.replay.labels[self.replay.splits == 0], minlength=len(self.data.class_names))
        return dict(zip(self.data.class_names, counts.tolist(), strict=True))

    def replayed_judges(self) -> NDArray[np.bool_]:
        """Tell which rows of the replay judge: test photos that are not in the folder, where they may have moved."""
        assert self.replay is not None  # noqa: S101  the caller asked
        here = replay.prefixes([photo.sha256 for photo in self.data.photos])
        found: NDArray[np.bool_] = (self.replay.splits == TEST) & ~np.isin(self.replay.sha256_prefix, here)
        return found


def of(champion: Bundle, data: Dataset, known: Known | None) -> Lessons:
    """Return a round's material; `known` are the labels that photos had before it."""
    kept = replay.read(champion)
    names = champion.manifest.class_names
    learned = kept.splits_by_prefix() if kept else {}
    faces = set(kept.faces_prefix.tolist()) if kept else set()
    photos, judges = [], []
    for photo, prefix in zip(data.photos, replay.prefixes([p.sha256 for p in data.photos]).tolist(), strict=True):
        split = SPLITS[learned.get(prefix, SPLITS.index(photo.split))]
        label = names.index(data.class_names[photo.label])
        photos.append(Photo(photo.path, label, photo.sha256, split))
        held_out = "test" == split == photo.split and prefix not in faces
        if held_out and known_labels.may_judge(photo, data, known or {}):
            judges.append(photos[-1])
    placed = tuple(sorted(photos, key=lambda p: (p.label, p.sha256)))
    mine = dataclasses.replace(data, class_names=names, photos=placed)
    return Lessons(champion, kept, mine, _new(mine, known, kept), tuple(judges))


def described(photos: Sequence[Photo], class_names: Sequence[str]) -> str:
    """Return how many of each class, in words."""
    counts = Counter(photo.label for photo in photos)
    return ", ".join(f"{counts[i]:,} {name}" for i, name in enumerate(class_names) if counts[i])


def scenes(lessons: Lessons, cache: prepared.Cache) -> list[Photo]:
    """Return the photos that the scene's last layer learns from: no faces as a whole; of very many, some."""
    photos = lessons.data.in_order()
    if lessons.champion.manifest.faces:
        photos = [p for p in photos if not _is_face(cache, p)]
    if len(photos) <= MOST_OWN:
        return photos
    chosen = {photo.sha256 for photo in sorted(photos, key=lambda p: p.sha256)[:MOST_OWN]}
    return [photo for photo in photos if photo.sha256 in chosen]


def merged(old: Replay, photos: Sequence[Photo], features: NDArray[np.float16]) -> tuple[Replay, NDArray[np.bool_]]:
    """Return the replay with these photos and their features, and which of its rows they are."""
    mine = replay.prefixes([photo.sha256 for photo in photos])
    rows = np.flatnonzero(~np.isin(old.sha256_prefix, mine))
    room = MOST_ROWS - len(photos)
    rows = np.sort(rows[np.argsort(old.sha256_prefix[rows])][:room])
    together = Replay(
        np.concatenate([old.features[rows], features]),
        np.concatenate([old.labels[rows], np.array([photo.label for photo in photos], np.uint16)]),
        np.concatenate([old.splits[rows], np.array([SPLITS.index(photo.split) for photo in photos], np.uint8)]),
        np.concatenate([old.sha256_prefix[rows], mine]),
        old.faces_prefix,
    )
    return together, np.arange(len(together.labels)) >= len(rows)


def _new(data: Dataset, known: Known | None, kept: Replay | None) -> tuple[Photo, ...]:
    """Return the photos that came, or were moved, since the last round; before the first one, since the champion."""
    if known is not None:
        return tuple(photo for photo in data.photos if not known_labels.unchanged(photo, data, known))
    had = dict(zip(kept.sha256_prefix.tolist(), kept.labels.tolist(), strict=True)) if kept else {}
    prefixes = replay.prefixes([photo.sha256 for photo in data.photos]).tolist()
    return tuple(p for p, prefix in zip(data.photos, prefixes, strict=True) if had.get(prefix) != p.label)


def _is_face(cache: prepared.Cache, photo: Photo) -> bool:
    origin = prepared.Prepared(cache.path(photo.sha256)).origin
    return bool(origin and origin.is_face)
