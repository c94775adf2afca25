"""The lock of a journal: who holds it may write `log/<owner>-<n>.jsonl`, and nobody else may.

Invariant: it is a file of its own that no other user may open: whoever may read the journal could hold a lock on it,
and keep the daemon from starting. The lock on the journal itself is a sign for readers.
"""

import errno
import fcntl
import os
from contextlib import AbstractContextManager
from pathlib import Path

from trainer import durable

SECONDS = 1.0  # `moodbox status` holds it for an instant, to see whether somebody else does


def path_of(root: Path, owner: str) -> Path:
    """Return the lock's file."""
    return root / f".{owner}.lock"


def held(root: Path, owner: str) -> AbstractContextManager[None]:
    """Hold the lock. Raises BlockingIOError where another process has it."""
    path, flags = path_of(root, owner), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
    text = "another daemon writes this journal: give this one a name ([daemon] name) or another log"
    refusal = BlockingIOError(errno.EWOULDBLOCK, text, str(path))
    return durable.exclusive(path, flags, refusal, 0o600, seconds=SECONDS)


def show(fd: int) -> None:
    """Lock the journal itself, where nobody who reads it has done so."""
    durable.take_lock(fd)


def is_held(path: Path) -> bool:
    """Tell whether another process holds the lock of a file. Raises OSError where it cannot be opened."""
    with path.open("rb") as file:
        return not durable.take_lock(file.fileno(), fcntl.LOCK_SH)
