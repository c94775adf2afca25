"""Learn: photos that people moved to another class folder become examples in the dataset, and lines in the journal.

Invariant: predictions are never labels: only what a person moved, or put into a class folder by hand, teaches. An
example is durable before its line is; a run that was killed is made good by the next, and a run twice changes nothing.
"""

# ruff: noqa: T201

import contextlib
import os
import secrets
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console as Terminal
from rich.progress import Progress

from daemon import fs, owner, served, tray
from daemon.corrections import Comparison, Move, line_of
from daemon.events import Line
from daemon.evidence import Evidence
from daemon.examples import Examples
from daemon.history import History, fold
from daemon.journal import Journal
from daemon.journal_folder import JournalFolder, identified
from daemon.logs import failed, printable, refusal
from daemon.survey import Look, files
from daemon.tray import REVIEW, WORK, TrayError
from daemon.watcher import ignored_names
from trainer import bundle, durable, images
from trainer.bundle import BundleError
from trainer.settings import Settings

BATCH = 64  # examples between two looks at the disk
BY_HAND = 200  # photos that may come by hand at a time, unless the person says that they did
NAMED = 20
NICE = 5
LOCK = ".learn"
WAIT_SECONDS = 600.0  # for another one; a million photos take it a minute
BAD_INPUT, FAILED = 2, 1


class LearnError(Exception):
    """Learning could do harm; the message says why and what to do."""


@dataclass
class Learned:
    """What was learned, and what was not, and why."""

    lines: list[Line] = field(default_factory=list)
    left: list[tuple[str, str]] = field(default_factory=list)


def run(settings: Settings, *, by_hand: bool) -> int:
    """Learn from what people moved, and say what; return the exit status."""
    os.nice(NICE)
    terminal = Terminal(stderr=True)
    try:
        with Progress(console=terminal, transient=True, disable=not terminal.is_terminal) as progress:
            learned = learn(settings, progress, by_hand=by_hand)
    except (TrayError, BundleError, LearnError) as error:
        return failed(str(error), BAD_INPUT)
    except OSError as error:
        return failed(f"{refusal(error)}: what was learned before is kept", FAILED)
    print("\n".join(describe(learned, settings.dataset.root)))
    return 0


def learn(settings: Settings, progress: Progress, *, by_hand: bool) -> Learned:
    """Compare, teach, journal. Raises TrayError, BundleError, LearnError or OSError."""
    models, dataset = settings.models.root, settings.dataset.root
    if dataset.resolve().is_relative_to(settings.tray.root.resolve()):
        raise LearnError(f"dataset.root {str(dataset)!r} is inside the tray: name a folder of its own")
    with contextlib.ExitStack() as opened:
        folder = tray.open_tray(settings.tray.root)
        opened.callback(os.close, folder)
        with fs.Folders(folder) as folders:
            tray.require_own(folders.fd((WORK,)))
        champion = bundle.champion(models)
        if champion is None:  # nothing was ever sorted
            return Learned()
        classes = bundle.read_manifest(models, champion).class_names
        opened.enter_context(_alone(settings.journal.root))
        name = f"{settings.daemon.owner}-learn"
        journal = Journal(settings.journal.root, name, settings.journal.segment_bytes)
        opened.callback(journal.close)
        evidence = opened.enter_context(Evidence(folder))
        teacher = _Teacher(settings, evidence, Examples(dataset, classes), journal, Learned())
        try:
            _require_all_journals(folder, identified(settings.journal.root))
            teacher.all(_moves(settings, folder, teacher, classes, progress, by_hand=by_hand), progress)
        except LearnError as error:
            _note(journal, str(error))
            raise
    return teacher.learned


def _moves(
    settings: Settings, folder: int, teacher: "_Teacher", classes: Sequence[str], progress: Progress, *, by_hand: bool
) -> list[Move]:
    """Return what people did; list what was delivered for the trainer, in passing. Raises LearnError, OSError."""
    began, left = time.time_ns() // 1_000_000, teacher.learned.left
    found = files(folder, (*classes, REVIEW), ignored_names(settings.tray.ignore), left)
    seen = dict(progress.track(found, description="looking"))
    history = fold(settings.journal.root)  # after the looking: what is delivered meanwhile has its line already
    look = Look(teacher.evidence, settings.tray.max_file_bytes, left)
    comparison = Comparison(history, seen, classes, look, began)
    moves = comparison.moves()
    if any(move.entry is None for move in moves):
        moves = _unknown_still(moves, fold(settings.journal.root))
    if not by_hand:
        _require_few_by_hand(moves)
    if not history.is_whole:
        text = "not all of the journal can be read: photos that it does not know teach nothing"
        left.append((str(settings.journal.root), text))
    left += [(place, "the same photo was put into several class folders") for place in comparison.contradictory]
    served.show(settings, history, seen, datetime.now(UTC))
    return moves


def _unknown_still(moves: Sequence[Move], history: History) -> list[Move]:
    """Leave out what the journal knows by now: a daemon may have put a file into the place of one that was gone."""
    places = {move.place for move in moves if move.entry is None}
    known = {entry.place for entry in history.entries() if entry.place in places}
    return [move for move in moves if move.entry is not None or move.place not in known]


def _note(journal: Journal, error: str) -> None:
    """Have `status` tell why nothing is learned; once, not every hour."""
    if (journal.totals.last_error or {}).get("error") != error:
        journal.append([Line(event="not_learned", error=error)])


def _alone(log: Path) -> AbstractContextManager[None]:
    """Wait for another `learn`, another daemon's, too, to end: both would take the same photo for news."""
    log.mkdir(parents=True, exist_ok=True)
    other = "another `moodbox learn` is at work (the daemon runs it, too)"
    refusal = LearnError(f"{other} and does not end: see what it does")

    def tell() -> None:
        print(f"{other}: waiting for its end", file=sys.stderr)

    return durable.exclusive(log / LOCK, os.O_RDWR | os.O_CREAT, refusal, 0o600, seconds=WAIT_SECONDS, waiting=tell)


def _require_all_journals(folder: int, own: JournalFolder) -> None:
    """Refuse to take for people's work what a daemon with another journal sorted."""
    with fs.Folders(folder) as folders:
        for name, journal in owner.journals(folders.fd((WORK,))):
            if journal.is_another(own):
                there = "" if journal.host in ("", own.host) else f" on {journal.host}"
                raise LearnError(
                    f"the daemon {name} of this tray writes its journal in {journal.path}{there}: what it sorted would "
                    "be taken for people's work; let all write in one folder (journal.root), copy its files there, "
                    f"stop that daemon, and remove {WORK}/{name} when no photo is left in it"
                )


def _require_few_by_hand(moves: Sequence[Move]) -> None:
    places = [move.place for move in moves if move.entry is None]
    if len(places) > BY_HAND:
        raise LearnError(
            f"the journal knows nothing of {len(places):,} photos in class folders ({printable(places[0])}, for one): "
            "if its files were moved or deleted, bring them back; if people put these photos there, "
            "`moodbox learn --by-hand` learns from them"
        )


@dataclass
class _Teacher:
    settings: Settings
    evidence: Evidence
    examples: Examples
    journal: Journal
    learned: Learned
    batch: str = field(default_factory=lambda: f"learn-{secrets.token_hex(8)}")

    def all(self, moves: Sequence[Move], progress: Progress) -> None:
        """Teach batch by batch: the examples first, then their lines. Raises OSError."""
        task = progress.add_task("learning", total=len(moves))
        for start in range(0, len(moves), BATCH):
            part = moves[start : start + BATCH]
            lines = [line for move in part if (line := self._taught(move)) is not None]
            self.examples.make_durable()
            if lines:
                self.journal.append(lines)
            self.learned.lines += lines
            progress.advance(task, len(part))

    def _taught(self, move: Move) -> Line | None:
        """Make an example of a photo, where it is one; return its line."""
        if move.label is None:
            return line_of(move, "moved", self.batch)
        data = self.evidence.read(move.place, move.sha256)
        if data is None:
            return None  # it is being moved just now
        try:
            images.decode(data, size=32, max_pixels=self.settings.tray.max_pixels)
        except images.ImageError as error:
            self.learned.left.append((move.place, str(error)))
            return line_of(move, "moved", self.batch) if move.entry else None
        self.examples.teach(move.label, move.sha256.hex(), data, move.place)
        return line_of(move, "corrected", self.batch)


def describe(learned: Learned, dataset: Path) -> Iterator[str]:
    """Yield the lines for people."""
    counts = Counter((line.was or ("review" if line.source else "by hand"), line.label or "")
                     for line in learned.lines if line.event == "corrected")  # fmt: skip
    for (was, label), number in sorted(counts.items()):
        yield f"learned {number:,}: {printable(was)} → {printable(label)}"
    if counts:
        yield f"these are examples in {printable(dataset)} now: `moodbox-train retrain` learns from them"
    else:
        yield "nothing new to learn"
    for place, reason in learned.left[:NAMED]:
        yield f"left alone: {printable(place)}: {printable(reason)}"
    if len(learned.left) > NAMED:
        yield f"left alone: … and {len(learned.left) - NAMED:,} more"
