"""One bundle's folder, opened and checked: versions, hashes, then the golden images.

Invariant: a Bundle holds the very bytes that were checked, so nothing that happens on disk later can change what it
predicts. No code of a bundle is ever run: JSON, PNG and a LiteRT flat buffer are all that is read here.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field, ValidationError

from trainer.manifest import FORMAT_VERSION, BundleError, Manifest, Record

if TYPE_CHECKING:
    from trainer.litert import Predictor

MANIFEST, MODEL, EXPECTED, GOLDEN = "manifest.json", "model.tflite", "golden/expected.json", "golden/"
ADVICE = "`moodbox-train rollback` returns to an earlier bundle, `moodbox-train fit` makes a new one"


class Expected(Record):
    """golden/expected.json: the scores of each golden image, and how far a machine may be from them."""

    tolerance: float = Field(gt=0.0, le=0.05)
    scores: dict[str, tuple[float, ...]] = Field(min_length=1)


@dataclass(frozen=True)
class Bundle:
    """A bundle that was checked; `model` are the bytes of model.tflite that were."""

    path: Path
    manifest: Manifest
    model: bytes

    def predictor(self) -> "Predictor":
        """Return a new interpreter with one thread, for one thread; call it once per thread that predicts."""
        from trainer.litert import Predictor  # noqa: PLC0415  keeps `moodbox status` quick

        return Predictor(self.model, self.manifest.input_size, len(self.manifest.class_names))

    def read(self, name: str) -> bytes:
        """Return a file of the bundle; raises BundleError where it is not the file that was published."""
        return _read_checked(self.path, self.manifest, name)


def open_bundle(path: Path, number: int) -> Bundle:
    """Open the bundle in `path` that calls itself `number`; BundleError where anything about it is wrong."""
    from trainer.images import PREPROCESSING_VERSION  # noqa: PLC0415  loads Pillow and numpy

    manifest = open_manifest(path, number)
    if manifest.preprocessing_version != PREPROCESSING_VERSION:
        made_for = f"it was made for preprocessing version {manifest.preprocessing_version}"
        raise refused(path, f"{made_for}, this moodbox has {PREPROCESSING_VERSION}")
    bundle = Bundle(path, manifest, _read_checked(path, manifest, MODEL))
    _replay_golden(bundle)
    return bundle


def open_manifest(path: Path, number: int) -> Manifest:
    """Read and check manifest.json alone. Raises BundleError."""
    try:
        fields = json.loads(_read(path, MANIFEST))
        version = fields["format_version"]
        if version != FORMAT_VERSION:
            raise refused(path, f"it has bundle format {version}, this moodbox reads {FORMAT_VERSION}")
        manifest = Manifest.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        raise refused(path, f"{MANIFEST}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    except (ValueError, TypeError, KeyError):
        raise refused(path, f"{MANIFEST} is damaged or cut short") from None
    if manifest.number != number:
        raise refused(path, f"{MANIFEST} says that it is bundle {manifest.number}")
    return manifest


def refused(path: Path, what: str) -> BundleError:
    """Return the one line that names the bundle, what is wrong with it and what to do."""
    return BundleError(f"bundle {path}: {' '.join(what.split())}; {ADVICE}")


def _read(path: Path, name: str) -> bytes:
    try:
        return (path / name).read_bytes()
    except FileNotFoundError:
        raise refused(path, f"{name} is missing" if path.is_dir() else "there is no such bundle") from None
    except OSError as error:
        raise refused(path, f"{name} cannot be read: {error.strerror}") from None


def _read_checked(path: Path, manifest: Manifest, name: str) -> bytes:
    expected = manifest.files.get(name)
    if expected is None:
        raise refused(path, f"{MANIFEST} names no {name}")
    data = _read(path, name)
    if hashlib.sha256(data).hexdigest() != expected:
        raise refused(path, f"{name} is not the file that was published: its sha256 differs")
    return data


def _replay_golden(bundle: Bundle) -> None:
    """Predict the golden images through the product's own decoder and refuse the bundle where the scores disagree."""
    from trainer import images, litert  # noqa: PLC0415  loads Pillow, numpy and LiteRT

    try:
        expected = Expected.model_validate_json(bundle.read(EXPECTED))
        predict = bundle.predictor()
        for name, scores in expected.scores.items():
            picture = images.decode(bundle.read(GOLDEN + name), size=bundle.manifest.input_size)
            found = [float(score) for score in predict(picture.pixels)]
            if not _agree(found, scores, expected.tolerance):
                shown = ", ".join(f"{score:.4f}" for score in found)
                raise refused(bundle.path, f"{GOLDEN}{name} scores {shown} on this machine, not {scores}")
    except ValidationError:
        raise refused(bundle.path, f"{EXPECTED} is not a list of scores") from None
    except (images.ImageError, litert.ModelFormatError) as error:
        raise refused(bundle.path, f"{MODEL} or its golden images do not work here: {error}") from None


def _agree(found: Sequence[float], expected: Sequence[float], tolerance: float) -> bool:
    """Tell whether the scores agree and are probabilities; NaN agrees with nothing."""
    close = all(abs(f - e) <= tolerance for f, e in zip(found, expected, strict=False))
    return len(found) == len(expected) and close and abs(sum(found) - 1.0) <= tolerance
