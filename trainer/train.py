"""One training run, from class folders to a published bundle.

Invariant: the test photos are judged once, at the end, by the exported model; validation photos choose when to stop. A
run that fails or is interrupted publishes nothing. The same photos, settings and seed give the same model on the same
machine.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from trainer import bundle, charts, export, prepared, replay
from trainer.dataset import SPLITS, Dataset, open_dataset
from trainer.evaluate import Metrics, evaluate
from trainer.fit import Fitted, Plan, View, fit
from trainer.images import PREPROCESSING_VERSION
from trainer.settings import Settings


@dataclass(frozen=True)
class Trained:
    """The bundle that a run published, and what was measured on the test photos, and which photos there were."""

    number: int
    metrics: Metrics
    data: Dataset


def train_and_evaluate(settings: Settings, workdir: Path) -> Trained:
    """Train on the dataset, measure on its test photos, and publish; `workdir` is the run's own new directory.

    Raises DatasetError, ArchitectureError, DownloadError, BundleError.
    """
    make_repeatable(settings.trainer.seed)
    plan = Plan.of(settings.trainer)
    backbone = plan.backbone()

    cache = prepared.Cache(settings.trainer.runs / "prepared", plan.image_size, settings.tray.max_pixels)
    data = open_dataset(settings, cache.add)
    data.require_enough()
    view = View(workdir / "data", data.class_names)
    prepared.link(cache, ((p.split, data.class_names[p.label], p.sha256) for p in data.photos), view.root)

    fitted = fit(plan, backbone, view, workdir / "tensorboard")

    staged = workdir / "staged"
    export.stage(fitted.network, staged, len(data.class_names), replay_of(data, fitted))
    draft = draft_manifest(settings, plan, data)
    served = bundle.Bundle(staged, draft, (staged / bundle.MODEL).read_bytes())
    test = [(view.root / "test" / data.class_names[p.label] / f"{p.sha256}.png", p.label) for p in data.of("test")]
    metrics = evaluate(served, test, settings.tray.max_pixels)
    charts.draw_curves(fitted.history, workdir / "curves.png")
    charts.draw_confusion(metrics, workdir / "confusion.png")

    draft = draft.model_copy(update={"metrics": metrics.as_json()})
    number = bundle.publish(settings.models.root, staged, draft)
    shutil.rmtree(staged)
    return Trained(number, metrics, data)


def make_repeatable(seed: int) -> None:
    """Seed Python, numpy and TensorFlow, and let TensorFlow use deterministic kernels only."""
    keras.utils.set_random_seed(seed)
    tf.config.experimental.enable_op_determinism()


def replay_of(data: Dataset, fitted: Fitted) -> replay.Replay | None:
    """Return what a later training can start from; None where no backbone was frozen."""
    if not fitted.features:
        return None
    photos = [photo for split in SPLITS for photo in data.of(split)]
    return replay.Replay(
        np.concatenate([fitted.features[split].values for split in SPLITS]),
        np.array([photo.label for photo in photos], np.uint16),
        np.array([SPLITS.index(photo.split) for photo in photos], np.uint8),
        replay.prefixes([photo.sha256 for photo in photos]),
    )


def draft_manifest(settings: Settings, plan: Plan, data: Dataset) -> bundle.Manifest:
    """Return the manifest but for the metrics and what publishing fills in."""
    return bundle.Manifest(
        number=1,
        class_names=data.class_names,
        input_size=plan.image_size,
        preprocessing_version=PREPROCESSING_VERSION,
        threshold=bundle.THRESHOLD if len(data.class_names) == 2 else None,  # noqa: PLR2004
        architecture=plan.architecture.name,
        metrics={},
        dataset=bundle.DatasetSummary(hash=data.hash, counts=data.counts()),
        seed=plan.seed,
        versions=export.versions(),
        parent=bundle.champion(settings.models.root),
        created=export.now(),
        files={},
    )
