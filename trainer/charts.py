"""Draws a run's pictures: curves.png and confusion.png.

Invariant: no display is needed and no global state of matplotlib is touched; whatever the class names hold is drawn as
it is written.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from trainer.evaluate import Metrics

History = Mapping[str, Sequence[float]]


def draw_curves(history: History, path: Path) -> None:
    """Draw loss and accuracy of each epoch, on the training and the validation photos."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    _curve(left, history, "cross_entropy", "loss (cross-entropy)")
    _curve(right, history, "accuracy", "accuracy")
    figure.savefig(path, dpi=120)


def _curve(axes: Axes, history: History, name: str, title: str) -> None:
    epochs = range(1, len(history[name]) + 1)
    marker = "o" if len(epochs) == 1 else ""
    axes.plot(epochs, history[name], label="training photos", marker=marker)
    axes.plot(epochs, history[f"val_{name}"], label="validation photos", marker=marker)
    axes.set_title(title)
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend()


def draw_confusion(metrics: Metrics, path: Path) -> None:
    """Draw the confusion matrix: counts, shaded by their share of the class's photos."""
    shares = [[count / max(1, sum(row)) for count in row] for row in metrics.confusion]
    side = 3 + 0.9 * len(metrics.class_names)
    figure = Figure(figsize=(side + 0.8, side), layout="constrained")
    axes = figure.subplots()
    shown = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for i, row in enumerate(metrics.confusion):
        for j, count in enumerate(row):
            colour = "white" if shares[i][j] > 0.5 else "black"  # noqa: PLR2004
            axes.text(j, i, f"{count}\n{shares[i][j]:.0%}", ha="center", va="center", color=colour)
    ticks = range(len(metrics.class_names))
    axes.set_xticks(ticks, metrics.class_names, rotation=30, ha="right", parse_math=False)
    axes.set_yticks(ticks, metrics.class_names, parse_math=False)
    axes.set_xlabel("taken for")
    axes.set_ylabel("photos of")
    axes.set_title(f"{metrics.photos} test photos, accuracy {metrics.accuracy:.1%}")
    figure.colorbar(shown, ax=axes, label="share of the class", shrink=0.8)
    figure.savefig(path, dpi=120)
