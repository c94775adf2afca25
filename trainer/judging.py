"""Finds the labels of a dataset that look wrong, by the features of the backbone that the settings name.

Invariant: near duplicates judge each other never, and memory is bounded: of more than MOST photos, a random choice is
judged, the same one for the same seed.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from trainer import model, photos, prepared, suspects
from trainer.dataset import Dataset, Photo
from trainer.images import ImageError
from trainer.plan import Plan
from trainer.progress import line, track
from trainer.settings import Settings
from trainer.tables import Trainer

MOST = 50_000  # photos; their features take 0.3 GB in float32, and half of that is copied once
CHUNK = 32  # photos


def network_size(asked: Trainer) -> int:
    """Return the size in pixels of what the network takes. Raises ArchitectureError."""
    return Plan.of(asked).image_size


def suspected(settings: Settings, data: Dataset, scanned: prepared.Cache) -> list[suspects.Suspect]:
    """Return the photos whose labels look wrong, the surest first; `index` is into `data.photos`.

    Raises ArchitectureError, DownloadError.
    """
    plan = Plan.of(settings.trainer)
    backbone, size = plan.backbone(), plan.image_size
    if backbone is None:  # of an architecture without a pretrained part: the default's judges
        size = model.EFFICIENTNET_LITE0.image_size
        backbone = model.efficientnet_lite0(size)
    rows = chosen(len(data.photos), settings.trainer.seed)
    cache = prepared.Cache(scanned.root, size, scanned.max_pixels, scanned.rules)
    batches = decoded(data, [data.photos[row] for row in rows], cache, settings.tray.max_file_bytes)
    shown = track(batches, -(-len(rows) // CHUNK), "batches of features")
    features = np.concatenate([backbone.predict_on_batch(batch).astype(np.float16) for batch in shown])
    line("judging the labels")
    labels = np.array([data.photos[row].label for row in rows], np.int64)
    found = suspects.find(features, labels, settings.trainer.seed, groups=data.kin(data.photos)[rows])
    return [suspects.Suspect(int(rows[s.index]), s.given, s.likely, s.probability) for s in found]


def chosen(count: int, seed: int) -> NDArray[np.int64]:
    """Return the rows to judge, sorted: all, or MOST of them."""
    if count <= MOST:
        return np.arange(count)
    line(f"labels: {MOST:,} of {count:,} photos are judged, chosen by chance")
    return np.sort(np.random.default_rng(seed).choice(count, MOST, replace=False))


def decoded(
    data: Dataset, chosen_photos: Sequence[Photo], cache: prepared.Cache, max_file_bytes: int
) -> Iterator[NDArray[np.float32]]:
    """Yield batches float32 (n, S, S, 3) from the prepared copies, which are made where they are missing."""
    for start in range(0, len(chosen_photos), CHUNK):
        part = chosen_photos[start : start + CHUNK]
        yield np.stack([_pixels(data, photo, cache, max_file_bytes) for photo in part]).astype(np.float32)


def _pixels(data: Dataset, photo: Photo, cache: prepared.Cache, max_file_bytes: int) -> NDArray[np.uint8]:
    """Return a photo's pixels; a grey square where its file has gone since the scan: nothing speaks for its label."""
    if cache.path(photo.sha256).exists():
        return prepared.Prepared(cache.path(photo.sha256)).pixels
    try:
        return cache.add(photo.sha256, photos.read_bytes(data.root / photo.path, max_file_bytes)).pixels
    except (OSError, ValueError, ImageError):
        return np.full((cache.size, cache.size, 3), 127, np.uint8)
