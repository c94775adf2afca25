"""Diagnostics by structlog, on stderr: JSON lines, or readable ones on a terminal. Decisions go to the journal instead.

Invariant: what a file name holds cannot act on a terminal; control characters and bytes that are no text are escaped.
"""

import contextlib
import logging
import os
import sys
import threading
import warnings
from collections.abc import MutableMapping
from typing import Any

import structlog


def printable(text: object) -> str:
    """Return `text` with everything that a terminal would not print as itself written as an escape."""
    shown = os.fsencode(str(text)).decode(errors="backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in shown)


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


def _tell_dead_thread(args: threading.ExceptHookArgs) -> None:
    """Tell of a thread that died (watchdog's do, at times, when they are stopped) as of everything else: in a line."""
    error = f"{args.exc_type.__name__}: {args.exc_value}"
    structlog.get_logger().warning("a thread ended", thread=str(args.thread and args.thread.name), error=error)


def configure(*, quiet: bool = False) -> None:
    """Set structlog up: from `info` on, or from `warning` on where `quiet` (a progress bar has the terminal)."""
    terminal = sys.stderr is not None and sys.stderr.isatty()
    renderer: Any = structlog.dev.ConsoleRenderer() if terminal else structlog.processors.JSONRenderer()
    processors: list[Any] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="%H:%M:%S" if terminal else "iso", utc=not terminal),
        structlog.processors.format_exc_info,
        _escape,
        renderer,
    ]
    logging.getLogger("watchdog").setLevel(logging.CRITICAL)  # it complains of its own threads when it is stopped
    # A folder that is seen twice while it is moved in is watched once: no news for an administrator.
    warnings.filterwarnings("ignore", category=RuntimeWarning, module="watchdog")
    threading.excepthook = _tell_dead_thread
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger("warning" if quiet else "info"),
        logger_factory=structlog.PrintLoggerFactory(_Unfailing()),  # type: ignore[arg-type]
    )
