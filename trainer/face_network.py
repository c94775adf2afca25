"""The network that reads a face: five convolutions on a small grey crop, with weights that ship with the package.

Invariant: it takes float32 (N, S, S, 1), grey in [0, 255], and standardises each crop itself, so that light and
contrast do not matter; ordinary layers only, so that `safe_mode` can load what was saved.
"""

import importlib.resources
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers
from numpy.typing import NDArray

from trainer import heads
from trainer.manifest import FaceRules
from trainer.views import LEAST

WEIGHTS = "face_network.npz"
CLASSES, LEARNED = "class_names", "learned"  # in that file: what its last layer tells apart, what it learned from
CONVOLUTIONS = ((32, 2), (48, 2), (64, 1), (96, 2), (128, 1))  # filters, stride
DROPOUT = 0.3
LAST = "probabilities"


@dataclass(frozen=True)
class FacePart:
    """The faces' part of a model: the rules by which they are cut out, and the Keras network that reads them.

    `detector` is the one that finds them, a LiteRT file; nothing stands for the one that ships.
    """

    rules: FaceRules
    network: keras.Model
    detector: bytes = b""


def build(size: int, classes: int) -> keras.Model:
    """Return the network for crops of `size` pixels, its weights drawn at random."""
    face = keras.Input((size, size, 1), name="face")
    # one group: each crop by its own mean and variance; epsilon keeps a blank crop blank
    x = layers.GroupNormalization(1, epsilon=1.0, center=False, scale=False, name="standardise")(face)
    for number, (filters, stride) in enumerate(CONVOLUTIONS, 1):
        x = layers.Conv2D(filters, 3, stride, "same", use_bias=False, name=f"conv{number}")(x)
        x = layers.BatchNormalization(momentum=0.98, name=f"bn{number}")(x)
        x = layers.ReLU(name=f"relu{number}")(x)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    x = layers.Dropout(DROPOUT, name="dropout")(x)
    return keras.Model(face, heads.output(classes)(x), name="face_network")


def pretrained(size: int, class_names: Sequence[str]) -> keras.Model:
    """Return the network with the weights that ship; the last layer's only where it was trained for these classes."""
    network = build(size, len(class_names))
    stored = _stored()
    same = tuple(stored[CLASSES]) == tuple(class_names)
    for weight in network.weights:
        if weight.path in stored and (same or not weight.path.startswith(LAST)):
            weight.assign(stored[weight.path].astype(np.float32))
    return network


def learned() -> NDArray[np.uint64]:
    """Return the first 64 bits of the sha256 of each picture that the weights that ship have learned from, sorted."""
    known: NDArray[np.uint64] = _stored()[LEARNED]
    return known


def packed(network: keras.Model, class_names: Sequence[str], known: NDArray[np.uint64]) -> bytes:
    """Return a trained network's weights as the file that `pretrained` reads: float16, half the size."""
    arrays: dict[str, Any] = {w.path: w.numpy().astype(np.float16) for w in network.weights if "seed" not in w.path}
    arrays |= {CLASSES: np.array(class_names), LEARNED: np.sort(known)}
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()


def _stored() -> dict[str, NDArray[Any]]:
    with (importlib.resources.files("trainer.pretrained") / WEIGHTS).open("rb") as file:
        return dict(np.load(file, allow_pickle=False))


def as_served(network: keras.Model) -> keras.Model:
    """Return the network as it answers: the mean log-odds of a crop and its mirror image, as probabilities (N, C)."""
    face = keras.Input(network.input_shape[1:], name="face")
    mirrored = keras.ops.flip(face, axis=2)
    logits = [_logits(network(crop, training=False)) for crop in (face, mirrored)]
    return keras.Model(face, keras.ops.softmax(keras.ops.average(keras.ops.stack(logits), axis=0)), name="face_served")


def _logits(scores: keras.KerasTensor) -> keras.KerasTensor:
    if scores.shape[-1] == 1:
        scores = keras.ops.concatenate([1.0 - scores, scores], axis=-1)
    return keras.ops.log(keras.ops.maximum(scores, LEAST))


def scores(network: keras.Model, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return what `as_served` says of crops uint8 (K, S, S): float32 (K, C)."""
    served = tf.function(as_served(network), reduce_retracing=True)
    parts = [served(crops[i : i + 256, :, :, np.newaxis].astype(np.float32)) for i in range(0, len(crops), 256)]
    return np.concatenate([part.numpy() for part in parts])
