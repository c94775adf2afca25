"""Batches: the files that are classified together, and how their directories in `.work/<owner>` are called.

Invariant: what recovery needs to know of a batch is in its directory's name: where in the journal its lines are to be
looked for, and how often it was begun alone.
"""

import secrets
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Claimed:
    """A file of a batch: `id` is new with every claim, `file` is its path as dropped, relative to the inbox."""

    id: str
    file: str
    queued_ms: float | None = None


@dataclass(frozen=True, slots=True)
class Batch:
    """Files that are classified together. `attempt` counts how often it was begun alone; 0: in company."""

    name: str
    attempt: int
    files: tuple[Claimed, ...]

    @property
    def folder(self) -> str:
        """The directory's name in `.work/<owner>/`."""
        return f"{self.name}.{self.attempt}"


@dataclass(frozen=True, slots=True)
class Move:
    """A delivery: `destination` is relative to the tray."""

    claimed: Claimed
    destination: str


def new_name(segment: int) -> str:
    """Return a new batch's name; it begins with the journal segment from which on its lines are to be looked for."""
    return f"{segment}-{secrets.token_hex(8)}"


def split_folder(folder: str) -> tuple[str, int]:
    """Return a batch directory's (batch name, attempt). Raises ValueError for what is no batch."""
    name, _, attempt = folder.rpartition(".")
    int(name.partition("-")[0])
    return name, int(attempt)
