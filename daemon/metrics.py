"""Metrics: figures for Prometheus in a textfile, for node_exporter's collector; no port is opened.

Invariant: writing them never delays a photo. The loop takes the figures, a thread of its own writes them; a disk that
refuses or hangs costs a warning. What the journal counts goes on after a restart; the histograms begin anew, as
Prometheus expects of a counter.
"""

import threading
from collections.abc import Callable
from pathlib import Path

import structlog

from daemon.figures import Figures
from daemon.logs import printable
from trainer.tables import Metrics

HANGS_SECONDS = 60.0
log = structlog.get_logger()


class Textfile:
    """Writes the figures when they are due. Times are monotonic seconds."""

    def __init__(self) -> None:
        self._due = 0.0
        self._thread: threading.Thread | None = None
        self._since = 0.0
        self._error = ""

    def step(self, now: float, settings: Metrics, take: Callable[[], Figures]) -> str:
        """Begin to write where it is due; return what is wrong where that does not end."""
        if self._thread is not None and self._thread.is_alive():
            return f"{settings.file} cannot be written: its disk does not answer" if self._hangs(now) else ""
        self._thread = None
        if settings.file and now >= self._due:
            self._due, self._since = now + settings.seconds, now
            arguments = (Path(settings.file), take())
            self._thread = threading.Thread(target=self._write, args=arguments, name="metrics", daemon=True)
            self._thread.start()
        return ""

    def _hangs(self, now: float) -> bool:
        return now - self._since > HANGS_SECONDS

    def _write(self, file: Path, figures: Figures) -> None:
        try:
            from daemon.exposition import write  # noqa: PLC0415  # prometheus_client: only where it is asked for

            write(file, figures)
        except Exception as error:  # noqa: BLE001  # whatever it is: photos are sorted without metrics, too
            text = printable((error.strerror if isinstance(error, OSError) else None) or error)
            if text != self._error:
                log.warning("the metrics cannot be written", error=text, file=str(file))
            self._error = text
        else:
            self._error = ""
