"""A station: one process that has loaded the model of a backfill and sorts its shards, one after the other.

Invariant: a shard's result is written whole, under its final name, or not at all; sorted twice, here or elsewhere, it
has the same bytes. What goes wrong is said in words: with one shard, or with this whole machine.
"""

import contextlib
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata

from daemon import rows, shards, storage
from daemon.classifier import BundleError, Classifier
from daemon.events import Line
from daemon.logs import refusal
from daemon.shards import Manifest
from trainer import quiet

Watch = Callable[[], contextlib.AbstractContextManager[object]]


@dataclass(frozen=True)
class Job:
    """What a worker has to know. `packed` is the bundle: machines need not share `models/`."""

    version: str
    manifest: Manifest
    dest: str
    packed: Mapping[str, bytes]
    decode_seconds: float


@dataclass(frozen=True)
class Done:
    """What became of a shard. With a `problem` it has no result; with a `refusal` none can be made on this machine."""

    shard: int
    files: int = 0
    rejected: int = 0
    unreadable: int = 0
    problem: str = ""
    refusal: str = ""


class RefusalError(Exception):
    """This machine cannot do any of the job; the message says why."""


def version() -> str:
    """Return the version of Moodbox that is installed here."""
    try:
        return metadata.version("moodbox")
    except metadata.PackageNotFoundError:
        return "(not installed)"


class Station:
    """Loads the model. Raises RefusalError. `watched` is open while a decoder or the model is at work."""

    def __init__(self, job: Job, watched: Watch = contextlib.nullcontext) -> None:
        self.job = job
        if version() != job.version:
            raise RefusalError(
                self._here(f"it has moodbox {version()}, not {job.version}: install the same everywhere")
            )
        try:
            with quiet.native_stderr():
                self._classifier = Classifier.unpacked(job.manifest.model, job.packed)
                predict = self._classifier.make_predictor()
            source, self._dest = storage.at(job.manifest.source), storage.at(job.dest)
        except (BundleError, ImportError, ValueError) as error:
            raise RefusalError(self._here(str(error))) from None
        except OSError as error:
            raise RefusalError(self._here(refusal(error))) from None
        limits = job.manifest.limits
        self._judge = rows.Judge(source, self._classifier, self._classifier.eye, predict, limits, watched)

    def sort(self, shard: int, begin: Callable[[str], object] = lambda _: None) -> Done:
        """Write the result of a shard; `begin` is called with each file before it is read."""
        file, lines = "the list of its files", list[Line]()
        try:
            for file in shards.paths(self._dest, shard):
                begin(file)
                lines.append(self._judge.row(file))
            file = self.job.manifest.result(shard)
            self._dest.write(file, self._encoded(lines))
        except OSError as error:
            return Done(shard, problem=self._here(f"{file}: {error.strerror or error}"))
        rejected = sum(line.event == "rejected" for line in lines)
        return Done(shard, len(lines), rejected, sum(line.error_code == "unreadable" for line in lines))

    def _encoded(self, lines: Sequence[Line]) -> bytes:
        if self.job.manifest.format == "jsonl":
            return rows.as_jsonl(lines)
        return rows.as_parquet(lines, self._classifier.classes)

    @staticmethod
    def _here(text: str) -> str:
        return f"{text} (on {platform.node()})"
