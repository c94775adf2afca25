import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import drawings
import pictures
from trainer import check as module
from trainer import contact_sheet, set_aside, split_record
from trainer.command_line import main
from trainer.dataset import Dataset, DatasetError, Fractions, Photo, Unused
from trainer.findings import Findings
from trainer.prepared import Origin
from trainer.settings import load
from trainer.suspects import Suspect

ROOT = Path(__file__).parent.parent
TRAINER = {"image_size": 64, "validation_fraction": 0.25, "test_fraction": 0.25}  # enough in each split
ASKED = Fractions(0.15, 0.15)


@pytest.fixture
def place(tmp_path, monkeypatch):
    for name in [name for name in os.environ if name.upper().startswith("MOODBOX")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def photos(place):
    return drawings.folder(place / "photos", count=24)


@pytest.fixture
def suspects(monkeypatch):
    """Stand in for the judge: what is put in here, by path, is suspected."""
    wanted: dict[str, float] = {}

    def judged(_settings, found, _cache):
        index = {photo.path: i for i, photo in enumerate(found.data.photos)}
        label = {photo.path: photo.label for photo in found.data.photos}
        ranked = sorted(wanted.items(), key=lambda item: -item[1])
        return [Suspect(index[p], label[p], 1 - label[p], chance) for p, chance in ranked if p in index]

    monkeypatch.setattr(module, "judged", judged)
    return wanted


def check(*, fix=False, data="photos"):
    settings = load(None, (), {"dataset": {"root": data}, "trainer": TRAINER}).settings
    module.check(settings, fix=fix)


def report(place):
    (path,) = sorted(place.glob("runs/check/*/report.json"))[-1:]
    return json.loads(path.read_text())


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def resaved(source, target):
    image = Image.open(source)
    image.resize((image.width - 4, image.height - 4)).save(target, "PNG")


def test_check_says_what_there_is(place, photos, suspects, capsys):
    resaved(photos / "sad" / "sad0.jpg", photos / "sad" / "again.png")
    resaved(photos / "sad" / "sad2.jpg", photos / "happy" / "wrong.png")
    shutil.copy(photos / "sad" / "sad3.png", photos / "sad" / "twice.png")
    os.rename(photos / "sad" / "sad4.jpg", photos / "sad" / "sad4.gif")
    pictures.write_picture(photos / "happy" / "large.webp", width=640, height=480)
    (photos / "happy" / "bell\a\udcff.jpg").write_text("x")
    (photos / "notes.txt").write_text("x")
    suspects["happy/happy1.png"] = 0.93
    check()
    out = capsys.readouterr().out
    for text in (
        "49 photos can be used",
        "sizes: half of the photos have a shorter side of 40 to 40 px",
        "48 photos (98%) are smaller than the 64 px",
        "25 PNG, 23 JPEG, 1 WEBP; 1 file named as another format than it is: no harm",
        "exact copies: 1 file",
        "near duplicates: 2 photos in 1 group",
        "contradictions: 2 files",
        "balance: fine",
        "not used: happy/wrong.png: nearly the same photo as sad/sad2.jpg",
        r"not used: happy/bell\x07\udcff.jpg: not_an_image",
        "not used: notes.txt: lies beside the class folders",
        "not used: sad/twice.png: the same photo as sad/sad3.png",
        "labels: 1 of 49 look wrong",
        "happy/happy1.png: happy → sad, 0.93",
        "suspects.png",
        "let `check --fix` move 4 files aside",
        f"moodbox-train fit --data {photos}",
    ):
        assert text in out, text
    assert out.index("in two classes") < out.index("not_an_image")
    said = report(place)
    assert said["photos"] == 49
    assert [sorted(group) for group in said["near_duplicates"]] == [["sad/again.png", "sad/sad0.jpg"]]
    assert said["formats"] == {"JPEG": 23, "PNG": 25, "WEBP": 1}
    assert said["misnamed"] == ["sad/sad4.gif"]
    assert len(said["smaller_than_network"]) == 48
    assert said["suspects"] == [{"path": "happy/happy1.png", "given": "happy", "likely": "sad", "probability": 0.93}]
    assert {u["path"]: u["kind"] for u in said["unused"]} == {
        "happy/wrong.png": "contradiction",
        "sad/sad2.jpg": "contradiction",
        "happy/bell\a\udcff.jpg": "broken",
        "notes.txt": "beside",
        "sad/twice.png": "double",
    }


def test_a_healthy_dataset_gets_a_short_report_and_the_next_command(place, photos, suspects, capsys):
    check()
    out = capsys.readouterr().out
    assert "labels: none looks wrong" in out
    assert f"next: moodbox-train fit --data {photos}" in out
    assert "not used" not in out
    assert "--fix" not in out
    assert report(place)["suspects"] == []
    assert [path.name for path in place.glob("runs/check/*/*")] == ["report.json"]


def test_without_fix_nothing_but_the_record_is_written_to_the_dataset(place, photos, suspects):
    (photos / "sad" / "broken.jpg").write_text("x")
    suspects["happy/happy1.png"] = 0.99
    before = files(photos)
    check()
    after = files(photos)
    assert after.pop(split_record.NAME)
    assert after == before
    assert {entry.name for entry in place.iterdir()} == {"photos", "runs"}


def test_a_second_check_decodes_nothing_and_says_the_same(photos, suspects, capsys, monkeypatch):
    check()
    first = capsys.readouterr().out

    def look(*_):
        raise AssertionError("looked at again")

    monkeypatch.setattr(module.prepared.Cache, "_look", look)
    check()
    timeless = [re.sub(r"\d{8}T\d{6}Z(-\d)?", "", text) for text in (first, capsys.readouterr().out)]
    assert timeless[0] == timeless[1]


def test_long_lists_are_cut(place, photos, suspects, capsys):
    for number in range(50):
        (photos / "sad" / f"{number}.txt").write_text("x")
        drawings.photo("sad", 100 + number).save(photos / "happy" / f"{number}.png")
        suspects[f"happy/{number}.png"] = 0.7
    check()
    out = capsys.readouterr().out
    assert "… and 42 more without a picture in them: report.json" in out
    assert "… and 30 more: report.json" in out
    assert len(out.splitlines()) < 60
    assert len(report(place)["unused"]) == len(report(place)["suspects"]) == 50
    assert "so many: either" in out


def test_fix_moves_what_looks_wrong_aside_and_it_can_be_brought_back(place, photos, suspects, capsys):
    (photos / "sad" / "deep").mkdir()
    (photos / "sad" / "deep" / "bell\a\udcff 'x'.jpg").write_text("broken")
    resaved(photos / "sad" / "sad2.jpg", photos / "happy" / "wrong.png")
    shutil.copy(photos / "happy" / "happy1.png", photos / "happy" / "twice.png")
    (photos / "notes.txt").write_text("x")
    suspects |= {"happy/happy1.png": 0.95, "happy/happy3.png": 0.85}
    before = files(photos)
    check(fix=True)
    out = capsys.readouterr().out
    (folder,) = (place / "photos-set-aside").iterdir()
    aside = files(folder)
    moved = [json.loads(text) for text in aside.pop("moved.jsonl").splitlines()]
    expected = {
        "sad/deep/bell\a\udcff 'x'.jpg",
        "happy/wrong.png",
        "sad/sad2.jpg",
        "happy/happy1.png",
        "happy/twice.png",
    }
    assert aside == {path: before[path] for path in expected}
    assert {line["from"] for line in moved} == {str(photos / path) for path in expected}
    assert {line["to"] for line in moved} == {str(folder / path) for path in expected}
    reason = {line["from"]: line["reason"] for line in moved}
    assert reason[str(photos / "happy" / "happy1.png")] == "labelled happy, looks sad (0.95)"
    assert "moved 5 files" in out
    left = files(photos)
    del left[split_record.NAME]
    assert left == {path: data for path, data in before.items() if path not in expected}
    command = next(text for text in out.splitlines() if "bring all" in text).split(": ", 1)[1]
    subprocess.run(["bash", "-c", command], check=True)
    left = files(photos)
    del left[split_record.NAME]
    assert left == before


def test_fix_moves_at_most_a_tenth_of_a_class_as_suspects(place, photos, suspects):
    suspects |= {f"happy/happy{i}.{('jpg', 'png')[i % 2]}": 0.99 - i / 1000 for i in range(10)}
    suspects["sad/sad0.jpg"] = 0.91
    check(fix=True)
    (folder,) = (place / "photos-set-aside").iterdir()
    assert files(folder).keys() - {"moved.jsonl"} == {"happy/happy0.jpg", "happy/happy1.png", "sad/sad0.jpg"}


def test_fix_with_nothing_to_move_makes_no_folder(place, photos, suspects, capsys):
    check(fix=True)
    assert "nothing to move aside" in capsys.readouterr().out
    assert not (place / "photos-set-aside").exists()


def test_what_will_be_moved_is_on_disk_before_the_first_file_moves(place, photos, suspects, monkeypatch):
    suspects |= {"happy/happy1.png": 0.95, "sad/sad1.png": 0.95}
    real, seen = os.rename, []

    def rename(source, target):
        if "set-aside" in str(target):
            (listed,) = place.glob("photos-set-aside/*/moved.jsonl")
            seen.append(len(listed.read_text().splitlines()))
        return real(source, target)

    monkeypatch.setattr(os, "rename", rename)
    check(fix=True)
    assert seen == [2, 2]


def test_a_file_that_cannot_be_moved_stays_and_is_named(place, photos, suspects, monkeypatch, capsys):
    suspects |= {"happy/happy1.png": 0.95, "sad/sad1.png": 0.95}
    real = os.rename

    def rename(source, target):
        if str(source).endswith("happy1.png"):
            raise OSError(18, "Invalid cross-device link")
        return real(source, target)

    monkeypatch.setattr(os, "rename", rename)
    check(fix=True)
    out = capsys.readouterr().out
    assert "stays: happy/happy1.png: the folder beside the dataset is on another file system" in out
    assert "moved 1 file to" in out
    assert (photos / "happy" / "happy1.png").exists()
    assert not (photos / "sad" / "sad1.png").exists()


def test_another_file_system_is_one_line_and_all_stays(place, photos, suspects, monkeypatch, capsys):
    suspects |= {"happy/happy1.png": 0.95, "sad/sad1.png": 0.95}
    real = os.rename

    def rename(source, target):
        if "set-aside" in str(target):
            raise OSError(18, "Invalid cross-device link")
        return real(source, target)

    before = files(photos)
    monkeypatch.setattr(os, "rename", rename)
    options = [f"--set=trainer.{name}={value}" for name, value in TRAINER.items()]
    assert main(["check", "--fix", "--data", "photos", *options]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert re.search(
        r"nothing could be moved to .*: happy/happy1.png: the folder beside the dataset is on another file system", last
    )
    assert {path: data for path, data in files(photos).items() if path != split_record.NAME} == before


def test_nothing_is_overwritten(tmp_path):
    (tmp_path / "p" / "a").mkdir(parents=True)
    (tmp_path / "p" / "a" / "x").write_text("new")
    now = module.datetime(2026, 1, 2, 3, 4, 5, tzinfo=module.UTC)
    first = set_aside.new_folder(tmp_path / "p-set-aside", now)
    done = set_aside.move(tmp_path / "p", [set_aside.Move("a/x", "why")], now)
    assert done.folder.name == first.name + "-2"
    assert list(first.iterdir()) == []
    (tmp_path / "p" / "a" / "x").write_text("newer")
    assert set_aside._move(tmp_path / "p" / "a" / "x", done.folder / "a" / "x") == "its name is taken there"
    assert (done.folder / "a" / "x").read_text() == "new"


def test_no_place_beside_the_dataset_is_one_line(place, photos, suspects, monkeypatch, capsys):
    suspects["happy/happy1.png"] = 0.95
    (place / "photos-set-aside").write_text("a file")
    settings = ["--set", "trainer.image_size=64"]
    assert main(["check", "--fix", "--data", "photos", *settings]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert "nothing was moved: a folder beside" in last
    assert (photos / "happy" / "happy1.png").exists()


def test_one_class_or_few_photos_are_reported_before_the_error(place, capsys):
    drawings.folder(place / "one", ("happy",), 12)
    with pytest.raises(DatasetError, match="only one class folder"):
        check(data="one")
    out = capsys.readouterr().out
    assert "12 photos can be used" in out
    assert "labels: not judged" in out
    drawings.folder(place / "few", count=3)
    with pytest.raises(DatasetError, match="class 'happy' has 3 usable photos"):
        check(data="few")
    assert "6 photos can be used" in capsys.readouterr().out
    assert len(list(place.glob("runs/check/*/report.json"))) == 2


@pytest.mark.tf
def test_the_command_finds_wrong_labels_and_loads_tensorflow_after_its_first_results(place):
    photos = drawings.folder(place / "photos", count=30)
    for number in range(2):
        os.rename(photos / "sad" / f"sad{number + 1}.{('png', 'jpg')[number % 2]}", photos / "happy" / f"wrong{number}")
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TF_CPP")}
    env = kept | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    command = [
        sys.executable,
        "-m",
        "trainer",
        "check",
        "--data",
        "photos",
        "--set",
        "trainer.architecture=tutorial_cnn",
    ]
    done = subprocess.run(
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, cwd=place
    )
    assert done.returncode == 0, done.stdout
    assert done.stdout.index("balance: fine") < done.stdout.index("loading TensorFlow")
    known = ("photos read", "loading TensorFlow", "batches of features", "judging the labels", "look at", "all of it")
    for text in done.stdout[done.stdout.index("loading") :].splitlines():
        assert text.startswith((*known, "labels:", "  ", "next:")), text
    found = [suspect["path"] for suspect in report(place)["suspects"]]
    assert {"happy/wrong0", "happy/wrong1"} <= set(found[:4])
    assert len(found) <= 6
    with Image.open(next(place.glob("runs/check/*/suspects.png"))) as sheet:
        assert sheet.width > 800


def findings(counts, fractions=ASKED):
    splits = ("train",) * 70 + ("validation",) * 15 + ("test",) * 15
    names = tuple(sorted(counts))
    used = [
        Photo(f"{name}/{i}.jpg", label, f"{label}-{i}", splits[i % len(splits)])
        for label, name in enumerate(names)
        for i in range(counts[name])
    ]
    data = Dataset(Path("p"), names, tuple(used), (), fractions)
    return Findings(data, {p.sha256: Origin(300, 200, "JPEG") for p in used}, 224)


@pytest.mark.parametrize(
    ("counts", "text"),
    [
        ({"a": 100, "b": 140}, "balance: fine"),
        ({"a": 300, "b": 100}, "'a' has 3.0 times as many photos as 'b': fit weighs"),
        ({"a": 2000, "b": 100}, "'a' has 20 times as many photos as 'b': weighing cannot make up"),
    ],
)
def test_imbalance_is_said_in_words(counts, text):
    assert text in "\n".join(findings(counts).balance_lines())


def test_splits_that_differ_from_the_settings_are_said():
    assert list(findings({"a": 500, "b": 500}).share_lines()) == []
    (text,) = findings({"a": 500, "b": 500}, Fractions(0.15, 0.3)).share_lines()
    assert "15% of the photos are for test, the settings ask for 30%" in text


def test_a_sheet_shows_each_photo_in_its_shape_with_its_caption(tmp_path):
    wide = pictures.write_picture(tmp_path / "wide.png", width=400, height=100)
    high = pictures.write_picture(tmp_path / "high.png", width=100, height=400)
    gone = tmp_path / "gone.png"
    tiles = [contact_sheet.Tile(((path, path.name),), "what it is") for path in (wide, high, gone)]
    contact_sheet.draw(tmp_path / "sheet.png", "a title", tiles, 10**6)
    sheet = np.asarray(Image.open(tmp_path / "sheet.png").convert("RGB")).astype(int)
    red = np.argwhere(np.abs(sheet - pictures.COLOURS[0]).sum(axis=2) < 12)
    first = red[red[:, 1] < contact_sheet.WIDTH]
    second = red[red[:, 1] > contact_sheet.WIDTH + contact_sheet.GAP]
    assert np.ptp(first[:, 1]) > 3 * np.ptp(first[:, 0])
    assert np.ptp(second[:, 0]) > 3 * np.ptp(second[:, 1])


def test_a_long_name_keeps_its_end(tmp_path):
    letters = contact_sheet.font(13)
    cut = contact_sheet._fitting("sad/" + "x" * 200 + "\a end.jpg", letters, 150)
    assert letters.getlength(cut) <= 150
    assert cut.startswith("sad/")
    assert cut.endswith("end.jpg")
    assert contact_sheet._fitting("short.jpg", letters, 150) == "short.jpg"


def test_many_tiles_are_cut_and_the_title_says_so():
    assert module._titled("labels", 200, "photos") == "labels: the first 60 of 200 photos"
    assert Unused("x", "y").kind == "unreadable"
