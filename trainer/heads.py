"""What is put on a backbone: a logistic head, and how networks are compiled, joined and frozen.

Invariant: every classifier gives probabilities: one sigmoid unit (of class 1) for two classes, a softmax for more, and
its targets have that shape, too.
"""

from typing import Any

import keras
import numpy as np
from keras import layers
from numpy.typing import NDArray

LOGISTIC_C = 3e-3  # scikit-learn's C of the head; measured on photos of collectors that it was not trained on
HEAD_DROPOUT = 0.2
TUNE_DROPOUT, WEIGHT_DECAY, CLIP_NORM, WARM_UP = 0.3, 1e-3, 1.0, 0.1
LEAST_VARIANCE = 0.01  # of the mean over the features; on real photos, none is below

Last = tuple[NDArray[np.float32], NDArray[np.float32]]  # kernel (F, U) and bias (U,) of a last layer


def head(features: NDArray[np.float16], classes: int) -> keras.Model:
    """Return a logistic head for these training features (N, F): standardised, dropout, L2 like LOGISTIC_C.

    It starts from zero, since the problem is convex.
    """
    # scikit-learn minimises C * (sum of losses) + |w|^2 / 2, Keras the mean of losses + l2 * |w|^2
    l2 = keras.regularizers.L2(1 / (2 * LOGISTIC_C * len(features)))
    return keras.Sequential(
        [
            keras.Input((features.shape[1],), name="features"),
            _standardising(features),
            layers.Dropout(HEAD_DROPOUT, name="dropout"),
            output(classes, kernel_regularizer=l2, kernel_initializer="zeros"),
        ],
        name="head",
    )


def _standardising(features: NDArray[np.float16]) -> layers.Normalization:
    mean, variance = spread(features.astype(np.float32))
    return layers.Normalization(mean=mean, variance=variance, name="standardise")


def spread(values: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the mean and variance (F,) of features (N, F), but for those that hardly vary: theirs is a least variance.

    Among a few photos a feature may be almost constant; divided by its deviation, it would outvote all others in the
    first photo that has it.
    """
    variance = values.var(axis=0)
    least = LEAST_VARIANCE * variance.mean() + keras.config.epsilon()
    return values.mean(axis=0), np.maximum(variance, least)


def folded(trained: keras.Model) -> Last:
    """Return kernel (F, U) and bias (U,) of a trained head with the standardising folded in.

    Folded, the served model is smaller, and no 1 / deviation has to fit into its float16.
    """
    normalise = trained.get_layer("standardise")
    mean, deviation = np.asarray(normalise.mean)[0], np.sqrt(np.asarray(normalise.variance)[0])
    kernel, bias = trained.get_layer("probabilities").get_weights()
    kernel = kernel / deviation[:, np.newaxis]
    return kernel, bias - mean @ kernel


def join(backbone: keras.Model, last: Last, classes: int) -> keras.Model:
    """Join a backbone and the weights of a last layer into one classifier; the backbone's layers are shared."""
    last_layer = output(classes)
    model = keras.Model(backbone.input, last_layer(backbone.output), name=backbone.name)
    last_layer.set_weights(last)
    return model


def tunable(upper: keras.Model, last: Last, classes: int) -> keras.Model:
    """Return `upper` with dropout and a last layer, batch normalisation frozen: its statistics are ImageNet's."""
    for layer in upper.layers:
        layer.trainable = not isinstance(layer, layers.BatchNormalization)
    last_layer = output(classes)
    dropped = layers.Dropout(TUNE_DROPOUT, name="dropout")(upper.output)
    model = keras.Model(upper.input, last_layer(dropped), name="upper")
    last_layer.set_weights(last)
    return model


def probabilities(features: NDArray[Any], last: Last) -> NDArray[np.float32]:
    """Return what a last layer gives for pooled features (N, F): float32 (N, C), for two classes, too."""
    kernel, bias = last
    logits = features.astype(np.float32) @ kernel + bias
    if logits.shape[1] == 1:
        logits = np.concatenate([np.zeros_like(logits), logits], axis=1)
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    scores: NDArray[np.float32] = shifted / shifted.sum(axis=1, keepdims=True)
    return scores


def output(classes: int, **options: Any) -> layers.Dense:
    """Return the last layer for so many classes."""
    if classes == 2:  # noqa: PLR2004
        return layers.Dense(1, activation="sigmoid", name="probabilities", **options)
    return layers.Dense(classes, activation="softmax", name="probabilities", **options)


def targets(labels: NDArray[np.integer[Any]], classes: int) -> NDArray[np.float32]:
    """Return what the output is compared with: (N, 1) for two classes, one-hot (N, C) for more."""
    if classes == 2:  # noqa: PLR2004
        return labels.astype(np.float32)[:, np.newaxis]
    hot: NDArray[np.float32] = np.eye(classes, dtype=np.float32)[labels]
    return hot


def class_weights(labels: NDArray[np.integer[Any]], classes: int) -> dict[int, float]:
    """Return weights that make every class count alike, whatever its number of photos."""
    counts = np.bincount(labels, minlength=classes)
    return {c: float(len(labels) / (classes * max(1, n))) for c, n in enumerate(counts)}


def compile_for(
    model: keras.Model, classes: int, optimizer: keras.optimizers.Optimizer, label_smoothing: float = 0.0
) -> None:
    """Compile with cross-entropy; `cross_entropy` is also a metric, since `loss` has penalties and smoothing in it."""
    binary = classes == 2  # noqa: PLR2004
    loss = keras.losses.BinaryCrossentropy if binary else keras.losses.CategoricalCrossentropy
    metric = keras.metrics.MeanMetricWrapper(loss(reduction=None), name="cross_entropy")
    model.compile(optimizer, loss(label_smoothing=label_smoothing), metrics=["accuracy", metric])


def fine_tuning_optimizer(peak: float, steps: int) -> keras.optimizers.Optimizer:
    """Return AdamW that warms up for a tenth of `steps` and then follows a cosine down to nothing."""
    warm_up = max(1, int(WARM_UP * steps))
    rate = keras.optimizers.schedules.CosineDecay(peak / 100, max(1, steps - warm_up), 0.0, warmup_target=peak,
                                                  warmup_steps=warm_up)  # fmt: skip
    return keras.optimizers.AdamW(rate, weight_decay=WEIGHT_DECAY, clipnorm=CLIP_NORM)
