"""The files below a class folder: which there are, and their bytes.

Invariant: links are never followed, and a file is read only where it is a regular one of at most the allowed size: a
pipe or a device in the folder cannot hang a training run.
"""

import fnmatch
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

CHUNK = 256
OWN = "moodbox-"  # behind a dot or, while they are written, two: what the product keeps in the folder of photos
DEEPEST = 100  # folders in one another: nobody sorts photos like that, and Python has its own limit

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Rules:
    """Which files to skip without a word, and how many bytes a photo may have."""

    ignore: tuple[str, ...]
    max_file_bytes: int

    def skips(self, name: str) -> bool:
        """Tell whether a file or folder of this name is ignored; the product's own files always are."""
        own = name.startswith(".") and name.lstrip(".").startswith(OWN)
        return own or any(fnmatch.fnmatchcase(name, pattern) for pattern in self.ignore)


def walk(root: Path, folder: str, rules: Rules, depth: int = 0) -> Iterator[str]:
    """Yield, sorted, the paths of all entries that are no folders, and of folders that cannot be read, or too deep."""
    if depth > DEEPEST:
        yield folder
        return
    try:
        entries = sorted(os.scandir(root / folder), key=lambda e: e.name)
    except OSError:
        yield folder
        return
    for entry in entries:
        if rules.skips(entry.name):
            continue
        if entry.is_dir(follow_symlinks=False):
            yield from walk(root, f"{folder}/{entry.name}", rules, depth + 1)
        else:
            yield f"{folder}/{entry.name}"


def read_bytes(path: Path, most: int) -> bytes:
    """Return a file's bytes; ValueError, with a reason, where it is not to be read, OSError where it cannot be."""
    if path.is_symlink():
        raise ValueError("a link is not followed")
    if not path.is_file():
        raise ValueError("a folder that cannot be read, or lies too deep" if path.is_dir() else "not a regular file")
    with path.open("rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise ValueError(f"larger than {most:,} bytes (tray.max_file_bytes)")
    return data


def in_chunks(pool: ThreadPoolExecutor, work: Callable[[T], R], items: Sequence[T]) -> Iterator[R]:
    """Map in order, with few items in flight: `pool.map` alone would queue a million of them."""
    rest = iter(items)
    while chunk := list(itertools.islice(rest, CHUNK)):
        yield from pool.map(work, chunk)
