"""The list of bundles: what each is, how good, and which it came from.

Invariant: it reads manifests alone, and a damaged one costs no other its line.
"""

import json
from collections.abc import Container
from pathlib import Path

from rich import box
from rich.table import Table
from rich.text import Text

from trainer import bundle


def table(
    root: Path, numbers: list[int], serving: int | None, *, pinned: bool = False, refused: Container[int] = ()
) -> Table:
    """Return the bundles, each below the one before, as a table that fits 80 columns."""
    shown = Table("bundle", box=box.SIMPLE_HEAD, caption_justify="left")
    for name in ("from", "accuracy (95 %)", "photos", "network, classes", "created"):
        shown.add_column(name)
    for number in numbers:
        mark = Text(f"{number} *" if number == serving else f"{number} -" if number in refused else str(number))
        try:
            shown.add_row(mark, *map(Text, described(bundle.read_manifest(root, number))))
        except bundle.BundleError as error:
            shown.add_row(mark, "", Text(str(error)))
    champion = "the champion, pinned by rollback until the next promotion" if pinned else "the champion"
    marks = f"* {champion}; " + ("- refused by a retraining; " if any(n in refused for n in numbers) else "")
    judged = "\neach accuracy is on the test photos of its own time: compare two by `moodbox-train evaluate`"
    shown.caption = f"{marks}from: the champion of that time{judged}" if serving else None
    return shown


def described(manifest: bundle.Manifest) -> tuple[str, str, str, str, str]:
    """Return what the table says about one: parent, accuracy, photos, what it is, time."""
    counts = manifest.dataset.counts.values()
    photos = sum(sum(of_class.values()) for of_class in counts)
    made_of = f"{manifest.architecture}\n{', '.join(manifest.class_names)}"
    parent = "" if manifest.parent is None else str(manifest.parent)
    return parent, _accuracy(manifest), str(photos), made_of, manifest.created[:10]


def _accuracy(manifest: bundle.Manifest) -> str:
    accuracy, interval = manifest.metrics.get("accuracy"), manifest.metrics.get("accuracy_interval_95")
    if not isinstance(accuracy, float):
        return ""
    shown = f"{accuracy:.1%}"
    if isinstance(interval, list) and len(interval) == 2:  # noqa: PLR2004
        shown += f" ({100 * interval[0]:.1f}–{100 * interval[1]:.1f})"  # noqa: RUF001  the dash of ranges
    return shown


def as_json(root: Path, number: int, *, champion: bool) -> str:
    """Return a bundle's manifest as one line of JSON, with `champion`, or with `error` where it cannot be read."""
    try:
        fields = bundle.read_manifest(root, number).model_dump(mode="json")
    except bundle.BundleError as error:
        fields = {"number": number, "error": str(error)}
    return json.dumps({**fields, "champion": champion}, allow_nan=False)
