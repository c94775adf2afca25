"""The callbacks that let a run go on after a kill at any moment, as if nothing had happened.

Invariant: at the end of an epoch its row of the CSV and its weights are made durable, and then the commit, so whatever
the commit names is there. Going on restores weights, optimizer, dropout's generators, the history and the
number of the next epoch; the rest (the order of photos, augmentation) has to follow from (seed, epoch) alone.
"""

import os
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from trainer import stages
from trainer.errors import FailureError
from trainer.progress import printable
from trainer.stages import Commit, Stage

Logs = dict[str, Any] | None


class Rows(keras.callbacks.CSVLogger):  # type: ignore[misc]  # Keras has no types
    """Keras's CSV of the epochs' figures, cut back to the committed epochs when a run goes on."""

    def __init__(self, stage: Stage) -> None:
        super().__init__(str(stage.history_csv), append=True)
        self._stage = stage

    def on_train_begin(self, logs: Logs = None) -> None:
        """Drop the rows of epochs that will be made again."""
        self._stage.workdir.mkdir(parents=True, exist_ok=True)
        stages.trim(self._stage, stages.committed(self._stage).epoch)
        super().on_train_begin(logs)

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        """Write the row, durably."""
        super().on_epoch_end(epoch + 1, logs)  # epochs count from 1 wherever a person sees them
        os.fsync(self.csv_file.fileno())

    def close(self) -> None:
        """Close the file where training was broken off."""
        self.on_train_end()


class Checkpoints(keras.callbacks.ModelCheckpoint):  # type: ignore[misc]
    """Keras's checkpoint of the weights of each epoch, never torn; Backup deletes all but the best and the last."""

    def __init__(self, stage: Stage) -> None:
        super().__init__(stage.checkpoint_pattern, save_weights_only=True)
        self._stage = stage

    def _save_model(self, epoch: int, batch: int | None, logs: Logs) -> None:
        del batch, logs
        stages.save(self.model, self._stage.checkpoint(epoch + 1))


class Backup(keras.callbacks.BackupAndRestore):  # type: ignore[misc]
    """Keras's backup, with a commit that cannot be torn.

    Keras writes the weights over the old ones and then the epoch's number: after a kill between the two, an epoch would
    be trained twice. Here the weights are those of the epoch's checkpoint, and a commit names the epoch. Keras also
    leaves out the state of dropout's generators, so the commit holds them.

    It restores as the first callback of a list; `commit` has to be called by the last.
    """

    def __init__(self, stage: Stage) -> None:
        super().__init__(str(stage.backup), delete_checkpoint=False)  # a finished stage is not to be trained again
        self._stage = stage

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        """Wait for the other callbacks."""

    def commit(self, epoch: int, logs: Logs = None) -> None:
        """Declare this epoch whole, and delete the weights of all others but the best."""
        del logs
        done = epoch + 1
        seeds = tuple(tuple(np.asarray(state.value).tolist()) for state in generators(self.model))
        Commit(done, bool(self.model.stop_training), seeds).write(self._stage)
        stages.prune(self._stage, [stages.best_epoch(self._stage), done])

    def on_train_end(self, logs: Logs = None) -> None:
        """Leave no epoch number in the model, or its next `fit` would begin there."""
        super().on_train_end(logs)
        self.model._initial_epoch = 0  # noqa: SLF001  where Keras's own callback puts it

    def _load_model(self) -> None:
        done = stages.committed(self._stage)
        self.model._initial_epoch = self.params["epochs"] if done.stopped else done.epoch  # noqa: SLF001
        if done.epoch:
            stages.load(self.model, self._stage.checkpoint(done.epoch))
            states = generators(self.model)
            if len(states) != len(done.seeds):
                raise FailureError(f"{printable(self._stage.backup)}: damaged: {stages.ANEW}")
            for state, value in zip(states, done.seeds, strict=True):
                state.assign(value)


def generators(model: keras.Model) -> list[Any]:
    """Return the states of a model's random generators, as variables, in an order that is the same for every build."""
    return [variable for variable in model.variables if variable.name == "seed_generator_state"]


class EpochOrder(keras.callbacks.Callback):  # type: ignore[misc]
    """Sets `batches.epoch`, from 0, as each epoch begins: the order of the photos can follow from (seed, epoch).

    For a `keras.utils.PyDataset` with one worker (the default): Keras asks it for an epoch's first batch after this. It
    also asks for a batch or two before training begins, so a batch has to follow from (seed, epoch, index) alone.
    """

    def __init__(self, batches: Any) -> None:
        super().__init__()
        self._batches = batches

    def on_epoch_begin(self, epoch: int, logs: Logs = None) -> None:
        """Tell the batches."""
        del logs
        self._batches.epoch = epoch


class EpochStream(keras.utils.PyDataset):  # type: ignore[misc]
    """A tf.data stream that is made anew for each epoch, `make(epoch)`: of `count` batches, for `EpochOrder`.

    A stream that shuffles begins with the order of its first epoch wherever a run goes on; this one does not.
    """

    def __init__(self, make: Callable[[int], tf.data.Dataset], count: int) -> None:
        super().__init__()
        self.epoch = 0
        self._make = make
        self._count = count
        self._batches: Iterator[Any] = iter(())

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Any:
        """Return a batch; they are asked for one after the other, from 0."""
        if index == 0:
            self._batches = iter(self._make(self.epoch))
        return next(self._batches)
