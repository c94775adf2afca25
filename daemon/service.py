"""The service: the only conductor. One iteration delivers what is decided, looks at the inbox, claims what is ready.

Invariant: every rename and every journal line is made by the thread that iterates, so nothing here needs a lock. What
goes wrong is this file's (rejected), this subtree's (waits), the environment's (all wait and it is tried again), or a
bug (the process ends with the traceback), and each kind goes one way.
"""

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

import structlog

from daemon import pulse, systemd, tray
from daemon.backoff import Backoff
from daemon.events import Line
from daemon.inspection import Limits, Outcome
from daemon.logs import printable
from daemon.predictors import Predictors
from daemon.session import Session
from daemon.succession import Load, Serving, Succession, Successor
from daemon.totals import Totals
from daemon.upkeep import State, Upkeep
from daemon.workload import Submit
from trainer.settings import Settings
from trainer.views import Eye

STOP_SECONDS = 20.0
log = structlog.get_logger()


class Pipe(Protocol):
    """What the service needs of a pipeline: see daemon.pipeline."""

    failure: str | None
    limits: Limits

    @property
    def submit(self) -> Submit: ...
    def swap(self, eye: Eye, predictors: Predictors) -> None: ...
    def slowest(self, now: float) -> tuple[float, bytes]: ...
    def close(self) -> None: ...


class Audience(Protocol):
    """Who is told: see daemon.console."""

    def ready(self, serving: str, waiting: int) -> None: ...
    def decided(self, line: Line, waiting: int) -> None: ...


Post = Callable[[str, int, Outcome], None]
MakePipe = Callable[[Post], Pipe]


class StuckError(Exception):
    """A decode or a prediction does not end; only a new process gets rid of it."""


class PipelineError(Exception):
    """A thread of the pipeline died; the message is its traceback."""


@dataclass
class Service:
    """Sorts until it is told to stop, or, with `once`, until the inbox is empty.

    Where it can `load` one, a new champion is taken while it runs.
    """

    settings: Settings
    serving: Serving
    make_pipe: MakePipe
    audience: Audience
    once: bool = False
    load: Load | None = None
    upkeep: Upkeep = field(default_factory=Upkeep)
    _wake: queue.SimpleQueue[None] = field(default_factory=queue.SimpleQueue)  # its put() is safe in signal handlers
    _events: threading.Event = field(default_factory=threading.Event)
    _stopping_since: float | None = None
    _backoff: Backoff = field(default_factory=Backoff)
    _quiet_at: float = 0.0  # after a delivery the loop goes on until STATUS, once a second, has told of it
    _session: Session | None = None
    _succession: Succession | None = None

    def stop(self) -> None:
        """Finish the batches in work and return from `run`; safe in a signal handler."""
        if self._stopping_since is None:
            self._stopping_since = time.monotonic()
        self.wake()

    def event(self) -> None:
        """Something happened in the inbox; called by the watcher's thread."""
        self._events.set()
        self.wake()

    def wake(self) -> None:
        """Have the loop look at what is due; safe in a signal handler."""
        self._wake.put(None)

    @property
    def is_stopping(self) -> bool:
        """Whether `stop` was called."""
        return self._stopping_since is not None

    @property
    def totals(self) -> Totals:
        """What this daemon's journal counts."""
        return self._session.journal.totals if self._session else Totals()

    def run(self) -> Mapping[str, str]:
        """Work until stopped; return what still waits in the inbox because the daemon may not have it, and why.

        Raises TrayError, OwnerError or OSError before the first READY only: later they are waited out.
        """
        with systemd.loading("loading TensorFlow"):
            pipe = self.make_pipe(self._post)
        try:
            session = self._session = self._open(pipe, partial(systemd.more_time, "recovering what was in work"))
            systemd.notify(READY=1, STATUS=self.upkeep.status(time.monotonic(), self._state))
            self._await_successors()
            if self._stopping_since is None:
                self.audience.ready(self.serving.describe(), session.inbox.waiting)
            delay = 0.0
            while not self._is_done(time.monotonic()):
                self._sleep(min(delay, pulse.every(is_idle=self._is_idle)))
                self._beside(time.monotonic(), pipe)
                delay = self.one_iteration(time.monotonic(), pipe)
            systemd.notify(STOPPING=1)
        finally:
            if self._succession is not None:
                self._succession.stop()
            blocked = dict[str, str]()
            if self._session is not None:
                blocked = {**self._session.inbox.blocked, **self._session.workload.held}
                self._session.close()
            pipe.close()
        return blocked

    def one_iteration(self, now: float, pipe: Pipe) -> float:
        """Do everything that is due at `now` (monotonic seconds); return for how many seconds nothing will be."""
        self._check(pipe, now)
        if now < self._backoff.retry_at:
            return self._backoff.retry_at - now
        try:
            session = self._session = self._session or self._open(pipe, self.upkeep.tick)
            if self._events.is_set():
                self._events.clear()
                session.inbox.wake()
            self._succeed(session, pipe)
            self.upkeep.meter.delivered(lines := session.step(now, may_claim=not self.is_stopping), time.monotonic())
            self._quiet_at = now + 2 * pulse.EVERY if lines else self._quiet_at
            for line in lines:
                self.audience.decided(line, session.waiting)
            self._backoff.worked()
            return max(0.0, session.next_step(now, may_claim=not self.is_stopping) - now)
        except (OSError, tray.TrayError) as error:
            self._wait_out(error, now)
            return self._backoff.seconds

    def _await_successors(self) -> None:
        if self.load is not None:
            self._succession = Succession(self.settings.models.root, self.load, self.serving, self.wake)
            self._succession.start()

    def _succeed(self, session: Session, pipe: Pipe) -> None:
        """Let a new model serve what is claimed from now on, or tell why it does not. Raises OSError; repeatable."""
        succession = self._succession
        if succession is None or (news := succession.news) is None:
            return
        if isinstance(news, Successor):
            session.succeed(news.serving)
            pipe.swap(news.eye, news.predictors)
            self.serving = news.serving
            log.info("a new model serves", serving=news.serving.describe())
        else:
            session.refuse(news.model, news.error)
            trace = {"exception": news.trace} if news.trace else {}
            log.warning("a new model is refused: the old one goes on", model=news.model, error=news.error, **trace)
        succession.took(news)

    def _sleep(self, seconds: float) -> None:
        """Sleep until something happens, or the time is over."""
        with contextlib.suppress(queue.Empty):
            self._wake.get(timeout=seconds)
            while True:
                self._wake.get_nowait()

    def _post(self, key: str, index: int, outcome: Outcome) -> None:
        """Take an outcome from a thread of the pipeline to whichever session is open."""
        if session := self._session:
            session.workload.post(key, index, outcome)
        self.wake()

    def _open(self, pipe: Pipe, tick: Callable[[], object]) -> Session:
        self.upkeep.meter.forget()
        return Session.open(self.settings, self.serving, pipe.submit, self.event, tick, self.upkeep.meter)

    def _check(self, pipe: Pipe, now: float) -> None:
        """See that all threads live and none is stuck; only then is systemd told so."""
        if pipe.failure is not None:
            raise PipelineError(pipe.failure)
        seconds, path = pipe.slowest(now)
        if seconds > self.settings.daemon.decode_seconds:
            raise StuckError(
                f"{printable(path.decode(errors='backslashreplace'))} has been in work for {seconds:.0f} s"
            )
        self.upkeep.pulse(now, self._state, is_busy=seconds > 0)

    @property
    def _state(self) -> State:
        successor = self._succession.status if self._succession else ""
        return State(self.settings, self.serving, self._session, self._backoff.fault, successor)

    def _beside(self, now: float, pipe: Pipe) -> None:
        """Do what is not the photos' business and must not keep them waiting."""

        def adopt(settings: Settings) -> None:
            self.settings = settings
            pipe.limits = Limits(settings.tray.max_file_bytes, settings.tray.max_pixels)
            if self._session is not None:
                self._session.reload(settings)

        self.upkeep.reload(now, self._state, adopt)
        self.upkeep.step(now, self._state, self._succession.hangs(now) if self._succession else "")

    @property
    def _is_idle(self) -> bool:
        is_calm = self._backoff.fault is None and time.monotonic() >= self._quiet_at
        return is_calm and self._session is not None and self._session.waiting == 0

    def _is_done(self, now: float) -> bool:
        session = self._session
        if self._stopping_since is not None:
            late = now - self._stopping_since > STOP_SECONDS  # what is left is recovered by the next start
            return late or self._backoff.fault is not None or session is None or session.workload.in_work == 0
        return self.once and self._backoff.fault is None and session is not None and session.is_idle(now)

    def _wait_out(self, error: Exception, now: float) -> None:
        self.upkeep.failed_at = time.time()
        self._backoff.failed(error, now)
        if self._session is not None and not self._session.is_sound():
            self._session.abandon()  # the tray is gone: what was in work there is recovered when it is back
            self._session = None
