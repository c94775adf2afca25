"""Trains a network on a view of prepared photos: a head and the upper blocks of a backbone, or all of a network.

Invariant: only the training and validation photos teach anything here; the features of the test photos are computed for
the bundle's replay, and not looked at.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from trainer import augment, board, callbacks, features, heads, input_pipeline, memory, model, transfer
from trainer.callbacks import EpochStream, Stage, history
from trainer.dataset import SPLITS, Photo
from trainer.face_network import FacePart
from trainer.features import Maps, Parts
from trainer.plan import Plan
from trainer.tables import Trainer

SHOWN = 16  # photos in TensorBoard

__all__ = ["Fitted", "Plan", "View", "examples", "fit"]


@dataclass(frozen=True)
class View:
    """The photos of a run on disk: `root/<split>/<class>/<sha256>.png`.

    `labels` has those of each split, in order; `kin` (N,), in the order of SPLITS, the same number for near duplicates.
    """

    root: Path
    class_names: tuple[str, ...]
    labels: Mapping[str, Sequence[int]]
    kin: NDArray[np.int_]

    def stream(self, split: str, size: int, batch_size: int, seed: int | None = None) -> tf.data.Dataset:
        """Return a split as batches; see input_pipeline.stream."""
        return input_pipeline.stream(self.root / split, self.class_names, size, batch_size, seed)

    def batches(self, plan: Plan, splits: Sequence[str]) -> Iterator[NDArray[np.float32]]:
        """Yield the pictures of these splits in order, a few at a time."""
        for split in splits:
            if not self.labels[split]:
                continue  # Keras refuses a folder without pictures
            for images, _ in self.stream(split, plan.image_size, features.CHUNK).as_numpy_iterator():
                yield images

    def thumbnails(self, split: str, side: int) -> Iterator[NDArray[np.uint8]]:
        """Yield the pictures of a split, uint8 (n, side, side, 3), in order, a few at a time."""
        for images, _ in self.stream(split, side, features.CHUNK).as_numpy_iterator():
            yield images.astype(np.uint8)

    def path(self, photo: Photo) -> Path:
        """Return where a photo's prepared copy is."""
        return self.root / photo.split / self.class_names[photo.label] / f"{photo.sha256}.png"

    def rows(self, split: str) -> NDArray[np.int_]:
        """Return which rows of the arrays, in the order of SPLITS, are a split's."""
        start = sum(len(self.labels[before]) for before in SPLITS[: SPLITS.index(split)])
        return np.arange(start, start + len(self.labels[split]))

    def all_labels(self) -> NDArray[np.int_]:
        """Return the class indices of all photos, in the order of SPLITS."""
        return np.array([label for split in SPLITS for label in self.labels[split]], np.int_)


@dataclass(frozen=True)
class Fitted:
    """A trained classifier and its curves by stage; `reader` is the part that reads faces, where there is one.

    `features` are those of all photos in the order of SPLITS (None where all of the network was trained), `kept` is
    the stage whose network it is, `dropped` the rows of the training photos that were left out because their labels
    were doubted.
    """

    network: keras.Model
    histories: Mapping[str, Mapping[str, Sequence[float]]]
    features: Maps | None
    kept: str
    dropped: Sequence[int] = ()
    reader: FacePart | None = None


def fit(asked: Trainer, plan: Plan, view: View, workdir: Path) -> Fitted:
    """Train as the plan says; `workdir` keeps what an interrupted training needs to go on."""
    backbone = plan.backbone()
    show_batch(plan, view, workdir / "tensorboard" / "photos")
    if backbone is None:
        return fit_whole(asked, plan, view, workdir)
    parts = Parts.of(backbone, plan.architecture.cut if plan.fine_tune else "")
    shown = examples(plan, parts, view, workdir / "features", SPLITS[:1])
    if parts.upper is not None:
        memory.require(parts.upper, plan.batch_size)
    done = transfer.train(asked, plan, parts, shown, workdir)
    return Fitted(done.network, done.histories, done.pooled, done.kept, tuple(map(int, done.dropped)))


def show_batch(plan: Plan, view: View, logs: Path) -> None:
    """Show a few training photos in TensorBoard, augmented, too, where they will be."""
    photos, labels = next(view.stream("train", plan.image_size, SHOWN, plan.seed).as_numpy_iterator())
    changed = augment.augment(photos, augment.layers(plan.seed)).numpy() if plan.fine_tune else None
    board.show_batch(logs, photos, labels, view.class_names, changed)


def examples(plan: Plan, parts: Parts, view: View, folder: Path, augmented: Sequence[str]) -> transfer.Examples:
    """Return all photos as feature maps, those of the splits in `augmented`, the first ones, augmented, too."""
    labels = view.all_labels()
    clean = features.compute(
        parts.lower, view.batches(plan, SPLITS), len(labels), folder / "clean.npy", "batches of features"
    )
    copies = [clean]
    if parts.upper is not None:
        layers = augment.layers(plan.seed)
        changed = (augment.augment(images, layers) for images in view.batches(plan, augmented))
        count = sum(len(view.labels[split]) for split in augmented)
        copies += [
            features.compute(parts.lower, changed, count, folder / "augmented.npy", "batches of augmented features")
        ]
    return transfer.Examples(view.class_names, copies, labels, view.kin, view.rows("train"), view.rows("validation"))


def fit_whole(asked: Trainer, plan: Plan, view: View, workdir: Path) -> Fitted:
    """Train all of a network, streaming the photos from disk in each epoch."""
    classes = len(view.class_names)
    stage = Stage("whole", workdir, plan.epochs)
    network = model.tutorial_cnn(plan.image_size, classes)
    memory.require(network, plan.batch_size)
    heads.compile_for(network, classes, keras.optimizers.Adam(plan.learning_rate))
    encode = _with_targets(classes)
    validation = view.stream("validation", plan.image_size, plan.batch_size).map(encode)

    def epoch_of(epoch: int) -> tf.data.Dataset:
        return view.stream("train", plan.image_size, plan.batch_size, plan.seed + epoch).map(encode)

    stream = EpochStream(epoch_of, math.ceil(len(view.labels["train"]) / plan.batch_size))
    weights = heads.class_weights(np.array(view.labels["train"], np.int_), classes)
    callbacks.fit(stage, asked, network, stream, validation, class_names=view.class_names, class_weight=weights)
    return Fitted(network, {"whole": history(stage)}, None, "whole")


def _with_targets(classes: int) -> Any:
    def convert(images: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        if classes == 2:  # noqa: PLR2004
            return images, tf.cast(labels, tf.float32)[:, tf.newaxis]
        return images, tf.one_hot(labels, classes)

    return tf.autograph.experimental.do_not_convert(convert)
