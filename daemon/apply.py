"""Applying a backfill: its photos are moved, or hard-linked, into the tray's folders, and journalled as sorted.

Invariant: without a word (`--yes`) nothing is changed. Whatever ends it before its end, the same command goes on.
"""

# ruff: noqa: T201

import contextlib
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from daemon import endpoints, rows, shards, storage, tray
from daemon.applier import Applier, Linker, Way
from daemon.endpoints import GO_ON
from daemon.errand import BATCH, errand, heeding_signals
from daemon.events import Line
from daemon.evidence import Evidence
from daemon.headway import Headway
from daemon.journal import read, segments
from daemon.logs import failed, printable, refusal
from daemon.owner import OwnerError
from daemon.shards import Manifest, ManifestError
from daemon.spool import Spool
from daemon.storage import Storage
from daemon.tray import REVIEW, TrayError
from trainer.errors import InputError
from trainer.manifest import check_class_name
from trainer.settings import Settings

KIND = "backfill"  # the owner, one for a tray whatever its daemons are called
NAMED = 20
EVENTS = ("sorted", "review", "redirected", "stopped")
DONE = {"move": "moved to", "link": "linked into"}
BAD_INPUT, FAILED = 2, 1


@dataclass
class Found:
    """The results of a backfill that are there: `unfinished` shards have none yet."""

    manifest: Manifest
    results: Storage
    finished: list[int]
    unfinished: int
    review_below: float

    def lines(self, shard: int) -> Iterator[Line]:
        """Yield what was sorted, with the folder where it goes. Raises InputError or OSError."""
        name = self.manifest.result(shard)
        try:
            found = rows.read(self.results.read(name), self.manifest.format)
        except ModuleNotFoundError:
            raise InputError("these results are Parquet, which pyarrow reads: pip install pyarrow") from None
        except ValueError as error:
            raise InputError(f"{name} is damaged ({error}): remove it, and run the backfill again") from None
        yield from (self._placed(row, name) for row in found if row.event == "sorted")

    def _placed(self, row: Line, name: str) -> Line:
        parts, folder = (row.file or "").split("/"), check_class_name(row.label or "")
        if {"", ".", ".."} & set(parts) or row.sha256 is None:
            raise InputError(f"{name} holds a row that no backfill wrote: {printable(row.file or '')!r}")
        if (row.score or 0.0) < self.review_below:
            return row.model_copy(update={"event": "review", "destination": REVIEW})
        return row.model_copy(update={"destination": folder})


def run(settings: Settings, source: str, dest: str, way: Way, *, yes: bool) -> int:
    """Say what would be done, or with `yes` do it; return 0, 1 where something is left, 2 for bad input."""
    try:
        with contextlib.ExitStack() as opened:
            return _apply(settings, storage.located(source), storage.located(dest), way, opened, yes=yes)
    except (InputError, ManifestError, TrayError, OwnerError, ValueError) as error:
        return failed(str(error), BAD_INPUT)
    except OSError as error:
        return failed(f"{refusal(error)}; {GO_ON}", FAILED)


def _apply(
    settings: Settings, source: str, dest: str, way: Way, opened: contextlib.ExitStack, *, yes: bool
) -> int:  # fmt: skip
    if storage.is_url(source):
        raise InputError("--apply renames or links files of this machine: SOURCE has to be a folder")
    endpoints.check_tray(source, settings.tray.root, is_applied=True)
    found = _results(settings, source, dest, opened)
    photos, folder = _opened(settings, source, opened)
    counts = Counter((line.destination or "") for shard in found.finished for line in found.lines(shard))
    print(", ".join(f"{printable(name)} {count:,}" for name, count in sorted(counts.items())) or "nothing was sorted")
    if not yes:
        print(f"These would be {DONE[way]} {settings.tray.root}, if they were not yet: --yes does it")
        return _unfinished(found)
    classes, make_spool = sorted(set(counts) - {REVIEW}), Linker if way == "link" else Spool
    spool, journal, own = opened.enter_context(errand(settings, folder, KIND, classes, make_spool))
    if own.name != KIND:
        raise OwnerError("another --apply is at work on this tray, or was, with another journal.root")
    evidence = opened.enter_context(Evidence(photos))
    applier = Applier(spool, journal, photos, folder, evidence, os.path.realpath(source), way)
    applier.recover(_journalled(settings, own.name))
    stopped_by = _carry_out(applier, found, Headway(DONE[way].split()[0], sum(counts.values())))
    print(f"{applier.done:,} {DONE[way]} {settings.tray.root}")
    _name(applier.left)
    if stopped_by:
        return failed(f"stopped; {GO_ON}", 128 + stopped_by)
    return FAILED if applier.left else _unfinished(found)


def _opened(settings: Settings, source: str, opened: contextlib.ExitStack) -> tuple[int, int]:
    """Open SOURCE and the tray. Raises InputError where no rename leads from one to the other."""
    photos = os.open(source, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    opened.callback(os.close, photos)
    folder = tray.open_tray(settings.tray.root)
    opened.callback(os.close, folder)
    if tray.mount_id(photos) != tray.mount_id(folder):
        text = f"{source} is on another mount than the tray {settings.tray.root}: nothing is copied; drop a copy"
        raise InputError(f"{text} into its inbox instead")
    return photos, folder


def _carry_out(applier: Applier, found: Found, headway: Headway) -> int:
    """Take all that is found, batch by batch; return the signal that ended it, 0 for none."""
    with headway, heeding_signals() as is_stopped:
        for shard in found.finished:
            pending = found.lines(shard)
            while not is_stopped() and (piece := list(islice(pending, BATCH))):
                applier.batch(piece)
                headway.advance(len(piece))
        if applier.is_open:
            applier.finish()
        return is_stopped()


def _results(settings: Settings, source: str, dest: str, opened: contextlib.ExitStack) -> Found:
    if not storage.is_url(dest) and not os.path.isdir(dest):
        raise InputError(f"DEST {dest}: there is no such folder: `moodbox backfill SOURCE DEST` makes it")
    results = endpoints.open_dest(dest, opened)
    manifest = shards.read_manifest(results)
    if manifest is None or os.path.realpath(manifest.source) != os.path.realpath(source):
        raise InputError(
            f"DEST {dest}: it is no backfill of {source}{f', but of {manifest.source}' if manifest else ''}"
        )
    left = set(shards.unfinished(results, manifest))
    finished = [n for n in range(manifest.shards) if n not in left]
    return Found(manifest, results, finished, len(left), settings.daemon.review_below)


def _unfinished(found: Found) -> int:
    if found.unfinished:
        print(f"{found.unfinished:,} of {found.manifest.shards:,} shards have no result yet: run the backfill first")
    return FAILED if found.unfinished else 0


def _name(left: Sequence[tuple[str, str]]) -> None:
    for file, reason in left[:NAMED]:
        print(f"left alone: {printable(file)}: {reason}", file=sys.stderr)
    if len(left) > NAMED:
        print(f"left alone: {len(left) - NAMED:,} more", file=sys.stderr)


def _journalled(settings: Settings, own: str) -> Iterator[Line]:
    for _, path in segments(settings.journal.root, own):
        yield from (line for line in read(path) if line.event in EVENTS)
