"""The metrics themselves: their names, types and labels, in the library's words. Loaded only where a file is set.

Invariant: labels are the tray, the daemon, classes and error codes, which are few; never what people dropped.
"""

import time
from collections.abc import Iterator, Mapping
from datetime import datetime
from importlib import metadata
from pathlib import Path

from prometheus_client import CollectorRegistry, Metric, write_to_textfile
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

from daemon.figures import Figures
from daemon.journal import tail_totals
from daemon.logs import printable
from daemon.meter import Histogram
from daemon.totals import Totals


def write(file: Path, figures: Figures) -> None:
    """Write the figures, all of them or none. Raises OSError."""
    registry = CollectorRegistry()
    registry.register(_Collector(figures, tail_totals(figures.log, figures.learner)))
    write_to_textfile(str(file), registry)


class _Collector:
    """The figures as the library wants them."""

    def __init__(self, figures: Figures, learned: Totals) -> None:
        self._figures, self._learned = figures, learned
        self._fixed = {"tray": printable(figures.tray), "daemon": printable(figures.daemon)}

    def collect(self) -> Iterator[Metric]:
        """Yield every family."""
        yield from self._counts()
        yield from self._states()
        yield self._histogram("moodbox_latency_seconds", "From first seen to delivered", self._figures.latency)
        yield self._histogram("moodbox_batch_files", "Files that were claimed together", self._figures.sizes)

    def _counts(self) -> Iterator[Metric]:
        figures, totals = self._figures, self._figures.totals
        by_class = {**dict.fromkeys(figures.classes, 0), **totals.sorted}
        yield self._counter("moodbox_sorted", "Photos sorted into a class folder", by_class, "class")
        yield self._counter("moodbox_rejected", "Files rejected", totals.rejected, "code")
        yield self._counter("moodbox_review", "Photos sent to review/", {"": totals.events["review"]})
        yield self._counter("moodbox_rescued", "Files of which no event told", {"": totals.rescued})
        told = "Times that people put a photo right, as `moodbox learn` found it"
        yield self._counter("moodbox_corrections", told, {"": self._learned.events["corrected"]})

    def _states(self) -> Iterator[Metric]:
        figures, error = self._figures, self._figures.totals.last_error
        journalled = datetime.fromisoformat(error["ts"]).timestamp() if error else 0.0
        for name, text, value in (
            ("moodbox_inbox_files", "Files that wait in the inbox; it looks at 10,000 at most", figures.inbox),
            ("moodbox_work_files", "Files that are being sorted", figures.work),
            ("moodbox_blocked_files", "Files that wait because the daemon may not have them", figures.blocked),
            ("moodbox_model", "The number of the model that serves", figures.model),
            ("moodbox_model_refused", "1 while a new champion is refused", figures.totals.refused is not None),
            ("moodbox_fault", "1 while nothing moves: disk full, tray gone", figures.fault),
            ("moodbox_last_error_timestamp_seconds", "The last error", max(journalled, figures.failed_at)),
            ("moodbox_start_timestamp_seconds", "When the daemon started", figures.started),
            ("moodbox_metrics_timestamp_seconds", "When this was written", time.time()),
        ):  # fmt: skip
            yield self._gauge(name, text, float(value))
        yield self._gauge("moodbox_build_info", "The version that runs", 1.0, version=metadata.version("moodbox"))

    def _counter(self, name: str, text: str, values: Mapping[str, float], label: str = "") -> Metric:
        names = [*self._fixed, *filter(None, [label])]
        family = CounterMetricFamily(name, text, labels=names)
        for key, value in values.items():
            family.add_metric([*self._fixed.values(), *([printable(key)] if label else [])], value)
        return family

    def _gauge(self, name: str, text: str, value: float, **labels: str) -> Metric:
        family = GaugeMetricFamily(name, text, labels=[*self._fixed, *labels])
        family.add_metric([*self._fixed.values(), *labels.values()], value)
        return family

    def _histogram(self, name: str, text: str, histogram: Histogram) -> Metric:
        family = HistogramMetricFamily(name, text, labels=list(self._fixed))
        family.add_metric(list(self._fixed.values()), histogram.cumulated(), histogram.sum)
        return family
