"""Cross-validation: train again and again, each time leaving out one group of photos, and measure on that group.

Invariant: no model is measured on a photo that it was trained on, nor on one of the same group. A group is what the
person says resembles itself: the photos of one collector, one camera, one day.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.table import Table
from rich.text import Text

from trainer import bundle, calibration, progress, train, transfer
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


def crossvalidate(settings: Settings, groups: str, workdir: Path) -> list[Fold]:
    """Train as `fit` would, once for each group, and measure on it; `groups` is a regular expression.

    Raises DatasetError where there are fewer than two groups; InputError for an architecture without a backbone.
    """
    train.make_repeatable(settings.trainer.seed)
    plan = Plan.of(settings.trainer)
    data = train.prepare(settings, plan)
    view = train.open_view(settings, plan, data, workdir / "data")
    photos = [photo for split in SPLITS for photo in data.of(split)]
    members = group(data, photos, groups)
    parts = parts_of(plan)
    shown = examples(plan, parts, view, workdir / "features", SPLITS)
    held_out = np.array([photo.split == "validation" for photo in photos])
    return [
        Fold(name, *_fold(settings, plan, data, shown, rows, held_out, workdir / f"fold-{number}"))
        for number, (name, rows) in enumerate(_said(members), 1)
    ]


def parts_of(plan: Plan) -> Parts:
    """Return a fresh backbone, cut where the plan says. Raises DatasetError where there is none."""
    backbone = plan.backbone()
    if backbone is None:
        raise DatasetError(f"architecture {plan.architecture.name}: it has no backbone: cross-validation needs one")
    return Parts.of(backbone, plan.architecture.cut if plan.fine_tune else "")


def group(data: Dataset, photos: Sequence[Photo], pattern: str) -> dict[str, NDArray[np.int_]]:
    """Return which photos are in which group. Raises DatasetError."""
    try:
        finder = re.compile(pattern or "()")
    except re.error as error:
        raise DatasetError(f"--groups {pattern!r}: no regular expression: {error}") from None
    if not finder.groups:
        raise DatasetError(f"--groups {pattern!r}: put what names the group into parentheses, as in '^([a-z]+)_'")
    names = [_name(finder, photo) for photo in photos] if pattern else [f"part {_part(p)}" for p in photos]
    found = {name: np.flatnonzero([n == name for n in names]) for name in sorted(set(names))}
    small = [name for name, rows in found.items() if len(rows) < LEAST]
    if len(small) > 1:
        found[REST] = np.sort(np.concatenate([found.pop(name) for name in small]))
    if len(found) < 2:  # noqa: PLR2004
        raise DatasetError(f"{progress.printable(data.root)}: --groups {pattern!r} makes only one group of all photos")
    return found


def _name(finder: re.Pattern[str], photo: Photo) -> str:
    match = finder.search(Path(photo.path).name)
    return match.group(1) if match and match.group(1) is not None else "(no match)"


def _part(photo: Photo) -> int:
    """Deal the photos into FOLDS parts by bits of the hash that do not decide the split."""
    return int(photo.sha256[16:24], 16) % FOLDS + 1


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
    held_out: NDArray[np.bool_],
    workdir: Path,
) -> tuple[Metrics, Predictions]:
    train.make_repeatable(settings.trainer.seed)
    others = np.setdiff1d(np.arange(len(shown.labels)), rows)
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
    return measure(bundle.Bundle(workdir, manifest, b""), predictions), predictions


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
    shown.add_row("mean of groups", "", f"{mean:.1%}", "", "", "", "")
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
