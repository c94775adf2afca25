"""Diagnostics by structlog, on stderr: JSON lines, or readable ones on a terminal. Decisions go to the journal instead.

Where stderr is journald's, a line goes there with its priority and its fields, and is the message.

Invariant: what a file name holds cannot act on a terminal; control characters and bytes that are no text are escaped.
"""

import contextlib
import errno
import logging
import os
import sys
import threading
from collections.abc import MutableMapping
from typing import Any

import structlog

from daemon import journald


def printable(text: object) -> str:
    """Return `text` with everything that a terminal would not print as itself written as an escape."""
    shown = os.fsencode(str(text)).decode(errors="backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in shown)


def failed(error: object, status: int) -> int:
    """Say on stderr, in one line, why a command ends, and return its exit status."""
    text = f"moodbox: {printable(error)}"
    print(journald.prefixed("error", text) if journald.is_stderr() else text, file=sys.stderr)  # noqa: T201
    return status


FULL = (errno.ENOSPC, errno.EDQUOT)


def refusal(error: OSError) -> str:
    """Return what the system refused: the file, where it names one, and why; and what to do about a full disk."""
    cure = ": make room where tray.root, journal.root and models.root are" if error.errno in FULL else ""
    return f"{f'{error.filename}: ' if error.filename else ''}{error.strerror or error}{cure}"


def _escape(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    # A traceback is ours, with line breaks that matter.
    return {k: printable(v) if isinstance(v, str) and k != "exception" else v for k, v in event.items()}


class _Unfailing:
    """Standard error that cannot fail: a full disk behind it must not stop the daemon."""

    def write(self, text: str) -> None:
        with contextlib.suppress(OSError, ValueError, AttributeError):
            sys.stderr.write(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError, AttributeError):
            sys.stderr.flush()


class _Journald:
    """The last processor where stderr is journald's: sends the event, and leaves to stderr what was not taken."""

    def __init__(self) -> None:
        self._render = structlog.processors.JSONRenderer()

    def __call__(self, logger: object, method: str, event: MutableMapping[str, Any]) -> str:
        level, fields = str(event["level"]), dict(event)
        text = str(self._render(logger, method, event))
        if journald.send(level, text, fields):
            raise structlog.DropEvent
        return journald.prefixed(level, text)


def _tell_dead_thread(args: threading.ExceptHookArgs) -> None:
    """Tell of a thread that died (watchdog's do, at times, when they are stopped) as of everything else: in a line."""
    error = f"{args.exc_type.__name__}: {args.exc_value}"
    structlog.get_logger().warning("a thread ended", thread=str(args.thread and args.thread.name), error=error)


def configure(*, quiet: bool = False) -> None:
    """Set structlog up: from `info` on, or from `warning` on where `quiet` (a progress bar has the terminal)."""
    terminal = sys.stderr is not None and sys.stderr.isatty()
    renderer: Any = structlog.dev.ConsoleRenderer() if terminal else structlog.processors.JSONRenderer()
    if journald.is_stderr():
        renderer = _Journald()
    processors: list[Any] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="%H:%M:%S" if terminal else "iso", utc=not terminal),
        structlog.processors.format_exc_info,
        _escape,
        renderer,
    ]
    logging.getLogger("watchdog").setLevel(logging.CRITICAL)  # it complains of its own threads when it is stopped
    threading.excepthook = _tell_dead_thread
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger("warning" if quiet else "info"),
        logger_factory=structlog.PrintLoggerFactory(_Unfailing()),  # type: ignore[arg-type]
    )
