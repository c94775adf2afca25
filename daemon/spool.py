"""The spool: every rename in the product. Claim out of the inbox, deliver into a folder, and everything in between.

Invariant: a file is in exactly one place at every moment, under its own bytes; no rename overwrites anything, and no
component of any path is followed where it is a symbolic link.
"""

import errno
import os
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from daemon import fs
from daemon.tray import INBOX, WORK

SUFFIXES = 20
READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
BLOCKED = {
    errno.EACCES: "the daemon may not read or move it",
    errno.EPERM: "the daemon may not move it (is its folder sticky?)",
    errno.EXDEV: "it is on another mount than the tray",
    errno.ENAMETOOLONG: "its path is too long",
}


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


@dataclass
class Claim:
    """What became of a wish to claim."""

    batch: Batch
    blocked: dict[str, str] = field(default_factory=dict)
    fault: OSError | None = None  # the environment's; what had been moved by then is in the batch


@dataclass(frozen=True, slots=True)
class Move:
    """A delivery: `destination` is relative to the tray."""

    claimed: Claimed
    destination: str


def split_folder(folder: str) -> tuple[str, int]:
    """Return a batch directory's (batch name, attempt). Raises ValueError for what is no batch."""
    name, _, attempt = folder.rpartition(".")
    int(name.partition("-")[0])
    return name, int(attempt)


class Spool:
    """The moves of one owner in one tray. `tray` and `own` are directory fds: of the tray and of `.work/<owner>`."""

    def __init__(self, tray: int, root: Path, own: int, owner: str) -> None:
        self._tray, self._own = tray, own
        self._work = root / WORK / owner
        self._noreplace = fs.can_rename_noreplace(tray)

    def path(self, batch: Batch, file: str) -> bytes:
        """Return a claimed file's path. `.work` is private: nobody can swap one of its components."""
        return os.fsencode(self._work / batch.folder / file)

    def claim(self, files: Iterable[str], segment: int, queued_ms: Mapping[str, float]) -> Claim:
        """Move files from the inbox into a new batch, whose name tells the journal segment to look in."""
        name, claimed = new_name(segment), list[Claimed]()
        claim = Claim(Batch(name, 0, ()))
        os.mkdir(claim.batch.folder, fs.PRIVATE_MODE, dir_fd=self._own)
        with fs.Folders(self._tray) as sources, fs.Folders(self._own, fs.PRIVATE_MODE) as targets:
            for file in files:
                try:
                    if self._claim_one(file, claim, sources, targets):
                        claimed.append(Claimed(f"{name}-{len(claimed)}", file, queued_ms.get(file)))
                except OSError as error:
                    claim.fault = error
                    break
        claim.batch = Batch(name, 0, tuple(claimed))
        if not claimed:
            self.finish(claim.batch)
        return claim

    def _claim_one(self, file: str, claim: Claim, sources: fs.Folders, targets: fs.Folders) -> bool:
        *dirs, name = file.split("/")
        try:
            source = sources.fd((INBOX, *dirs))
        except FileNotFoundError:
            return False
        except fs.FolderBlockedError as error:
            if error.code == errno.EACCES:
                claim.blocked[file] = BLOCKED[errno.EACCES]
            return False
        target = targets.fd((claim.batch.folder, *dirs))
        try:
            self._rename(source, name, target, name)
        except (FileNotFoundError, FileExistsError):  # gone, or dropped twice while we claimed: the next batch's
            return False
        except OSError as error:
            if error.errno not in BLOCKED:
                raise
            claim.blocked[file] = BLOCKED[error.errno]
            return False
        return True

    def readiness(self, file: str) -> str | None:
        """Return None where an inbox file may be claimed, 'open' while somebody writes it, else why it has to wait."""
        *dirs, name = file.split("/")
        try:
            with fs.Folders(self._tray) as folders:
                folder = folders.fd((INBOX, *dirs))
                fd = os.open(name, READ, dir_fd=folder)
        except PermissionError:
            return BLOCKED[errno.EACCES]
        except (OSError, fs.FolderBlockedError):  # gone, no file any more, or blocked: the claim finds out
            return None
        try:
            return "open" if fs.is_open_for_writing(fd) else None
        finally:
            os.close(fd)

    def is_settled(self, batch: Batch, file: str, seen: tuple[int | None, int | None, int | None]) -> bool:
        """Tell whether a claimed file is still as it was read (inode, bytes, mtime_ns), and nobody writes it."""
        try:
            fd = os.open(self.path(batch, file), READ)
        except (PermissionError, FileNotFoundError):
            return True
        try:
            st = os.fstat(fd)
            return (st.st_ino, st.st_size, st.st_mtime_ns) == seen and not fs.is_open_for_writing(fd)
        finally:
            os.close(fd)

    def adopt(
        self,
        source: int,
        folder: str,
        files: Sequence[str],
        name: str,
        attempt: int,
        queued: Mapping[str, float | None],
    ) -> Batch:
        """Move claimed files out of batch directory `folder` in directory fd `source` into batch `name` of this owner.

        Can be repeated with the same name where it was interrupted by an OSError.
        """
        batch = Batch(name, attempt, tuple(Claimed(f"{name}-{i}", f, queued.get(f)) for i, f in enumerate(files)))
        with fs.Folders(source) as sources, fs.Folders(self._own, fs.PRIVATE_MODE) as targets:
            for file in files:
                *dirs, leaf = file.split("/")
                target = targets.fd((batch.folder, *dirs))
                if not fs.exists(target, leaf):
                    self._rename(sources.fd((folder, *dirs)), leaf, target, leaf)
            targets.sync()
        return batch

    def set_aside(self, batch: Batch, files: Sequence[str], name: str) -> Batch:
        """Move files that are not settled after all out of a batch, so that the others need not wait for them."""
        queued = {claimed.file: claimed.queued_ms for claimed in batch.files}
        return self.adopt(self._own, batch.folder, files, name, 0, queued)

    def begin_alone(self, batch: Batch) -> Batch:
        """Count one more attempt, durably, before the batch's one file is decoded."""
        begun = Batch(batch.name, batch.attempt + 1, batch.files)
        os.rename(batch.folder, begun.folder, src_dir_fd=self._own, dst_dir_fd=self._own)
        os.fsync(self._own)
        return begun

    def make_durable(self) -> None:
        """Sync the claims and the photos' own bytes, which their producers may never have synced."""
        fs.sync_file_system(self._tray)

    def choose(self, folder: str, claimed: Claimed, reserved: set[str]) -> str:
        """Return a destination below `folder` that is free now, and reserve it.

        Raises OSError where `folder` itself cannot be written. A folder below it that is a link, a file or another
        person's own is left alone: its neighbour `name-2` is used.
        """
        *dirs, name = claimed.file.split("/")
        parts = [folder, *dirs]
        for attempt in range(2, SUFFIXES + len(dirs) * SUFFIXES):
            try:
                destination = "/".join((*parts, self._free_name(parts, name, claimed.id, reserved)))
            except fs.FolderBlockedError as blocked:
                if blocked.component == 0:
                    raise OSError(blocked.code, f"the tray's folder {folder} is no plain folder to write in") from None
                suffix = f"-{attempt}" if attempt < SUFFIXES else f"-{claimed.id}"
                parts[blocked.component] = fs.suffixed(dirs[blocked.component - 1], suffix)
            else:
                reserved.add(destination)
                return destination
        raise NotADirectoryError(errno.ENOTDIR, f"no folder can be made for {claimed.file} in {folder}")

    def _free_name(self, parts: Sequence[str], name: str, ident: str, reserved: set[str]) -> str:
        if not self._noreplace:  # without the kernel's promise only a name that nobody else would choose is safe
            return fs.suffixed(name, f"-{ident}")
        candidates = [name, *(fs.suffixed(name, f"-{n}") for n in range(2, SUFFIXES)), fs.suffixed(name, f"-{ident}")]
        free = (c for c in candidates if "/".join((*parts, c)) not in reserved)
        try:
            folder = fs.open_folder(self._tray, parts)
        except FileNotFoundError:
            return next(free)
        try:
            if not os.access(".", os.W_OK | os.X_OK, dir_fd=folder, effective_ids=True):
                raise fs.FolderBlockedError(len(parts) - 1, errno.EACCES)
            return next((c for c in free if not fs.exists(folder, c)), candidates[-1])
        finally:
            os.close(folder)

    def deliver(self, own: int, folder: str, moves: Sequence[Move]) -> list[Move]:
        """Move files from batch directory `folder` in fd `own` to their destinations, durably.

        Returns the moves whose name was taken meanwhile; repeating a delivery does no harm.
        """
        taken = list[Move]()
        with fs.Folders(own) as sources, fs.Folders(self._tray, fs.PUBLIC_MODE) as targets:
            for move in moves:
                *dirs, name = move.claimed.file.split("/")
                *target_dirs, new_name = move.destination.split("/")
                try:
                    source = sources.fd((folder, *dirs))
                    self._rename(source, name, targets.fd(target_dirs), new_name)
                except (FileExistsError, fs.FolderBlockedError):
                    taken.append(move)
                except PermissionError:
                    if len(target_dirs) == 1:  # the class folder itself: nothing can be delivered
                        raise
                    taken.append(move)
                except FileNotFoundError:  # delivered before, or somebody removed the target folder just now
                    if fs.exists(own, f"{folder}/{move.claimed.file}"):
                        taken.append(move)
            targets.sync()
        return taken

    def _rename(self, source: int, name: str, target: int, new_name: str) -> None:
        if self._noreplace:
            fs.rename_noreplace(source, name, target, new_name)
        elif fs.exists(target, new_name):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), new_name)
        else:
            os.rename(name, new_name, src_dir_fd=source, dst_dir_fd=target)

    def finish(self, batch: Batch) -> None:
        """Remove a batch's directories as far as they are empty."""
        fs.remove_empty(self._own, batch.folder)

    def remove_inbox_folder(self, folder: str) -> None:
        """Remove an inbox folder if it is empty (rmdir refuses all others)."""
        *dirs, name = folder.split("/")
        try:
            with fs.Folders(self._tray) as folders:
                os.rmdir(name, dir_fd=folders.fd((INBOX, *dirs)))
        except (OSError, fs.FolderBlockedError):  # filled again, gone, or another user's: not ours to mind
            return


def new_name(segment: int) -> str:
    """Return a new batch's name; it begins with the journal segment from which on its lines are to be looked for."""
    return f"{segment}-{secrets.token_hex(8)}"
