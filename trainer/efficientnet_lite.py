"""EfficientNet-Lite0 in Keras, with ImageNet weights that ship with the package.

Tan & Le, "EfficientNet" (ICML 2019), in the Lite variant of the TPU repository: no squeeze-and-excitation, ReLU6, fixed
stem and head. Invariant: the features are those of the published weights (a test compares a stored reference), and each
weight of the file is used exactly once.
"""

import importlib.resources
from collections.abc import Iterator

import keras
import numpy as np
from keras import layers

WEIGHTS = "efficientnet_lite0.npz"
FEATURES = 1280
# (repeats, kernel, stride, expansion, filters) of each stage
STAGES = ((1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112), (4, 5, 2, 6, 192),
          (1, 3, 1, 6, 320))  # fmt: skip


def efficientnet_lite0(size: int) -> keras.Model:
    """Return the backbone: float32 (N, size, size, 3), RGB in [0, 255], to pooled features (N, 1280).

    Raises ValueError where `size` is not divisible by 32.
    """
    if size % 32:
        raise ValueError(f"image_size {size}: efficientnet_lite0 needs a multiple of 32, such as 224")
    image = keras.Input((size, size, 3), name="image")
    x = layers.Rescaling(1 / 128, offset=-127 / 128, name="to_unit_range")(image)
    x = _activated(_conv(x, 32, 3, 2, "stem_conv"), "stem_bn")
    for name, kernel, stride, expansion, filters in _blocks():
        x = _block(x, name, kernel, stride, expansion, filters)
    x = _activated(_conv(x, FEATURES, 1, 1, "head_conv"), "head_bn")
    model = keras.Model(image, layers.GlobalAveragePooling2D(name="pool")(x), name="efficientnet_lite0")
    _load_weights(model)
    return model


def _blocks() -> Iterator[tuple[str, int, int, int, int]]:
    number = 0
    for repeats, kernel, stride, expansion, filters in STAGES:
        for repeat in range(repeats):
            yield f"block{number}", kernel, stride if repeat == 0 else 1, expansion, filters
            number += 1


def _block(
    x: keras.KerasTensor, name: str, kernel: int, stride: int, expansion: int, filters: int
) -> keras.KerasTensor:
    """Return an inverted residual: expand, filter each channel, project; the input is added where shapes allow."""
    width, shortcut = x.shape[-1], x
    if expansion > 1:
        x = _activated(_conv(x, width * expansion, 1, 1, f"{name}_expand_conv"), f"{name}_bn0")
    depthwise = layers.DepthwiseConv2D(kernel, stride, "same", use_bias=False, name=f"{name}_depthwise_conv")
    x = _activated(depthwise(x), f"{name}_bn1")
    x = _normalised(_conv(x, filters, 1, 1, f"{name}_project_conv"), f"{name}_bn2")
    return layers.Add(name=f"{name}_add")([shortcut, x]) if stride == 1 and width == filters else x


def _conv(x: keras.KerasTensor, filters: int, kernel: int, stride: int, name: str) -> keras.KerasTensor:
    return layers.Conv2D(filters, kernel, stride, "same", use_bias=False, name=name)(x)


def _normalised(x: keras.KerasTensor, name: str) -> keras.KerasTensor:
    return layers.BatchNormalization(epsilon=1e-3, name=name)(x)


def _activated(x: keras.KerasTensor, name: str) -> keras.KerasTensor:
    return layers.ReLU(max_value=6.0, name=f"{name}_relu")(_normalised(x, name))


def _load_weights(model: keras.Model) -> None:
    with (importlib.resources.files("trainer.pretrained") / WEIGHTS).open("rb") as file:
        stored = dict(np.load(file, allow_pickle=False))
    for weight in model.weights:
        weight.assign(stored.pop(weight.path))
    if stored:
        raise ValueError(f"{WEIGHTS} holds weights that the model has not: {sorted(stored)}")
