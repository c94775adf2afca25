"""Storage: where a backfill reads photos and writes results: a folder of this machine, or what fsspec reaches.

Invariant: what `write` names is there whole or not at all; links are never followed, and nothing but regular files is
opened. What is wrong with one photo is in its report; what is wrong with the storage is raised as OSError.
"""

import errno
import os
import weakref
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Protocol

from daemon import inspection
from daemon.evidence import Evidence
from daemon.inspection import VANISHED, Decode, Facts, Limits, Report
from trainer import durable
from trainer.images import Picture


class Storage(Protocol):
    """A tree of files. Paths are relative, parts joined by "/"; a folder is "" or has no slash at its end."""

    def entries(self, folder: str) -> Iterator[tuple[str, bool]]:
        """Yield each name in a folder, and whether it is a folder. Raises OSError."""

    def inspect(self, file: str, eye: Decode, limits: Limits) -> tuple[Report, Picture | None]:
        """Read a file once, as `inspection.inspect` does. Raises OSError where the storage is at fault."""

    def read(self, name: str) -> bytes:
        """Return a file's bytes. Raises OSError."""

    def write(self, name: str, data: bytes) -> None:
        """Make or replace a file, whole and durable. Raises OSError."""

    def remove(self, name: str) -> None:
        """Remove a file. Raises OSError."""

    def sync(self, folder: str) -> None:
        """Make the names in a folder durable. Raises OSError."""


def is_url(text: str) -> bool:
    """Tell whether this is for fsspec: anything with a protocol but file://, which is a folder like any other."""
    return "://" in text and not text.startswith("file://")


def located(text: str) -> str:
    """Return what a person typed as a place that means the same from any working directory."""
    return text.rstrip("/") if is_url(text) else os.path.abspath(text.removeprefix("file://"))


def at(place: str) -> Storage:
    """Open what `located` gave. Raises OSError, or ValueError for a protocol that nobody here speaks."""
    return Remote(place) if is_url(place) else Local(place)


def names(storage: Storage, folder: str) -> set[str]:
    """Return the names of the files in a folder; none where there is no folder."""
    try:
        return {name for name, is_folder in storage.entries(folder) if not is_folder}
    except FileNotFoundError:
        return set()


class Local:
    """A folder of this machine's. The root may be a link: only the command line names it."""

    def __init__(self, root: str) -> None:
        self._root = Path(root)
        self._fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._evidence = Evidence(self._fd)
        weakref.finalize(self, _close, self._evidence, self._fd)  # no owner ends it: a worker of Ray's keeps it

    def entries(self, folder: str) -> Iterator[tuple[str, bool]]:
        with closing(os.scandir(self._evidence.folder(folder))) as entries:
            yield from [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]

    def inspect(self, file: str, eye: Decode, limits: Limits) -> tuple[Report, Picture | None]:
        facts = Facts()
        try:
            return inspection.examine(lambda: self._read_photo(file, limits, facts), eye, limits, facts)
        except OSError as error:
            report = _of_the_file(error, facts)
        if report is VANISHED and not os.listdir(self._fd):
            raise OSError(errno.ENOENT, "the folder is empty now: is its disk mounted?", str(self._root))
        return report, None

    def _read_photo(self, file: str, limits: Limits, facts: Facts) -> bytes:
        folder, _, name = file.rpartition("/")
        fd = self._evidence.folder(folder)
        return inspection.read(b"/proc/self/fd/%d/%s" % (fd, os.fsencode(name)), limits, facts)

    def read(self, name: str) -> bytes:
        return (self._root / name).read_bytes()

    def write(self, name: str, data: bytes) -> None:
        path = self._root / name
        path.parent.mkdir(exist_ok=True)
        durable.replace(path, data)

    def remove(self, name: str) -> None:
        os.unlink(self._root / name)

    def sync(self, folder: str) -> None:
        if (self._root / folder).is_dir():
            durable.sync_directory(self._root / folder)


class Remote:
    """What fsspec reaches. Where a put is atomic, as in object stores, so is `write`."""

    def __init__(self, url: str) -> None:
        from fsspec.core import url_to_fs  # noqa: PLC0415  # comes with Ray

        self._fs, root = url_to_fs(url)
        self._root = root.rstrip("/")

    def entries(self, folder: str) -> Iterator[tuple[str, bool]]:
        path = self._path(folder)
        listed = self._ask(lambda: self._fs.ls(path, detail=True))
        found = [(str(info["name"]).rstrip("/"), info["type"] == "directory") for info in listed]
        self._fs.invalidate_cache()  # else all folders that were ever listed stay in memory
        yield from [(name.rpartition("/")[2], is_folder) for name, is_folder in found if name != path]

    def inspect(self, file: str, eye: Decode, limits: Limits) -> tuple[Report, Picture | None]:
        facts = Facts()
        try:
            return inspection.examine(lambda: self._read_photo(file, limits, facts), eye, limits, facts)
        except OSError as error:
            return _of_the_file(error, facts), None

    def _read_photo(self, file: str, limits: Limits, facts: Facts) -> bytes:
        path = self._path(file)
        facts.update(bytes=int(self._ask(lambda: self._fs.size(path)) or 0))
        inspection.check_size(facts["bytes"], limits)
        return inspection.noted(self._ask(lambda: self._fs.cat_file(path)), facts)

    def read(self, name: str) -> bytes:
        data: bytes = self._ask(lambda: self._fs.cat_file(self._path(name)))
        return data

    def write(self, name: str, data: bytes) -> None:
        path = self._path(name)
        self._ask(lambda: self._fs.makedirs(path.rpartition("/")[0], exist_ok=True))
        self._ask(lambda: self._fs.pipe_file(path, data))

    def remove(self, name: str) -> None:
        self._ask(lambda: self._fs.rm_file(self._path(name)))

    def sync(self, folder: str) -> None:
        """Do nothing: what was put is durable."""

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root

    def _ask(self, question: Callable[[], Any]) -> Any:
        """Return the answer; drivers raise errors of their own, too."""
        try:
            return question()
        except OSError:
            raise
        except Exception as error:
            raise OSError(errno.EIO, f"{type(error).__name__}: {error}", self._root) from error


def _close(evidence: Evidence, fd: int) -> None:
    evidence.close()
    os.close(fd)


def _of_the_file(error: OSError, facts: Facts) -> Report:
    """Return the report of a file that is gone or may not be read; raise what is the storage's fault again."""
    if isinstance(error, FileNotFoundError) or error.errno == errno.ENOTDIR:
        return VANISHED
    if isinstance(error, PermissionError) or error.errno in (errno.EACCES, errno.EPERM):
        return inspection.unreadable(error, facts)
    raise error
