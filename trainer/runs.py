"""Run directories: `runs/<UTC time>-<architecture>/`, one for each training run.

Invariant: a run has run.json from its first moment and result.json from its last; one that has the first alone was
interrupted, and can be gone on with where the photos and settings are still the same.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from datetime import datetime
from pathlib import Path
from typing import Any

from trainer import durable
from trainer.errors import InputError
from trainer.progress import line, printable

ASKED, RESULT, BEGUN = "run.json", "result.json", "begun"
SCRATCH = ("features", "backup", "checkpoints", "staged")  # what only an interrupted run needs


def create(runs: Path, name: str, now: datetime) -> Path:
    """Make a new directory, `<UTC time>-<name>`."""
    safe = "".join(c if c.isalnum() else "_" for c in name)
    return durable.new_folder(runs, f"{now:%Y%m%dT%H%M%SZ}-{safe}")


@contextlib.contextmanager
def opened(runs: Path, name: str, now: datetime, *, resume: bool) -> Iterator[Path]:
    """Give a new run's directory, or the last unfinished one's; remove it again where the run fails at once."""
    workdir = last_unfinished(runs) if resume else create(runs, name, now)
    with locked(workdir):
        try:
            yield workdir
        finally:
            with contextlib.suppress(OSError):
                workdir.rmdir()


def locked(workdir: Path) -> AbstractContextManager[None]:
    """Keep other processes from working in the same directory. Raises InputError where one does."""
    refusal = InputError(f"{printable(workdir)}: this run is still at work: wait for its end, or end it")
    return durable.exclusive(workdir, os.O_RDONLY | os.O_DIRECTORY, refusal)


def last_unfinished(runs: Path) -> Path:
    """Return the directory of the last run, where it was interrupted. Raises InputError where it was not."""
    begun = sorted(path.parent for path in runs.glob(f"*/{ASKED}"))
    if not begun or _size(begun[-1] / RESULT):
        raise InputError(
            f"{printable(runs)}: the last run there was not interrupted: `fit` without --resume begins one"
        )
    line(f"going on with {printable(begun[-1])}")
    return begun[-1]


def _size(path: Path) -> int:
    """Return the bytes of a file; 0 where there is none."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def begin(workdir: Path, asked: Mapping[str, Any], now: datetime) -> str:
    """Note what the run was asked for, and when; return when it began, UTC, ISO 8601: the run's name for ever.

    For a run that goes on, raises InputError where what is asked for has changed.
    """
    note = workdir / ASKED
    if not note.exists():
        durable.replace(note, json.dumps({BEGUN: now.isoformat(), **asked}, indent=2).encode() + b"\n")
        return now.isoformat()
    try:
        before = dict(json.loads(note.read_bytes()))
        begun = str(before.pop(BEGUN))
    except (ValueError, TypeError, KeyError):
        raise InputError(f"{printable(note)}: damaged: begin anew, without --resume") from None
    changed = sorted(key for key in before.keys() | asked.keys() if before.get(key) != asked.get(key))
    if changed:
        raise InputError(
            f"{printable(workdir)}: cannot go on, since {' and '.join(changed)} changed: begin anew, without --resume"
        )
    return begun


def finish(workdir: Path, result: Mapping[str, Any]) -> None:
    """Note the result, and remove what only an interrupted run needs."""
    durable.replace(workdir / RESULT, json.dumps(result, indent=2).encode() + b"\n")
    clear(workdir)


def clear(workdir: Path) -> None:
    """Remove what only an interrupted run needs."""
    for name in SCRATCH:
        shutil.rmtree(workdir / name, ignore_errors=True)
