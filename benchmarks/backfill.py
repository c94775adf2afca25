"""What `moodbox backfill` costs beside `moodbox once`, and what becomes of 20,000 photos where something is killed.

`python -m benchmarks.backfill` draws them (hard links of a few) and prints what it measured. The costs are those of the
model that ships, on fewer photos; where something is killed, a tiny model serves. It needs Ray, and, to kill, root
(network namespaces). `--only once,backfill,workers,node,driver` measures a part.
"""

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import orjson

from benchmarks.speed import pictures, process
from trainer import bundle

COSTS, KILLS = ("once", "backfill", "workers"), ("node", "driver")
WORKERS = (1, 2, 4)
NODES = Path(__file__).parent.parent / "tests/ray_nodes.py"
SHARD_FILES = 500


def main() -> None:
    top = argparse.ArgumentParser(description=__doc__)
    top.add_argument("--compared", type=int, default=2_000, metavar="N", help="photos to measure the costs on")
    top.add_argument("--killed", type=int, default=20_000, metavar="N", help="photos in which something is killed")
    top.add_argument("--kind", choices=pictures.KINDS, default="640x480")
    top.add_argument("--only", default=",".join(COSTS + KILLS))
    asked = top.parse_args()
    with tempfile.TemporaryDirectory(prefix="mb-") as folder:
        place = Path(folder)
        drawn = place / "drawn"
        pictures.drop(drawn, pictures.drawn(asked.kind), pictures.DRAWN)
        print(f"photos of {asked.kind}, {len(os.sched_getaffinity(0))} cores", flush=True)
        for part in asked.only.split(","):
            work, count = place / part, asked.compared if part in COSTS else asked.killed
            lay(drawn, work / "photos", count)
            print(f"{part}, {count:,} photos: {globals()[f'measure_{part}'](work, drawn, count)}", flush=True)
            shutil.rmtree(work)


def lay(drawn: Path, folder: Path, count: int) -> None:
    """Fill a folder with links to the photos that were drawn."""
    folder.mkdir(parents=True)
    found = sorted(drawn.iterdir())
    for number in range(count):
        os.link(found[number % len(found)], folder / f"{number:06}.jpg")


def timed(command: list[str | Path], cwd: Path) -> float:
    begun = time.monotonic()
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{command}: exit status {done.returncode}: {done.stderr[-2000:]}")
    return time.monotonic() - begun


def rate(command: list[str | Path], work: Path, photos: str, drawn: Path, count: int) -> str:
    """Return the time of a command for all photos, and without what it takes for one each of a few."""
    all_of_it = timed(command, work)
    shutil.rmtree(work / photos, ignore_errors=True)
    for left in ("d", "tray-log"):
        shutil.rmtree(work / left, ignore_errors=True)
    lay(drawn, work / photos, 1)
    start = timed(command, work)
    net = (count - 1) / (all_of_it - start)
    return f"{all_of_it:.1f} s, of which {start:.1f} s to start and end; {net:.1f} photos/s in between"


def measure_once(work: Path, drawn: Path, count: int) -> str:
    (work / "tray").mkdir()
    (work / "tray/.moodbox").touch()
    (work / "photos").rename(work / "tray/inbox")
    return rate([process.MOODBOX, "once", "--tray", "tray"], work, "tray/inbox", drawn, count)


def measure_backfill(work: Path, drawn: Path, count: int) -> str:
    return rate([process.MOODBOX, "backfill", "photos", "d"], work, "photos", drawn, count)


def measure_workers(work: Path, drawn: Path, count: int) -> str:
    told = []
    for number in WORKERS:
        shutil.rmtree(work / "photos", ignore_errors=True)
        lay(drawn, work / "photos", count)
        command = [process.MOODBOX, "backfill", "photos", "d", "--shard-files", "50", "--workers", str(number)]
        told.append(f"{number}: {rate(command, work, 'photos', drawn, count)}")
        shutil.rmtree(work / "d")
    return "".join(f"\n  {line}" for line in told)


def measure_node(work: Path, _drawn: Path, count: int) -> str:
    return killed(work, "a_node_dies", count)


def measure_driver(work: Path, _drawn: Path, count: int) -> str:
    return killed(work, "the_driver_dies", count)


def killed(work: Path, story: str, count: int) -> str:
    """Tell how a story of tests/ray_nodes.py ended: two machines of one CPU, SIGKILL when ten shards are done."""
    sys.path.append(str(NODES.parent))
    import bundles  # noqa: PLC0415  # of the tests

    bundles.publish(work / "models", work / "staged")
    bundle.promote(work / "models", 1)
    begun = time.monotonic()
    command = ["unshare", "--net", sys.executable, NODES, work, str(SHARD_FILES), story]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{story}: {done.stderr[-2000:]}")
    [[told, ended]] = json.loads(done.stdout.splitlines()[-1])
    rows = Counter[str]()
    for path in (work / "d/results").glob("[0-9]*.jsonl"):
        rows.update(orjson.loads(line)["file"] for line in path.read_bytes().splitlines())
    lost, shards = count - len(rows), -(-count // SHARD_FILES)
    doubled = sum(times > 1 for times in rows.values())
    said = ended["stdout"].strip()
    took = time.monotonic() - begun
    return (
        f"killed when {told['when']} of {shards} shards were done; exit status {ended['status']}: {said}; "
        f"{lost} lost, {doubled} doubled; {took:.0f} s with the cluster's start"
    )


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
