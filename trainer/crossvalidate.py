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

from trainer import bundle, calibration, progress, runs, train, transfer
from trainer.dataset import SPLITS, Dataset, DatasetError, Photo
from trainer.evaluate import Metrics, Predictions, measure
from trainer.features import Parts
from trainer.fit import examples
from trainer.plan import Plan
from trainer.settings import Settings

FOLDS = 5  # where no groups are named: parts by content hash
LEAST = 50  # photos that a group needs to be measured on its own; smaller ones are put together
REST = "the rest"


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
    plan = Plan.of(settings.trainer)
    data = train.prepare(settings, plan)
    view = train.open_view(settings, plan, data, workdir / "data")
    photos = [photo for split in SPLITS for photo in data.of(split)]
    kin = kinship(data, photos)
    members = group(data, photos, kin, groups)
    parts = parts_of(plan)
    shown = examples(plan, parts, view, workdir / "features", SPLITS)
    held_out = np.array([photo.split == "validation" for photo in photos])
    return [
        Fold(name, *_fold(settings, plan, data, shown, rows, kin, held_out, workdir / f"fold-{number}"))
        for number, (name, rows) in enumerate(_said(members), 1)
    ]


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
        least |= dict.fromkeys(twins, min(least[path] for path in twins))
    return np.array([int(least[photo.path][16:32], 16) for photo in photos], np.uint64)  # not what decides the split


def group(
    data: Dataset, photos: Sequence[Photo], kin: NDArray[np.uint64], finder: re.Pattern[str] | None
) -> dict[str, NDArray[np.int_]]:
    """Return which photos are in which group: FOLDS parts where there is no `finder`. Raises DatasetError."""
    if finder is None:
        return _rows_of([f"part {1 + int(number) % FOLDS}" for number in kin])
    found = _rows_of([_name(finder, photo) for photo in photos])
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
    return match.group(1) if match and match.group(1) is not None else "(no match)"


def _said(members: Mapping[str, NDArray[np.int_]]) -> Iterator[tuple[str, NDArray[np.int_]]]:
    for number, (name, rows) in enumerate(members.items(), 1):
        shown = progress.printable(name)
        progress.line(f"group {number} of {len(members)}: {shown}, {len(rows)} photos are left out")
        yield name, rows


def _fold(
    settings: Settings,
    plan: Plan,
    data: Dataset,
    shown: transfer.Examples,
    rows: NDArray[np.int_],
    kin: NDArray[np.uint64],
    held_out: NDArray[np.bool_],
    workdir: Path,
) -> tuple[Metrics, Predictions]:
    train.make_repeatable(settings.trainer.seed)
    others = np.flatnonzero(~np.isin(kin, kin[rows]))  # a near duplicate of what is measured on would give it away
    _require_all_classes(shown, others, held_out, data)
    fold = replace(shown, train=others[~held_out[others]], validation=others[held_out[others]])
    parts = parts_of(plan)
    done = transfer.train(settings.trainer, plan, parts, fold, workdir)
    manifest = train.draft_manifest(settings, plan, data)
    if manifest.threshold is not None:
        chosen = calibration.choose_threshold(shown.labels[fold.validation], done.scores[fold.validation, 1])
        manifest = manifest.model_copy(update={"threshold": chosen})
    photos = [photo for split in SPLITS for photo in data.of(split)]
    nothing = np.zeros(len(rows))
    predictions = Predictions(
        shown.class_names,
        tuple(data.root / photos[row].path for row in rows),
        shown.labels[rows],
        done.scores[rows],
        widths=nothing.astype(np.int_),
        heights=nothing.astype(np.int_),
        decode_ms=nothing,
        predict_ms=nothing,
    )
    runs.clear(workdir)
    return measure(bundle.Bundle(workdir, manifest, b""), predictions), predictions


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
