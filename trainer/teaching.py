"""The short route: the champion's last layer learns anew, from what it had learned from and from people's corrections.

Invariant: the backbone, and the part that reads faces, stay as they are, so that the replay's features stay true; only
photos of the training split teach, only those of validation choose the threshold.
"""

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from trainer import bundle, calibration, export, features, gradcam, heads, lessons, prepared
from trainer.bundle import Bundle
from trainer.dataset import SPLITS, Dataset, Photo
from trainer.errors import FailureError
from trainer.face_network import FacePart
from trainer.heads import Last
from trainer.lessons import Lessons
from trainer.progress import printable
from trainer.replay import Replay
from trainer.settings import Settings

# `python benchmarks/teaching.py`: of ten photos labelled against all that the model knew, 78 % were learned, and the
# gate let 73 % of such models pass; with weight 3, 45 and 82 %. With heads.LOGISTIC_C = 3e-3 the scores were surer than
# they should be: features that were fine-tuned on these photos separate them all too well.
OWN_WEIGHT = 8.0
# Corrections are what the champion got wrong, and nothing else: where they outweigh what it had learned from, the new
# layer learns to contradict it. 90 corrections of a model of 56 photos, counting 8 times: 70 % right where it had been
# 73; counting half as much as those 56 in all: 90 %.
OWN_SHARE = 0.5
HEAD_C = 1e-3
LAST = "probabilities"


@dataclass(frozen=True)
class Network:
    """A champion's network, cut before its last layer."""

    backbone: keras.Model
    last: Last


@dataclass(frozen=True)
class Taught:
    """A challenger, not published yet; its last layer, beside the champion's."""

    bundle: Bundle
    last: Last
    champion: Last


def teach(settings: Settings, material: Lessons, cache: prepared.Cache, workdir: Path, begun: str) -> Taught:
    """Return the champion with a last layer that learned from the photos, too. Raises BundleError, FailureError."""
    assert material.replay is not None  # noqa: S101  the caller asked
    champion, classes = material.champion, len(material.data.class_names)
    network = opened(champion)
    photos = lessons.scenes(material, cache)
    seen = features.compute(
        network.backbone, _batches(cache, photos), len(photos), workdir / "features" / "own.npy", "batches of features"
    )
    known, own = lessons.merged(material.replay, photos, seen)
    last = fit(known, own, classes)
    joined = heads.join(network.backbone, last, classes)
    pictures = _batches(cache, [photo for photo in photos if photo.split == "train"])
    staged = workdir / "staged"
    shutil.rmtree(staged, ignore_errors=True)
    precision = export.Precision(settings.trainer.precision, pictures)
    export.stage(joined, staged, classes, known, precision, _reader(champion))
    manifest = _manifest(settings, material.data, champion, known, last, begun)
    names = (bundle.MODEL, bundle.DETECTOR, bundle.FACE_MODEL) if manifest.faces else (bundle.MODEL,)
    manifest = manifest.model_copy(update={"files": bundle.hashes(staged)})
    made = Bundle(staged, manifest, *((staged / name).read_bytes() for name in names))
    return Taught(made, last, network.last)


def opened(champion: Bundle) -> Network:
    """Load a champion's network, its hash checked. Raises BundleError, FailureError."""
    network = _loaded(champion, export.KERAS_MODEL)
    try:
        last = network.get_layer(LAST)
    except ValueError:
        raise FailureError(
            f"bundle {champion.manifest.number}: its network has no last layer that could learn anew: `fit` makes a "
            "bundle that has one"
        ) from None
    kernel, bias = last.get_weights()
    return Network(keras.Model(network.input, last.input, name=network.name), (kernel, bias))


def fit(known: Replay, own: NDArray[np.bool_], classes: int, weight: float = 0.0) -> Last:
    """Fit a logistic last layer on the training rows of a replay; `own` ones count `weight` times (0: own_weight)."""
    rows = known.splits == SPLITS.index("train")
    weight = weight or own_weight(int((rows & ~own).sum()), int((rows & own).sum()))
    values, labels = known.features[rows].astype(np.float32), known.labels[rows].astype(np.int64)
    mean, variance = heads.spread(values)
    deviation = np.sqrt(variance)
    values -= mean
    values /= deviation
    weights = balanced(labels, np.where(own[rows], weight, 1.0), classes)
    fitted = LogisticRegression(C=HEAD_C, max_iter=1000).fit(values, labels, sample_weight=weights)
    kernel = (fitted.coef_.T / deviation[:, np.newaxis]).astype(np.float32)
    return kernel, (fitted.intercept_ - mean @ kernel).astype(np.float32)


def own_weight(replayed: int, own: int) -> float:
    """Return how much each of `own` training photos counts beside `replayed` others, which count one each."""
    return min(OWN_WEIGHT, OWN_SHARE * replayed / own) if own and replayed else 1.0


def balanced(labels: NDArray[np.int64], weights: NDArray[np.float64], classes: int) -> NDArray[np.float64]:
    """Return weights by which each class counts alike, so that a hundred corrections to one do not favour it."""
    of_class = np.bincount(labels, weights, classes)
    scaled: NDArray[np.float64] = weights * weights.sum() / (classes * of_class[labels])
    return scaled


def teachable(known: Replay | None, classes: int) -> bool:
    """Tell whether a replay has training photos of every class."""
    if known is None:
        return False
    return len(np.unique(known.labels[known.splits == SPLITS.index("train")])) == classes


def _loaded(champion: Bundle, name: str) -> keras.Model:
    data = champion.read(name)
    try:
        return gradcam.load(data)
    except gradcam.UnexplainableError as error:
        raise FailureError(f"bundle {champion.manifest.number}: {name}: {printable(error)}") from None


def _reader(champion: Bundle) -> FacePart | None:
    rules = champion.manifest.faces
    if rules is None:
        return None
    return FacePart(rules, _loaded(champion, export.FACE_KERAS_MODEL), champion.detector)


def _manifest(
    settings: Settings, data: Dataset, champion: Bundle, known: Replay, last: Last, begun: str
) -> bundle.Manifest:
    counts = {
        split: dict(
            zip(
                data.class_names,
                np.bincount(known.labels[known.splits == i], minlength=len(data.class_names)).tolist(),
                strict=True,
            )
        )
        for i, split in enumerate(SPLITS)
    }
    fields = {
        "format_version": bundle.FORMAT_VERSION,
        "threshold": threshold(known, last, champion.manifest),
        "metrics": {},
        "dataset": bundle.DatasetSummary(hash=data.hash, counts=counts),
        "seed": settings.trainer.seed,
        "versions": export.versions(),
        "parent": champion.manifest.number,
        "created": begun,
    }
    return champion.manifest.model_copy(update=fields)


def threshold(known: Replay, last: Last, champion: bundle.Manifest) -> float | None:
    """Choose the threshold of two classes on the validation photos.

    With faces it stays: it was chosen for what scene and faces say together, and the replay knows the scenes alone.
    """
    was = champion.threshold
    if was is None or champion.faces is not None:
        return was
    rows = known.splits == SPLITS.index("validation")
    if not rows.any():
        return was
    scores = heads.probabilities(known.features[rows], last)
    return calibration.choose_threshold(known.labels[rows].astype(np.int64), scores[:, 1])


def _batches(cache: prepared.Cache, photos: Sequence[Photo]) -> Iterator[NDArray[np.float32]]:
    for start in range(0, len(photos), features.CHUNK):
        part = photos[start : start + features.CHUNK]
        yield np.stack([prepared.Prepared(cache.path(p.sha256)).pixels for p in part]).astype(np.float32)
