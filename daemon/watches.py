"""The kernel's watches on the inbox, by watchdog: what it leaves out is done here.

Source: watchdog 7.1, observers/inotify.py: a folder that leaves the tree stays watched under the path that it had (its
own TODO) until the next one of that name makes the bookkeeping fail; and where the kernel's limit is reached, all but
the first folder are left unwatched in silence.
"""

import errno
import os
from typing import Any

from watchdog.observers.inotify import InotifyEmitter, InotifyObserver, InotifyWatchGroup
from watchdog.observers.inotify_c import InotifyConstants, InotifyEvent, Mask, WatchDescriptor
from watchdog.observers.inotify_move_event_grouper import InotifyMoveEventGrouper

# Else all events are held back for half a second after each claim, to pair both ends of a rename: either wakes us.
InotifyMoveEventGrouper.delay = 0.0


class Watches(InotifyWatchGroup):
    """Watches of the folders that are in the tree; `is_full` where the kernel did not give one to each."""

    is_full = False

    def on_event(self, event: InotifyEvent) -> None:
        """Drop the watches of a folder that moves, which gets new ones where it arrives; watch one that is opened."""
        if event.is_directory and (event.is_moved_from or event.is_attrib):
            with self._lock:
                path = self._build_event_source_path(event) if self.is_active else None
                if path is not None and event.is_moved_from:
                    self._remove_callbacks(self._left(path))
                elif path is not None and path not in self._active_callbacks_by_path:
                    self._add_all_callbacks(path)  # it may be read now
        super().on_event(event)

    def _left(self, top: bytes) -> list[WatchDescriptor]:
        """Return the watches at `top` and below; forget paths of those that were found elsewhere by now."""
        gone = []
        for path, wd in list(self._active_callbacks_by_path.items()):
            if path != top and not path.startswith(top + b"/"):
                continue
            if self._active_callbacks_by_watch.get(wd) == path:
                gone.append(wd)
            else:
                del self._active_callbacks_by_path[path]
        return gone

    def _add_callback(self, path: bytes) -> None:
        try:
            wd = self._inotify_fd.add_callback(path, self.event_mask, self._callback, self._id)
        except OSError as error:  # gone meanwhile, or the limit is reached
            self.is_full |= error.errno == errno.ENOSPC
            if path == self.path:
                raise
            return
        if wd == -1:  # watchdog's word for one that may not be read
            return
        self._active_callbacks_by_path[path] = wd
        self._active_callbacks_by_watch[wd] = path

    def _remove_watch_internally(self, wd: WatchDescriptor) -> None:
        """Forget a watch; events may tell of one twice, or late, when its path is another one's."""
        path = self._active_callbacks_by_watch.pop(wd, None)
        if path is not None and self._active_callbacks_by_path.get(path) == wd:
            del self._active_callbacks_by_path[path]


class _Emitter(InotifyEmitter):
    def on_thread_start(self) -> None:
        self._inotify = self.watches = Watches(
            self._inotify_fd,
            os.fsencode(self.watch.path),
            is_recursive=self.watch.is_recursive,
            event_mask=Mask(self.get_event_mask_from_filter() | InotifyConstants.IN_ATTRIB),
            follow_symlink=self.watch.follow_symlink,
        )


class TreeObserver(InotifyObserver):
    """An observer of trees from which folders may go."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._emitter_class = _Emitter

    @property
    def is_full(self) -> bool:
        """Whether the kernel's limit left folders without a watch: no event tells of what happens there."""
        return any(isinstance(e, _Emitter) and e.watches.is_full for e in self.emitters if e.is_alive())

    def hears(self) -> bool:
        """Tell whether all threads live that an event goes through: a dead emitter leaves the observer alive."""
        return self.is_alive() and self._inotify_fd.is_alive() and all(e.is_alive() for e in self.emitters)
