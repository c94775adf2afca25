"""The meter: how much passes through this daemon, and how fast. Counts of this process; the journal has the others.

Invariant: it takes as much memory after a million photos as after one.
"""

from bisect import bisect_left
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from daemon.events import Line

PACE_SECONDS = 60.0
LATENCY_BOUNDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0)  # seconds
SIZE_BOUNDS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0)  # files: [daemon] batch_size's limits


class Histogram:
    """How many observations were at most as large as each bound; the last count is of those above all bounds."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds, self.sum = tuple(bounds), 0.0
        self.counts = [0] * (len(bounds) + 1)

    def observe(self, value: float) -> None:
        """Count one value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def copy(self) -> "Histogram":
        """Return the counts of this moment."""
        made = Histogram(self.bounds)
        made.counts, made.sum = list(self.counts), self.sum
        return made

    def cumulated(self) -> list[tuple[str, float]]:
        """Return the buckets as Prometheus has them: upper bound, and how many were not above it."""
        total, found = 0, list[tuple[str, float]]()
        for bound, count in zip((*self.bounds, float("inf")), self.counts, strict=True):
            total += count
            found.append(("+Inf" if bound == float("inf") else str(bound), total))
        return found


@dataclass
class Meter:
    """What was claimed and delivered. Times are monotonic seconds."""

    latency: Histogram = field(default_factory=lambda: Histogram(LATENCY_BOUNDS))
    sizes: Histogram = field(default_factory=lambda: Histogram(SIZE_BOUNDS))
    _claimed: dict[str, float] = field(default_factory=dict)  # when each batch in work was
    _recent: deque[tuple[float, int]] = field(default_factory=deque)

    def claimed(self, batch: str, files: int, now: float) -> None:
        """Count a batch."""
        self._claimed[batch] = now
        self.sizes.observe(files)

    def forget(self) -> None:
        """Forget what is in work: the tray is gone, and it is adopted when that is back."""
        self._claimed.clear()

    def delivered(self, lines: Iterable[Line], now: float) -> None:
        """Count what was delivered at `now`.

        What was adopted after a crash, or set aside because it still changed, has no such time: no latency of ours.
        """
        lines = list(lines)
        for line in lines:
            if (at := self._claimed.get(line.batch or "")) is not None and line.queued_ms is not None:
                self.latency.observe(max(0.0, line.queued_ms / 1000 + now - at))
        for line in lines:
            self._claimed.pop(line.batch or "", None)
        if lines:
            self._recent.append((now, len(lines)))

    def rate(self, now: float) -> int:
        """Return how many photos were delivered in the last minute."""
        while self._recent and self._recent[0][0] <= now - PACE_SECONDS:
            self._recent.popleft()
        return sum(count for _, count in self._recent)
