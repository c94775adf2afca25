"""The inbox as the service sees it: what was found, what is settled, what cannot be taken and why.

Invariant: a file that cannot be read or moved waits where it is and costs the others nothing; it is tried again with
every rescan.
"""

import contextlib
import os
import time
from dataclasses import dataclass
from typing import Any

from daemon import fs, writers
from daemon.intake import Intake, Sighting
from daemon.spool import Claim, Spool
from daemon.tray import INBOX
from daemon.watcher import Scanner

PIECE = 4096  # sightings per iteration: a million waiting files must not keep the first batch waiting
EMPTY_SECONDS = 3600.0
PAUSE = 10  # times what the last pass took: so long, at least, until the next one while batches wait anyway
MAX_BLOCKED = 100_000


@dataclass(frozen=True, slots=True)
class Blocked:
    """Why a file waits in the inbox, and when (monotonic seconds) it is tried again."""

    reason: str
    retry_at: float


class Inbox:
    """Finds, settles and claims; all of it in the service's thread."""

    def __init__(self, tray: int, spool: Spool, scanner: Scanner, intake: Intake, retry_seconds: float) -> None:
        self._tray, self._spool, self._scanner, self._intake = tray, spool, scanner, intake
        self._retry = retry_seconds
        self._files: dict[str, Blocked] = {}
        self._news: dict[str, str] = {}
        self._closed: dict[str, str] = {}  # folders, by the last pass that ended
        self._empty_since: dict[str, float] = {}
        self._dirty = self._by_event = True  # what is there at the start has no event
        self._is_rescue, self._rescued = False, 0
        self._pass_took = self._next_pass = 0.0

    def follow(self, scanner: Scanner, retry_seconds: float, **pace: Any) -> None:
        """Follow other settings from now on, `pace` those of the intake; the inbox is looked through again."""
        self._scanner.forget()
        self._scanner, self._retry = scanner, retry_seconds
        self._intake.follow(**pace)
        self.wake(by_event=False)

    def wake(self, *, by_event: bool = True) -> None:
        """Look through the whole inbox again: something happened there, or it is time to."""
        self._dirty = True
        self._by_event |= by_event

    def close(self) -> None:
        """Let go of the folders that a pass holds open."""
        self._scanner.forget()

    def take_blocked(self) -> dict[str, str]:
        """Return what was found since the last call that the daemon may not have, and why."""
        news, self._news = self._news, {}
        return news

    def take_rescued(self) -> int:
        """Return how many files were found since the last call that no event had told of."""
        rescued, self._rescued = self._rescued, 0
        return rescued

    @property
    def blocked(self) -> dict[str, str]:
        """What waits because the daemon may not have it, and why."""
        return {**{f: b.reason for f, b in self._files.items()}, **self._scanner.blocked}

    @property
    def is_idle(self) -> bool:
        """Whether everything that the inbox holds has been looked at and nothing of it can be claimed."""
        return not (self._dirty or self._scanner.in_pass or len(self._intake))

    @property
    def waiting(self) -> int:
        """How many files are known to wait."""
        return len(self._intake)

    def next_look(self, now: float) -> float | None:
        """Return when (monotonic seconds) there is something to do, None where only an event can tell."""
        if self._may_scan(now):
            return now
        return self._intake.next_look()

    def _may_scan(self, now: float) -> bool:
        """Tell whether to go on with a pass, or to begin one.

        Each move of ours is an event that asks for another pass: through ten thousand files that wait, for the sake of
        each batch. It can wait while there is enough to do; not for ever, since what is new has to settle.
        """
        may_begin = self._dirty and (now >= self._next_pass or not self._intake.is_full)
        return self._intake.room > 0 and (self._scanner.in_pass or may_begin)

    def look(self, now: float) -> None:
        """Look again at what is not settled, and at a piece of the inbox where that is due."""
        for file, sighting in self._scanner.look(self._tray, self._intake.unsettled(now, at_once=self._dirty)):
            if sighting is None:
                self._intake.forget(file)
            else:
                self._intake.see(sighting, now)
        if self._may_scan(now):
            self._scan(now)

    def _scan(self, now: float) -> None:
        if not self._scanner.in_pass:
            self._is_rescue = self._dirty and not self._by_event
            self._dirty = self._by_event = False
            self._pass_took = 0.0

        def is_known(file: str) -> bool:
            blocked = self._files.get(file)
            return file in self._intake or (blocked is not None and now < blocked.retry_at)

        begun = time.monotonic()
        try:
            for sighting in self._scanner.scan(self._tray, min(PIECE, self._intake.room), is_known):
                self._intake.see(sighting, now)
                self._rescued += self._is_rescue and sighting.file not in self._files
        except OSError:
            self._dirty = True  # what the pass did not reach is looked for again
            raise
        finally:
            self._pass_took += time.monotonic() - begun
        if not self._scanner.in_pass:
            self._end_of_pass(now)

    def _end_of_pass(self, now: float) -> None:
        """Forget old grievances, and remove folders that have been empty for an hour."""
        self._next_pass = now + PAUSE * self._pass_took
        self._files = {f: b for f, b in self._files.items() if now < b.retry_at or f in self._intake}
        closed = dict(self._scanner.blocked)
        self._news |= {folder: closed[folder] for folder in closed.keys() - self._closed.keys()}
        self._closed = closed
        self._empty_since = {f: self._empty_since.get(f, now) for f in self._scanner.empty}
        for folder, since in self._empty_since.items():
            if now - since >= EMPTY_SECONDS:
                remove_folder(self._tray, folder)

    def claim(self, now: float, segment: int, *, at_once: bool = False) -> Claim | None:
        """Claim the batch that is due, or (`at_once`) whatever is settled; None where nothing is."""
        ready: list[str] = []
        while not ready:
            if not (due := self._intake.batch(now, at_once=at_once)):
                return None
            looked_at = writers.readiness(self._tray, due)
            ready = [seen.file for seen, reason in looked_at if self._is_ready(seen, reason, now)]
        queued = {file: round((now - (self._intake.forget(file) or now)) * 1000, 1) for file in ready}
        was_dirty, self._dirty = self._dirty, True
        claim = self._spool.claim(ready, segment, queued)
        for claimed in claim.batch.files:
            self._files.pop(claimed.file, None)
        for file, reason in claim.blocked.items():
            self._block(file, reason, now)
        if claim.fault is None and len(claim.batch.files) + len(claim.blocked) == len(ready):
            self._dirty = was_dirty  # else what was not claimed is looked for again
        return claim

    def _is_ready(self, sighting: Sighting, reason: str | None, now: float) -> bool:
        if reason == writers.CHANGING:
            self._intake.defer(sighting.file, now)
        elif reason is not None:
            self._intake.forget(sighting.file)
            self._block(sighting.file, reason, now)
        return reason is None

    def _block(self, file: str, reason: str, now: float) -> None:
        if file not in self._files:
            self._news[file] = reason
        if len(self._files) < MAX_BLOCKED or file in self._files:
            self._files[file] = Blocked(reason, now + self._retry)


def remove_folder(tray: int, folder: str) -> None:
    """Remove an inbox folder of the tray (a directory fd) if it is empty: rmdir refuses all others."""
    *dirs, name = folder.split("/")
    with contextlib.suppress(OSError), fs.Folders(tray) as folders:  # filled again, gone, or another user's
        os.rmdir(name, dir_fd=folders.fd((INBOX, *dirs)))
