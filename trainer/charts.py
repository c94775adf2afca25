"""Draws a run's pictures, curves.png and confusion.png, and the charts of a report as SVG to be put into its page.

Invariant: no display is needed and no global state of matplotlib stays changed; whatever the class names hold is drawn
as it is written; a chart is small however many photos there are.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score, roc_curve

from trainer import pictures, svg
from trainer.calibration import Bin, wilson
from trainer.evaluate import Metrics

History = Mapping[str, Sequence[float]]

CURVES = {"cross_entropy": "loss (cross-entropy)", "accuracy": "accuracy"}
BLUE, ORANGE = "#2a7fc9", "#dd8020"  # legible on white and on black, and to the colour-blind
MOST_POINTS, MOST_CURVES = 300, 6
MEGAPIXELS = (0.0, 0.1, 0.3, 1.0, 3.0, 10.0, np.inf)  # edges of the groups of picture sizes


def draw_curves(history: History, path: Path) -> None:
    """Draw loss and accuracy of each epoch, on the training and the validation photos."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    for axes, (name, title) in zip(figure.subplots(1, 2), CURVES.items(), strict=True):
        _curve(axes, history, name)
        axes.set_title(title)
    figure.savefig(path, dpi=120)


def _curve(axes: Axes, history: History, name: str) -> None:
    for key, label, colour in ((name, "training photos", BLUE), (f"val_{name}", "validation photos", ORANGE)):
        values = np.array(history.get(key, ()), float)
        values[~np.isfinite(values)] = np.nan  # a training that diverged: a gap
        marker = "o" if len(values) == 1 else ""
        axes.plot(range(1, len(values) + 1), values, label=label, marker=marker, color=colour)
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend()


def draw_confusion(metrics: Metrics, path: Path) -> None:
    """Draw the confusion matrix: counts, shaded by their share of the class's photos; of many classes the shades."""
    shares = [[count / max(1, sum(row)) for count in row] for row in metrics.confusion]
    side = 3 + 0.9 * min(len(metrics.class_names), pictures.MOST_CLASSES)
    figure = Figure(figsize=(side + 0.8, side), layout="constrained")
    axes = figure.subplots()
    shown = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    if len(metrics.class_names) <= pictures.MOST_CLASSES:
        _name_cells(axes, metrics, shares)
    axes.set_xlabel("taken for")
    axes.set_ylabel("photos of")
    axes.set_title(f"{metrics.photos} test photos, accuracy {metrics.accuracy:.1%}")
    figure.colorbar(shown, ax=axes, label="share of the class", shrink=0.8)
    with svg.any_script():
        figure.savefig(path, dpi=120)


def _name_cells(axes: Axes, metrics: Metrics, shares: Sequence[Sequence[float]]) -> None:
    for i, row in enumerate(metrics.confusion):
        for j, count in enumerate(row):
            colour = "white" if shares[i][j] > 0.5 else "black"  # noqa: PLR2004
            axes.text(j, i, f"{count}\n{shares[i][j]:.0%}", ha="center", va="center", color=colour)
    ticks = range(len(metrics.class_names))
    axes.set_xticks(ticks, metrics.class_names, rotation=30, ha="right", parse_math=False)
    axes.set_yticks(ticks, metrics.class_names, parse_math=False)


def curve(history: History, name: str) -> str:
    """Return the SVG of one of CURVES."""
    return svg.draw(f"curve-{name}", lambda axes: _curve(axes, history, name))


def roc(labels: NDArray[np.int_], scores: NDArray[np.float32], names: Sequence[str], threshold: float | None) -> str:
    """Return the SVG of the ROC curve of class 1, the threshold marked; of more classes, each against the rest."""

    def draw(axes: Axes) -> None:
        shown = {}
        for c in _curves_of(labels, names):
            wrong, found, cuts = roc_curve(labels == c, scores[:, c])
            line = axes.plot(*_thinned(wrong, found), color=_colour(c, names))[0]
            shown[f"{svg.short(names[c])}: area {roc_auc_score(labels == c, scores[:, c]):.3f}"] = line
            if threshold is not None:
                _mark(axes, wrong, found, cuts >= threshold)
        axes.plot([0, 1], [0, 1], color=svg.GRID, zorder=0)
        _shares(axes, "photos of other classes taken for it", "photos of the class that were found")
        svg.legend(axes, shown, "lower right")

    return svg.draw("roc", draw)


def precision_recall(
    labels: NDArray[np.int_], scores: NDArray[np.float32], names: Sequence[str], threshold: float | None
) -> str:
    """Return the SVG of the precision-recall curve of class 1, or of each class against the rest."""

    def draw(axes: Axes) -> None:
        shown = {}
        for c in _curves_of(labels, names):
            precise, found, cuts = precision_recall_curve(labels == c, scores[:, c])
            line = axes.plot(*_thinned(found, precise), color=_colour(c, names))[0]
            area = average_precision_score(labels == c, scores[:, c])
            shown[f"{svg.short(names[c])}: average precision {area:.3f}"] = line
            if threshold is not None:
                _mark(axes, found[:-1][::-1], precise[:-1][::-1], cuts[::-1] >= threshold)
        _shares(axes, "photos of the class that were found", "right, of those taken for it")
        svg.legend(axes, shown, "lower left")

    return svg.draw("precision-recall", draw)


def reliability(bins: Sequence[Bin]) -> str:
    """Return the SVG of the reliability diagram: accuracy with its 95 % interval against confidence."""

    def draw(axes: Axes) -> None:
        axes.plot([0, 1], [0, 1], color=svg.GRID, zorder=0)
        sure, right = [bin_.confidence for bin_ in bins], [bin_.accuracy for bin_ in bins]
        _with_intervals(axes, sure, right, [bin_.count for bin_ in bins])
        axes.plot(sure, right, color=BLUE, linewidth=1)
        _shares(axes, "how sure it was", "right answers")
        axes.set_xlim(max(0.0, min(sure) - 0.05), 1.02)

    return svg.draw("reliability", draw)


def score_histogram(
    labels: NDArray[np.int_], scores: NDArray[np.float32], names: Sequence[str], threshold: float | None
) -> str:
    """Return the SVG of how the scores are spread: for two classes by class, for more by right and wrong answers."""
    if threshold is None:
        right = scores.argmax(axis=1) == labels
        groups = {"right answers": scores.max(axis=1)[right], "wrong answers": scores.max(axis=1)[~right]}
    else:
        groups = {f"photos of {svg.short(name)}": scores[labels == c, 1] for c, name in enumerate(names)}

    def draw(axes: Axes) -> None:
        shown = {}
        for (text, values), colour in zip(groups.items(), (BLUE, ORANGE), strict=True):
            weights = np.full(len(values), 1 / max(1, len(values)))
            look: Any = {"histtype": "stepfilled", "alpha": 0.55, "color": colour, "edgecolor": colour}
            shown[text] = axes.hist(values, bins=20, range=(0, 1), weights=weights, **look)[2][0]  # type: ignore[index]
        if threshold is not None:
            axes.axvline(threshold, color=svg.INK, linestyle=":")
        axes.set_xlabel(f"score of {svg.short(names[1])}" if threshold is not None else "score of the answer")
        axes.set_ylabel("share of these photos")
        _in_percent(axes.yaxis)
        svg.legend(axes, shown, None)

    return svg.draw("scores", draw)


def accuracy_by_size(megapixels: NDArray[np.float64], right: NDArray[np.bool_]) -> str | None:
    """Return the SVG of accuracy by picture size, with 95 % intervals; None where all are about the same."""
    group = np.digitize(megapixels, MEGAPIXELS)
    groups = [(_span(i), right[group == i]) for i in np.unique(group)]
    if len(groups) < 2:  # noqa: PLR2004
        return None

    def draw(axes: Axes) -> None:
        shares = [float(answers.mean()) for _, answers in groups]
        _with_intervals(axes, range(len(groups)), shares, [len(answers) for _, answers in groups])
        ticks = [f"{span}\n{len(answers)} photo{'s' if len(answers) > 1 else ''}" for span, answers in groups]
        axes.set_xticks(range(len(groups)), ticks)
        axes.set_xlim(-0.5, len(groups) - 0.5)
        axes.set_xlabel("megapixels")
        axes.set_ylabel("right answers")
        axes.set_ylim(0, 1.02)
        _in_percent(axes.yaxis)
        axes.grid(axis="y")

    return svg.draw("size", draw)


def _in_percent(axis: Axis) -> None:
    """Write an axis of shares in whole per cent, at steps that are whole ones."""
    axis.set_major_locator(MaxNLocator(steps=[1, 2, 5, 10]))
    axis.set_major_formatter(PercentFormatter(1, decimals=0, symbol="\N{NARROW NO-BREAK SPACE}%"))


def _span(group: int) -> str:
    low, high = MEGAPIXELS[group - 1], MEGAPIXELS[group]
    return f"under {high:g}" if low == 0 else f"over {low:g}" if np.isinf(high) else f"{low:g} to {high:g}"


def _curves_of(labels: NDArray[np.int_], names: Sequence[str]) -> list[int]:
    """Return the classes to draw curves of: class 1 of two; of more, those with most photos and some without."""
    counts = np.bincount(labels, minlength=len(names))
    if len(names) == 2:  # noqa: PLR2004
        return [1]
    possible = [c for c in np.argsort(-counts, kind="stable") if 0 < counts[c] < len(labels)]
    return sorted(int(c) for c in possible[:MOST_CURVES])


def _colour(c: int, names: Sequence[str]) -> str:
    return BLUE if len(names) == 2 else f"C{c % 10}"  # noqa: PLR2004


def _thinned(x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    kept = np.unique(np.linspace(0, len(x) - 1, MOST_POINTS).astype(int))
    return x[kept], y[kept]


def _mark(axes: Axes, x: NDArray[np.float64], y: NDArray[np.float64], reached: NDArray[np.bool_]) -> None:
    """Mark the point of the lowest cut that is still at or above the threshold; cuts fall."""
    last = max(0, int(reached.sum()) - 1)
    axes.plot(x[last], y[last], "o", color=ORANGE)


def _with_intervals(axes: Axes, x: Sequence[float], shares: Sequence[float], counts: Sequence[int]) -> None:
    edges = [wilson(round(share * count), count) for share, count in zip(shares, counts, strict=True)]
    low = [max(0.0, share - edge[0]) for share, edge in zip(shares, edges, strict=True)]
    high = [max(0.0, edge[1] - share) for share, edge in zip(shares, edges, strict=True)]
    axes.errorbar(x, shares, (low, high), fmt="o", color=BLUE, ecolor=BLUE, elinewidth=1, capsize=3, markersize=4)


def _shares(axes: Axes, x: str, y: str) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-0.02, 1.02)
    _in_percent(axes.xaxis)
    _in_percent(axes.yaxis)
    axes.grid(visible=True)
