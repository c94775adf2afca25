"""History: what the journal says of every file that it ever saw, folded by id from all journal files.

Invariant: the answer depends neither on the order in which the journals of different owners are read, nor on lines
that were written twice. About 300 bytes are kept for an id, so that a million of them fit anywhere.
"""

import math
import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

import numpy as np

from daemon.events import DECISIONS, Line, parse
from daemon.journal import owners, segments

NAMED = 1000  # lines and ids that are named; all are counted
BY_PEOPLE = ("corrected", "moved")
AUDIT = "audit"  # a photo that waits in review/ though the model was sure
EVENTS = (*DECISIONS, "restored", *BY_PEOPLE, AUDIT)
PIECE = 1_000_000
UNKNOWN = b"\0" * 32
_FIXED = struct.Struct(">Bqqqid32s")


@dataclass(frozen=True, slots=True)
class Entry:
    """One id: the decision, and where the file is now. Times are in milliseconds since 1970, sizes in bytes.

    `label` and `score` are the model's, `taught` is the class that a person chose last, if any did.
    """

    id: str
    event: str
    batch: str
    file: str
    place: str
    at: int  # of the decision
    moved_at: int  # of the newest line
    size: int | None
    model: int | None
    sha256: bytes | None
    label: str | None = None
    score: float | None = None
    taught: str | None = None
    is_moved: bool = False  # by a person, to where it is now

    @property
    def folder(self) -> str:
        """The tray's folder that the file is in."""
        return self.place.partition("/")[0]


class History:
    """All ids, packed: `unreadable` and `conflicts` tell (up to NAMED of) what cannot be right."""

    def __init__(self) -> None:
        self._decided: dict[str, bytes] = {}
        self._restored: dict[str, bytes] = {}
        self._moved: dict[str, bytes] = {}
        self.has_gaps = False
        self.began: int | None = None  # when the first decision was journalled
        self.unreadable: list[str] = []
        self.unreadable_count = 0
        self.conflicts: dict[str, None] = {}

    @property
    def is_whole(self) -> bool:
        """Whether every line could be read, and no journal file is missing between the first and the last."""
        return not self.unreadable_count and not self.has_gaps

    def __len__(self) -> int:
        return len(self._decided) + sum(ident not in self._decided for ident in self._restored)

    def entries(self) -> Iterator[Entry]:
        """Yield what is known of each id."""
        for ident, packed in self._decided.items():
            entry = _unpack(ident, packed)
            if (back := self._restored.get(ident)) is not None:
                newest = _unpack(ident, back)
                entry = replace(entry, place=newest.place, moved_at=newest.moved_at)
            yield self._as_moved(entry)
        for ident, packed in self._restored.items():
            if ident not in self._decided:  # its decision cannot be read
                yield self._as_moved(_unpack(ident, packed))

    def by_hand(self) -> Iterator[Entry]:
        """Yield the photos that a person put into a class folder, and no daemon ever took."""
        for ident, packed in self._moved.items():
            if ident not in self._decided and ident not in self._restored:
                entry = _unpack(ident, packed)
                yield replace(entry, taught=entry.label, label=None, is_moved=True)

    def _as_moved(self, entry: Entry) -> Entry:
        """Return the entry as people left it."""
        packed = self._moved.get(entry.id)
        if packed is None:
            return entry
        moved = _unpack(entry.id, packed)
        if moved.moved_at < entry.moved_at:  # taken back since
            return replace(entry, taught=moved.label)
        return replace(entry, place=moved.place, moved_at=moved.moved_at, taught=moved.label, is_moved=True)

    def superseded(self) -> set[str]:
        """Return the ids whose place a later line names, too: what is there now is not theirs."""
        hashes = np.fromiter((hash(entry.place) for entry in self.entries()), np.int64, len(self))
        values, counts = np.unique(hashes, return_counts=True)
        shared, newest, older = frozenset(values[counts > 1].tolist()), dict[str, Entry](), set[str]()
        for entry in self.entries() if shared else ():
            if hash(entry.place) in shared:
                known = newest.setdefault(entry.place, entry)
                if known is not entry:
                    first, last = sorted((known, entry), key=lambda e: e.moved_at)
                    newest[entry.place] = last
                    older.add(first.id)
        return older

    def read(self, raw: bytes, where: str = "") -> None:
        """Take a line of a journal in; `where` names it. Lines of one owner come in the order of its journal."""
        line = parse(raw)
        if line is None or not self.add(line):
            self.unreadable_count += 1
            if len(self.unreadable) < NAMED:
                self.unreadable.append(where)

    def add(self, line: Line) -> bool:
        """Fold a line in; False where it is no line that Moodbox writes."""
        if line.event not in EVENTS and line.event != "redirected":
            return True
        entry = _entry(line)
        if entry is None:
            return False
        if line.event == "redirected":
            return self._redirect(entry)
        if line.event in BY_PEOPLE:
            self._move(entry)
        elif line.event == "restored":
            self._restore(entry)
        else:
            self._decide(entry)
        return True

    def _decide(self, entry: Entry) -> None:
        # The lines of a batch are written again, perhaps with other names, after a failed fsync: the newest count.
        packed = self._decided.get(entry.id)
        if packed is not None and _fate(_unpack(entry.id, packed)) != _fate(entry):
            self.conflicts[entry.id] = None
        self._decided[entry.id] = _pack(entry)
        self.began = entry.at if self.began is None else min(self.began, entry.at)

    def _restore(self, entry: Entry) -> None:
        packed = self._restored.get(entry.id)
        if packed is not None:
            known = _unpack(entry.id, packed)
            if known.batch != entry.batch and (known.at, known.batch) > (entry.at, entry.batch):
                return
        self._restored[entry.id] = _pack(entry)

    def _move(self, entry: Entry) -> None:
        packed = self._moved.get(entry.id)
        if packed is not None and _unpack(entry.id, packed).at > entry.at:  # by another host
            return
        self._moved[entry.id] = _pack(entry)

    def _redirect(self, entry: Entry) -> bool:
        """Correct a place. The line follows the one that it corrects, in the same owner's journal."""
        for known in (self._decided, self._restored):
            packed = known.get(entry.id)
            if packed is not None and (old := _unpack(entry.id, packed)).batch == entry.batch:
                known[entry.id] = _pack(replace(old, place=entry.place, moved_at=entry.at))
                return True
        return entry.id in self._restored  # a batch of several that took it back; a newer one counts


def fold(root: Path, told: Callable[[int], None] = lambda _: None) -> History:
    """Read all journals in `root`; `told` is given how many more bytes were read, now and then. Raises OSError."""
    history, size = History(), 0
    for owner in owners(root):
        files = segments(root, owner)
        history.has_gaps |= [number for number, _ in files] != list(range(1, len(files) + 1))
        for _, path in files:
            with path.open("rb") as file:
                for number, raw in enumerate(file, 1):
                    size += len(raw)
                    if raw.endswith(b"\n"):  # else it is being written, or was torn and written again
                        history.read(raw, f"{path.name}:{number}")
                    if size > PIECE:
                        told(size)
                        size = 0
    return history


def _fate(entry: Entry) -> tuple[object, ...]:
    """Return what two decision lines of one id agree in."""
    return entry.event, entry.batch, entry.file, entry.sha256, entry.size, entry.model, entry.folder


def _entry(line: Line) -> Entry | None:
    """Return the line as an entry, None where it lacks what such a line has."""
    names = (line.id, line.batch, line.file, line.destination)
    if any(not name or "\0" in name for name in names) or "\0" in (line.label or ""):
        return None
    try:
        digest = bytes.fromhex(line.sha256) if line.sha256 else None
        at = int(datetime.fromisoformat(line.ts).timestamp() * 1000)
    except ValueError:
        return None
    if digest is not None and len(digest) != len(UNKNOWN):
        return None
    if not (0 <= (line.model or 0) < 2**31 and 0 <= (line.bytes or 0) < 2**63):
        return None
    ident, batch, file, place = (str(name) for name in names)
    event = AUDIT if line.audit and line.event == "review" else line.event
    return Entry(ident, event, batch, file, place, at, at, line.bytes, line.model, digest, line.label, line.score)


def _pack(entry: Entry) -> bytes:
    size, model = (-1 if number is None else number for number in (entry.size, entry.model))
    event, digest = EVENTS.index(entry.event), entry.sha256 or UNKNOWN
    score = math.nan if entry.score is None else entry.score
    fixed = _FIXED.pack(event, entry.at, entry.moved_at, size, model, score, digest)
    return fixed + os.fsencode("\0".join((entry.batch, entry.file, entry.place, entry.label or "")))


def _unpack(ident: str, packed: bytes) -> Entry:
    event, at, moved_at, size, model, score, digest = _FIXED.unpack_from(packed)
    batch, file, place, label = os.fsdecode(packed[_FIXED.size :]).split("\0")
    return Entry(
        ident, EVENTS[event], batch, file, place, at, moved_at, None if size < 0 else size,
        None if model < 0 else model, None if digest == UNKNOWN else digest, label or None,
        None if math.isnan(score) else score,
    )  # fmt: skip
