"""The architectures by name.

Invariant: every network takes float32 (N, S, S, 3), RGB in [0, 255], as the prepared photos hold it. Normalisation is
inside, as ordinary layers: no Lambda and no custom layer, so that `safe_mode` can load what was saved.
"""

import contextlib
import dataclasses
import difflib
import functools
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import layers
from numpy.typing import NDArray

from trainer import efficientnet_lite, heads
from trainer.errors import FailureError, InputError

OWN_SIZES = {
    "EfficientNetB1": 240, "EfficientNetB2": 260, "EfficientNetB3": 300, "EfficientNetB4": 380, "EfficientNetB5": 456,
    "EfficientNetB6": 528, "EfficientNetB7": 600, "EfficientNetV2B1": 240, "EfficientNetV2B2": 260,
    "EfficientNetV2B3": 300, "EfficientNetV2S": 384, "EfficientNetV2M": 480, "EfficientNetV2L": 480,
    "InceptionV3": 299, "InceptionResNetV2": 299, "Xception": 299, "NASNetLarge": 331,
}  # fmt: skip


class ArchitectureError(InputError):
    """An architecture that is not known, or does not fit the image size."""


class DownloadError(FailureError):
    """Pretrained weights that could not be fetched."""


@dataclass(frozen=True)
class Architecture:
    """What an architecture asks for where the settings say nothing.

    `backbone(size)` gives the pretrained part; None: there is none, and the whole network is trained. `cut` names the
    layer behind which it is fine-tuned; empty: it stays frozen.
    """

    name: str
    image_size: int
    epochs: int
    learning_rate: float
    backbone: Callable[[int], keras.Model] | None
    smallest: int = 32
    cut: str = ""


def efficientnet_lite0(size: int) -> keras.Model:
    """Return the default backbone, see efficientnet_lite. Raises ArchitectureError for a size that it does not take."""
    try:
        return efficientnet_lite.efficientnet_lite0(size)
    except ValueError as error:
        raise ArchitectureError(str(error)) from None


# Three convolutions and poolings leave one of 22 pixels.
TUTORIAL_CNN = Architecture("tutorial_cnn", 256, epochs=20, learning_rate=1e-3, backbone=None, smallest=22)
EFFICIENTNET_LITE0 = Architecture(
    "efficientnet_lite0", 224, epochs=5, learning_rate=3e-4, backbone=efficientnet_lite0, cut="block10_add"
)


def find(name: str) -> Architecture:
    """Return an architecture by its name, in upper or lower case. Raises ArchitectureError."""
    known = {a.name: a for a in (TUTORIAL_CNN, EFFICIENTNET_LITE0)}
    applications = {n.lower(): n for n in dir(keras.applications) if n[0].isupper()}
    if name.lower() in known:
        return known[name.lower()]
    if name.lower() in applications:
        proper = applications[name.lower()]
        backbone = functools.partial(application_backbone, proper)
        return dataclasses.replace(
            EFFICIENTNET_LITE0, name=proper, image_size=OWN_SIZES.get(proper, 224), backbone=backbone, cut=""
        )
    close = difflib.get_close_matches(name.lower(), [*known, *applications], n=1)
    hint = f"did you mean {known[close[0]].name if close[0] in known else applications[close[0]]}? " if close else ""
    raise ArchitectureError(
        f"architecture {name!r} is not known: {hint}Choose {', '.join(known)} or a name of keras.applications"
    )


def tutorial_cnn(size: int, classes: int) -> keras.Model:
    """Return the small network of the well-known happy/sad tutorial, for images of `size` pixels."""
    model = keras.Sequential(name="tutorial_cnn")
    model.add(keras.Input((size, size, 3), name="image"))
    model.add(layers.Rescaling(1 / 255))
    for filters in (16, 32, 16):
        model.add(layers.Conv2D(filters, 3, activation="relu"))
        model.add(layers.MaxPooling2D())
    model.add(layers.Flatten())
    model.add(layers.Dense(256, activation="relu"))
    model.add(heads.output(classes))
    return model


def application_backbone(name: str, size: int) -> keras.Model:
    """Return a network of keras.applications with ImageNet weights, its own preprocessing built in, pooled features.

    Raises ArchitectureError where it does not take images of `size`, DownloadError where its weights cannot be had.
    """
    build = getattr(keras.applications, name)
    try:
        with contextlib.redirect_stdout(sys.stderr):  # the download's progress
            network = build(weights="imagenet", include_top=False, pooling="avg", input_shape=(size, size, 3))
    except ValueError as error:
        raise ArchitectureError(f"{name} with image_size {size}: {_line(error)}") from None
    except Exception as error:  # noqa: BLE001  keras.utils.get_file raises Exception itself, and what libraries raise
        raise DownloadError(
            f"the ImageNet weights of {name} could not be fetched ({_line(error)}): connect this machine once, copy "
            "the folder ~/.keras/models from one that has them, or use efficientnet_lite0, which needs no download"
        ) from None
    image = keras.Input((size, size, 3), name="image")
    preprocess = sys.modules[build.__module__].preprocess_input
    return keras.Model(image, network(preprocessing_layer(preprocess)(image)), name=name.lower())


def preprocessing_layer(preprocess: Callable[[NDArray[Any]], NDArray[Any]]) -> layers.Layer:
    """Return a `preprocess_input` of keras.applications as a layer.

    They all are affine in the pixel (scale, subtract a mean, RGB to BGR) or nothing, so a 1x1 convolution whose weights
    are read off the function itself is the same, needs no table of families, and is an ordinary layer.
    """
    offset = preprocess(np.zeros((1, 1, 1, 3), np.float32))[0, 0, 0]
    matrix = (preprocess(255 * np.eye(3, dtype=np.float32).reshape(3, 1, 1, 3))[:, 0, 0] - offset) / 255
    if np.array_equal(matrix, np.eye(3)) and not offset.any():
        return layers.Identity(name="preprocess")
    layer = layers.Conv2D(3, 1, trainable=False, name="preprocess")
    layer.build((None, None, None, 3))
    layer.set_weights([matrix.reshape(1, 1, 3, 3), offset])
    return layer


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
