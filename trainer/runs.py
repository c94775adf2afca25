"""Run directories: `runs/<UTC time>-<architecture>/`, one for each training run.

Invariant: a run has run.json from its first moment and result.json from its last; one that has the first alone was
interrupted, and can be gone on with where the photos and settings are still the same.
"""

import contextlib
import itertools
import json
import shutil
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from trainer import durable
from trainer.errors import InputError

ASKED, RESULT = "run.json", "result.json"
SCRATCH = ("features", "backup", "checkpoints", "staged")  # what only an interrupted run needs


def create(runs: Path, name: str, now: datetime) -> Path:
    """Make a new directory, `<UTC time>-<name>`."""
    safe = "".join(c if c.isalnum() else "_" for c in name)
    stem = f"{now:%Y%m%dT%H%M%SZ}-{safe}"
    for suffix in itertools.chain([""], (f"-{i}" for i in itertools.count(2))):
        with contextlib.suppress(FileExistsError):
            workdir = runs / f"{stem}{suffix}"
            workdir.mkdir(parents=True)
            return workdir
    raise AssertionError  # count() has no end


@contextlib.contextmanager
def opened(runs: Path, name: str, now: datetime, *, resume: bool) -> Iterator[Path]:
    """Give a new run's directory, or the last unfinished one's; remove it again where the run fails at once."""
    workdir = last_unfinished(runs) if resume else create(runs, name, now)
    try:
        yield workdir
    finally:
        with contextlib.suppress(OSError):
            workdir.rmdir()


def unfinished(runs: Path) -> list[Path]:
    """Return the directories of interrupted runs, the oldest first."""
    begun = sorted(path.parent for path in runs.glob(f"*/{ASKED}"))
    return [workdir for workdir in begun if not (workdir / RESULT).exists()]


def last_unfinished(runs: Path) -> Path:
    """Return the directory of the last interrupted run. Raises InputError where there is none."""
    found = unfinished(runs)
    if not found:
        raise InputError(f"{runs}: no run there was interrupted: `moodbox-train fit` begins a new one")
    return found[-1]


def begin(workdir: Path, asked: Mapping[str, Any]) -> None:
    """Note what the run was asked for; for a run that goes on, InputError where that has changed."""
    note = workdir / ASKED
    if not note.exists():
        durable.replace(note, json.dumps(asked, indent=2).encode() + b"\n")
        return
    try:
        before = json.loads(note.read_bytes())
    except ValueError:
        raise InputError(f"{note}: damaged: begin anew with `moodbox-train fit`") from None
    changed = sorted(key for key in before.keys() | asked.keys() if before.get(key) != asked.get(key))
    if changed:
        raise InputError(
            f"{workdir}: cannot go on, since {' and '.join(changed)} changed: begin anew with `moodbox-train fit`"
        )


def finish(workdir: Path, result: Mapping[str, Any]) -> None:
    """Note the result, and remove what only an interrupted run needs."""
    durable.replace(workdir / RESULT, json.dumps(result, indent=2).encode() + b"\n")
    for name in SCRATCH:
        shutil.rmtree(workdir / name, ignore_errors=True)
