"""Shards: the list of a backfill's files, cut into pieces that never change, and the manifest that says what is asked.

Invariant: where there is a manifest, its list is complete; what a shard's result holds depends on the manifest and on
its photos alone. A shard is done when its result is there under its final name.
"""

import itertools
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from daemon import storage
from daemon.events import put_name, take_name
from daemon.inspection import Limits
from daemon.storage import Storage

MANIFEST, PATHS, RESULTS = "manifest.json", "paths", "results"
OURS = re.compile(r"[0-9]{6,}\.(jsonl|parquet)|\..+\.tmp")  # the latter: of a process that was killed
Format = Literal["parquet", "jsonl"]


class ManifestError(Exception):
    """A manifest that cannot be read; the message says what to do."""


class Manifest(BaseModel):
    """What a backfill was asked for, and how many files that are. `bundle` has the sha256 of the model's files."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    schema_: Literal[1] = Field(1, alias="schema")
    version: str
    source: str
    model: int
    bundle: dict[str, str]
    preprocessing_version: int
    max_file_bytes: int
    max_pixels: int
    format: Format
    shard_files: int = Field(ge=1)
    files: int = 0
    shards: int = 0

    @property
    def limits(self) -> Limits:
        """What is too much for one file."""
        return Limits(self.max_file_bytes, self.max_pixels)

    def files_of(self, shard: int) -> int:
        """Return how many files a shard has: the last one may have fewer than the others."""
        return min(self.shard_files, self.files - shard * self.shard_files)

    def result(self, shard: int) -> str:
        """Return the name of a shard's result."""
        return f"{RESULTS}/{shard:06}.{self.format}"


def walk(source: Storage, ignored: re.Pattern[str]) -> Iterator[str]:
    """Yield every file but those of hidden and ignored names and folders, in the order of the bytes of their paths.

    No more is kept than the names in the folders that it stands in. Raises OSError where a folder cannot be read:
    nothing in it may be left out unsaid.
    """
    waiting = [""]  # the next one stands last; a folder ends in a slash
    while waiting:
        path = waiting.pop()
        if path and not path.endswith("/"):
            yield path
        else:
            waiting.extend(sorted(_below(source, path, ignored), key=os.fsencode, reverse=True))


def _below(source: Storage, path: str, ignored: re.Pattern[str]) -> list[str]:
    try:
        listed = [entry for entry in source.entries(path.rstrip("/")) if is_meant(entry[0], ignored)]
    except FileNotFoundError:
        if not path:
            raise
        return []  # removed while we looked
    return [f"{path}{name}/" if is_folder else f"{path}{name}" for name, is_folder in listed]


def is_meant(name: str, ignored: re.Pattern[str]) -> bool:
    """Tell whether a file or folder of this name is looked at."""
    return not name.startswith(".") and not ignored.match(name.casefold())


def make(dest: Storage, draft: Manifest, files: Iterable[str]) -> Manifest:
    """Write the list, then the manifest: `draft` with the numbers of files and shards. Raises OSError."""
    rest, count, shards = iter(files), 0, 0
    while piece := list(itertools.islice(rest, draft.shard_files)):
        dest.write(_paths_of(shards), encode(piece))
        count, shards = count + len(piece), shards + 1
    dest.sync(PATHS)
    manifest = draft.model_copy(update={"files": count, "shards": shards})
    dest.write(MANIFEST, _dumped(manifest))
    dest.sync("")
    return manifest


def encode(files: Sequence[str]) -> bytes:
    """Return a piece of the list as JSON lines."""
    return b"".join(map(_encoded, files))


def _encoded(file: str) -> bytes:
    fields: dict[str, Any] = {"file": file}
    put_name(fields, "file")
    return orjson.dumps(fields, option=orjson.OPT_APPEND_NEWLINE)


def paths(dest: Storage, shard: int) -> list[str]:
    """Return the files of a shard, exactly as they are called. Raises OSError."""
    return [_decoded(raw) for raw in dest.read(_paths_of(shard)).splitlines()]


def _decoded(raw: bytes) -> str:
    fields = orjson.loads(raw)
    take_name(fields, "file")
    return str(fields["file"])


def read_manifest(dest: Storage) -> Manifest | None:
    """Return the manifest, None where there is none. Raises ManifestError or OSError."""
    try:
        fields = orjson.loads(dest.read(MANIFEST))
        take_name(fields, "source")
        return Manifest.model_validate(fields)
    except FileNotFoundError:
        return None
    except (ValidationError, ValueError, TypeError, AttributeError):
        text = f"{MANIFEST} is damaged, or of another version of Moodbox: --restart begins anew"
        raise ManifestError(text) from None


def unfinished(dest: Storage, manifest: Manifest) -> list[int]:
    """Return the shards that have no result yet. Raises OSError."""
    there = storage.names(dest, RESULTS)
    return [n for n in range(manifest.shards) if manifest.result(n).rpartition("/")[2] not in there]


def has_results(dest: Storage) -> bool:
    """Tell whether any result is there. Raises OSError."""
    return any(OURS.fullmatch(name) for name in storage.names(dest, RESULTS))


def clear(dest: Storage) -> None:
    """Remove results, manifest and list, in an order in which a kill leaves no result without its manifest."""
    _clear(dest, RESULTS)
    if MANIFEST in storage.names(dest, ""):
        dest.remove(MANIFEST)
        dest.sync("")
    _clear(dest, PATHS)


def sweep(dest: Storage) -> None:
    """Remove what processes that were killed left half written. Nobody else may be at work here."""
    for folder in ("", PATHS, RESULTS):
        for name in storage.names(dest, folder):
            if OURS.fullmatch(name) and name.endswith(".tmp"):
                dest.remove(f"{folder}/{name}" if folder else name)


def _clear(dest: Storage, folder: str) -> None:
    for name in storage.names(dest, folder):
        if OURS.fullmatch(name):
            dest.remove(f"{folder}/{name}")
    dest.sync(folder)


def _paths_of(shard: int) -> str:
    return f"{PATHS}/{shard:06}.jsonl"


def _dumped(manifest: Manifest) -> bytes:
    fields = manifest.model_dump(by_alias=True)
    put_name(fields, "source")
    return orjson.dumps(fields, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
