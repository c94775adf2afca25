"""The gate: whether a challenger takes the champion's place, from the answers of both on the same photos.

Invariant: pure, and the order of the photos does not matter. A challenger that is right less often than the champion
never takes its place, and neither does one that finds fewer photos of any class than chance explains (McNemar's test:
Psychometrika 12, 1947; exact, on the photos that the two answer differently).
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import comb
from typing import Any

import numpy as np
from numpy.typing import NDArray

LEAST_JUDGES, LEAST_OF_CLASS = 30, 10  # photos: with fewer, no difference that matters can be seen
SIGNIFICANT = 0.05

Answers = NDArray[np.integer[Any]]


@dataclass(frozen=True)
class Share:
    """What both made of some photos: how many there are, how many each got right, and how many it alone got right."""

    name: str
    photos: int
    champion: int
    challenger: int
    gained: int
    lost: int

    @property
    def p(self) -> float:
        """How likely a difference as large as this is by chance alone; two-sided."""
        return mcnemar(self.gained, self.lost)


@dataclass(frozen=True)
class Verdict:
    """Whether the challenger takes over, why, and the figures: of all photos, and of each class."""

    promoted: bool
    reason: str
    overall: Share
    classes: tuple[Share, ...]
    balanced: tuple[float, float]

    @property
    def could_judge(self) -> bool:
        """Whether there were photos enough to tell; where not, nothing was said against the challenger."""
        return not _too_few(self.overall, self.classes)

    def as_json(self) -> dict[str, Any]:
        """Return the figures for a line of decisions.jsonl."""
        shares = {share.name: asdict(share) | {"p": round(share.p, 4)} for share in (self.overall, *self.classes)}
        return {"balanced_accuracy": [round(value, 4) for value in self.balanced], "judges": list(shares.values())}


def decide(
    labels: Answers, champion: Answers, challenger: Answers, class_names: Sequence[str], floor: float
) -> Verdict:
    """Decide from class indices int (N,): what the photos are, and what each of the two answers.

    `floor` is the balanced accuracy below which nothing is promoted.
    """
    classes = tuple(
        _share(name, labels[labels == i], champion[labels == i], challenger[labels == i])
        for i, name in enumerate(class_names)
    )
    overall = _share("all", labels, champion, challenger)
    balanced = _balanced(classes, "champion"), _balanced(classes, "challenger")
    objection = _objection(overall, classes, balanced[1], max(floor, 1 / len(class_names)))
    better = "is right more often than" if overall.challenger > overall.champion else "is right as often as"
    reason = objection or f"The challenger {better} the champion: {_compared(overall)}."
    return Verdict(not objection, reason, overall, classes, balanced)


def mcnemar(gained: int, lost: int) -> float:
    """Return the two-sided p of McNemar's exact test: a fair coin's for each photo that the two answer differently."""
    tosses, fewer = gained + lost, min(gained, lost)
    return min(1.0, 2 * sum(comb(tosses, k) / 2.0**tosses for k in range(fewer + 1)))


def _objection(overall: Share, classes: Sequence[Share], balanced: float, floor: float) -> str:
    """Return what speaks against the challenger; nothing where it may take over."""
    if too_few := _too_few(overall, classes):
        return too_few
    if balanced <= floor:
        return f"The challenger is right on {balanced:.1%} (the mean over the classes); more than {floor:.1%} is asked."
    if overall.challenger < overall.champion:
        return f"The challenger is right less often than the champion: {_compared(overall)}."
    for share in classes:
        if share.lost > share.gained and share.p < SIGNIFICANT:
            return f"The challenger is worse at '{share.name}', beyond chance: {_compared(share)}."
    return ""


def _too_few(overall: Share, classes: Sequence[Share]) -> str:
    """Return of what there are too few photos to judge by; nothing where there are enough."""
    if overall.photos < LEAST_JUDGES:
        return (
            f"Only {overall.photos} photos could judge that neither model has learned from, {LEAST_JUDGES} are needed."
        )
    for share in classes:
        if share.photos < LEAST_OF_CLASS:
            return (
                f"Only {share.photos} photos of '{share.name}' could judge that neither model has learned from, "
                f"{LEAST_OF_CLASS} of each class are needed."
            )
    return ""


def _compared(share: Share) -> str:
    was, now = share.champion / share.photos, share.challenger / share.photos
    differ = f"{share.gained} gained, {share.lost} lost, p = {share.p:.2g}"
    return f"{now:.1%} against {was:.1%} of {share.photos} photos ({differ})"


def _share(name: str, labels: Answers, champion: Answers, challenger: Answers) -> Share:
    was, now = champion == labels, challenger == labels
    counts = (was, now, now & ~was, was & ~now)
    return Share(name, len(labels), *(int(np.count_nonzero(each)) for each in counts))


def _balanced(classes: Sequence[Share], which: str) -> float:
    found = [getattr(share, which) / share.photos for share in classes if share.photos]
    return sum(found) / len(found) if found else 0.0
