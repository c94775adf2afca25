"""Cross-validation: train again and again, each time leaving out one group of photos, and measure on that group.

Invariant: no model is measured on a photo that it was trained on, nor on a near duplicate of one, nor on one of the
same group. A group is what the person says resembles itself: the photos of one collector, one camera, one day.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table
from rich.text import Text

from trainer import assembly, bundle, calibration, face_training, progress, runs, train, transfer, viewing, views
from trainer.dataset import SPLITS, Dataset, DatasetError, Photo
from trainer.evaluate import Metrics, Predictions, measure
from trainer.face_training import FaceExamples
from trainer.features import Parts
from trainer.fit import examples
from trainer.plan import Plan
from trainer.settings import Settings

FOLDS = 5  # where no groups are named: parts by content hash
LEAST = 50  # photos that a group needs to be measured on its own; smaller ones are put together
REST = "the rest"
NO_GROUP = ""  # of photos that the expression says nothing about


@dataclass(frozen=True)
class Fold:
    """A group that was left out, and what the model of all others got right on it."""

    name: str
    metrics: Metrics
    predictions: Predictions


def crossvalidate(settings: Settings, groups: re.Pattern[str] | None, workdir: Path) -> list[Fold]:
    """Train as `fit` would, once for each group, and measure on it; `groups` names them, see `group`.

    Raises DatasetError where there are fewer than two groups; InputError for an architecture without a backbone.
    """
    train.make_repeatable(settings.trainer.seed)
    settings = viewing.settled(settings)
    plan = Plan.of(settings.trainer)
    everything = train.prepare(settings, plan)
    data = train.scenes(settings, plan, everything)
    if data is everything:  # no scenes, or no faces: all are measured, by the network that knows some of them
        everything = data = assembly.never_seen(data, data.photos, plan.faces)
    view = train.open_view(settings, plan, data, workdir / "data")
    photos = data.in_order()
    faces = faces_alone(everything, photos)
    kin = kinship(everything, [*photos, *faces])
    members = group(data, photos, kin[: len(photos)], groups)
    parts = parts_of(plan)
    shown = examples(plan, parts, view, workdir / "features", SPLITS)
    held_out = np.array([photo.split == "validation" for photo in photos])
    by_faces = face_examples(settings, plan, data.class_names, [*photos, *faces], workdir)
    rounds = _Rounds(settings, plan, data, shown, by_faces, kin, held_out)
    return [
        Fold(name, *_fold(rounds, rows, workdir / f"fold-{number}"))
        for number, (name, rows) in enumerate(_said(members), 1)
    ]


@dataclass(frozen=True)
class _Rounds:
    """What all rounds share: the scenes as maps and, where they are looked at, the faces in the same photos.

    `by_faces` and `kin` go on, behind the scenes' photos, with the pictures that are faces as a whole.
    """

    settings: Settings
    plan: Plan
    data: Dataset
    shown: transfer.Examples
    by_faces: FaceExamples | None
    kin: NDArray[np.uint64]
    held_out: NDArray[np.bool_]


def faces_alone(everything: Dataset, photos: Sequence[Photo]) -> list[Photo]:
    """Return the pictures that are faces as a whole: all that are not among the scenes' `photos`."""
    scenes = {photo.sha256 for photo in photos}
    return [photo for photo in everything.photos if photo.sha256 not in scenes]


def face_examples(
    settings: Settings, plan: Plan, class_names: tuple[str, ...], photos: Sequence[Photo], workdir: Path
) -> FaceExamples | None:
    """Return the faces of the photos, in their order, where faces are looked at."""
    if plan.faces is None:
        return None
    cache = train.cache_of(settings, plan)
    return face_training.examples(cache, photos, class_names, workdir / "features", plan.faces)


def parts_of(plan: Plan) -> Parts:
    """Return a fresh backbone, cut where the plan says. Raises DatasetError where there is none."""
    backbone = plan.backbone()
    if backbone is None:
        raise DatasetError(f"architecture {plan.architecture.name}: it has no backbone: cross-validation needs one")
    return Parts.of(backbone, plan.architecture.cut if plan.fine_tune else "")


def kinship(data: Dataset, photos: Sequence[Photo]) -> NDArray[np.uint64]:
    """Return a number for each photo that it shares with its near duplicates: bits of the least hash among them."""
    least = {photo.path: photo.sha256 for photo in photos}
    for twins in data.twins:
        there = [path for path in twins if path in least]
        least |= dict.fromkeys(there, min((least[path] for path in there), default=""))
    return np.array([int(least[photo.path][16:32], 16) for photo in photos], np.uint64)  # not what decides the split


def group(
    data: Dataset, photos: Sequence[Photo], kin: NDArray[np.uint64], finder: re.Pattern[str] | None
) -> dict[str, NDArray[np.int_]]:
    """Return which photos are in which group: FOLDS parts where there is no `finder`. Raises DatasetError."""
    if finder is None:
        return _rows_of([f"part {1 + int(number) % FOLDS}" for number in kin])
    found = _rows_of([_name(finder, photo) for photo in photos])
    if len(others := found.pop(NO_GROUP, ())):
        progress.line(f"{len(others)} photos are in no group: all models are trained on them, and none is measured")
    small = [name for name, rows in found.items() if len(rows) < LEAST]
    if len(small) > 1:
        progress.line(f"groups of fewer than {LEAST} photos, taken together: {progress.printable(', '.join(small))}")
        found[REST] = np.sort(np.concatenate([found.pop(name) for name in small]))
    if len(found) < 2:  # noqa: PLR2004
        where = f"{progress.printable(data.root)}: --groups {finder.pattern!r} makes no two groups of {LEAST} photos"
        raise DatasetError(f"{where}: it is looked for in file names, not in folders")
    return found


def _rows_of(names: Sequence[str]) -> dict[str, NDArray[np.int_]]:
    array = np.array(names)
    return {str(name): np.flatnonzero(array == name) for name in np.unique(array)}


def _name(finder: re.Pattern[str], photo: Photo) -> str:
    match = finder.search(Path(photo.path).name)
    return match.group(1) if match and match.group(1) is not None else NO_GROUP


def _said(members: Mapping[str, NDArray[np.int_]]) -> Iterator[tuple[str, NDArray[np.int_]]]:
    for number, (name, rows) in enumerate(members.items(), 1):
        shown = progress.printable(name)
        progress.line(f"group {number} of {len(members)}: {shown}, {len(rows)} photos are left out")
        yield name, rows


def _fold(rounds: _Rounds, rows: NDArray[np.int_], workdir: Path) -> tuple[Metrics, Predictions]:
    settings, plan, data, shown = rounds.settings, rounds.plan, rounds.data, rounds.shown
    train.make_repeatable(settings.trainer.seed)
    # A near duplicate of what is measured on would give it away.
    apart = ~np.isin(rounds.kin, rounds.kin[rows])
    others = np.flatnonzero(apart[: len(shown.labels)])
    _require_all_classes(shown, others, rounds.held_out, data)
    held_out = rounds.held_out[others]
    fold = replace(shown, train=others[~held_out], validation=others[held_out])
    done = transfer.train(settings.trainer, plan, parts_of(plan), fold, workdir)
    scores = done.scores
    if rounds.by_faces is not None:
        taught = np.concatenate([fold.train, len(shown.labels) + np.flatnonzero(apart[len(shown.labels) :])])
        scores = _with_faces(rounds, rounds.by_faces, taught, fold.validation, done.scores, workdir)
    manifest = assembly.draft_manifest(settings, plan, data)
    if manifest.threshold is not None:
        chosen = calibration.choose_threshold(shown.labels[fold.validation], scores[fold.validation, 1])
        manifest = manifest.model_copy(update={"threshold": chosen})
    runs.clear(workdir)
    predictions = _predictions(rounds, rows, scores)
    return measure(bundle.Bundle(workdir, manifest, b""), predictions), predictions


def _with_faces(
    rounds: _Rounds,
    by_faces: FaceExamples,
    taught: NDArray[np.int_],
    validation: NDArray[np.int_],
    scenes: NDArray[np.float32],
    workdir: Path,
) -> NDArray[np.float32]:
    """Train on the faces of the photos `taught`; return the scores of both views together."""
    plan = rounds.plan
    assert plan.faces is not None  # noqa: S101  there are examples
    if not face_training.enough(by_faces, taught, validation):
        return scenes
    network, _ = face_training.train(rounds.settings.trainer, plan, by_faces, taught, validation, workdir)
    of_faces = face_training.by_photo(network, by_faces, np.arange(len(scenes)))
    together = views.together(scenes, of_faces, plan.faces)
    return np.where(by_faces.whole[: len(scenes), np.newaxis], of_faces, together)


def _predictions(rounds: _Rounds, rows: NDArray[np.int_], scores: NDArray[np.float32]) -> Predictions:
    photos = rounds.data.in_order()
    nothing = np.zeros(len(rows))
    return Predictions(
        rounds.shown.class_names,
        tuple(rounds.data.root / photos[row].path for row in rows),
        rounds.shown.labels[rows],
        scores[rows],
        widths=nothing.astype(np.int_),
        heights=nothing.astype(np.int_),
        decode_ms=nothing,
        predict_ms=nothing,
    )


def _require_all_classes(
    shown: transfer.Examples, others: NDArray[np.int_], held_out: NDArray[np.bool_], data: Dataset
) -> None:
    """Raise DatasetError where a class has no photos left to train on, or none to validate with."""
    for rows in (others[~held_out[others]], others[held_out[others]]):
        for label, name in enumerate(shown.class_names):
            if label not in shown.labels[rows]:
                raise DatasetError(
                    f"{progress.printable(data.root)}: without this group no photo of {name!r} is left to train on or "
                    "to validate with: choose groups that hold photos of every class"
                )


def as_json(folds: Sequence[Fold]) -> dict[str, Any]:
    """Return the figures of each group for a program."""
    return {"groups": {fold.name: fold.metrics.as_json() for fold in folds}}


def table(folds: Sequence[Fold]) -> Table:
    """Return the figures of each group, and of all together, for a person."""
    shown = Table("left out", title="each group measured by a model that never saw it", title_justify="left")
    for name in ("photos", "accuracy", "95 % interval", "balanced", "AUC", "ECE"):
        shown.add_column(name, justify="right", no_wrap=True)
    for fold in folds:
        shown.add_row(Text(fold.name), *_row(fold.metrics))
    shown.add_section()
    mean = sum(fold.metrics.accuracy for fold in folds) / len(folds)
    right = sum(fold.metrics.accuracy * fold.metrics.photos for fold in folds)
    photos = sum(fold.metrics.photos for fold in folds)
    shown.add_row("all photos", str(photos), f"{right / photos:.1%}", "", "", "", "")
    shown.add_row("mean", "", f"{mean:.1%}", "", "", "", "")
    return shown


def _row(metrics: Metrics) -> tuple[str, ...]:
    low, high = metrics.interval
    auc = "" if metrics.auc is None else f"{metrics.auc:.3f}"
    return (
        str(metrics.photos),
        f"{metrics.accuracy:.1%}",
        f"{100 * low:.1f} to {100 * high:.1f}",
        f"{metrics.balanced_accuracy:.1%}",
        auc,
        "" if metrics.ece is None else f"{metrics.ece:.3f}",
    )
