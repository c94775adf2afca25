"""Evidence: what really is at a place in the tray.

Invariant: nothing is changed, and no link is followed in any component of any path.
"""

import contextlib
import errno
import hashlib
import os
import stat
from collections.abc import Iterator
from io import BufferedReader
from types import TracebackType
from typing import Self

from daemon import fs
from trainer import headers

READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
OPEN = 128  # folders kept open


class Evidence:
    """Looks at places, paths relative to directory fd `tray`. All raise OSError where this user may not look."""

    def __init__(self, tray: int) -> None:
        self._tray = tray
        self._open: dict[str, int] = {}

    def stat(self, place: str) -> os.stat_result | None:
        """Return what is at the place, None where nothing is."""
        folder, _, name = place.rpartition("/")
        try:
            return os.stat(name, dir_fd=self.folder(folder), follow_symlinks=False)
        except OSError as error:
            _raise_unless_absent(error)
            return None

    def sha256(self, place: str) -> tuple[os.stat_result, bytes] | None:
        """Return a regular file's state before it was read, and its hash; None where none is there."""
        with self._opened(place) as file:
            if file is None or not stat.S_ISREG((st := os.fstat(file.fileno())).st_mode):
                return None
            return st, hashlib.file_digest(file, "sha256").digest()

    def is_hidden(self, place: str) -> bool:
        """Tell whether a file is there that this user may not read."""
        try:
            with self._opened(place):
                return False
        except PermissionError:
            return True

    def is_picture(self, place: str) -> bool:
        """Tell whether a file begins as a picture does; False where none is there."""
        with self._opened(place) as file:
            try:
                headers.sniff(b"" if file is None else file.read(256))
            except headers.ImageError:
                return False
        return True

    def read(self, place: str, sha256: bytes) -> bytes | None:
        """Return a regular file's bytes; None where it is not there, or not what has this hash."""
        with self._opened(place) as file:
            data = None if file is None else file.read()
        return data if data is not None and hashlib.sha256(data).digest() == sha256 else None

    @contextlib.contextmanager
    def _opened(self, place: str) -> Iterator[BufferedReader | None]:
        """Open a file; None where none is there."""
        folder, _, name = place.rpartition("/")
        with contextlib.ExitStack() as stack:
            file = None
            try:
                parent = self.folder(folder)
                file = stack.enter_context(open(name, "rb", opener=lambda path, _: os.open(path, READ, dir_fd=parent)))
            except OSError as error:
                _raise_unless_absent(error)
            yield file

    def folder(self, path: str) -> int:
        """Return the fd of a folder; it is closed before long: use it at once."""
        if path not in self._open:
            if len(self._open) >= OPEN:
                self.close()
            self._open[path] = fs.open_folder(self._tray, path.split("/") if path else ())
        return self._open[path]

    def close(self) -> None:
        """Close all folders; they are opened again when needed."""
        while self._open:
            os.close(self._open.popitem()[1])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _t: type[BaseException] | None, _v: BaseException | None, _tb: TracebackType | None) -> None:
        self.close()


def _raise_unless_absent(error: OSError) -> None:
    """Raise the error again, unless it says that no file is there: nothing, a link, a socket, or no way to it."""
    if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENXIO):
        raise error
