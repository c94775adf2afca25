"""Backfill: every photo below a folder or URL classified where it is, into result files, on all cores or on a cluster.

Invariant: nothing below SOURCE is changed. Whatever ends a backfill, the same command goes on after the shards that are
finished; it is done when every shard of the manifest has its result.
"""

# ruff: noqa: T201

import contextlib
import importlib.util
import os
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import NoReturn

from daemon import endpoints, shards, storage
from daemon.classifier import BundleError, Classifier
from daemon.endpoints import GO_ON
from daemon.headway import Headway
from daemon.logs import failed, printable, refusal
from daemon.shards import Format, Manifest, ManifestError
from daemon.station import Done, Job, version
from daemon.storage import Storage
from daemon.watcher import ignored_names
from trainer import quiet
from trainer.errors import FailureError, InputError
from trainer.settings import Settings

BAD_INPUT, FAILED = 2, 1
SHARD_FILES = 500
NAMED = 20
WAYS_OUT = "--restart removes its results and begins anew, or name another DEST"
INSTALL = "pip install 'moodbox[ray]'"
# Ray reads these when it is imported: no counting of its users, no colours and bars; and, where it serves this machine
# alone, no address that others can reach in place of 127.0.0.1.
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0", "RAY_COLOR_PREFIX": "0", "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_DEDUP_LOGS": "0", "RAY_SCHEDULER_EVENTS": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}  # fmt: skip
LOOPBACK = ("127.0.0.1:", "localhost:", "[::1]:")
ALONE = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}


@dataclass(frozen=True)
class Asked:
    """The command line; None stands for what the manifest says, else for the default."""

    source: str
    dest: str
    model: int | None = None
    format: Format | None = None
    shard_files: int | None = None
    address: str | None = None
    workers: int | None = None
    restart: bool = False
    start_seconds: float = 120.0


@dataclass
class Tally:
    """What this run did. `problems` are those of shards that have no result."""

    files: int = 0
    rejected: int = 0
    unreadable: int = 0
    problems: dict[int, str] = field(default_factory=dict)

    def add(self, done: Done) -> None:
        """Count a shard. Raises FailureError where one of the machines can do nothing: it would take all the others."""
        if done.refusal:
            raise FailureError(done.refusal)
        if done.problem:
            self.problems[done.shard] = done.problem
        self.files += done.files
        self.rejected += done.rejected
        self.unreadable += done.unreadable


class StoppedError(BaseException):
    """SIGINT or SIGTERM came; no handler of `Exception` may keep it."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def run(settings: Settings, asked: Asked) -> int:
    """Classify what has no result yet; return 0 where all of it has one then, 1 where not, 2 for bad input."""
    if importlib.util.find_spec("ray") is None:
        return failed(f"backfill needs Ray, which is not installed: {INSTALL}", BAD_INPUT)
    try:
        _heed_signals()
        with contextlib.ExitStack() as opened:
            return _backfill(settings, asked, opened)
    except (InputError, BundleError, ManifestError) as error:
        return failed(error, BAD_INPUT)
    except (FailureError, OSError) as error:
        return failed(f"{refusal(error) if isinstance(error, OSError) else error}; {GO_ON}", FAILED)
    except (StoppedError, SystemExit) as error:  # the latter is Ray's own answer to SIGTERM, while it starts
        number = error.number if isinstance(error, StoppedError) else signal.SIGTERM
        return failed(f"stopped; {GO_ON}", 128 + number)


def _backfill(settings: Settings, asked: Asked, opened: contextlib.ExitStack) -> int:
    source, dest = storage.located(asked.source), storage.located(asked.dest)
    endpoints.check(source, dest)
    endpoints.check_tray(source, settings.tray.root, is_applied=False)
    photos, results = endpoints.open_source(source), endpoints.open_dest(dest, opened)
    manifest = None if asked.restart else shards.read_manifest(results)
    with quiet.native_stderr():
        classifier = Classifier.load(settings.models.root, asked.model or (manifest.model if manifest else None))
    draft = _draft(settings, asked, source, classifier)
    if manifest is None:
        manifest = _list(photos, results, draft, settings, restart=asked.restart)
    else:
        _check_same(manifest, draft, asked)
    job = Job(version(), manifest, dest, classifier.packed(), settings.daemon.decode_seconds)
    return _sort(job, shards.unfinished(results, manifest), asked, settings.daemon.cores)


def _draft(settings: Settings, asked: Asked, source: str, classifier: Classifier) -> Manifest:
    bundle = classifier.manifest
    return Manifest(
        version=version(), source=source, model=bundle.number, bundle=bundle.files,
        preprocessing_version=bundle.preprocessing_version, max_file_bytes=settings.tray.max_file_bytes,
        max_pixels=settings.tray.max_pixels, format=asked.format or "parquet",
        shard_files=asked.shard_files or SHARD_FILES,
    )  # fmt: skip


def _list(photos: Storage, results: Storage, draft: Manifest, settings: Settings, *, restart: bool) -> Manifest:
    """Make the list of all files, and the manifest."""
    if not restart and shards.has_results(results):
        raise InputError(f"DEST holds results but no {shards.MANIFEST}: {WAYS_OUT}")
    shards.clear(results)
    with Headway("listing") as headway:
        return shards.make(results, draft, headway.counted(shards.walk(photos, ignored_names(settings.tray.ignore))))


def _check_same(manifest: Manifest, draft: Manifest, asked: Asked) -> None:
    """Raise InputError where something else is asked for than what was begun."""
    named = [("source", True), ("model", True), ("format", asked.format), ("shard_files", asked.shard_files)]
    for name, is_asked in named:
        was, now = getattr(manifest, name), getattr(draft, name)
        if is_asked and was != now:
            raise InputError(f"DEST was begun with {name} {was}, not {now}: {WAYS_OUT}")
    if manifest.bundle != draft.bundle:
        raise InputError(f"model {manifest.model} is not the one that DEST was begun with: {WAYS_OUT}")


def _sort(job: Job, numbers: list[int], asked: Asked, cores: int) -> int:
    """Have the shards sorted, and say what became of them."""
    is_alone = asked.address is None or asked.address.startswith(LOOPBACK)
    ray_job = _import_ray(QUIET | ALONE if is_alone else QUIET)
    tally, manifest = Tally(), job.manifest
    missing = sum(map(manifest.files_of, numbers))
    if numbers:
        workers = asked.workers or (None if asked.address else cores)
        where = ray_job.Cluster(asked.address, workers, asked.start_seconds)
        try:
            with (
                contextlib.redirect_stdout(sys.stderr),  # where Ray prints what workers say
                Headway("sorting", manifest.files, manifest.files - missing) as headway,
                ray_job.connected(where),
            ):
                _heed_signals()  # Ray has taken SIGTERM
                for done in ray_job.run(job, numbers, where):
                    tally.add(done)
                    headway.advance(done.files)
        except ray_job.JobError as error:
            raise FailureError(str(error)) from None
    return _report(job, tally)


def _import_ray(environment: Mapping[str, str]) -> ModuleType:
    """Return daemon.ray_job. It takes seconds, and half a gigabyte that no other command needs."""
    os.environ.update(environment)
    try:
        from daemon import ray_job  # noqa: PLC0415
    except ImportError as error:
        raise InputError(f"Ray is not whole ({error}): {INSTALL}") from None
    return ray_job


def _report(job: Job, tally: Tally) -> int:
    results, manifest = storage.at(job.dest), job.manifest
    results.sync(shards.RESULTS)
    left = shards.unfinished(results, manifest)
    done = manifest.files - sum(map(manifest.files_of, left))
    print(
        f"{done:,} of {manifest.files:,} files done, {tally.files:,} of them now, {tally.rejected:,} of these rejected"
    )
    if tally.unreadable:
        print(f"{tally.unreadable:,} could not be read (error_code unreadable): see docs/scaling.md for another try")
    for shard in left[:NAMED]:
        why = tally.problems.get(shard, "Ray lost it")
        print(f"shard {shard:06} failed: {printable(why)}", file=sys.stderr)
    if left:
        return failed(f"{len(left):,} of {manifest.shards:,} shards have no result; {GO_ON}", FAILED)
    return 0


def _heed_signals() -> None:
    def stop(number: int, _frame: object) -> NoReturn:
        signal.signal(number, signal.SIG_DFL)  # the second one ends the process at once
        raise StoppedError(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
