"""Endpoints: the source and the destination of a backfill, opened, or refused in a line.

Invariant: nothing that a daemon is about to move is read, no result is written where it would be taken for a photo, and
of two backfills only one works in a folder.
"""

import contextlib
import os
from pathlib import Path

from daemon import shards, storage, tray
from daemon.storage import Storage
from trainer import durable
from trainer.errors import InputError

LOCK = ".lock"
GO_ON = "the same command goes on from here"  # whatever ends it: what is there is not done again


def check(source: str, dest: str) -> None:
    """Raise InputError where source or destination is in use by a daemon, or the one would list the other."""
    if source == dest or dest.startswith(f"{source}/"):
        raise InputError(f"DEST is in SOURCE, where its files would be taken for photos: name a folder beside {source}")
    if source.startswith("memory://") or dest.startswith("memory://"):
        raise InputError("memory:// is one process's own: no worker could read it")
    found = _in_tray(source)
    if found and found[1].partition("/")[0] in (tray.INBOX, tray.WORK):
        raise InputError(
            f"{source} is in the tray {found[0]}, whose daemon moves the files away: they are sorted anyway"
        )
    if found and found[1] == ".":
        raise InputError(f"{source} is a tray: name its class folders, or folders beside it")
    if found := _in_tray(dest):
        raise InputError(f"{dest} is in the tray {found[0]}: name a folder outside of it")


def check_tray(source: str, root: Path, *, is_applied: bool) -> None:
    """Raise InputError where the tray at `root` is in SOURCE; to apply it, also where SOURCE is in a tray."""
    real = Path(os.path.realpath(source))
    if not storage.is_url(source) and Path(os.path.realpath(root)).is_relative_to(real):
        raise InputError(f"the tray {root} is in SOURCE, with what is in work there: name folders beside it")
    if is_applied and (found := _in_tray(source)):
        raise InputError(f"{source} is in the tray {found[0]}: what is there has its place")


def _in_tray(place: str) -> tuple[str, str] | None:
    """Return the tray that a place is in, and its path in there; None where it is in none."""
    if storage.is_url(place):
        return None
    real = Path(os.path.realpath(place))
    roots = (folder for folder in (real, *real.parents) if (folder / tray.MARKER).is_file())
    root = next(roots, None)
    return None if root is None else (str(root), str(real.relative_to(root)))


def open_source(source: str) -> Storage:
    """Open what is read. Raises InputError or OSError."""
    try:
        return _opened(source)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(f"SOURCE {source}: {error.strerror}: name a folder, or a URL that fsspec reaches") from None


def open_dest(dest: str, opened: contextlib.ExitStack) -> Storage:
    """Open where results go; a folder is made, and locked until `opened` is closed. Raises InputError or OSError."""
    if storage.is_url(dest):
        return _opened(dest)
    try:
        Path(dest).mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise InputError(f"DEST {dest}: there is a file of this name: name a folder") from None
    busy = InputError(f"DEST {dest}: another backfill is at work there")
    opened.enter_context(durable.exclusive(Path(dest, LOCK), os.O_RDWR | os.O_CREAT, busy))
    results = _opened(dest)
    shards.sweep(results)
    return results


def _opened(place: str) -> Storage:
    try:
        return storage.at(place)
    except (ImportError, ValueError) as error:  # fsspec names the package, or says that there is no such protocol
        raise InputError(f"{place}: {error}") from None
