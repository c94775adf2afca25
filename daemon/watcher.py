"""Watching the inbox: watchdog's events only wake the loop, the scan is the truth.

Invariant: a file is found by the scan whatever events came or were lost (the kernel's queue overflows silently); a scan
keeps no more than the directories it stands in, and goes on where it stopped.
"""

import fnmatch
import os
import re
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence

from watchdog import events

from daemon import fs
from daemon.intake import Sighting
from daemon.tray import INBOX
from daemon.watches import TreeObserver

MAX_DEPTH = 64
MAX_PATH = 3000  # bytes; the path in .work is longer than the one in the inbox, and the kernel ends at 4,096
# What makes, finishes or removes a file, or opens a folder. Not what reading causes, since the settle check and the
# scan open things themselves, and not each write of a long upload: what is not settled is looked at anyway.
HEARD: list[type[events.FileSystemEvent]] = [
    events.FileCreatedEvent, events.FileMovedEvent, events.FileClosedEvent, events.FileDeletedEvent,
    events.DirCreatedEvent, events.DirMovedEvent, events.DirAttribEvent, events.DirDeletedEvent,
]  # fmt: skip


class Watcher:
    """A watchdog observer that calls `wake` when something happens in the inbox."""

    def __init__(self, inbox: str, wake: Callable[[], None]) -> None:
        """Begin to watch. Raises OSError where the kernel does not even watch the inbox itself; see `is_full`."""
        self._inbox, self._inode = inbox, os.stat(inbox).st_ino
        # watchdog warns of each folder that it watches already: one that is moved, or seen twice while it is moved in.
        warnings.filterwarnings("ignore", category=RuntimeWarning, module="watchdog")
        self._observer = TreeObserver()
        try:
            self._observer.schedule(_Waker(wake), inbox, recursive=True, event_filter=HEARD)
            self._observer.start()
        except OSError:
            self._observer.stop()  # it has an inotify descriptor and a thread already; the next try makes new ones
            raise

    def is_alive(self) -> bool:
        """Tell whether events can still come: deleting the inbox kills the emitter, and the observer seems to live."""
        try:
            same = os.stat(self._inbox).st_ino == self._inode
        except FileNotFoundError:
            return False
        return same and self._observer.hears()

    @property
    def is_full(self) -> bool:
        """Whether the kernel's limit of watches left folders out: no event tells of files there."""
        return self._observer.is_full

    def stop(self) -> None:
        """Stop watching; its threads end within watchdog's half second."""
        self._observer.stop()
        self._observer.join(timeout=2)


class _Waker(events.FileSystemEventHandler):
    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake

    def on_any_event(self, _: events.FileSystemEvent) -> None:
        self._wake()


def ignored_names(patterns: Sequence[str]) -> re.Pattern[str]:
    """Return what matches the casefolded names that are never taken."""
    return re.compile("|".join(fnmatch.translate(p.casefold()) for p in patterns) or r"(?!)")


class Scanner:
    """Lists the inbox, a bounded piece at a time."""

    def __init__(self, ignore: Sequence[str]) -> None:
        self._ignored = ignored_names(ignore)
        self._pass: Generator[Sighting, None, None] | None = None
        self._is_known: Callable[[str], bool] = lambda _: False
        self.blocked: dict[str, str] = {}  # folders of the last pass that could not be read, and why
        self.empty: set[str] = set()  # folders of the last pass that hold nothing

    @property
    def in_pass(self) -> bool:
        """Whether the last scan stopped before the end of the inbox."""
        return self._pass is not None

    def scan(self, tray: int, count: int, is_known: Callable[[str], bool]) -> Iterator[Sighting]:
        """Yield up to `count` sightings of files that are not known, from where the last scan stopped.

        Raises OSError; the next scan begins a new pass then.
        """
        self._is_known = is_known
        if self._pass is None:
            self.blocked, self.empty = {}, set()
            self._pass = self._walk(tray)
        for _ in range(count):
            try:
                sighting = next(self._pass, None)
            except OSError:
                self._pass = None
                raise
            if sighting is None:
                self._pass = None
                return
            yield sighting

    def look(self, tray: int, files: Iterable[str]) -> Iterator[tuple[str, Sighting | None]]:
        """Yield how inbox files look now; None where one is gone, or a folder stands in its place."""
        with fs.Folders(tray) as folders:
            for file in files:
                *dirs, name = file.split("/")
                try:
                    found = _sighting(file, os.stat(name, dir_fd=folders.fd((INBOX, *dirs)), follow_symlinks=False))
                except OSError:
                    yield file, None
                else:
                    yield file, found if found.kind != "folder" else None

    def forget(self) -> None:
        """Give up a pass that has not ended, with the directories it holds open."""
        if self._pass is not None:
            self._pass.close()
            self._pass = None

    def _walk(self, tray: int) -> Generator[Sighting, None, None]:
        inbox = fs.open_folder(tray, (INBOX,), make_mode=fs.PUBLIC_MODE)
        try:
            yield from self._walk_folder(inbox, "", 0)
        finally:
            os.close(inbox)

    def _walk_folder(self, fd: int, prefix: str, depth: int) -> Generator[Sighting, None, None]:
        is_empty = True
        with os.scandir(fd) as entries:
            for entry in entries:
                is_empty = False
                if self._ignored.match(entry.name.casefold()):
                    continue
                path = prefix + entry.name
                try:
                    if entry.is_dir(follow_symlinks=False):
                        yield from self._enter(fd, entry.name, path, depth)
                    elif len(os.fsencode(path)) > MAX_PATH:
                        self.blocked[path] = "its path is too long: move it up"
                    elif not self._is_known(path):
                        yield _sighting(path, entry.stat(follow_symlinks=False))
                except FileNotFoundError:  # gone while we looked
                    continue
                except PermissionError:  # a folder that may be listed, but not entered
                    self.blocked[prefix.rstrip("/") or path] = "the daemon may not look into this folder"
        if is_empty and prefix:
            self.empty.add(prefix.rstrip("/"))

    def _enter(self, fd: int, name: str, path: str, depth: int) -> Generator[Sighting, None, None]:
        if depth >= MAX_DEPTH or len(os.fsencode(path)) > MAX_PATH:
            self.blocked[path] = "folders are nested too deep here: move them up"
            return
        try:
            child = os.open(name, fs.DIRECTORY, dir_fd=fd)
        except PermissionError:
            self.blocked[path] = "the daemon may not read this folder"
            return
        except (NotADirectoryError, FileNotFoundError):  # swapped while we looked: the next pass sees for what
            return
        try:
            yield from self._walk_folder(child, path + "/", depth + 1)
        except FileNotFoundError:
            return
        except OSError as error:  # a mount of its own that fails, say: no reason to stop for all others
            self.blocked[path] = f"this folder cannot be read: {error.strerror}"
        finally:
            os.close(child)


def _sighting(file: str, st: os.stat_result) -> Sighting:
    return Sighting(file, fs.kind(st.st_mode), st.st_size, st.st_mtime_ns, st.st_ino)
