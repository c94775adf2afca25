import os
from pathlib import Path

import numpy as np
import pytest

import bundles
import drawings
from trainer import bundle, explain, images, settings
from trainer.command_line import main


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """Work in an empty directory, with no settings from outside, and a champion that looks for the brightest colour."""
    for name in [name for name in os.environ if name.upper().startswith("MOODBOX")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    bundles.publish(tmp_path / "models", tmp_path / "staged")
    bundle.promote(tmp_path / "models", 1)
    return tmp_path


def saved(path, label="happy", size=(90, 40)):
    path.parent.mkdir(parents=True, exist_ok=True)
    drawings.photo(label, 1, size).save(path)
    return str(path)


def sheets(place):
    return sorted(path.name for path in place.glob("runs/explain/*/*"))


def test_a_photo_is_told_and_drawn(capsys, place):
    assert main(["explain", saved(place / "a.jpg")]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0] == f"{place / 'a.jpg'}: happy"
    scores = bundle.load(place / "models").predictor()(images.decode(place / "a.jpg", size=bundles.SIZE)).scores
    assert out[1] == f"  scores: happy {scores[0]:.2f}, sad {scores[1]:.2f}; sad from 0.5 on"
    assert out[2] == "  JPEG, 90 x 40; the model saw 32 x 32"
    assert out[3].startswith(f"  score of happy if it were mirrored {scores[0]:.2f}, in grey 0.50 (now sad), brighter")
    drawn = Path(out[4].removeprefix("  drawn: "))
    assert drawn.parent.parent == place / "runs" / "explain"
    assert drawn.parent.name.endswith("Z-bundle_1")
    picture = images.decode(drawn)
    assert picture.width > 1000
    assert picture.pixels.std() > 20


def test_a_change_that_turns_the_answer_is_told_with_the_score_of_the_first_one(capsys, place):
    framed = explain.Image.new("RGB", (100, 100), (200, 100, 0))
    framed.paste((60, 240, 0), (25, 25, 75, 75))
    framed.save("framed.png")
    assert main(["explain", "framed.png"]) == 0
    line = capsys.readouterr().out.splitlines()[3]
    turned = float(line.partition("cropped to its middle ")[2].removesuffix(" (now sad)"))
    assert line.endswith(" (now sad)")
    assert turned < 0.5


def test_bad_files_are_a_line_each_and_the_others_go_on(capsys, place):
    (place / "bad\x07.jpg").write_text("x")
    (place / "folder").mkdir()
    os.mkfifo(place / "pipe")
    names = ["bad\x07.jpg", "none.jpg", "folder", "pipe", saved(place / "good.jpg")]
    assert main(["explain", *names, "--set", "tray.max_file_bytes=100000"]) == 1
    said = capsys.readouterr()
    assert said.err.splitlines()[-5:] == [
        r"bad\x07.jpg: " + said.err.splitlines()[-5].partition(": ")[2],
        "none.jpg: No such file or directory",
        "folder: a folder: name the photos in it",
        "pipe: not a regular file",
        "moodbox-train: 4 of 5 files could not be used: see above",
    ]
    assert "not a picture" in said.err.splitlines()[-5]
    assert "good.jpg: happy" in said.out
    assert sheets(place) == ["good.png"]


def test_the_settings_limits_hold(capsys, place):
    large = saved(place / "large.png", size=(200, 200))
    assert main(["explain", large, "--set", "tray.max_pixels=1000"]) == 1
    assert "large.png: " in capsys.readouterr().err
    assert main(["explain", large, "--set", "tray.max_file_bytes=1000"]) == 1
    assert "larger than 1,000 bytes" in capsys.readouterr().err
    assert sheets(place) == []
    assert list(place.glob("runs/explain/*")) == []


def test_a_link_that_is_named_is_followed(capsys, place):
    saved(place / "a.jpg")
    os.symlink("a.jpg", place / "link.jpg")
    os.symlink("loop", place / "loop")
    assert main(["explain", "link.jpg"]) == 0
    assert "link.jpg: happy" in capsys.readouterr().out
    assert main(["explain", "loop"]) == 1
    assert "loop: Too many levels of symbolic links" in capsys.readouterr().err


def test_photos_of_one_name_get_a_sheet_each(place):
    names = [saved(place / "a" / "x.jpg"), saved(place / "b" / "x.jpg", "sad"), saved(place / "b" / "x.png")]
    assert main(["explain", *names]) == 0
    assert sheets(place) == ["x-2.png", "x-3.png", "x.png"]


@pytest.mark.parametrize("stem", ["n" * 250, "日" * 80, "$a_b$ <b>", "bell\x07\udcff", "-x", ".hidden"])
def test_whatever_a_file_is_called_it_gets_its_sheet(capsys, place, stem):
    assert main(["explain", saved(place / "in" / f"{stem}.png")]) == 0
    assert len(sheets(place)) == 1
    assert "\x07" not in capsys.readouterr().out


def test_a_bundle_is_chosen_by_its_number(capsys, place):
    bundles.publish(place / "models", place / "staged2", threshold=0.001)
    photo = saved(place / "a.jpg")
    assert main(["explain", photo, "--model", "2"]) == 0
    out = capsys.readouterr().out
    assert ": sad" in out
    assert "sad from 0.001 on" in out
    assert main(["explain", photo, "--model", "7"]) == 2
    assert "no bundle 7; there are: 1, 2" in capsys.readouterr().err


def test_three_classes_have_no_threshold(capsys, place):
    bundles.publish(place / "models", place / "staged3", classes=3)
    assert main(["explain", saved(place / "a.jpg", "calm"), "--model", "2"]) == 0
    out = capsys.readouterr().out
    assert "a.jpg: green" in out
    assert "from" not in out


def test_a_full_disk_is_one_line(capsys, place, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device", "x.png")

    monkeypatch.setattr("trainer.durable.replace", full)
    assert main(["explain", saved(place / "a.jpg")]) == 1
    assert capsys.readouterr().err.splitlines()[-1] == "moodbox-train: x.png: No space left on device"


def test_changes_are_what_they_say():
    pixels = np.asarray(drawings.photo("happy", 3, (40, 40)))
    changed = {name: np.asarray(change(explain.Image.fromarray(pixels))) for name, change in explain.CHANGES}
    assert all(after.shape == pixels.shape and after.dtype == np.uint8 for after in changed.values())
    assert np.array_equal(changed["mirrored"], pixels[:, ::-1])
    assert np.ptp(changed["in grey"], axis=-1).max() == 0
    assert changed["brighter"].mean() > pixels.mean() > changed["darker"].mean()


@pytest.mark.tf
@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")
def test_what_spoke_for_the_answer_is_drawn_beside_it(place, monkeypatch):
    from trainer import model, sheet

    drawn = []
    monkeypatch.setattr(sheet, "draw", lambda *given: drawn.append(given))
    staged = bundles.stage(place / "with_keras")
    model.tutorial_cnn(bundles.SIZE, 2).save(staged / "model.keras")
    bundle.publish(place / "models", staged, bundles.draft())
    explain.explain(settings.load().settings, [Path(saved(place / "a.jpg"))], 2)
    explain.explain(settings.load().settings, [Path(saved(place / "a.jpg"))], 1)
    with_overlay, without = (panels[2] for _, _, _, panels, _ in drawn)
    assert with_overlay.pixels.shape == (32, 32, 3)
    assert without.instead == "no Grad-CAM: its model.keras is no Keras file"
