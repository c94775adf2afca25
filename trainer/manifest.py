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

FORMAT_VERSION = 1
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


class Manifest(Record):
    """Everything that a bundle says about itself; `class_names` is in index order."""

    format_version: int = FORMAT_VERSION
    number: int = Field(ge=1)
    class_names: Annotated[tuple[str, ...], AfterValidator(check_class_names)] = Field(min_length=2)
    input_size: int = Field(ge=1)
    preprocessing_version: int
    threshold: float | None = Field(gt=0.0, lt=1.0)
    architecture: str
    metrics: dict[str, Any]
    dataset: DatasetSummary
    seed: int
    versions: dict[str, str]
    parent: int | None = None
    created: Annotated[str, AfterValidator(_utc)]
    files: dict[Annotated[str, AfterValidator(_bundle_file)], str]

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
