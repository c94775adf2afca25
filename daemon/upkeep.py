"""Upkeep: what a daemon does beside the photos, which never wait for it: pings, status, reload, learning, metrics.

Invariant: nothing here moves a file or writes a line, and what hangs of it is told and does not stop the rest.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import structlog

from daemon import systemd
from daemon.figures import Figures
from daemon.logs import printable
from daemon.meter import Meter
from daemon.metrics import Textfile
from daemon.pulse import Pulse, Stall
from daemon.reload import Reloader
from daemon.session import Session
from daemon.succession import Serving
from daemon.totals import Totals
from trainer.settings import Settings

log = structlog.get_logger()


class Chore(Protocol):
    """What is to be done at times: see daemon.learner. `step` returns what hangs, if anything."""

    def step(self, now: float) -> str: ...
    def follow(self, seconds: float, now: float) -> None: ...


@dataclass
class State:
    """What the service knows of itself at one moment."""

    settings: Settings
    serving: Serving
    session: Session | None
    fault: str | None
    successor: str  # what is to be said of it

    @property
    def totals(self) -> Totals:
        """What this daemon's journal counts."""
        return self.session.journal.totals if self.session else Totals()


@dataclass
class Upkeep:
    """Everything beside the photos. Times are monotonic seconds."""

    chore: Chore | None = None
    reloader: Reloader | None = None
    meter: Meter = field(default_factory=Meter)
    failed_at: float = 0.0  # seconds since the epoch; when the environment failed last
    _started: float = field(default_factory=time.time)
    _pulse: Pulse = field(default_factory=Pulse)
    _stall: Stall = field(default_factory=Stall)
    _textfile: Textfile = field(default_factory=Textfile)
    _hangs: str = ""

    def tick(self) -> None:
        """Ping: something happens. A recovery that takes its time is no reason to be killed."""
        self._pulse.ping(time.monotonic(), "", lambda: None)

    def pulse(self, now: float, state: State, *, is_busy: bool) -> None:
        """Tell systemd how it goes, and ping its watchdog where all is well."""
        self._pulse.tell(now, lambda: self.status(now, state))
        ill, session = self._ill(now, state, is_busy=is_busy), state.session
        self._pulse.ping(now, ill, session.own.show_life if session else lambda: None)

    def step(self, now: float, state: State, hangs: str) -> None:
        """Do what is due; tell once what hangs: what is given, or what is found."""
        chore = self.chore.step(now) if self.chore else ""
        textfile = self._textfile.step(now, state.settings.metrics, lambda: self._figures(state))
        hangs = hangs or chore or textfile  # one that hangs does not stop the others
        if hangs and hangs != self._hangs:
            log.warning("something hangs: the photos do not wait for it", error=hangs)
        self._hangs = hangs

    def reload(self, now: float, state: State, adopt: Callable[[Settings], None]) -> None:
        """Read the settings again where that was asked for, and have those adopted that hold now."""
        if self.reloader is None or not self.reloader.is_asked:
            return
        systemd.notify(RELOADING=1, MONOTONIC_USEC=time.monotonic_ns() // 1000)
        state.settings = self.reloader.take(state.settings)
        adopt(state.settings)
        if self.chore is not None:
            self.chore.follow(state.settings.daemon.learn_seconds, now)
        systemd.notify(READY=1, STATUS=self.status(now, state))

    def status(self, now: float, state: State) -> str:
        """Return systemd's status line."""
        session, totals = state.session, state.totals
        inbox, work = (session.inbox.waiting, session.workload.files) if session else (0, 0)
        error = totals.last_error
        parts = [
            f"waiting: {state.fault}" if state.fault is not None else "",
            f"model {state.serving.number}; {self.meter.rate(now)} photos/min; {inbox} waiting, {work} in work",
            f"{sum(totals.sorted.values())} sorted so far",
            printable(state.successor),
            self._hangs,
            printable(self.reloader.status) if self.reloader else "",
            f"last error {error['ts'][:19]}Z: {printable(error['error'])}" if error else "",
        ]
        return "; ".join(part for part in parts if part)

    def _ill(self, now: float, state: State, *, is_busy: bool) -> str:
        """Say why systemd should end this process; nothing where all is well, or the environment is waited out."""
        load = state.session.workload if state.session and state.fault is None else None
        batches, outcomes = (load.in_pipeline, load.outcomes) if load else (0, 0)
        seconds = self._stall.seconds(now, batches=batches, outcomes=outcomes, is_busy=is_busy)
        if seconds <= state.settings.daemon.decode_seconds:
            return ""
        return f"{batches} batches have been in work for {seconds:.0f} s and no thread works on them"

    def _figures(self, state: State) -> Figures:
        session, owner = state.session, state.settings.daemon.owner
        return Figures(
            tray=str(state.settings.tray.root),
            daemon=session.own.name if session else owner,
            log=state.settings.journal.root,
            learner=f"{owner}-learn",
            totals=state.totals,
            classes=state.serving.classes,
            model=state.serving.number,
            inbox=session.inbox.waiting if session else 0,
            work=session.workload.files if session else 0,
            blocked=len(session.inbox.blocked) + len(session.workload.held) if session else 0,
            started=self._started,
            failed_at=self.failed_at,
            fault=state.fault is not None,
            latency=self.meter.latency.copy(),
            sizes=self.meter.sizes.copy(),
        )
