"""What a stage of a run keeps on disk: its curves as CSV, weights by epoch, and which epoch was the last whole one.

Invariant: an epoch counts once the commit names it: one small file, replaced in one step when all else of that epoch is
on disk. Rows and weights beyond it are leftovers, and are made again. Epochs are counted from 1 here.
"""

import csv
import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras

from trainer import durable
from trainer.errors import FailureError
from trainer.progress import printable

COMMIT = "training_metadata.json"  # the name that keras.callbacks.BackupAndRestore reads
MONITOR = "val_cross_entropy"
ANEW = "start again without --resume"


@dataclass(frozen=True)
class Stage:
    """A part of a run that has a `fit` of its own, of at most `epochs` epochs; everything is below `workdir`."""

    name: str
    workdir: Path
    epochs: int

    @property
    def logs(self) -> Path:
        """Where TensorBoard's events go."""
        return self.workdir / "tensorboard" / self.name

    @property
    def history_csv(self) -> Path:
        """The figures of each epoch, a row for each."""
        return self.workdir / f"history-{self.name}.csv"

    @property
    def checkpoints(self) -> Path:
        """The folder of the weights."""
        return self.workdir / "checkpoints"

    @property
    def backup(self) -> Path:
        """The folder of the commit."""
        return self.workdir / "backup" / self.name

    @property
    def checkpoint_pattern(self) -> str:
        """The weights of an epoch, for `str.format`; a brace in a folder's name is no field."""
        folder = str(self.checkpoints).replace("{", "{{").replace("}", "}}")
        return f"{folder}/{self.name}-{{epoch:03d}}.weights.h5"

    def checkpoint(self, epoch: int) -> Path:
        """Return where the weights (and the optimizer's) after an epoch are."""
        return Path(self.checkpoint_pattern.format(epoch=epoch))


@dataclass(frozen=True)
class Commit:
    """The last whole epoch, whether training was to stop there, and the states of the network's random generators."""

    epoch: int = 0
    stopped: bool = False
    seeds: tuple[tuple[int, ...], ...] = ()

    def write(self, stage: Stage) -> None:
        """Put this in the place of the commit before it, durably."""
        stage.backup.mkdir(parents=True, exist_ok=True)
        # "epoch" and "batch" are what Keras reads
        text = json.dumps({"epoch": self.epoch, "batch": 0, "stopped": self.stopped, "seeds": self.seeds})
        durable.replace(stage.backup / COMMIT, text.encode())
        durable.sync_directory(stage.backup)


def committed(stage: Stage) -> Commit:
    """Return the last commit; epoch 0 where there is none. Raises FailureError where it is damaged."""
    path = stage.backup / COMMIT
    try:
        found = json.loads(path.read_bytes())
        return Commit(int(found["epoch"]), bool(found["stopped"]), tuple(tuple(s) for s in found["seeds"]))
    except FileNotFoundError:
        return Commit()
    except (ValueError, KeyError, TypeError, OverflowError):
        raise FailureError(f"{printable(path)}: damaged: {ANEW}") from None


def history(stage: Stage) -> dict[str, list[float]]:
    """Return the curves, {name: a value for each epoch}, without those that were never measured.

    Raises FailureError where a row cannot be read.
    """
    rows = _rows(stage)
    try:
        curves = {name: [float(row[name]) for row in rows] for name in rows[0] if name != "epoch"} if rows else {}
    except (KeyError, TypeError, ValueError):
        raise FailureError(f"{printable(stage.history_csv)}: a row is damaged: {ANEW}") from None
    return {name: values for name, values in curves.items() if not all(map(math.isnan, values))}


def best_epoch(stage: Stage) -> int:
    """Return the epoch with the lowest validation loss, the first of equals; the last one where none was measured.

    Raises FailureError where no epoch was finished.
    """
    curves = history(stage)
    if not curves:
        raise FailureError(f"{printable(stage.history_csv)}: no epoch was finished: {ANEW}")
    losses = curves.get(MONITOR)
    if losses is None:
        return len(next(iter(curves.values())))
    return losses.index(min(loss for loss in losses if not math.isnan(loss))) + 1


def restore_best(model: keras.Model, stage: Stage) -> int:
    """Load the weights of the best epoch into `model`, and return which it was. Raises FailureError."""
    best = best_epoch(stage)
    load(model, stage.checkpoint(best))
    return best


class _Memory(io.BytesIO):
    """A file in memory, with the name that Keras asks for."""

    def __str__(self) -> str:
        return "memory.weights.h5"


def save(model: keras.Model, path: Path) -> None:
    """Write a model's weights, and its optimizer's, durably: the file is whole or not there. Raises OSError.

    HDF5 writes to memory: on a disk that fills meanwhile, it says so in tracebacks or crashes the process (1.14.6).
    """
    memory = _Memory()
    model.save_weights(memory)
    path.parent.mkdir(parents=True, exist_ok=True)
    durable.replace(path, memory.getvalue())


def load(model: keras.Model, path: Path) -> None:
    """Load weights, and the optimizer's where the model has one. Raises FailureError, naming the file."""
    optimizer = getattr(model, "optimizer", None)
    if optimizer is not None and not optimizer.built:
        optimizer.build(model.trainable_variables)  # Keras skips the optimizer's weights otherwise
    try:
        model.load_weights(str(path))
    except (OSError, ValueError, KeyError) as error:
        why = " ".join(str(error).split())[:150]
        raise FailureError(f"{printable(path)}: these weights cannot be loaded ({why}): {ANEW}") from None


def trim(stage: Stage, epochs: int) -> None:
    """Cut off the rows after the first `epochs`, and a torn one. Raises FailureError where rows are missing."""
    try:
        lines = stage.history_csv.read_bytes().splitlines(keepends=True)
    except FileNotFoundError:
        lines = []
    kept = [line for line in lines if line.endswith(b"\n")][: epochs + 1] if epochs else []
    if epochs and len(kept) < epochs + 1:
        raise FailureError(f"{printable(stage.history_csv)}: holds fewer than {epochs} epochs: {ANEW}")
    if kept != lines:
        durable.replace(stage.history_csv, b"".join(kept))


def prune(stage: Stage, keep: Sequence[int]) -> None:
    """Delete the weights of all epochs but these, and what a kill left of weights half written."""
    whole = re.compile(rf"{re.escape(stage.name)}-(\d+)\.weights\.h5")
    torn = re.compile(rf"\.{re.escape(stage.name)}-\d+\.weights\.h5\..*\.tmp")
    for path in stage.checkpoints.iterdir():
        found = whole.fullmatch(path.name)
        if torn.fullmatch(path.name) or (found and int(found[1]) not in keep):
            path.unlink(missing_ok=True)


def _rows(stage: Stage) -> list[Mapping[str, Any]]:
    try:
        text = stage.history_csv.read_text(encoding="utf-8").replace(",NA", ",nan")
    except FileNotFoundError:
        return []
    except UnicodeDecodeError:
        raise FailureError(f"{printable(stage.history_csv)}: damaged: {ANEW}") from None
    return list(csv.DictReader(io.StringIO(text)))
