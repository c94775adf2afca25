"""One training run, from class folders to a published bundle.

Invariant: the test photos are judged once, at the end, by the exported model; validation photos choose when to stop and
where the threshold is. A run that fails or is interrupted publishes nothing, and one that was interrupted goes on where
it was. The same photos, settings and seed give the same model on the same machine.
"""

import contextlib
import dataclasses
import shutil
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from trainer import (
    assembly,
    bundle,
    decisions,
    evaluate,
    face_training,
    hooks,
    known_labels,
    prepared,
    results,
    runs,
    viewing,
)
from trainer.dataset import SPLITS, Dataset, open_dataset
from trainer.disk import disk_errors
from trainer.errors import InputError
from trainer.fit import Fitted, Plan, View, fit
from trainer.progress import printable
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


def train_and_evaluate(settings: Settings, workdir: Path, *, promote: bool, expected: str = "") -> Trained:
    """Train on the dataset, measure on its test photos, and publish; `workdir` is the run's own directory.

    With `promote` the bundle becomes the champion, unless it is no better than guessing. `expected` is the hash of the
    photos that somebody else has read already.

    Raises InputError (DatasetError, ArchitectureError …), DownloadError, BundleError.
    """
    started = time.monotonic()
    make_repeatable(settings.trainer.seed)
    settings = viewing.settled(settings)
    plan = Plan.of(settings.trainer)
    data = prepare(settings, plan)
    if plan.faces is not None and data.is_enough and not assembly.leaves_enough_unseen(data, plan.faces):
        settings = viewing.scenes_alone(settings)
        plan = Plan.of(settings.trainer)
        data = prepare(settings, plan)
    if expected and data.hash != expected:
        raise InputError(f"{printable(data.root)}: photos changed meanwhile: the next retraining reads them")
    data.require_enough()
    hooks.find(settings.trainer.hooks)  # a mistake there is no run to go on with
    begun = runs.begin(workdir, asked(settings, data), datetime.now(UTC))
    with disk_errors(workdir):
        pictures = scenes(settings, plan, data)
        view = open_view(settings, plan, pictures, workdir / "data")
        fitted = fitted_to(settings, plan, data, view, workdir)
        served, metrics = judged(settings, plan, data, pictures, view, fitted, workdir, started)
    draft = served.manifest.model_copy(update={"metrics": metrics.as_json(), "created": begun})
    number = published(settings.models.root, served, draft)
    trained = Trained(number, metrics, data)
    if promote and not trained.guesses:
        take_over(settings.models.root, trained)
    runs.finish(workdir, {"bundle": number, "metrics": metrics.as_json()})
    return trained


def take_over(models: Path, trained: Trained) -> None:
    """Make the bundle the champion; the line is first, so that a kill in between loses nothing."""
    before, now = bundle.champion(models), datetime.now(UTC)
    decisions.append(models, decisions.FIT, now, champion=trained.number, before=before, folder=trained.data.hash)
    bundle.promote(models, trained.number)
    known_labels.write(models, trained.data)


def fitted_to(settings: Settings, plan: Plan, data: Dataset, view: View, workdir: Path) -> Fitted:
    """Train on the scenes (`view`), and on the faces in all photos."""
    fitted = fit(settings.trainer, plan, view, workdir)
    if plan.faces is None:
        return fitted
    return face_training.added(settings.trainer, plan, data, cache_of(settings, plan), fitted, workdir)


def judged(
    settings: Settings, plan: Plan, data: Dataset, pictures: Dataset, view: View, fitted: Fitted, workdir: Path,
    started: float,
) -> tuple[bundle.Bundle, evaluate.Metrics]:  # fmt: skip
    """Export what was fitted, choose its views and threshold, measure it on the test photos, and report."""
    served = assembly.assembled(settings, plan, data, pictures, view, fitted, workdir / "staged")
    files = assembly.judges(data, "test", served.manifest.faces, view)
    predictions = evaluate.predict(served, files, settings.tray.max_pixels)
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
    return prepared.shared(settings, plan.image_size, plan.faces)


def prepare(settings: Settings, plan: Plan) -> Dataset:
    """Read the dataset, and prepare each photo that is new."""
    return open_dataset(settings, cache_of(settings, plan).add)


def scenes(settings: Settings, plan: Plan, data: Dataset) -> Dataset:
    """Return the photos that the scene's network learns from: not those that are faces as a whole, if others do."""
    if plan.faces is None:
        return data
    cache = cache_of(settings, plan)
    origins = {photo.sha256: prepared.Prepared(cache.path(photo.sha256)).origin for photo in data.photos}
    left = tuple(p for p in data.photos if not ((origin := origins[p.sha256]) and origin.is_face))
    pictures = dataclasses.replace(data, photos=left)
    return pictures if pictures.is_enough else data


def open_view(settings: Settings, plan: Plan, data: Dataset, root: Path) -> View:
    """Make the folder of photos that Keras reads: `root/<split>/<class>/`."""
    photos = ((p.split, data.class_names[p.label], p.sha256) for p in data.photos)
    shutil.rmtree(root, ignore_errors=True)
    prepared.link(cache_of(settings, plan), photos, data.class_names, root)
    labels = {split: [p.label for p in data.of(split)] for split in SPLITS}
    return View(root, data.class_names, labels, data.kin(data.in_order()))


def asked(settings: Settings, data: Dataset) -> dict[str, Any]:
    """Return what a run that goes on must have in common with the one that was interrupted."""
    table = settings.trainer.model_dump(mode="json", exclude={"runs", "profile"})
    return {f"trainer.{key}": value for key, value in table.items()} | {"the photos": data.hash}
