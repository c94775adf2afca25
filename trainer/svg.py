"""A matplotlib drawing as the text of an SVG element that becomes part of a page.

Invariant: it refers to nothing outside itself; its texts are texts, escaped, in the page's own font; its ink and grid
have the page's colours, so that it is legible in the dark, too. The same drawing gives the same text.
"""

import contextlib
import io
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK, GRID = "#222221", "#dddddc"  # stand for the page's colours
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none", "text.parse_math": False, "font.size": 9, "text.color": INK, "axes.edgecolor": INK,
    "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK, "grid.color": GRID, "axes.spines.top": False,
    "axes.spines.right": False, "legend.frameon": False, "lines.linewidth": 1.6,
}  # fmt: skip
LONGEST = 24  # letters of a class name in a legend
NO_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))


def draw(name: str, onto: Callable[[Axes], None], size: tuple[float, float] = (4.6, 3.4)) -> str:
    """Return what `onto` draws as SVG; `name` must be another for each drawing of a page; `size` in inches."""
    out = io.StringIO()
    with rc_context({**STYLE, "svg.hashsalt": name}), any_script():
        figure = Figure(figsize=size, layout="constrained")
        onto(figure.subplots())
        figure.savefig(out, format="svg", transparent=True, metadata=NO_METADATA)
    text = out.getvalue()
    text = re.sub(r'<g id="[a-zA-Z0-9_.]+"', "<g", text[text.index("<svg") :])  # not unique in a page, and unused
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1))
    return text.replace(f": {INK}", ": var(--ink)").replace(f": {GRID}", ": var(--grid)")


@contextlib.contextmanager
def any_script() -> Iterator[None]:
    """Keep matplotlib from complaining that its own font lacks a letter: browsers have others."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        yield


def legend(axes: Axes, shown: Mapping[str, Any], corner: Any) -> None:
    """Add a legend in a corner, None: above; its texts are drawn as they are, a leading underscore, too."""
    place = {"loc": corner} if corner else {"loc": "lower left", "bbox_to_anchor": (0, 1), "ncols": len(shown)}
    added = axes.legend(list(shown.values()), ["x" * len(text) for text in shown], **place)
    for entry, text in zip(added.get_texts(), shown, strict=True):
        entry.set_text(text)


def short(name: str) -> str:
    """Return a class name that fits into a legend."""
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…"
