"""Measures a bundle as it will serve: files through `images.decode`, LiteRT and `decide`, never a Keras shortcut.

Invariant: every figure comes from the same decisions, and accuracy always has its interval: on few photos it says
little, and has to look so. Whatever is measured, the JSON of it is finite.
"""

import math
import os
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.table import Table
from rich.text import Text
from sklearn.metrics import roc_auc_score

from trainer import calibration, images
from trainer.bundle import Bundle, decide
from trainer.errors import FailureError, InputError
from trainer.faces import Box
from trainer.photos import in_chunks
from trainer.progress import printable, track
from trainer.views import Eye, Judged, Predictor


@dataclass(frozen=True)
class Predictions:
    """What a bundle makes of N photos of C classes: labels int (N,), scores float32 (N, C), times in ms, float (N,).

    `widths` and `heights`, int (N,), are those of the full upright pictures; 0 where they are not known. `views` has
    the scores of each view, NaN where it had nothing to see; `boxes` the faces of each photo, None where nobody looked
    for any: at all, or in this photo.
    """

    class_names: tuple[str, ...]
    paths: tuple[Path, ...]
    labels: NDArray[np.int_]
    scores: NDArray[np.float32]
    widths: NDArray[np.int_]
    heights: NDArray[np.int_]
    decode_ms: NDArray[np.float64]
    predict_ms: NDArray[np.float64]
    max_pixels: int = 100_000_000  # that the pictures may have, to be decoded once more
    views: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    boxes: tuple[tuple[Box, ...] | None, ...] | None = None


@dataclass(frozen=True)
class Metrics:
    """What was measured. `confusion[i][j]` counts photos of class i taken for class j; `auc`, `ece` may not exist."""

    class_names: tuple[str, ...]
    confusion: tuple[tuple[int, ...], ...]
    auc: float | None
    ece: float | None = None

    @property
    def photos(self) -> int:
        """How many photos were measured on."""
        return sum(map(sum, self.confusion))

    @property
    def right(self) -> int:
        """How many of them got the right answer."""
        return sum(row[i] for i, row in enumerate(self.confusion))

    @property
    def accuracy(self) -> float:
        """The share of right answers."""
        return self.right / self.photos

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the accuracy, see `calibration.wilson`."""
        return calibration.wilson(self.right, self.photos)

    @property
    def of_class(self) -> tuple[int, ...]:
        """How many photos of each class there were."""
        return tuple(map(sum, self.confusion))

    @property
    def taken_for(self) -> tuple[int, ...]:
        """How many photos were taken for each class."""
        return tuple(map(sum, zip(*self.confusion, strict=True)))

    @property
    def recalls(self) -> tuple[float | None, ...]:
        """The share of each class's photos that was found; None for a class without photos."""
        return tuple(row[i] / sum(row) if sum(row) else None for i, row in enumerate(self.confusion))

    @property
    def precisions(self) -> tuple[float | None, ...]:
        """The share of right answers among those that said this class; None where there was no such answer."""
        return tuple(self.confusion[i][i] / taken if taken else None for i, taken in enumerate(self.taken_for))

    @property
    def balanced_accuracy(self) -> float:
        """The mean over the classes that occur of the share of right answers."""
        found = [recall for recall in self.recalls if recall is not None]
        return sum(found) / len(found)

    @property
    def balanced_interval(self) -> tuple[float, float]:
        """The 95 % interval of the balanced accuracy: Wilson's, combined (MOVER: Zou & Donner, Stat. in Med. 2008)."""
        edges = [(row[i], sum(row)) for i, row in enumerate(self.confusion) if sum(row)]
        below = sum((right / all_ - calibration.wilson(right, all_)[0]) ** 2 for right, all_ in edges)
        above = sum((right / all_ - calibration.wilson(right, all_)[1]) ** 2 for right, all_ in edges)
        middle = self.balanced_accuracy
        return max(0.0, middle - math.sqrt(below) / len(edges)), min(1.0, middle + math.sqrt(above) / len(edges))

    def as_json(self) -> dict[str, Any]:
        """Return the metrics for a manifest."""
        by_class = zip(self.class_names, self.of_class, self.precisions, self.recalls, strict=True)
        return {
            "photos": self.photos,
            "accuracy": round(self.accuracy, 4),
            "accuracy_interval_95": [round(edge, 4) for edge in self.interval],
            "balanced_accuracy": round(self.balanced_accuracy, 4),
            "auc": _rounded(self.auc),
            "ece": _rounded(self.ece),
            "confusion": [list(row) for row in self.confusion],
            "classes": {
                name: {"photos": photos, "precision": _rounded(precision), "recall": _rounded(recall)}
                for name, photos, precision, recall in by_class
            },
        }


def predict(bundle: Bundle, photos: Sequence[tuple[Path, int]], max_pixels: int) -> Predictions:
    """Predict (path, class index) pairs with the bundle's LiteRT networks, one of each per core.

    Raises InputError where there are no photos, FailureError where one, checked before, cannot be used any more.
    """
    if not photos:
        raise InputError("there is no photo to measure on")
    own, eye = threading.local(), bundle.eye()

    def one(path: Path) -> _One:
        if not hasattr(own, "predict"):
            own.predict = bundle.predictor()
        return _predicted(bundle, eye, own.predict, path, max_pixels)

    names, paths = bundle.manifest.class_names, tuple(path for path, _ in photos)
    scores = np.empty((len(paths), len(names)), np.float32)
    views = {name: np.full(scores.shape, np.nan, np.float32) for name in bundle.manifest.views}
    facts, boxes = np.empty((len(paths), 4)), []
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for i, found in enumerate(track(in_chunks(pool, one, paths), len(paths), "photos classified")):
            scores[i], facts[i] = found.judged.scores, found.facts
            boxes.append(found.judged.boxes)
            for name, of_view in found.judged.views.items():
                views[name][i] = of_view
    labels, (widths, heights) = np.array([label for _, label in photos]), facts[:, :2].T.astype(int)
    looked = tuple(boxes) if bundle.manifest.faces else None
    times = facts[:, 2], facts[:, 3]
    return Predictions(names, paths, labels, scores, widths, heights, *times, max_pixels, views, looked)


class _One(NamedTuple):
    """One photo: what was made of it; its width, height, decode_ms and predict_ms."""

    judged: Judged
    facts: tuple[float, ...]


def _predicted(bundle: Bundle, eye: Eye, predict: Predictor, path: Path, max_pixels: int) -> _One:
    started = time.perf_counter()
    picture = _decoded(eye, path, max_pixels)
    decoded = time.perf_counter()
    judged = predict(picture)
    done = time.perf_counter()
    if not np.isfinite(judged.scores).all():
        raise FailureError(f"{printable(path)}: bundle {bundle.manifest.number} gives no number for it")
    return _One(judged, (picture.width, picture.height, 1e3 * (decoded - started), 1e3 * (done - decoded)))


def _decoded(eye: Eye, path: Path, max_pixels: int) -> images.Picture:
    try:
        return eye(path, max_pixels)
    except (images.ImageError, OSError) as error:
        why = (error.strerror if isinstance(error, OSError) else None) or error
        raise FailureError(
            f"{printable(path)}: it could be read before, and cannot any more ({printable(why)}): run the command again"
        ) from None


def decided(bundle: Bundle, scores: NDArray[np.float32]) -> NDArray[np.int_]:
    """Return the index of the class that `decide` chooses for each row of `scores` (N, C)."""
    index = {name: i for i, name in enumerate(bundle.manifest.class_names)}
    return np.array([index[decide(bundle.manifest, row).label] for row in scores.tolist()], int)


def measure(bundle: Bundle, predictions: Predictions) -> Metrics:
    """Compare what is decided with the labels."""
    names, labels, scores = bundle.manifest.class_names, predictions.labels, predictions.scores
    answers = decided(bundle, scores)
    confusion = np.zeros((len(names), len(names)), int)
    np.add.at(confusion, (labels, answers), 1)
    confidence = scores[np.arange(len(scores)), answers]
    error = calibration.ece(confidence, answers == labels)
    return Metrics(names, tuple(tuple(map(int, row)) for row in confusion), _auc(labels, scores), error)


def _auc(labels: NDArray[np.int_], scores: NDArray[np.float32]) -> float | None:
    """Return the area under the ROC curve, the mean over one-vs-rest; None where only one class occurs."""
    classes = np.unique(labels)
    if len(classes) == 1:
        return None
    return float(np.mean([roc_auc_score(labels == c, scores[:, c]) for c in classes]))


def _rounded(figure: float | None) -> float | None:
    return None if figure is None else round(figure, 4)


def tables(metrics: Metrics) -> tuple[Table, Table]:
    """Return the figures and the confusion matrix, for a person."""
    figures = Table(title=f"measured on {metrics.photos} photos", title_justify="left", show_header=False)
    figures.add_row("accuracy", _with_interval(metrics.accuracy, metrics.interval))
    figures.add_row("balanced accuracy", _with_interval(metrics.balanced_accuracy, metrics.balanced_interval))
    figures.add_row("AUC", "only one class occurs" if metrics.auc is None else f"{metrics.auc:.3f}")
    if metrics.ece is not None:
        figures.add_row("calibration error (ECE)", f"{metrics.ece:.3f}")
    confusion = Table(title="confusion matrix", title_justify="left")
    confusion.add_column("photos of")
    for name in metrics.class_names:
        confusion.add_column(Text(f"taken for {name}"), justify="right")
    confusion.add_column("found", justify="right")
    for name, row, recall in zip(metrics.class_names, metrics.confusion, metrics.recalls, strict=True):
        confusion.add_row(Text(name), *map(str, row), _percent(recall))
    confusion.add_section()
    confusion.add_row("right", *map(_percent, metrics.precisions), "")
    return figures, confusion


def _with_interval(share: float, interval: tuple[float, float]) -> str:
    return f"{share:.1%}  (95 % interval {interval[0]:.1%} to {interval[1]:.1%})"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.0%}"
