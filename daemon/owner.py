"""Owners: the directory in `.work` that one running daemon holds by a lock, and those of daemons that are gone.

Invariant: whoever sees an owner's directory under its visible name and gets its lock knows that its daemon is dead: the
lock is taken before the name becomes visible, and the kernel frees it whenever the process ends, however it ends.
"""

import contextlib
import errno
import fcntl
import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from daemon import fs, mounts
from daemon.journal_folder import JournalFolder, this_host

LOCK = "lock"
HIDDEN = ".new-"
ELSEWHERE = (
    "may run on {}, and on this mount a lock holds on one machine only: start it there, or, where that is gone for "
    "good, move the photos in .work/{} to the inbox"
)
UNLOCKED = (
    "the lock of .work/{0} is gone, and with it what tells whether its daemon lives and where its journal is: nobody "
    "takes over its photos. When no daemon of that name runs, on any machine, move them to the inbox, and remove it"
)
TAKEN = (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR)


class OwnerError(Exception):
    """No owner's directory can be had; the message says why."""


class ElsewhereError(OSError):
    """An owner of another machine, whose lock would not be seen here: it may still be alive."""


@dataclass(frozen=True)
class Owner:
    """An owner's directory, open and locked by this process; `journal` is where its lines are."""

    name: str
    folder: int
    lock: int
    journal: JournalFolder

    def show_life(self) -> None:
        """Touch the lock, where `moodbox status` looks; a disk that refuses is waited out, and told of, elsewhere."""
        with contextlib.suppress(OSError):
            os.utime(self.lock)

    def release(self) -> None:
        """Give the lock back; the directory stays."""
        os.close(self.folder)
        os.close(self.lock)


def acquire(work: int, wanted: str, journal: JournalFolder) -> Owner:
    """Become `wanted` (or `wanted-2`, … where others of that name run) in directory fd `work`. Raises OSError."""
    _sweep(work)
    for number in range(1, 1000):
        name = wanted if number == 1 else f"{wanted}-{number}"
        try:
            owner = take(work, name) or _make(work, name, journal)
        except ElsewhereError:
            continue
        if owner is None:
            continue
        if _has_journal(owner, journal):
            return _told_anew(owner, journal)
        owner.release()  # a daemon with another journal left it: its recovery needs that journal, so it keeps its name
    raise OwnerError(f"a thousand daemons named {wanted} hold .work already: give this one a name of its own")


def _has_journal(owner: Owner, journal: JournalFolder) -> bool:
    """Tell whether an owner's journal is this one; one that cannot be reached now is not."""
    try:
        return owner.journal.is_same(journal)
    except OSError:
        return False


def take(work: int, name: str) -> Owner | None:
    """Lock an owner's directory that exists; None where its daemon lives, or it is gone, no owner's or another user's.

    What a daemon of another user left (root's `moodbox once`, say) only that user's next one can take. Raises
    ElsewhereError for an owner of another machine where locks hold on one machine only.
    """
    try:
        folder = os.open(name, fs.DIRECTORY, dir_fd=work)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return None
    try:
        lock = _lock(folder, os.O_RDWR)
    except OSError:
        os.close(folder)
        raise
    if lock is None or not _is_current(work, name, folder):
        os.close(folder)
        if lock is not None:
            os.close(lock)
        return None
    owner = Owner(name, folder, lock, _journal(lock))
    if owner.journal.host not in ("", this_host()) and not mounts.mount_of_fd(folder).locks_hold:
        owner.release()
        raise ElsewhereError(errno.EBUSY, f"{name} {ELSEWHERE.format(owner.journal.host, name)}")
    return owner


def others(work: int, own: str) -> Iterator[str]:
    """Yield the names of all owners in directory fd `work` but `own`."""
    yield from (n for n in sorted(os.listdir(work)) if n != own and not n.startswith("."))


def unlocked(work: int, own: str = "") -> Iterator[tuple[str, list[str]]]:
    """Yield the name of each directory in fd `work` (but `own`) whose lock somebody removed, and the files in it.

    One that holds no file is of no concern: a daemon that ends removes its own in two steps.
    """
    for name in others(work, own):
        with contextlib.suppress(FileNotFoundError, NotADirectoryError, PermissionError):
            if (files := fs.files_below(work, name)) and LOCK not in files:
                yield name, files


def journals(work: int) -> Iterator[tuple[str, JournalFolder]]:
    """Yield the name of each owner in directory fd `work`, and the folder where its journal is."""
    for name in others(work, ""):
        with contextlib.suppress(OSError):  # it ends just now, or is no owner's
            lock = os.open(f"{name}/{LOCK}", os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=work)
            try:
                yield name, _journal(lock)
            finally:
                os.close(lock)


def _journal(lock: int) -> JournalFolder:
    path, ident, host, *_ = (*os.pread(lock, 65_536, 0).split(b"\0"), b"", b"")
    return JournalFolder(Path(os.fsdecode(path)), ident.decode(errors="replace"), host.decode(errors="replace"))


def remove(work: int, owner: Owner) -> None:
    """Remove a dead owner's directory, if nothing but the lock is in it."""
    try:
        if os.listdir(owner.folder) == [LOCK]:
            os.unlink(LOCK, dir_fd=owner.folder)
            os.rmdir(owner.name, dir_fd=work)
    except OSError as error:
        if error.errno not in TAKEN:  # by a new daemon, just now
            raise


def _sweep(work: int) -> None:
    """Remove what a daemon that died while it made its directory left under a hidden name."""
    for name in (n for n in os.listdir(work) if n.startswith(HIDDEN)):
        with contextlib.suppress(ElsewhereError):
            if (left := take(work, name)) is not None:
                remove(work, left)
                left.release()


def _make(work: int, name: str, journal: JournalFolder) -> Owner | None:
    """Make the directory under a hidden name, lock it, and only then show it; None where the name is taken."""
    hidden = HIDDEN + secrets.token_hex(8)
    os.mkdir(hidden, fs.PRIVATE_MODE, dir_fd=work)
    folder = os.open(hidden, fs.DIRECTORY, dir_fd=work)
    lock = _lock(folder, os.O_RDWR | os.O_CREAT | os.O_EXCL)
    assert lock is not None  # noqa: S101  # nobody else knows the name
    try:
        os.write(lock, _encoded(journal))
        os.fsync(lock)
        os.fsync(folder)
        # It replaces at most an empty directory: an owner's has a lock in it.
        os.rename(hidden, name, src_dir_fd=work, dst_dir_fd=work)
    except OSError as error:
        made = Owner(hidden, folder, lock, journal)
        remove(work, made)
        made.release()
        if error.errno not in TAKEN:
            raise
        return None
    os.fsync(work)
    return Owner(name, folder, lock, journal)


def _lock(folder: int, flags: int) -> int | None:
    try:
        fd = os.open(LOCK, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=folder)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    return fd


def _is_current(work: int, name: str, folder: int) -> bool:
    """Tell whether the directory still has its name and its lock: it may have been removed before we had the lock."""
    try:
        os.stat(LOCK, dir_fd=folder, follow_symlinks=False)
        return os.path.samestat(os.fstat(folder), os.stat(name, dir_fd=work, follow_symlinks=False))
    except FileNotFoundError:
        return False


def _encoded(journal: JournalFolder) -> bytes:
    return b"\0".join((os.fsencode(journal.path), journal.ident.encode(), journal.host.encode(), b""))


def _told_anew(owner: Owner, journal: JournalFolder) -> Owner:
    """Have a lock that was taken over say whose it is now: it may be an earlier version's, or another machine's."""
    if owner.journal != journal:
        told = _encoded(journal)
        os.pwrite(owner.lock, told, 0)
        os.ftruncate(owner.lock, len(told))
        os.fsync(owner.lock)
    return replace(owner, journal=journal)
