"""Compares the precisions in which a bundle's model could be served: size, time per photo, accuracy.

Invariant: all are made from the same model.keras and measured on the same photos, none of which the model learned from
where the bundle says which those were.
"""

import dataclasses
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from trainer import export, gradcam
from trainer.bundle import Bundle, decide
from trainer.dataset import Photo
from trainer.errors import FailureError
from trainer.images import Picture
from trainer.progress import track
from trainer.views import Predictor

NAMES = ("float32", "float16", "int8")
MOST = 500  # photos that are measured on


@dataclass(frozen=True)
class Measured:
    """One precision: megabytes, milliseconds per photo on one thread (median), accuracy, and how far scores moved."""

    name: str
    size: float
    milliseconds: float
    accuracy: float
    moved: float


def spread(photos: Sequence[Photo]) -> list[Photo]:
    """Return at most MOST of the photos, evenly from all classes and hashes."""
    step = max(1, -(-len(photos) // MOST))
    return list(photos[::step])


def pictures(paths: Sequence[Path], loaded: Bundle, max_pixels: int) -> Iterator[Picture]:
    """Decode photos as the bundle's model takes them, each when it is asked for: their details are large."""
    eye = loaded.eye()
    return (eye(path, max_pixels) for path in paths)


def compare(
    loaded: Bundle, samples: Iterable[Picture], shown: Iterable[Picture], labels: Sequence[int]
) -> list[Measured]:
    """Convert and measure each precision of the scene's network in the whole decision; float32 is the reference.

    `samples`, pictures alike, show the int8 converter which values occur.
    """
    sampled = np.stack([picture.pixels for picture in samples]).astype(np.float32)
    try:
        model = gradcam.load(loaded.read("model.keras"))
    except gradcam.UnexplainableError as error:
        raise FailureError(f"bundle {loaded.path}: {error}") from None
    predictors = {}
    for name in track(NAMES, len(NAMES), "conversions"):
        model_file = export.to_litert(model, export.Precision(name, [sampled]))
        predictors[name] = (len(model_file), dataclasses.replace(loaded, model=model_file).predictor())
    scores, seconds = _predict_in_turn(
        {name: predictor for name, (_, predictor) in predictors.items()}, track(shown, len(labels), "photos classified")
    )
    return [
        Measured(
            name,
            predictors[name][0] / 1e6,
            1000 * float(np.median(seconds[name])),
            _accuracy(loaded, scores[name], labels),
            float(np.abs(scores[name] - scores["float32"]).max()),
        )
        for name in NAMES
    ]


def _predict_in_turn(
    predictors: dict[str, Predictor], shown: Iterable[Picture]
) -> tuple[dict[str, NDArray[np.float32]], dict[str, list[float]]]:
    """Give each picture to each predictor in turn, so that a busy machine slows all of them alike."""
    scores: dict[str, list[NDArray[np.float32]]] = {name: [] for name in predictors}
    seconds: dict[str, list[float]] = {name: [] for name in predictors}
    for picture in shown:
        for name, predictor in predictors.items():
            begun = time.perf_counter()
            scores[name].append(predictor(picture).scores)
            seconds[name].append(time.perf_counter() - begun)
    return {name: np.stack(rows) for name, rows in scores.items()}, seconds


def _accuracy(loaded: Bundle, scores: NDArray[np.float32], labels: Sequence[int]) -> float:
    names = loaded.manifest.class_names
    right = [
        names.index(decide(loaded.manifest, row).label) == label for row, label in zip(scores, labels, strict=True)
    ]
    return float(np.mean(right))


def table(measured: Sequence[Measured], photos: int) -> Table:
    """Return the comparison, for a person."""
    shown = Table("precision", title=f"measured on {photos} photos", title_justify="left")
    for name in ("MB", "ms per photo", "accuracy", "scores moved by up to"):
        shown.add_column(name, justify="right")
    for row in measured:
        shown.add_row(row.name, f"{row.size:.1f}", f"{row.milliseconds:.1f}", f"{row.accuracy:.1%}", f"{row.moved:.3f}")
    return shown
