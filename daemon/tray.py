"""The tray's own folders: what they are called, how they are made, and how a tray is told from an empty mount point.

Invariant: nothing is claimed or delivered in a directory that does not carry the marker, or whose folders are not all
on one mount: a rename between two mounts would not be a rename.
"""

import errno
import os
import secrets
from collections.abc import Sequence
from pathlib import Path

from daemon import fs

MARKER = ".moodbox"
INBOX, REVIEW, REJECTED, UNDONE, WORK = "inbox", "review", "rejected", "undone", ".work"
TEXT = b"This folder is a Moodbox tray: drop files into inbox/. The marker tells it from an empty mount point.\n"


class TrayError(Exception):
    """The tray cannot be used; the message says why and what to do."""


def create(root: Path) -> None:
    """Make the tray and its marker where there is none. Raises TrayError where that could do harm."""
    if (root / MARKER).exists():
        return
    if root.exists() and not root.is_dir():
        raise TrayError(f"tray.root {str(root)!r} is a file: name a folder")
    if root.exists() and (names := os.listdir(root)):
        raise TrayError(
            f"tray.root {str(root)!r} holds {names[0]!r} but no {MARKER}: not a tray. Name an empty or a new folder, "
            f"or, if it is a tray, make the marker again: touch {root / MARKER}"
        )
    root.mkdir(parents=True, exist_ok=True)
    folder = os.open(root, fs.DIRECTORY)
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
        fd = os.open(root, fs.DIRECTORY)
    except (FileNotFoundError, NotADirectoryError):
        raise TrayError(f"tray {str(root)!r} does not exist: is its disk mounted?") from None
    if not has_marker(fd):
        os.close(fd)
        raise TrayError(f"tray {str(root)!r} has no {MARKER}: is its disk mounted?")
    return fd


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


def check_folders(fd: int, classes: Sequence[str]) -> None:
    """Make missing folders, and see that a file can be renamed from `.work` into each.

    Raises TrayError where a folder is on another mount or no folder, and OSError where it cannot be written.
    """
    fs.make_folder(fd, WORK, fs.PRIVATE_MODE)
    for name in (INBOX, REVIEW, REJECTED, UNDONE, *classes):
        try:
            folder = fs.open_folder(fd, (name,), make_mode=fs.PUBLIC_MODE)
        except fs.FolderBlockedError as error:
            if error.code == errno.EACCES:
                raise PermissionError(error.code, f"cannot enter the tray's folder {name}") from None
            raise TrayError(f"{name} in the tray is a link or a file: make it a plain folder") from None
        try:
            _try_rename(fd, folder, name)
        finally:
            os.close(folder)


def _try_rename(tray: int, folder: int, name: str) -> None:
    probe = f".probe-{secrets.token_hex(8)}"
    work = fs.open_folder(tray, (WORK,))
    try:
        os.close(os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=work))
        try:
            os.rename(probe, probe, src_dir_fd=work, dst_dir_fd=folder)
        except OSError as error:
            os.unlink(probe, dir_fd=work)
            if error.errno == errno.EXDEV:
                raise TrayError(f"{name} is on another mount than .work: a tray is one mount") from None
            raise OSError(error.errno, f"cannot write in the tray's folder {name}: {error.strerror}") from None
        os.unlink(probe, dir_fd=folder)
    finally:
        os.close(work)
