"""What watches a stage of training: resuming, stopping, TensorBoard, the user's hooks, and progress for a person.

Invariant: nothing here changes what is learned, but for when training ends; and an epoch counts only once all of this
is done with it (the order of the list in `watching`).
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import keras
from rich.progress import Progress, TaskID

from trainer import board, hooks, progress, resuming, stages
from trainer.disk import disk_errors
from trainer.events import Events, ValidationBoard
from trainer.resuming import EpochOrder, EpochStream
from trainer.stages import Stage, best_epoch, history, restore_best
from trainer.stopping import Diverged, Patience, Target
from trainer.tables import Trainer

__all__ = ["EpochOrder", "EpochStream", "Stage", "best_epoch", "guarded", "history", "restore_best", "watching"]

Logs = dict[str, Any] | None


def watching(
    stage: Stage, asked: Trainer, *, validation: Any = None, class_names: Sequence[str] = ()
) -> list[keras.callbacks.Callback]:
    """Return the callbacks of a stage, for `fit(callbacks=…)`, to be run within `guarded`.

    `validation`, (x, y) arrays or batches of them, is for TensorBoard's confusion matrix and PR curves. Raises
    InputError for hooks that cannot be had.
    """
    backup, patience, target = resuming.Backup(stage), Patience(stage, asked.patience), Target(asked)
    own = hooks.load(asked.hooks, asked, stage)
    board.listed(stage.workdir)
    events = Events(stage.logs, profile=asked.profile)
    pictures = [] if validation is None else [ValidationBoard(events, validation, class_names, asked.batch_size)]
    return [
        Diverged(),  # first: a loss that is no number is kept by nobody
        backup,
        resuming.Rows(stage),
        EpochProgress(stage, patience, target),
        patience,
        target,
        events,
        *pictures,
        *([own] if own else []),
        resuming.Checkpoints(stage),
        keras.callbacks.LambdaCallback(on_epoch_end=backup.commit),  # last: all of the epoch is there
    ]


def fit(
    stage: Stage,
    asked: Trainer,
    network: keras.Model,
    batches: Any,
    validation: Any,
    *,
    class_names: Sequence[str],
    class_weight: dict[int, float],
) -> None:
    """Fit a stage, watched, and leave the network with the weights of its best epoch.

    `batches` bring their own order: a `keras.utils.PyDataset` with an `epoch`, see EpochOrder.
    """
    watched = [EpochOrder(batches), *watching(stage, asked, validation=validation, class_names=class_names)]
    with guarded(stage, watched):
        network.fit(
            batches,
            validation_data=validation,
            epochs=stage.epochs,
            callbacks=watched,
            class_weight=class_weight,
            shuffle=False,
            verbose=0,
        )
    restore_best(network, stage)


@contextlib.contextmanager
def guarded(stage: Stage, callbacks: Sequence[keras.callbacks.Callback]) -> Iterator[None]:
    """Wrap around `fit`: whatever breaks it off, the terminal is left usable, and a full disk is one line.

    Raises FailureError where the run's folder cannot be written.
    """
    with disk_errors(stage.workdir):
        try:
            yield
        finally:
            for callback in callbacks:
                close = getattr(callback, "close", None)
                if close is not None:
                    close()


class EpochProgress(keras.callbacks.Callback):  # type: ignore[misc]
    """Writes a line per epoch, and shows a bar on a terminal; Keras itself is kept quiet."""

    def __init__(self, stage: Stage, *stopping: Patience | Target) -> None:
        super().__init__()
        self._stage = stage
        self._stopping = stopping
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self._done = 0

    def on_train_begin(self, logs: Logs = None) -> None:
        """Open the bar, and say where a run goes on."""
        del logs
        self._done = stages.committed(self._stage).epoch
        if self._done:
            progress.line(f"{self._stage.name}: resuming at epoch {self._done + 1}")
        if progress.on_terminal():
            self._bar = progress.bar()
            self._bar.start()
            self._task = self._bar.add_task(self._stage.name, total=self._stage.epochs, completed=self._done)

    def on_train_batch_end(self, batch: int, logs: Logs = None) -> None:
        """Move the bar a little."""
        del logs
        if self._bar is not None and self.params.get("steps"):
            self._bar.update(self._task, completed=self._done + (batch + 1) / self.params["steps"])

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        """Say how well it goes."""
        self._done = epoch + 1
        text = f"{self._stage.name}: epoch {self._done}/{self._stage.epochs}  {_figures(logs or {})}"
        if self._bar is None:
            progress.line(text)
        else:
            self._bar.console.print(text, highlight=False, soft_wrap=True, markup=False)
            self._bar.update(self._task, completed=self._done)

    def on_train_end(self, logs: Logs = None) -> None:
        """Close the bar, and say which epoch is kept where training ended early."""
        del logs
        self.close()
        if 0 < self._done < self._stage.epochs:
            why = next((f" ({s.reason})" for s in self._stopping if s.reason), "")
            best = stages.best_epoch(self._stage)
            progress.line(
                f"{self._stage.name}: stopped after epoch {self._done}{why}: the best was epoch {best}, which is kept"
            )

    def close(self) -> None:
        """Take the bar off the terminal; also where training was broken off."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def _figures(logs: dict[str, Any]) -> str:
    names = {"cross_entropy": "loss", "accuracy": "accuracy", "val_cross_entropy": "validation loss",
             "val_accuracy": "validation accuracy"}  # fmt: skip
    return "  ".join(f"{shown} {float(logs[name]):.3f}" for name, shown in names.items() if name in logs)
