"""The journal: `log/<owner>-<n>.jsonl`, append-only, fsynced before anything is delivered; the truth about the past.

Invariant: `append` returns only when its lines are durable; when it raises, the lines may be written again with the
same ids (readers fold by id). Nothing is ever written behind a torn line or through a descriptor whose fsync failed.
"""

import contextlib
import dataclasses
import errno
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from daemon import journal_lock
from daemon.events import DECISIONS, Line, encode, parse, utc_now
from daemon.totals import Totals

MOVES = (*DECISIONS, "restored", "redirected")  # each names the place that a file is to be moved to
TOTALS_EVERY = 128  # lines; so the newest counts are always near the end, where `status` looks
TAIL_BYTES = 262_144
SEGMENT = re.compile(r"(?P<owner>.+)-(?P<number>[1-9][0-9]*)\.jsonl")


def owners(root: Path) -> list[str]:
    """Return who ever wrote a journal here."""
    found = (SEGMENT.fullmatch(name) for name in _names(root))
    return sorted({m["owner"] for m in found if m})


def segments(root: Path, owner: str) -> list[tuple[int, Path]]:
    """Return an owner's journal files with their numbers, oldest first."""
    found = ((SEGMENT.fullmatch(name), name) for name in _names(root))
    return sorted((int(m["number"]), root / name) for m, name in found if m and m["owner"] == owner)


def read(path: Path, start: int = 0) -> Iterator[Line]:
    """Yield the lines of one journal file from byte `start` on; what is no line is passed over."""
    with path.open("rb") as file:
        file.seek(start)
        for raw in file:  # bytes are split on "\n" alone
            if raw.endswith(b"\n") and (line := parse(raw)):
                yield line


def lines_of(root: Path, owner: str, batches: Sequence[str]) -> dict[tuple[str, str], Line]:
    """Return the newest line of each file of these batches, by (batch, file).

    A batch's name begins with the number of the segment that was written when it was claimed: older ones are not read.
    """
    first = min((int(b.partition("-")[0]) for b in batches), default=0)
    wanted, newest = frozenset(batches), dict[tuple[str, str], Line]()
    for _, path in (s for s in segments(root, owner) if wanted and s[0] >= first):
        for line in read(path):
            if line.batch in wanted and line.file is not None and line.event in MOVES:
                newest[line.batch, line.file] = line
    return newest


def was_served(root: Path, tray: Path) -> bool:
    """Tell whether any daemon that writes its journal in `root` ever served this tray. Reads all of it."""
    started = (line for owner in owners(root) for _, path in segments(root, owner) for line in _started(path))
    return any(line.source == str(tray) for line in started)


def _started(path: Path) -> Iterator[Line]:
    with path.open("rb") as file:
        for raw in file:
            if b'"event":"started"' in raw and (line := parse(raw)):
                yield line


def tail_totals(root: Path, owner: str) -> Totals:
    """Return an owner's totals, from the end of its journal: as fast after a million lines as after one."""
    later: list[Line] = []
    for _, path in reversed(segments(root, owner)):
        size, window = path.stat().st_size, TAIL_BYTES
        while True:
            lines = list(read(path, max(0, size - window)))
            known = next((i for i in reversed(range(len(lines))) if lines[i].totals), None)
            if known is not None:
                return Totals.from_dict(lines[known].totals or {}).plus(lines[known + 1 :] + later)
            if window >= size:
                break
            window *= 4
        later = lines + later
    return Totals().plus(later)


def is_open(root: Path, owner: str) -> bool:
    """Tell whether a daemon has this owner's journal open: also one that waits for room on its disk.

    Who may not look at the lock sees whether its newest file is held, which others can feign.
    """
    found = segments(root, owner)
    for path in (journal_lock.path_of(root, owner), *(path for _, path in found[-1:])):
        with contextlib.suppress(OSError):
            return journal_lock.is_held(path)
    return False


class Journal:
    """The journal of one owner, open for appending and locked for as long as it is open.

    The lock is a file of its own that nobody else may open: whoever may read the journal could hold a lock on it.
    """

    def __init__(self, root: Path, owner: str, segment_bytes: int) -> None:
        """Open the newest segment, mend a torn tail, and make what can be read durable. Raises OSError."""
        self._root, self._owner, self.segment_bytes = root, owner, segment_bytes
        self._since_totals = 0
        root.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as opened:
            opened.enter_context(journal_lock.held(root, owner))
            self.segment = (segments(root, owner) or [(1, root)])[-1][0]
            self.totals = tail_totals(root, owner)
            self._file: _Segment | None = _Segment(self._path)
            self._lock = opened.pop_all()

    def append(self, lines: Sequence[Line]) -> None:
        """Write the lines and make them durable, all in one segment. Raises OSError; then none of them counts."""
        file = self._writable()
        stamped = [line if line.ts else line.model_copy(update={"ts": utc_now()}) for line in lines]
        totals, since = self.totals.plus(stamped), self._since_totals + len(stamped)
        if since >= TOTALS_EVERY or file.size == 0:
            stamped.append(Line(event="totals", ts=utc_now(), totals=totals.as_dict()))
            since = 0
        try:
            file.append(b"".join(map(encode, stamped)))
        except OSError:
            self._close_segment()  # the next append begins a new one
            raise
        self.totals, self._since_totals = totals, since

    def count_rescued(self, files: int) -> None:
        """Count files that no event told of; the next totals line says so."""
        self.totals = dataclasses.replace(self.totals, rescued=self.totals.rescued + files)

    def note_blocked(self, blocked: Mapping[str, str]) -> None:
        """Note what waits now because the daemon may not have it, and why. Raises OSError."""
        self.totals = dataclasses.replace(self.totals, blocked=dict(blocked))
        self._since_totals = TOTALS_EVERY
        self.append([])

    def close(self) -> None:
        """Close the files, which frees the lock."""
        self._close_segment()
        self._lock.close()

    def _close_segment(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    @property
    def _path(self) -> Path:
        return self._root / f"{self._owner}-{self.segment}.jsonl"

    def _writable(self) -> "_Segment":
        if self._file is None or self._file.size >= self.segment_bytes or not self._file.is_intact(self._path):
            self._close_segment()
            if self._path.exists() and self._path.stat().st_size > 0:
                self.segment += 1
            self._file = _Segment(self._path)
        return self._file


class _Segment:
    """One journal file: `size` is where its last durable line ends."""

    def __init__(self, path: Path) -> None:
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        self._fd = os.open(path, flags, 0o640)
        try:
            journal_lock.show(self._fd)
            self.size = _mend_tail(self._fd)
            os.fsync(self._fd)  # a line that can be read may not be durable yet
            _sync_folder(path.parent)
        except BaseException:
            os.close(self._fd)
            raise

    def append(self, data: bytes) -> None:
        """Write and fsync, or cut back to the last good line and raise OSError.

        After a failed fsync the kernel forgets which pages were lost and would report success the next time: the caller
        must not use this file again.
        """
        try:
            _write_all(self._fd, data)
            os.fsync(self._fd)
        except OSError:
            self._cut_back()
            raise
        self.size += len(data)

    def is_intact(self, path: Path) -> bool:
        """Tell whether the file still has its name and its size: nobody moved it away, or wrote into it."""
        ours = os.fstat(self._fd)
        try:
            return os.path.samestat(ours, os.stat(path, follow_symlinks=False)) and ours.st_size == self.size
        except FileNotFoundError:
            return False

    def close(self) -> None:
        os.close(self._fd)

    def _cut_back(self) -> None:
        try:
            os.ftruncate(self._fd, self.size)
        except OSError:  # whoever opens it next mends the tail, and readers pass over what is torn
            return


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        written = os.write(fd, view)
        if written == 0:
            raise OSError(errno.EIO, "the journal's disk takes no bytes")
        view = view[written:]


def _mend_tail(fd: int) -> int:
    """Cut a line that a crash left unfinished; returns the size that remains."""
    size = end = os.fstat(fd).st_size
    while end > 0:
        start = max(0, end - 65_536)
        newline = os.pread(fd, end - start, start).rfind(b"\n")
        if newline >= 0:
            end = start + newline + 1
            break
        end = start
    if end < size:
        os.ftruncate(fd, end)
    return end


def _names(root: Path) -> list[str]:
    try:
        return os.listdir(root)
    except FileNotFoundError:
        return []


def _sync_folder(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
