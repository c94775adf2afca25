"""From outcomes to places: the line that is journalled for a file, and the move that follows it.

Invariant: sync, then the line, then the move. Each step can be repeated after a fault: a batch that was interrupted
anywhere goes on with the same ids, and a move is only made to the place that a durable line names.
"""

import errno
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from daemon.batch import Batch, Claimed, Move
from daemon.events import Faces, Line
from daemon.inspection import Outcome
from daemon.journal import Journal
from daemon.spool import Spool
from daemon.tray import INBOX, REJECTED, REVIEW

ROUNDS = 100


class Decider(Protocol):
    """What the lines need from a classifier."""

    @property
    def number(self) -> int: ...
    @property
    def classes(self) -> Sequence[str]: ...
    @property
    def threshold(self) -> float | None: ...
    def decide(self, scores: tuple[float, ...]) -> tuple[str, float]: ...


@dataclass(frozen=True)
class Review:
    """What waits in review/ for a person: what the model is less sure of than `below`, and a `fraction` of the rest."""

    below: float = 0.0
    fraction: float = 0.0

    def audits(self, sha256: str | None) -> bool:
        """Tell whether a photo is one of the fraction: its last 64 bits decide, as the first ones do for the split."""
        return self.fraction > 0 and sha256 is not None and int(sha256[-16:], 16) < self.fraction * 2**64


def decision(claimed: Claimed, batch: Batch, outcome: Outcome, decider: Decider, review: Review) -> Line:
    """Return the decision line of one file; its destination is still only the folder."""
    report = outcome.report
    line = Line(
        event="rejected", id=claimed.id, batch=batch.name, file=claimed.file, source=f"{INBOX}/{claimed.file}",
        destination=REJECTED, bytes=report.bytes, width=report.width, height=report.height, format=report.format,
        sha256=report.sha256, queued_ms=claimed.queued_ms, decode_ms=report.decode_ms, infer_ms=outcome.infer_ms,
        attempt=batch.attempt, error_code=report.code, error=report.error,
    )  # fmt: skip
    if outcome.scores is None:
        return line
    try:
        label, score = decider.decide(outcome.scores)
    except ValueError as error:
        return line.model_copy(update={"error_code": "no_score", "error": str(error), "model": decider.number})
    audited = score >= review.below and review.audits(report.sha256)
    is_sure = score >= review.below and not audited
    return line.model_copy(update={
        "event": "sorted" if is_sure else "review", "destination": label if is_sure else REVIEW, "label": label,
        "score": round(score, 6), "scores": _named(decider, outcome.scores), "threshold": decider.threshold,
        "model": decider.number, "audit": audited or None, **_faces(outcome, decider),
    })  # fmt: skip


def _named(decider: Decider, scores: Sequence[float]) -> dict[str, float]:
    return {name: round(score, 6) for name, score in zip(decider.classes, scores, strict=True)}


def _faces(outcome: Outcome, decider: Decider) -> dict[str, Any]:
    """Return what was seen in the faces, and the scores of each view, where anybody looked for faces."""
    if outcome.boxes is None:
        return {}
    found = Faces(1 if outcome.is_face else len(outcome.boxes), outcome.boxes, outcome.is_face)
    return {"faces": found, "views": {name: _named(decider, scores) for name, scores in outcome.views.items()}}


@dataclass
class Delivery:
    """A batch whose outcomes are known, on its way out of `.work`."""

    batch: Batch
    lines: list[Line]
    _journalled: bool = False
    _reserved: set[str] = field(default_factory=set)

    def run(self, spool: Spool, journal: Journal, own: int) -> list[Line]:
        """Journal and deliver; returns the decision lines, with the places where the files are now.

        Raises OSError; then it can be run again.
        """
        if not self._journalled:
            spool.make_durable()
            self._reserved.clear()
            claimed = {c.id: c for c in self.batch.files}
            lines = [self._placed(spool, claimed[line.id or ""], line) for line in self.lines]
            journal.append(lines)
            self.lines, self._journalled = lines, True
        carry_out(spool, journal, own, self.batch.folder, self.lines)
        spool.finish(self.batch)
        return self.lines

    def _placed(self, spool: Spool, claimed: Claimed, line: Line) -> Line:
        folder = (line.destination or "").split("/")[0]
        return line.model_copy(update={"destination": spool.choose(folder, claimed, self._reserved)})


def carry_out(spool: Spool, journal: Journal, own: int, folder: str, lines: list[Line]) -> None:
    """Move the files of batch directory `folder` in directory fd `own` to where their durable lines say.

    Where a name was taken in between, a `redirected` line comes first; from then on `lines` name the new place, also
    for another try. Raises OSError.
    """
    at = {line.id: index for index, line in enumerate(lines)}
    moves = [Move(Claimed(line.id or "", line.file or ""), line.destination or "") for line in lines]
    for _ in range(ROUNDS):
        moves = spool.deliver(own, folder, moves)
        if not moves:
            return
        reserved = set[str]()
        moves = [_redirect(spool, move, reserved) for move in moves]
        journal.append([_redirected(lines[at[move.claimed.id]], move) for move in moves])
        for move in moves:
            index = at[move.claimed.id]
            lines[index] = lines[index].model_copy(update={"destination": move.destination})
    raise OSError(errno.EEXIST, f"{os.strerror(errno.EEXIST)}: {moves[0].destination} and {ROUNDS} names before it")


def _redirect(spool: Spool, move: Move, reserved: set[str]) -> Move:
    return Move(move.claimed, spool.choose(move.destination.split("/")[0], move.claimed, reserved))


def _redirected(line: Line, move: Move) -> Line:
    return Line(
        event="redirected", id=line.id, batch=line.batch, file=line.file, source=line.source,
        destination=move.destination,
    )  # fmt: skip
