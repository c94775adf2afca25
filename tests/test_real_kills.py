"""SIGKILL of the real daemon, TensorFlow and LiteRT included, while files are in flight; nothing is lost or doubled."""

import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

import pictures
from test_crash import check, everything
from test_moodbox import DEADLINE, clean, command

pytestmark = pytest.mark.tf
KILLS = 20


def decisions(root: Path) -> int:
    """How many there are; the last line may be half written."""
    return sum(path.read_bytes().count(b'"event":"sorted"') for path in root.glob("log/*.jsonl"))


def drop(root: Path, count: int) -> None:
    for number in range(count):
        data = pictures.picture("JPEG", 400, 300) + str(number).encode()  # behind the end marker: the bytes differ
        (root / "tray/inbox" / f"day{number % 3}").mkdir(parents=True, exist_ok=True)
        (root / "tray/inbox" / f"day{number % 3}" / f"{number}.jpg").write_bytes(data)


@pytest.mark.timeout(600)
def test_kills_of_the_real_daemon_in_flight_lose_nothing(tmp_path):
    rng = random.Random(7)
    (tmp_path / "tray").mkdir()
    (tmp_path / "tray/.moodbox").touch()
    drop(tmp_path, 60 * KILLS)
    before = everything(tmp_path)
    kills = 0
    quiet = {"cwd": tmp_path, "env": clean(), "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    while kills < KILLS:
        done = decisions(tmp_path)
        with subprocess.Popen(command("once"), **quiet) as daemon:
            end = time.monotonic() + DEADLINE
            while decisions(tmp_path) == done:
                assert daemon.poll() is None
                assert time.monotonic() < end
                time.sleep(0.005)  # polling with a deadline
            time.sleep(rng.random() * 0.2)  # not a wait for anything: the kill comes at a random moment
            daemon.send_signal(signal.SIGKILL)
        kills += any((tmp_path / "tray/.work").rglob("*.jpg"))  # only those that hit files in flight count
        assert set(everything(tmp_path)) == set(before)
    assert subprocess.run(command("once"), **quiet, timeout=DEADLINE, check=False).returncode == 0
    check(tmp_path, before)
