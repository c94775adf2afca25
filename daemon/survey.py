"""A survey: which files are in the folders where people look, without reading any; and a closer look at a few of them.

Invariant: nothing is changed, no link is followed, and a folder that cannot be read costs no other.
"""

import contextlib
import os
import re
from collections.abc import Iterator, Sequence

from daemon import fs
from daemon.evidence import Evidence


def files(
    folder: int, names: Sequence[str], ignored: re.Pattern[str], left: list[tuple[str, str]]
) -> Iterator[tuple[str, int]]:
    """Yield the place and size of each regular file below these folders of the tray, ignored names left out.

    What cannot be read is noted in `left`, with the reason.
    """
    waiting: list[tuple[str, ...]] = [(name,) for name in names]
    while waiting:
        parts = waiting.pop()
        try:
            fd = fs.open_folder(folder, parts)
        except FileNotFoundError:
            continue
        except OSError as error:
            left.append(("/".join(parts), f"this folder cannot be read: {error.strerror}"))
            continue
        try:
            yield from _listed(fd, parts, ignored, waiting)
        except OSError as error:
            left.append(("/".join(parts), f"this folder cannot be read: {error.strerror}"))
        finally:
            os.close(fd)


def _listed(
    fd: int, parts: tuple[str, ...], ignored: re.Pattern[str], waiting: list[tuple[str, ...]]
) -> Iterator[tuple[str, int]]:
    with contextlib.closing(os.scandir(fd)) as entries:
        for entry in entries:
            if ignored.match(entry.name.casefold()):
                continue
            if entry.is_dir(follow_symlinks=False):
                waiting.append((*parts, entry.name))
            elif entry.is_file(follow_symlinks=False):
                with contextlib.suppress(FileNotFoundError):
                    yield "/".join((*parts, entry.name)), entry.stat(follow_symlinks=False).st_size


class Look:
    """Looks at single files; what is too large, or begins as no picture does, is no photo.

    What may not be read is noted in `left`, and is taken for being where it was.
    """

    def __init__(self, evidence: Evidence, most: int, left: list[tuple[str, str]]) -> None:
        self._evidence, self._most, self._left = evidence, most, left

    def sha256(self, place: str) -> bytes | None:
        """Return a file's hash; None where it is gone, or no photo."""
        try:
            st = self._evidence.stat(place)
            if st is None or st.st_size > self._most or not self._evidence.is_picture(place):
                return None
            found = self._evidence.sha256(place)
        except OSError as error:
            self._left.append((place, f"it cannot be read: {error.strerror}"))
            return None
        return None if found is None else found[1]

    def is_there(self, place: str) -> bool:
        """Tell whether anything is at the place, as far as it can be told."""
        try:
            return self._evidence.stat(place) is not None
        except OSError:
            return True

    def changed_at(self, place: str) -> int:
        """Return when its place or state changed last, in milliseconds since 1970; 0 where nobody can tell."""
        try:
            st = self._evidence.stat(place)
        except OSError:
            return 0
        return 0 if st is None else st.st_ctime_ns // 1_000_000
