"""Which files are ready: sightings and the monotonic time in, settled files and batches out. Pure; touches no disk.

Invariant: a file is settled only after two sightings at least `settle_seconds` apart found the same size, times and
inode; any change starts the wait again. Time never goes back, so that what is due stands first: looking for it costs
the same whether ten files wait or ten thousand.
"""

import itertools
from dataclasses import dataclass

CAPACITY = 10_000
FEW = 256  # files that may be looked at with every event
PIECE = 1024  # files that are looked at before the first of them may be claimed


@dataclass(frozen=True, slots=True)
class Sighting:
    """A directory entry as it was seen: path relative to the inbox, kind, and what changes when it is written."""

    file: str
    kind: str
    size: int
    mtime_ns: int
    inode: int


@dataclass(slots=True)
class _Tracked:
    sighting: Sighting
    first_seen: float
    since: float  # seen unchanged; once it has settled: since it has


class Intake:
    """The files that wait, at most `capacity` of them: the rest of the inbox is looked at when there is room again."""

    def __init__(
        self, *, batch_size: int, settle_seconds: float, wait_seconds: float, capacity: int = CAPACITY
    ) -> None:
        self._batch_size = batch_size
        self._settle = settle_seconds
        self._wait = wait_seconds
        self._capacity = max(capacity, batch_size)
        self._waiting: dict[str, _Tracked] = {}  # the one that is due first comes first
        self._settled: dict[str, _Tracked] = {}  # in the order in which they settled

    def follow(self, *, batch_size: int, settle_seconds: float, wait_seconds: float) -> None:
        """Follow other settings from now on; what is tracked stays tracked."""
        self._batch_size, self._settle, self._wait = batch_size, settle_seconds, wait_seconds

    def __contains__(self, file: str) -> bool:
        return file in self._settled or file in self._waiting

    def __len__(self) -> int:
        return len(self._waiting) + len(self._settled)

    @property
    def room(self) -> int:
        """How many more files can be tracked."""
        return self._capacity - len(self)

    @property
    def is_full(self) -> bool:
        """Whether a full batch is settled."""
        return len(self._settled) >= self._batch_size

    def see(self, sighting: Sighting, now: float) -> None:
        """Take note of a file at `now` (monotonic seconds)."""
        file = sighting.file
        tracked = self._waiting.get(file) or self._settled.get(file)
        if tracked is None:
            tracked = self._waiting[file] = _Tracked(sighting, now, now)
        elif tracked.sighting != sighting:
            tracked.sighting = sighting
            self.defer(file, now)
        if file in self._waiting and now - tracked.since >= self._settle:
            tracked.since = now
            self._settled[file] = self._waiting.pop(file)

    def defer(self, file: str, now: float) -> None:
        """Start a file's wait again: it changed, or somebody still writes it."""
        tracked = self._settled.pop(file, None) or self._waiting.pop(file)
        tracked.since = now
        self._waiting[file] = tracked

    def forget(self, file: str) -> float | None:
        """Stop tracking a file (claimed, vanished or blocked); returns when it was first seen."""
        tracked = self._settled.pop(file, None) or self._waiting.pop(file, None)
        return tracked.first_seen if tracked else None

    def unsettled(self, now: float, *, at_once: bool = False) -> list[str]:
        """Return the files that are due for another look; with `at_once` all that are not settled, if they are few.

        A file that is seen while it is copied would otherwise be found changed only when its wait is over.
        """
        if at_once and len(self._waiting) <= FEW:
            return list(self._waiting)
        due = itertools.takewhile(lambda item: now - item[1].since >= self._settle, self._waiting.items())
        return [file for file, _ in itertools.islice(due, PIECE)]

    def batch(self, now: float, *, at_once: bool = False) -> list[Sighting]:
        """Return the files of the batch that is due, empty if none is.

        It is due when it is full, or its oldest has waited; or `at_once`: where nothing is in work, waiting for others
        gains nothing.
        """
        if not self._settled:
            return []
        oldest = next(iter(self._settled.values())).since
        if not (at_once or self.is_full or now - oldest >= self._wait):
            return []
        return [t.sighting for t in itertools.islice(self._settled.values(), self._batch_size)]

    def next_look(self) -> float | None:
        """Return the monotonic time at which something here becomes due, None where nothing waits."""
        first = ((self._waiting, self._settle), (self._settled, self._wait))
        return min((next(iter(files.values())).since + delay for files, delay in first if files), default=None)
