"""The last photos that the daemon delivered, and which of them another model would put elsewhere.

Invariant: the list is `moodbox learn`'s, in the folder of photos; nothing is learned from these photos. One that is
gone, was changed, or cannot be read is passed over.
"""

import hashlib
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import orjson

from trainer.bundle import Bundle, Decision, decide
from trainer.images import ImageError
from trainer.photos import Rules, in_chunks, read_bytes
from trainer.progress import track

NAME, MOST = ".moodbox-deliveries.jsonl", 500

Decide = Callable[[bytes], Decision]


@dataclass(frozen=True)
class Delivered:
    """A photo where the daemon put it."""

    path: Path
    sha256: str


@dataclass(frozen=True)
class Moved:
    """A photo that champion and challenger put into different folders."""

    path: Path
    champion: Decision
    challenger: Decision


def read(root: Path) -> list[Delivered]:
    """Return the newest deliveries, those that can be understood; none where there is no list."""
    try:
        with (root / NAME).open("rb") as file:
            return [found for line, _ in zip(file, range(MOST), strict=False) if (found := _parsed(line))]
    except OSError:
        return []


def moved(
    champion: Bundle, challenger: Bundle, photos: Sequence[Delivered], rules: Rules, max_pixels: int
) -> tuple[list[Moved], int]:
    """Return the photos that would go elsewhere, in order, and how many were looked at."""
    own = threading.local()

    def one(photo: Delivered) -> Moved | None:
        if not hasattr(own, "both"):
            own.both = [_decider(which, max_pixels) for which in (champion, challenger)]
        data = _unchanged(photo, rules)
        try:
            return Moved(photo.path, *(ask(data) for ask in own.both)) if data else None
        except (ImageError, ValueError):
            return None

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        seen = track(in_chunks(pool, one, photos), len(photos), "delivered photos looked at")
        looked = [found for found in seen if found]
    return [found for found in looked if found.champion.label != found.challenger.label], len(looked)


def _parsed(line: bytes) -> Delivered | None:
    try:
        found = orjson.loads(line)
        path, sha256 = Path(found["path"]), found["sha256"]
    except (ValueError, TypeError, KeyError, IndexError):
        return None
    return Delivered(path, sha256) if path.is_absolute() and isinstance(sha256, str) else None


def _unchanged(photo: Delivered, rules: Rules) -> bytes | None:
    try:
        data = read_bytes(photo.path, rules.max_file_bytes)
    except (OSError, ValueError):
        return None
    return data if hashlib.sha256(data).hexdigest() == photo.sha256 else None


def _decider(which: Bundle, max_pixels: int) -> Decide:
    eye, predict = which.eye(), which.predictor()
    return lambda data: decide(which.manifest, predict(eye(data, max_pixels)).scores.tolist())
