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


def wait_until_serving(daemon: subprocess.Popen[str]) -> None:
    assert daemon.stdout is not None
    while "serving" not in daemon.stdout.readline():
        assert daemon.poll() is None


def journal(root: Path) -> list[dict]:
    """Return all whole lines: a daemon that runs may be writing the last one."""
    return [orjson.loads(raw) for path in root.glob("*log/*.jsonl") for raw in path.read_bytes().split(b"\n")[:-1]]


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


def test_the_daemon_loads_tensorflow_without_what_only_training_needs(tmp_path):
    heavy = ("tensorflow", "keras", "sklearn", "matplotlib", "pandas")
    code = (
        f"import sys; from daemon.command_line import main; status = main(['once']); "
        f"print(status, [name for name in {heavy} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=clean(), capture_output=True, text=True,
                          timeout=DEADLINE, check=False)  # fmt: skip
    assert done.stdout.splitlines()[-1] == "0 ['tensorflow']", done.stderr


def test_a_running_daemon_learns_by_itself_from_what_a_person_moves(tmp_path):
    options = ("--set=daemon.learn_seconds=1", "--tray", "t")
    pictures.write_picture(tmp_path / "one.jpg")
    with subprocess.Popen(command("run", *options), cwd=tmp_path, env=clean(), stdout=subprocess.DEVNULL) as daemon:
        try:
            until((tmp_path / "t/inbox").exists)
            (tmp_path / "one.jpg").rename(tmp_path / "t/inbox/one.jpg")
            until(lambda: [line for line in journal(tmp_path) if line["event"] == "sorted"])
            [place] = until(lambda: list((tmp_path / "t").glob("[hs]*/one.jpg")))
            other = {"happy": "sad", "sad": "happy"}[place.parent.name]
            place.rename(tmp_path / "t" / other / "one.jpg")
            [example] = until(lambda: list((tmp_path / "training" / other).glob("[!.]*.jpg")))
            assert example.read_bytes() == (tmp_path / "t" / other / "one.jpg").read_bytes()
            [line] = until(lambda: [line for line in journal(tmp_path) if line["event"] == "corrected"])
            assert (line["label"], line["predicted"], line["model"]) == (other, place.parent.name, 1)
            assert daemon.poll() is None
        finally:
            daemon.send_signal(signal.SIGTERM)
    assert daemon.returncode == 0


def test_run_sorts_what_arrives_and_stops_on_sigterm(tmp_path):
    with subprocess.Popen(
        command("run"), cwd=tmp_path, env=clean(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as daemon:
        try:
            wait_until_serving(daemon)
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


def test_a_running_daemon_takes_a_new_champion_and_refuses_a_broken_one(tmp_path):
    models, inbox = tmp_path / "models", tmp_path / "tray/inbox"
    bundle.install_shipped(models)
    for _ in range(2):
        bundle.publish(models, models / "1", bundle.read_manifest(models, 1))
    (models / "3/model.tflite").write_bytes(b"broken")
    with subprocess.Popen(
        command("run"), cwd=tmp_path, env=clean(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as daemon:
        try:
            wait_until_serving(daemon)
            for champion, event in ((2, "model_loaded"), (3, "model_refused")):
                bundle.promote(models, champion)
                until(lambda event=event: [line for line in journal(tmp_path) if line["event"] == event])
                pictures.write_picture(inbox / f"{champion}.jpg")
                until(lambda name=f"{champion}.jpg": not (inbox / name).exists())
            assert "; model 3 refused: " in moodbox(tmp_path, "status").stdout
        finally:
            daemon.send_signal(signal.SIGTERM)
            _, errors = daemon.communicate(timeout=DEADLINE)
    assert daemon.returncode == 0, errors
    assert all(orjson.loads(line) for line in errors.splitlines()), "stderr holds JSON lines and nothing else"
    assert [line["model"] for line in journal(tmp_path) if line["event"] == "sorted"] == [2, 2]


def until(condition):
    end = time.monotonic() + DEADLINE
    while not (found := condition()):
        assert time.monotonic() < end
        time.sleep(0.01)  # polling with a deadline
    return found


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
