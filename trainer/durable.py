"""Files that survive a crash: written whole and fsynced, or not there.

Invariant: after `write_new` returns, the file's bytes are on disk; after `replace` returns, the name holds either the
old bytes or all of the new ones, also after a power cut.
"""

import contextlib
import fcntl
import itertools
import os
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

LOOK_SECONDS = 0.1  # between two looks at a lock that another process has


def write_new(path: Path, data: bytes) -> None:
    """Create `path` with `data` and fsync it; FileExistsError where it is there already."""
    try:
        with path.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        if error.filename is None:  # a write knows no name, and a full disk has to be told by one
            raise OSError(error.errno, error.strerror, str(path.parent)) from None
        raise


def new_folder(parent: Path, stem: str) -> Path:
    """Make a directory of this name, or of the first free one after it (`stem-2` …): one that nobody else has."""
    for name in itertools.chain([stem], (f"{stem}-{i}" for i in itertools.count(2))):
        with contextlib.suppress(FileExistsError):
            (parent / name).mkdir(parents=True)
            return parent / name
    raise AssertionError  # count() has no end


@contextlib.contextmanager
def exclusive(
    path: Path, flags: int, refusal: Exception, mode: int = 0o640, *, seconds: float = 0.0,
    waiting: Callable[[], object] = lambda: None,
) -> Iterator[None]:  # fmt: skip
    """Hold the lock of a file, or a directory, opened with `flags`; the kernel frees it however the process ends.

    Where another process has it, `waiting` is called once, and `refusal` is raised if it still has after `seconds`.
    """
    descriptor = os.open(path, flags | os.O_CLOEXEC, mode)
    try:
        deadline, told = time.monotonic() + seconds, False
        while not take_lock(descriptor):
            if time.monotonic() >= deadline:
                raise refusal
            if not told:
                waiting()
                told = True
            time.sleep(LOOK_SECONDS)
        yield
    finally:
        os.close(descriptor)


def take_lock(descriptor: int, kind: int = fcntl.LOCK_EX) -> bool:
    """Lock an open file, for as long as it is open; False where another process holds it."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def sync_directory(path: Path) -> None:
    """Fsync a directory: without it a rename or a new name may be gone after a power cut."""
    _sync(path, os.O_DIRECTORY)


def sync_file(path: Path) -> None:
    """Fsync a file that was written by other means."""
    _sync(path)


def _sync(path: Path, flags: int = 0) -> None:
    descriptor = os.open(path, os.O_RDONLY | flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace(path: Path, data: bytes) -> None:
    """Write `data` under a hidden name beside `path`, fsync it, then rename it to `path`."""
    hidden = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        write_new(hidden, data)
        os.rename(hidden, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(hidden)
        raise
