"""Trains the face network on the faces in the photos: each carries the label of its photo.

Invariant: only the faces of training photos teach, only those of validation photos choose when to stop; order and
augmentation of a batch follow from (seed, epoch, index) alone, so that an interrupted run goes on as if it had not
been.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
from numpy.typing import NDArray

from trainer import augment, callbacks, face_network, features, heads, prepared, views
from trainer.callbacks import Stage, history
from trainer.dataset import SPLITS, Dataset, Photo
from trainer.face_network import FacePart
from trainer.features import Batches
from trainer.fit import Fitted
from trainer.manifest import FaceRules
from trainer.plan import Plan
from trainer.progress import line
from trainer.tables import Trainer

STAGE = "faces"
EPOCHS, RATE, BATCH = 5, 1e-3, 64
LEAST = 30  # faces of each class that there must be to learn from; 5 to choose when to stop
LEAST_VALIDATION = 5

Rows = NDArray[np.int_]


@dataclass(frozen=True)
class FaceExamples:
    """The faces of N photos: crops uint8 (M, S, S), on disk; owners int (M,): whose they are; labels int (N,).

    `whole`, bool (N,), says which photos are a face as a whole.
    """

    class_names: tuple[str, ...]
    crops: NDArray[np.uint8]
    owners: Rows
    labels: NDArray[np.int_]
    whole: NDArray[np.bool_]

    def of(self, photos: Rows) -> Rows:
        """Return the rows of the crops of these photos."""
        return np.flatnonzero(np.isin(self.owners, photos))

    def batches(self, rows: Rows, size: int, seed: int | None = None) -> "FaceBatches":
        """Return batches of these crops with the targets of their photos; shuffled and changed with a `seed`."""
        targets = heads.targets(self.labels[self.owners], len(self.class_names))
        return FaceBatches([self.crops], rows, targets, size, seed)


class FaceBatches(Batches):
    """Batches of (crops float32 (N, S, S, 1), targets); with a `seed`, crops are changed, anew in each epoch."""

    def __getitem__(self, index: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return a batch."""
        crops, targets = super().__getitem__(index)
        if self._seed is None:
            return crops[..., np.newaxis], targets
        random = np.random.default_rng((self._seed, self.epoch, index))
        return augment.faces(crops.astype(np.uint8), random), targets


def examples(
    cache: prepared.Cache, photos: Sequence[Photo], class_names: tuple[str, ...], folder: Path, rules: FaceRules
) -> FaceExamples:
    """Collect the faces of prepared photos into one file below `folder`."""
    copies = [prepared.Prepared(cache.path(photo.sha256)) for photo in photos]
    origins = [copy.origin for copy in copies]
    counts = [origin.faces if origin else 0 for origin in origins]
    whole = np.array([bool(origin and origin.is_face) for origin in origins])
    owners = np.repeat(np.arange(len(photos)), counts)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "faces.npy"
    chunks = (copy.crops(count) for copy, count in zip(copies, counts, strict=True) if count)
    features.store(path, (len(owners), rules.size, rules.size), chunks, np.uint8)
    labels = np.array([photo.label for photo in photos], np.int_)
    return FaceExamples(class_names, _mapped(path, len(owners)), owners, labels, whole)


def _mapped(path: Path, count: int) -> NDArray[np.uint8]:
    found: NDArray[np.uint8] = np.load(path, mmap_mode="r" if count else None)  # nothing cannot be mapped
    return found


def enough(shown: FaceExamples, train: Rows, validation: Rows) -> bool:
    """Tell whether there are faces enough to learn from, and say so where there are not."""
    for split, rows, least in (("training", train, LEAST), ("validation", validation, LEAST_VALIDATION)):
        counts = np.bincount(shown.labels[shown.owners[shown.of(rows)]], minlength=len(shown.class_names))
        if counts.min() < least:
            name = shown.class_names[int(counts.argmin())]
            short = f"only {counts.min()} in the {split} photos of {name!r}, {least} are needed"
            line(f"faces: {short}: only scenes are used")
            return False
    return True


def train(
    asked: Trainer, plan: Plan, shown: FaceExamples, train: Rows, validation: Rows, workdir: Path
) -> tuple[keras.Model, Mapping[str, Sequence[float]]]:
    """Train on the faces of the photos `train`; return the network of the best epoch, and its curves."""
    assert plan.faces is not None  # noqa: S101  the caller asked
    classes, rows = len(shown.class_names), shown.of(train)
    network = face_network.pretrained(plan.faces.size, shown.class_names)
    stage = Stage(STAGE, workdir, EPOCHS)
    optimizer = heads.fine_tuning_optimizer(RATE, EPOCHS * -(-len(rows) // BATCH))
    heads.compile_for(network, classes, optimizer, plan.label_smoothing)
    weights = heads.class_weights(shown.labels[shown.owners[rows]], classes)
    callbacks.fit(
        stage,
        asked,
        network,
        shown.batches(rows, BATCH, plan.seed),
        shown.batches(shown.of(validation), BATCH),
        class_names=shown.class_names,
        class_weight=weights,
    )
    return network, history(stage)


def added(asked: Trainer, plan: Plan, data: Dataset, cache: prepared.Cache, fitted: Fitted, workdir: Path) -> Fitted:
    """Return what was fitted with a network for the faces in the photos, where there are enough to learn from."""
    assert plan.faces is not None  # noqa: S101  the caller asked
    photos = data.in_order()
    shown = examples(cache, photos, data.class_names, workdir / "features", plan.faces)
    splits = np.array([SPLITS.index(photo.split) for photo in photos])
    rows = [np.flatnonzero(splits == SPLITS.index(split)) for split in ("train", "validation")]
    if not enough(shown, rows[0], rows[1]):
        return fitted
    network, curves = train(asked, plan, shown, rows[0], rows[1], workdir)
    reader = FacePart(plan.faces, network)
    return dataclasses.replace(fitted, histories={**fitted.histories, STAGE: curves}, reader=reader)


def by_photo(network: keras.Model, shown: FaceExamples, photos: Rows) -> NDArray[np.float32]:
    """Return what the faces of each of these photos, sorted rows, say together: float32 (P, C), NaN without any."""
    rows = shown.of(photos)
    scores = np.full((len(photos), len(shown.class_names)), np.nan, np.float32)
    if len(rows):
        place = np.searchsorted(photos, shown.owners[rows])
        sums = np.zeros(scores.shape)
        np.add.at(sums, place, np.log(np.maximum(face_network.scores(network, shown.crops[rows]), views.LEAST)))
        counts = np.bincount(place, minlength=len(photos))[:, np.newaxis]
        scores = np.where(counts > 0, views.normalised(sums / np.maximum(counts, 1)), scores)
    return scores
