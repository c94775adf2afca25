"""How honest scores are, and from which score on a class is answered: statistics on numpy arrays.

Invariant: the result does not depend on the order of the photos; everything is finite.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BINS = 15
Z_95 = 1.959964  # of the normal distribution, two-sided
DEFAULT, LOWEST, HIGHEST = 0.5, 0.3, 0.7  # thresholds
CLOSEST = 1e-6  # that a score is taken to come to 0 or 1
BISECTIONS = 30
LEAST_OF_CLASS = 25  # photos


@dataclass(frozen=True)
class Bin:
    """Photos of about the same confidence: their mean confidence, the share that is right, and how many they are."""

    confidence: float
    accuracy: float
    count: int


def wilson(right: int, photos: int) -> tuple[float, float]:
    """Return the 95 % interval of a share (Wilson, "Probable inference", JASA 1927); 0 to 1 for no photos at all."""
    if not photos:
        return 0.0, 1.0
    share = right / photos
    centre = share + Z_95**2 / (2 * photos)
    half = Z_95 * math.sqrt(share * (1 - share) / photos + Z_95**2 / (4 * photos**2))
    low, high = (centre - half) / (1 + Z_95**2 / photos), (centre + half) / (1 + Z_95**2 / photos)
    return max(0.0, low), min(1.0, high)  # rounding alone leaves 0 to 1


def reliability(confidence: NDArray[np.floating], correct: NDArray[np.bool_], bins: int = BINS) -> tuple[Bin, ...]:
    """Group photos by `confidence` (N,) into at most `bins` of about the same number; equal ones stay together."""
    return tuple(
        Bin(float(sure.mean()), float(right.mean()), len(sure)) for sure, right in _grouped(confidence, correct, bins)
    )


def ece(confidence: NDArray[np.floating], correct: NDArray[np.bool_], bins: int = BINS) -> float:
    """Return the expected calibration error: how far, on average, confidence and accuracy are apart.

    Bins of equal mass (Nguyen & O'Connor, EMNLP 2015). On few photos much of it is chance: compare `ece_by_chance`.
    """
    found = reliability(confidence, correct, bins)
    return sum(bin_.count * abs(bin_.accuracy - bin_.confidence) for bin_ in found) / len(confidence)


def ece_by_chance(confidence: NDArray[np.floating], bins: int = BINS) -> float:
    """Return about the error that perfectly honest confidences would show on so many photos (normal approximation)."""
    spreads = [float((sure * (1 - sure)).sum()) for sure, _ in _grouped(confidence, confidence >= 0, bins)]
    return math.sqrt(2 / math.pi) * sum(map(math.sqrt, spreads)) / len(confidence)


def choose_threshold(labels: NDArray[np.integer], scores: NDArray[np.floating]) -> float:
    """Return from which score of class 1 on to answer class 1, chosen on validation photos for balanced accuracy.

    `labels` (N,) are 0 or 1, `scores` (N,) the probabilities of class 1. The threshold that is best on so few photos
    follows single ones of them, even as the median over a bootstrap: where 0.5 was right, that left it on six draws of
    ten and lost up to a quarter of a point (simulated). So the log-odds are asked, all photos at once, by how much they
    are too high (logistic regression with nothing but an intercept, both classes weighing the same), which chose
    nearer to the best threshold on a third of the photos. 0.5 stays where a class has too few photos, where the shift
    is within its standard error, or where no photo more is right with it.
    """
    of_class = [np.sort(scores[labels == label].astype(np.float64)) for label in (0, 1)]
    if min(map(len, of_class)) < LEAST_OF_CLASS:
        return DEFAULT
    shift, error = _shift(of_class)
    chosen = round(1 / (1 + math.exp(-shift)), 3)
    return chosen if abs(shift) > error and _gain(of_class, chosen) > 0 else DEFAULT


def _grouped(
    confidence: NDArray[np.floating], correct: NDArray[np.bool_], bins: int
) -> list[tuple[NDArray[np.float64], NDArray[np.bool_]]]:
    order = np.argsort(confidence, kind="stable")
    ordered = confidence[order].astype(np.float64)
    cuts = ordered[[len(ordered) * i // bins for i in range(1, bins)]]
    starts = np.unique(np.searchsorted(ordered, cuts))
    groups = zip(np.split(ordered, starts), np.split(correct[order], starts), strict=True)
    return [(sure, right) for sure, right in groups if len(sure)]


def _shift(of_class: list[NDArray[np.float64]]) -> tuple[float, float]:
    """Return by how much the log-odds of class 1 are too high, as far as the limits go, and its standard error.

    The error is the robust one (White, Econometrica 1980), which does not trust the scores themselves.
    """
    scores = np.clip(np.concatenate(of_class), CLOSEST, 1 - CLOSEST)
    odds = np.log(scores / (1 - scores))
    targets = np.repeat((0.0, 1.0), [len(of) for of in of_class])
    weights = np.repeat([0.5 / len(of) for of in of_class], [len(of) for of in of_class])
    low, high = math.log(LOWEST / (1 - LOWEST)), math.log(HIGHEST / (1 - HIGHEST))
    for _ in range(BISECTIONS):  # the more is taken off, the lower are the probabilities: one root
        middle = (low + high) / 2
        too_high = float(weights @ (_sigmoid(odds - middle) - targets)) > 0
        low, high = (middle, high) if too_high else (low, middle)
    found = _sigmoid(odds - low)
    error = math.sqrt(float((weights * (found - targets)) @ (weights * (found - targets))))
    return low, error / float(weights @ (found * (1 - found)))


def _sigmoid(odds: NDArray[np.float64]) -> NDArray[np.float64]:
    return 1 / (1 + np.exp(-odds))


def _gain(of_class: list[NDArray[np.float64]], threshold: float) -> float:
    """Return how much more balanced accuracy `threshold` gives here than 0.5."""
    more = [float((scores >= threshold).mean() - (scores >= DEFAULT).mean()) for scores in of_class]
    return (more[1] - more[0]) / 2
