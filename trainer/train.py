"""One training run, from class folders to a published bundle.

Invariant: the test photos are judged once, at the end, by the exported model; validation photos choose when to stop and
where the threshold is. A run that fails or is interrupted publishes nothing, and one that was interrupted goes on where
it was. The same photos, settings and seed give the same model on the same machine.
"""

import contextlib
import hashlib
import shutil
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from trainer import bundle, calibration, evaluate, export, hooks, prepared, replay, results, runs
from trainer.dataset import SPLITS, Dataset, Photo, open_dataset
from trainer.disk import disk_errors
from trainer.fit import Fitted, Plan, View, fit
from trainer.images import PREPROCESSING_VERSION
from trainer.settings import Settings


@dataclass(frozen=True)
class Trained:
    """The bundle that a run published, what was measured on the test photos, and which photos there were."""

    number: int
    metrics: evaluate.Metrics
    data: Dataset

    @property
    def guesses(self) -> bool:
        """Whether the bundle is no better than guessing, and so no champion."""
        return self.metrics.balanced_accuracy <= 1 / len(self.data.class_names)


def train_and_evaluate(settings: Settings, workdir: Path, *, promote: bool) -> Trained:
    """Train on the dataset, measure on its test photos, and publish; `workdir` is the run's own directory.

    With `promote` the bundle becomes the champion, unless it is no better than guessing.

    Raises InputError (DatasetError, ArchitectureError …), DownloadError, BundleError.
    """
    started = time.monotonic()
    make_repeatable(settings.trainer.seed)
    plan = Plan.of(settings.trainer)
    data = prepare(settings, plan)
    data.require_enough()
    hooks.find(settings.trainer.hooks)  # a mistake there is no run to go on with
    begun = runs.begin(workdir, asked(settings, data), datetime.now(UTC))
    with disk_errors(workdir):
        view = open_view(settings, plan, data, workdir / "data")
        fitted = fit(settings.trainer, plan, view, workdir)
        served, metrics = judged(settings, plan, data, view, fitted, workdir, started)
    draft = served.manifest.model_copy(update={"metrics": metrics.as_json(), "created": begun})
    number = published(settings.models.root, served, draft)
    trained = Trained(number, metrics, data)
    if promote and not trained.guesses:
        bundle.promote(settings.models.root, number)
    runs.finish(workdir, {"bundle": number, "metrics": metrics.as_json()})
    return trained


def judged(
    settings: Settings, plan: Plan, data: Dataset, view: View, fitted: Fitted, workdir: Path, started: float
) -> tuple[bundle.Bundle, evaluate.Metrics]:
    """Export what was fitted, choose its threshold, measure it on the test photos, and report."""
    staged = workdir / "staged"
    stage(settings, plan, view, data, fitted, staged)
    served = opened(staged, draft_manifest(settings, plan, data))
    served = with_threshold(served, view, data, settings)
    predictions = evaluate.predict(served, files_of(view, data, "test"), settings.tray.max_pixels)
    metrics = evaluate.measure(served, predictions)
    facts = results.facts(settings, plan, data, fitted, time.monotonic() - started)
    results.show(served, predictions, metrics, fitted, facts, view, settings, workdir)
    return served, metrics


def published(models: Path, served: bundle.Bundle, draft: bundle.Manifest) -> int:
    """Publish, unless this very run did so before it was interrupted; return the bundle's number."""
    for number in bundle.numbers(models):
        with contextlib.suppress(bundle.BundleError):
            there = bundle.read_manifest(models, number)
            if (there.created, there.dataset) == (draft.created, draft.dataset):  # the microsecond in which a run began
                return number
    return bundle.publish(models, served.path, draft)


def make_repeatable(seed: int) -> None:
    """Seed Python, numpy and TensorFlow, and let TensorFlow use deterministic kernels only."""
    keras.utils.set_random_seed(seed)
    tf.config.experimental.enable_op_determinism()


def cache_of(settings: Settings, plan: Plan) -> prepared.Cache:
    """Return the folder of prepared photos that all runs share."""
    return prepared.Cache(settings.trainer.runs / "prepared", plan.image_size, settings.tray.max_pixels)


def prepare(settings: Settings, plan: Plan) -> Dataset:
    """Read the dataset, and prepare each photo that is new."""
    return open_dataset(settings, cache_of(settings, plan).add)


def open_view(settings: Settings, plan: Plan, data: Dataset, root: Path) -> View:
    """Make the folder of photos that Keras reads: `root/<split>/<class>/`."""
    photos = ((p.split, data.class_names[p.label], p.sha256) for p in data.photos)
    shutil.rmtree(root, ignore_errors=True)
    prepared.link(cache_of(settings, plan), photos, root)
    return View(root, data.class_names, {split: [p.label for p in data.of(split)] for split in SPLITS})


def files_of(view: View, data: Dataset, split: str) -> list[tuple[Path, int]]:
    """Return (path, class index) of a split's photos, in order; the prepared copy of one that is not what it was."""
    return [(_unchanged(view, data, photo), photo.label) for photo in data.of(split)]


def _unchanged(view: View, data: Dataset, photo: Photo) -> Path:
    path = data.root / photo.path
    try:
        same = hashlib.sha256(path.read_bytes()).hexdigest() == photo.sha256
    except OSError:
        same = False
    return path if same else view.path(photo)


def asked(settings: Settings, data: Dataset) -> dict[str, Any]:
    """Return what a run that goes on must have in common with the one that was interrupted."""
    table = settings.trainer.model_dump(mode="json", exclude={"runs", "profile"})
    return {f"trainer.{key}": value for key, value in table.items()} | {"the photos": data.hash}


def stage(settings: Settings, plan: Plan, view: View, data: Dataset, fitted: Fitted, staged: Path) -> None:
    """Write the bundle's files, all but the manifest."""
    shutil.rmtree(staged, ignore_errors=True)
    precision = export.Precision(settings.trainer.precision, view.batches(plan, SPLITS[:1]))
    export.stage(fitted.network, staged, len(data.class_names), replay_of(data, fitted), precision)


def opened(staged: Path, draft: bundle.Manifest) -> bundle.Bundle:
    """Return the staged files as a bundle, so that what is measured is what will serve."""
    manifest = draft.model_copy(update={"files": bundle.hashes(staged)})
    return bundle.Bundle(staged, manifest, (staged / bundle.MODEL).read_bytes())


def with_threshold(served: bundle.Bundle, view: View, data: Dataset, settings: Settings) -> bundle.Bundle:
    """Choose the threshold on the validation photos."""
    if served.manifest.threshold is None:
        return served
    seen = evaluate.predict(served, files_of(view, data, "validation"), settings.tray.max_pixels)
    threshold = calibration.choose_threshold(seen.labels, seen.scores[:, 1])
    manifest = served.manifest.model_copy(update={"threshold": threshold})
    return bundle.Bundle(served.path, manifest, served.model)


def replay_of(data: Dataset, fitted: Fitted) -> replay.Replay | None:
    """Return what a later training can start from; None where no backbone was used."""
    if fitted.features is None:
        return None
    photos = [photo for split in SPLITS for photo in data.of(split)]
    return replay.Replay(
        fitted.features,
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
