"""The installed commands with everything real: TensorFlow, LiteRT, watchdog, the model that ships."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import orjson
import pytest

import pictures
from trainer import bundle

pytestmark = pytest.mark.tf
DEADLINE = 120.0
SUFFIXES = ("jpg", "png", "gif", "bmp", "webp", "tiff", "avif", "heic")


def moodbox(root: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments),
        cwd=root,
        env=clean() | environment,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )


def command(*arguments: str) -> list[str]:
    installed = Path(sys.executable).with_name("moodbox")
    return [*([str(installed)] if installed.exists() else [sys.executable, "-m", "daemon"]), *arguments]


def clean() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("MOODBOX_")}


def journal(root: Path) -> list[dict]:
    return [orjson.loads(raw) for path in root.glob("*log/*.jsonl") for raw in path.read_bytes().splitlines()]


def drop_all(inbox: Path) -> int:
    (inbox / "deep/er").mkdir(parents=True)
    for suffix in SUFFIXES:
        pictures.write_picture(inbox / f"a.{suffix}")
        pictures.write_picture(inbox / "deep/er" / f"b.{suffix}")
    (inbox / "broken.jpg").write_bytes(pictures.picture("JPEG")[:300])
    (inbox / "text.jpg").write_text("no picture")
    os.mkfifo(inbox / "pipe.jpg")
    (inbox / "link.jpg").symlink_to("/etc/passwd")
    for name in ("broken.jpg", "text.jpg"):
        os.utime(inbox / name, (1e9, 1e9))
    return 2 * len(SUFFIXES) + 4


def test_once_sorts_every_format_and_rejects_what_is_none(tmp_path):
    dropped = drop_all(tmp_path / "t/inbox")
    (tmp_path / "t/.moodbox").touch()
    done = moodbox(tmp_path, "once", "--tray", "t")
    assert (done.returncode, done.stderr.count("Traceback")) == (0, 0), done.stderr
    decisions = [line for line in journal(tmp_path) if line["event"] in ("sorted", "rejected")]
    assert len(decisions) == dropped
    rejected = {line["file"]: line["error_code"] for line in decisions if line["event"] == "rejected"}
    assert rejected == {
        "broken.jpg": "truncated",
        "text.jpg": "not_an_image",
        "pipe.jpg": "fifo",
        "link.jpg": "symlink",
    }
    assert all(
        (tmp_path / "t" / line["destination"]).is_symlink() or (tmp_path / "t" / line["destination"]).exists()
        for line in decisions
    )
    assert not [p for p in (tmp_path / "t/inbox").rglob("*") if not p.is_dir()]
    assert {line["destination"].split("/")[1] for line in decisions if line["file"].startswith("deep/")} == {"deep"}
    check_parity(tmp_path, [line for line in decisions if line["event"] == "sorted"])


def check_parity(root: Path, decisions: list[dict]) -> None:
    """What the daemon journalled is what the decoder and the bundle give for the delivered file: no skew."""
    loaded = bundle.load(root / "models")
    eye, predict = loaded.eye(), loaded.predictor()
    for line in decisions:
        path = root / "t" / line["destination"]
        scores = predict(eye(path)).scores
        assert np.allclose(list(line["scores"].values()), scores, atol=1e-5), line["file"]
        assert line["label"] == bundle.decide(loaded.manifest, scores).label


def test_run_sorts_what_arrives_and_stops_on_sigterm(tmp_path):
    with subprocess.Popen(
        command("run"), cwd=tmp_path, env=clean(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as daemon:
        try:
            assert daemon.stdout is not None
            while "serving" not in daemon.stdout.readline():
                assert daemon.poll() is None
            inbox = tmp_path / "tray/inbox"
            pictures.write_picture(tmp_path / "one.jpg")
            (tmp_path / "one.jpg").rename(inbox / "one.jpg")
            pictures.write_picture(inbox / "two.png")
            end = time.monotonic() + DEADLINE
            while len([line for line in journal(tmp_path) if line["event"] == "sorted"]) < 2:
                assert time.monotonic() < end
                time.sleep(0.01)  # polling with a deadline
            assert "running" in moodbox(tmp_path, "status").stdout
        finally:
            daemon.send_signal(signal.SIGTERM)
            _, errors = daemon.communicate(timeout=DEADLINE)
    assert daemon.returncode == 0, errors
    assert all(orjson.loads(line) for line in errors.splitlines()), "stderr holds JSON lines and nothing else"
    assert journal(tmp_path)[-1]["event"] == "stopped"
    assert "not running" in moodbox(tmp_path, "status").stdout


@pytest.mark.parametrize(
    ("arguments", "environment", "named"),
    [
        (("once", "--set", "tray.rot=x"), {}, "tray.rot: no such setting; did you mean root?"),
        (("status", "--set", "daemon.batch_size=many"), {}, "daemon.batch_size"),
        (
            ("status",),
            {"MOODBOX_TRAY__ROOTS": "x"},
            "MOODBOX_TRAY__ROOTS: no such setting; did you mean MOODBOX_TRAY__ROOT?",
        ),
        (("status",), {"MOODBOX_TRAI__ROOT": "x"}, "MOODBOX_TRAI__ROOT"),
        (("run", "--settings", "missing.toml"), {}, "missing.toml"),
        (("run", "--tray", "file"), {}, "is a file"),
        (("run", "--tray", "full"), {}, "not a tray"),
    ],
)
def test_bad_input_is_one_line_that_names_it(tmp_path, arguments, environment, named):
    (tmp_path / "file").touch()
    (tmp_path / "full").mkdir()
    pictures.write_picture(tmp_path / "full" / "photo.jpg")
    done = moodbox(tmp_path, *arguments, **environment)
    assert done.returncode == 2
    assert named in done.stderr
    assert len([line for line in done.stderr.splitlines() if "moodbox:" in line]) == 1
    assert "Traceback" not in done.stderr


def test_a_damaged_bundle_is_refused_in_one_line(tmp_path):
    bundle.install_shipped(tmp_path / "models")
    model = tmp_path / "models/1/model.tflite"
    model.write_bytes(model.read_bytes()[:-1] + b"\0\0")
    done = moodbox(tmp_path, "once")
    assert done.returncode == 2
    assert "model.tflite" in done.stderr
    assert "Traceback" not in done.stderr
