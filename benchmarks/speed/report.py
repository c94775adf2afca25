"""What was measured, as a page of tables and a picture, with the machine that it was measured on."""

import os
import platform
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from matplotlib.figure import Figure
from pydantic import TypeAdapter

from benchmarks.speed.idle import Idle
from benchmarks.speed.latency import Latency
from benchmarks.speed.scale import Scale
from benchmarks.speed.throughput import CONTESTANTS, COUNTS, Speed
from benchmarks.speed.training import Training

LIBRARIES = ("tensorflow", "ai-edge-litert", "pillow", "opencv-python-headless")
STAGES = ("photos read", "batches of features", "batches of augmented features", "head", "fine_tune")


@dataclass
class Found:
    """Everything that was measured; what was not is empty. `taken` tells the day and the machine of each part."""

    speeds: dict[str, dict[str, Speed]] = field(default_factory=dict)
    latencies: dict[str, Latency] = field(default_factory=dict)
    scales: list[Scale] = field(default_factory=list)
    several: dict[int, float] = field(default_factory=dict)
    idle: Idle | None = None
    trainings: dict[str, dict[str, Training]] = field(default_factory=dict)
    taken: dict[str, str] = field(default_factory=dict)


_FOUND = TypeAdapter(Found)


def read(file: Path) -> Found:
    """Return what was measured before; nothing where the file is not there."""
    return _FOUND.validate_json(file.read_bytes()) if file.exists() else Found()


def write(found: Found, folder: Path) -> None:
    """Write what was measured (results.json), the page (RESULTS.md) and the picture (RESULTS.png)."""
    (folder / "results.json").write_bytes(_FOUND.dump_json(found, indent=1) + b"\n")
    (folder / "RESULTS.md").write_text("\n".join([*page(found), "![](RESULTS.png)", ""]))
    plot(found, folder / "RESULTS.png")


def now_and_here() -> str:
    """Return the day and the machine, as `Found.taken` has them."""
    return f"{datetime.now(UTC):%Y-%m-%d}, {_machine()}"


def page(found: Found) -> Iterator[str]:
    """Yield the lines of the page."""
    yield "# How fast Moodbox is\n"
    yield "By `make bench`. Machines differ: trust the ratios; the contestants of a part were measured in one run, in "
    yield "turn. Medians.\n"
    for taken in sorted(set(found.taken.values())):
        yield f"- {taken}: {', '.join(part for part, own in found.taken.items() if own == taken)}"
    yield ""
    if found.speeds:
        yield from _throughput(found.speeds)
    if found.latencies:
        yield "## Latency: a photo of 640x480 dropped, until it is in its folder (`settle_seconds` taken off)\n"
        rows = ([how, f"{d.p50:.0f}", f"{d.p99:.0f}", f"{d.worst:.0f}"] for how, d in found.latencies.items())
        yield from table(["how", "p50, ms", "p99, ms", "worst, ms"], rows)
    if found.scales:
        yield "## Scale: so many tiny files wait (`moodbox once`)\n"
        rows = ([f"{s.files:,}", f"{s.rate:,.0f}", f"{s.cpu_ms:.2f}", f"{s.first:.1f}", f"{s.peak:,.0f}"]
                for s in found.scales)  # fmt: skip
        names = ["files", "files/s", "CPU per file, ms", "first delivered, s after READY", "peak memory, MiB"]
        yield from table(names, rows)
    if found.several:
        yield "## Several daemons on one tray, one core each (`daemon.threads = 1`)\n"
        alone = found.several[min(found.several)]
        rows = ([f"{count}", f"{rate:.0f}", f"{rate / alone:.2f}"] for count, rate in found.several.items())
        yield from table(["daemons", "photos of 640x480 a second", "against one"], rows)
    if found.idle is not None:
        yield from _idle(found.idle)
    if found.trainings:
        yield from _training(found.trainings)


def _throughput(speeds: Mapping[str, Mapping[str, Speed]]) -> Iterator[str]:
    yield "## Throughput: from the inbox to where photos belong, start-up left out\n"
    yield "`first`: what people write first (watchdog, cv2.imread, `predict` of one, shutil.move); `batches`: the same "
    yield "with `predict` of 32; both look at the scene alone. `limit`: decode and LiteRT on all cores, rename; "
    yield "no hash, no journal, no fsync. The shipped model looks at the scene and at faces; `scene alone` is the same "
    yield "without faces, so that all do the same work. In `moodbox`'s photos/s are the wait for `settle_seconds` and "
    yield f"its end, a second of each run of {COUNTS['moodbox']:,} photos (12 MP: a fourth of them).\n"
    rows = (
        [
            kind,
            name,
            f"{s.cpu_ms:.1f}",
            f"{s.cpu_ms / found['moodbox'].cpu_ms:.2f}",
            f"{s.rate:.0f}",
            f"{found['moodbox'].rate / s.rate:.1f}",
        ]
        for kind, found in speeds.items()
        for name, s in found.items()
    )
    yield from table(
        ["photos", "who", "CPU per photo, ms", "against moodbox", "photos/s", "moodbox is so many times faster"], rows
    )


def _idle(idle: Idle) -> Iterator[str]:
    yield "## Start, idle, status\n"
    yield from table(["what", "measured"], [
        ["READY after", f"{idle.ready:.1f} s ({idle.ready_cpu:.1f} s of CPU)"],
        ["memory then", f"{idle.memory:,.0f} MiB"],
        ["idle", f"{idle.cpu_percent:.3f} % of a core, {idle.wakeups:.1f} wake-ups a second"],
        ["`moodbox status`", f"{idle.status:.2f} s"],
        [f"the same, with a journal of {idle.lines:,} lines", f"{idle.status_million:.2f} s"],
    ])  # fmt: skip


def _training(trainings: Mapping[str, Mapping[str, Training]]) -> Iterator[str]:
    yield "## Training: the scene's network, on the same photos\n"
    yield "`plain Keras`: the guide to transfer learning, with the same backbone "
    yield "([plain_keras.py](speed/plain_keras.py)).\n"
    rows = (
        [photos, name, f"{t.seconds:.0f}", f"{t.cpu:.0f}", f"{t.accuracy:.1%}"]
        for photos, found in trainings.items()
        for name, t in found.items()
    )
    yield from table(["photos", "who", "seconds", "CPU, s", "right on held-out photos"], rows)
    for photos, found in trainings.items():
        for took in found.values():
            yield from _stages(photos, took)


def _stages(photos: str, took: Training) -> Iterator[str]:
    ends = [(stage, took.stages[stage]) for stage in STAGES if stage in took.stages]
    begins = [("start", 0.0), *ends]
    parts = [f"{stage} {end - begun:.0f} s" for (stage, end), (_, begun) in zip(ends, begins, strict=False)]
    if parts:
        yield f"{photos}: {', '.join(parts)}; the rest is export, measuring and the report.\n"


def table(names: Sequence[str], rows: Iterator[list[str]] | Sequence[list[str]]) -> Iterator[str]:
    """Yield a table in Markdown."""
    yield f"| {' | '.join(names)} |"
    yield f"| {' | '.join('---' for _ in names)} |"
    yield from (f"| {' | '.join(row)} |" for row in rows)
    yield ""


def plot(found: Found, file: Path) -> None:
    """Draw the CPU per photo of each contestant, and what many files cost."""
    figure = Figure(figsize=(11, 4), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    for number, name in enumerate(CONTESTANTS):
        at = [index + 0.2 * (number - 1.5) for index in range(len(found.speeds))]
        left.bar(at, [speeds[name].cpu_ms for speeds in found.speeds.values()], 0.18, label=name)
    left.set_xticks(range(len(found.speeds)), [kind.replace(", ", "\n") for kind in found.speeds])
    most = max((speed.cpu_ms for speeds in found.speeds.values() for speed in speeds.values()), default=1)
    left.set(yscale="log", ylabel="CPU per photo, ms (log)", title="Throughput: less is better", ylim=(1, 4 * most))
    left.legend(ncols=len(CONTESTANTS), loc="upper center")
    right.plot([s.files for s in found.scales], [s.cpu_ms for s in found.scales], "o-")
    right.set(xscale="log", xlabel="tiny files that wait", ylabel="CPU per file, ms", title="Scale: flat is better")
    right.set_ylim(0, 1.3 * max((s.cpu_ms for s in found.scales), default=1))
    figure.savefig(file, dpi=100)


def _machine() -> str:
    cores = len(os.sched_getaffinity(0))
    names = (line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
             if line.startswith("model name"))  # fmt: skip
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    disk = subprocess.run(["df", "--output=fstype", "/tmp"], capture_output=True, text=True, check=True).stdout.split()[
        -1
    ]
    installed = {d.name: d.version for d in metadata.distributions()}
    versions = ", ".join(f"{name} {installed[name]}" for name in LIBRARIES if name in installed)
    cpu = next(names, platform.machine())
    system = f"Linux {platform.release()}, Python {platform.python_version()}"
    return f"{cores} cores ({cpu}), {memory:.0f} GiB, {disk}, {system}, {versions}"
