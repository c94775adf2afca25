"""Accounts: where is every file that the journal ever saw? The promise that none is lost, checked from outside.

Invariant: nothing is changed. A file counts as found only by its bytes' hash, or by being where the journal says; of
two entries with the same bytes, each needs a file, or a later line, of its own.
"""

# ruff: noqa: T201

import contextlib
import os
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

import orjson
from rich.console import Console as Terminal
from rich.progress import Progress

from daemon import fs, owner, tray
from daemon.evidence import Evidence
from daemon.history import Entry, History, fold
from daemon.journal import owners, segments
from daemon.logs import failed, printable, refusal
from daemon.tray import TrayError
from trainer.settings import Settings

NAMED = 20
BAD_INPUT, FAILED = 2, 1
KINDS = {
    "moved": "moved by a person, elsewhere in the tray",
    "again": "taken again: a later line tells of the same bytes",
    "in_work": "in .work: being sorted, or waiting for the next start",
    "missing": "not in the tray: deleted, taken out of it, or lost",
    "changed": "there, with other content",
    "hidden": "this user may not look: run it as the daemon's user, or mend the modes",
}
BAD = ("missing", "changed", "hidden")


@dataclass
class Accounts:
    """What was found: how many files are in place, and the names of all others by kind (see KINDS)."""

    files: int
    in_place: int
    deep: bool
    others: dict[str, list[str]]
    conflicts: list[str]
    unreadable: list[str]
    unreadable_count: int
    unlocked: dict[str, list[str]]  # of each owner whose lock was removed, the files

    @property
    def left(self) -> list[str]:
        """The files in `.work` that nobody will take."""
        return [file for files in self.unlocked.values() for file in files]

    @property
    def is_good(self) -> bool:
        """Whether every file is accounted for."""
        return not self.conflicts and not self.unlocked and not any(self.others[kind] for kind in BAD)


def run(settings: Settings, *, deep: bool, json: bool) -> int:
    """Print the accounts; return 0 where all files are in place or moved, else 1."""
    terminal = Terminal(stderr=True)
    try:
        with Progress(console=terminal, transient=True, disable=not terminal.is_terminal) as progress:
            found = settle(settings, progress, deep=deep)
    except TrayError as error:
        return failed(str(error), BAD_INPUT)
    except OSError as error:
        return failed(f"{refusal(error)}: run it as the daemon's user", FAILED)
    if json:
        sys.stdout.buffer.write(orjson.dumps(as_json(found), option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
    else:
        print("\n".join(describe(found)))
    return 0 if found.is_good else FAILED


def settle(settings: Settings, progress: Progress, *, deep: bool) -> Accounts:
    """Read the journal, then look for every file that it names. Raises TrayError or OSError."""
    with contextlib.ExitStack() as opened:
        folder = tray.open_tray(settings.tray.root)
        opened.callback(os.close, folder)
        evidence = opened.enter_context(Evidence(folder))
        root = settings.journal.root
        size = sum(path.stat().st_size for name in owners(root) for _, path in segments(root, name))
        task = progress.add_task("reading the journal", total=size)
        history = fold(root, lambda size: progress.advance(task, size))
        search = _Search(history, evidence, folder, progress)
        search.look_at_places(deep=deep)
        search.look_elsewhere()
        return search.result(_unlocked(folder), deep=deep)


def _unlocked(folder: int) -> dict[str, list[str]]:
    """Return, of each owner in the tray whose lock was removed, the files that nobody will take."""
    with fs.Folders(folder) as folders, contextlib.suppress(FileNotFoundError):
        found = owner.unlocked(folders.fd((tray.WORK,)))
        return {name: [printable(f"{tray.WORK}/{name}/{file}") for file in files] for name, files in found}
    return {}


def as_json(found: Accounts) -> dict[str, object]:
    """Return what `accounts --json` prints: every name that is not in place."""
    counts = {"in_place": found.in_place} | {kind: len(names) for kind, names in found.others.items()}
    return {
        "files": found.files, "is_good": found.is_good, "deep": found.deep, "counts": counts, "names": found.others,
        "left": found.left,
        "two_decisions": found.conflicts, "unreadable_lines": found.unreadable_count, "unreadable": found.unreadable,
    }  # fmt: skip


def describe(found: Accounts) -> Iterator[str]:
    """Yield the lines for people."""
    yield f"files      {found.files:,} that the journal tells of"
    yield f"in place   {found.in_place:,}{' (every hash compared)' if found.deep else ' (by name and size)'}"
    for kind, text in KINDS.items():
        if names := found.others[kind]:
            yield f"{kind.replace('_', ' '):<9}  {len(names):,} ({text})"
    if found.conflicts:
        yield f"defect     {len(found.conflicts):,} ids have two different decision lines: please report this"
    if found.unreadable_count:
        yield f"unreadable {found.unreadable_count:,} lines of the journal: what they told of is not counted"
    for name, files in found.unlocked.items():
        yield f"left       {len(files):,}: {printable(owner.UNLOCKED.format(name))}"
    more = (("left", found.left), ("two decisions", found.conflicts), ("unreadable", found.unreadable))
    for kind, names in (*found.others.items(), *more):
        yield from (f"{kind.replace('_', ' ')}: {name}" for name in names[:NAMED])
        if len(names) > NAMED:
            yield f"{kind.replace('_', ' ')}: … and {len(names) - NAMED:,} more (--json names all)"


@dataclass
class _Search:
    history: History
    evidence: Evidence
    folder: int
    progress: Progress
    older: set[str] = field(default_factory=set)
    strays: list[Entry] = field(default_factory=list)
    others: dict[str, list[str]] = field(default_factory=lambda: {kind: [] for kind in KINDS})

    def look_at_places(self, *, deep: bool) -> None:
        """Find the entries whose file is not, or not unchanged, where the journal says."""
        task = self.progress.add_task("comparing hashes" if deep else "looking", total=len(self.history))
        self.older = self.history.superseded()
        for number, entry in enumerate(self.history.entries()):
            try:
                if entry.id in self.older or not self._is_in_place(entry, deep=deep):
                    self.strays.append(entry)
            except PermissionError:
                self.others["hidden"].append(_named(entry))
            if deep or number % 4096 == 0:
                self.progress.update(task, completed=number)

    def look_elsewhere(self) -> None:
        """Say of each stray what became of it; the newest ones first, since an older one may have been taken again."""
        self.strays.sort(key=lambda e: e.moved_at, reverse=True)
        found = self._hashed(self._candidates()) if self.strays else {}
        lost = list[Entry]()
        for entry in self.strays:
            places = found.get(entry.sha256 or b"")
            if places:
                place = places.pop(0)
                if place == entry.place:
                    continue
                kind = "in_work" if place.startswith(f"{tray.WORK}/") else "moved"
                self.others[kind].append(f"{_named(entry)} → {printable(place)}")
            else:
                lost.append(entry)
        self._look_for_later_lines(lost)

    def _look_for_later_lines(self, lost: list[Entry]) -> None:
        later: dict[bytes, list[tuple[int, str]]] = {_key(entry): [] for entry in lost}
        for entry in self.history.entries() if lost else ():
            if _key(entry) in later:
                later[_key(entry)].append((entry.at, entry.batch))
        for entry in lost:
            decided = later[_key(entry)]
            after = [(at, batch) for at, batch in decided if at > entry.moved_at and batch != entry.batch]
            if after:
                decided.remove(max(after))
                self.others["again"].append(_named(entry))
            elif self.evidence.is_hidden(entry.place):
                self.others["hidden"].append(_named(entry))
            elif entry.id in self.older or self.evidence.stat(entry.place) is None:
                self.others["missing"].append(_named(entry))
            elif not self._is_in_place(entry, deep=True):  # else a running daemon has delivered it meanwhile
                self.others["changed"].append(_named(entry))

    def result(self, unlocked: dict[str, list[str]], *, deep: bool) -> Accounts:
        """Return the accounts."""
        elsewhere = sum(map(len, self.others.values()))
        history, total = self.history, len(self.history)
        unreadable, conflicts = map(list, (history.unreadable, history.conflicts))
        return Accounts(
            total, total - elsewhere, deep, self.others, conflicts, unreadable, history.unreadable_count, unlocked
        )  # fmt: skip

    def _is_in_place(self, entry: Entry, *, deep: bool) -> bool:
        if deep and entry.sha256 is not None:
            read = self.evidence.sha256(entry.place)
            return read is not None and read[1] == entry.sha256
        st = self.evidence.stat(entry.place)
        return st is not None and (entry.sha256 is None or entry.size in (None, st.st_size))

    def _candidates(self) -> dict[str, int]:
        """Return the files that may be strays, by their size: path → size. Files at a place of their own are none."""
        sizes = {entry.size for entry in self.strays if entry.sha256}
        found = {path: size for path, size in _walk(self.folder) if size in sizes or None in sizes}
        strays = {entry.id for entry in self.strays}
        for entry in self.history.entries() if found else ():
            if entry.place in found and entry.id not in strays:
                del found[entry.place]
        return found

    def _hashed(self, candidates: dict[str, int]) -> dict[bytes, list[str]]:
        found = defaultdict[bytes, list[str]](list)
        # What a person made of a file says more than a copy in `.work`.
        for path in self.progress.track(
            sorted(candidates, key=lambda p: (p.startswith("."), p)), description="hashing"
        ):
            with contextlib.suppress(PermissionError):  # what is behind it, nobody can tell: an entry is missing then
                if read := self.evidence.sha256(path):
                    found[read[1]].append(path)
        return found


def _key(entry: Entry) -> bytes:
    """Return what two entries of the same file have in common: its hash, or its name where nothing was hashed."""
    return entry.sha256 or os.fsencode(entry.file)


def _walk(folder: int) -> Iterator[tuple[str, int]]:
    """Yield every file of the tray with its size: `.work` first, as files leave it while we look."""
    for top, dirs, names, fd in os.fwalk(".", dir_fd=folder, onerror=_raise_unless_gone):
        dirs.sort(key=lambda name: (name != tray.WORK, name))
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                yield os.path.normpath(os.path.join(top, name)), os.stat(name, dir_fd=fd, follow_symlinks=False).st_size


def _raise_unless_gone(error: OSError) -> None:
    """Raise the error again, unless a folder is gone, or a person closed one of theirs; `.work` must be looked into."""
    is_theirs = isinstance(error, PermissionError) and os.path.basename(str(error.filename)) != tray.WORK
    if not (is_theirs or isinstance(error, FileNotFoundError)):
        raise error


def _named(entry: Entry) -> str:
    dropped = "" if entry.place.endswith(f"/{entry.file}") else f" (dropped as {printable(entry.file)})"
    return printable(entry.place) + dropped
