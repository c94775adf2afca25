"""The manifest of a bundle: what it says about a model, and the one rule that turns scores into a decision.

Invariant: a Manifest that exists is sound: its class names can be folders, its threshold fits their number, and its
file names stay inside the bundle. Importing this module is cheap (no numpy, no TensorFlow).
"""

import math
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

FORMAT_VERSION = 2  # 1 knew no faces
READABLE = (1, 2)
FACES_VERSION = 1  # raised whenever what is cut out of a picture changes
RESERVED = ("inbox", "review", "rejected", "undone")
CLASS_NAME_BYTES = 100
THRESHOLD = 0.5


class BundleError(Exception):
    """A bundle that cannot be used: one line that says which, what is wrong and what to do."""


def check_class_name(name: str) -> str:
    """Return `name` where it can be a class folder of a tray; raise ValueError, which says why, where it cannot."""
    quoted = repr(name)
    if not name or "/" in name or name.startswith("."):
        raise ValueError(f"class name {quoted}: it must be a plain folder name without a leading dot")
    if any(unicodedata.category(c) in {"Cc", "Cs"} for c in name):
        raise ValueError(f"class name {quoted}: it must be valid UTF-8 without control characters")
    if len(name.encode()) > CLASS_NAME_BYTES:
        raise ValueError(f"class name {quoted}: it is longer than {CLASS_NAME_BYTES} bytes")
    if name.casefold() in RESERVED:
        raise ValueError(f"class name {quoted}: the tray needs that name itself ({', '.join(RESERVED)})")
    return name


def check_class_names(names: Sequence[str]) -> tuple[str, ...]:
    """Check each name, and that no two differ only in case (or Unicode form): some file systems cannot hold both."""
    seen: dict[str, str] = {}
    for name in names:
        folded = unicodedata.normalize("NFC", check_class_name(name)).casefold()
        if folded in seen:
            raise ValueError(f"class names {seen[folded]!r} and {name!r} differ only in case or form: rename one")
        seen[folded] = name
    return tuple(names)


def _bundle_file(name: str) -> str:
    if not re.fullmatch(r"(golden/)?[A-Za-z0-9_][A-Za-z0-9_.-]*", name):
        raise ValueError(f"file name {name!r} does not belong in a bundle")
    return name


def _utc(text: str) -> str:
    if datetime.fromisoformat(text).utcoffset() != timedelta(0):
        raise ValueError(f"{text!r} is not a time in UTC")
    return text


class Record(BaseModel):
    """A record of the manifest: frozen, unknown keys are errors, NaN is no number."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class DatasetSummary(Record):
    """The photos that a model was made from: their hash, and how many of each class are in each split."""

    hash: str
    counts: dict[str, dict[str, int]]


class FaceRules(Record):
    """How faces are found, cut out and weighed: what a bundle with this view was made with.

    Where the scene is `sure` of a class, nobody looks for faces. They are looked for in the picture scaled down to
    `detail` pixels, and are what the detector is `least_score` sure of; the `most` largest are cut out as squares of
    `margin` times the box, moved up by `raised` of its height, and scaled to `size` pixels. A picture of at most
    `whole_below` pixels is a face as a whole. The log-odds of the faces, their mean, count `weight` times as much as
    those of the scene.
    """

    version: int = FACES_VERSION
    detail: int = Field(640, ge=64, le=1280)
    least_score: float = Field(0.6, gt=0.0, lt=1.0)
    most: int = Field(4, ge=1, le=64)
    margin: float = Field(1.4, gt=0.0, le=4.0)
    raised: float = Field(0.1, ge=-1.0, le=1.0)
    size: int = Field(48, ge=8, le=512)
    whole_below: int = Field(64, ge=0)
    weight: float = Field(1.0, gt=0.0)
    sure: float = Field(0.9, gt=0.5)


class Manifest(Record):
    """Everything that a bundle says about itself; `class_names` is in index order."""

    format_version: int = FORMAT_VERSION
    number: int = Field(ge=1)
    class_names: Annotated[tuple[str, ...], AfterValidator(check_class_names)] = Field(min_length=2)
    input_size: int = Field(ge=1)
    preprocessing_version: int
    threshold: float | None = Field(gt=0.0, lt=1.0)
    architecture: str
    faces: FaceRules | None = None
    metrics: dict[str, Any]
    dataset: DatasetSummary
    seed: int
    versions: dict[str, str]
    parent: int | None = None
    created: Annotated[str, AfterValidator(_utc)]
    files: dict[Annotated[str, AfterValidator(_bundle_file)], str]

    @property
    def views(self) -> tuple[str, ...]:
        """What the model looks at: the scene, or the faces in it, too."""
        return ("scene",) if self.faces is None else ("scene", "faces")

    @model_validator(mode="after")
    def _threshold_fits(self) -> Self:
        if (len(self.class_names) == 2) != (self.threshold is not None):  # noqa: PLR2004
            raise ValueError("threshold: two classes need one, more than two have none")
        return self


@dataclass(frozen=True)
class Decision:
    """The class that was decided for, and its probability."""

    label: str
    score: float


def decide(manifest: Manifest, scores: Sequence[float]) -> Decision:
    """Decide from probabilities in the order of `class_names`; the only decision rule in the product.

    Two classes: class 1 where its probability reaches the threshold. More: the most probable, the first of equals.
    Raises ValueError where a score is no finite number or their count is not the classes'.
    """
    values = [float(score) for score in scores]
    if len(values) != len(manifest.class_names) or not all(map(math.isfinite, values)):
        raise ValueError(f"scores {values} are not {len(manifest.class_names)} finite numbers")
    most_probable = values.index(max(values))
    index = most_probable if manifest.threshold is None else int(values[1] >= manifest.threshold)
    return Decision(manifest.class_names[index], values[index])
