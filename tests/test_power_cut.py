"""Power cuts on a real ext4: copies of the disk at random moments while the daemon sorts, each mounted and recovered.

SIGKILL keeps the page cache; a copy of the image holds only what had reached the disk.
"""

import contextlib
import hashlib
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

import power_cut
from daemon_parts import wait_for

HERE = Path(__file__).parent
CUTS, DEADLINE = 40, 60.0
pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("mkfs.ext4") or not Path("/dev/loop-control").exists(),
    reason="needs root, mkfs.ext4 and loop devices",
)


MAKE = {
    "ext4": (24, ["mkfs.ext4", "-q", "-F", "-b", "1024", "-J", "size=4"]),
    "xfs": (300, ["mkfs.xfs", "-q", "-f"]),  # the smallest that there is
}


@contextlib.contextmanager
def disk(kind: str, image: Path, root: Path):
    """A small file system, mounted at `root`; yields its loop device's name."""
    megabytes, make = MAKE[kind]
    with image.open("wb") as file:
        file.truncate(megabytes * 1024 * 1024)
    subprocess.run([*make, str(image)], check=True)
    root.mkdir()
    done = subprocess.run(["losetup", "--find", "--show", str(image)], check=True, capture_output=True, text=True)
    device = done.stdout.strip()
    try:
        subprocess.run(["mount", device, str(root)], check=True)
        yield Path(device).name
    finally:
        subprocess.run(["umount", "-l", str(root)], check=True)
        subprocess.run(["losetup", "--detach", device], check=True)


@contextlib.contextmanager
def process(*command: str, **options):
    running = subprocess.Popen([*command], text=True, **options)
    try:
        yield running
    finally:
        running.send_signal(signal.SIGCONT)
        running.kill()
        running.communicate()


def cut(image: Path, copy: Path, loop: str) -> None:
    """Copy the disk as it is at one moment: again where anything was written meanwhile."""
    stat = Path(f"/sys/block/{loop}/stat")
    while True:
        before = stat.read_text().split()
        copy.write_bytes(image.read_bytes())  # no search for holes, which may not know of the newest bytes
        if stat.read_text().split() == before and before[8] == "0":  # nothing was on its way
            return


class Producer:
    """Drops pictures that all differ, some of them synced first; the others' bytes may still be in memory."""

    def __init__(self, root: Path, rng: random.Random) -> None:
        self._inbox, self._outside, self._rng = root / "tray/inbox", root / "outside", rng
        self._outside.mkdir()
        self._number = itertools.count()
        self.synced: list[str] = []

    def drop(self) -> None:
        number = next(self._number)
        path = self._outside / f"photo{number % 7}.png"  # few names: clashes
        shade = self._rng.choice((20, 230))
        Image.new("RGB", (16, 16), (shade, shade, number % 256)).save(path, pnginfo=None, compress_level=number % 9)
        with path.open("ab") as file:
            file.write(f"{number}".encode() * self._rng.randint(1, 200))  # behind the picture's end: its bytes differ
            file.flush()
            if is_synced := self._rng.random() < 0.5:
                os.fsync(file.fileno())
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        target = self._inbox / f"day{number % 3}"
        target.mkdir(exist_ok=True)
        path.rename(target / f"{number}-{path.name}" if self._rng.random() < 0.5 else target / path.name)
        if is_synced:
            for folder in (self._outside, target, self._inbox):
                fd = os.open(folder, os.O_RDONLY)
                os.fsync(fd)
                os.close(fd)
            self.synced.append(digest)


def delivered(root: Path) -> list[str]:
    """The ids whose file is at its place in the eyes of those who use the disk: those lines are promised."""
    raw = [p.read_bytes() for p in (root / "log").glob("*.jsonl")]
    whole = [json.loads(line) for data in raw for line in data.split(b"\n")[:-1] if line]
    return [ident for ident, place in power_cut.places(whole).items() if (root / "tray" / place).exists()]


def campaign(tmp_path: Path, broken: str, cuts: int, seed: int, kind: str = "ext4") -> tuple[int, list[str]]:
    """Cut the power `cuts` times, or until something is wrong; returns how often, and what was wrong."""
    rng = random.Random(seed)
    image, root = tmp_path / "disk.img", tmp_path / "disk"
    with disk(kind, image, root) as loop:
        (root / "tray/inbox").mkdir(parents=True)
        (root / "tray/.moodbox").touch()
        (root / "log").mkdir()
        os.sync()
        producer = Producer(root, rng)
        python = [sys.executable, str(HERE / "stand_in.py"), str(root), broken]
        judge = ["unshare", "--mount", sys.executable, str(HERE / "power_cut.py"), str(root)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        with process(*python) as daemon, process(*judge, **pipes) as judging:
            producer.drop()
            wait_for(lambda: delivered(root), DEADLINE)  # else all cuts may come while it still starts
            for number in range(1, cuts + 1):
                for _ in range(rng.randint(1, 6)):
                    producer.drop()
                time.sleep(rng.random() * 0.03)  # not a wait for anything: the cut comes at a random moment
                assert daemon.poll() is None
                copy = tmp_path / f"copy{number}.img"  # a new one each time: a loop device may still cache the old
                daemon.send_signal(signal.SIGSTOP)
                promised = {"delivered": delivered(root), "synced": producer.synced}
                cut(image, copy, loop)
                daemon.send_signal(signal.SIGCONT)
                judging.stdin.write(json.dumps({"image": str(copy), "kind": kind, **promised}) + "\n")
                judging.stdin.flush()
                if found := json.loads(judging.stdout.readline()):
                    return number, found
                copy.unlink()
            return cuts, []


def test_a_power_cut_at_any_moment_loses_nothing_that_was_promised(tmp_path):
    cuts, found = campaign(tmp_path, "", CUTS, seed=1)
    assert found == [], f"after {cuts} cuts"
    assert cuts == CUTS


@pytest.mark.skipif(not shutil.which("mkfs.xfs"), reason="needs mkfs.xfs (xfsprogs)")
def test_a_power_cut_on_xfs_loses_nothing_either(tmp_path):
    cuts, found = campaign(tmp_path, "", 15, seed=3, kind="xfs")
    assert found == [], f"after {cuts} cuts"


@pytest.mark.parametrize("broken", ["no-sync", "no-fsync"])
def test_the_cuts_show_what_each_sync_is_for(tmp_path, broken):
    """Without the sync before the line, or the fsync of the line before delivery, the test above would be red."""
    _, found = campaign(tmp_path, broken, CUTS, seed=2)
    assert found
