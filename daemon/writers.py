"""Writers: whether somebody still writes into a file, as far as the kernel tells.

Invariant: nothing is changed, and a file that cannot be asked about is never taken for one that is being written.
"""

import os
from collections.abc import Iterable, Iterator

from daemon import fs
from daemon.intake import Sighting
from daemon.tray import INBOX

READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
CHANGING = "changing"
UNREADABLE = "the daemon may not read or move it"


def readiness(tray: int, files: Iterable[Sighting]) -> Iterator[tuple[Sighting, str | None]]:
    """Yield for each inbox file of the tray (a directory fd) None where it may be claimed, else why it waits.

    That is CHANGING while it is written.
    """
    with fs.Folders(tray) as folders:
        for seen in files:
            yield seen, _readiness(seen, folders) if seen.kind == "file" else None


def _readiness(seen: Sighting, folders: fs.Folders) -> str | None:
    *dirs, name = seen.file.split("/")
    try:
        fd = os.open(name, READ, dir_fd=folders.fd((INBOX, *dirs)))
    except PermissionError:
        return UNREADABLE
    except OSError:  # gone, no file any more, or blocked: the claim finds out
        return None
    return None if _is_still(fd, (seen.inode, seen.size, seen.mtime_ns)) else CHANGING


def is_settled(path: bytes, seen: tuple[int | None, int | None, int | None]) -> bool:
    """Tell whether a claimed file is still as it was read (inode, bytes, mtime_ns), and nobody writes it."""
    try:
        fd = os.open(path, READ)
    except (PermissionError, FileNotFoundError):
        return True
    return _is_still(fd, seen)


def _is_still(fd: int, seen: tuple[int | None, int | None, int | None]) -> bool:
    try:
        st = os.fstat(fd)
        return (st.st_ino, st.st_size, st.st_mtime_ns) == seen and not fs.is_open_for_writing(fd)
    finally:
        os.close(fd)


def may_be_unseen(path: bytes) -> bool:
    """Tell whether the kernel would not say if somebody writes this file: another user's, and we are not root."""
    return os.geteuid() not in (0, os.stat(path, follow_symlinks=False).st_uid)
