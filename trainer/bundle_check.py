"""One bundle's folder, opened and checked: versions, hashes, then the golden images.

Invariant: a Bundle holds the very bytes that were checked, so nothing that happens on disk later can change what it
predicts. No code of a bundle is ever run: JSON, PNG and a LiteRT flat buffer are all that is read here.
"""

import hashlib
import json
import os
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from pydantic import Field, ValidationError

from trainer.manifest import FACES_VERSION, READABLE, BundleError, Manifest, Record

if TYPE_CHECKING:
    from trainer import litert
    from trainer.views import Eye, Predictor

MANIFEST, MODEL, EXPECTED, GOLDEN = "manifest.json", "model.tflite", "golden/expected.json", "golden/"
DETECTOR, FACE_MODEL = "detector.tflite", "face.tflite"  # where the bundle looks at faces, too
T = TypeVar("T")
ADVICE = "`moodbox-train rollback` returns to an earlier bundle, `moodbox-train fit` makes a new one"


class Expected(Record):
    """golden/expected.json: the scores of each golden image, and how far a machine may be from them."""

    tolerance: float = Field(gt=0.0, le=0.05)
    scores: dict[str, tuple[float, ...]] = Field(min_length=1)


@dataclass(frozen=True)
class Bundle:
    """A bundle that was checked; `model` are the bytes of model.tflite that were, as are those of the other two.

    `detector` and `face_model` are empty where only the scene is looked at.
    """

    path: Path
    manifest: Manifest
    model: bytes
    detector: bytes = b""
    face_model: bytes = b""

    def eye(self) -> "Eye":
        """Return what decodes pictures as this bundle takes them."""
        from trainer.views import Eye  # noqa: PLC0415  keeps `moodbox status` quick

        return Eye(self.manifest.input_size, self.manifest.faces)

    def predictor(self, cores: int = 1) -> "Predictor":
        """Return new interpreters that use so many cores; call it once per thread that predicts.

        Scene and faces share the cores: a network on half of them takes less than twice as long.
        """
        from trainer import faces, views  # noqa: PLC0415

        rules = self.manifest.faces
        of_faces = 0 if rules is None else cores // 2
        scene = self._network(MODEL, self.model, self.manifest.input_size, 3, cores - of_faces)
        if rules is None:
            return views.Predictor(scene)
        finder = _named(DETECTOR, lambda: faces.Finder(self.detector, rules, max(1, of_faces)))
        network = self._network(FACE_MODEL, self.face_model, rules.size, 1, max(1, of_faces))
        return views.Predictor(scene, views.FaceReader(finder, network), ahead=of_faces > 0)

    def _network(self, name: str, model: bytes, size: int, channels: int, cores: int) -> "litert.Predictor":
        from trainer import litert  # noqa: PLC0415

        return _named(name, lambda: litert.Predictor(model, size, len(self.manifest.class_names), channels, cores))

    def read(self, name: str) -> bytes:
        """Return a file of the bundle; raises BundleError where it is not the file that was published."""
        return _read_checked(self.path, self.manifest, name)


def _named(name: str, make: Callable[[], T]) -> T:
    """Make something of a network; where it is none, the error names the file."""
    from trainer.litert import ModelFormatError  # noqa: PLC0415

    try:
        return make()
    except ModelFormatError as error:
        raise ModelFormatError(f"{name}: {error}") from None


def open_bundle(path: Path, number: int) -> Bundle:
    """Open the bundle in `path` that calls itself `number`; BundleError where anything about it is wrong."""
    from trainer.images import PREPROCESSING_VERSION  # noqa: PLC0415  loads Pillow and numpy

    manifest = open_manifest(path, number)
    if manifest.preprocessing_version != PREPROCESSING_VERSION:
        made_for = f"it was made for preprocessing version {manifest.preprocessing_version}"
        raise refused(path, f"{made_for}, this moodbox has {PREPROCESSING_VERSION}")
    if manifest.faces and manifest.faces.version != FACES_VERSION:
        made_for = f"it was made for faces version {manifest.faces.version}"
        raise refused(path, f"{made_for}, this moodbox has {FACES_VERSION}")
    needed = (MODEL, DETECTOR, FACE_MODEL) if manifest.faces else (MODEL,)
    bundle = Bundle(path, manifest, *(_read_checked(path, manifest, name) for name in needed))
    _replay_golden(bundle)
    return bundle


def open_manifest(path: Path, number: int) -> Manifest:
    """Read and check manifest.json alone. Raises BundleError."""
    try:
        fields = json.loads(_read(path, MANIFEST))
        version = fields["format_version"]
        if version not in READABLE:
            known = " and ".join(map(str, READABLE))
            raise refused(path, f"it has bundle format {version}, this moodbox reads {known}")
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
        with open(os.open(path / name, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):  # a pipe would be waited for
                raise refused(path, f"{name} is no regular file")
            return file.read()
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
        eye, predict = bundle.eye(), bundle.predictor()
        for name, scores in expected.scores.items():
            found = [float(score) for score in predict(eye(bundle.read(GOLDEN + name))).scores]
            if not _agree(found, scores, expected.tolerance):
                shown = ", ".join(f"{score:.4f}" for score in found)
                raise refused(bundle.path, f"{GOLDEN}{name} scores {shown} on this machine, not {scores}")
    except ValidationError:
        raise refused(bundle.path, f"{EXPECTED} is not a list of scores") from None
    except (images.ImageError, litert.ModelFormatError) as error:
        raise refused(bundle.path, f"it does not work here: {error}") from None


def _agree(found: Sequence[float], expected: Sequence[float], tolerance: float) -> bool:
    """Tell whether the scores agree and are probabilities; NaN agrees with nothing."""
    close = all(abs(f - e) <= tolerance for f, e in zip(found, expected, strict=False))
    return len(found) == len(expected) and close and abs(sum(found) - 1.0) <= tolerance
