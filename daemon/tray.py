"""The tray's own folders: what they are called, how they are made, and how a tray is told from an empty mount point.

Invariant: nothing is claimed or delivered in a directory that does not carry the marker, or whose folders are not all
on one mount: a rename between two mounts would not be a rename.
"""

import contextlib
import errno
import os
import pwd
from collections.abc import Callable, Sequence
from pathlib import Path

from daemon import fs
from daemon.mounts import mount_of_fd

MARKER = ".moodbox"
INBOX, REVIEW, REJECTED, UNDONE, WORK = "inbox", "review", "rejected", "undone", ".work"
ROOT_MODE = 0o755  # whoever may write here could swap a whole folder for a link
ANY_DISK_HAS = frozenset({"lost+found"})
OWN_FOLDERS = frozenset({INBOX, REVIEW, REJECTED, UNDONE, WORK})  # a first start that was killed leaves some
TEXT = b"This folder is a Moodbox tray: drop files into inbox/. The marker tells it from an empty mount point.\n"


class TrayError(Exception):
    """The tray cannot be used; the message says why and what to do."""


def create(root: Path, *, was_used: Callable[[], bool] = lambda: False) -> None:
    """Make the tray and its marker where there is none. Raises TrayError where that could do harm.

    `was_used` tells whether this tray was served before: then its disk is missing, and a new tray would hide that.
    """
    if (root / MARKER).exists():
        return
    if not root.is_file() and was_used():
        raise TrayError(
            f"tray {str(root)!r} was used before, and its {MARKER} is gone: is its disk mounted? "
            f"For a new tray in that place: mkdir -p {root}; touch {root / MARKER}"
        )
    if root.exists() and not root.is_dir():
        raise TrayError(f"tray.root {str(root)!r} is a file: name a folder")
    if root.exists() and (names := sorted(set(os.listdir(root)) - ANY_DISK_HAS - OWN_FOLDERS)):
        raise TrayError(
            f"tray.root {str(root)!r} holds {names[0]!r} but no {MARKER}: not a tray. Name an empty or a new folder, "
            f"or, if it is a tray, make the marker again: touch {root / MARKER}"
        )
    root.mkdir(ROOT_MODE, parents=True, exist_ok=True)
    folder = _open_root(root)
    try:
        for name in (INBOX, REVIEW, REJECTED, UNDONE):
            fs.make_folder(folder, name, fs.PUBLIC_MODE)
        fs.make_folder(folder, WORK, fs.PRIVATE_MODE)
        marker = os.open(MARKER, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644, dir_fd=folder)
        os.write(marker, TEXT)
        os.fsync(marker)
        os.close(marker)
        os.fsync(folder)
    finally:
        os.close(folder)


def open_tray(root: Path) -> int:
    """Return the tray's directory fd. Raises TrayError where the marker is missing."""
    try:
        fd = _open_root(root)
    except (FileNotFoundError, NotADirectoryError):
        raise TrayError(
            f"tray {str(root)!r} does not exist: is its disk mounted? (`moodbox run` makes a new one)"
        ) from None
    with contextlib.ExitStack() as undo:
        undo.callback(os.close, fd)
        if not has_marker(fd):
            raise TrayError(f"tray {str(root)!r} has no {MARKER}: is its disk mounted?")
        undo.pop_all()
    return fd


def _open_root(root: Path) -> int:
    """Open the one path that may be a link: only the settings name it."""
    return os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def has_marker(fd: int) -> bool:
    """Tell whether directory fd `fd` is a tray."""
    try:
        os.stat(MARKER, dir_fd=fd, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def is_same(root: Path, fd: int) -> bool:
    """Tell whether `root` still is the tray that `fd` was opened on (it was not unmounted, moved or deleted)."""
    try:
        return os.path.samestat(os.stat(root), os.fstat(fd)) and has_marker(fd)
    except FileNotFoundError:
        return False


def require_own(work: int) -> None:
    """Raise TrayError where `.work`, directory fd `work`, is another user's, whose daemon could not use what we make.

    Not on network file systems, which may call anybody's files theirs.
    """
    user = os.fstat(work).st_uid
    if user != os.geteuid() and not mount_of_fd(work).is_shared:
        raise TrayError(f"this tray is another user's: run it as that user (sudo -u {_user_name(user)} …)")


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"'#{uid}'"


def check_folders(fd: int, classes: Sequence[str]) -> None:
    """Make missing folders, and see that a file can be moved from `.work` into each.

    Raises TrayError where a folder is on another mount or no folder, and OSError where it cannot be written.
    """
    work = _open_own(fd, WORK, fs.PRIVATE_MODE)
    mount = mount_id(work)
    os.close(work)
    for name in (INBOX, REVIEW, REJECTED, UNDONE, *classes):
        folder = _open_own(fd, name, fs.PUBLIC_MODE)
        try:
            _check_folder(folder, name, mount)
        finally:
            os.close(folder)


def _open_own(fd: int, name: str, mode: int) -> int:
    try:
        return fs.open_folder(fd, (name,), make_mode=mode)
    except fs.FolderBlockedError as error:
        if error.errno == errno.EACCES:
            raise PermissionError(error.errno, f"cannot enter the tray's folder {name}") from None
        raise TrayError(f"{name} in the tray is a link or a file: make it a plain folder") from None


def _check_folder(folder: int, name: str, mount: str) -> None:
    if mount_id(folder) != mount:
        raise TrayError(f"{name} is on another mount than .work: a tray is one mount, so that a move is one rename")
    if os.statvfs(folder).f_flag & os.ST_RDONLY:
        raise OSError(errno.EROFS, f"cannot write in the tray's folder {name}: it is mounted read-only")
    if not os.access(".", os.W_OK | os.X_OK, dir_fd=folder, effective_ids=True):
        raise OSError(errno.EACCES, f"cannot write in the tray's folder {name}: the daemon has no permission")


def mount_id(fd: int) -> str:
    """Return the id of the mount that `fd` is on; two bind mounts of one file system have two (renames fail there)."""
    with open(f"/proc/self/fdinfo/{fd}", encoding="utf-8") as file:
        return next(line.split()[1] for line in file if line.startswith("mnt_id:"))
