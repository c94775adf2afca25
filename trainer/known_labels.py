"""`models/labels.json`: the labels of `training/` as they were at the end of the last round or `fit`.

Invariant: a photo judges only with the label that it had before the round began; one that is new, or was moved since,
has no voice in the round that brought it, and none later where that round spoke against its labels. The file is
replaced after the round's decision is durable: a kill in between costs photos their voice for a round, and gives it to
none.
"""

from collections.abc import Container, Mapping
from pathlib import Path

import orjson

from trainer import durable
from trainer.bundle import BundleError
from trainer.dataset import Dataset, Photo
from trainer.progress import printable

NAME = "labels.json"
DOUBTED = "\t?"  # behind a class name, which holds no tab

Known = Mapping[str, str]  # class name by sha256


def read(models: Path) -> Known | None:
    """Return the labels; None where no round has ended yet. Raises BundleError where the file is damaged."""
    path = models / NAME
    try:
        found = orjson.loads(path.read_bytes())
        if all(isinstance(name, str) for name in found.values()):
            return dict(found)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise BundleError(f"{printable(path)}: cannot be read: {error.strerror}") from None
    except (ValueError, AttributeError):
        pass
    raise BundleError(f"{printable(path)}: damaged: delete it, and your photos judge from the round after next on")


def write(models: Path, data: Dataset, doubted: Container[str] = ()) -> None:
    """Replace the labels by those of these photos; those with hashes in `doubted` judge nothing. Raises OSError."""
    labels = {
        photo.sha256: data.class_names[photo.label] + (DOUBTED if photo.sha256 in doubted else "")
        for photo in data.photos
    }
    durable.replace(models / NAME, orjson.dumps(labels, option=orjson.OPT_INDENT_2))
    durable.sync_directory(models)


def unchanged(photo: Photo, data: Dataset, known: Known) -> bool:
    """Tell whether a photo had its label before this round."""
    return known.get(photo.sha256, "").removesuffix(DOUBTED) == data.class_names[photo.label]


def may_judge(photo: Photo, data: Dataset, known: Known) -> bool:
    """Tell whether a photo had its label before this round, and nobody doubts it."""
    return known.get(photo.sha256) == data.class_names[photo.label]


def doubted(models: Path) -> set[str]:
    """Return the hashes of the photos whose labels are doubted. Raises BundleError where the file is damaged."""
    return {sha256 for sha256, label in (read(models) or {}).items() if label.endswith(DOUBTED)}
