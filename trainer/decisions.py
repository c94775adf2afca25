"""`models/decisions.jsonl`: who is champion and why, one line for each decision.

Invariant: append-only, and a line is on disk before the link `champion` moves, so that the newest line says where the
link belongs; what a kill left between the two is finished by `unfinished`'s caller. A torn last line counts as none and
is cut off before the next one is written.
"""

import os
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import orjson

from trainer import bundle, durable
from trainer.bundle import BundleError
from trainer.progress import printable

NAME = "decisions.jsonl"
PROMOTED, REFUSED, FIT, ROLLBACK = "promoted", "refused", "fit", "rollback"
MOVES = (PROMOTED, FIT, ROLLBACK)  # events that name a new champion
ROUNDS = (PROMOTED, REFUSED, FIT)  # events that learned from a folder of photos

Line = Mapping[str, Any]


def read(models: Path) -> list[Line]:
    """Return the lines, oldest first; none where nothing was decided yet. Raises BundleError where one is damaged."""
    return [_parsed(models, number, line) for number, line in enumerate(_whole(_bytes(models)), 1)]


def append(models: Path, event: str, now: datetime, **fields: Any) -> None:
    """Write a line durably; `champion` in `fields` is who serves by it. Raises OSError where the disk refuses."""
    path = models / NAME
    line = orjson.dumps({"ts": now.isoformat(), "event": event, **fields}) + b"\n"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
    try:
        good = _mended(descriptor)
        _written(descriptor, line, good, path)
    finally:
        os.close(descriptor)
    durable.sync_directory(models)


def unfinished(models: Path, lines: Sequence[Line]) -> int | None:
    """Return the bundle that the newest line makes the champion, where a kill kept it from that; else None."""
    if not lines or lines[-1]["event"] not in MOVES:
        return None
    named, serving = lines[-1].get("champion"), bundle.champion(models)
    was_killed = serving == lines[-1].get("before", serving)  # else a person has moved the link since
    return named if named in bundle.numbers(models) and named != serving and was_killed else None


def pinned(lines: Sequence[Line]) -> bool:
    """Tell whether a person chose the champion by a rollback, and nothing was promoted since."""
    moves = [line["event"] for line in lines if line["event"] in MOVES]
    return moves[-1:] == [ROLLBACK]


def refused(lines: Sequence[Line]) -> set[int]:
    """Return the bundles that the gate refused, and nobody made champion all the same."""
    told = {line.get("challenger") for line in lines if line["event"] == REFUSED}
    return {number for number in told if isinstance(number, int)} - {line.get("champion") for line in lines}


def newest_folder(lines: Sequence[Line]) -> str | None:
    """Return the hash of the photos that the newest round learned from, whoever won; None where there was none."""
    return next((line.get("folder") for line in reversed(lines) if line["event"] in ROUNDS), None)


def _bytes(models: Path) -> bytes:
    try:
        return (models / NAME).read_bytes()
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise BundleError(f"{printable(models / NAME)}: cannot be read: {error.strerror}") from None


def _whole(data: bytes) -> list[bytes]:
    """Return the lines but a torn last one."""
    return data.split(b"\n")[:-1]


def _parsed(models: Path, number: int, line: bytes) -> Line:
    try:
        found = orjson.loads(line)
        if isinstance(found["event"], str):
            return dict(found)
    except (ValueError, TypeError, KeyError, IndexError):
        pass
    raise BundleError(
        f"{printable(models / NAME)}: line {number} is damaged: remove that line, or restore the file from a backup"
    )


def _mended(descriptor: int) -> int:
    """Cut a torn last line off; return the file's length."""
    length = os.fstat(descriptor).st_size
    data = os.pread(descriptor, length, 0)
    good = data.rfind(b"\n") + 1
    if good < length:
        os.ftruncate(descriptor, good)
    return good


def _written(descriptor: int, line: bytes, good: int, path: Path) -> None:
    try:
        done = os.write(descriptor, line)
        if done < len(line):
            os.write(descriptor, line[done:])  # says why, where the disk is full
        os.fsync(descriptor)
    except OSError as error:
        os.ftruncate(descriptor, good)
        raise OSError(error.errno, error.strerror, str(path)) from None
