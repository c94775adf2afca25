"""Selection: which of the journal's files are meant, by batch, time, model or name.

Invariant: what is named narrows, and nothing named is an error: no command acts on everything by mistake.
"""

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from daemon.history import Entry, History
from daemon.tray import INBOX

UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
AGO = re.compile(r"(\d{1,9})([smhdw])")


class SelectionError(Exception):
    """What was asked for cannot be understood; the message says what can."""


@dataclass(frozen=True)
class Selection:
    """What was asked for: `since` is in milliseconds since 1970, `files` are as typed: below `cwd`, or the tray."""

    batch: str | None = None
    since: int | None = None
    model: int | None = None
    files: tuple[str, ...] = ()
    cwd: Path = Path()

    @property
    def is_empty(self) -> bool:
        """Whether nothing was named."""
        return self.batch is None and self.since is None and self.model is None and not self.files


def moment(text: str, now: datetime) -> int:
    """Return when `text` was, in milliseconds since 1970: an ISO date or time (local unless it says), or 2h, 3d ago.

    Raises SelectionError.
    """
    try:
        if ago := AGO.fullmatch(text):
            return _ms(now - timedelta(**{UNITS[ago[2]]: int(ago[1])}))
        return _ms(datetime.fromisoformat(text))
    except (ValueError, OverflowError, OSError):
        raise SelectionError(
            f"--since {text}: neither a date or time (2026-05-31, 2026-05-31T18:00) nor 2h, 3d"
        ) from None


def select(history: History, asked: Selection, root: Path, target: str) -> tuple[list[Entry], list[str]]:
    """Return the entries that are meant, and the files of which the journal knows nothing.

    What is in `target`, or was handed back to the inbox, has been taken back before. Raises SelectionError.
    """
    if asked.is_empty:
        raise SelectionError("say what is to be taken back: files, --batch, --since or --model")
    named = {file: frozenset(_places(file, asked.cwd, root)) for file in asked.files}
    places = frozenset[str]().union(*named.values())
    older = history.superseded()
    chosen, found = list[Entry](), set[str]()
    for entry in history.entries():
        if entry.id in older or (named and entry.place not in places):
            continue
        if named:
            found.add(entry.place)
        if entry.is_moved and not named:  # a person has put it where it is
            continue
        if _is_meant(entry, asked) and entry.folder not in (INBOX, target):
            chosen.append(entry)
    return chosen, [file for file, candidates in named.items() if not candidates & found]


def _is_meant(entry: Entry, asked: Selection) -> bool:
    return (
        asked.batch in (None, entry.batch)
        and asked.model in (None, entry.model)
        and (asked.since is None or entry.at >= asked.since)
    )


def _places(file: str, cwd: Path, root: Path) -> Iterator[str]:
    """Yield the places that a file's name may mean. Raises SelectionError where none is in the tray."""
    roots = {os.path.abspath(root), os.path.realpath(root)}
    inside = [place for base in (cwd, root) for place in _below(os.path.join(base, file), roots)]
    if not inside:
        raise SelectionError(f"{file}: not in the tray {root}")
    yield from inside


def _below(path: str, roots: Sequence[str] | set[str]) -> Iterator[str]:
    whole = os.path.abspath(path)
    folder, name = os.path.split(whole)
    for spelled in (whole, os.path.join(os.path.realpath(folder), name)):
        for root in roots:
            if spelled.startswith(root + "/"):
                yield spelled[len(root) + 1 :]


def _ms(time: datetime) -> int:
    return int(time.timestamp() * 1000)
