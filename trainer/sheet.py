"""The picture that `explain` draws about one photo: the photo, what the model saw, what spoke for its answer.

Invariant: it is written whole or not at all, and names are drawn as they are written.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from trainer import durable, images, svg, thumbnails

SIDE = 512  # pixels, of the photo's longer side
CHANGED = "#b3372b"
LONGEST = 100  # letters of the title


@dataclass(frozen=True)
class Panel:
    """A picture uint8 (H, W, 3) with its caption; without one, `instead` says why."""

    caption: str
    pixels: NDArray[np.uint8] | None
    instead: str = ""


def upright(picture: images.Picture) -> NDArray[np.uint8]:
    """Return a picture that was decoded as a square in its own shape."""
    return np.asarray(thumbnails.shaped(picture.pixels, picture.width, picture.height, SIDE))


def draw(path: Path, title: str, scores: str, panels: Sequence[Panel], rows: Sequence[tuple[str, float, str]]) -> None:
    """Draw the sheet; `rows` are (change, score of the answer, answer), the photo as it is first. Raises OSError."""
    figure = Figure(figsize=(14, 4.6), layout="constrained")
    shown = title if len(title) <= LONGEST else f"{title[:LONGEST]}…"
    figure.suptitle(f"{shown}\n{scores}", x=0.01, ha="left", fontsize=12, parse_math=False)
    axes = figure.subplots(1, len(panels) + 1, width_ratios=[1.0] * len(panels) + [0.85])
    for place, panel in zip(axes, panels, strict=False):
        _panel(place, panel)
    _rows(axes[-1], rows)
    file = io.BytesIO()
    with svg.any_script():
        figure.savefig(file, format="png", dpi=100)
    durable.replace(path, file.getvalue())


def _panel(axes: Axes, panel: Panel) -> None:
    axes.set_axis_off()
    if panel.pixels is None:
        axes.text(0.5, 0.5, panel.instead, ha="center", va="center", wrap=True, parse_math=False)
        return
    axes.imshow(panel.pixels)
    axes.set_title(panel.caption, fontsize=10)


def _rows(axes: Axes, rows: Sequence[tuple[str, float, str]]) -> None:
    """Draw how the score of the answer changes; red where the answer itself does."""
    axes.set_axis_off()
    own = rows[0][2]
    axes.set_title(f"score of {own} if the photo were", fontsize=10, loc="left", parse_math=False)
    for i, (name, score, answer) in enumerate(rows):
        height, colour = 0.9 - 0.12 * i, "black" if answer == own else CHANGED
        axes.text(0, height, name, transform=axes.transAxes)
        text = f"{score:.2f}" if answer == own else f"{score:.2f}  now {answer}"
        axes.text(0.6, height, text, transform=axes.transAxes, color=colour, parse_math=False)
