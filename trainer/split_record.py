"""The record of the split: `.moodbox-splits.jsonl` in the dataset's own folder, one line per photo that was ever used.

Invariant: what was recorded stays as it is. The file is only ever replaced by itself with new lines at its end, written
whole, under a lock on the folder; where a line cannot be understood, reading it is an error and nothing is guessed.
"""

import contextlib
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import orjson

from trainer import durable
from trainer.errors import FailureError, InputError
from trainer.progress import printable

NAME = ".moodbox-splits.jsonl"
SPLITS = ("train", "validation", "test")
LOCK_SECONDS = 600.0  # that another run may take to split

_SHA256 = re.compile(r"[0-9a-f]{64}")
_PHASH = re.compile(r"([0-9a-f]{64})?")


class DamagedRecordError(InputError):
    """A record that was cut or changed; the message names the line and says what to do."""


@dataclass(frozen=True, slots=True)
class Entry:
    """What is known of a photo for ever: its fingerprint (see `twins.fingerprint`) and its split."""

    phash: bytes
    split: str


Record = Mapping[str, Entry]  # by sha256


def read(root: Path) -> Record:
    """Return what is recorded in a dataset's folder; nothing where there is no record. Raises DamagedRecordError."""
    path = root / NAME
    record: dict[str, Entry] = {}
    for number, line in enumerate(_lines(path), 1):
        entry = _entry(line)
        if entry is None or record.setdefault(entry[0], entry[1]) != entry[1]:
            raise DamagedRecordError(
                f"{printable(path)}: line {number} is damaged: restore the file from a backup; or delete it, and train "
                "anew, since photos then move between training and test"
            )
    return record


def add(root: Path, new: Record) -> None:
    """Write new lines, sorted by sha256, behind what is there. Raises OSError; call it in `locked` only."""
    path = root / NAME
    before = path.read_bytes() if path.exists() else b""
    durable.replace(path, before + b"".join(_line(sha256, new[sha256]) for sha256 in sorted(new)))
    with contextlib.suppress(OSError):  # some network file systems cannot; the file itself is safe by then
        durable.sync_directory(root)


@contextlib.contextmanager
def locked(root: Path) -> Iterator[None]:
    """Keep other runs from writing the record of this folder meanwhile, where the file system has locks.

    Raises FailureError where another one does not let go of it.
    """
    refusal = FailureError(f"{printable(root)}: another program holds a lock on this folder (lslocks says which)")
    with contextlib.ExitStack() as held:
        with contextlib.suppress(OSError):
            held.enter_context(durable.exclusive(root, os.O_RDONLY | os.O_DIRECTORY, refusal, seconds=LOCK_SECONDS))
        yield


def _lines(path: Path) -> Iterator[bytes]:
    """Yield the lines; the last one too where its end is missing, which no line can be."""
    if path.exists() and not path.is_file():  # a pipe would be waited for
        raise DamagedRecordError(
            f"{printable(path)}: cannot be read: not a regular file: it says which photos are tested on"
        )
    try:
        with path.open("rb") as file:
            yield from file
    except FileNotFoundError:
        return
    except OSError as error:
        raise DamagedRecordError(
            f"{printable(path)}: cannot be read: {error.strerror}: it says which photos are tested on"
        ) from None


def _entry(line: bytes) -> tuple[str, Entry] | None:
    try:
        sha256, phash, split = (orjson.loads(line)[key] for key in ("sha256", "phash", "split"))
        whole = line.endswith(b"\n") and _SHA256.fullmatch(sha256) and _PHASH.fullmatch(phash) and split in SPLITS
    except (ValueError, TypeError, KeyError, IndexError):
        return None
    return (sha256, Entry(bytes.fromhex(phash), SPLITS[SPLITS.index(split)])) if whole else None


def _line(sha256: str, entry: Entry) -> bytes:
    return orjson.dumps({"sha256": sha256, "phash": entry.phash.hex(), "split": entry.split}) + b"\n"
