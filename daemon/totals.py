"""Totals: running counts of many journal lines, small enough to be written into the journal now and then.

Invariant: the totals of a journal are those of its last `totals` line and the lines after it, so that `status` need not
read all of it.
"""

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Self

from daemon.events import DECISIONS, Line
from daemon.rates import Rates


@dataclass(frozen=True)
class Totals:
    """Counts of everything that one owner ever journalled, and what went wrong last."""

    sorted: Counter[str] = field(default_factory=Counter)
    rejected: Counter[str] = field(default_factory=Counter)
    events: Counter[str] = field(default_factory=Counter)
    last: str | None = None
    last_error: dict[str, str] | None = None
    model: int | None = None  # the bundle that serves, or did when the daemon ended
    refused: dict[str, Any] | None = None  # the new bundle that was refused since: model, error, ts
    rescued: int = 0  # files that no event told of: the rescan found them
    blocked: dict[str, str] = field(default_factory=dict)  # what waits now because the daemon may not have it: a few
    rates: Rates = field(default_factory=Rates)

    def plus(self, lines: Iterable[Line]) -> "Totals":
        """Return the totals with these lines counted in."""
        lines = list(lines)
        by_label, rejected, events = Counter(self.sorted), Counter(self.rejected), Counter(self.events)
        last, last_error, model, refused = self.last, self.last_error, self.model, self.refused
        for line in lines:
            events[line.event] += 1
            if line.event == "sorted":
                by_label[line.label or ""] += 1
            elif line.event == "rejected":
                rejected[line.error_code or ""] += 1
            if line.event in DECISIONS:
                last = line.ts
            elif line.event in ("started", "model_loaded"):
                model, refused = line.model, None
            elif line.event == "model_refused":
                refused = {"model": line.model, "error": line.error or "", "ts": line.ts}
            if line.error:
                last_error = {"ts": line.ts, "file": line.file or "", "error": line.error}
        rates, blocked = self.rates.plus(lines), self.blocked
        return Totals(by_label, rejected, events, last, last_error, model, refused, self.rescued, blocked, rates)

    def as_dict(self) -> dict[str, Any]:
        """Return what a `totals` line carries."""
        counts = {"sorted": dict(self.sorted), "rejected": dict(self.rejected), "events": dict(self.events)}
        return {
            **counts,
            "last": self.last,
            "last_error": self.last_error and {k: _utf8(v) for k, v in self.last_error.items()},
            "model": self.model,
            "refused": self.refused and {**self.refused, "error": _utf8(self.refused["error"])},
            "rescued": self.rescued,
            "blocked": {_utf8(file): reason for file, reason in self.blocked.items()},
            **self.rates.as_dict(),
        }

    @classmethod
    def from_dict(cls, totals: dict[str, Any]) -> Self:
        """Return what `as_dict` was given."""
        by_label, rejected, events = (Counter[str](totals.get(name, {})) for name in ("sorted", "rejected", "events"))
        last, last_error, model, refused = (totals.get(name) for name in ("last", "last_error", "model", "refused"))
        rescued, blocked, rates = totals.get("rescued", 0), totals.get("blocked", {}), Rates.from_dict(totals)
        return cls(by_label, rejected, events, last, last_error, model, refused, rescued, blocked, rates)

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
            max(filter(None, (self.refused, other.refused)), key=lambda refused: refused["ts"], default=None),
            self.rescued + other.rescued,
            {**self.blocked, **other.blocked},
            self.rates + other.rates,
        )


def _utf8(text: str) -> str:
    """Return a name for people: what is not UTF-8 is escaped (orjson refuses it)."""
    return os.fsencode(text).decode(errors="backslashreplace")
