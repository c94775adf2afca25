"""What a report says about the two views: accuracy by what was found in a picture, and by who answers.

Invariant: every share has its interval, and groups without photos are left out.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trainer import calibration
from trainer.bundle import Bundle
from trainer.evaluate import Predictions, decided

GROUPS = {0: "no face", 1: "one face", 2: "two faces"}
MANY = "three faces and more"
WHOLE = "a face as a whole"
SURE = "a scene that was sure alone"


@dataclass(frozen=True)
class Share:
    """A share of photos with its 95 % interval."""

    name: str
    right: int
    photos: int

    @property
    def value(self) -> float | None:
        """The share; None of no photos."""
        return self.right / self.photos if self.photos else None

    @property
    def interval(self) -> tuple[float, float]:
        """Its interval, see `calibration.wilson`."""
        return calibration.wilson(self.right, self.photos)


def by_faces(predictions: Predictions, right: NDArray[np.bool_]) -> list[Share]:
    """Return the share of right answers by how many faces were found; nothing where nobody looked for any."""
    if predictions.boxes is None:
        return []
    whole = np.isnan(predictions.views["scene"][:, 0])
    counts = np.array([-1 if boxes is None else len(boxes) for boxes in predictions.boxes])
    groups = {name: (counts == count) & ~whole for count, name in GROUPS.items()}
    groups |= {MANY: counts > max(GROUPS), WHOLE: whole, SURE: counts < 0}
    return [Share(name, int(right[rows].sum()), int(rows.sum())) for name, rows in groups.items() if rows.any()]


def by_view(bundle: Bundle, predictions: Predictions, answers: NDArray[np.int_]) -> list[Share]:
    """Return the share of right answers of each view, and of both, on the pictures in which both saw something."""
    if predictions.boxes is None:
        return []
    both = np.all([~np.isnan(scores[:, 0]) for scores in predictions.views.values()], axis=0)
    labels = predictions.labels[both]

    def each() -> Iterator[tuple[str, NDArray[np.int_]]]:
        for name, scores in predictions.views.items():
            yield f"{name} alone", decided(bundle, scores[both])
        yield "both together", answers[both]

    return [Share(name, int((found == labels).sum()), len(labels)) for name, found in each() if both.any()]
