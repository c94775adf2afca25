"""SIGKILL at every step of the protocol, again during the recovery, and at random; nothing may be lost or doubled."""

import hashlib
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import orjson
import pytest
from PIL import Image

HERE = Path(__file__).parent


class Daemons:
    """A process that runs the stand-in daemon again and again, each time in a fork of its own."""

    def __init__(self) -> None:
        command = [sys.executable, str(HERE / "stand_in.py")]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def run(self, root: Path, kill_at: int = 0) -> bool:
        """Run `once`; True where it was killed, False where it ended well."""
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(f"{root} {kill_at}\n")
        self._process.stdin.flush()
        status = int(self._process.stdout.readline())
        assert status == 0 or (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL), status
        return status != 0

    def close(self) -> None:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.close()
        self._process.wait(timeout=30)
        self._process.stdout.close()


@pytest.fixture(scope="module")
def daemons():
    running = Daemons()
    yield running
    running.close()


def drop(root: Path, seed: int = 0, count: int = 6) -> dict[str, str]:
    """Fill a new tray with files that all differ; some of their names are taken already. Returns sha256 → name."""
    rng = random.Random(seed)
    for folder in ("inbox/trip", "happy", "sad", "rejected"):
        (root / "tray" / folder).mkdir(parents=True)
    (root / "tray" / ".moodbox").touch()
    for index in range(count):
        shade = rng.choice((30, 220))
        where = root / "tray" / "inbox" / ("trip" if index % 3 == 0 else "") / f"photo{index}.png"
        Image.new("RGB", (8, 8), (shade, shade, index)).save(where)
    (root / "tray" / "inbox" / "notes.txt").write_text(f"no picture {seed}")
    os.utime(root / "tray" / "inbox" / "notes.txt", (1e9, 1e9))
    for folder in ("happy", "sad"):
        (root / "tray" / folder / "photo1.png").write_text(f"was in {folder} before")
    return everything(root)


def everything(root: Path) -> dict[str, str]:
    """Every file of the tray, wherever it is: sha256 → path. Fails where two files have the same bytes."""
    found: dict[str, str] = {}
    for path in (root / "tray").rglob("*"):
        if path.is_file() and path.name not in (".moodbox", "lock"):
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            assert digest not in found, f"{path} and {found[digest]} are the same file"
            found[digest] = str(path.relative_to(root / "tray"))
    return found


def lines(root: Path) -> list[dict]:
    texts = [path.read_bytes() for path in sorted((root / "log").glob("*.jsonl"))]
    return [orjson.loads(raw) for text in texts for raw in text.split(b"\n") if raw]


def check(root: Path, before: dict[str, str]) -> None:
    """The invariants of docs/design.md, section 3, after a run that ended well."""
    after = everything(root)
    assert set(after) == set(before), "a file was lost, changed or doubled"
    assert not [p for p in after.values() if p.startswith(("inbox/", ".work/"))], after
    journal = lines(root)
    decisions = [line for line in journal if line["event"] in ("sorted", "review", "rejected")]
    assert Counter(line["id"] for line in decisions).most_common(1)[0][1] == 1, "two decisions for one id"
    dropped = {digest for digest, place in before.items() if place.startswith("inbox/")}
    assert Counter(line["sha256"] for line in decisions) == Counter(dropped), "not one decision for each file"
    places = {line["id"]: line["destination"] for line in decisions}
    places |= {line["id"]: line["destination"] for line in journal if line["event"] == "redirected"}
    assert {line["sha256"]: places[line["id"]] for line in decisions} == {d: after[d] for d in dropped}
    assert {d: p for d, p in before.items() if d not in dropped} == {d: after[d] for d in before if d not in dropped}


def test_a_kill_at_every_step_loses_nothing(daemons, tmp_path):
    kills = 0
    for step in range(1, 2000):
        root = tmp_path / str(step)
        before = drop(root)
        if not daemons.run(root, step):
            check(root, before)
            break
        kills += 1
        assert set(everything(root)) == set(before), f"lost by the kill at step {step}"
        assert not daemons.run(root)
        check(root, before)
    assert kills > 100, "the steps were not counted"


def test_kills_during_recovery_lose_nothing(daemons, tmp_path):
    rng = random.Random(1)
    kills = 0
    for trial in range(150):
        root = tmp_path / str(trial)
        before = drop(root, seed=trial, count=rng.randint(1, 9))
        while daemons.run(root, rng.randint(1, 120)):
            kills += 1
            assert set(everything(root)) == set(before)
        check(root, before)
    assert kills > 150
