"""Throughput: photos from inbox to where they belong, CPU per photo and photos per second, in turn with the others."""

import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.speed import pictures
from benchmarks.speed.process import daemon, started

CONTESTANTS = ("moodbox", "limit", "batches", "first")
COUNTS = {"moodbox": 1_024, "limit": 1_024, "batches": 96, "first": 64}
FEWER = {"12 MP": 4}  # so many times fewer of what takes long


@dataclass(frozen=True)
class Speed:
    """Milliseconds of CPU per photo, and photos per second, start-up left out."""

    cpu_ms: float
    rate: float


def measure(
    models: Path, kinds: Sequence[str], rounds: int, tell: Callable[[str], None]
) -> dict[str, dict[str, Speed]]:
    """Return the medians by kind of photo and contestant."""
    found = {}
    for kind in kinds:
        files = pictures.drawn(kind)
        runs: dict[str, list[Speed]] = {name: [] for name in CONTESTANTS}
        for number in range(rounds):
            for name in CONTESTANTS:
                count = max(32, COUNTS[name] // FEWER.get(kind, 1))
                runs[name].append(_one(name, models, files, count))
                tell(f"{kind}, round {number + 1} of {rounds}: {name} {runs[name][-1].cpu_ms:.1f} ms of CPU per photo")
        found[kind] = {name: _median(speeds) for name, speeds in runs.items()}
    return found


def _median(speeds: Sequence[Speed]) -> Speed:
    return Speed(statistics.median(s.cpu_ms for s in speeds), statistics.median(s.rate for s in speeds))


def _one(name: str, models: Path, files: list[bytes], count: int) -> Speed:
    with tempfile.TemporaryDirectory(prefix="moodbox-bench-") as folder:
        place = Path(folder)
        shutil.copytree(models, place / "models", symlinks=True)
        inbox = place / "tray" / "inbox" if name == "moodbox" else place / "inbox"
        if name == "moodbox":
            return _sorted_by_moodbox(place, inbox, files, count)
        if name == "limit":
            pictures.drop(inbox, files, count)
        return _sorted_by(name, place, inbox, files, count)


def _sorted_by_moodbox(place: Path, inbox: Path, files: list[bytes], count: int) -> Speed:
    pictures.drop(inbox, files, count)
    with started(daemon("once", place)) as process:
        ready = process.ready()
        used = process.wait().since(ready)
    _check(sum(1 for f in (place / "tray").glob("[hs]a*/*")), count)
    return Speed(used.cpu / count * 1000, count / used.seconds)


def _sorted_by(name: str, place: Path, inbox: Path, files: list[bytes], count: int) -> Speed:
    out = place / "out"
    inbox.mkdir(exist_ok=True)
    script = [sys.executable, "-m", "benchmarks.speed.contestants", name]
    with started([*script, place / "models", inbox, out, str(count)]) as process:
        ready = process.ready()
        if name != "limit":
            pictures.drop(place / "new", files, count)
            for file in sorted((place / "new").iterdir()):
                os.rename(file, inbox / file.name)
        used = process.wait().since(ready)
    _check(sum(1 for f in out.glob("*/*")), count)
    return Speed(used.cpu / count * 1000, count / used.seconds)


def _check(found: int, count: int) -> None:
    if found != count:
        raise SystemExit(f"{found} of {count} photos were sorted")
