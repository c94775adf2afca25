"""Findings: what one check of `moodbox doctor` has to say.

Invariant: a finding that is not `ok` says what to do.
"""

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warn", "FAIL"]


@dataclass(frozen=True)
class Finding:
    """One line of `moodbox doctor`."""

    level: Level
    name: str
    text: str


def ok(name: str, text: str) -> Finding:
    """Return that all is well."""
    return Finding("ok", name, text)


def warn(name: str, text: str) -> Finding:
    """Return something that works, and may not go on to."""
    return Finding("warn", name, text)


def fail(name: str, text: str) -> Finding:
    """Return something that keeps Moodbox from its work, or its promise."""
    return Finding("FAIL", name, text)


def graded(name: str, text: str, cure: str, *, failing: bool, warning: bool) -> Finding:
    """Return the finding that a measurement asks for; `cure` is said unless it is `ok`."""
    if failing or warning:
        return Finding("FAIL" if failing else "warn", name, f"{text}: {cure}")
    return ok(name, text)
