"""The commands that make and choose models: fit, crossvalidate, models, rollback.

Invariant: TensorFlow is imported only where something is trained, and only when the folder was looked at, so that the
other commands, and the first complaints, come at once.
"""

import contextlib
import re
import time
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType

from rich.console import Console

from trainer import bundle, decisions, lineage, memory, progress, quiet, runs
from trainer.dataset import class_folders
from trainer.errors import InputError
from trainer.output import show_unused, write
from trainer.photos import Rules
from trainer.settings import Settings


def fit(settings: Settings, *, promote: bool, resume: bool) -> None:
    """Train, measure, publish, and make the new bundle the champion."""
    started = time.monotonic()
    class_folders(settings.dataset.root, Rules(settings.tray.ignore, settings.tray.max_file_bytes))
    train = training()
    from trainer import evaluate  # noqa: PLC0415  scikit-learn: a second

    serving = bundle.champion(settings.models.root)
    with runs.opened(settings.trainer.runs, settings.trainer.architecture, datetime.now(UTC), resume=resume) as workdir:
        trained = train.train_and_evaluate(settings, workdir, promote=promote)
    show_unused(trained.data.unused)
    for table in evaluate.tables(trained.metrics):
        Console().print(table)
    views = bundle.read_manifest(settings.models.root, trained.number).views
    write(f"it looks at: {' and '.join('the ' + view for view in views)}")
    if trained.guesses:
        write("it is no better than guessing, so it is not made the champion: look at the report, and at the photos")
    show_standing(settings, trained.number, serving, promoted=promote and not trained.guesses)
    write(f"took {time.monotonic() - started:.0f} s and {memory.peak() / 1e9:.1f} GB of memory")
    write(f"report: {workdir / 'report.html'}")
    write("the curves of all runs: moodbox-train tensorboard")


def training() -> ModuleType:
    """Load TensorFlow, which takes seconds and says things that are no errors, and what trains with it."""
    progress.line("loading TensorFlow")
    with quiet.importing():
        from trainer import train  # noqa: PLC0415
    return train


def crossvalidate(settings: Settings, groups: str) -> None:
    """Train leaving out one group of photos at a time, and measure on it."""
    started = time.monotonic()
    class_folders(settings.dataset.root, Rules(settings.tray.ignore, settings.tray.max_file_bytes))
    finder = expression(groups) if groups else None
    training()
    from trainer import crossvalidate as leaving_out  # noqa: PLC0415

    with runs.opened(settings.trainer.runs, "crossvalidate", datetime.now(UTC), resume=False) as workdir:
        folds = leaving_out.crossvalidate(settings, finder, workdir)
        runs.finish(workdir, leaving_out.as_json(folds))
    Console().print(leaving_out.table(folds))
    write(f"as JSON: {workdir / runs.RESULT}")
    write(f"took {time.monotonic() - started:.0f} s and {memory.peak() / 1e9:.1f} GB of memory")


def expression(pattern: str) -> re.Pattern[str]:
    """Return a regular expression whose first group names groups of photos. Raises InputError."""
    try:
        finder = re.compile(pattern)
    except (re.error, OverflowError) as error:
        raise InputError(f"--groups {pattern!r}: no regular expression: {error}") from None
    if not finder.groups:
        raise InputError(f"--groups {pattern!r}: put what names the group into parentheses, as in '^([a-z]+)_'")
    return finder


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


def models(settings: Settings, *, as_json: bool) -> None:
    """List the published bundles with their figures and lineage."""
    root = settings.models.root
    serving, found = bundle.champion(root), bundle.numbers(root)
    if as_json:
        for number in found:
            write(lineage.as_json(root, number, champion=number == serving))
    elif not found:
        write(f"no bundles in {root}: `moodbox-train fit --data DIR` makes one")
    else:
        lines = decisions.read(root)
        pinned, refused = decisions.pinned(lines), decisions.refused(lines)
        Console().print(lineage.table(root, found, serving, pinned=pinned, refused=refused))


def rollback(settings: Settings, number: int | None) -> None:
    """Make an earlier bundle the champion: `number`, else the champion's parent, else the one before it."""
    root = settings.models.root
    was = bundle.champion(root)
    chosen = known(root, number)
    target = before(root, was) if chosen is None else chosen
    with quiet.native_stderr():
        bundle.load(root, target)
    decisions.append(root, decisions.ROLLBACK, datetime.now(UTC), champion=target, before=was)
    bundle.promote(root, target)
    write(f"champion: bundle {target}" + (f" (was {was})" if was not in (None, target) else ""))
    write("it stays until `fit` or a retraining with new corrections promotes another")
    write("a daemon that runs takes it within seconds; where its classes differ, when it is restarted")


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
