"""Several daemons on one tray, one core each: photos per second of all together."""

import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from benchmarks.speed import pictures
from benchmarks.speed.process import daemon, started

PHOTOS = 400
PATIENCE = 300.0
STEP = 0.02


def measure(models: Path, counts: Sequence[int], rounds: int, tell: Callable[[str], None]) -> dict[int, float]:
    """Return the median of photos of 640x480 per second by the number of daemons; what was dropped comes at once."""
    files = pictures.drawn("640x480")
    rates: dict[int, list[float]] = {count: [] for count in counts}
    for number in range(rounds):
        for count in counts:
            rates[count].append(_one(models, files, count))
            tell(f"daemons: {count}, round {number + 1} of {rounds}: {rates[count][-1]:.1f} photos a second")
    return {count: statistics.median(found) for count, found in rates.items()}


def _one(models: Path, files: list[bytes], count: int) -> float:
    with tempfile.TemporaryDirectory(prefix="moodbox-bench-") as folder, ExitStack() as running:
        place = Path(folder)
        shutil.copytree(models, place / "models", symlinks=True)
        pictures.drop(place / "new", files, PHOTOS)
        command = daemon("run", place, "daemon.threads=1")
        for process in [running.enter_context(started(command)) for _ in range(count)]:
            process.ready()
        begun = time.perf_counter()
        os.rename(place / "new", place / "tray" / "inbox" / "new")
        while sum(len(names) for label in ("happy", "sad") for _, _, names in os.walk(place / "tray" / label)) < PHOTOS:
            if time.perf_counter() - begun > PATIENCE:
                raise SystemExit("not all photos were sorted")
            time.sleep(STEP)
        return PHOTOS / (time.perf_counter() - begun)
