"""Transfer learning on cached feature maps: doubtful labels dropped, a logistic head, then the upper blocks fine-tuned.

Invariant: only the rows that are named `train` teach, only those named `validation` choose when to stop; other rows are
computed and not looked at. Where fine-tuning made it no better on the validation photos, the head alone stays.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
from numpy.typing import NDArray

from trainer import callbacks, heads, progress, suspects
from trainer.callbacks import Stage, history
from trainer.features import Batches, Maps, Parts
from trainer.heads import Last
from trainer.plan import HEAD_EPOCHS, HEAD_RATE, Plan
from trainer.tables import Trainer

Rows = NDArray[np.int_]


@dataclass(frozen=True)
class Examples:
    """Photos as maps: `copies` (clean first, then augmented, which may hold fewer rows), int labels (N,), and rows."""

    class_names: tuple[str, ...]
    copies: Sequence[Maps]
    labels: NDArray[np.int_]
    kin: NDArray[np.int_]
    train: Rows
    validation: Rows

    @property
    def classes(self) -> int:
        """The number of classes."""
        return len(self.class_names)

    def batches(self, copies: Sequence[Maps], rows: Rows, size: int, seed: int | None = None) -> Batches:
        """Return batches of these maps with their targets."""
        return Batches(copies, rows, heads.targets(self.labels, self.classes), size, seed)


@dataclass(frozen=True)
class Transferred:
    """A classifier (images to probabilities) and its curves by stage.

    `pooled` are its backbone's features of all photos (N, F), `scores` their probabilities (N, C), `dropped` the rows
    of the training photos whose labels were doubted, `kept` the stage whose network it is.
    """

    network: keras.Model
    histories: Mapping[str, Mapping[str, Sequence[float]]]
    pooled: Maps
    scores: NDArray[np.float32]
    dropped: Rows
    kept: str


def train(asked: Trainer, plan: Plan, parts: Parts, examples: Examples, workdir: Path) -> Transferred:
    """Train a head on `parts`, and the upper blocks where the plan says so."""
    pooled = parts.pooled(examples.copies[0])
    kept, dropped = without_suspects(plan, pooled, examples)
    last = fit_head(asked, plan, pooled, kept, examples, workdir)
    histories, stays = {"head": history(Stage("head", workdir, HEAD_EPOCHS))}, "head"
    if parts.upper is not None:
        tuned = fine_tune(asked, plan, parts.upper, last, kept, examples, workdir)
        histories["fine_tune"] = history(Stage("fine_tune", workdir, plan.epochs))
        if standing(histories["fine_tune"]) > standing(histories["head"]):
            last, pooled, stays = tuned, parts.pooled(examples.copies[0]), "fine_tune"
        else:
            progress.line("fine-tuning made it no better: the head alone is kept")
            parts = Parts.of(reset(plan), plan.architecture.cut)
    network = heads.join(parts.whole, last, examples.classes)
    return Transferred(network, histories, pooled, heads.probabilities(pooled, last), dropped, stays)


def standing(curves: Mapping[str, Sequence[float]]) -> tuple[float, float]:
    """Return what a stage's best epoch is judged by: accuracy, then loss (which label smoothing keeps from falling)."""
    losses = curves["val_cross_entropy"]
    best = losses.index(min(losses))
    return curves["val_accuracy"][best], -losses[best]


def reset(plan: Plan) -> keras.Model:
    """Return the backbone as it was before anything was trained."""
    backbone = plan.backbone()
    assert backbone is not None  # noqa: S101  there was one
    return backbone


def without_suspects(plan: Plan, pooled: Maps, examples: Examples) -> tuple[Rows, Rows]:
    """Return the training rows whose labels are believed, and those that are not."""
    train_rows = examples.train
    if not plan.drop_suspects:
        return train_rows, train_rows[:0]
    labels, kin = examples.labels[train_rows], examples.kin[train_rows]
    worst = suspects.worst(pooled[train_rows], labels, plan.drop_suspects, plan.seed, kin)
    doubted = train_rows[np.asarray(worst, np.int_)]
    return np.setdiff1d(train_rows, doubted), doubted


def fit_head(asked: Trainer, plan: Plan, pooled: Maps, kept: Rows, examples: Examples, workdir: Path) -> Last:
    """Fit a logistic head on pooled features; return the kernel and bias that stand for it."""
    stage = Stage("head", workdir, HEAD_EPOCHS if plan.fine_tune else plan.epochs)
    rate = HEAD_RATE if plan.fine_tune else plan.learning_rate
    head = heads.head(pooled[kept], examples.classes)
    heads.compile_for(head, examples.classes, keras.optimizers.Adam(rate))
    _fit(asked, plan, stage, head, [pooled], kept, examples)
    return heads.folded(head)


def fine_tune(
    asked: Trainer, plan: Plan, upper: keras.Model, last: Last, kept: Rows, examples: Examples, workdir: Path
) -> Last:
    """Train `upper` in place, from the head's weights on; return those of its last layer."""
    stage = Stage("fine_tune", workdir, plan.epochs)
    network = heads.tunable(upper, last, examples.classes)
    steps = plan.epochs * -(-len(kept) // plan.batch_size)
    optimizer = heads.fine_tuning_optimizer(plan.learning_rate, steps)
    heads.compile_for(network, examples.classes, optimizer, plan.label_smoothing)
    _fit(asked, plan, stage, network, examples.copies, kept, examples)
    kernel, bias = network.get_layer("probabilities").get_weights()
    return kernel, bias


def _fit(
    asked: Trainer, plan: Plan, stage: Stage, network: keras.Model, copies: Sequence[Maps], kept: Rows, of: Examples
) -> None:
    """Fit, and leave the network with the weights of its best epoch."""
    shuffled = of.batches(copies, kept, plan.batch_size, plan.seed)
    validation = of.batches(copies[:1], of.validation, plan.batch_size)
    weights = heads.class_weights(of.labels[kept], of.classes)
    callbacks.fit(stage, asked, network, shuffled, validation, class_names=of.class_names, class_weight=weights)
