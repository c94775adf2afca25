"""Figures: what there is to tell of a daemon at one moment, for the metrics."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from daemon.meter import Histogram
from daemon.totals import Totals


@dataclass(frozen=True)
class Figures:
    """Counts and states. `learner` is whose journal in `log` has the corrections; times are seconds since the epoch."""

    tray: str
    daemon: str
    log: Path
    learner: str
    totals: Totals
    classes: Sequence[str]
    model: int
    inbox: int
    work: int
    blocked: int
    started: float
    failed_at: float
    fault: bool
    latency: Histogram
    sizes: Histogram
