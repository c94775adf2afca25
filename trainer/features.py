"""Feature maps: what the frozen part of a backbone makes of each photo, computed once and kept on disk.

Invariant: a file of maps is whole or not there (written under another name, then renamed), its rows are in the order
of the photos, and it is read through a memory map: however many photos, only their pooled features are in memory.
"""

import math
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from trainer.errors import InputError
from trainer.progress import track

CHUNK = 32  # photos that are computed at a time: one size for all, so that the same photo gives the same features
SPARE_BYTES = 200_000_000  # left free on the disk for what else a run writes

Maps = NDArray[np.float16]


@dataclass(frozen=True)
class Parts:
    """A backbone cut in two models that share its layers: `lower` stays frozen, `upper` (None: nothing) is trained."""

    whole: keras.Model
    lower: keras.Model
    upper: keras.Model | None

    @classmethod
    def of(cls, backbone: keras.Model, cut: str) -> "Parts":
        """Cut behind the layer `cut`; nowhere where that is empty."""
        if not cut:
            return cls(backbone, backbone, None)
        between = backbone.get_layer(cut).output
        return cls(backbone, keras.Model(backbone.input, between), keras.Model(between, backbone.output))

    def pooled(self, maps: Maps) -> Maps:
        """Return the pooled features float16 (N, F) of `lower`'s maps (N, …)."""
        if self.upper is None:
            return maps
        chunks = (maps[i : i + CHUNK].astype(np.float32) for i in range(0, len(maps), CHUNK))
        return np.concatenate([self.upper.predict_on_batch(chunk).astype(np.float16) for chunk in chunks])


def compute(lower: keras.Model, batches: Iterable[NDArray[Any]], count: int, path: Path, label: str) -> Maps:
    """Return the maps float16 (count, …) of `batches` (float32 (n, S, S, 3) each), from `path` where they are there.

    Raises InputError where they would not fit on the disk.
    """
    shape = (count, *lower.output_shape[1:])
    kept = _kept(path)
    if kept is None or kept.shape != shape:
        path.parent.mkdir(parents=True, exist_ok=True)
        _require_space(path.parent, 2 * math.prod(shape))
        store(path, shape, track(_maps(lower, batches), math.ceil(count / CHUNK), label), np.float16)
    maps: Maps = np.load(path, mmap_mode="r")
    return maps


def _kept(path: Path) -> Maps | None:
    """Return the maps that an interrupted run left; None where there are none, or not all of them."""
    try:
        maps: Maps = np.load(path, mmap_mode="r", allow_pickle=False)
    except (FileNotFoundError, ValueError, EOFError):
        return None
    return maps


def _maps(lower: keras.Model, batches: Iterable[NDArray[Any]]) -> Iterator[NDArray[Any]]:
    for batch in batches:
        yield lower.predict_on_batch(batch)


def store(path: Path, shape: Sequence[int], chunks: Iterable[NDArray[Any]], kind: type[np.generic]) -> None:
    """Write an array as a .npy file that is whole or not there, from its rows, a few at a time."""
    partial = path.with_suffix(".part")
    _fill(partial, shape, chunks, np.dtype(kind))
    os.rename(partial, path)


def _fill(path: Path, shape: Sequence[int], chunks: Iterable[NDArray[Any]], dtype: np.dtype[Any]) -> None:
    """Write a .npy file piece by piece: a write to a memory map of a full disk would end the process by a signal."""
    kind = np.lib.format.dtype_to_descr(dtype)
    header = {"descr": kind, "fortran_order": False, "shape": tuple(shape)}
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for chunk in chunks:
            file.write(np.ascontiguousarray(chunk, dtype).tobytes())
        file.flush()
        os.fsync(file.fileno())


def _require_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed + SPARE_BYTES > free:
        raise InputError(
            f"{folder}: the features of these photos take {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free: "
            "make room, or set trainer.runs to another disk"
        )


class Batches(keras.utils.PyDataset):  # type: ignore[misc]  # Keras has no types
    """Batches of (maps float32, targets) of the photos in `rows`.

    With a `seed` the order depends on (seed, epoch) alone, and each photo comes as one of its `copies`, drawn anew in
    each epoch; without one, in the order of `rows` from the first copy. Whoever trains sets `epoch`.
    """

    def __init__(
        self,
        copies: Sequence[NDArray[Any]],
        rows: NDArray[np.int_],
        targets: NDArray[np.float32],
        batch_size: int,
        seed: int | None,
    ) -> None:
        super().__init__()
        self._copies, self._rows, self._targets = copies, rows, targets
        self._batch_size, self._seed = batch_size, seed
        self.epoch = 0
        self._drawn: tuple[int, NDArray[np.int_], NDArray[np.int_]] | None = None

    def __len__(self) -> int:
        """Return the number of batches."""
        return math.ceil(len(self._rows) / self._batch_size)

    def __getitem__(self, index: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return a batch."""
        rows, copy = self._order()
        chosen = slice(index * self._batch_size, (index + 1) * self._batch_size)
        maps = [self._copies[c][row] for c, row in zip(copy[chosen], rows[chosen], strict=True)]
        return np.stack(maps).astype(np.float32), self._targets[rows[chosen]]

    def _order(self) -> tuple[NDArray[np.int_], NDArray[np.int_]]:
        if self._drawn is None or self._drawn[0] != self.epoch:
            rows, copy = self._rows, np.zeros(len(self._rows), np.int_)
            if self._seed is not None:
                random = np.random.default_rng((self._seed, self.epoch))
                rows, copy = random.permutation(rows), random.integers(len(self._copies), size=len(rows))
            self._drawn = self.epoch, rows, copy
        return self._drawn[1], self._drawn[2]
