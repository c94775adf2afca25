"""The callbacks that write a stage's events for TensorBoard: Keras's own, and what it leaves out.

Invariant: predicting here changes nothing in the training: no weights, no metrics, no random generator. Each folder has
one writer: TensorBoard follows only the newest file of a folder.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from trainer import board, pictures, progress
from trainer.progress import printable

PROFILED = (2, 6)  # batches: the first has the tracing in it
Logs = dict[str, Any] | None


class Events(keras.callbacks.TensorBoard):  # type: ignore[misc]  # Keras has no types
    """Keras's TensorBoard: curves, learning rate; and what Keras is slow at or fails to write: histograms, the graph.

    What an epoch has to show is on disk when it ends.
    """

    def __init__(self, folder: Path, *, profile: bool) -> None:
        super().__init__(str(folder), write_graph=False, profile_batch=PROFILED if profile else 0)

    def on_train_begin(self, logs: Logs = None) -> None:
        """Write the graph once."""
        super().on_train_begin(logs)
        board.graph(self._train_writer, self.model)

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        """Write the figures, and how the weights are spread."""
        super().on_epoch_end(epoch, logs)
        with self._train_writer.as_default():
            for weight in self.model.weights:
                board.histogram(tf.summary, f"{weight.path}/histogram", weight.numpy(), epoch)
        self._train_writer.flush()

    def on_train_end(self, logs: Logs = None) -> None:
        """Say how a profile can be looked at: this TensorBoard has no plug-in for it."""
        super().on_train_end(logs)
        if self._stop_batch and any(Path(self._train_dir).glob("plugins/profile/*")):
            progress.line(f"profile: `pip install xprof` elsewhere, then xprof --logdir {printable(self.log_dir)}")

    @contextlib.contextmanager
    def validation(self) -> Iterator[Any]:
        """Yield `tf.summary`, which writes beside the figures of validation."""
        with self._val_writer.as_default():
            yield tf.summary
        self._val_writer.flush()

    def close(self) -> None:
        """Close the files where training was broken off; a full disk was reported when it was met first."""
        with contextlib.suppress(Exception):
            self._close_writers()


class ValidationBoard(keras.callbacks.Callback):  # type: ignore[misc]
    """Predicts the validation photos once more after each epoch: the confusion matrix, and PR curves.

    `validation`: (x, y) arrays, or anything that gives such batches each time it is gone through; y holds class indices
    (N,), or one column for each class.
    """

    def __init__(self, events: Events, validation: Any, class_names: Sequence[str], batch_size: int) -> None:
        super().__init__()
        self._events = events
        self._validation = validation
        self._class_names = [printable(name) for name in class_names]
        self._batch_size = batch_size
        self._predict: Callable[[Any], Any] = lambda x: x

    def on_train_begin(self, logs: Logs = None) -> None:
        """Trace the network once, for batches of any size."""
        del logs
        self._predict = tf.function(lambda x: self.model(x, training=False), reduce_retracing=True, autograph=False)

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        """Write this epoch's picture and curves."""
        del logs
        labels, scores = self._predicted()
        count = scores.shape[1]
        names = self._class_names or [str(index) for index in range(count)]
        matrix = np.zeros((count, count), np.int64)
        np.add.at(matrix, (labels, scores.argmax(axis=1)), 1)
        with self._events.validation() as summary:
            summary.image("confusion matrix", pictures.confusion(matrix, names)[np.newaxis], step=epoch)
            for index, name in enumerate(names):
                board.pr_curve(summary, name, labels == index, scores[:, index], epoch)

    def _predicted(self) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return class indices (N,) and scores (N, C)."""
        labels, scores = [], []
        for x, y in _batches(self._validation, self._batch_size):
            labels.append(_indices(np.asarray(y)))
            scores.append(self._predict(tf.convert_to_tensor(x)).numpy())
        joined = np.concatenate(scores)
        both = np.concatenate([1 - joined, joined], axis=1) if joined.shape[1] == 1 else joined
        return np.concatenate(labels), both


def _batches(validation: Any, batch_size: int) -> Iterator[tuple[Any, Any]]:
    if isinstance(validation, tuple):
        x, y = validation[:2]
        for start in range(0, len(x), batch_size):
            yield x[start : start + batch_size], y[start : start + batch_size]
    elif isinstance(validation, keras.utils.PyDataset):
        yield from (validation[index][:2] for index in range(len(validation)))
    else:
        yield from (batch[:2] for batch in validation)


def _indices(y: NDArray[Any]) -> NDArray[np.int64]:
    """Return class indices from indices, one column, or a column for each class; smoothed labels are rounded."""
    found = y.argmax(axis=1) if y.ndim > 1 and y.shape[1] > 1 else np.rint(y.reshape(-1))
    return np.asarray(found, np.int64)
