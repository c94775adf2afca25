"""What `run` and `once` show: a line per photo, or a progress bar on a terminal and plain lines elsewhere.

Invariant: names are printed so that they cannot act on the terminal; nothing here decides anything.
"""

# ruff: noqa: T201

import sys
import time
from collections import Counter
from collections.abc import Mapping
from types import TracebackType
from typing import Protocol, Self

import structlog
from rich.console import Console as Terminal
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from daemon.events import Line
from daemon.logs import printable
from daemon.tray import INBOX
from trainer.settings import Loaded

PLAIN_EVERY = 5.0  # seconds between two plain lines
NAMED = 10
log = structlog.get_logger()


def has_terminal() -> bool:
    """Tell whether this process runs in a terminal, and not as a service."""
    return any(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stderr))


class Console(Protocol):
    """What the service tells a person. `finished` is given what still waits in the inbox, and why."""

    def starting(self) -> None: ...
    def ready(self, serving: str, waiting: int) -> None: ...
    def decided(self, line: Line, waiting: int) -> None: ...
    def finished(self, blocked: Mapping[str, str]) -> int: ...


class Feed:
    """For `run`: where the inbox is, and on a terminal a line for each photo (elsewhere the journal has them)."""

    def __init__(self, loaded: Loaded) -> None:
        self._loaded = loaded
        self._on_terminal = sys.stderr.isatty()

    def starting(self) -> None:
        """Say where things are, before TensorFlow takes its seconds."""
        settings = self._loaded.settings
        log.info("starting", settings=str(self._loaded.file or "defaults: no settings.toml found"))
        print(f"inbox    {printable(settings.tray.root / INBOX)}")
        print(f"journal  {printable(settings.journal.root)}", flush=True)

    def ready(self, serving: str, waiting: int) -> None:
        """Say what serves."""
        print(f"serving  {printable(serving)}", flush=True)
        how = "ready: drop photos into the inbox"
        log.info(f"{how}; Ctrl-C stops" if has_terminal() else how, waiting=waiting)

    def decided(self, line: Line, _waiting: int) -> None:
        """Show one decision."""
        if self._on_terminal:
            log.info(_describe(line))

    def finished(self, _blocked: Mapping[str, str]) -> int:
        """Say good-bye."""
        log.info("stopped")
        return 0


class Tally:
    """For `once`: progress, then what became of everything. Exit status 1 where something could not be taken."""

    def __init__(self, loaded: Loaded) -> None:
        self._loaded = loaded
        self._counts: Counter[str] = Counter()
        self._rejected: list[Line] = []
        self._told_at = time.monotonic()
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        terminal = Terminal(stderr=True)
        self._bar = Progress(*columns, console=terminal, disable=not terminal.is_terminal, transient=True)
        self._task = self._bar.add_task("loading the model", total=None)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, _t: type[BaseException] | None, _v: BaseException | None, _tb: TracebackType | None) -> None:
        self._bar.stop()

    def starting(self) -> None:
        """Say where the photos are expected, and which settings hold."""
        log.info("starting", settings=str(self._loaded.file or "defaults: no settings.toml found"))
        print(f"inbox    {printable(self._loaded.settings.tray.root / INBOX)}", flush=True)

    def ready(self, _serving: str, waiting: int) -> None:
        """Begin to count."""
        self._bar.update(self._task, description="sorting", total=waiting or None)

    def decided(self, line: Line, waiting: int) -> None:
        """Count one decision."""
        self._counts[line.label or "" if line.event == "sorted" else line.event] += 1
        if line.event == "rejected" and len(self._rejected) < NAMED:
            self._rejected.append(line)
        done = self._counts.total()
        self._bar.update(self._task, completed=done, total=done + waiting)
        if self._bar.disable and waiting and time.monotonic() - self._told_at >= PLAIN_EVERY:
            self._told_at = time.monotonic()
            print(f"{done:,} done, {waiting:,} waiting", file=sys.stderr, flush=True)

    def finished(self, blocked: Mapping[str, str]) -> int:
        """Say what became of everything."""
        self._bar.stop()
        parts = ", ".join(f"{printable(name)} {n:,}" for name, n in sorted(self._counts.items()))
        print(f"{self._counts.total():,} done{': ' + parts if parts else ''}")
        for line in self._rejected:
            print(_describe(line))
        if (more := self._counts["rejected"] - len(self._rejected)) > 0:
            print(f"… and {more:,} more in rejected/: see {printable(self._loaded.settings.journal.root)}")
        for file in sorted(blocked)[:NAMED]:
            print(f"waits: {printable(file)}: {blocked[file]}", file=sys.stderr)
        return 1 if blocked else 0


def _describe(line: Line) -> str:
    """Return a decision as a line for people."""
    name, place = printable(line.file), printable(line.destination)
    if line.event == "rejected":
        return f"{name} → {place}: {printable(line.error)}"
    why = "; picked by chance, to be looked at" if line.audit else ""
    return f"{name} → {place} ({printable(line.label)} {line.score:.1%}{why})"
