"""Scale: what many waiting files cost. Tiny files that are no pictures, so that the daemon is measured and no model."""

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.speed.process import daemon, started

EACH_FOLDER = 10_000  # a person's camera makes folders, too
OLD = 1_700_000_000.0  # seconds; young files that are no pictures are read twice: their copy may not be complete


@dataclass(frozen=True)
class Scale:
    """Files per second and CPU milliseconds per file after READY, seconds from READY to the first one, MiB at most."""

    files: int
    rate: float
    cpu_ms: float
    first: float
    peak: float


def measure(models: Path, counts: Sequence[int], tell: Callable[[str], None]) -> list[Scale]:
    """Return what `moodbox once` takes for each number of files."""
    found = []
    for count in counts:
        found.append(_one(models, count))
        tell(f"{count:,} files: {found[-1].rate:,.0f} a second, {found[-1].cpu_ms:.2f} ms of CPU each, "
             f"the first after {found[-1].first:.1f} s, {found[-1].peak:,.0f} MiB")  # fmt: skip
    return found


def _one(models: Path, count: int) -> Scale:
    with tempfile.TemporaryDirectory(prefix="moodbox-bench-") as folder:
        place = Path(folder)
        shutil.copytree(models, place / "models", symlinks=True)
        _fill(place / "tray" / "inbox", count)
        with started(daemon("once", place)) as process:
            ready = process.ready()
            begun = time.monotonic()
            while not any((place / "tray" / "rejected").rglob("*.txt")):
                time.sleep(0.005)
            first = time.monotonic() - begun
            used = process.wait().since(ready)
        left = sum(1 for f in (place / "tray" / "inbox").rglob("*.txt"))
        if left:
            raise SystemExit(f"{left:,} of {count:,} files were left in the inbox")
    return Scale(count, count / used.seconds, used.cpu / count * 1000, first, used.peak)


def _fill(inbox: Path, count: int) -> None:
    for number in range(count):
        folder = inbox / f"{number // EACH_FOLDER:04}"
        if number % EACH_FOLDER == 0:
            folder.mkdir(parents=True)
        file = folder / f"{number:08}.txt"
        file.write_bytes(b"%d" % number)
        os.utime(file, (OLD, OLD))
    os.sync()  # what was written before is not the daemon's to make durable
