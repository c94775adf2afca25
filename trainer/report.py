"""A report of what a bundle makes of a folder of photos: one HTML file that can be sent, printed and kept.

Invariant: the file needs nothing outside itself and runs no script; whatever the names of files and classes hold is
shown as text; its size is bounded however many photos and classes there are; it is written whole or not at all.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2
import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from trainer import calibration, charts, durable
from trainer.bundle import Bundle
from trainer.evaluate import Metrics, Predictions, decided
from trainer.progress import printable
from trainer.report_views import Share, by_faces, by_view
from trainer.thumbnails import Thumbnail, thumbnails
from trainer.verdict import percent, verdict

TEMPLATE = "report.html.j2"
MOST_MISTAKES, MOST_UNCERTAIN = 24, 12
MOST_CLASSES = 20  # in the confusion matrix; of more, the most frequent confusions
PHOTOS_OF_BIN = 25  # in the reliability diagram: with fewer, a point says nothing
MOST_NAME = 90  # letters of a file's name that are shown
History = Mapping[str, Sequence[float]]


@dataclass(frozen=True)
class Card:
    """A photo to look at: its name, what it is said to be, what the model made of it, and its pictures."""

    name: str
    label: str
    answer: str
    right: bool
    scores: str
    views: str
    thumbnail: Thumbnail


def write(
    path: Path,
    bundle: Bundle,
    predictions: Predictions,
    metrics: Metrics,
    *,
    title: str,
    facts: Mapping[str, str],
    history: History | None = None,
    notes: Sequence[str] = (),
) -> None:
    """Write the report to `path`, replacing what is there; its folder must exist. `facts` come before the bundle's own.

    `history` are the curves of a training by name, one value per epoch. Raises OSError where the disk refuses.
    """
    answers = decided(bundle, predictions.scores)
    mistakes, uncertain, unexplained = _cards(bundle, predictions, answers)
    right = answers == predictions.labels
    confidence = predictions.scores[np.arange(len(answers)), answers]
    page = template(TEMPLATE).render(
        title=title,
        verdict=verdict(metrics, confidence),
        notes=list(notes),
        metrics=metrics,
        chance=calibration.ece_by_chance(confidence),
        classes=_classes(metrics),
        by_view=by_view(bundle, predictions, answers),
        by_faces=by_faces(predictions, right),
        confusion=_confusion(metrics),
        confusions=_confusions(metrics),
        charts=_charts(bundle, predictions, confidence, right, history),
        mistakes=mistakes,
        wrong=int((~right).sum()),
        uncertain=uncertain,
        unexplained=unexplained,
        timing={"decode": _times(predictions.decode_ms), "predict": _times(predictions.predict_ms)},
        threshold=bundle.manifest.threshold,
        facts={**facts, **{k: v for k, v in _bundle_facts(bundle).items() if k not in facts}},
    )
    durable.replace(path, page.encode(errors="backslashreplace"))


def template(name: str) -> jinja2.Template:
    """Return a page's template; whatever is put into it is shown as text."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("trainer", ""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "printable": printable}
    return environment.get_template(name)


def _classes(metrics: Metrics) -> list[tuple[str, Share, Share]]:
    """Return for each class its name, what was found of it, and what is right of what was taken for it."""
    hits = [row[i] for i, row in enumerate(metrics.confusion)]
    rows = zip(metrics.class_names, hits, metrics.of_class, metrics.taken_for, strict=True)
    return [(name, Share("found", hit, of), Share("right", hit, taken)) for name, hit, of, taken in rows]


def _confusion(metrics: Metrics) -> list[tuple[str, list[tuple[int, float]]]] | None:
    """Return for each class its name, and counts with shares of its photos; None for too many classes."""
    if len(metrics.class_names) > MOST_CLASSES:
        return None
    rows = zip(metrics.class_names, metrics.confusion, strict=True)
    return [(name, [(count, count / max(1, sum(row))) for count in row]) for name, row in rows]


def _confusions(metrics: Metrics) -> list[tuple[str, str, int]]:
    """Return the most frequent mistakes: class, taken for, how often."""
    found = np.array(metrics.confusion)
    np.fill_diagonal(found, 0)
    order = np.argsort(-found, axis=None, kind="stable")[:MOST_CLASSES]
    names = metrics.class_names
    pairs = [tuple(map(int, np.unravel_index(i, found.shape))) for i in order]
    return [(names[i], names[j], int(found[i, j])) for i, j in pairs if found[i, j]]


def _charts(
    bundle: Bundle,
    predictions: Predictions,
    confidence: NDArray[np.float32],
    right: NDArray[np.bool_],
    history: History | None,
) -> dict[str, Markup]:
    """Return the SVG of each chart that there is something to draw for; matplotlib has escaped the texts in them."""
    what = (predictions.labels, predictions.scores, bundle.manifest.class_names, bundle.manifest.threshold)
    drawn = {name: charts.curve(history or {}, name) for name in charts.CURVES if (history or {}).get(name)}
    if len(np.unique(predictions.labels)) > 1:
        drawn |= {"roc": charts.roc(*what), "precision_recall": charts.precision_recall(*what)}
    bins = min(calibration.BINS, max(3, len(right) // PHOTOS_OF_BIN))
    drawn["reliability"] = charts.reliability(calibration.reliability(confidence, right, bins))
    drawn["scores"] = charts.score_histogram(*what)
    megapixels = predictions.widths * predictions.heights / 1e6
    if by_size := charts.accuracy_by_size(megapixels[megapixels > 0], right[megapixels > 0]):
        drawn["size"] = by_size
    return {name: Markup(text) for name, text in drawn.items()}  # noqa: S704  escaped, see above


def _cards(
    bundle: Bundle, predictions: Predictions, answers: NDArray[np.int_]
) -> tuple[list[Card], list[Card], str | None]:
    """Return the most confident mistakes, the least certain answers, and why there are no overlays, where so."""
    mistakes = _mistakes(predictions, answers)
    uncertain = np.argsort(_margins(bundle, predictions.scores), kind="stable")
    uncertain = uncertain[~np.isin(uncertain, mistakes)][:MOST_UNCERTAIN]
    shown = [int(i) for i in (*mistakes, *uncertain)]
    boxes = predictions.boxes or (None,) * len(answers)
    asked = [(predictions.paths[i], int(answers[i]), boxes[i] or ()) for i in shown]
    drawn, unexplained = thumbnails(bundle, asked, predictions.max_pixels)
    paths = [os.path.abspath(predictions.paths[i]) for i in shown]
    root = os.path.commonpath([os.path.dirname(os.path.dirname(path)) for path in paths])  # the class folders'
    names = [os.path.relpath(path, root) for path in paths]
    each = zip(shown, names, drawn, strict=True)
    cards = [_card(predictions, int(answers[i]), i, name, small) for i, name, small in each]
    return cards[: len(mistakes)], cards[len(mistakes) :], unexplained


def _mistakes(predictions: Predictions, answers: NDArray[np.int_]) -> NDArray[np.int_]:
    wrong = np.flatnonzero(answers != predictions.labels)
    found: NDArray[np.int_] = wrong[np.argsort(-predictions.scores[wrong, answers[wrong]], kind="stable")]
    return found[:MOST_MISTAKES]


def _margins(bundle: Bundle, scores: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return how far each answer was from another one."""
    if bundle.manifest.threshold is None:
        highest = np.sort(scores, axis=1)
        return highest[:, -1] - highest[:, -2]
    margins: NDArray[np.float32] = np.abs(scores[:, 1] - np.float32(bundle.manifest.threshold))
    return margins


def _card(predictions: Predictions, answer: int, i: int, name: str, small: Thumbnail) -> Card:
    names, row = predictions.class_names, predictions.scores[i]
    name = shortened(name)
    best = np.argsort(-row, kind="stable")[:3]
    scores = ", ".join(f"{names[c]} {row[c]:.2f}" for c in best)
    label = int(predictions.labels[i])
    return Card(name, names[label], names[answer], label == answer, scores, _of_views(predictions, i, answer), small)


def shortened(name: str) -> str:
    """Return the name of a file as it is shown."""
    name = printable(name)
    return name if len(name) <= MOST_NAME else f"{name[: MOST_NAME // 3]}…{name[-2 * MOST_NAME // 3 :]}"


def _of_views(predictions: Predictions, i: int, answer: int) -> str:
    """Say how sure each view is of the answer, where the faces were looked at, too."""
    if len(predictions.views) < 2:  # noqa: PLR2004
        return ""
    said = [(name, float(of[i, answer])) for name, of in predictions.views.items() if not np.isnan(of[i, answer])]
    return f"score of {predictions.class_names[answer]}: " + ", ".join(f"{name} {score:.2f}" for name, score in said)


def _times(milliseconds: NDArray[np.float64]) -> tuple[float, float]:
    return float(np.median(milliseconds)), float(np.percentile(milliseconds, 95))


def _bundle_facts(bundle: Bundle) -> dict[str, str]:
    manifest = bundle.manifest
    number = f"bundle {manifest.number}" if manifest.files else "not published yet"
    size = f"{manifest.input_size} \N{MULTIPLICATION SIGN} {manifest.input_size} pixels"
    counts = (
        f"{split}: {sum(of.values()):,} photos ({', '.join(f'{n:,} {name}' for name, n in of.items())})"
        for split, of in manifest.dataset.counts.items()
    )
    return {
        "model": f"{number}, {manifest.architecture}, made {manifest.created}",
        "parent": "none" if manifest.parent is None else f"bundle {manifest.parent}",
        "input": f"{size}, preprocessing {manifest.preprocessing_version}",
        "threshold": "the most probable class" if manifest.threshold is None else f"{manifest.threshold:g}",
        "learned from": "; ".join(counts),
        "dataset hash": manifest.dataset.hash,
        "seed": str(manifest.seed),
        "made with": ", ".join(f"{name} {version}" for name, version in manifest.versions.items()),
    }
