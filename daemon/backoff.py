"""Backoff: what is wrong with the environment, told once, and how long to wait until it is tried again."""

from dataclasses import dataclass

import structlog

from daemon.logs import printable

FIRST, LONGEST = 1.0, 60.0  # seconds
log = structlog.get_logger()


@dataclass
class Backoff:
    """Waits twice as long after each failure; `retry_at` is in monotonic seconds."""

    fault: str | None = None
    seconds: float = 0.0
    retry_at: float = 0.0

    def failed(self, error: Exception, now: float) -> None:
        """Wait for longer than before; say what is wrong unless that is known."""
        text = printable(error.strerror or error if isinstance(error, OSError) and not error.filename else error)
        self.seconds = min(max(FIRST, self.seconds * 2), LONGEST)
        self.retry_at = now + self.seconds
        if text != self.fault:
            log.error("waiting: nothing moves until this is mended", error=text)
        self.fault = text

    def worked(self) -> None:
        """Try at once again; say so where something was wrong."""
        if self.fault is not None:
            log.info("working again", after=self.fault)
        self.fault, self.seconds, self.retry_at = None, 0.0, 0.0
