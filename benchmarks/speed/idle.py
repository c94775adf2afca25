"""What the daemon costs while nothing happens: start-up, memory, idle CPU; and how long `moodbox status` takes."""

import itertools
import json
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.speed import pictures
from benchmarks.speed.process import daemon, started

STARTS = 3
QUIET = 3.0  # seconds after READY that belong to the start


@dataclass(frozen=True)
class Idle:
    """Seconds to READY, and of CPU until then, MiB then; per cent of one core and wake-ups per second while idle.

    `status` and `status_million`: the seconds that `moodbox status` takes after one photo, and with so many `lines`.
    """

    ready: float
    ready_cpu: float
    memory: float
    cpu_percent: float
    wakeups: float
    status: float
    status_million: float
    lines: int


def measure(models: Path, seconds: float, lines: int, tell: Callable[[str], None]) -> Idle:
    """Measure an idle daemon for so many seconds."""
    with tempfile.TemporaryDirectory(prefix="moodbox-bench-") as folder:
        place = Path(folder)
        shutil.copytree(models, place / "models", symlinks=True)
        starts = []
        for _ in range(STARTS):
            with started(daemon("run", place)) as process:
                starts.append(process.ready())
        pictures.drop(place / "tray" / "inbox", pictures.drawn("640x480"), 1)
        subprocess.run(daemon("once", place), check=True, capture_output=True)
        with started(daemon("run", place)) as process:
            process.ready()
            time.sleep(QUIET)
            before, woken = process.usage(), _wakeups(process.pid)
            time.sleep(seconds)
            used, woken = process.usage().since(before), _wakeups(process.pid) - woken
        short = _status(place)
        _lengthen(place / "log", lines)
        long = _status(place)
    ready, cpu, memory = (statistics.median(getattr(s, name) for s in starts) for name in ("seconds", "cpu", "peak"))
    found = Idle(ready, cpu, memory, 100 * used.cpu / used.seconds, woken / used.seconds, short, long, lines)
    tell(f"READY after {ready:.1f} s, {memory:,.0f} MiB; idle {found.cpu_percent:.3f} % of a core, "
         f"{found.wakeups:.1f} wake-ups a second; status {short:.2f} s, with {lines:,} lines {long:.2f} s")  # fmt: skip
    return found


def _wakeups(pid: int) -> int:
    """Return how often the process's threads have given up the CPU of their own accord."""
    statuses = (path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/status"))
    lines = (line.split() for text in statuses for line in text.splitlines())
    return sum(int(words[1]) for words in lines if words and words[0] == "voluntary_ctxt_switches:")


def _status(place: Path) -> float:
    took = []
    for _ in range(STARTS):
        begun = time.perf_counter()
        subprocess.run(daemon("status", place), check=True, capture_output=True)
        took.append(time.perf_counter() - begun)
    return statistics.median(took)


def _lengthen(log: Path, lines: int) -> None:
    """Write the journal that a daemon would have after so many photos: its decision lines, again and again."""
    (journal,) = (file for file in log.glob("*-1.jsonl") if not file.name.endswith("-learn-1.jsonl"))
    decisions = [line for line in journal.read_bytes().splitlines(True) if json.loads(line)["event"] == "sorted"]
    totals = [line for line in journal.read_bytes().splitlines(True) if json.loads(line)["event"] == "totals"]
    owner = journal.name.removesuffix("-1.jsonl")
    each = lines // 16
    for segment in range(2, 18):
        repeated = itertools.chain.from_iterable(itertools.repeat(decisions * 128 + totals, each // 128 + 1))
        with (log / f"{owner}-{segment}.jsonl").open("wb") as file:
            file.writelines(repeated)
