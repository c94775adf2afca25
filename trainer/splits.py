"""Which split each photo belongs to: training, validation or test, near duplicates together.

Invariant: a photo that was recorded keeps its split for ever, whatever is added, removed, renamed or set; and no two
photos that are used and are twins of each other get different splits. A new photo without twins goes by its content
hash, so that two machines agree; new twins go together, by the smallest hash among them; a new twin of a recorded
photo (also of one that is gone) joins it; one that would join two splits is left out. A chain of twins of twins ends
after LONGEST photos: what touches its end goes by its own hash, and is left out where that is another split.
"""

import itertools
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from trainer import split_record, twins
from trainer.progress import printable
from trainer.split_record import Entry, Record

LONGEST = 500  # photos

Twins = Mapping[str, Sequence[str]]  # by sha256, of those that have twins, sorted


@dataclass(frozen=True)
class Fractions:
    """How much of the photos is held out."""

    validation: float
    test: float

    def split(self, sha256: str) -> str:
        """Return the split of a photo with this hash that has no twins; the first 64 bits decide."""
        position = int(sha256[:16], 16) / 2**64
        if position < self.test:
            return "test"
        return "validation" if position < self.test + self.validation else "train"


@dataclass(frozen=True, slots=True)
class Found:
    """A photo that can be used, one for each content; `label` is the index of its class."""

    path: str
    label: int
    sha256: str
    phash: bytes


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Why a photo is not used: `kind` is "contradiction" or "bridge", `of` the paths of the twins that are there."""

    kind: str
    reason: str
    of: tuple[str, ...]


@dataclass(frozen=True)
class Drawn:
    """By sha256: the splits of the photos that are used, and why the others are not.

    `twins` are groups of two and more used photos, `new` is what the record does not hold yet.
    """

    splits: Mapping[str, str]
    left_out: Mapping[str, LeftOut]
    twins: tuple[tuple[str, ...], ...]
    new: Record = field(repr=False)


def settle(root: Path, found: Sequence[Found], fractions: Fractions, record: Record) -> tuple[Drawn, str]:
    """Draw the splits and record what is new in `root`; return also one line to say where that failed, else "".

    What another run recorded since `record` was read counts. Raises DamagedRecordError.
    """
    drawn = draw(found, record, fractions)
    if not drawn.new:
        return drawn, ""
    try:
        with split_record.locked(root):
            latest = split_record.read(root)
            drawn = drawn if latest == record else draw(found, latest, fractions)
            if drawn.new:
                split_record.add(root, drawn.new)
    except OSError as error:
        why = f"{printable(root)}: the split could not be recorded ({error.strerror})"
        return drawn, f"{why}: near duplicates that are added or removed may move others to another split"
    return drawn, ""


def draw(found: Sequence[Found], record: Record, fractions: Fractions) -> Drawn:
    """Return the splits of these photos, given what was recorded; touches no disk."""
    near = _near(found, record)
    by_hash = {photo.sha256: photo for photo in found}
    left_out = dict(_contradictions(by_hash, near))
    new = sorted(sha256 for sha256 in by_hash if sha256 not in record and sha256 not in left_out)
    spread = _Spread(near, record, fractions)
    spread.all(new)
    left_out |= {sha256: _bridge(around, by_hash) for sha256, around in spread.torn.items()}
    splits = spread.drawn | {s: record[s].split for s in by_hash if s in record and s not in left_out}
    recorded = {sha256: Entry(by_hash[sha256].phash, split) for sha256, split in spread.drawn.items()}
    return Drawn(splits, left_out, _groups(splits, near), recorded)


def _near(found: Sequence[Found], record: Record) -> Twins:
    """Look for the twins of each photo among all photos and all that were recorded."""
    labels = {photo.sha256: photo.label for photo in found}
    prints = {sha256: entry.phash for sha256, entry in record.items()} | {p.sha256: p.phash for p in found}
    hashes = sorted(sha256 for sha256, phash in prints.items() if phash)
    codes = [(labels.get(s, -1), record[s].split if s in record else "") for s in hashes]
    numbers = {code: number for number, code in enumerate(sorted(set(codes)))}
    pairs = twins.pairs(
        np.frombuffer(b"".join(prints[s] for s in hashes), np.uint8).reshape(-1, twins.BYTES),
        np.array([row for row, s in enumerate(hashes) if s in labels], np.int64),
        np.array([numbers[code] for code in codes], np.int64),
    )
    near: dict[str, set[str]] = {}
    for one, other in pairs.tolist():
        near.setdefault(hashes[one], set()).add(hashes[other])
        near.setdefault(hashes[other], set()).add(hashes[one])
    return {sha256: sorted(others) for sha256, others in near.items()}


def _contradictions(photos: Mapping[str, Found], near: Twins) -> Iterable[tuple[str, LeftOut]]:
    for sha256 in photos.keys() & near.keys():
        label = photos[sha256].label
        others = [photos[o].path for o in near[sha256] if o in photos and photos[o].label != label]
        if others:
            reason = f"nearly the same photo as {_named(others)}, in another class: remove the wrong one"
            yield sha256, LeftOut("contradiction", reason, tuple(others))


class _Spread:
    """Gives splits to new photos, from twin to twin; `torn` holds those that would join two, and their twins there."""

    def __init__(self, near: Twins, record: Record, fractions: Fractions) -> None:
        self._near, self._record, self._fractions = near, record, fractions
        self.drawn: dict[str, str] = {}
        self.torn: dict[str, Mapping[str, str]] = {}
        self._first: dict[str, str] = {}  # of the chain that a photo is in
        self._length: Counter[str] = Counter()

    def all(self, new: Sequence[str]) -> None:
        """Draw for all: first the twins of recorded photos and what hangs on them, then from the smallest hash on."""
        self._new = frozenset(new)
        joining = [s for s in new if any(o in self._record for o in self._near.get(s, ()))]
        for start in itertools.chain([joining], ([sha256] for sha256 in new)):
            waiting = deque(start)
            while waiting:
                sha256 = waiting.popleft()
                if sha256 not in self.drawn and sha256 not in self.torn and self._draw(sha256):
                    waiting.extend(o for o in self._near.get(sha256, ()) if o in self._new)

    def _draw(self, sha256: str) -> bool:
        """Give a photo its split; tell whether it got one, so that its twins are next."""
        around = self._around(sha256)
        first, own = sha256, self._fractions.split(sha256)
        if len(around) == 1:
            split, twin = next(iter(around.items()))
            first = self._first.get(twin, sha256)
            if self._length[first] < LONGEST:
                own = split
            elif own == split:
                first = sha256
        if around and around.keys() != {own}:
            self.torn[sha256] = around
            return False
        self.drawn[sha256], self._first[sha256] = own, first
        self._length[first] += 1
        return True

    def _around(self, sha256: str) -> Mapping[str, str]:
        """Return the splits of a photo's twins, each with a twin of that split."""
        around: dict[str, str] = {}
        for other in self._near.get(sha256, ()):
            split = self._record[other].split if other in self._record else self.drawn.get(other)
            if split:
                around.setdefault(split, other)
        return around


def _bridge(around: Mapping[str, str], photos: Mapping[str, Found]) -> LeftOut:
    """Say which photos of different splits a photo is a twin of."""
    named = {
        split: photos[o].path if o in photos else "a photo that was removed" for split, o in sorted(around.items())
    }
    text = " and of ".join(f"{printable(path)} ({split})" for split, path in named.items())
    why = "which stay where they are" if len(around) > 1 else f"at the end of a chain of {LONGEST} near duplicates"
    return LeftOut(
        "bridge", f"a near duplicate of {text}, {why}", tuple(photos[o].path for o in around.values() if o in photos)
    )


def _groups(used: Mapping[str, str], near: Twins) -> tuple[tuple[str, ...], ...]:
    """Return the used photos that are joined by twins, as groups of two and more."""
    seen: set[str] = set()
    groups = []
    for start in sorted(used.keys() & near.keys()):
        group, waiting = [], [] if start in seen else [start]
        seen.add(start)
        while waiting:
            group.append(waiting.pop())
            more = [o for o in near[group[-1]] if o in used and o not in seen]
            seen.update(more)
            waiting += more
        groups += [tuple(sorted(group))] if len(group) > 1 else []
    return tuple(groups)


def _named(paths: Sequence[str]) -> str:
    return printable(paths[0]) + (f" (and {len(paths) - 1} more)" if len(paths) > 1 else "")
