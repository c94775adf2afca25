"""replay.npz: the features of the photos that a bundle was made from, so that a later training can do without them.

Invariant: it is read as plain arrays, never as pickled objects, and row i of each array is the same photo.
"""

import io
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trainer.bundle import Bundle
from trainer.bundle_check import refused
from trainer.dataset import SPLITS

REPLAY = "replay.npz"
PREFIX = 16  # hex digits of a sha256: 64 bits tell any number of photos apart


@dataclass(frozen=True)
class Replay:
    """features float16 (N, F); labels uint16, splits uint8 (indices into SPLITS), sha256_prefix uint64, all (N,).

    `faces_prefix` uint64 (M,): pictures that taught the network for faces alone, so that they have no features.
    """

    features: NDArray[np.float16]
    labels: NDArray[np.uint16]
    splits: NDArray[np.uint8]
    sha256_prefix: NDArray[np.uint64]
    faces_prefix: NDArray[np.uint64] = field(default_factory=lambda: np.array([], np.uint64))

    def splits_by_prefix(self) -> dict[int, int]:
        """Return the split, an index into SPLITS, by the prefix of the hash."""
        return dict(zip(self.sha256_prefix.tolist(), self.splits.tolist(), strict=True))

    def write(self, path: Path) -> None:
        """Write the arrays to `path`, uncompressed: features hardly compress."""
        np.savez(path, **vars(self))


def prefixes(hashes: Sequence[str]) -> NDArray[np.uint64]:
    """Return the first 64 bits of each hex sha256."""
    return np.array([int(sha256[:PREFIX], 16) for sha256 in hashes], np.uint64)


def read(bundle: Bundle) -> Replay | None:
    """Return a bundle's replay, None where it has none. Raises BundleError where the file was changed."""
    if REPLAY not in bundle.manifest.files:
        return None
    data = io.BytesIO(bundle.read(REPLAY))
    try:
        with np.load(data, allow_pickle=False) as stored:
            return Replay(**stored)
    except (ValueError, TypeError, EOFError, zipfile.BadZipFile):
        raise refused(bundle.path, f"{REPLAY} does not hold features") from None


def learned(bundle: Bundle, hashes: Sequence[str]) -> list[bool] | None:
    """Tell for each photo whether this bundle was trained or validated on it; None where it keeps no record."""
    replay = read(bundle)
    if replay is None:
        return None
    scenes = replay.sha256_prefix[replay.splits != SPLITS.index("test")]
    known = np.concatenate([scenes, replay.faces_prefix])
    return [bool(found) for found in np.isin(prefixes(hashes), known)]
