"""Measures a bundle as it will serve: files through `images.decode`, LiteRT and `decide`, never a Keras shortcut.

Invariant: every figure comes from the same decisions, and accuracy always has its interval: on few photos it says
little, and has to look so.
"""

import math
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table
from rich.text import Text
from sklearn.metrics import roc_auc_score

from trainer import images
from trainer.bundle import Bundle, decide
from trainer.photos import in_chunks
from trainer.progress import track

Z_95 = 1.959964  # of the normal distribution, two-sided


@dataclass(frozen=True)
class Metrics:
    """What was measured. `confusion[i][j]` counts photos of class i taken for class j; `auc` may not exist."""

    class_names: tuple[str, ...]
    confusion: tuple[tuple[int, ...], ...]
    auc: float | None

    @property
    def photos(self) -> int:
        """How many photos were measured on."""
        return sum(map(sum, self.confusion))

    @property
    def accuracy(self) -> float:
        """The share of right answers."""
        return sum(row[i] for i, row in enumerate(self.confusion)) / self.photos

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the accuracy (Wilson, "Probable inference", JASA 1927)."""
        n, p = self.photos, self.accuracy
        centre = p + Z_95**2 / (2 * n)
        half = Z_95 * math.sqrt(p * (1 - p) / n + Z_95**2 / (4 * n**2))
        return (centre - half) / (1 + Z_95**2 / n), (centre + half) / (1 + Z_95**2 / n)

    @property
    def balanced_accuracy(self) -> float:
        """The mean over the classes that occur of the share of right answers."""
        recalls = [row[i] / sum(row) for i, row in enumerate(self.confusion) if sum(row)]
        return sum(recalls) / len(recalls)

    def as_json(self) -> dict[str, Any]:
        """Return the metrics for a manifest."""
        return {
            "photos": self.photos,
            "accuracy": round(self.accuracy, 4),
            "accuracy_interval_95": [round(edge, 4) for edge in self.interval],
            "balanced_accuracy": round(self.balanced_accuracy, 4),
            "auc": None if self.auc is None else round(self.auc, 4),
            "confusion": [list(row) for row in self.confusion],
        }


def evaluate(bundle: Bundle, photos: Sequence[tuple[Path, int]], max_pixels: int) -> Metrics:
    """Predict (path, class index) pairs with the bundle's LiteRT model, one interpreter per core, and measure.

    Raises ImageError or OSError where a photo, checked before, cannot be read any more.
    """
    own = threading.local()

    def predict(path: Path) -> NDArray[np.float32]:
        if not hasattr(own, "predict"):
            own.predict = bundle.predictor()
        pixels = images.decode(path, size=bundle.manifest.input_size, max_pixels=max_pixels).pixels
        scores: NDArray[np.float32] = own.predict(pixels)
        return scores

    with ThreadPoolExecutor() as pool:
        results = in_chunks(pool, predict, [path for path, _ in photos])
        scores = np.array(list(track(results, len(photos), "photos classified")))
    return measure(bundle, np.array([label for _, label in photos]), scores)


def measure(bundle: Bundle, labels: NDArray[np.int_], scores: NDArray[np.float32]) -> Metrics:
    """Compare decisions on `scores` (N, C) with `labels` (N,)."""
    names = bundle.manifest.class_names
    confusion = np.zeros((len(names), len(names)), int)
    for label, row in zip(labels, scores, strict=True):
        confusion[label, names.index(decide(bundle.manifest, row).label)] += 1
    return Metrics(names, tuple(tuple(map(int, row)) for row in confusion), _auc(labels, scores))


def _auc(labels: NDArray[np.int_], scores: NDArray[np.float32]) -> float | None:
    """Return the area under the ROC curve, the mean over one-vs-rest; None where only one class occurs."""
    classes = np.unique(labels)
    if len(classes) == 1:
        return None
    return float(np.mean([roc_auc_score(labels == c, scores[:, c]) for c in classes]))


def tables(metrics: Metrics) -> tuple[Table, Table]:
    """Return the figures and the confusion matrix, for a person."""
    low, high = metrics.interval
    figures = Table(title=f"measured on {metrics.photos} photos", title_justify="left", show_header=False)
    figures.add_row("accuracy", f"{metrics.accuracy:.1%}  (95 % interval {low:.1%} to {high:.1%})")
    figures.add_row("balanced accuracy", f"{metrics.balanced_accuracy:.1%}")
    figures.add_row("AUC", "only one class occurs" if metrics.auc is None else f"{metrics.auc:.3f}")
    confusion = Table(title="confusion matrix", title_justify="left")
    confusion.add_column("photos of")
    for name in metrics.class_names:
        confusion.add_column(Text(f"taken for {name}"), justify="right")
    for name, row in zip(metrics.class_names, metrics.confusion, strict=True):
        confusion.add_row(Text(name), *map(str, row))
    return figures, confusion
