"""The commands retrain, the scheduled job, and prune.

Invariant: one at a time (a lock on a file in `models/`), at the lowest priority, and nothing is loaded or trained where
there is nothing new. Promoted and refused are both a job well done.
"""

import os
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import ModuleType

from trainer import bundle, commands, decisions, durable, known_labels, lessons, memory, prepared, pruning, quiet
from trainer.bundle import Bundle
from trainer.dataset import Dataset, DatasetError, class_folders, open_dataset
from trainer.errors import FailureError
from trainer.lessons import Lessons
from trainer.output import show_unused, write
from trainer.photos import Rules, walk
from trainer.progress import printable
from trainer.settings import Settings

LOCK = ".retrain.lock"


def retrain(settings: Settings, data: Path | None) -> None:
    """Make a challenger of what is new, judge it beside the champion, and promote it or not."""
    if data is not None and not data.exists():
        raise DatasetError(f"{printable(data)}: there is no such folder: check --data")
    os.nice(19)
    root = settings.models.root
    root.mkdir(parents=True, exist_ok=True)
    with alone(root):
        with quiet.native_stderr():
            bundle.install_shipped(root)
        finish(root)
        if holds_photos(settings):
            hold(settings)
        else:
            write(f"{printable(settings.dataset.root)}: nothing to learn from yet: no photos in it")


def hold(settings: Settings) -> None:
    """Hold a round, where there is anything new."""
    root = settings.models.root
    with quiet.native_stderr():
        champion = bundle.load(root)
    cache = cache_for(settings, champion)
    require_known_classes(settings, champion)
    data = open_dataset(settings, cache.add)
    show_unused(data.unused)
    if data.hash in (decisions.newest_folder(decisions.read(root)), champion.manifest.dataset.hash):
        write(f"{printable(data.root)}: nothing new since the last round: bundle {champion.manifest.number} stays")
        return
    material = lessons.of(champion, data, known_labels.read(root))
    names = material.data.class_names
    write(f"new: {len(material.new):,} photos: {lessons.described(material.new, names) or 'none; some are gone'}")
    if not material.data.of("train"):
        doubted = {photo.sha256 for photo in material.new} | known_labels.doubted(root)
        known_labels.write(root, material.data, doubted)
        write("none of them is for training (the split drew them all to judge by): add more; nothing was trained")
        return
    train_and_decide(settings, material, cache)


def train_and_decide(settings: Settings, material: Lessons, cache: prepared.Cache) -> None:
    """Train a challenger, and say what came of it."""
    started = time.monotonic()
    retraining = training()
    way = retraining.route(settings, material)
    if not way:
        write(too_few(settings, material))
        return
    write(f"route: {way}")
    done = retraining.hold(settings, material, cache, way)
    serving = material.champion.manifest.number
    write(f"{'promoted' if done.verdict.promoted else 'refused'}: {done.verdict.reason}")
    if done.verdict.promoted:
        write(f"bundle {done.challenger} is the champion (was {serving}); `moodbox-train rollback` goes back")
    else:
        write(f"bundle {serving} stays the champion; the challenger is kept as bundle {done.challenger}")
        write(f"correct more and try again, or take it all the same: `moodbox-train rollback {done.challenger}`")
    if done.agreed.asked:
        write(str(done.agreed))
    if done.elsewhere[1]:
        moved, looked = done.elsewhere
        write(f"of the last {looked} photos that were sorted and not corrected, {moved} would now go elsewhere: the "
              "report shows them (`moodbox undo FILE --resort --yes` has one sorted again)")  # fmt: skip
    tidy(settings)
    write(f"took {time.monotonic() - started:.0f} s and {memory.peak() / 1e9:.1f} GB of memory")
    write(f"report: {done.report}")


def prune(settings: Settings, *, dry_run: bool) -> None:
    """Remove old bundles, but for the newest, the champion, and the one to go back to."""
    root, keep = settings.models.root, settings.models.keep
    if not bundle.numbers(root):
        write(f"no bundles in {root}")
        return
    with alone(root):
        gone = pruning.superfluous(root, keep) if dry_run else pruning.prune(root, keep)
    said = named(gone) if gone else "nothing"
    write(f"{'would remove' if dry_run else 'removed'} {said}; kept are {keep} of the newest (models.keep; refused "
          "ones go first), the champion, the one it came from, and the first")  # fmt: skip


def tidy(settings: Settings) -> None:
    """Prune after a round, and say what went."""
    if gone := pruning.prune(settings.models.root, settings.models.keep):
        write(f"removed {named(gone)} (models.keep)")


def named(numbers: Sequence[int]) -> str:
    """Return "bundle 6", or "bundles 5, 6"."""
    return f"bundle{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}"


def alone(root: Path) -> AbstractContextManager[None]:
    """Hold the lock. Raises FailureError where another one has it."""
    refusal = FailureError(f"{printable(root)}: a retraining is at work there: wait for its end")
    return durable.exclusive(root / LOCK, os.O_RDWR | os.O_CREAT, refusal, 0o600)


def finish(root: Path) -> None:
    """Move the link where the newest decision says, if a kill kept it from that."""
    number = decisions.unfinished(root, decisions.read(root))
    if number is None:
        return
    with quiet.native_stderr():
        bundle.load(root, number)
    bundle.promote(root, number)
    write(f"bundle {number} is the champion: that was decided, and an interruption kept it from being carried out")


def holds_photos(settings: Settings) -> bool:
    """Tell whether there is any file in a class folder."""
    root, rules = settings.dataset.root, Rules(settings.tray.ignore, settings.tray.max_file_bytes)
    if not root.is_dir():
        return root.exists()  # a file: reading it says what is wrong
    folders = [e.name for e in os.scandir(root) if e.is_dir(follow_symlinks=False) and not rules.skips(e.name)]
    return any(any(walk(root, name, rules)) for name in folders)


def require_known_classes(settings: Settings, champion: Bundle) -> None:
    """Raise DatasetError where the folder has a class that the champion does not know."""
    root, names = settings.dataset.root, champion.manifest.class_names
    folders, _ = class_folders(root, Rules(settings.tray.ignore, settings.tray.max_file_bytes))
    if strangers := [name for name in folders if name not in names]:
        raise DatasetError(
            f"{printable(root)}: class folder {strangers[0]!r}: the champion, bundle {champion.manifest.number}, "
            f"has only {', '.join(names)}: `moodbox-train fit` makes a model of other classes"
        )


def cache_for(settings: Settings, champion: Bundle) -> prepared.Cache:
    """Return the folder of photos prepared as the champion sees them."""
    manifest = champion.manifest
    return prepared.shared(settings, manifest.input_size, manifest.faces)


def too_few(settings: Settings, material: Lessons) -> str:
    """Say what is missing where the champion cannot be taught by a few photos."""
    data: Dataset = material.data
    have = ", ".join(f"{count} {name}" for name, count in data.counts()["train"].items())
    return (
        f"bundle {material.champion.manifest.number} keeps no features of what it learned from, so that a few photos "
        f"cannot teach it: {settings.trainer.full_from} training photos of each class are needed (trainer.full_from), "
        f"there are {have}"
    )


def training() -> ModuleType:
    """Load TensorFlow and what retrains with it."""
    commands.training()
    from trainer import retraining  # noqa: PLC0415  TensorFlow, seconds

    return retraining
