"""moodbox backfill --apply: photos of a backfill into the tray, by renames or links; killed at every step."""

import errno
import hashlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import orjson
import pytest

from daemon import command_line as moodbox
from daemon import fs, rows, shards, storage, tray
from daemon.apply import KIND
from daemon.errand import errand
from daemon.events import Line
from daemon.shards import Manifest
from daemon_parts import files_in, lay
from test_crash import lines
from trainer.settings import load

PHOTOS = {"a.png": "happy", "trip/b.png": "sad", "trip/day 2/c.png": "happy", "d.png": "sad", "e.png": "happy"}


PHOTOS_OF: dict[str, bytes] = {}  # other bytes than usual


def data_of(name: str) -> bytes:
    return PHOTOS_OF.get(name, b"photo " + name.encode())


def backfilled(home: Path, form: str = "jsonl", done: int = 3, names: Sequence[str] = (*PHOTOS, "notes.txt")) -> None:
    """Make photos, a file that is none, and what a backfill leaves: shards of two, so many of which are `done`."""
    lay(home / "photos", {name: data_of(name) if name in PHOTOS else b"no photo" for name in names})
    dest = storage.Local(str(_made(home / "found")))
    draft = Manifest(
        version="1", source=str(home / "photos"), model=1, bundle={}, preprocessing_version=1, max_file_bytes=1,
        max_pixels=1, format=form, shard_files=2,
    )  # fmt: skip
    made = shards.make(dest, draft, sorted(names))
    write_results(home, range(min(done, made.shards)))


def write_results(home: Path, numbers: range) -> None:
    dest = storage.Local(str(home / "found"))
    manifest = shards.read_manifest(dest)
    for shard in numbers:
        found = [row(name) for name in shards.paths(dest, shard)]
        data = rows.as_jsonl(found) if manifest.format == "jsonl" else rows.as_parquet(found, ("happy", "sad"))
        dest.write(manifest.result(shard), data)


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


def row(name: str) -> Line:
    if name not in PHOTOS:
        return Line(event="rejected", file=name, error_code="not_an_image", error="it is none")
    data, label = data_of(name), PHOTOS[name]
    scores = {"happy": 0.75, "sad": 0.25} if label == "happy" else {"happy": 0.125, "sad": 0.875}
    return Line(
        event="sorted", file=name, label=label, score=scores[label], scores=scores, threshold=0.5, model=1,
        views={"scene": scores}, bytes=len(data), width=4, height=3, format="PNG",
        sha256=hashlib.sha256(data).hexdigest(),
    )  # fmt: skip


@pytest.fixture
def home(tmp_path):
    tray.create(tmp_path / "tray")
    return tmp_path


def options(home: Path) -> list[str]:
    (home / "none.toml").touch()
    own = [f"tray.root={home}/tray", f"journal.root={home}/log", "daemon.name=d"]
    return ["--settings", str(home / "none.toml"), *(part for text in own for part in ("--set", text))]


def apply(home: Path, way: str, *flags: str) -> int:
    return moodbox.main(["backfill", str(home / "photos"), str(home / "found"), "--apply", way, *flags, *options(home)])


def sorted_photos(home: Path) -> dict[str, bytes]:
    found = files_in(home / "tray")
    return {name: found[name] for name in found if name.startswith(("happy/", "sad/", "review/", ".work/"))}


EXPECTED = {f"{label}/{name}": data_of(name) for name, label in PHOTOS.items()}


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
@pytest.mark.parametrize("way", ["move", "link"])
def test_what_was_sorted_comes_into_the_class_folders_and_is_journalled(home, way, form, capsys):
    backfilled(home, form)
    before = files_in(home / "photos")
    assert apply(home, way) == 0
    assert "happy 3, sad 2" in capsys.readouterr().out
    assert (sorted_photos(home), files_in(home / "photos")) == ({}, before), "without --yes nothing is changed"
    assert apply(home, way, "--yes") == 0
    assert sorted_photos(home) == EXPECTED
    left = {"notes.txt": b"no photo"} if way == "move" else before
    assert files_in(home / "photos") == left
    told = {line["destination"]: line for line in lines(home) if line["event"] == "sorted"}
    assert set(told) == set(EXPECTED)
    line = told["sad/trip/b.png"]
    assert line["source"] == f"{home}/photos/trip/b.png"
    assert (line["scores"], line["views"]["scene"]) == ({"happy": 0.125, "sad": 0.875},) * 2
    again = lines(home)
    assert apply(home, way, "--yes") == 0
    assert (sorted_photos(home), len(lines(home))) == (EXPECTED, len(again)), "a second time changes nothing"
    assert moodbox.main(["accounts", "--deep", *options(home)]) == 0
    assert not list((home / "tray/.work").iterdir())


def test_what_a_person_moved_afterwards_is_not_brought_again(home):
    backfilled(home)
    assert apply(home, "link", "--yes") == 0
    (home / "tray/happy/e.png").rename(home / "tray/sad/e.png")
    assert apply(home, "link", "--yes") == 0
    assert set(sorted_photos(home)) == set(EXPECTED) - {"happy/e.png"} | {"sad/e.png"}


def test_each_photo_is_taken_once_whatever_the_daemon_is_called_and_however_source_is_named(home):
    backfilled(home)
    assert apply(home, "link", "--yes") == 0
    assert apply(home, "link", "--yes", "--set", "daemon.name=e") == 0
    (home / "same").symlink_to("photos")
    arguments = ["backfill", str(home / "same"), str(home / "found"), "--apply", "link", "--yes", *options(home)]
    assert moodbox.main(arguments) == 0
    assert sorted_photos(home) == EXPECTED


def test_a_new_photo_under_a_used_name_is_another_one(home):
    backfilled(home)
    assert apply(home, "move", "--yes") == 0
    shutil.rmtree(home / "found")
    (home / "photos/notes.txt").unlink()
    shutil.rmtree(home / "photos/trip")
    PHOTOS_OF["a.png"] = b"a newer photo"
    try:
        backfilled(home, names=["a.png"])
        assert apply(home, "move", "--yes") == 0
    finally:
        del PHOTOS_OF["a.png"]
    assert sorted(sorted_photos(home).values()) == sorted([*EXPECTED.values(), b"a newer photo"])


def test_one_that_is_refused_after_its_line_holds_no_other_up(home, monkeypatch, capsys):
    backfilled(home)
    real = fs.rename_noreplace

    def refuse(source, name, target, new_name):
        if name == "a.png":
            raise PermissionError(errno.EPERM, "Operation not permitted")
        real(source, name, target, new_name)

    monkeypatch.setattr(fs, "rename_noreplace", refuse)
    assert apply(home, "move", "--yes") == 1
    assert "left alone: a.png: it has a line, and cannot be taken: Operation not permitted" in capsys.readouterr().err
    assert set(sorted_photos(home)) == set(EXPECTED) - {"happy/a.png"}
    assert (home / "photos/a.png").exists()


def test_a_tray_that_no_daemon_was_in_yet_is_set_up(home):
    backfilled(home)
    for folder in (home / "tray").iterdir():
        if folder.is_dir():
            folder.rmdir()
    assert apply(home, "move", "--yes") == 0
    assert sorted_photos(home) == EXPECTED


def test_names_that_are_taken_are_not_overwritten(home):
    backfilled(home)
    lay(home / "tray", {"happy/a.png": b"was here before"})
    assert apply(home, "link", "--yes") == 0
    found = sorted_photos(home)
    assert found["happy/a.png"] == b"was here before"
    assert sorted(found.values()) == sorted([*EXPECTED.values(), b"was here before"])


def test_what_is_not_sure_waits_in_review(home):
    backfilled(home)
    assert apply(home, "move", "--yes", "--set", "daemon.review_below=0.8") == 0
    assert set(sorted_photos(home)) == {
        "review/a.png", "review/e.png", "review/trip/day 2/c.png", "sad/d.png", "sad/trip/b.png",
    }  # fmt: skip


def test_what_changed_since_or_is_gone_is_left_alone_and_named(home, capsys):
    backfilled(home)
    (home / "photos/a.png").write_bytes(b"edited")
    (home / "photos/d.png").unlink()
    (home / "photos/e.png").unlink()
    (home / "photos/e.png").symlink_to("/etc/passwd")
    assert apply(home, "move", "--yes") == 1
    told = capsys.readouterr().err
    assert "left alone: a.png: its content is not what was classified" in told
    assert "left alone: d.png: it is not there any more" in told
    assert "left alone: e.png: it is not there any more" in told
    assert (home / "photos/a.png").read_bytes() == b"edited"
    assert set(sorted_photos(home)) == {"sad/trip/b.png", "happy/trip/day 2/c.png"}


def test_shards_without_a_result_are_told_and_are_applied_when_they_have_one(home, capsys):
    backfilled(home, done=1)
    assert apply(home, "move", "--yes") == 1
    assert "2 of 3 shards have no result yet" in capsys.readouterr().out
    assert len(sorted_photos(home)) == 2
    write_results(home, range(1, 3))
    assert apply(home, "move", "--yes") == 0
    assert sorted_photos(home) == EXPECTED


def test_where_nothing_can_be_applied_one_line_says_why(home, capsys):
    assert apply(home, "move") == 2
    assert "there is no such folder" in capsys.readouterr().err
    backfilled(home)
    (home / "others").mkdir()
    for source, reason in (
        ("s3://x/y", "SOURCE has to be a folder"), (home / "others", f"but of {home}/photos"),
        (home, "is in SOURCE"), (home / "tray", "is in SOURCE"), (home / "tray/sad", "is in the tray"),
    ):  # fmt: skip
        arguments = ["backfill", str(source), str(home / "found"), "--apply", "move", *options(home)]
        assert moodbox.main(arguments) == 2
        assert reason in capsys.readouterr().err
    (home / "found/results/000000.jsonl").write_bytes(b"nonsense\n")
    assert apply(home, "move", "--yes") == 2
    assert "results/000000.jsonl is damaged" in capsys.readouterr().err
    assert sorted_photos(home) == {}


def test_only_one_applies_at_a_time(home, capsys):
    backfilled(home)
    folder = tray.open_tray(home / "tray")
    with errand(load(None, (), {"tray": {"root": str(home / "tray")}, "daemon": {"name": "d"},
                                "journal": {"root": str(home / "log")}}).settings, folder, KIND):  # fmt: skip
        assert apply(home, "move", "--yes") == 2
    os.close(folder)
    assert "another --apply is at work" in capsys.readouterr().err
    assert sorted_photos(home) == {}


@pytest.mark.parametrize(
    "bad", [{"file": "../a.png"}, {"file": "/etc/x"}, {"label": ".work"}, {"label": "a/b"}, {"label": "inbox"}]
)
def test_a_row_that_no_backfill_wrote_moves_nothing(home, bad):
    backfilled(home)
    name = home / "found/results/000000.jsonl"
    fields = [orjson.loads(raw) | bad for raw in name.read_bytes().splitlines()]
    name.write_bytes(b"".join(orjson.dumps(one) + b"\n" for one in fields))
    before = files_in(home / "photos")
    assert apply(home, "move", "--yes") == 2
    assert (sorted_photos(home), files_in(home / "photos")) == ({}, before)


KILLED = """
import os, sys
from pathlib import Path
from daemon import apply as module, tray
from stand_in import die_at
from test_backfill_apply import apply, backfilled
module.BATCH = 2
for step in range(1, 1000):
    home = Path(sys.argv[1]) / str(step)
    tray.create(home / "tray")
    backfilled(home)
    child = os.fork()
    if child == 0:
        die_at(step)
        os._exit(apply(home, sys.argv[2], "--yes"))
    status = os.waitpid(child, 0)[1]
    print("status", status, flush=True)
    if status == 0:
        break
"""


@pytest.mark.parametrize("way", ["move", "link"])
def test_a_kill_at_every_step_loses_nothing_and_doubles_nothing(tmp_path, way):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", KILLED, str(tmp_path), way]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    statuses = [int(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("status")]
    assert statuses == [signal.SIGKILL] * (len(statuses) - 1) + [0], done.stderr
    assert len(statuses) > 20, "the steps were not counted"
    for step in range(1, len(statuses) + 1):
        home = tmp_path / str(step)
        contents = {*files_in(home / "photos").values(), *sorted_photos(home).values()}
        assert contents >= set(EXPECTED.values()), f"lost by the kill at step {step}"
        assert apply(home, way, "--yes") == 0
        assert sorted_photos(home) == EXPECTED, f"after the kill at step {step}"
        told = [line["source"] for line in lines(home) if line["event"] == "sorted"]
        assert len(told) == len(set(told)) == len(PHOTOS), f"two decisions, after the kill at step {step}"
        assert moodbox.main(["accounts", "--deep", *options(home)]) == 0
