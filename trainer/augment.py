"""Augmentation: the changes to a training photo that leave its mood as it is.

Invariant: the same seed and the same order of batches give the same pictures, also with several threads; what comes out
is what a photo can be: float32 RGB in [0, 255]. Validation and serving never see these layers.
"""

from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

TURN = 0.03  # of a full turn: 11 degrees
CROP = 0.3  # the most of its width that a photo loses
SHIFT = 0.1
BRIGHTNESS, CONTRAST, SATURATION, HUE = 0.15, 0.25, 0.15, 0.03
GREY = 0.15  # of the photos
FACE_TURN, FACE_SCALE, FACE_SHIFT = 0.25, 0.15, 0.08  # radians, share, share of the side
FACE_GAMMA, FACE_HIDDEN = 0.35, 0.2  # logarithm; half the side of the square that is hidden, as a share
HIDING = 0.6  # of the faces


def layers(seed: int) -> list[keras.layers.Layer]:
    """Return the layers, each with random numbers of its own: mirror, turn, crop, colours, grey."""
    return [
        keras.layers.RandomFlip("horizontal", seed=seed),
        keras.layers.RandomRotation(TURN, fill_mode="reflect", seed=seed + 1),
        keras.layers.RandomTranslation(SHIFT, SHIFT, fill_mode="reflect", seed=seed + 2),
        keras.layers.RandomZoom((-CROP, 0.0), fill_mode="reflect", seed=seed + 3),  # negative: closer
        keras.layers.RandomColorJitter(
            brightness_factor=BRIGHTNESS,
            contrast_factor=CONTRAST,
            saturation_factor=(0.5 - SATURATION, 0.5 + SATURATION),  # 0.5 changes nothing
            hue_factor=HUE,
            seed=seed + 4,
        ),
        keras.layers.RandomGrayscale(GREY, seed=seed + 5),
    ]


def augment(images: tf.Tensor, layers: Sequence[keras.layers.Layer]) -> tf.Tensor:
    """Return changed copies of photos, float32 (N, S, S, 3) in [0, 255]: call it on batches, or in `tf.data`'s `map`.

    In a `map` leave num_parallel_calls out: the random numbers would go to whichever batch comes first.
    """
    for layer in layers:
        images = layer(images, training=True)
    return tf.clip_by_value(images, 0.0, 255.0)


def faces(crops: NDArray[np.uint8], random: np.random.Generator) -> NDArray[np.float32]:
    """Return changed copies of crops uint8 (N, S, S): float32 (N, S, S, 1); all chance comes from `random`.

    Mirrored, turned, scaled, shifted, darker or brighter, and a square of many of them hidden (DeVries & Taylor,
    "Cutout", 2017): a face is recognised by more than its mouth.
    """
    count, side = crops.shape[:2]
    moved = tf.raw_ops.ImageProjectiveTransformV3(
        images=crops[..., np.newaxis].astype(np.float32),
        transforms=_movements(count, side, random),
        output_shape=crops.shape[1:],
        fill_value=0.0,
        interpolation="BILINEAR",
        fill_mode="REFLECT",
    ).numpy()
    gamma = np.exp(random.uniform(-FACE_GAMMA, FACE_GAMMA, (count, 1, 1, 1)))
    changed = 255.0 * np.clip(moved / 255.0, 0.0, 1.0) ** gamma
    hidden = _hidden(count, side, random)[..., np.newaxis]
    done: NDArray[np.float32] = np.where(hidden, changed.mean(axis=(1, 2), keepdims=True), changed).astype(np.float32)
    return done


def _movements(count: int, side: int, random: np.random.Generator) -> NDArray[np.float32]:
    """Return projective transforms (N, 8), from where in the crop each pixel comes; about the middle."""
    turn = random.uniform(-FACE_TURN, FACE_TURN, count)
    scale = random.uniform(1 - FACE_SCALE, 1 + FACE_SCALE, count)
    mirror = random.choice((-1.0, 1.0), count)
    shift_x, shift_y = random.uniform(-FACE_SHIFT * side, FACE_SHIFT * side, (2, count))
    cos, sin, middle = np.cos(turn) * scale, np.sin(turn) * scale, (side - 1) / 2
    a0, a1, b0, b1 = cos * mirror, -sin, sin * mirror, cos
    a2, b2 = middle - (a0 + a1) * middle + shift_x, middle - (b0 + b1) * middle + shift_y
    zero = np.zeros(count)
    return np.stack([a0, a1, a2, b0, b1, b2, zero, zero], axis=1).astype(np.float32)


def _hidden(count: int, side: int, random: np.random.Generator) -> NDArray[np.bool_]:
    """Return which pixels (N, S, S) are hidden: a square of some of the crops."""
    x, y = random.uniform(0, side, (2, count, 1, 1))
    half = random.uniform(0, FACE_HIDDEN * side, (count, 1, 1)) * (random.random((count, 1, 1)) < HIDING)
    at = np.arange(side)
    hidden: NDArray[np.bool_] = (abs(at[np.newaxis, :, np.newaxis] - y) < half) & (abs(at - x) < half)
    return hidden
