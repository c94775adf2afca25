"""Places: under which name, in which folder of the tray, a file is delivered.

Invariant: a place is inside the tray, in plain folders that the daemon may write in; whatever people put in the way
there (a file, a link, a folder of their own, a mount) is left alone, and its neighbour is used.
"""

import errno
import os
from collections.abc import Iterator, Sequence

from daemon import fs
from daemon.batch import Claimed

SUFFIXES = 20


class Places:
    """Chooses destinations. `can_promise` tells whether the file system renames without overwriting."""

    def __init__(self, tray: int) -> None:
        self._tray = tray
        self.can_promise = True
        self._refused: set[tuple[str, ...]] = set()

    def refused(self, folder: Sequence[str]) -> None:
        """Take note that nothing could be moved into this folder, which looks as if it were possible."""
        self._refused.add(tuple(folder[:2]))  # what is to blame may be anything below the class folder

    def choose(self, folder: str, claimed: Claimed, reserved: set[str]) -> str:
        """Return a destination below `folder` that is free now, and reserve it. The structure is kept.

        Raises OSError where `folder` itself cannot be written.
        """
        *dirs, name = claimed.file.split("/")
        parts = [folder, *dirs]
        for attempt in range(2, SUFFIXES + len(dirs) * SUFFIXES):
            try:
                destination = "/".join((*parts, self._free_name(parts, name, claimed.id, reserved)))
            except fs.FolderBlockedError as blocked:
                if blocked.component == 0:
                    raise OSError(blocked.errno, f"the tray's folder {folder} is no plain folder to write in") from None
                suffix = f"-{attempt}" if attempt < SUFFIXES else f"-{claimed.id}"
                parts[blocked.component] = fs.suffixed(dirs[blocked.component - 1], suffix)
            else:
                reserved.add(destination)
                return destination
        raise NotADirectoryError(errno.ENOTDIR, f"no folder can be made for {claimed.file} in {folder}")

    def _free_name(self, parts: Sequence[str], name: str, ident: str, reserved: set[str]) -> str:
        folder = self._open_usable(parts)
        try:
            free = (n for n in self._names(name, ident) if "/".join((*parts, n)) not in reserved)
            return next(n for n in free if folder is None or not fs.exists(folder, n))
        finally:
            if folder is not None:
                os.close(folder)

    def _names(self, name: str, ident: str) -> Iterator[str]:
        """Yield the names to try: all but the last carry the id where the kernel does not promise to spare others'."""
        if self.can_promise:
            yield name
            yield from (fs.suffixed(name, f"-{n}") for n in range(2, SUFFIXES))
        yield fs.suffixed(name, f"-{ident}")
        for number in range(2, 1_000_000):
            yield fs.suffixed(name, f"-{ident}-{number}")

    def _open_usable(self, parts: Sequence[str]) -> int | None:
        """Return the fd of directory `parts`, None where it is to be made: in a folder where that is possible, then."""
        if tuple(parts[:2]) in self._refused:
            raise fs.FolderBlockedError(parts, 1, errno.EACCES)
        for depth in range(len(parts), 0, -1):
            try:
                folder = fs.open_folder(self._tray, parts[:depth])
            except FileNotFoundError:
                continue
            if not os.access(".", os.W_OK | os.X_OK, dir_fd=folder, effective_ids=True):
                os.close(folder)
                raise fs.FolderBlockedError(parts, depth - 1, errno.EACCES)
            if depth == len(parts):
                return folder
            os.close(folder)
            return None
        return None
