"""Streams prepared photos from disk for Keras: `image_dataset_from_directory` on one split of a view.

Invariant: the pixels are those of `images.decode`, exactly: the files hold them at the model's size and PNG loses
nothing. The same seed gives the same order, and only a few batches are in memory at a time.
"""

from collections.abc import Sequence
from pathlib import Path

import keras
import tensorflow as tf


def stream(folder: Path, class_names: Sequence[str], size: int, batch_size: int, seed: int | None) -> tf.data.Dataset:
    """Return batches of (float32 (N, size, size, 3) in [0, 255], int32 (N,) class indices), prefetched.

    With a `seed` they are shuffled, differently in each epoch; without one they come in the order of the file names.
    """
    return keras.utils.image_dataset_from_directory(
        folder,
        label_mode="int",
        class_names=list(class_names),
        image_size=(size, size),
        batch_size=batch_size,
        shuffle=seed is not None,
        seed=seed,
        verbose=False,
    )
