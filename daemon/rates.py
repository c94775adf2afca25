"""Rates: how often people corrected what a model had decided, per model and class; and what the last days looked like.

Invariant: counts only, which can be added up over owners and lines, in any order; a correction that is taken back is
taken back here, too.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import date, timedelta
from typing import Any, Self

from daemon.events import Line

KEPT_DAYS = 15

Tally = Counter[tuple[str, str, str]]


@dataclass(frozen=True)
class Rates:
    """Two tallies. `models`: by (model, "sorted" | "corrected" | "audit right" | "audit wrong", class that it said).

    `days`: by (day in UTC, "sorted" | "corrected" | "score", class that the model said); "score" adds up confidences.
    """

    models: Tally = field(default_factory=Counter)
    days: Tally = field(default_factory=Counter)

    def plus(self, lines: Iterable[Line]) -> "Rates":
        """Return the rates with these lines counted in."""
        models, days = Counter(self.models), Counter(self.days)
        for line in lines:
            model, day = str(line.model), line.ts[:10]
            if line.event == "sorted" and line.label is not None:
                days[day, "sorted", line.label] += 1
                days[day, "score", line.label] += round(1000 * (line.score or 0.0))
                models[model, "sorted", line.label] += 1
            elif line.event == "corrected" and line.predicted is not None and line.source is not None:  # no copy
                for what, change in _changes(line):
                    models[model, what, line.predicted] += change
                    if what == "corrected":
                        days[day, what, line.predicted] += change
        return Rates(models, _recent(days))

    def __add__(self, other: "Rates") -> "Rates":
        return Rates(_sum(self.models, other.models), _sum(self.days, other.days))

    def as_dict(self) -> dict[str, Any]:
        """Return what a `totals` line carries."""
        return {"by_model": _nested(self.models), "by_day": _nested(self.days)}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Self:
        """Return what `as_dict` was given."""
        return cls(_flat(fields.get("by_model", {})), _flat(fields.get("by_day", {})))

    def of(self, what: str, *, model: str | None = None) -> Counter[str]:
        """Return the counts of `what` by class, of one model or all."""
        found = Counter[str]()
        for (number, kind, label), count in self.models.items():
            if kind == what and model in (None, number):
                found[label] += count
        return found

    def model_numbers(self) -> list[str]:
        """Return the models of which anything is known, oldest first."""
        return sorted({number for number, _, _ in self.models}, key=lambda n: (len(n), n))

    def week(self, today: date, what: str) -> Counter[str]:
        """Return the counts of `what` by class over the seven days before and up to `today`."""
        first, found = (today - timedelta(days=6)).isoformat(), Counter[str]()
        for (day, kind, label), count in self.days.items():
            if kind == what and first <= day <= today.isoformat():
                found[label] += count
        return found


def _changes(line: Line) -> list[tuple[str, int]]:
    """Return which counts a `corrected` line changes: the person's new word counts, the one before no more."""
    is_wrong, was_wrong = line.label != line.predicted, line.was not in (None, line.predicted)
    if line.audit is None:
        return [("corrected", is_wrong - was_wrong)]
    if not line.audit:  # it waited in review/ since the model was unsure: that says nothing of what it was sure of
        return []
    was_right = line.was == line.predicted
    return [("audit wrong", is_wrong - was_wrong), ("audit right", (not is_wrong) - was_right)]


def _recent(days: Tally) -> Tally:
    newest = sorted({day for day, _, _ in days})[-KEPT_DAYS:]
    return Counter({key: count for key, count in days.items() if key[0] in newest})


def _sum(one: Tally, other: Tally) -> Tally:
    found = Counter(one)  # not `+`, which drops what is below zero: another owner's counts make up for it
    found.update(other)
    return found


def _nested(counts: Tally) -> dict[str, dict[str, dict[str, int]]]:
    found: dict[str, dict[str, dict[str, int]]] = {}
    for (first, what, label), count in counts.items():
        found.setdefault(first, {}).setdefault(what, {})[label] = count
    return found


def _flat(nested: Mapping[str, Mapping[str, Mapping[str, int]]]) -> Tally:
    return Counter({(first, what, label): count for first, of in nested.items() for what, by_label in of.items()
                    for label, count in by_label.items()})  # fmt: skip
