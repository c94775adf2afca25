"""What a finished run leaves to look at: pictures, report.html, and TensorBoard's test figures.

Invariant: everything shows the same predictions, those of the exported model on the test photos, and is there before
the bundle is published.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from trainer import board, charts, memory, report
from trainer.bundle import Bundle
from trainer.dataset import Dataset
from trainer.evaluate import Metrics, Predictions
from trainer.fit import Fitted, View
from trainer.plan import Plan
from trainer.settings import Settings

SPRITE = 48  # pixels of a thumbnail in TensorBoard's projector


def facts(settings: Settings, plan: Plan, data: Dataset, fitted: Fitted, seconds: float) -> dict[str, str]:
    """Return what somebody wants to know about a run later, for people."""
    counts = {split: sum(of_class.values()) for split, of_class in data.counts().items()}
    return {
        "architecture": f"{plan.architecture.name}, {plan.image_size} px",
        "stages": ", ".join(f"{name} ({len(curves['accuracy'])} epochs)" for name, curves in fitted.histories.items()),
        "kept": f"the network of stage {fitted.kept}",
        "photos": ", ".join(f"{count} {split}" for split, count in counts.items()),
        "not used": str(len(data.unused)),
        "labels doubted, not learned from": str(len(fitted.dropped)),
        "dataset hash": data.hash,
        "seed": str(plan.seed),
        "time": f"{seconds:.0f} s",
        "peak memory": f"{memory.peak() / 1e9:.1f} GB",
        "settings": " ".join(f"{k}={v}" for k, v in settings.trainer.model_dump(mode="json").items() if k != "runs"),
    }


def show(
    served: Bundle,
    predictions: Predictions,
    metrics: Metrics,
    fitted: Fitted,
    told: Mapping[str, str],
    view: View,
    settings: Settings,
    workdir: Path,
) -> None:
    """Write curves.png, confusion.png, report.html and TensorBoard's summary of the run."""
    history = fitted.histories[fitted.kept]
    charts.draw_curves(history, workdir / "curves.png")
    charts.draw_confusion(metrics, workdir / "confusion.png")
    report.write(
        workdir / "report.html", served, predictions, metrics, title="Training report", facts=told, history=history
    )
    logs = workdir / "tensorboard"
    board.text(logs / "settings", settings)
    board.hparams(logs / "hparams", hyperparameters(settings), figures(metrics))
    if fitted.features is not None:
        project(fitted, view, logs / "projector")


def hyperparameters(settings: Settings) -> dict[str, str | float | bool]:
    """Return the settings that TensorBoard compares runs by."""
    table = settings.trainer.model_dump(mode="json", exclude={"runs", "hooks", "profile", "views"})
    return {**table, "views": " and ".join(settings.trainer.views)}


def figures(metrics: Metrics) -> dict[str, float]:
    """Return the figures that TensorBoard compares runs by."""
    found = {
        "accuracy": metrics.accuracy,
        "balanced accuracy": metrics.balanced_accuracy,
        "AUC": metrics.auc,
        "ECE": metrics.ece,
    }
    return {name: value for name, value in found.items() if value is not None}


def project(fitted: Fitted, view: View, logs: Path) -> None:
    """Give TensorBoard's projector the features of the test photos, each with its thumbnail."""
    assert fitted.features is not None  # noqa: S101  the caller asked
    rows = view.rows("test")
    taken = board.projected(len(rows))
    thumbnails, seen = [], 0
    for images in view.thumbnails("test", SPRITE):
        thumbnails.append(images[taken[(taken >= seen) & (taken < seen + len(images))] - seen])
        seen += len(images)
    chosen = rows[taken]
    board.projector(
        logs, fitted.features[chosen], view.all_labels()[chosen], view.class_names, np.concatenate(thumbnails)
    )
