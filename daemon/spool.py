"""The spool: every rename in the product. Claim out of the inbox, deliver into a folder, and everything in between.

Invariant: a file is in exactly one place at every moment, under its own bytes; no rename overwrites anything, and no
component of any path is followed where it is a symbolic link.
"""

import contextlib
import errno
import os
import stat
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from daemon import fs
from daemon.batch import Batch, Claimed, Move, new_name
from daemon.places import Places
from daemon.tray import INBOX
from daemon.writers import UNREADABLE

BLOCKED = {
    errno.EACCES: UNREADABLE,
    errno.EPERM: "the daemon may not move it (is its folder sticky?)",
    errno.EXDEV: "it is on another mount than the tray",
    errno.ENAMETOOLONG: "its path is too long",
    errno.EBUSY: "something is mounted there",
}
REFUSED = (errno.EACCES, errno.EPERM, errno.EXDEV)


@dataclass
class Claim:
    """What became of a wish to claim."""

    batch: Batch
    blocked: dict[str, str] = field(default_factory=dict)
    fault: OSError | None = None  # the environment's; what had been moved by then is in the batch


class Spool:
    """The moves of one owner in one tray. `tray` and `own` are directory fds: of the tray and of `.work/<owner>`."""

    def __init__(self, tray: int, own: int) -> None:
        self._tray, self._own = tray, own
        self._places = Places(tray)

    def path(self, batch: Batch, file: str) -> bytes:
        """Return a path to a claimed file that holds while the spool is open, wherever the tray is moved meanwhile.

        `.work` is private: nobody can swap a component of it for a link.
        """
        return os.fsencode(f"/proc/self/fd/{self._own}/{batch.folder}/{file}")

    def claim(self, files: Iterable[str], segment: int, queued_ms: Mapping[str, float]) -> Claim:
        """Move files from the inbox into a new batch, whose name tells the journal segment to look in."""
        name, claimed = new_name(segment), list[Claimed]()
        claim = Claim(Batch(name, 0, ()))
        with fs.Folders(self._tray) as sources, fs.Folders(self._own, fs.PRIVATE_MODE) as targets:
            for file in files:
                try:
                    for taken in self._claim_one(file, claim, sources, targets):
                        claimed.append(Claimed(f"{name}-{len(claimed)}", taken, queued_ms.get(file)))
                except OSError as error:
                    claim.fault = error
                    break
        claim.batch = Batch(name, 0, tuple(claimed))
        if not claimed:
            self.finish(claim.batch)
        return claim

    def _claim_one(self, file: str, claim: Claim, sources: fs.Folders, targets: fs.Folders) -> list[str]:
        *dirs, name = file.split("/")
        try:
            source = sources.fd((INBOX, *dirs))
        except FileNotFoundError:
            return []
        except fs.FolderBlockedError as error:
            if error.errno == errno.EACCES:
                claim.blocked[file] = BLOCKED[errno.EACCES]
            return []
        target = targets.fd((claim.batch.folder, *dirs))
        try:
            self._take(source, name, target, name)
        except (FileNotFoundError, FileExistsError):  # gone, or dropped twice while we claimed: the next batch's
            return []
        except OSError as error:
            if error.errno not in BLOCKED:
                raise
            claim.blocked[file] = BLOCKED[error.errno]
            return []
        return self._give_back_folder(file, source, target)

    def _give_back_folder(self, file: str, source: int, target: int) -> list[str]:
        """Return what was claimed: the file. A folder that had taken its place goes back, or its files are claimed."""
        name = file.rpartition("/")[2]
        if not stat.S_ISDIR(os.stat(name, dir_fd=target, follow_symlinks=False).st_mode):
            return [file]
        with contextlib.suppress(OSError):
            self._take(target, name, source, name)
            return []
        return [f"{file}/{below}" for below in fs.files_below(target, name)]

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

        Can be repeated with the same name where it was interrupted by an OSError. Not durable before `make_durable`.
        """
        batch = Batch(name, attempt, tuple(Claimed(f"{name}-{i}", f, queued.get(f)) for i, f in enumerate(files)))
        with fs.Folders(source) as sources, fs.Folders(self._own, fs.PRIVATE_MODE) as targets:
            for file in files:
                *dirs, leaf = file.split("/")
                target = targets.fd((batch.folder, *dirs))
                if not fs.exists(target, leaf):
                    self._take(sources.fd((folder, *dirs)), leaf, target, leaf)
        return batch

    def set_aside(self, batch: Batch, files: Sequence[str], name: str) -> Batch:
        """Move files that are not settled after all out of a batch, so that the others need not wait for them."""
        queued = {claimed.file: claimed.queued_ms for claimed in batch.files}
        return self.adopt(self._own, batch.folder, files, name, 0, queued)

    def begin_alone(self, batch: Batch) -> Batch:
        """Count one more attempt, durably, before the batch's one file is decoded. Can be repeated after OSError."""
        begun = self._renumbered(batch, batch.attempt + 1)
        os.fsync(self._own)
        return begun

    def end_alone(self, batch: Batch) -> Batch:
        """Take back the attempt that was counted: the process lived. Can be repeated after OSError."""
        return self._renumbered(batch, batch.attempt - 1)

    def _renumbered(self, batch: Batch, attempt: int) -> Batch:
        renumbered = Batch(batch.name, attempt, batch.files)
        if not fs.exists(self._own, renumbered.folder):
            os.rename(batch.folder, renumbered.folder, src_dir_fd=self._own, dst_dir_fd=self._own)
        return renumbered

    def make_durable(self) -> None:
        """Sync the claims and the photos' own bytes, which their producers may never have synced."""
        fs.sync_file_system(self._tray)

    def choose(self, folder: str, claimed: Claimed, reserved: set[str]) -> str:
        """Return a destination below `folder` that is free now, and reserve it: see daemon.places. Raises OSError."""
        return self._places.choose(folder, claimed, reserved)

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
                    self._put(source, name, targets.fd(target_dirs), new_name, move.claimed.id)
                except (FileExistsError, fs.FolderBlockedError):
                    taken.append(move)
                except FileNotFoundError:  # delivered before, or somebody removed the target folder just now
                    if fs.exists(own, f"{folder}/{move.claimed.file}"):
                        taken.append(move)
                except OSError as error:
                    if len(target_dirs) == 1 or error.errno not in REFUSED:  # nothing at all can be delivered there
                        raise
                    self._places.refused(target_dirs)
                    taken.append(move)
            targets.sync()
        return taken

    def take_back(self, batch: Batch, moves: Iterable[Move]) -> dict[str, str]:
        """Move delivered files from their destinations into a batch of this owner; not durable before `make_durable`.

        Returns the ids of those that stay where they are, and why. Raises OSError.
        """
        stay = dict[str, str]()
        with fs.Folders(self._tray) as sources, fs.Folders(self._own, fs.PRIVATE_MODE) as targets:
            for move in moves:
                *dirs, name = move.destination.split("/")
                *target_dirs, new_name = move.claimed.file.split("/")
                try:
                    self._take(sources.fd(dirs), name, targets.fd((batch.folder, *target_dirs)), new_name)
                except OSError as error:
                    if error.errno not in (*BLOCKED, errno.ENOENT, errno.ENOTDIR):
                        raise
                    stay[move.claimed.id] = BLOCKED.get(error.errno, "it is not there any more")
        return stay

    def _take(self, source: int, name: str, target: int, new_name: str) -> None:
        """Move a file into a directory of our own, where nobody else makes names."""
        if not self._rename_noreplace(source, name, target, new_name):
            self._rename_if_free(source, name, target, new_name)

    def _put(self, source: int, name: str, target: int, new_name: str, ident: str) -> None:
        """Move a file into a folder where other people make names, too."""
        if not self._rename_noreplace(source, name, target, new_name):
            if ident not in new_name:
                raise FileExistsError(errno.EEXIST, "a name without the id might be taken any moment", new_name)
            self._rename_if_free(source, name, target, new_name)

    def _rename_noreplace(self, source: int, name: str, target: int, new_name: str) -> bool:
        """Return False where the file system cannot promise to overwrite nothing; it is not asked again then."""
        if self._places.can_promise:
            try:
                fs.rename_noreplace(source, name, target, new_name)
            except OSError as error:
                if error.errno not in (errno.EINVAL, errno.ENOSYS):
                    raise
                self._places.can_promise = False
        return self._places.can_promise

    @staticmethod
    def _rename_if_free(source: int, name: str, target: int, new_name: str) -> None:
        os.stat(name, dir_fd=source, follow_symlinks=False)  # as the kernel: first, whether it is there at all
        if fs.exists(target, new_name):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), new_name)
        os.rename(name, new_name, src_dir_fd=source, dst_dir_fd=target)

    def finish(self, batch: Batch) -> None:
        """Remove a batch's directories as far as they are empty."""
        fs.remove_empty(self._own, batch.folder)
