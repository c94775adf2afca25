"""`make bench`, or `python -m benchmarks.speed`: measures everything, and writes benchmarks/RESULTS.md and RESULTS.png.

`--quick` measures less of each, and keeps nothing; `--only NAME` one part, beside what was measured before; `--million`
the scale up to a million files (half an hour more); `--photos DIR` trains on other photos.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.speed import idle, latency, pictures, report, scale, several, throughput, training
from benchmarks.speed.report import Found
from trainer import bundle

SCENE_ALONE = {"scene": "640x480, scene alone", "small": "640x480, MobileNetV3Small"}
PARTS = ("throughput", *SCENE_ALONE, "latency", "scale", "several", "idle", "training")
HERE = Path(__file__).parent.parent


def main() -> None:
    top = argparse.ArgumentParser("python -m benchmarks.speed", description=__doc__)
    top.add_argument("--quick", action="store_true", help="a few minutes instead of twenty")
    top.add_argument("--million", action="store_true", help="a million tiny files, too")
    top.add_argument("--only", choices=PARTS, action="append", help="measure this alone; the other results stay")
    top.add_argument("--photos", type=Path, metavar="DIR", help="class folders to train on; default: drawn ones")
    top.add_argument("--results", type=Path, metavar="DIR", help="where results are kept (with --quick: nowhere)")
    asked = top.parse_args()
    begun = time.monotonic()
    results = asked.results or (None if asked.quick else HERE)
    found = report.read(results / "results.json") if results else Found()
    with tempfile.TemporaryDirectory(prefix="moodbox-bench-") as folder:
        models = Path(folder) / "models"
        bundle.install_shipped(models)
        for part in asked.only or PARTS:
            measure(part, found, models, asked)
            found.taken[part] = report.now_and_here()
            if results:
                report.write(found, results)
    print("\n".join(report.page(found)))
    tell(f"took {(time.monotonic() - begun) / 60:.0f} minutes")


def measure(part: str, found: Found, models: Path, asked: argparse.Namespace) -> None:
    """Measure one part, in the place of what was found before."""
    quick = asked.quick
    if part == "throughput":
        found.speeds |= throughput.measure(models, list(pictures.KINDS), 1 if quick else 3, tell)
    elif part in SCENE_ALONE:
        other = models.with_name(part)
        subprocess.run([sys.executable, "-m", "benchmarks.speed.network", part, other], check=True)
        speeds = throughput.measure(other, ["640x480"], 1 if quick else 3, tell)
        found.speeds[SCENE_ALONE[part]] = speeds["640x480"]
    elif part == "latency":
        found.latencies = latency.measure(models, 10 if quick else 100, tell)
    elif part == "scale":
        counts = [1_000, 10_000, *([] if quick else [100_000]), *([1_000_000] if asked.million else [])]
        found.scales = scale.measure(models, counts, tell)
    elif part == "several":
        found.several = several.measure(models, [1, 2, 4], 1 if quick else 3, tell)
    elif part == "idle":
        found.idle = idle.measure(models, 10 if quick else 60, 1_000_000, tell)
    else:
        found.trainings |= training.measure(asked.photos, tell)


def tell(text: str) -> None:
    """Show progress, beside the results."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
