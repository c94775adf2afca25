"""When training ends before its last epoch: no progress any more, good enough, or gone wrong.

Invariant: a run that goes on after a kill stops where it would have stopped without: what was seen before is taken from
the CSV.
"""

import math
from typing import Any

import keras

from trainer import stages
from trainer.errors import FailureError
from trainer.stages import MONITOR, Stage
from trainer.tables import Trainer

Logs = dict[str, Any] | None


class Patience(keras.callbacks.EarlyStopping):  # type: ignore[misc]  # Keras has no types
    """Keras's early stopping on the validation loss; the best weights are for `stages.restore_best`."""

    def __init__(self, stage: Stage, patience: int) -> None:
        super().__init__(MONITOR, mode="min", patience=patience)
        self._stage = stage

    def on_train_begin(self, logs: Logs = None) -> None:
        """Look at the epochs before this start as if they were now; has to come after `Rows`."""
        super().on_train_begin(logs)
        for epoch, loss in enumerate(stages.history(self._stage).get(MONITOR, ())):
            super().on_epoch_end(epoch, {MONITOR: loss})
        self.model.stop_training = False  # Keras would make one batch and take it for an epoch; Backup ends such a run

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        """Stop where it is time; without validation it never is."""
        if MONITOR in (logs or {}):
            super().on_epoch_end(epoch, logs)

    @property
    def reason(self) -> str:
        """Why training stopped; empty where it did not."""
        return f"no better for {self.patience} epochs" if self.stopped_epoch else ""


class Target(keras.callbacks.Callback):  # type: ignore[misc]
    """Stops once validation is as good as was asked for: `stop_at_accuracy`, `stop_below_loss`."""

    def __init__(self, asked: Trainer) -> None:
        super().__init__()
        self._asked = asked
        self.reason = ""

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        """Compare this epoch's figures."""
        del epoch
        figures, asked = logs or {}, self._asked
        accuracy, loss = figures.get("val_accuracy", 0.0), figures.get(MONITOR, math.inf)
        if asked.stop_at_accuracy and accuracy >= asked.stop_at_accuracy:
            self.reason = f"validation accuracy {accuracy:.3f} reaches trainer.stop_at_accuracy"
        if asked.stop_below_loss and loss <= asked.stop_below_loss:
            self.reason = f"validation loss {loss:.3f} reaches trainer.stop_below_loss"
        if self.reason:
            self.model.stop_training = True


class Diverged(keras.callbacks.Callback):  # type: ignore[misc]
    """Raises FailureError where a loss is not a number any more: more epochs would not help."""

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        """Look at the losses, before anything keeps them."""
        for name in ("loss", "val_loss", MONITOR):
            if not math.isfinite((logs or {}).get(name, 0.0)):
                raise FailureError(
                    f"epoch {epoch + 1}: the loss is not a number any more: try a lower trainer.learning_rate"
                )
