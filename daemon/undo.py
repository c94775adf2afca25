"""Undo: delivered files are taken back to `undone/`, or to the inbox, under the path that they were dropped with.

Invariant: the daemon's own protocol, in the daemon's own words: into `.work`, sync, a durable `restored` line, then the
move. An undo that is killed is finished by the next recovery; what has no line yet is sorted anew. Only bytes that the
journal knows are moved.
"""

# ruff: noqa: T201

import contextlib
import os
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from rich.console import Console as Terminal
from rich.progress import Progress

from daemon import tray
from daemon.batch import Batch, Claimed, Move, new_name
from daemon.delivery import carry_out
from daemon.errand import BATCH, errand, heeding_signals
from daemon.events import Line
from daemon.evidence import Evidence
from daemon.history import Entry, fold
from daemon.journal import Journal
from daemon.logs import failed, printable, refusal
from daemon.owner import OwnerError
from daemon.selection import Selection, SelectionError, select
from daemon.spool import Spool
from daemon.tray import INBOX, UNDONE, TrayError
from trainer.settings import Settings

BAD_INPUT, FAILED = 2, 1
Identity = tuple[int, int, int]  # inode, bytes, mtime_ns
Chosen = tuple[Entry, Identity]


@dataclass
class Plan:
    """What is to be moved, each file as it was when its hash was compared; what was; what is left alone, and why."""

    chosen: list[Chosen] = field(default_factory=list)
    done: list[tuple[str, str]] = field(default_factory=list)
    left: list[tuple[str, str]] = field(default_factory=list)


def run(settings: Settings, selection: Selection, *, resort: bool, yes: bool) -> int:
    """List what would be taken back, or with `yes` do it; return 0, 1 where something was left alone, 2 for bad input.

    With `resort` the files go to the inbox, to be sorted again.
    """
    target = INBOX if resort else UNDONE
    try:
        with contextlib.ExitStack() as opened:
            folder = tray.open_tray(settings.tray.root)
            opened.callback(os.close, folder)
            plan = make_plan(settings, folder, selection, target)
            if yes and plan.chosen:
                spool, journal, own = opened.enter_context(errand(settings, folder, f"{settings.daemon.owner}-undo"))
                _Carrier(spool, journal, own.folder, plan, target).run()
    except (SelectionError, TrayError, OwnerError) as error:
        return failed(str(error), BAD_INPUT)
    except OSError as error:
        text = "; what was begun is finished by the daemon, or by its next start" if yes else ""
        return failed(f"{refusal(error)}{text}", FAILED)
    _report(plan, target, yes=yes)
    return FAILED if plan.left else 0


def make_plan(settings: Settings, folder: int, selection: Selection, target: str) -> Plan:
    """Choose the files, and compare each with the journal. Raises SelectionError or OSError."""
    terminal = Terminal(stderr=True)
    plan = Plan()
    with (
        Evidence(folder) as evidence,
        Progress(console=terminal, transient=True, disable=not terminal.is_terminal) as progress,
    ):
        entries, unknown = select(fold(settings.journal.root), selection, settings.tray.root, target)
        plan.left += [(name, "the journal knows of no such file") for name in unknown]
        for entry in progress.track(entries, description="comparing hashes"):
            found = _examine(evidence, entry)
            if isinstance(found, str):
                plan.left.append((entry.place, found))
            else:
                plan.chosen.append((entry, found))
    return plan


def _examine(evidence: Evidence, entry: Entry) -> Identity | str:
    """Return a file's identity, or why it is left alone."""
    if entry.sha256 is None:
        return "the journal has no hash of it: move it by hand"
    read = evidence.sha256(entry.place)
    if read is None:
        return "it is not there any more"
    return _identity(read[0]) if read[1] == entry.sha256 else "its content is not what was delivered"


@dataclass
class _Carrier:
    spool: Spool
    journal: Journal
    own: int
    plan: Plan
    target: str

    def run(self) -> None:
        """Move all that the plan chose, batch by batch; SIGINT and SIGTERM end it after a batch."""
        waiting, self.plan.chosen = deque(self.plan.chosen), []
        with heeding_signals() as is_stopped:
            while waiting and not is_stopped():
                self._move(_next_batch(waiting))
        self.plan.left += [(entry.place, "stopped before") for entry, _ in waiting]

    def _move(self, files: Sequence[Chosen]) -> None:
        claimed = tuple(Claimed(entry.id, entry.file) for entry, _ in files)
        batch = Batch(new_name(self.journal.segment), 0, claimed)
        moves = [Move(c, entry.place) for c, (entry, _) in zip(claimed, files, strict=True)]
        try:
            stay = self.spool.take_back(batch, moves)
            stay |= self._give_back_changed(batch, moves, files, stay)
            taken = [entry for entry, _ in files if entry.id not in stay]
            lines = self._journalled(batch, taken)
        except OSError:
            self.spool.deliver(self.own, batch.folder, moves)
            self.spool.finish(batch)
            raise
        carry_out(self.spool, self.journal, self.own, batch.folder, lines)
        self.spool.finish(batch)
        self.plan.left += [(entry.place, stay[entry.id]) for entry, _ in files if entry.id in stay]
        self.plan.done += [(line.source or "", line.destination or "") for line in lines]

    def _give_back_changed(
        self, batch: Batch, moves: Sequence[Move], files: Sequence[Chosen], stay: dict[str, str]
    ) -> dict[str, str]:
        """Put back what somebody changed after its hash was compared; where that cannot be, it is sorted anew."""
        changed = [
            move
            for move, (entry, identity) in zip(moves, files, strict=True)
            if entry.id not in stay and _identity(os.lstat(self.spool.path(batch, entry.file))) != identity
        ]
        kept = {move.claimed.id for move in self.spool.deliver(self.own, batch.folder, changed)}
        now = "it was changed just now"
        return {m.claimed.id: f"{now}; it is sorted anew" if m.claimed.id in kept else now for m in changed}

    def _journalled(self, batch: Batch, taken: Sequence[Entry]) -> list[Line]:
        reserved = set[str]()
        lines = [
            Line(
                event="restored", id=entry.id, batch=batch.name, file=entry.file, source=entry.place,
                destination=self.spool.choose(self.target, Claimed(entry.id, entry.file), reserved),
                bytes=entry.size, sha256=(entry.sha256 or b"").hex(),
            )
            for entry in taken
        ]  # fmt: skip
        self.spool.make_durable()
        if lines:
            self.journal.append(lines)
        return lines


def _next_batch(waiting: deque[Chosen]) -> list[Chosen]:
    """Take a batch out: in its directory, no file may stand where another one's name or folder is."""
    batch, others = list[Chosen](), list[Chosen]()
    names, folders = set[str](), set[str]()
    while waiting and len(batch) < BATCH and len(others) < BATCH:
        item = waiting.popleft()
        file = item[0].file
        above = {file[:index] for index, character in enumerate(file) if character == "/"}
        if file in names or file in folders or above & names:
            others.append(item)
        else:
            batch.append(item)
            names.add(file)
            folders |= above
    waiting.extendleft(reversed(others))
    return batch


def _report(plan: Plan, target: str, *, yes: bool) -> None:
    for source, destination in plan.done:
        print(f"{printable(source)} → {printable(destination)}")
    for entry, _ in plan.chosen:
        print(f"{printable(entry.place)} → {target}/{printable(entry.file)}")
    for name, reason in plan.left:
        print(f"left alone: {printable(name)}: {reason}")
    if not (plan.chosen or plan.done or plan.left):
        print("nothing to take back")
    if plan.chosen and not yes:
        print(f"{len(plan.chosen):,} would be moved: --yes does it")


def _identity(st: os.stat_result) -> Identity:
    return st.st_ino, st.st_size, st.st_mtime_ns
