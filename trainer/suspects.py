"""Labels that look wrong: confident learning (Northcutt, Jiang, Chuang, JAIR 2021) on the features of a backbone.

Invariant: a photo is judged by a classifier that saw neither it nor its near duplicates, so a wrong label cannot speak
for itself. The same features, labels and seed give the same answer.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

C = 3e-3  # as heads.LOGISTIC_C, which cannot be had without TensorFlow
FOLDS = 5

Labels = NDArray[np.integer[Any]]
Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True, slots=True)
class Suspect:
    """Photo `index`, labelled `given`; `likely` is what it looks like, with that probability."""

    index: int
    given: int
    likely: int
    probability: float


def find(
    features: Floats, labels: Labels, seed: int, folds: int = FOLDS, groups: Labels | None = None
) -> list[Suspect]:
    """Return the photos whose labels look wrong, the surest first.

    `features` (N, F), `labels` class indices (N,); photos with the same number in `groups` (N,) are near duplicates. A
    label is suspected where another class is likely, by the measure of that class's own photos (their mean
    probability), and likelier than the given one. Classes with fewer photos than `folds` are not judged.
    """
    chances = out_of_fold(features, labels, seed, folds, groups)
    judged = np.flatnonzero(~np.isnan(chances[np.arange(len(labels)), labels]))
    if not len(judged):
        return []
    typical = np.array([_typical(chances[judged], labels[judged], c) for c in range(chances.shape[1])])
    confident = np.where(chances[judged] >= typical, chances[judged], -1.0)
    likely = confident.argmax(axis=1)
    own = chances[judged, labels[judged]]
    best = confident.max(axis=1)
    wrong = np.flatnonzero((likely != labels[judged]) & (best > own))
    ranked = wrong[np.lexsort((judged[wrong], own[wrong] - best[wrong]))]
    return [Suspect(int(judged[i]), int(labels[judged[i]]), int(likely[i]), float(best[i])) for i in ranked]


def worst(features: Floats, labels: Labels, share: float, seed: int, groups: Labels | None = None) -> NDArray[np.int64]:
    """Return, sorted, the `share` of all rows whose own label got the lowest probability; see `find`."""
    chances = out_of_fold(features, labels, seed, FOLDS, groups)
    own = chances[np.arange(len(labels)), labels]
    order = np.argsort(np.where(np.isnan(own), np.inf, own), kind="stable")
    count = min(round(share * len(labels)), int(np.count_nonzero(~np.isnan(own))))
    return np.sort(order[:count]).astype(np.int64)


def out_of_fold(
    features: Floats, labels: Labels, seed: int, folds: int = FOLDS, groups: Labels | None = None
) -> NDArray[np.float64]:
    """Return each photo's class probabilities (N, C) by a logistic regression on the other folds.

    Rows of photos that were not judged, and columns of classes that were not, are NaN.
    """
    from sklearn.model_selection import StratifiedGroupKFold  # noqa: PLC0415  a second

    together = np.arange(len(labels)) if groups is None else groups
    count = int(labels.max()) + 1 if len(labels) else 0
    chances = np.full((len(labels), count), np.nan)
    known = [c for c in range(count) if len(np.unique(together[labels == c])) >= folds]
    rows = np.flatnonzero(np.isin(labels, known))
    if len(known) < 2:  # noqa: PLR2004  nothing that a label could be confused with
        return chances
    split = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    for others, held_out in split.split(rows, labels[rows], together[rows]):
        if len(np.unique(labels[rows[others]])) == len(known):
            classifier = _classifier().fit(_float32(features[rows[others]]), labels[rows[others]])
            chances[np.ix_(rows[held_out], known)] = classifier.predict_proba(_float32(features[rows[held_out]]))
    return chances


def _classifier() -> Any:
    from sklearn.linear_model import LogisticRegression  # noqa: PLC0415
    from sklearn.pipeline import make_pipeline  # noqa: PLC0415
    from sklearn.preprocessing import StandardScaler  # noqa: PLC0415

    return make_pipeline(StandardScaler(), LogisticRegression(C=C, max_iter=1000))


def _float32(features: Floats) -> NDArray[np.float32]:
    return np.asarray(features, np.float32)


def _typical(chances: NDArray[np.float64], labels: Labels, c: int) -> float:
    """Return the mean probability of class `c` among its own photos; beyond reach where none was judged."""
    mine = chances[labels == c, c]
    return float(mine.mean()) if len(mine) else np.inf
