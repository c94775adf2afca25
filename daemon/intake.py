"""Which files are ready: sightings and the monotonic time in, settled files and batches out. Pure; touches no disk.

Invariant: a file is settled only after two sightings at least `settle_seconds` apart found the same size, times and
inode; any change starts the wait again.
"""

from collections.abc import Iterable
from dataclasses import dataclass

CAPACITY = 10_000
FEW = 256  # files that may be looked at with every event


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
    since: float
    settled_at: float | None = None


class Intake:
    """The files that wait, at most `capacity` of them: the rest of the inbox is looked at when there is room again."""

    def __init__(
        self, *, batch_size: int, settle_seconds: float, wait_seconds: float, capacity: int = CAPACITY
    ) -> None:
        self._batch_size = batch_size
        self._settle = settle_seconds
        self._wait = wait_seconds
        self._capacity = max(capacity, batch_size)
        self._tracked: dict[str, _Tracked] = {}
        self._settled: dict[str, _Tracked] = {}  # in the order in which they settled

    def __contains__(self, file: str) -> bool:
        return file in self._tracked

    def __len__(self) -> int:
        return len(self._tracked)

    @property
    def room(self) -> int:
        """How many more files can be tracked."""
        return self._capacity - len(self._tracked)

    def see(self, sighting: Sighting, now: float) -> None:
        """Take note of a file at `now` (monotonic seconds)."""
        tracked = self._tracked.get(sighting.file)
        if tracked is None:
            tracked = self._tracked[sighting.file] = _Tracked(sighting, now, now)
        elif tracked.sighting != sighting:
            tracked.sighting = sighting
            self.defer(sighting.file, now)
        if tracked.settled_at is None and now - tracked.since >= self._settle:
            tracked.settled_at = now
            self._settled[sighting.file] = tracked

    def defer(self, file: str, now: float) -> None:
        """Start a file's wait again: it changed, or somebody still writes it."""
        tracked = self._tracked[file]
        tracked.since, tracked.settled_at = now, None
        self._settled.pop(file, None)

    def forget(self, file: str) -> float | None:
        """Stop tracking a file (claimed, vanished or blocked); returns when it was first seen."""
        self._settled.pop(file, None)
        tracked = self._tracked.pop(file, None)
        return tracked.first_seen if tracked else None

    def unsettled(self, now: float, *, at_once: bool = False) -> list[str]:
        """Return the files that are due for another look; with `at_once` all that are not settled, if they are few.

        A file that is seen while it is copied would otherwise be found changed only when its wait is over.
        """
        waiting = [(f, t) for f, t in self._tracked.items() if t.settled_at is None]
        is_few = at_once and len(waiting) <= FEW
        return [f for f, t in waiting if is_few or now - t.since >= self._settle]

    def batch(self, now: float) -> list[Sighting]:
        """Return the files of the batch that is due: full, or fewer once the oldest has waited; empty if none is."""
        if not self._settled:
            return []
        oldest = next(iter(self._settled.values())).settled_at or 0.0
        if len(self._settled) < self._batch_size and now - oldest < self._wait:
            return []
        return [t.sighting for t in _first(self._settled.values(), self._batch_size)]

    def next_look(self) -> float | None:
        """Return the monotonic time at which something here becomes due, None where nothing waits."""
        due = [t.since + self._settle for t in self._tracked.values() if t.settled_at is None]
        if self._settled:
            due.append((next(iter(self._settled.values())).settled_at or 0.0) + self._wait)
        return min(due, default=None)


def _first(tracked: Iterable[_Tracked], count: int) -> list[_Tracked]:
    return [t for t, _ in zip(tracked, range(count), strict=False)]
