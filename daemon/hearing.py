"""Hearing: whether events tell of all that happens in the inbox; where they do not, it is polled.

Invariant: what cannot be watched, or is not watched any more, is found out with each rescan, and is told once.
"""

import os
import time
from collections.abc import Callable
from pathlib import Path

import structlog

from daemon import fs
from daemon.logs import printable
from daemon.mounts import mount_of
from daemon.tray import INBOX
from daemon.watcher import Watcher

RETRY_SECONDS = 60.0
log = structlog.get_logger()


class Hearing:
    """Watches the inbox of the tray at `root`; calls `on_event` when something happens there."""

    def __init__(self, root: Path, on_event: Callable[[], None]) -> None:
        self._inbox, self._on_event = str(root / INBOX), on_event
        self._watcher: Watcher | None = None
        self._is_told = False
        self._retry_at = 0.0

    @property
    def is_whole(self) -> bool:
        """Whether events tell of all that happens."""
        return self._watcher is not None and not self._watcher.is_full

    def mend(self, tray: int, poll: str) -> None:
        """Watch where events can be trusted, as `tray.poll` says; `tray` is a directory fd. Raises OSError."""
        if poll == "always" or (poll == "auto" and mount_of(self._inbox).is_shared):
            self.stop()
            return
        if self._watcher is not None and not self._watcher.is_alive():
            self.stop()
            log.warning("the watch on the inbox ended: watching it again")
        if self._watcher is not None and self._watcher.is_full and time.monotonic() >= self._retry_at:
            self.stop()  # somebody may have done what was advised
        if self._watcher is None:
            self._begin(tray)
        if self._watcher is not None and self._watcher.is_full:
            self._tell("not every folder in it can be watched")
        self._is_told = not self.is_whole

    def _begin(self, tray: int) -> None:
        self._retry_at = time.monotonic() + RETRY_SECONDS
        os.close(fs.open_folder(tray, (INBOX,), make_mode=fs.PUBLIC_MODE))
        try:
            self._watcher = Watcher(self._inbox, self._on_event)
        except OSError as error:
            self._tell(printable(error))

    def _tell(self, error: str) -> None:
        if not self._is_told:
            cure = "raise fs.inotify.max_user_watches or max_user_instances"
            log.warning("the inbox is polled", cure=cure, error=error)

    def stop(self) -> None:
        """Hear nothing any more."""
        if self._watcher is not None:
            self._watcher.stop()
            self._watcher = None
