"""Latency: one photo dropped, until it is where it belongs; the wait for `settle_seconds` is not counted."""

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
    files = pictures.drawn("640x480")
    with tempfile.TemporaryDirectory(prefix="moodbox-bench-") as folder:
        place = Path(folder)
        shutil.copytree(models, place / "models", symlinks=True)
        pictures.drop(place / "new", files, 2 * drops)
        with started(daemon("run", place, f"tray.settle_seconds={SETTLE}")) as process:
            process.ready()
            new = sorted((place / "new").iterdir())
            return {
                "cp": _all(place, new[:drops], _copy, tell),
                "mv": _all(place, new[drops:], os.rename, tell),
            }


def _all(place: Path, photos: list[Path], drop: Callable[[Path, Path], object], tell: Callable[[str], None]) -> Latency:
    pause, took = random.Random(0), []
    for photo in photos:
        time.sleep(pause.uniform(0.02, 0.7))
        took.append(1000 * (_one(place / "tray", photo, drop) - SETTLE))
    ordered = sorted(took)
    found = Latency(statistics.median(ordered), ordered[round(0.99 * len(ordered)) - 1], ordered[-1])
    tell(f"{drop.__name__}: p50 {found.p50:.1f} ms, p99 {found.p99:.1f} ms")
    return found


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


def _copy(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)
