"""Grad-CAM: which parts of a picture spoke for an answer, as far as the last convolutions can tell.

Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization", ICCV 2017.
Invariant: the model is as it was when this is done with it, and a network that cannot be explained gives an
UnexplainableError with one line, never another exception.
"""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from matplotlib import colormaps
from numpy.typing import NDArray
from PIL import Image

CHUNK = 8  # photos at a time
OPACITY = 0.65  # of the warmest parts
IMAGE_RANK = 4


class UnexplainableError(Exception):
    """A network that Grad-CAM has no answer for; the message says why."""


def load(data: bytes) -> keras.Model:
    """Load a .keras file from its bytes, whose hash the caller has checked, running no code of its own."""
    try:
        with tempfile.TemporaryDirectory() as folder:  # Keras wants a path
            path = Path(folder) / "model.keras"
            path.write_bytes(data)
            return keras.saving.load_model(path, compile=False, safe_mode=True)
    except Exception as error:  # Keras raises nearly every type for a file that it cannot load
        raise UnexplainableError(f"the Keras model cannot be loaded ({' '.join(str(error).split())[:200]})") from error


def heatmaps(model: keras.Model, pixels: NDArray[np.uint8], classes: NDArray[np.int_]) -> NDArray[np.float32]:
    """Return for each picture, pixels (N, S, S, 3), where it speaks for its class of `classes` (N,).

    float32 (N, h, w), the resolution of the last convolutions, the warmest place 1; all 0 where nothing speaks for the
    class. Raises UnexplainableError.
    """
    layer = _last_spatial(model)
    starts = range(0, len(pixels), CHUNK)
    try:
        mirrored = _mirrored(model, layer)
        maps = [
            _heat(model, layer, pixels[i : i + CHUNK].astype(np.float32), classes[i : i + CHUNK], mirrored)
            for i in starts
        ]
    except (tf.errors.OpError, ValueError, TypeError) as error:
        raise UnexplainableError(f"Grad-CAM failed ({' '.join(str(error).split())[:200]})") from error
    heat = np.maximum(np.concatenate(maps), 0)
    highest = heat.max(axis=(1, 2), keepdims=True)
    found: NDArray[np.float32] = np.divide(heat, highest, out=np.zeros_like(heat), where=highest > 0)
    return found


def overlay(pixels: NDArray[np.uint8], heat: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return a picture (H, W, 3) in grey, its heat map (h, w), 0 to 1, laid over it: red is warmest."""
    picture = Image.fromarray(pixels)
    smooth = np.asarray(Image.fromarray(heat).resize(picture.size, Image.Resampling.BICUBIC)).clip(0, 1)
    colours = 255 * np.asarray(colormaps["YlOrRd"](smooth))[..., :3]
    opacity = OPACITY * smooth[..., np.newaxis]
    grey = np.asarray(picture.convert("L"), np.float32)[..., np.newaxis]
    return np.rint(grey * (1 - opacity) + colours * opacity).astype(np.uint8)


def _layers(model: keras.Model) -> Iterator[keras.layers.Layer]:
    """Yield all layers from input to output, those of nested models in their place."""
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from _layers(layer)
        else:
            yield layer


def _last_spatial(model: keras.Model) -> keras.layers.Layer:
    """Return the last layer after a convolution that gives a map of more than one place."""
    found, convolved = None, False
    for layer in _layers(model):
        convolved |= any(len(weight.shape) == IMAGE_RANK and weight.shape[0] > 1 for weight in layer.weights)
        shape = _output_shape(layer)
        if convolved and len(shape) == IMAGE_RANK and shape[1] and shape[2] and shape[1] * shape[2] > 1:
            found = layer
    if found is None:
        raise UnexplainableError(f"{model.name} has no convolutions that Grad-CAM could look at")
    return found


def _output_shape(layer: keras.layers.Layer) -> tuple[int | None, ...]:
    shape = getattr(getattr(layer, "output", None), "shape", ())  # several outputs are a list: no map
    return tuple(shape)


def _heat(
    model: keras.Model,
    layer: keras.layers.Layer,
    images: NDArray[np.float32],
    classes: NDArray[np.int_],
    mirrored: NDArray[np.bool_],
) -> NDArray[np.float32]:
    """Return the weighted sum of the maps (N, h, w), not yet rectified, of all views of each image upright."""
    with _as_logits(model), tf.GradientTape(watch_accessed_variables=False) as tape:
        with _watched(layer, tape) as seen:
            scores = _scores(model(images, training=False), tf.constant(classes))
        gradients = tape.gradient(scores, seen)
    if any(gradient is None for gradient in gradients):
        raise UnexplainableError(f"{model.name}: the answer does not depend on {layer.name}")
    total: NDArray[np.float32] = np.zeros((), np.float32)
    weights = [tf.reduce_mean(gradient, axis=(1, 2), keepdims=True) for gradient in gradients]
    maps = [tf.reduce_sum(weight * values, axis=-1).numpy() for weight, values in zip(weights, seen, strict=True)]
    for view, flipped in zip(_views(maps, len(images)), mirrored, strict=True):
        total = total + (view[:, :, ::-1] if flipped else view)
    return total


def _scores(outputs: tf.Tensor, classes: tf.Tensor) -> tf.Tensor:
    """Return each picture's logit for its class; a single unit is the logit of class 1."""
    if outputs.shape[-1] == 1:
        return tf.where(classes == 1, 1.0, -1.0) * outputs[:, 0]
    return tf.gather(outputs, classes, axis=1, batch_dims=1)


def _views(found: list[NDArray[np.float32]], photos: int) -> list[NDArray[np.float32]]:
    """Split what a layer gave into one array per view: it was called several times, or with several views at once."""
    return [view for values in found for view in np.split(values, len(values) // photos)]


def _mirrored(model: keras.Model, layer: keras.layers.Layer) -> NDArray[np.bool_]:
    """Tell for each view that the network takes of a picture (test-time flip takes two) whether it is mirrored.

    Measured, not read off the graph, since flipping can be written in many ways: a picture that changes on its right
    half alone changes a mirrored view on the left.
    """
    probe = np.zeros((2, *model.input_shape[1:]), np.float32)
    probe[1, :, probe.shape[2] // 2 :] = np.random.default_rng(0).integers(
        0, 256, probe[1, :, probe.shape[2] // 2 :].shape
    )
    with tf.GradientTape() as tape, _watched(layer, tape) as seen:
        model(probe, training=False)
    flags = []
    for view in _views([values.numpy() for values in seen], len(probe)):
        change = np.abs(view[1] - view[0]).sum(axis=(0, 2))
        half = len(change) // 2
        flags.append(change[:half].sum() > change[-half:].sum() if half else False)
    return np.array(flags, bool)


@contextlib.contextmanager
def _watched(layer: keras.layers.Layer, tape: tf.GradientTape) -> Iterator[list[tf.Tensor]]:
    """Collect what `layer` gives while the block runs, watched by `tape`; works wherever in the model it is nested."""
    seen: list[tf.Tensor] = []
    own = layer.call

    def call(*args: object, **options: object) -> tf.Tensor:
        output = own(*args, **options)
        tape.watch(output)
        seen.append(output)
        return output

    layer.call = call
    try:
        yield seen
    finally:
        del layer.call  # the class's own is back


@contextlib.contextmanager
def _as_logits(model: keras.Model) -> Iterator[None]:
    """Let the layer that makes probabilities give logits while the block runs: a sure sigmoid has no gradient."""
    squashing = (keras.activations.sigmoid, keras.activations.softmax)
    last = [
        layer
        for layer in _layers(model)
        if getattr(layer, "activation", None) in squashing and _output_shape(layer)[1:] == model.output_shape[1:]
    ][-1:]
    own = [layer.activation for layer in last]
    for layer in last:
        layer.activation = keras.activations.linear
    try:
        yield
    finally:
        for layer, activation in zip(last, own, strict=True):
            layer.activation = activation
