"""Augmentation: the changes to a training photo that leave its mood as it is.

Invariant: the same seed and the same order of batches give the same pictures, also with several threads; what comes out
is what a photo can be: float32 RGB in [0, 255]. Validation and serving never see these layers.
"""

from collections.abc import Sequence

import keras
import tensorflow as tf

TURN = 0.03  # of a full turn: 11 degrees
CROP = 0.3  # the most of its width that a photo loses
SHIFT = 0.1
BRIGHTNESS, CONTRAST, SATURATION, HUE = 0.15, 0.25, 0.15, 0.03
GREY = 0.15  # of the photos


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
