"""A session: one tray, held by one owner, from opening to close. It ends when the tray goes away under it.

Invariant: recovery has run, and every owner whose daemon is gone was cleaned up after, before anything is claimed; it
runs again with every rescan.
"""

import contextlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import structlog

from daemon import fs, owner, recovery, tray
from daemon.delivery import Decider, Review
from daemon.events import Line
from daemon.hearing import Hearing
from daemon.inbox import Inbox
from daemon.inspection import Limits
from daemon.intake import Intake
from daemon.journal import Journal
from daemon.journal_folder import identified
from daemon.logs import printable
from daemon.meter import Meter
from daemon.owner import Owner
from daemon.spool import Spool
from daemon.watcher import Scanner
from daemon.workload import Rules, Submit, Workload
from trainer.settings import Settings

POLL_SECONDS = 1.0
NAMED = 10  # files that wait
log = structlog.get_logger()


@dataclass
class Session:
    """Everything that is open while a tray is served."""

    settings: Settings
    tray: int
    work: int
    own: Owner
    journal: Journal
    spool: Spool
    inbox: Inbox
    workload: Workload
    hearing: Hearing
    tick: Callable[[], object] = lambda: None
    meter: Meter = field(default_factory=Meter)
    _rescan_at: float = 0.0
    _lines: list[Line] = field(default_factory=list)
    _left_alone: dict[str, str] = field(default_factory=dict)
    _told: set[str] = field(default_factory=set)

    @classmethod
    def open(
        cls,
        settings: Settings,
        decider: Decider,
        submit: Submit,
        on_event: Callable[[], None],
        tick: Callable[[], object] = lambda: None,
        meter: Meter | None = None,
    ) -> "Session":
        """Open the tray, recover (a `tick` for each batch), begin to watch. Raises TrayError or OSError."""
        with contextlib.ExitStack() as undo:
            fd = tray.open_tray(settings.tray.root)
            undo.callback(os.close, fd)
            tray.check_folders(fd, decider.classes)
            work = fs.open_folder(fd, (tray.WORK,))
            undo.callback(os.close, work)
            tray.require_own(work)
            own = owner.acquire(work, settings.daemon.owner, identified(settings.journal.root))
            undo.callback(own.release)
            journal = Journal(settings.journal.root, own.name, settings.journal.segment_bytes)
            undo.callback(journal.close)
            spool = Spool(fd, own.folder)
            workload = Workload(spool, journal, own.folder, decider, submit, _rules(settings))
            inbox = Inbox(
                fd, spool, Scanner(settings.tray.ignore), Intake(**_pace(settings)), settings.daemon.rescan_seconds
            )
            hearing = Hearing(settings.tray.root, on_event)
            session = cls(settings, fd, work, own, journal, spool, inbox, workload, hearing, tick, meter or Meter())
            undo.callback(hearing.stop)
            session._begin(decider.number)
            undo.pop_all()
        return session

    def _begin(self, model: int) -> None:
        self._tick()
        left = recovery.recover(self.own, self.spool, self.journal, self.journal, self._tick)
        self._take_over(left)
        self.journal.append([Line(event="started", model=model, source=str(self.settings.tray.root))])
        self._rescan(time.monotonic())

    def _tick(self) -> None:
        self.own.show_life()
        self.tick()

    def step(self, now: float, *, may_claim: bool) -> list[Line]:
        """Do what is due; returns the lines of what was delivered. Raises OSError and TrayError; can be repeated."""
        if not self.is_sound():
            raise tray.TrayError(f"tray {str(self.settings.tray.root)!r} is gone or unmounted: bring it back")
        self._lines += self.workload.step(now)
        if now >= self._rescan_at:
            self._rescan(now)
        self.inbox.look(now)
        while may_claim and self.workload.has_room and self._claim(now):
            pass
        self._tell_blocked()
        if (rescued := self.inbox.take_rescued()) and self.hearing.is_whole:
            self.journal.count_rescued(rescued)
        lines, self._lines = self._lines, []
        return lines

    def succeed(self, decider: Decider) -> None:
        """Have what is claimed from now on decided by another model; its line is durable first. Raises OSError."""
        self.journal.append([Line(event="model_loaded", model=decider.number)])
        self.workload.decider = decider

    def refuse(self, model: int | None, error: str) -> None:
        """Journal why a new model does not serve. Raises OSError."""
        self.journal.append([Line(event="model_refused", model=model, error=error)])

    def reload(self, settings: Settings) -> None:
        """Follow other settings from now on; `tray.root`, `journal.root` and `daemon.name` are those of the start."""
        self.settings, self.workload.rules = settings, _rules(settings)
        self.journal.segment_bytes = settings.journal.segment_bytes
        self.inbox.follow(Scanner(settings.tray.ignore), settings.daemon.rescan_seconds, **_pace(settings))
        self._rescan_at = 0.0

    def next_step(self, now: float, *, may_claim: bool = True) -> float:
        """Return when (monotonic seconds) something is due, if no event comes first."""
        may_look = may_claim and (self.workload.has_room or self.inbox.waiting == 0)
        look = self.inbox.next_look(now) if may_look else None
        due = [d for d in (self._rescan_at, look, self.workload.next_step()) if d is not None]
        return max(now, min(due))

    @property
    def waiting(self) -> int:
        """How many files are known to wait or are in work."""
        return self.inbox.waiting + self.workload.files

    def is_idle(self, now: float) -> bool:
        """Whether there is nothing left to do but to wait for new files."""
        return self.inbox.is_idle and self.workload.is_idle(now)

    def is_sound(self) -> bool:
        """Whether the tray still is the one that was opened, and our directory in `.work` is still there."""
        try:
            ours = os.stat(self.own.name, dir_fd=self.work, follow_symlinks=False)
            is_ours = os.path.samestat(ours, os.fstat(self.own.folder))
            return is_ours and tray.is_same(self.settings.tray.root, self.tray)
        except OSError:
            return False

    def close(self) -> None:
        """Journal the end and let go; what is still in `.work` is recovered by the next start."""
        try:
            self.journal.append([Line(event="stopped")])
        except OSError as error:
            log.warning("the journal's last line could not be written", error=printable(error))
        self.abandon()

    def abandon(self) -> None:
        """Let go of everything without touching the tray."""
        self.hearing.stop()
        self.inbox.close()
        self.journal.close()
        self.own.release()
        os.close(self.work)
        os.close(self.tray)

    def _claim(self, now: float) -> bool:
        claim = self.inbox.claim(now, self.journal.segment, at_once=self.workload.in_work == 0)
        if claim is None:
            return False
        if claim.batch.files:
            self.workload.take(claim.batch)
            self.meter.claimed(claim.batch.name, len(claim.batch.files), now)
        if claim.fault is not None:
            raise claim.fault
        return True

    def _rescan(self, now: float) -> None:
        """Do what does not depend on events: see that the tray is there, recover for the dead, watch, look."""
        if (some := dict(sorted(self._blocked.items())[:NAMED])) != self.journal.totals.blocked:
            self.journal.note_blocked(some)
        limit = self.journal.segment_bytes
        left = recovery.recover_others(self.work, self.own, self.spool, self.journal, limit, self._tick)
        self._take_over(left)
        self.hearing.mend(self.tray, self.settings.tray.poll)
        self.inbox.wake(by_event=False)
        self._rescan_at = now + (self.settings.daemon.rescan_seconds if self.hearing.is_whole else POLL_SECONDS)

    def _take_over(self, left: recovery.Recovered) -> None:
        self.workload.take_alone(left.adopted)
        if left.finished or left.adopted:
            log.info("recovered what a stopped daemon left", finished=left.finished, adopted=len(left.adopted))
        for name in [n for n in left.left_alone if n not in self._left_alone]:
            log.warning("what a stopped daemon left must wait", owner=name, error=left.left_alone[name])
        self._left_alone = left.left_alone

    @property
    def _blocked(self) -> dict[str, str]:
        return {**self.inbox.blocked, **self.workload.unreadable}

    def _tell_blocked(self) -> None:
        unreadable = self.workload.unreadable
        news = self.inbox.take_blocked() | {f: why for f, why in unreadable.items() if f not in self._told}
        for file in list(news)[:NAMED]:
            log.warning("this waits", file=file, reason=news[file])
        self._told = set(unreadable)


def _rules(settings: Settings) -> Rules:
    limits = Limits(settings.tray.max_file_bytes, settings.tray.max_pixels)
    daemon = settings.daemon
    review = Review(daemon.review_below, daemon.audit_fraction)
    return Rules(limits, daemon.max_attempts, review, daemon.rescan_seconds)


def _pace(settings: Settings) -> dict[str, Any]:
    daemon, settle = settings.daemon, settings.tray.settle_seconds
    return {"batch_size": daemon.batch_size, "settle_seconds": settle, "wait_seconds": daemon.batch_wait_seconds}
