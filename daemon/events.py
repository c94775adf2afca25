"""Events: the schema of a journal line, how it is written and read back, and the running totals of many lines.

Invariant: a line is one JSON object in UTF-8 that ends in a line break and holds no other; names of files survive
exactly, whatever bytes they are made of.
"""

import base64
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal, Self

import orjson
from pydantic import BaseModel, ConfigDict

SCHEMA = 1
DECISIONS = ("sorted", "review", "rejected")
Event = Literal[
    "sorted", "review", "rejected", "redirected", "restored", "corrected", "started", "stopped", "totals",
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
    fields = {"schema": line.schema_, **{k: v for k, v in line if v is not None and k != "schema_"}}
    for name in _NAMES:
        exact = os.fsencode(fields.get(name, ""))
        try:
            exact.decode()
        except UnicodeDecodeError:
            fields[name] = exact.decode(errors="backslashreplace")
            fields[f"{name}_b64"] = base64.b64encode(exact).decode()
    if line.error is not None:
        fields["error"] = os.fsencode(line.error).decode(errors="backslashreplace")
    return orjson.dumps(fields, option=orjson.OPT_APPEND_NEWLINE)


def parse(raw: bytes) -> Line | None:
    """Return the line that `encode` wrote, with exact names; None for what is no such line (torn, damaged, newer)."""
    try:
        fields = orjson.loads(raw)
        fields["schema_"] = fields.pop("schema")
        for name in _NAMES:
            if (exact := fields.pop(f"{name}_b64", None)) is not None:
                fields[name] = os.fsdecode(base64.b64decode(exact, validate=True))
        return Line(**fields) if fields["schema_"] == SCHEMA else None
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


def utc_now() -> str:
    """Return the wall clock's time as the journal writes it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


@dataclass(frozen=True)
class Totals:
    """Counts of everything that one owner ever journalled, and what went wrong last."""

    sorted: Counter[str] = field(default_factory=Counter)
    rejected: Counter[str] = field(default_factory=Counter)
    events: Counter[str] = field(default_factory=Counter)
    last: str | None = None
    last_error: dict[str, str] | None = None
    model: int | None = None  # the bundle that was started last
    rescued: int = 0  # files that no event told of: the rescan found them
    blocked: dict[str, str] = field(default_factory=dict)  # what waits now because the daemon may not have it: a few

    def plus(self, lines: Iterable[Line]) -> "Totals":
        """Return the totals with these lines counted in."""
        by_label, rejected, events = Counter(self.sorted), Counter(self.rejected), Counter(self.events)
        last, last_error, model = self.last, self.last_error, self.model
        for line in lines:
            events[line.event] += 1
            if line.event == "sorted":
                by_label[line.label or ""] += 1
            elif line.event == "rejected":
                rejected[line.error_code or ""] += 1
            if line.event in DECISIONS:
                last = line.ts
            elif line.event == "started":
                model = line.model
            if line.error:
                last_error = {"ts": line.ts, "file": line.file or "", "error": line.error}
        return Totals(by_label, rejected, events, last, last_error, model, self.rescued, self.blocked)

    def as_dict(self) -> dict[str, Any]:
        """Return what a `totals` line carries."""
        counts = {"sorted": dict(self.sorted), "rejected": dict(self.rejected), "events": dict(self.events)}
        return {
            **counts,
            "last": self.last,
            "last_error": self.last_error and {k: _utf8(v) for k, v in self.last_error.items()},
            "model": self.model,
            "rescued": self.rescued,
            "blocked": {_utf8(file): reason for file, reason in self.blocked.items()},
        }

    @classmethod
    def from_dict(cls, totals: dict[str, Any]) -> Self:
        """Return what `as_dict` was given."""
        by_label, rejected, events = (Counter[str](totals.get(name, {})) for name in ("sorted", "rejected", "events"))
        last, last_error, model = totals.get("last"), totals.get("last_error"), totals.get("model")
        return cls(
            by_label, rejected, events, last, last_error, model, totals.get("rescued", 0), totals.get("blocked", {})
        )

    def __add__(self, other: "Totals") -> "Totals":
        newest = max(self, other, key=lambda t: (t.last_error or {}).get("ts", ""))
        last = max(filter(None, (self.last, other.last)), default=None)
        return Totals(
            self.sorted + other.sorted,
            self.rejected + other.rejected,
            self.events + other.events,
            last,
            newest.last_error,
            self.model if other.model is None else other.model,
            self.rescued + other.rescued,
            {**self.blocked, **other.blocked},
        )


def _utf8(text: str) -> str:
    """Return a name for people: what is not UTF-8 is escaped (orjson refuses it)."""
    return os.fsencode(text).decode(errors="backslashreplace")
