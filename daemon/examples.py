"""Examples: the dataset's folder `training/<class>/`, as far as `moodbox learn` fills it.

Invariant: a photo is in it at most once under its hash, in the class that a person chose last; it is whole or not
there, and what other names there hold is never touched.
"""

import hashlib
import os
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from trainer import durable

PARTIAL = re.compile(r"\.[0-9a-f]{64}(\.[a-z0-9]{1,5})?\.[0-9a-f]{32}\.tmp")
NAME = re.compile(r"([0-9a-f]{64})(\.[a-z0-9]{1,5})?")
EXTENSION = re.compile(r"\.[a-z0-9]{1,5}")


class Examples:
    """The photos in `root` that are named by their hash."""

    def __init__(self, root: Path, classes: Sequence[str]) -> None:
        """Look at what is there. Raises OSError."""
        self._root, self._changed = root, set[Path]()
        self._known = defaultdict[str, set[Path]](set)
        for name in classes:
            for path in _listed(root / name):
                if match := NAME.fullmatch(path.name):
                    self._known[match[1]].add(path)
                elif PARTIAL.fullmatch(path.name):  # what a kill left
                    path.unlink(missing_ok=True)

    def teach(self, label: str, sha256: str, data: bytes, name: str) -> None:
        """Keep a photo as an example of `label`, and of nothing else; `name` tells its extension. Raises OSError."""
        folder = self._root / label
        known = self._known[sha256] = {path for path in self._known[sha256] if _hash_of(path) == sha256}
        if not any(path.parent == folder for path in known):
            folder.mkdir(parents=True, exist_ok=True)
            extension = os.path.splitext(name)[1].lower()
            path = folder / (sha256 + (extension if EXTENSION.fullmatch(extension) else ""))
            durable.replace(path, data)
            self._changed.add(folder)
            known.add(path)
        for path in [path for path in known if path.parent != folder]:
            path.unlink(missing_ok=True)
            known.remove(path)
            self._changed.add(path.parent)

    def make_durable(self) -> None:
        """Make the names durable, too. Raises OSError."""
        while self._changed:
            durable.sync_directory(self._changed.pop())
        if self._root.is_dir():
            durable.sync_directory(self._root)


def _hash_of(path: Path) -> str:
    """Return a file's hash: a name that looks like one proves nothing."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""


def _listed(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except FileNotFoundError:
        return []
