"""Training: `moodbox-train fit` on scenes against a plain Keras script with the same backbone, on the same photos."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from benchmarks.speed.process import MOODBOX
from trainer import golden

DRAWN = 300


@dataclass(frozen=True)
class Training:
    """Seconds and CPU seconds in all, accuracy on photos that were held out, seconds by what was said first."""

    seconds: float
    cpu: float
    accuracy: float
    stages: dict[str, float]


def measure(photos: Path | None, tell: Callable[[str], None]) -> dict[str, dict[str, Training]]:
    """Train on the class folders in `photos`, or on drawn portraits; the answer is by what was trained on."""
    with tempfile.TemporaryDirectory(prefix="moodbox-bench-") as folder:
        place = Path(folder)
        root = photos or _draw(place / "photos")
        found = {"moodbox-train fit": _fit(root, place), "plain Keras": _plain(root)}
    for name, took in found.items():
        tell(f"{name}: {took.seconds:.0f} s, {took.cpu:.0f} s of CPU, accuracy {took.accuracy:.3f}")
    count = sum(1 for file in photos.glob("*/*") if file.is_file()) if photos else DRAWN
    return {f"{count:,} photos" if photos else f"{count:,} drawn portraits": found}


def _draw(root: Path) -> Path:
    """Draw people who smile and people who do not, somewhere before walls of all kinds, many of them blurred."""
    for number in range(DRAWN):
        random, smiles = np.random.default_rng(number), number % 2 == 0
        wall = Image.fromarray(random.integers(0, 255, (6, 6, 3), np.uint8)).resize(
            (256, 256), Image.Resampling.BICUBIC
        )
        portrait = golden.portrait(int(random.integers(110, 200)), smiles=smiles).rotate(random.uniform(-20, 20))
        wall.paste(portrait, tuple(int(v) for v in random.integers(0, 256 - portrait.width, 2)))
        file = root / ("happy" if smiles else "sad") / f"{number}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        wall.filter(ImageFilter.GaussianBlur(random.uniform(0, 3))).save(file)
    return root


def _fit(root: Path, place: Path) -> Training:
    settings = {"models.root": place / "models", "trainer.runs": place / "runs", "trainer.views": '["scene"]'}
    flags = [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
    (place / "settings.toml").write_text("")
    command = [MOODBOX.with_name("moodbox-train"), "fit", "--settings", place / "settings.toml", "--data", root, *flags]
    took, stages = _timed([*map(str, command)])
    manifest = json.loads((place / "models" / "champion" / "manifest.json").read_text())
    return Training(*took, manifest["metrics"]["accuracy"], stages)


def _plain(root: Path) -> Training:
    took, stages = _timed([sys.executable, "-m", "benchmarks.speed.plain_keras", os.fspath(root)])
    accuracy = next(float(line.split()[1]) for line in stages if line.startswith("accuracy"))
    return Training(*took, accuracy, {})


def _timed(command: list[str]) -> tuple[tuple[float, float], dict[str, float]]:
    """Run a command; return its seconds and CPU seconds, and when it said what, by the words before the first colon."""
    begun, said = time.monotonic(), dict[str, float]()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    lines = []
    for line in process.stdout or ():
        lines.append(line)
        said[line.partition(":")[0].strip()] = time.monotonic() - begun
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise SystemExit(f"{command}: exit status {process.returncode}: {''.join(lines[-20:])}")
    return (time.monotonic() - begun, used.ru_utime + used.ru_stime), said
