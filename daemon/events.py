"""Events: the schema of a journal line, how it is written and read back.

Invariant: a line is one JSON object in UTF-8 that ends in a line break and holds no other; names of files survive
exactly, whatever bytes they are made of.
"""

import base64
import os
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

import orjson
from pydantic import BaseModel, ConfigDict

SCHEMA = 1
DECISIONS = ("sorted", "review", "rejected")
Event = Literal[
    "sorted", "review", "rejected", "redirected", "restored", "corrected", "moved", "not_learned", "model_loaded",
    "model_refused", "started", "stopped", "totals",
]  # fmt: skip


@dataclass(frozen=True)
class Faces:
    """The faces that were looked at, `boxes`: left, top, width, height in pixels of the upright picture.

    `whole`: the picture is so small that all of it was taken for one face.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    count: int
    boxes: tuple[tuple[int, int, int, int], ...] = ()
    whole: bool = False


class Line(BaseModel):
    """One event. Paths are relative to the tray, `file` to the inbox; times are in milliseconds, sizes in bytes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_: int = SCHEMA
    ts: str = ""
    event: Event
    id: str | None = None
    batch: str | None = None
    file: str | None = None
    source: str | None = None
    destination: str | None = None
    label: str | None = None
    score: float | None = None
    scores: dict[str, float] | None = None
    threshold: float | None = None
    views: dict[str, dict[str, float]] | None = None
    audit: bool | None = None
    predicted: str | None = None
    was: str | None = None
    faces: Faces | None = None
    model: int | None = None
    bytes: int | None = None
    width: int | None = None
    height: int | None = None
    format: str | None = None
    sha256: str | None = None
    queued_ms: float | None = None
    decode_ms: float | None = None
    infer_ms: float | None = None
    attempt: int | None = None
    error_code: str | None = None
    error: str | None = None
    totals: dict[str, Any] | None = None


_NAMES = ("file", "source", "destination")


def encode(line: Line) -> bytes:
    """Return the line as JSON with its line break. Names that are not UTF-8 are escaped, and exact in `…_b64`."""
    return orjson.dumps(as_fields(line), option=orjson.OPT_APPEND_NEWLINE)


def as_fields(line: Line) -> dict[str, Any]:
    """Return what `encode` writes. A line without a time (a row of a backfill) says nothing of it."""
    fields = {"schema": line.schema_, **{k: v for k, v in line if v is not None and k != "schema_"}}
    if not line.ts:
        del fields["ts"]
    for name in _NAMES:
        put_name(fields, name)
    if line.error is not None:
        fields["error"] = os.fsencode(line.error).decode(errors="backslashreplace")
    return fields


def put_name(fields: dict[str, Any], name: str) -> None:
    """Where the name of a file in `fields` is not UTF-8, escape it, and keep it exactly in `…_b64`."""
    exact = os.fsencode(fields.get(name, ""))
    try:
        exact.decode()
    except UnicodeDecodeError:
        fields[name] = exact.decode(errors="backslashreplace")
        fields[f"{name}_b64"] = base64.b64encode(exact).decode()


def take_name(fields: dict[str, Any], name: str) -> None:
    """Undo `put_name`. Raises ValueError or TypeError for what it never wrote."""
    if (exact := fields.pop(f"{name}_b64", None)) is not None:
        fields[name] = os.fsdecode(base64.b64decode(exact, validate=True))


def parse(raw: bytes) -> Line | None:
    """Return the line that `encode` wrote, with exact names; None for what is no such line (torn, damaged, newer)."""
    try:
        fields = orjson.loads(raw)
        fields["schema_"] = fields.pop("schema")
        for name in _NAMES:
            take_name(fields, name)
        return Line(**fields) if fields["schema_"] == SCHEMA else None
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


def utc_now() -> str:
    """Return the wall clock's time as the journal writes it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
