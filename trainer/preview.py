"""Draws one batch of the dataset as the trainer streams it, before and after augmentation.

Invariant: the photos go the way that training takes: decoded by `images.decode`, prepared, and streamed by
`image_dataset_from_directory`; nothing is trained, and nothing but the picture and the prepared copies is kept.
"""

import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from trainer import pictures, prepared, quiet, viewing
from trainer.dataset import class_folders, open_dataset
from trainer.output import show_unused, write
from trainer.photos import Rules
from trainer.progress import printable
from trainer.settings import Settings


def preview(settings: Settings) -> None:
    """Draw a batch to `runs/preview/<UTC time>.png`, and print what a batch is. Raises DatasetError."""
    class_folders(settings.dataset.root, Rules(settings.tray.ignore, settings.tray.max_file_bytes))
    with quiet.importing():
        from trainer import augment  # noqa: PLC0415  TensorFlow: seconds
        from trainer.plan import Plan  # noqa: PLC0415

    plan = Plan.of(viewing.settled(settings).trainer)
    size = plan.image_size
    cache = prepared.shared(settings, size, plan.faces)
    data = open_dataset(settings, cache.add, record=False)
    cache.root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache.root.parent, prefix=".preview-") as view:
        listed = (("all", data.class_names[p.label], p.sha256) for p in data.photos)
        prepared.link(cache, listed, data.class_names, Path(view))
        photos, labels = one_batch(Path(view) / "all", data.class_names, size, settings)
    changed = augment.augment(photos[: pictures.MOST], augment.layers(settings.trainer.seed)).numpy()
    show_unused(data.unused)
    describe(photos, labels, data.class_names)
    write(f"picture: {draw(settings.trainer.runs / 'preview', photos, labels, data.class_names, changed)}")


def one_batch(
    folder: Path, class_names: Sequence[str], size: int, settings: Settings
) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Return the first batch of the shuffled stream: float32 (N, size, size, 3) in [0, 255], class indices (N,)."""
    from trainer import input_pipeline  # noqa: PLC0415  TensorFlow

    stream = input_pipeline.stream(folder, class_names, size, settings.trainer.batch_size, settings.trainer.seed)
    batch: tuple[NDArray[np.float32], NDArray[np.int32]] = next(stream.as_numpy_iterator())
    return batch


def describe(photos: NDArray[np.float32], labels: NDArray[np.int32], class_names: Sequence[str]) -> None:
    """Print a batch's shape, dtype, range and labels."""
    write(f"photos: shape {photos.shape}, {photos.dtype}, from {photos.min():g} to {photos.max():g}")
    meaning = ", ".join(f"{index} = {printable(name)}" for index, name in enumerate(class_names))
    write(f"labels: shape {labels.shape}, {labels.dtype}: {' '.join(map(str, labels))} ({meaning})")


def draw(
    folder: Path, photos: NDArray[np.float32], labels: NDArray[Any], class_names: Sequence[str], changed: NDArray[Any]
) -> Path:
    """Write the picture and return where it is."""
    path = folder / f"{datetime.now(UTC):%Y%m%dT%H%M%S%fZ}.png"
    folder.mkdir(parents=True, exist_ok=True)
    captions = [f"{printable(class_names[label])} ({label})" for label in labels]
    Image.fromarray(pictures.grid(photos, captions, changed)).save(path)
    return path
