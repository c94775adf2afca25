"""Stages a trained model as a bundle's files: model.tflite, model.keras, golden/ and replay.npz.

Invariant: model.tflite takes float32 (1, S, S, 3), RGB in [0, 255], and gives (1, C) probabilities in the order of the
class names, whatever the Keras model's last layer was. The golden images are drawn here: no photo is in a bundle.
"""

import importlib.metadata
import itertools
import json
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
from PIL import Image, ImageDraw

from trainer import images
from trainer.litert import Predictor
from trainer.quiet import native_stderr
from trainer.replay import REPLAY, Replay

TOLERANCE = 0.01  # kernels of LiteRT differ between CPUs by float16 rounding: about 1e-3 in a probability
LIBRARIES = ("tensorflow", "keras", "ai-edge-litert", "numpy", "pillow", "moodbox")
SAMPLES = 200  # pictures that show the int8 converter which values occur
YELLOW, BLUE, BLACK, WHITE = (250, 210, 60), (60, 90, 170), (20, 20, 20), (255, 255, 255)


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
    model: keras.Model, folder: Path, classes: int, replay: Replay | None, precision: Precision | None = None
) -> None:
    """Write all files of a bundle but its manifest into the new `folder`."""
    size = int(model.input_shape[1])
    (folder / "golden").mkdir(parents=True)
    flat_buffer = to_litert(model, precision or Precision())
    (folder / "model.tflite").write_bytes(flat_buffer)
    model.save(folder / "model.keras")
    with native_stderr():  # LiteRT names its delegate, once per process
        predict = Predictor(flat_buffer, size, classes)
    _write_golden(folder / "golden", predict, size)
    if replay is not None:
        replay.write(folder / REPLAY)


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


def draw_golden(size: int) -> dict[str, Image.Image]:
    """Draw the golden images: three at model size, and one that is larger and not square, to cover the resizing."""
    return {
        "happy.png": _face(size, size, YELLOW, corners_up=True),
        "sad.png": _face(size, size, BLUE, corners_up=False),
        "gradient.png": _gradient(size),
        "large.png": _face(2 * size + 37, size + 101, WHITE, corners_up=True),
    }


def _face(width: int, height: int, colour: tuple[int, int, int], *, corners_up: bool) -> Image.Image:
    face = Image.new("RGB", (width, height), (120, 160, 120))
    pen = ImageDraw.Draw(face)

    def box(left: float, top: float, right: float, bottom: float) -> tuple[int, int, int, int]:
        return int(left * width), int(top * height), int(right * width), int(bottom * height)

    pen.ellipse(box(0.1, 0.1, 0.9, 0.9), colour, BLACK, max(1, width // 60))
    pen.ellipse(box(0.3, 0.3, 0.4, 0.45), BLACK)
    pen.ellipse(box(0.6, 0.3, 0.7, 0.45), BLACK)
    mouth, angles = (box(0.3, 0.4, 0.7, 0.75), (20, 160)) if corners_up else (box(0.3, 0.6, 0.7, 0.95), (200, 340))
    pen.arc(mouth, *angles, fill=BLACK, width=max(1, width // 30))
    return face


def _gradient(size: int) -> Image.Image:
    ramp = np.linspace(0, 255, size).astype(np.uint8)
    return Image.fromarray(np.stack(np.broadcast_arrays(ramp, ramp[:, np.newaxis], ramp[::-1]), axis=-1))


def _write_golden(folder: Path, predict: Predictor, size: int) -> None:
    scores = {}
    for name, drawn in draw_golden(size).items():
        drawn.save(folder / name)
        picture = images.decode(folder / name, size=size)
        scores[name] = [round(float(score), 6) for score in predict(picture.pixels)]
    expected = {"tolerance": TOLERANCE, "scores": scores}
    (folder / "expected.json").write_text(json.dumps(expected, indent=2, allow_nan=False) + "\n")
