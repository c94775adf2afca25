"""What watches a training run: TensorBoard, early stopping, and progress for a person.

Invariant: nothing here changes what is learned, but for early stopping, which gives back the best weights.
"""

from pathlib import Path
from typing import Any

import keras
import tensorflow as tf
from rich.progress import Progress, TaskID

from trainer import progress

PATIENCE = 5
SHOWN_IMAGES, SHOWN_SIZE = 16, 64


def tensorboard(folder: Path) -> keras.callbacks.Callback:
    """Return the callback that writes curves and weight histograms of each epoch."""
    return keras.callbacks.TensorBoard(str(folder), histogram_freq=1, write_graph=False)


def early_stopping() -> keras.callbacks.Callback:
    """Return the callback that stops once validation gets no better, and restores the best weights."""
    return keras.callbacks.EarlyStopping("val_cross_entropy", mode="min", patience=PATIENCE, restore_best_weights=True)


def show_batch(folder: Path, images: tf.Tensor) -> None:
    """Write a few training images, small, so that TensorBoard shows what the network sees."""
    small = tf.image.resize(images[:SHOWN_IMAGES], (SHOWN_SIZE, SHOWN_SIZE)) / 255.0
    writer = tf.summary.create_file_writer(str(folder / "images"))
    with writer.as_default():
        tf.summary.image("training photos", small, step=0, max_outputs=SHOWN_IMAGES)
    writer.close()


class EpochProgress(keras.callbacks.Callback):  # type: ignore[misc]  # Keras has no types
    """Writes a line per epoch, and shows a bar on a terminal; Keras itself is kept quiet."""

    def __init__(self, epochs: int) -> None:
        super().__init__()
        self._epochs = epochs
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self._losses: list[float] = []

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Open the bar."""
        del logs
        if progress.on_terminal():
            self._bar = progress.bar()
            self._bar.start()
            self._task = self._bar.add_task("epochs", total=self._epochs)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Say how well it goes."""
        self._losses += [float((logs or {}).get("val_cross_entropy", 0.0))]
        text = f"epoch {epoch + 1}/{self._epochs}  {_figures(logs or {})}"
        if self._bar is None:
            progress.line(text)
        else:
            self._bar.console.print(text, highlight=False, soft_wrap=True)
            self._bar.advance(self._task)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Close the bar, and say which epoch is kept where training ended early."""
        del logs
        if self._bar is not None:
            self._bar.stop()
        if len(self._losses) < self._epochs and self._losses:
            best = self._losses.index(min(self._losses)) + 1
            progress.line(f"stopped after epoch {len(self._losses)}: the best was epoch {best}, which is kept")


def _figures(logs: dict[str, Any]) -> str:
    names = {"cross_entropy": "loss", "accuracy": "accuracy", "val_cross_entropy": "validation loss",
             "val_accuracy": "validation accuracy"}  # fmt: skip
    return "  ".join(f"{shown} {float(logs[name]):.3f}" for name, shown in names.items() if name in logs)
