"""Headway: how far a backfill has come: a bar on a terminal, a plain line now and then elsewhere; always on stderr."""

import time
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Self, TypeVar

from trainer import progress

PLAIN_EVERY = 5.0  # seconds between two plain lines
T = TypeVar("T")


class Headway:
    """Shows how many files of `total` (None: nobody knows) are done; `before` were when it began."""

    def __init__(self, label: str, total: int | None = None, before: int = 0) -> None:
        self._label, self._total, self._done = label, total, before
        self._told_at = time.monotonic()
        self._bar = progress.bar() if progress.on_terminal() else None

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.add_task(self._label, total=self._total, completed=self._done)
            self._bar.start()
        return self

    def __exit__(self, _t: type[BaseException] | None, _v: BaseException | None, _tb: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()

    def advance(self, files: int) -> None:
        """Count files that are done."""
        self._done += files
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=self._done)
        elif time.monotonic() - self._told_at >= PLAIN_EVERY:
            self._told_at = time.monotonic()
            progress.line(f"{self._label}: {self._done:,}{'' if self._total is None else f' of {self._total:,}'} files")

    def counted(self, items: Iterable[T]) -> Iterator[T]:
        """Yield the items, counting each."""
        for item in items:
            yield item
            self.advance(1)
