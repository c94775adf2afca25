"""Stages a trained model as a bundle's files: model.tflite, model.keras, golden/ and replay.npz; and those for faces.

Invariant: model.tflite takes float32 (1, S, S, 3), RGB in [0, 255], face.tflite (1, F, F, 1), grey; both give (1, C)
probabilities in the order of the class names, whatever the Keras model's last layer was.
"""

import importlib.metadata
import itertools
import platform
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from trainer import face_network, faces, golden, litert, views
from trainer.bundle import DETECTOR, FACE_MODEL, MODEL
from trainer.face_network import FacePart
from trainer.quiet import native_stderr
from trainer.replay import REPLAY, Replay
from trainer.views import Eye, Predictor

LIBRARIES = ("tensorflow", "keras", "ai-edge-litert", "numpy", "pillow", "moodbox")
SAMPLES = 200  # pictures that show the int8 converter which values occur
KERAS_MODEL, FACE_KERAS_MODEL = "model.keras", "face.keras"


@dataclass(frozen=True)
class Precision:
    """How the served weights are kept: "float32", "float16" or "int8"; the last needs `pictures`, float32 batches."""

    name: str = "float16"
    pictures: Iterable[NDArray[Any]] = ()

    def prepare(self, converter: Any) -> None:
        """Set up a converter."""
        if self.name != "float32":
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if self.name == "float16":  # half the size of float32 at the same accuracy and speed
            converter.target_spec.supported_types = [tf.float16]
        if self.name == "int8":
            converter.representative_dataset = self._samples

    def _samples(self) -> Iterator[list[NDArray[Any]]]:
        pictures = (picture for batch in self.pictures for picture in batch)
        for picture in itertools.islice(pictures, SAMPLES):
            yield [picture[np.newaxis]]


def stage(
    model: keras.Model,
    folder: Path,
    classes: int,
    replay: Replay | None,
    precision: Precision | None = None,
    reader: FacePart | None = None,
) -> None:
    """Write all files of a bundle but its manifest into the new `folder`."""
    size = int(model.input_shape[1])
    (folder / "golden").mkdir(parents=True)
    flat_buffer = to_litert(model, precision or Precision())
    (folder / MODEL).write_bytes(flat_buffer)
    model.save(folder / KERAS_MODEL)
    with native_stderr():  # LiteRT names its delegate, once per process
        scene = litert.Predictor(flat_buffer, size, classes)
        reads = None if reader is None else _stage_faces(reader, folder, classes)
        golden.write(folder / "golden", Eye(size, reader.rules if reader else None), Predictor(scene, reads))
    if replay is not None:
        replay.write(folder / REPLAY)


def _stage_faces(reader: FacePart, folder: Path, classes: int) -> views.FaceReader:
    """Write the detector and the face network; it is small: float16 whatever the scene's precision is."""
    detector, rules = reader.detector or faces.shipped_detector(), reader.rules
    flat_buffer = to_litert(face_network.as_served(reader.network), Precision("float16"))
    (folder / DETECTOR).write_bytes(detector)
    (folder / FACE_MODEL).write_bytes(flat_buffer)
    reader.network.save(folder / FACE_KERAS_MODEL)
    network = litert.Predictor(flat_buffer, rules.size, classes, channels=1)
    return views.FaceReader(faces.Finder(detector, rules), network)


def to_litert(model: keras.Model, precision: Precision) -> bytes:
    """Convert to LiteRT; whatever the precision, pixels and probabilities stay float32."""

    def serve(image: tf.Tensor) -> tf.Tensor:
        scores = model(image, training=False)
        return tf.concat([1.0 - scores, scores], axis=-1) if model.output_shape[-1] == 1 else scores

    traced = tf.function(serve, input_signature=[tf.TensorSpec((1, *model.input_shape[1:]), tf.float32)])
    # The converter wants to know who owns the variables. Given the Keras model itself, it writes a model without them,
    # which predicts NaN (tensorflow 2.21, keras 3.15).
    owner = tf.Module()
    owner.weights = [weight.value for weight in model.weights]
    converter = tf.lite.TFLiteConverter.from_concrete_functions([traced.get_concrete_function()], owner)
    precision.prepare(converter)
    with native_stderr():
        flat_buffer: bytes = converter.convert()
    return flat_buffer


def versions() -> dict[str, str]:
    """Return the versions of what made the model."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed as a package"
    return found


def now() -> str:
    """Return the time in UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
