"""Moves files of a dataset aside: into a new folder beside it, from where they can be brought back.

Invariant: nothing is deleted and nothing is overwritten: the folder is new, and what will be moved, and why, is on disk
in it (`moved.jsonl`) before the first file moves.
"""

import errno
import json
import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from trainer import durable

LIST = "moved.jsonl"


@dataclass(frozen=True, slots=True)
class Move:
    """A file to move, relative to the dataset's folder, and why."""

    path: str
    reason: str


@dataclass(frozen=True)
class Done:
    """Where the files are now, how many, and which stayed where they were, and why."""

    folder: Path
    moved: int
    stayed: tuple[Move, ...]

    def back(self, root: Path) -> str:
        """Return the command that brings all of them back."""
        return f"cp -an {shlex.quote(str(self.folder))}/*/ {shlex.quote(str(root))}/"


def new_folder(parent: Path, now: datetime) -> Path:
    """Make a directory named after the time; one that nobody else has. Raises OSError."""
    return durable.new_folder(parent, f"{now:%Y%m%dT%H%M%SZ}")


def move(root: Path, moves: Sequence[Move], now: datetime) -> Done:
    """Move files below `root` to `<root>-set-aside/<UTC time>/`, with their paths. Raises OSError before the first."""
    home = root.resolve()
    folder = new_folder(home.with_name(f"{home.name}-set-aside"), now)
    lines = [{"from": str(home / m.path), "to": str(folder / m.path), "reason": m.reason} for m in moves]
    durable.write_new(folder / LIST, "".join(json.dumps(line) + "\n" for line in lines).encode())
    for directory in (folder, folder.parent, folder.parent.parent):
        durable.sync_directory(directory)
    stayed = [Move(m.path, problem) for m in moves if (problem := _move(home / m.path, folder / m.path))]
    return Done(folder, len(moves) - len(stayed), tuple(stayed))


def _move(source: Path, target: Path) -> str:
    """Rename a file; return what went wrong."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if os.path.lexists(target):
            return "its name is taken there"
        os.rename(source, target)
    except OSError as error:
        if error.errno == errno.EXDEV:
            return "the folder beside the dataset is on another file system: move it by hand, or the dataset deeper"
        return f"{error.strerror}"
    return ""
