"""Reads class folders: which photos can be used, which cannot and why, and which split each belongs to.

Invariant: a photo's split depends on its bytes alone, so it stays in training, validation or test for ever, whatever is
added, renamed or removed. Each file is read and decoded once, no pixels are kept, and no file goes unmentioned: it is
used, listed as unused with a reason, or hidden.
"""

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from trainer.errors import InputError
from trainer.images import ImageError
from trainer.manifest import check_class_names
from trainer.photos import Rules, in_chunks, read_bytes, walk
from trainer.progress import printable, track
from trainer.settings import Settings

SPLITS = ("train", "validation", "test")
MINIMUM = {"train": 5, "validation": 2, "test": 2}  # photos per class; below, no figure means anything

Prepare = Callable[[str, bytes], object]  # (sha256, bytes): raises ImageError where the photo cannot be used


class DatasetError(InputError):
    """A folder that cannot be trained on or measured with; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Photo:
    """A photo that can be used; `label` is an index into the class names."""

    path: str
    label: int
    sha256: str
    split: str


@dataclass(frozen=True, slots=True)
class Unused:
    """A file that is not used, and why."""

    path: str
    reason: str


@dataclass(frozen=True, slots=True)
class _Read:
    path: str
    label: int
    sha256: str
    problem: str


@dataclass(frozen=True)
class Fractions:
    """How much of the photos is held out."""

    validation: float
    test: float

    def split(self, sha256: str) -> str:
        """Return the split of the photo with this hash; the first 64 bits decide."""
        position = int(sha256[:16], 16) / 2**64
        if position < self.test:
            return "test"
        return "validation" if position < self.test + self.validation else "train"


@dataclass(frozen=True)
class Dataset:
    """The photos of a folder, sorted by class and hash; paths are relative to `root`."""

    root: Path
    class_names: tuple[str, ...]
    photos: tuple[Photo, ...]
    unused: tuple[Unused, ...]
    fractions: Fractions

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


def open_dataset(settings: Settings, prepare: Prepare) -> Dataset:
    """Read the folder that `[dataset]` names, by the rules of `[tray]` and `[trainer]`; see `read`."""
    fractions = Fractions(settings.trainer.validation_fraction, settings.trainer.test_fraction)
    return read(settings.dataset.root, prepare, fractions, Rules(settings.tray.ignore, settings.tray.max_file_bytes))


def read(root: Path, prepare: Prepare, fractions: Fractions, rules: Rules) -> Dataset:
    """Read every photo below the class folders of `root` once: hash it, and hand its bytes to `prepare`.

    Raises DatasetError where `root` holds no classes or not one photo that can be used.
    """
    class_names, beside = class_folders(root, rules)
    found = [(path, label) for label, name in enumerate(class_names) for path in walk(root, name, rules)]
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        results = in_chunks(pool, lambda item: _read(root, *item, prepare, rules), found)
        outcomes = list(track(results, len(found), "photos read"))
    broken = [Unused(o.path, o.problem) for o in outcomes if o.problem]
    photos, doubles = _without_doubles([o for o in outcomes if not o.problem], class_names, fractions)
    unused = tuple(sorted([*beside, *broken, *doubles], key=lambda u: u.path))
    if not photos:
        raise DatasetError(_nothing_left(root, len(found), unused))
    return Dataset(root, class_names, photos, unused, fractions)


def class_folders(root: Path, rules: Rules) -> tuple[tuple[str, ...], list[Unused]]:
    """Return the class names, and what lies beside the class folders. Raises DatasetError."""
    try:
        entries = sorted((e for e in os.scandir(root) if not rules.skips(e.name)), key=lambda e: e.name)
    except OSError as error:
        raise DatasetError(f"{printable(root)}: the folder of photos cannot be read: {error.strerror}") from None
    folders = [e.name for e in entries if e.is_dir(follow_symlinks=False)]
    beside = [
        Unused(e.name, "a link is not followed" if e.is_symlink() else "lies beside the class folders, in none of them")
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


def _read(root: Path, path: str, label: int, prepare: Prepare, rules: Rules) -> _Read:
    try:
        data = read_bytes(root / path, rules.max_file_bytes)
    except OSError as error:
        return _Read(path, label, "", f"cannot be read: {error.strerror}")
    except ValueError as error:
        return _Read(path, label, "", str(error))
    sha256 = hashlib.sha256(data).hexdigest()
    try:
        prepare(sha256, data)
    except ImageError as error:
        return _Read(path, label, sha256, f"{error.code}: {error}")
    return _Read(path, label, sha256, "")


def _without_doubles(
    read_photos: Sequence[_Read], class_names: Sequence[str], fractions: Fractions
) -> tuple[tuple[Photo, ...], list[Unused]]:
    """Keep one of each content; none of them where the same content is in two classes."""
    twins: dict[str, list[_Read]] = defaultdict(list)
    for photo in read_photos:
        twins[photo.sha256].append(photo)
    photos, unused = [], []
    for sha256, same in twins.items():
        first = same[0]
        if len(labels := {photo.label for photo in same}) > 1:
            where = " and ".join(repr(class_names[label]) for label in sorted(labels))
            unused += [Unused(p.path, f"the same photo is in {where}: remove the wrong one") for p in same]
            continue
        photos.append(Photo(first.path, first.label, sha256, fractions.split(sha256)))
        unused += [Unused(p.path, f"the same photo as {printable(first.path)}") for p in same[1:]]
    return tuple(sorted(photos, key=lambda p: (p.label, p.sha256))), unused


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
