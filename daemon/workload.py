"""The workload: batches between claim and delivery. What is being classified, what waits alone, what was set aside.

Invariant: a claimed file is in exactly one batch here until its delivery has been run to its end. Files that a crash
left are taken one by one, with nothing else in work, so that a death is counted against the one that caused it.
"""

import itertools
import queue
import secrets
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from daemon import writers
from daemon.batch import Batch, Claimed, new_name
from daemon.delivery import Decider, Delivery, Review, decision
from daemon.events import Line
from daemon.inspection import FileError, Limits, Outcome, fingerprint
from daemon.journal import Journal
from daemon.spool import Spool

Identity = tuple[int | None, int | None, int | None]  # inode, bytes, mtime_ns
Submit = Callable[[str, Sequence[bytes]], None]

IN_WORK = 2  # batches: one is decoded and predicted while the other is journalled and delivered
LOOK_AGAIN = 2.0  # seconds after which a file that is not settled, or failed to decode while young, is read again
YOUNG_NS = 60_000_000_000
MAY_GROW = ("empty", "truncated", "corrupt", "not_an_image")


@dataclass
class _Flight:
    """A batch in the pipeline, and who decides it; `before` says how its files looked when they were read last."""

    batch: Batch
    outcomes: list[Outcome | None]
    decider: Decider
    before: dict[str, Identity] = field(default_factory=dict)
    waits: dict[str, float] | None = None  # which files are not settled, and when they are due; decided once
    aside: str | None = None


@dataclass(frozen=True)
class _Held:
    batch: Batch
    due: float
    before: dict[str, Identity]
    unreadable: frozenset[str]  # files that the system refused to read; all others still change


@dataclass(frozen=True)
class Rules:
    """The settings that decide what becomes of a file."""

    limits: Limits
    max_attempts: int
    review: Review
    retry_seconds: float


class Workload:
    """All of it is used by the service's thread, but for `post`."""

    def __init__(
        self, spool: Spool, journal: Journal, own: int, decider: Decider, submit: Submit, rules: Rules
    ) -> None:
        self._spool, self._journal, self._own = spool, journal, own
        self.decider = decider  # of what is taken from now on; what was taken before keeps the one whose scores it gets
        self._submit, self.rules = submit, rules
        self._posted: queue.SimpleQueue[tuple[str, int, Outcome]] = queue.SimpleQueue()
        self._flights: dict[str, _Flight] = {}
        self._deliveries: deque[Delivery] = deque()
        self._alone: deque[Batch] = deque()
        self._held: list[_Held] = []
        self._delivered: list[Line] = []
        self.outcomes = 0  # that ever came: whether the pipeline moves
        self._token, self._keys = secrets.token_hex(4), itertools.count()

    def post(self, key: str, index: int, outcome: Outcome) -> None:
        """Take an outcome from the pipeline; called from any thread."""
        self._posted.put((key, index, outcome))
        self.outcomes += 1

    @property
    def in_pipeline(self) -> int:
        """How many batches wait for outcomes."""
        return len(self._flights)

    def take(self, batch: Batch, before: dict[str, Identity] | None = None) -> None:
        """Have a batch classified."""
        key = f"{self._token}-{next(self._keys)}"  # of its own, so that no late answer is taken for a newer one's
        self._flights[key] = _Flight(batch, [None] * len(batch.files), self.decider, before or {})
        self._submit(key, [self._spool.path(batch, c.file) for c in batch.files])

    def take_alone(self, batches: Sequence[Batch]) -> None:
        """Have batches of one file each classified one after the other."""
        self._alone.extend(batches)

    @property
    def has_room(self) -> bool:
        """Whether another batch may be claimed."""
        return not self._alone and self.in_work < IN_WORK and not any(f.batch.attempt for f in self._flights.values())

    @property
    def in_work(self) -> int:
        """How many batches are classified or delivered now."""
        return len(self._flights) + len(self._deliveries)

    @property
    def files(self) -> int:
        """How many files are claimed and not delivered."""
        batches = [*(f.batch for f in self._flights.values()), *(d.batch for d in self._deliveries), *self._alone]
        return sum(len(b.files) for b in (*batches, *(h.batch for h in self._held)))

    @property
    def held(self) -> dict[str, str]:
        """What waits in `.work`, and why."""
        changes = {c.file: "it waits in .work: it still changes" for held in self._held for c in held.batch.files}
        return changes | self.unreadable

    @property
    def unreadable(self) -> dict[str, str]:
        """What waits in `.work` because this user may not read it, or its disk fails."""
        return {file: "it waits in .work: it cannot be read" for held in self._held for file in held.unreadable}

    def is_idle(self, now: float) -> bool:
        """Whether nothing is left but files that could not be read and are tried again much later."""
        return not self.in_work and not self._alone and all(h.due > now + LOOK_AGAIN for h in self._held)

    def next_step(self) -> float | None:
        """Return when (monotonic seconds) a file that was set aside is due; None where an outcome must come first."""
        return min((h.due for h in self._held), default=None) if self.has_room else None

    def step(self, now: float) -> list[Line]:
        """Do what can be done now; return the decision lines of what was delivered. Raises OSError; repeatable."""
        self._collect()
        for name in [n for n, f in self._flights.items() if None not in f.outcomes]:
            self._conclude(self._flights[name], now)
            del self._flights[name]
        while self._deliveries:
            self._delivered += self._deliveries[0].run(self._spool, self._journal, self._own)
            self._deliveries.popleft()
        self._begin(now)
        lines, self._delivered = self._delivered, []
        return lines

    def _collect(self) -> None:
        while not self._posted.empty():
            key, index, outcome = self._posted.get()
            if key in self._flights:
                self._flights[key].outcomes[index] = outcome

    def _begin(self, now: float) -> None:
        """Begin what waits here: files alone first, and only while nothing else is in work."""
        if self._alone:
            if self.in_work == 0:
                self._begin_alone(self._alone[0])
                self._alone.popleft()
            return
        for held in [h for h in self._held if h.due <= now]:
            if not self.has_room:
                return
            self._held.remove(held)
            self.take(held.batch, held.before)

    def _begin_alone(self, batch: Batch) -> None:
        if batch.attempt < self.rules.max_attempts:
            self.take(self._spool.begin_alone(batch))
            return
        claimed = batch.files[0]
        text = f"the process died {batch.attempt} times while this file was in work: it is not tried again"
        error = FileError("crashes", text)
        report = fingerprint(self._spool.path(batch, claimed.file), self.rules.limits, error)
        self._deliver(batch, [(claimed, Outcome(report))], self.decider)

    def _conclude(self, flight: _Flight, now: float) -> None:
        """Deliver what is decided; set aside what changed while it was read, so that its neighbours need not wait."""
        outcomes = [(c, o) for c, o in zip(flight.batch.files, flight.outcomes, strict=True) if o is not None]
        if flight.waits is None:  # not again after a fault, when some of them have been set aside already
            flight.waits = {c.file: due for c, o in outcomes if (due := self._due(flight, c, o, now)) is not None}
        waits = flight.waits
        before = {c.file: _identity(o) for c, o in outcomes if c.file in waits}
        decided = [(c, o) for c, o in outcomes if c.file not in waits]
        if waits:
            aside = flight.batch
            if decided:
                flight.aside = flight.aside or new_name(self._journal.segment)
                aside = self._spool.set_aside(flight.batch, sorted(waits), flight.aside)
            elif aside.attempt:
                aside = self._spool.end_alone(aside)
            unreadable = frozenset(c.file for c, o in outcomes if c.file in waits and o.report.code == "unreadable")
            self._held.append(_Held(aside, max(waits.values()), before, unreadable))
        if decided:
            self._deliver(flight.batch, decided, flight.decider)

    def _due(self, flight: _Flight, claimed: Claimed, outcome: Outcome, now: float) -> float | None:
        """Return when a file must be read again, None where its outcome counts."""
        report = outcome.report
        if report.code == "unreadable":
            return now + max(self.rules.retry_seconds, 2 * LOOK_AGAIN)  # long enough for `once` not to wait for it
        if report.inode is None:  # no regular file: it was not opened
            return None
        path = self._spool.path(flight.batch, claimed.file)
        if not writers.is_settled(path, _identity(outcome)):
            return now + LOOK_AGAIN
        is_young = abs(time.time_ns() - (report.mtime_ns or 0)) < YOUNG_NS
        if report.code not in MAY_GROW or not is_young:
            return None
        is_first = flight.before.get(claimed.file) != _identity(outcome)
        return now + LOOK_AGAIN if is_first or writers.may_be_unseen(path) else None

    def _deliver(self, batch: Batch, decided: Sequence[tuple[Claimed, Outcome]], decider: Decider) -> None:
        lines = [decision(c, batch, o, decider, self.rules.review) for c, o in decided]
        self._deliveries.append(Delivery(Batch(batch.name, batch.attempt, tuple(c for c, _ in decided)), lines))


def _identity(outcome: Outcome) -> Identity:
    report = outcome.report
    return report.inode, report.bytes, report.mtime_ns
