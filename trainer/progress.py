"""Progress of long steps: a bar on a terminal, one line per step elsewhere; always on stderr.

Invariant: results are never written here, so that stdout can be piped; a step that fails leaves the terminal usable.
"""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

T = TypeVar("T")


def on_terminal() -> bool:
    """Tell whether somebody watches."""
    return sys.stderr.isatty()


def bar() -> Progress:
    """Return a progress display that disappears when it is done."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True), transient=True)


def line(text: str) -> None:
    """Write one line of progress."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def track(items: Iterable[T], total: int, label: str) -> Iterator[T]:
    """Yield the items, showing how many of `total` are done."""
    started = time.monotonic()
    if on_terminal():
        with bar() as shown:
            yield from shown.track(items, total=total, description=label)
    else:
        yield from items
    line(f"{label}: {total} in {time.monotonic() - started:.1f} s")


def printable(text: object) -> str:
    """Return `text` with everything that a terminal would act on, or that is not UTF-8, as escapes."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(text))
