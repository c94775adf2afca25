"""What each `moodbox-train` command does once its settings are read; results go to stdout.

Invariant: only `fit` imports TensorFlow, and only when it has looked at the folder, so that the others, and its own
first complaints, come at once.
"""

import contextlib
import itertools
import os
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from trainer import bundle, images, quiet
from trainer.dataset import Dataset, DatasetError, Unused, class_folders, open_dataset
from trainer.errors import InputError
from trainer.photos import Rules
from trainer.progress import printable
from trainer.settings import Settings

CHECK_SIZE = 224  # pixels: JPEGs are decoded at a reduced scale then, as for training


def fit(settings: Settings, *, promote: bool) -> None:
    """Train, measure, publish, and make the new bundle the champion."""
    started = time.monotonic()
    class_folders(settings.dataset.root, Rules(settings.tray.ignore, settings.tray.max_file_bytes))
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # a machine without a GPU is no error
    with quiet.native_stderr():
        from trainer import evaluate, train  # noqa: PLC0415  TensorFlow: seconds

    serving = bundle.champion(settings.models.root)
    with new_workdir(settings, datetime.now(UTC)) as workdir:
        trained = train.train_and_evaluate(settings, workdir)
    if promote:
        bundle.promote(settings.models.root, trained.number)
    show_unused(trained.data.unused)
    for table in evaluate.tables(trained.metrics):
        Console().print(table)
    show_standing(settings, trained.number, serving, promoted=promote)
    write(f"took {time.monotonic() - started:.0f} s; pictures: {workdir / 'curves.png'} {workdir / 'confusion.png'}")
    write(f"TensorBoard: {Path(sys.prefix) / 'bin' / 'tensorboard'} --logdir {settings.trainer.runs}")


@contextlib.contextmanager
def new_workdir(settings: Settings, now: datetime) -> Iterator[Path]:
    """Make a directory for one run, `runs/<UTC time>-<architecture>/`; where the run fails early, remove it again."""
    architecture = "".join(c if c.isalnum() else "_" for c in settings.trainer.architecture)
    name = f"{now:%Y%m%dT%H%M%SZ}-{architecture}"
    for suffix in itertools.chain([""], (f"-{i}" for i in itertools.count(2))):
        workdir = settings.trainer.runs / f"{name}{suffix}"
        with contextlib.suppress(FileExistsError):
            workdir.mkdir(parents=True)
            break
    try:
        yield workdir
    finally:
        with contextlib.suppress(OSError):
            workdir.rmdir()


def show_standing(settings: Settings, number: int, serving: int | None, *, promoted: bool) -> None:
    """Say which bundle was made and whether it serves."""
    where = settings.models.root / str(number)
    if not promoted:
        write(f"bundle {number}, not the champion: {where} (`moodbox-train rollback {number}` makes it the champion)")
        return
    write(f"bundle {number}, now the champion: {where}")
    with contextlib.suppress(bundle.BundleError):
        classes = bundle.read_manifest(settings.models.root, number).class_names
        if serving and bundle.read_manifest(settings.models.root, serving).class_names != classes:
            write(f"its classes differ from those of bundle {serving}: a running daemon takes it when it is restarted")


def check(settings: Settings) -> None:
    """List which photos would be used, which not and why. Raises DatasetError where they are too few."""
    data = decoded(settings)
    counts = data.counts()
    table = Table("class", title=f"{len(data.photos)} photos can be used", title_justify="left")
    for split in counts:
        table.add_column(split, justify="right")
    for name in data.class_names:
        table.add_row(Text(name), *(str(counts[split][name]) for split in counts))
    Console().print(table)
    show_unused(data.unused)
    data.require_enough()


def models(settings: Settings) -> None:
    """List the published bundles."""
    root = settings.models.root
    serving, found = bundle.champion(root), bundle.numbers(root)
    if not found:
        write(f"no bundles in {root}: `moodbox-train fit --data DIR` makes one")
        return
    table = Table("number", "architecture", "classes", "accuracy", "created (UTC)", "parent")
    for number in found:
        mark = f"{number} champion" if number == serving else str(number)
        try:
            table.add_row(mark, *map(Text, described(bundle.read_manifest(root, number))))
        except bundle.BundleError as error:
            table.add_row(mark, Text(str(error)))
    Console().print(table)


def described(manifest: bundle.Manifest) -> tuple[str, str, str, str, str]:
    """Return what the list of bundles says about one."""
    accuracy = manifest.metrics.get("accuracy")
    shown = f"{accuracy:.1%}" if isinstance(accuracy, float) else ""
    parent = "" if manifest.parent is None else str(manifest.parent)
    return (
        manifest.architecture,
        ", ".join(manifest.class_names),
        shown,
        manifest.created[:16].replace("T", " "),
        parent,
    )


def evaluate(settings: Settings, number: int | None) -> None:
    """Measure a bundle, the champion by default, on all photos of a folder."""
    with quiet.native_stderr():
        if number is None:
            bundle.install_shipped(settings.models.root)
        loaded = bundle.load(settings.models.root, known(settings.models.root, number))
    data = decoded(settings)
    names = loaded.manifest.class_names
    if strangers := [name for name in data.class_names if name not in names]:
        have = f"bundle {loaded.manifest.number} has only {', '.join(names)}"
        raise DatasetError(f"{printable(data.root)}: class folder {strangers[0]!r}: {have}")
    from trainer import evaluate as measuring  # noqa: PLC0415  scikit-learn: a second
    from trainer import replay  # noqa: PLC0415  numpy

    photos = [(data.root / photo.path, names.index(data.class_names[photo.label])) for photo in data.photos]
    metrics = measuring.evaluate(loaded, photos, settings.tray.max_pixels)
    show_unused(data.unused)
    write(f"bundle {loaded.manifest.number}, {loaded.manifest.architecture}")
    for table in measuring.tables(metrics):
        Console().print(table)
    show_taught(replay.taught(loaded, [photo.sha256 for photo in data.photos]))


def show_taught(count: int | None) -> None:
    """Warn where figures come from photos that the model has learned from."""
    if count is None:
        write("this bundle keeps no record of its photos: if it learned from some of these, the figures flatter it")
    elif count:
        write(f"it has learned from {count} of these photos: the figures flatter it")


def rollback(settings: Settings, number: int | None) -> None:
    """Make an earlier bundle the champion: `number`, else the champion's parent, else the one before it."""
    root = settings.models.root
    was = bundle.champion(root)
    chosen = known(root, number)
    target = before(root, was) if chosen is None else chosen
    with quiet.native_stderr():
        bundle.load(root, target)
    bundle.promote(root, target)
    write(f"champion: bundle {target}" + (f" (was {was})" if was not in (None, target) else ""))
    write("a daemon that runs takes it at its next start")


def known(root: Path, number: int | None) -> int | None:
    """Return `number` where there is such a bundle. Raises InputError."""
    found = bundle.numbers(root)
    if number is not None and number not in found:
        raise InputError(f"{root}: no bundle {number}; there are: {', '.join(map(str, found)) or 'none'}")
    return number


def before(root: Path, serving: int | None) -> int:
    """Return the bundle to go back to from the one that serves, which may be damaged. Raises InputError."""
    if serving is None:
        raise InputError(f"{root}: no bundle is champion: name one, as in `moodbox-train rollback 1`")
    found = bundle.numbers(root)
    with contextlib.suppress(bundle.BundleError):
        parent = bundle.read_manifest(root, serving).parent
        if parent in found and parent is not None:
            return parent
    earlier = [number for number in found if number < serving]
    if not earlier:
        raise InputError(f"{root}: there is no bundle before {serving}")
    return earlier[-1]


def decoded(settings: Settings) -> Dataset:
    """Read the dataset, decoding every photo and keeping none."""
    most = settings.tray.max_pixels
    return open_dataset(settings, lambda _, photo: images.decode(photo, size=CHECK_SIZE, max_pixels=most))


def show_unused(unused: tuple[Unused, ...]) -> None:
    """List every file that is not used, with its reason."""
    for file in unused:
        write(f"not used: {printable(file.path)}: {printable(file.reason)}")


def write(text: str) -> None:
    """Write a line of result."""
    sys.stdout.write(text + "\n")
