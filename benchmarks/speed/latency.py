"""Latency: one photo dropped, until it is where it belongs; the wait for `settle_seconds` is not counted.

Beside it, in turn, what no daemon can save: the same photo decoded and judged in a process that does nothing else.
"""

import os
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.speed import pictures
from benchmarks.speed.process import daemon, started
from daemon.classifier import Classifier
from daemon.predictors import Predictors

SETTLE = 0.5  # seconds; the default
PATIENCE = 30.0
STEP = 0.0005  # seconds between two looks


@dataclass(frozen=True)
class Latency:
    """Milliseconds from the drop to the delivered file, `settle_seconds` taken off."""

    p50: float
    p99: float
    worst: float


def measure(models: Path, drops: int, tell: Callable[[str], None]) -> dict[str, Latency]:
    """Return the latency of 640x480 photos by how they are dropped, one at a time, at random intervals."""
    files, pause = pictures.drawn("640x480"), random.Random(0)
    took: dict[str, list[float]] = {"cp": [], "mv": [], "decode and model alone": []}
    with tempfile.TemporaryDirectory(prefix="moodbox-bench-") as folder:
        place = Path(folder)
        shutil.copytree(models, place / "models", symlinks=True)
        pictures.drop(place / "new", files, 2 * drops)
        with started(daemon("run", place, f"tray.settle_seconds={SETTLE}")) as process:
            process.ready()
            work = _work(place / "models")
            new = sorted((place / "new").iterdir())
            for number, photo in enumerate(new):
                how, drop = ("cp", shutil.copyfile) if number % 2 else ("mv", os.rename)
                data = photo.read_bytes()
                time.sleep(pause.uniform(0.02, 0.7))
                took["decode and model alone"].append(work(data))
                time.sleep(pause.uniform(0.02, 0.7))
                took[how].append(1000 * (_one(place / "tray", photo, drop) - SETTLE))
                if number % 20 == 19:
                    tell(f"{number + 1} of {len(new)} dropped")
    return {how: _summary(times) for how, times in took.items()}


def _summary(times: list[float]) -> Latency:
    ordered = sorted(times)
    return Latency(statistics.median(ordered), ordered[round(0.99 * len(ordered)) - 1], ordered[-1])


def _work(models: Path) -> Callable[[bytes], float]:
    """Return what decodes and judges a photo as the daemon does one that comes alone; it returns the milliseconds."""
    classifier = Classifier.load(models)
    predict = Predictors.made(classifier.make_predictor, len(os.sched_getaffinity(0))).alone

    def work(data: bytes) -> float:
        begun = time.perf_counter()
        predict(classifier.eye(data))
        return 1000 * (time.perf_counter() - begun)

    return work


def _one(tray: Path, photo: Path, drop: Callable[[Path, Path], object]) -> float:
    """Drop a photo; return the seconds until it has left the inbox for a class folder."""
    places = [tray / label / photo.name for label in ("happy", "sad")]
    drop(photo, tray / "inbox" / photo.name)
    begun = time.perf_counter()
    while not any(os.path.exists(path) for path in places):
        if time.perf_counter() - begun > PATIENCE:
            raise SystemExit(f"{photo.name} was not delivered")
        time.sleep(STEP)
    return time.perf_counter() - begun
