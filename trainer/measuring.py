"""The commands that measure a bundle: evaluate, precisions.

Invariant: a bundle is loaded as the daemon loads it, hashes and golden images first; where it learned from some of the
photos, that is said.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from rich.console import Console

from trainer import bundle, images, quiet, runs
from trainer.commands import known, training
from trainer.dataset import Dataset, DatasetError, Photo, open_dataset
from trainer.output import show_unused, write
from trainer.progress import printable
from trainer.settings import Settings

CHECK_SIZE = 224  # pixels: JPEGs are decoded at a reduced scale then, as for training


def opened(settings: Settings, number: int | None) -> bundle.Bundle:
    """Load a bundle, the champion by default."""
    with quiet.native_stderr():
        if number is None:
            bundle.install_shipped(settings.models.root)
        return bundle.load(settings.models.root, known(settings.models.root, number))


def evaluate(settings: Settings, number: int | None) -> None:
    """Measure a bundle, the champion by default, on all photos of a folder, and write a report."""
    loaded = opened(settings, number)
    data = decoded(settings)
    names = known_classes(loaded, data)
    from trainer import evaluate as measuring  # noqa: PLC0415  scikit-learn: a second
    from trainer import replay  # noqa: PLC0415  numpy

    photos = [(data.root / photo.path, names.index(data.class_names[photo.label])) for photo in data.photos]
    predictions = measuring.predict(loaded, photos, settings.tray.max_pixels)
    metrics = measuring.measure(loaded, predictions)
    learned = replay.learned(loaded, [photo.sha256 for photo in data.photos])
    notes = [taught(None if learned is None else sum(learned))]
    show_unused(data.unused)
    write(f"bundle {loaded.manifest.number}, {loaded.manifest.architecture}")
    for table in measuring.tables(metrics):
        Console().print(table)
    write("\n".join(filter(None, notes)))
    write_report(settings, loaded, predictions, metrics, list(filter(None, notes)))


def write_report(settings: Settings, loaded: bundle.Bundle, predictions: Any, metrics: Any, notes: list[str]) -> None:
    """Write report.html into a run directory of its own, and say where it is."""
    with quiet.importing():
        from trainer import report  # noqa: PLC0415  TensorFlow, for what the network looked at

    name = f"evaluate-{loaded.manifest.number}"
    with runs.opened(settings.trainer.runs, name, datetime.now(UTC), resume=False) as workdir:
        facts = {"bundle": str(loaded.path), "folder": printable(settings.dataset.root)}
        report.write(
            workdir / "report.html", loaded, predictions, metrics, title="Evaluation", facts=facts, notes=notes
        )
    write(f"report: {workdir / 'report.html'}")


def known_classes(loaded: bundle.Bundle, data: Dataset) -> tuple[str, ...]:
    """Return the bundle's classes. Raises DatasetError where the folder has one that it does not know."""
    names = loaded.manifest.class_names
    if strangers := [name for name in data.class_names if name not in names]:
        have = f"bundle {loaded.manifest.number} has only {', '.join(names)}"
        raise DatasetError(f"{printable(data.root)}: class folder {strangers[0]!r}: {have}")
    return names


def taught(count: int | None) -> str:
    """Return a warning where figures come from photos that the model has learned from, else nothing."""
    if count is None:
        return "this bundle keeps no record of its photos: if it learned from some of these, the figures flatter it"
    return f"it has learned from {count} of these photos: the figures flatter it" if count else ""


def precisions(settings: Settings, number: int | None) -> None:
    """Compare the precisions in which a bundle could be served, on photos that it did not learn from."""
    loaded = opened(settings, number)
    data = decoded(settings)
    names = known_classes(loaded, data)
    from trainer import replay  # noqa: PLC0415  numpy

    learned = replay.learned(loaded, [photo.sha256 for photo in data.photos]) or [False] * len(data.photos)
    seen = [photo for photo, known in zip(data.photos, learned, strict=True) if known]
    unseen = [photo for photo, known in zip(data.photos, learned, strict=True) if not known]
    training()
    from trainer import precisions as comparing  # noqa: PLC0415

    def decode(photos: Sequence[Photo]) -> Any:
        return comparing.pictures([data.root / p.path for p in photos], loaded, settings.tray.max_pixels)

    chosen = comparing.spread(unseen or list(data.photos))
    labels = [names.index(data.class_names[photo.label]) for photo in chosen]
    measured = comparing.compare(loaded, decode(comparing.spread(seen or chosen)), decode(chosen), labels)
    Console().print(comparing.table(measured, len(chosen)))


def decoded(settings: Settings) -> Dataset:
    """Read the dataset, decoding every photo and keeping none."""
    most = settings.tray.max_pixels
    return open_dataset(settings, lambda _, photo: images.decode(photo, size=CHECK_SIZE, max_pixels=most), record=False)
