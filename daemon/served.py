"""What was served: the newest deliveries, listed for the trainer's report, and figures of each day for TensorBoard.

Invariant: both are drawn from the journal alone and can be drawn again; a day's file is written once, when the day (in
UTC) is over, so that TensorBoard only ever sees new files.
"""

import heapq
import io
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import orjson
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from daemon.history import AUDIT, Entry, History
from daemon.logs import printable
from trainer import deliveries, durable
from trainer.settings import Settings

FOLDER = Path("served/tensorboard")  # as the other runs have it
DAY_MS = 24 * 3600 * 1000
PREDICTED = ("sorted", "review", AUDIT)


@dataclass
class Day:
    """What was predicted on one day, and how many predictions people corrected on it."""

    labels: Counter[str] = field(default_factory=Counter)
    scores: float = 0.0
    corrected: int = 0

    def figures(self) -> Iterator[tuple[str, float]]:
        """Yield the names and values that TensorBoard shows; a day without photos has none."""
        photos = self.labels.total()
        if not photos:
            return
        yield "served/photos", photos
        yield "served/confidence", self.scores / photos
        yield "served/corrected", self.corrected / photos
        for label, number in sorted(self.labels.items()):
            yield f"served/share/{printable(label)}", number / photos


def show(settings: Settings, history: History, seen: Mapping[str, int], now: datetime) -> None:
    """Write the list of deliveries into the dataset's folder, and the days that are over below `runs`."""
    entries = (e for e in history.entries() if e.event == "sorted" and not e.is_moved and e.place in seen)
    newest = heapq.nlargest(deliveries.MOST, entries, key=lambda e: (e.at, e.id))
    lines = [_line(entry, settings.tray.root / entry.place) for entry in newest
             if _is_utf8(str(settings.tray.root / entry.place))]  # fmt: skip
    dataset = settings.dataset.root
    if lines:
        dataset.mkdir(parents=True, exist_ok=True)
        durable.replace(dataset / deliveries.NAME, b"".join(lines))
    today = int(now.timestamp() * 1000) // DAY_MS
    for number, day in days(history).items():
        if number < today:
            _write(settings.trainer.runs / FOLDER, number, day)


def days(history: History) -> dict[int, Day]:
    """Return what was predicted on each day (days since 1970, in UTC)."""
    found = defaultdict[int, Day](Day)
    for entry in history.entries():
        if entry.event in PREDICTED and entry.label is not None:
            day = found[entry.at // DAY_MS]
            day.labels[entry.label] += 1
            day.scores += entry.score or 0.0
            if entry.taught not in (None, entry.label):
                found[entry.moved_at // DAY_MS].corrected += 1
    return found


def _line(entry: Entry, path: Path) -> bytes:
    at = datetime.fromtimestamp(entry.at / 1000, UTC).isoformat(timespec="milliseconds")
    fields = {"path": str(path), "sha256": (entry.sha256 or b"").hex(), "label": entry.label, "score": entry.score,
              "model": entry.model, "ts": at}  # fmt: skip
    return orjson.dumps(fields, option=orjson.OPT_APPEND_NEWLINE)


def _is_utf8(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def _write(folder: Path, number: int, day: Day) -> None:
    """Write one day as a TensorBoard file, unless it is there."""
    path = folder / f"events.out.tfevents.{number * DAY_MS // 1000}.moodbox"
    values = [Summary.Value(tag=tag, simple_value=value) for tag, value in day.figures()]
    if not values or path.exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    noon, records = number * DAY_MS / 1000 + 12 * 3600, io.BytesIO()
    writer = RecordWriter(records)
    for event in (Event(wall_time=noon, file_version="brain.Event:2"),
                  Event(wall_time=noon, step=number, summary=Summary(value=values))):  # fmt: skip
        writer.write(event.SerializeToString())
    durable.replace(path, records.getvalue())
