"""The whole circle, as a person would go it: sort, put right by hand, learn, retrain, swap in a flood, roll back."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import orjson
import pytest

import portraits
from daemon.events import Line
from daemon.journal import owners, read, segments
from daemon_parts import wait_for

SIDE = 160
SECONDS = 120.0  # for one step, on a machine that does other things, too


class Place:
    """A person's installation: its folders, its commands, its daemon."""

    def __init__(self, root: Path) -> None:
        self.root, self.tray, self.log = root, root / "tray", root / "log"
        roots = {"tray": "tray", "journal": "log", "models": "models", "dataset": "training"}
        self.options = [f"--set={table}.root={root / name}" for table, name in roots.items()]
        self.options += [
            f"--set=trainer.runs={root / 'runs'}",
            "--set=daemon.name=d",
            "--set=tray.settle_seconds=0.1",
            "--set=daemon.learn_seconds=0",
        ]
        self.drawn: dict[str, str] = {}  # what each photo really is, by name

    def train(self, *arguments: str) -> str:
        return self.command("trainer", *arguments)

    def command(self, package: str, *arguments: str) -> str:
        done = subprocess.run([sys.executable, "-m", package, *arguments, *self.options], cwd=self.root,
                              capture_output=True, text=True, timeout=600, check=False)  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def drop(self, number: int, label: str) -> None:
        """Drop a photo, as a file manager does: all of it, under another name first."""
        name = f"{label}{number}.png"
        self.drawn[name] = label
        hidden = self.tray / "inbox" / f".{name}"
        portraits.photo(number, smiles=label == "happy", side=SIDE).save(hidden, "PNG")
        os.rename(hidden, self.tray / "inbox" / name)

    def lines(self) -> list[Line]:
        return [line for owner in owners(self.log) for _, path in segments(self.log, owner) for line in read(path)]

    def sorted_by(self) -> dict[str, tuple[str, int | None]]:
        """Return where each photo was put, and by which model; each exactly once."""
        lines = [line for line in self.lines() if line.event in ("sorted", "review", "rejected")]
        assert max(Counter(line.file for line in lines).values(), default=1) == 1
        assert all(line.event == "sorted" for line in lines)
        return {line.file or "": (line.label or "", line.model) for line in lines}

    def models_loaded(self) -> list[int | None]:
        return [line.model for line in self.lines() if line.event in ("started", "model_loaded")]

    def champion(self) -> int:
        return int(os.readlink(self.root / "models/champion"))

    def decisions(self) -> list[dict]:
        return [orjson.loads(line) for line in (self.root / "models/decisions.jsonl").read_bytes().splitlines()]

    def delivered(self) -> list[Path]:
        """Return each photo that is in its folder: a little later than its line is written."""
        return [path for path in self.tray.glob("*/*.png") if path.parent.name in ("happy", "sad")]

    def put_right(self) -> int:
        """Move each photo that is in the wrong folder to the right one; return how many were."""
        wrong = [path for path in self.delivered() if self.drawn[path.name] != path.parent.name]
        for path in wrong:
            os.rename(path, self.tray / self.drawn[path.name] / path.name)
        return len(wrong)

    @contextlib.contextmanager
    def daemon(self):
        with (self.root / "daemon.log").open("ab") as said:
            process = subprocess.Popen([sys.executable, "-m", "daemon", "run", *self.options], cwd=self.root,
                                       stdout=said, stderr=said)  # fmt: skip
        try:
            wait_for(lambda: process.poll() is not None or self.models_loaded(), SECONDS)
            yield process
            assert process.poll() is None, (self.root / "daemon.log").read_text()
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=60)

    @contextlib.contextmanager
    def flood(self, first: int):
        """Photos arrive without a pause, meanwhile."""
        over = threading.Event()

        def pour() -> None:
            for number in range(first, first + 100_000):
                self.drop(number, ("happy", "sad")[number % 2])
                if over.wait(0.1):  # the pace: the daemon keeps up, and leaves the training some of the machine
                    return

        thread = threading.Thread(target=pour)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


@pytest.mark.timeout(900)
def test_the_whole_circle(tmp_path):
    place = Place(tmp_path)
    portraits.folder(tmp_path / "first", 60, side=SIDE)
    little = ("--set=trainer.epochs=1", "--set=trainer.fine_tune=false", '--set=trainer.views=["scene"]',
              "--set=trainer.test_fraction=0.3")  # fmt: skip
    place.train("fit", "--data", str(tmp_path / "first"), *little)
    assert place.champion() == 1

    with place.daemon():
        for number in range(1000, 1150):
            for label in ("happy", "sad"):
                place.drop(number, label)
        wait_for(lambda: len(place.delivered()) == 300, SECONDS)
        wrong = place.put_right()
        assert wrong >= 20, "the first model is too good for this test"
        assert _learned(place.command("daemon", "learn")) == wrong
        assert place.command("daemon", "learn") == "nothing new to learn\n"
        assert f"corrected {wrong} of 300" in place.command("daemon", "status")

        with place.flood(2000):
            said = place.train("retrain")
            assert "promoted: " in said
            wait_for(lambda: place.models_loaded()[-1] == 2, SECONDS)
            seen = len(place.sorted_by())
            wait_for(lambda: len(place.sorted_by()) > seen + 50, SECONDS)
        wait_for(lambda: len(place.sorted_by()) == len(place.drawn), SECONDS)

        promoted = place.decisions()[-1]
        was, now = promoted["balanced_accuracy"]
        assert (promoted["event"], place.champion()) == ("promoted", 2)
        assert now > was
        right = Counter((model, place.drawn[file] == label) for file, (label, model) in place.sorted_by().items())
        assert {model for model, _ in right} == {1, 2}
        shares = {model: right[model, True] / (right[model, True] + right[model, False]) for model in (1, 2)}
        assert shares[2] > shares[1]
        assert "nothing new" in place.train("retrain")

        for path in sorted(tmp_path.glob("tray/*/*1[01]??.png")):  # somebody's joke: right ones, to the wrong folder
            if path.parent.name == place.drawn[path.name]:
                os.rename(path, place.tray / {"happy": "sad", "sad": "happy"}[path.parent.name] / path.name)
        assert "learned" in place.command("daemon", "learn")
        assert "refused: " in place.train("retrain")
        assert place.champion() == 2

        assert "champion: bundle 1 (was 2)" in place.train("rollback")
        wait_for(lambda: place.models_loaded()[-1] == 1, SECONDS)
        assert "nothing new" in place.train("retrain")
        place.drop(9999, "happy")
        wait_for(lambda: "happy9999.png" in place.sorted_by(), SECONDS)
        assert place.sorted_by()["happy9999.png"][1] == 1
    assert "is_good" in place.command("daemon", "accounts", "--json")


def _learned(said: str) -> int:
    return sum(int(number) for number in re.findall(r"learned (\d+)", said))
