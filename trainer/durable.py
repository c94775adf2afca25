"""Files that survive a crash: written whole and fsynced, or not there.

Invariant: after `write_new` returns, the file's bytes are on disk; after `replace` returns, the name holds either the
old bytes or all of the new ones, also after a power cut.
"""

import contextlib
import itertools
import os
import uuid
from pathlib import Path


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


def sync_directory(path: Path) -> None:
    """Fsync a directory: without it a rename or a new name may be gone after a power cut."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
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
