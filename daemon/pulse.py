"""The pulse: what a running daemon tells systemd and `moodbox status` of itself, and when it stops doing so.

Invariant: the watchdog is pinged while the loop runs and no batch lies where no thread works on it. What is waited out
(a full disk), what the daemon ends by itself (a decoder that hangs), and what may hang without harm (the learner, a new
model, the metrics file) does not stop the pings.
"""

from collections.abc import Callable
from dataclasses import dataclass

import structlog

from daemon import systemd

EVERY = 1.0  # seconds between two STATUS lines, at least, and two pings, at most
IDLE_EVERY = 5.0  # the same while there is nothing to do: each look wakes a core
BEAT_SECONDS = 10.0  # seconds between two touches of the owner's lock, where `moodbox status` looks
log = structlog.get_logger()


@dataclass
class Stall:
    """Knows since when batches are in work on which nobody works: a chunk that got lost is waited for, for ever."""

    _moved: float | None = None
    _seen: int = 0

    def seconds(self, now: float, *, batches: int, outcomes: int, is_busy: bool) -> float:
        """Return for how long nothing has moved although `batches` wait for outcomes; 0: all is well."""
        if not batches or is_busy or outcomes != self._seen or self._moved is None:
            self._moved, self._seen = now, outcomes
        return now - self._moved


def every(*, is_idle: bool) -> float:
    """Return how often (seconds) the watchdog is pinged: at least thrice in its time."""
    wanted = IDLE_EVERY if is_idle else EVERY
    return min(wanted, (systemd.watchdog_seconds() or 3 * wanted) / 3)


@dataclass
class Pulse:
    """Called with every iteration; sends what is due. All times are monotonic seconds."""

    _ping_at: float = 0.0
    _status_at: float = 0.0
    _beat_at: float = 0.0
    _status: str = ""
    _is_ill: bool = False

    def tell(self, now: float, status: Callable[[], str]) -> None:
        """Send the status, which is asked for at most once a second, if it changed: again where it was not taken."""
        if now < self._status_at:
            return
        self._status_at = now + EVERY
        if (text := status()) != self._status and systemd.notify(STATUS=text):
            self._status = text

    def ping(self, now: float, ill: str, show_life: Callable[[], object]) -> None:
        """Ping the watchdog and have the owner's lock touched, unless the daemon is `ill`: then that is said, once."""
        if ill:
            if not self._is_ill:
                log.error("stuck: the watchdog is pinged no more", error=ill)
            self._is_ill = True
            return
        self._is_ill = False
        if now >= self._ping_at:
            self._ping_at = now + every(is_idle=False)
            systemd.notify(WATCHDOG=1)
        if now >= self._beat_at:
            self._beat_at = now + BEAT_SECONDS
            show_life()
