"""Trains a network on a view of prepared photos: a head on a frozen backbone, or all of it.

Invariant: only the training and validation photos teach anything here; the features of the test photos are computed for
the bundle's replay, and not looked at.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from trainer import callbacks, input_pipeline, model
from trainer.dataset import SPLITS
from trainer.progress import track
from trainer.tables import Trainer


@dataclass(frozen=True)
class Plan:
    """What is trained: the settings, with the architecture's own values where they say nothing."""

    architecture: model.Architecture
    image_size: int
    batch_size: int
    epochs: int
    learning_rate: float
    seed: int

    @classmethod
    def of(cls, asked: Trainer) -> "Plan":
        """Resolve the [trainer] table. Raises ArchitectureError."""
        own = model.find(asked.architecture)
        size, epochs = asked.image_size or own.image_size, asked.epochs or own.epochs
        if size < own.smallest:
            raise model.ArchitectureError(f"image_size {size}: {own.name} needs at least {own.smallest}")
        return cls(own, size, asked.batch_size, epochs, asked.learning_rate or own.learning_rate, asked.seed)

    def backbone(self) -> keras.Model | None:
        """Return the pretrained part; None where all is trained. Raises ArchitectureError, DownloadError."""
        build = self.architecture.backbone
        return None if build is None else build(self.image_size)


@dataclass(frozen=True)
class View:
    """The photos of a run on disk: `root/<split>/<class>/<sha256>.png`."""

    root: Path
    class_names: tuple[str, ...]

    def stream(self, split: str, plan: Plan, *, shuffled: bool = False) -> tf.data.Dataset:
        """Return a split as batches; see input_pipeline.stream."""
        seed = plan.seed if shuffled else None
        return input_pipeline.stream(self.root / split, self.class_names, plan.image_size, plan.batch_size, seed)


@dataclass(frozen=True)
class Features:
    """What a frozen backbone makes of a split: `values` float16 (N, F) and `labels` int (N,), in the stream's order."""

    values: NDArray[np.float16]
    labels: NDArray[np.int32]

    def tensors(self) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        """Return x and y for Keras."""
        return self.values.astype(np.float32), self.labels


@dataclass(frozen=True)
class Fitted:
    """A trained network, its curves by name, and the features of each split (none where all of it was trained)."""

    network: keras.Model
    history: Mapping[str, Sequence[float]]
    features: Mapping[str, Features]


def fit(plan: Plan, backbone: keras.Model | None, view: View, logs: Path) -> Fitted:
    """Train, writing TensorBoard's events to `logs`: a head where there is a backbone, else all of the network."""
    callbacks.show_batch(logs, next(iter(view.stream("train", plan, shuffled=True)))[0])
    watching = [callbacks.tensorboard(logs), callbacks.EpochProgress(plan.epochs)]
    if backbone is None:
        return fit_whole(plan, view, watching)
    return fit_head(plan, backbone, view, [callbacks.early_stopping(), *watching])


def fit_whole(plan: Plan, view: View, watching: list[keras.callbacks.Callback]) -> Fitted:
    """Train all of a network, streaming the photos from disk in each epoch."""
    network = model.tutorial_cnn(plan.image_size, len(view.class_names))
    model.compile_for(network, len(view.class_names), plan.learning_rate)
    curves = network.fit(
        view.stream("train", plan, shuffled=True),
        validation_data=view.stream("validation", plan),
        epochs=plan.epochs,
        callbacks=watching,
        shuffle=False,  # the stream does that
        verbose=0,
    )
    return Fitted(network, curves.history, {})


def fit_head(plan: Plan, backbone: keras.Model, view: View, watching: list[keras.callbacks.Callback]) -> Fitted:
    """Compute the frozen backbone's features once, train a head on them, and join the two."""
    features = {split: extract(backbone, view, split, plan) for split in SPLITS}
    head = model.head(features["train"].values, len(view.class_names))
    model.compile_for(head, len(view.class_names), plan.learning_rate)
    curves = head.fit(
        *features["train"].tensors(),
        validation_data=features["validation"].tensors(),
        batch_size=plan.batch_size,
        epochs=plan.epochs,
        callbacks=watching,
        verbose=0,
    )
    return Fitted(model.assemble(backbone, head, len(view.class_names)), curves.history, features)


def extract(backbone: keras.Model, view: View, split: str, plan: Plan) -> Features:
    """Compute a split's features in one pass; float16, as the bundle's replay keeps them."""
    stream = view.stream(split, plan)
    values, labels = [], []
    for images, batch_labels in track(stream, int(stream.cardinality()), f"batches of {split} features"):
        values.append(backbone.predict_on_batch(images).astype(np.float16))
        labels.append(batch_labels.numpy())
    return Features(np.concatenate(values), np.concatenate(labels))
