"""A report's verdict in words: what the figures mean for somebody who wants to use the model.

Invariant: nothing is said that the intervals do not bear out.
"""

import numpy as np
from numpy.typing import NDArray

from trainer import calibration
from trainer.evaluate import Metrics

NOTICEABLE = 0.03  # of calibration error, beyond what chance makes
MOST_CHANCE = 0.1  # in a calibration error: with more, nothing can be said for it
FEW = 100  # photos


def percent(share: float | None, digits: int = 0) -> str:
    """Write a share with a narrow no-break space, a dash where there is none."""
    return "\N{EN DASH}" if share is None else f"{100 * share:.{digits}f}\N{NARROW NO-BREAK SPACE}%"


def verdict(metrics: Metrics, confidence: NDArray[np.float32]) -> list[str]:
    """Return sentences, the most important one first; `confidence` (N,) are the scores of the answers."""
    low, high = metrics.interval
    share = f"{percent(metrics.accuracy)} (give or take chance, {percent(low)} to {percent(high)})"
    said = [f"Right on {metrics.right:,} of {metrics.photos:,} photos, {share}."]
    return [*said, *_against_guessing(metrics), *_uneven(metrics), *_honesty(metrics, confidence), *_few(metrics)]


def _against_guessing(metrics: Metrics) -> list[str]:
    most = max(metrics.of_class)
    name, share = metrics.class_names[metrics.of_class.index(most)], most / metrics.photos
    if most == metrics.photos:
        return [f"All photos are of '{name}': how well it tells the classes apart cannot be said from them."]
    if metrics.interval[0] <= share:
        return [f"That is not clearly better than always answering '{name}', which would be right on {percent(share)}."]
    return [f"Always answering '{name}' would be right on {percent(share)}."]


def _uneven(metrics: Metrics) -> list[str]:
    """Name the class that is found best and the one that is found worst, where that is no chance."""
    of = [
        (row[i], sum(row), name)
        for i, (row, name) in enumerate(zip(metrics.confusion, metrics.class_names, strict=True))
    ]
    found = sorted((right / photos, calibration.wilson(right, photos), name) for right, photos, name in of if photos)
    (worst, (_, worst_high), weak), (best, (best_low, _), strong) = found[0], found[-1]
    if worst_high >= best_low:
        return []
    less = f"than of those of '{weak}' ({percent(worst)})"
    return [f"It finds more of the photos of '{strong}' ({percent(best)}) {less}."]


def _honesty(metrics: Metrics, confidence: NDArray[np.float32]) -> list[str]:
    if metrics.ece is None:
        return []
    sure, chance = float(confidence.mean()), calibration.ece_by_chance(confidence)
    if metrics.ece <= chance + NOTICEABLE:
        most = percent(0.8)
        honest = f"As far as these photos tell, its scores are honest: {most} sure is right about {most} of the time."
        return [honest] if chance <= MOST_CHANCE else []
    if abs(sure - metrics.accuracy) < metrics.ece / 2:
        return [f"Its scores are only roughly how often it is right: {percent(metrics.ece)} off, on average."]
    surer = "surer" if sure > metrics.accuracy else "less sure"
    return [f"It is {surer} than it should be: {percent(sure)} on average, and right on {percent(metrics.accuracy)}."]


def _few(metrics: Metrics) -> list[str]:
    return [] if metrics.photos >= FEW else ["So few photos tell little: look at the intervals."]
