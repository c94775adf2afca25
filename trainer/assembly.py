"""From what was fitted to a bundle that can be measured: its files, the views that are worth it, the threshold.

Invariant: what is decided here is decided on the validation photos, by the exported model; the test photos are not
looked at, and those that the network for faces learned from before it came along are no test photos.
"""

import dataclasses
import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from trainer import bundle, calibration, evaluate, export, face_network, replay
from trainer.dataset import MINIMUM, SPLITS, Dataset, Photo
from trainer.evaluate import Predictions
from trainer.fit import Fitted, Plan, View
from trainer.images import PREPROCESSING_VERSION
from trainer.manifest import FaceRules
from trainer.progress import line
from trainer.settings import Settings


def assembled(
    settings: Settings, plan: Plan, data: Dataset, pictures: Dataset, view: View, fitted: Fitted, staged: Path
) -> bundle.Bundle:
    """Return what was fitted as a bundle in the folder `staged`, all but published."""
    made = stage(settings, plan, data, pictures, view, fitted, staged)
    if made.manifest.threshold is None and made.manifest.faces is None:
        return made
    files = judges(data, "validation", made.manifest.faces, view)
    seen = evaluate.predict(made, files, settings.tray.max_pixels)
    if made.manifest.faces is not None and not faces_help(made, seen, files):
        line("faces: they make it no better on the validation photos: the scene alone is used")
        alone = dataclasses.replace(fitted, reader=None)
        return assembled(settings, plan, data, pictures, view, alone, staged)
    return with_threshold(made, seen)


def faces_help(made: bundle.Bundle, seen: Predictions, files: Sequence[tuple[Path, int]]) -> bool:
    """Tell whether with faces it is right at least as often as the scene alone, also on what is a face as a whole."""
    alone = dataclasses.replace(made, manifest=made.manifest.model_copy(update={"faces": None}))
    scenes = evaluate.predict(alone, files, seen.max_pixels)
    with_faces, without = (
        int((evaluate.decided(made, scores) == seen.labels).sum()) for scores in (seen.scores, scenes.scores)
    )
    return with_faces >= without


def leaves_enough_unseen(data: Dataset, rules: FaceRules) -> bool:
    """Tell whether each class keeps photos to choose and to measure by, where faces are looked at; say so where not."""
    for split in ("validation", "test"):
        labels = [photo.label for photo in never_seen(data, data.of(split), rules).photos]
        if any(labels.count(label) < MINIMUM[split] for label in range(len(data.class_names))):
            line(
                f"faces: too few {split} photos are left that the network for faces does not know already: only scenes "
                "are used"
            )
            return False
    return True


def with_threshold(made: bundle.Bundle, seen: Predictions) -> bundle.Bundle:
    """Choose the threshold by the predictions for the validation photos."""
    if made.manifest.threshold is None:
        return made
    threshold = calibration.choose_threshold(seen.labels, seen.scores[:, 1])
    return dataclasses.replace(made, manifest=made.manifest.model_copy(update={"threshold": threshold}))


def stage(
    settings: Settings, plan: Plan, data: Dataset, pictures: Dataset, view: View, fitted: Fitted, staged: Path
) -> bundle.Bundle:
    """Write the bundle's files, all but the manifest, and open them: what is measured is what will serve."""
    shutil.rmtree(staged, ignore_errors=True)
    precision = export.Precision(settings.trainer.precision, view.batches(plan, SPLITS[:1]))
    known = replay_of(data, pictures, fitted)
    export.stage(fitted.network, staged, len(data.class_names), known, precision, fitted.reader)
    draft = draft_manifest(settings, plan, data)
    rules = fitted.reader.rules if fitted.reader else None
    manifest = draft.model_copy(update={"files": bundle.hashes(staged), "faces": rules})
    names = (bundle.MODEL, bundle.DETECTOR, bundle.FACE_MODEL) if rules else (bundle.MODEL,)
    return bundle.Bundle(staged, manifest, *((staged / name).read_bytes() for name in names))


def never_seen(data: Dataset, photos: Sequence[Photo], rules: FaceRules | None) -> Dataset:
    """Return these of its photos, but for what the network for faces knew before training, where it is used."""
    if rules is not None:
        known = np.isin(replay.prefixes([photo.sha256 for photo in photos]), face_network.learned())
        photos = [photo for photo, seen in zip(photos, known, strict=True) if not seen]
    return dataclasses.replace(data, photos=tuple(photos))


def judges(data: Dataset, split: str, rules: FaceRules | None, view: View) -> list[tuple[Path, int]]:
    """Return the files of a split that a bundle is judged by; say how many are not."""
    shown = never_seen(data, data.of(split), rules)
    if known := len(data.of(split)) - len(shown.photos):
        line(f"{known:,} of the {split} photos are not judged: the network for faces that ships knows them")
    return files_of(view, shown)


def files_of(view: View, data: Dataset) -> list[tuple[Path, int]]:
    """Return (path, class index) of the photos, in order; the prepared copy of one that is not what it was."""
    return [(_unchanged(view, data, photo), photo.label) for photo in data.photos]


def _unchanged(view: View, data: Dataset, photo: Photo) -> Path:
    path, copy = data.root / photo.path, view.path(photo)
    try:
        same = hashlib.sha256(path.read_bytes()).hexdigest() == photo.sha256
    except OSError:
        same = False
    return copy if copy.exists() and not same else path


def replay_of(data: Dataset, pictures: Dataset, fitted: Fitted) -> replay.Replay | None:
    """Return what a later training can start from; None where no backbone was used."""
    if fitted.features is None:
        return None
    photos = pictures.in_order()
    scenes = {photo.sha256 for photo in photos}
    faces = [p.sha256 for p in data.photos if p.split != "test" and p.sha256 not in scenes]
    known = face_network.learned() if fitted.reader else ()
    return replay.Replay(
        fitted.features,
        np.array([photo.label for photo in photos], np.uint16),
        np.array([SPLITS.index(photo.split) for photo in photos], np.uint8),
        replay.prefixes([photo.sha256 for photo in photos]),
        np.unique(np.concatenate([replay.prefixes(faces), np.array(known, np.uint64)])),
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
