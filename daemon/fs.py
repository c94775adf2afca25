"""File system primitives that Python lacks: rename without overwriting, directories opened without following links.

Invariant: nothing here ever overwrites a file or follows a symbolic link, and every directory that was changed through
`Folders` is known, so that it can be fsynced.
"""

import ctypes
import errno
import fcntl
import os
import stat
from collections.abc import Sequence
from types import TracebackType
from typing import NoReturn, Self

RENAME_NOREPLACE = 1
DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
PUBLIC_MODE = 0o2775  # setgid: what the daemon makes stays in the group of the people who correct it
PRIVATE_MODE = 0o700
MAX_NAME = 255

_libc = ctypes.CDLL(None, use_errno=True)


class FolderBlockedError(OSError):
    """A component of a path is a file, a symbolic link or a directory that we may not enter.

    `component` is its index, `errno` ENOTDIR or EACCES.
    """

    def __init__(self, parts: Sequence[str], component: int, code: int) -> None:
        super().__init__(code, os.strerror(code), "/".join(parts[: component + 1]))
        self.component = component


def rename_noreplace(source: int, name: str, target: int, new_name: str) -> None:
    """Rename `name` in directory fd `source` to `new_name` in directory fd `target`; never overwrites.

    Raises FileExistsError where the name is taken, and OSError(EINVAL or ENOSYS) where the file system cannot promise
    it (NFS). Only renaming a file that exists tells: the kernel looks for the source before it asks the file system.
    """
    args = (source, os.fsencode(name), target, os.fsencode(new_name), RENAME_NOREPLACE)
    if _libc.renameat2(*args) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), name, None, new_name)


def sync_file_system(fd: int) -> None:
    """Make everything on `fd`'s file system durable: also bytes that other programs wrote and never synced."""
    if _libc.syncfs(fd) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def open_folder(root: int, parts: Sequence[str], *, make_mode: int | None = None) -> int:
    """Open the directory `parts` below directory fd `root`, one component at a time, and return its fd.

    With `make_mode`, missing directories are made. Raises FolderBlockedError where a component stands in the way.
    """
    fd = os.dup(root)
    for index, part in enumerate(parts):
        try:
            child = _open_child(fd, part, make_mode)
        except OSError as error:
            if error.errno in (errno.ENOTDIR, errno.ELOOP, errno.EACCES):
                code = errno.EACCES if error.errno == errno.EACCES else errno.ENOTDIR
                raise FolderBlockedError(parts, index, code) from None
            raise
        finally:
            os.close(fd)
        fd = child
    return fd


def _open_child(fd: int, name: str, make_mode: int | None) -> int:
    try:
        return os.open(name, DIRECTORY, dir_fd=fd)
    except FileNotFoundError:
        if make_mode is None:
            raise
        make_folder(fd, name, make_mode)
        return os.open(name, DIRECTORY, dir_fd=fd)


def make_folder(fd: int, name: str, mode: int) -> None:
    """Make a directory below directory fd `fd`, whatever the umask, and make its entry durable.

    Not a private one's: whoever fills it has to sync the whole file system anyway, before anything depends on it.
    """
    try:
        os.mkdir(name, mode & 0o777, dir_fd=fd)
    except FileExistsError:
        return
    child = os.open(name, DIRECTORY, dir_fd=fd)
    try:
        os.fchmod(child, mode)
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror}: its mode cannot be set", name) from None
    finally:
        os.close(child)
    if mode != PRIVATE_MODE:
        os.fsync(fd)


class Folders:
    """Directory fds below one root, opened once each while a batch is moved, then fsynced together and closed."""

    def __init__(self, root: int, make_mode: int | None = None) -> None:
        self._root = root
        self._mode = make_mode
        self._open: dict[tuple[str, ...], int] = {}

    def fd(self, parts: Sequence[str]) -> int:
        """Return the fd of the directory `parts`; it is closed when this object is."""
        key = tuple(parts)
        if key not in self._open:
            if len(self._open) >= 256:  # noqa: PLR2004  # far below the usual limit of 1,024 descriptors
                self.sync()
                self.close()
            self._open[key] = open_folder(self._root, key, make_mode=self._mode)
        return self._open[key]

    def sync(self) -> None:
        """Make every name that was added or taken through these folders durable."""
        for fd in self._open.values():
            os.fsync(fd)

    def close(self) -> None:
        """Close all fds."""
        while self._open:
            os.close(self._open.popitem()[1])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _t: type[BaseException] | None, _v: BaseException | None, _tb: TracebackType | None) -> None:
        self.close()


def is_open_for_writing(fd: int) -> bool | None:
    """Tell whether anybody holds the regular file `fd` (opened read-only) open for writing; None: the kernel won't say.

    A read lease is refused with EAGAIN while there is a writer. It is given back at once; a writer that opens the file
    in between breaks it with SIGIO, which the service therefore ignores.
    """
    try:
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except BlockingIOError:
        return True
    except OSError:
        return None
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    return False


def exists(folder: int, name: str) -> bool:
    """Tell whether anything has this name (or relative path) in directory fd `folder`; links are not followed."""
    try:
        os.stat(name, dir_fd=folder, follow_symlinks=False)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def files_below(root: int, folder: str) -> list[str]:
    """Return everything but directories below `folder` in directory fd `root`, as sorted paths relative to it.

    Raises OSError where a directory cannot be read: nothing in it may be taken for absent.
    """
    found = list[str]()
    for top, dirs, names, fd in os.fwalk(folder, dir_fd=root, onerror=_raise):
        links = [d for d in dirs if stat.S_ISLNK(os.stat(d, dir_fd=fd, follow_symlinks=False).st_mode)]
        found.extend(os.path.relpath(os.path.join(top, name), folder) for name in (*names, *links))
    return sorted(found)


def _raise(error: OSError) -> NoReturn:
    raise error


def remove_empty(root: int, folder: str) -> None:
    """Remove the directory tree `folder` in directory fd `root`, if it is there, as far as it is empty."""
    if not exists(root, folder) or _is_removed(root, folder):
        return
    for top, _, _, _ in os.fwalk(folder, topdown=False, dir_fd=root):
        _is_removed(root, top)


def _is_removed(root: int, folder: str) -> bool:
    """Remove a directory if it is empty; tell whether it is gone."""
    try:
        os.rmdir(folder, dir_fd=root)
    except FileNotFoundError:
        return True
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        return False
    return True


def kind(mode: int) -> str:
    """Name the kind of file that `mode` (st_mode) says: 'file' or what stands in its place."""
    names = (
        (stat.S_ISREG, "file"),
        (stat.S_ISDIR, "folder"),
        (stat.S_ISLNK, "symlink"),
        (stat.S_ISFIFO, "fifo"),
        (stat.S_ISSOCK, "socket"),
    )
    return next((name for test, name in names if test(mode)), "device")


def suffixed(name: str, suffix: str) -> str:
    """Return `name` with `suffix` before its extension, the stem shortened so that 255 bytes are not exceeded."""
    stem, extension = os.path.splitext(name)
    if len(os.fsencode(extension)) > 32:  # noqa: PLR2004  # a dot in a long sentence is no extension
        stem, extension = name, ""
    room = MAX_NAME - len(os.fsencode(suffix + extension))
    return os.fsdecode(_cut(os.fsencode(stem), room)) + suffix + extension


def _cut(text: bytes, room: int) -> bytes:
    """Cut `text` to `room` bytes, not in the middle of a UTF-8 character."""
    if len(text) <= room:
        return text
    while room > 0 and text[room] & 0xC0 == 0x80:  # noqa: PLR2004  # a continuation byte
        room -= 1
    return text[:room]
