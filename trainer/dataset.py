"""Reads class folders: which photos can be used, which cannot and why, and which split each belongs to (see `splits`).

Invariant: each file is read and decoded once, no pixels are kept, and no file goes unmentioned: it is used, listed as
unused with a reason, or hidden.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from trainer import split_record, splits, twins
from trainer.doubles import Unused, unique
from trainer.errors import InputError
from trainer.images import ImageError
from trainer.manifest import check_class_names
from trainer.photos import Rules, in_chunks, read_bytes, walk
from trainer.progress import line, printable, track
from trainer.settings import Settings
from trainer.split_record import SPLITS, Record
from trainer.splits import Drawn, Found, Fractions

__all__ = [
    "MINIMUM", "SPLITS", "Dataset", "DatasetError", "Fractions", "Photo", "Prepare", "Unused", "class_folders",
    "open_dataset", "read",
]  # fmt: skip
MINIMUM = {"train": 5, "validation": 2, "test": 2}  # photos per class; below, no figure means anything
MANY = 50_000  # photos; looking for near duplicates among so many takes more than five seconds
BESIDE = "lies beside the class folders, in none of them"


class Prepared(Protocol):
    """A photo that was decoded; its pixels, uint8 (H, W, 3), are asked for only where it is new."""

    @property
    def pixels(self) -> NDArray[np.uint8]: ...


Prepare = Callable[[str, bytes], Prepared]  # (sha256, bytes): raises ImageError where the photo cannot be used


class DatasetError(InputError):
    """A folder that cannot be trained on or measured with; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Photo:
    """A photo that can be used; `label` is an index into the class names."""

    path: str
    label: int
    sha256: str
    split: str


@dataclass(frozen=True)
class Dataset:
    """The photos of a folder, sorted by class and hash; paths are relative to `root`.

    `twins` are the groups of near duplicates among them, `notes` what went wrong and cost no photo.
    """

    root: Path
    class_names: tuple[str, ...]
    photos: tuple[Photo, ...]
    unused: tuple[Unused, ...]
    fractions: Fractions
    twins: tuple[tuple[str, ...], ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def hash(self) -> str:
        """Return the hash of what is learned from: classes and contents, not names."""
        lines = sorted(f"{self.class_names[p.label]} {p.sha256}\n" for p in self.photos)
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def counts(self) -> dict[str, dict[str, int]]:
        """Return how many photos of each class are in each split."""
        found = Counter((p.split, p.label) for p in self.photos)
        return {s: {name: found[s, i] for i, name in enumerate(self.class_names)} for s in SPLITS}

    def of(self, split: str) -> list[Photo]:
        """Return the photos of a split, in the order in which `input_pipeline.stream` gives them."""
        return [p for p in self.photos if p.split == split]

    def in_order(self) -> list[Photo]:
        """Return all photos in the order of SPLITS, which is that of features and scores."""
        return [photo for split in SPLITS for photo in self.of(split)]

    def kin(self, photos: Sequence[Photo]) -> NDArray[np.int_]:
        """Return a number for each of these photos (N,): the same for near duplicates."""
        numbers = {path: number for number, group in enumerate(self.twins) for path in group}
        return np.array([numbers.get(photo.path, len(self.twins) + row) for row, photo in enumerate(photos)], int)

    @property
    def is_enough(self) -> bool:
        """Whether there is enough to train on and to measure with."""
        counts = self.counts()
        return all(counts[split][name] >= least for split, least in MINIMUM.items() for name in self.class_names)

    def require_enough(self) -> None:
        """Raise DatasetError where there is too little to train on and to measure with."""
        if len(self.class_names) == 1:
            only = self.class_names[0]
            raise DatasetError(
                f"{printable(self.root)}: only one class folder, {only!r}: a classifier needs two or more"
            )
        counts = self.counts()
        for name in self.class_names:
            if any(counts[split][name] < MINIMUM[split] for split in SPLITS):
                raise DatasetError(_too_few(name, {split: counts[split][name] for split in SPLITS}, self.fractions))


def open_dataset(settings: Settings, prepare: Prepare, *, record: bool = True) -> Dataset:
    """Read the folder that `[dataset]` names, by the rules of `[tray]` and `[trainer]`; see `read`."""
    fractions = Fractions(settings.trainer.validation_fraction, settings.trainer.test_fraction)
    rules = Rules(settings.tray.ignore, settings.tray.max_file_bytes)
    return read(settings.dataset.root, prepare, fractions, rules, record=record)


def read(root: Path, prepare: Prepare, fractions: Fractions, rules: Rules, *, record: bool = True) -> Dataset:
    """Read every photo below the class folders of `root` once: hash it, and hand its bytes to `prepare`.

    With `record` the splits are looked up and recorded in `root`; without it (a folder that is only measured on) the
    record is neither read nor written. Raises DatasetError where `root` holds no classes or not one photo that can be
    used, and DamagedRecordError.
    """
    class_names, beside = class_folders(root, rules)
    known = split_record.read(root) if record else {}
    paths = [(path, label) for label, name in enumerate(class_names) for path in walk(root, name, rules)]
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        results = in_chunks(pool, lambda item: _read(root, *item, prepare, rules, known), paths)
        outcomes = list(track(results, len(paths), "photos read"))
    broken = [outcome for outcome in outcomes if isinstance(outcome, Unused)]
    once = unique([outcome for outcome in outcomes if isinstance(outcome, Found)], class_names)
    if len(once.photos) >= MANY:
        line(f"looking for near duplicates among {len(once.photos):,} photos")
    if record:
        drawn, note = splits.settle(root, once.photos, fractions, known)
    else:
        drawn, note = splits.draw(once.photos, {}, fractions), ""
    unused = tuple(sorted([*beside, *broken, *once.unused(drawn)], key=lambda u: u.path))
    if not drawn.splits:
        raise DatasetError(_nothing_left(root, len(paths), unused))
    if note:
        line(note)
    return _dataset(root, class_names, once.photos, unused, fractions, drawn, note)


def class_folders(root: Path, rules: Rules) -> tuple[tuple[str, ...], list[Unused]]:
    """Return the class names, and what lies beside the class folders. Raises DatasetError."""
    try:
        entries = sorted((e for e in os.scandir(root) if not rules.skips(e.name)), key=lambda e: e.name)
    except OSError as error:
        raise DatasetError(f"{printable(root)}: the folder of photos cannot be read: {error.strerror}") from None
    folders = [e.name for e in entries if e.is_dir(follow_symlinks=False)]
    beside = [
        Unused(e.name, "a link is not followed" if e.is_symlink() else BESIDE, "beside")
        for e in entries
        if not e.is_dir(follow_symlinks=False)
    ]
    if not folders:
        raise DatasetError(
            f"{printable(root)}: no class folders: put the photos of each class into a folder of its own"
        )
    try:
        return check_class_names(folders), beside
    except ValueError as error:
        raise DatasetError(f"{printable(root)}: {error}: rename that folder") from None


def _read(root: Path, path: str, label: int, prepare: Prepare, rules: Rules, known: Record) -> Found | Unused:
    try:
        data = read_bytes(root / path, rules.max_file_bytes)
    except OSError as error:
        return Unused(path, f"cannot be read: {error.strerror}")
    except ValueError as error:
        return Unused(path, str(error))
    sha256 = hashlib.sha256(data).hexdigest()
    try:
        prepared = prepare(sha256, data)
    except ImageError as error:
        return Unused(path, f"{error.code}: {error}", "broken")
    phash = known[sha256].phash if sha256 in known else twins.fingerprint(prepared.pixels)
    return Found(path, label, sha256, phash)


def _dataset(
    root: Path,
    class_names: tuple[str, ...],
    found: Sequence[Found],
    unused: tuple[Unused, ...],
    fractions: Fractions,
    drawn: Drawn,
    note: str,
) -> Dataset:
    used = [Photo(f.path, f.label, f.sha256, drawn.splits[f.sha256]) for f in found if f.sha256 in drawn.splits]
    paths = {photo.sha256: photo.path for photo in used}
    groups = tuple(tuple(paths[sha256] for sha256 in group) for group in drawn.twins)
    photos = tuple(sorted(used, key=lambda p: (p.label, p.sha256)))
    return Dataset(root, class_names, photos, unused, fractions, groups, (note,) if note else ())


def _nothing_left(root: Path, found: int, unused: Sequence[Unused]) -> str:
    if not found:
        return f"{printable(root)}: the class folders hold no photos"
    example = next(u for u in unused)
    return (
        f"{printable(root)}: not one of {found} files can be used; {printable(example.path)}, for one: {example.reason}"
    )


def _too_few(name: str, counts: dict[str, int], fractions: Fractions) -> str:
    have = ", ".join(f"{counts[split]} in {split}" for split in SPLITS)
    need = ", ".join(f"{MINIMUM[split]} in {split}" for split in SPLITS)
    enough = round(6 / min(fractions.validation, fractions.test))
    return (
        f"class {name!r} has {sum(counts.values())} usable photos: {have}; needed are at least {need}: "
        f"add photos (about {enough} per class are enough for a first try)"
    )
