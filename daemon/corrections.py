"""Corrections: what people did with the photos, from where the files are now and what the journal says.

Invariant: pure but for `Look`, which is asked about few files: those that are not where the journal left them. What a
daemon put somewhere, and nobody moved, is no correction; a photo that cannot be told from one is passed over.
"""

import os
import secrets
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from daemon.events import Line
from daemon.history import AUDIT, Entry, History
from daemon.tray import INBOX, UNDONE


class Look(Protocol):
    """What has to be known of a file: see daemon.evidence."""

    def sha256(self, place: str) -> bytes | None: ...
    def is_there(self, place: str) -> bool: ...
    def changed_at(self, place: str) -> int: ...


@dataclass(frozen=True, slots=True)
class Move:
    """A photo that is in another place than the journal says; `entry` is None for one that no daemon ever took.

    `label` is the class that it teaches, None where it teaches nothing; `was` the class whose folder it was in, None
    where it was in none.
    """

    place: str
    sha256: bytes
    size: int
    entry: Entry | None
    label: str | None = None
    was: str | None = None
    twin: Entry | None = None  # the same bytes, which a daemon classified and which are still where they were


@dataclass
class _Strays:
    """The places that hold something else than the journal says, and the ids that were found again already."""

    places: Mapping[str, bool]
    taken: set[str] = field(default_factory=set)


@dataclass
class Comparison:
    """Compares the files that were seen (their sizes in bytes, by place) with a history that was read afterwards.

    `began` (ms) is when the looking began: what the journal moved since then is left for the next time. Photos
    that came by hand before the first decision are passed over, and all of them where the journal is not whole: nobody
    knows then who put them there.
    """

    history: History
    seen: Mapping[str, int]
    classes: Sequence[str]
    look: Look
    began: int
    contradictory: list[str] = field(default_factory=list)

    def moves(self) -> list[Move]:
        """Return what people moved, or put into a class folder by hand, in the order of the places."""
        older = self.history.superseded()
        strays = self._strays(older)
        hashes = {place: digest for place in sorted(strays) if (digest := self.look.sha256(place)) is not None}
        known = self._entries_of(set(hashes.values()))
        was = _Strays(strays)
        found = [self._move(place, digest, known[digest], older, was) for place, digest in hashes.items()]
        return self._without_contradictions([move for move in found if move is not None])

    def _entries(self) -> Iterator[Entry]:
        yield from self.history.entries()
        yield from self.history.by_hand()

    def _strays(self, older: set[str]) -> dict[str, bool]:
        """Return the places that hold something else than the journal says; True where it speaks of the place."""
        strays = dict.fromkeys(self.seen, False)
        for entry in self._entries():
            if entry.id not in older and entry.place in strays:
                if entry.size in (None, self.seen[entry.place]):
                    del strays[entry.place]
                else:
                    strays[entry.place] = True
        return strays

    def _entries_of(self, hashes: set[bytes]) -> Mapping[bytes, list[Entry]]:
        found = defaultdict[bytes, list[Entry]](list)
        for entry in self._entries() if hashes else ():
            if entry.sha256 in hashes:
                found[entry.sha256].append(entry)
        return found

    def _move(self, place: str, digest: bytes, known: list[Entry], older: set[str], was: "_Strays") -> Move | None:
        size, label = self.seen[place], self._class_of(place)
        if any(entry.moved_at >= self.began for entry in known):
            return None
        gone = [e for e in known if e.id not in was.taken and self._has_left(e, older, was.places)]
        name = os.path.basename(place)
        match = max(
            gone, key=lambda e: (self._says(e) == label, os.path.basename(e.place) == name, e.moved_at), default=None
        )
        if match is not None and (self._says(match) == label or label is None):
            was.taken.add(match.id)  # moved within its class, or to review/
            return Move(place, digest, size, match, None, self._says(match))
        is_copy = (
            (match is None or match.folder == UNDONE) and label is not None and self._taught(known, label) == label
        )
        if label is None or is_copy:
            return None
        if match is not None:
            was.taken.add(match.id)
            return Move(place, digest, size, match, label, self._says(match))
        by_hand = Move(place, digest, size, None, label, twin=known[0] if known else None)
        return by_hand if not was.places[place] and self._may_be_by_hand(place) else None

    def _has_left(self, entry: Entry, older: set[str], places: Mapping[str, bool]) -> bool:
        """Tell whether a photo is not where the journal says; what went back to the inbox has another id since."""
        if entry.folder == INBOX:
            return False
        return entry.id in older or bool(places.get(entry.place)) or not self.look.is_there(entry.place)

    def _taught(self, known: list[Entry], label: str) -> str | None:
        """Return what these bytes are known to be: by a person's last word, else by any daemon that says `label`."""
        words = [entry for entry in known if entry.taught is not None]
        if words:
            return max(words, key=lambda e: e.moved_at).taught
        return label if any(self._class_of(entry.place) == label for entry in known) else None

    def _may_be_by_hand(self, place: str) -> bool:
        began = self.history.began
        return self.history.is_whole and began is not None and self.look.changed_at(place) >= began

    def _says(self, entry: Entry) -> str | None:
        return entry.taught or self._class_of(entry.place)

    def _class_of(self, place: str) -> str | None:
        folder = place.partition("/")[0]
        return folder if folder in self.classes else None

    def _without_contradictions(self, moves: list[Move]) -> list[Move]:
        """Leave out what came by hand into several class folders at once."""
        labels = defaultdict[bytes, set[str | None]](set)
        for move in moves:
            if move.entry is None:
                labels[move.sha256].add(move.label)
        self.contradictory += [m.place for m in moves if m.entry is None and len(labels[m.sha256]) > 1]
        return [move for move in moves if move.place not in self.contradictory]


def line_of(move: Move, event: Literal["corrected", "moved"], batch: str) -> Line:
    """Return a move's line in the journal."""
    entry = move.entry or move.twin
    name = move.place.partition("/")[2]
    if event == "moved":
        assert move.entry is not None  # noqa: S101  what nobody knew has not moved
        return Line(
            event="moved", id=move.entry.id, batch=batch, file=move.entry.file, source=move.entry.place,
            destination=move.place, label=move.entry.taught, bytes=move.size, sha256=move.sha256.hex(),
        )  # fmt: skip
    return Line(
        event="corrected", id=move.entry.id if move.entry else f"hand-{secrets.token_hex(8)}", batch=batch,
        file=move.entry.file if move.entry else name, source=move.entry.place if move.entry else None,
        destination=move.place, label=move.label, was=move.was, predicted=entry.label if entry else None,
        score=entry.score if entry else None, model=entry.model if entry else None, bytes=move.size,
        audit=_kind(move), sha256=move.sha256.hex(),
    )  # fmt: skip


def _kind(move: Move) -> bool | None:
    """Return whether the photo had been sent to review/ though the model was sure; None: it had not been there."""
    event = move.entry.event if move.entry else None
    return {AUDIT: True, "review": False}.get(event or "")
