"""Several machines on one tray: each a mount, network and host name of its own, with SIGKILLs; none lost, none doubled.

The machines see the shared folder at different paths, and poll: no event of another machine reaches them.
"""

import hashlib
import os
import random
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import orjson
import pytest
from PIL import Image

from daemon import command_line as moodbox
from daemon_parts import wait_for
from machine import skip
from test_crash import check, lines

MACHINES = ("attic", "cellar", "shed")
FILES, KILLS, DEADLINE = 900, 24, 120.0
SCRIPT = """
mount --bind {shared} {root} && mount --bind {machine_id} /etc/machine-id && hostname {name} || exit 77
exec {python} {stand_in} {root} polled
"""


class Machine:
    """A daemon on a machine of its own, started again after each death."""

    def __init__(self, name: str, base: Path) -> None:
        self.root = base / name
        self.root.mkdir()
        (base / f"{name}.id").write_text(f"{name}\n")
        places = {
            "shared": base / "shared", "root": self.root, "machine_id": base / f"{name}.id", "name": name,
            "python": sys.executable, "stand_in": Path(__file__).with_name("stand_in.py"),
        }  # fmt: skip
        script = SCRIPT.format(**{key: shlex.quote(str(value)) for key, value in places.items()})
        self.command = ["unshare", "--mount", "--net", "--uts", "sh", "-c", script]
        self.process = subprocess.Popen(self.command)

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        assert self.process.wait() == -signal.SIGKILL, "it had ended before"
        self.process = subprocess.Popen(self.command)

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(timeout=30)


@pytest.fixture
def shared(tmp_path):
    if subprocess.run(["unshare", "--mount", "--net", "--uts", "true"], check=False).returncode:
        skip("needs root and namespaces (unshare)")
    for folder in ("shared/tray/inbox", "shared/log"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "shared/tray/.moodbox").touch()
    return tmp_path / "shared"


@pytest.fixture
def machines(shared):
    running = [Machine(name, shared.parent) for name in MACHINES]
    yield running
    for machine in running:
        machine.process.kill()
        machine.process.wait()


def drop(shared: Path, numbers: range) -> dict[str, str]:
    """Drop files that all differ; return sha256 → place."""
    dropped = {}
    for number in numbers:
        shade = (30, 220)[number % 2]
        place = shared / "tray" / "inbox" / f"day{number % 5}" / f"{number}.png"
        place.parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8), (shade, number // 256, number % 256)).save(shared / "new.png")
        dropped[hashlib.sha256((shared / "new.png").read_bytes()).hexdigest()] = (
            f"inbox/{place.parent.name}/{place.name}"
        )
        os.rename(shared / "new.png", place)
    return dropped


def is_done(shared: Path) -> bool:
    walks = (os.walk(shared / "tray" / folder) for folder in ("inbox", ".work"))
    return not any(set(names) - {"lock"} for walk in walks for _, _, names in walk)


def workers(shared: Path) -> dict[str, int]:
    """How many photos each has sorted, by the name of its journal."""
    found = Counter[str]()
    for path in (shared / "log").glob("*.jsonl"):
        found[path.name.rpartition("-")[0]] += path.read_bytes().count(b'"event":"sorted"')
    return {name: count for name, count in found.items() if count}


def ask(shared: Path, *arguments: str) -> int:
    own = [f"--set=tray.root={shared}/tray", f"--set=journal.root={shared}/log", f"--set=models.root={shared}/models"]
    (shared.parent / "none.toml").touch()
    return moodbox.main([*arguments, "--settings", str(shared.parent / "none.toml"), *own])


@pytest.mark.timeout(300)
def test_several_machines_share_a_tray_and_die_and_nothing_is_lost_or_doubled(shared, machines, capsysbinary):
    rng, before = random.Random(9), dict[str, str]()
    wait_for(lambda: len(list((shared / "log").glob("*-1.jsonl"))) == len(MACHINES), DEADLINE)
    wave = FILES // KILLS
    for number in range(KILLS):
        before |= drop(shared, range(number * wave, (number + 1) * wave))
        time.sleep(rng.random() * 0.3)  # not a wait for anything: the kill comes at a random moment
        rng.choice(machines).kill()
    wait_for(lambda: is_done(shared), DEADLINE)
    ends = time.monotonic() + DEADLINE
    while len(workers(shared)) < len(MACHINES):  # on a busy machine some are killed before they find any work
        assert time.monotonic() < ends, f"one of them did nothing: {workers(shared)}"
        before |= drop(shared, range(len(before), len(before) + wave))
        wait_for(lambda: is_done(shared), DEADLINE)
    for machine in machines:
        machine.stop()
    check(shared, before)

    assert ask(shared, "accounts", "--deep") == 0
    capsysbinary.readouterr()
    ask(shared, "status", "--json")
    told = orjson.loads(capsysbinary.readouterr().out)
    assert sum(told["totals"]["sorted"].values()) == len(before) >= KILLS * wave
    assert sum(workers(shared).values()) == len(before)
    assert {line["source"] for line in lines(shared) if line["event"] == "started"} == {
        str(machine.root / "tray") for machine in machines
    }
