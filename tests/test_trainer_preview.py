import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import drawings
from trainer.command_line import main

pytestmark = [
    pytest.mark.tf,
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"),
]


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """Work in an empty directory, with no settings from outside."""
    for name in [name for name in os.environ if name.upper().startswith("MOODBOX")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


SMALL = ("--set", "trainer.architecture=tutorial_cnn", "--set", "trainer.image_size=32")


def picture(out):
    return Path(re.search(r"^picture: (.*)$", out, re.MULTILINE)[1])


def pixels(out):
    with Image.open(picture(out)) as image:
        return np.asarray(image)


def test_preview_draws_a_batch_and_prints_what_it_is(place, capsys):
    drawings.folder(place / "photos", ("happy", "sad", "calm"), 4)
    (place / "photos" / "sad" / "broken.jpg").write_text("x")
    (place / "photos" / "wild").mkdir()  # and no photo yet
    assert main(["preview", "--data", "photos", *SMALL, "--set", "trainer.batch_size=5"]) == 0
    out = capsys.readouterr().out
    assert "photos: shape (5, 32, 32, 3), float32, from " in out
    assert re.search(r"labels: shape \(5,\), int32: [012]( [012]){4} \(0 = calm, 1 = happy, 2 = sad, 3 = wild\)", out)
    assert "not used: sad/broken.jpg" in out
    assert picture(out).parent == place / "runs" / "preview"
    assert pixels(out).shape == (8 + 2 * (20 + 2 * 192 + 8), 8 + 4 * 200, 3)


def test_the_same_seed_draws_the_same_and_another_one_does_not(place, capsys):
    drawings.folder(place / "photos", count=8)
    drawn = []
    for seed in (1, 1, 2):
        assert main(["preview", "--data", "photos", *SMALL, "--set", f"trainer.seed={seed}"]) == 0
        drawn.append(pixels(capsys.readouterr().out))
    assert np.array_equal(drawn[0], drawn[1])
    assert not np.array_equal(drawn[0][:200], drawn[2][:200])  # other photos come first


def test_a_large_batch_is_drawn_in_part_and_one_class_with_one_photo_is_enough(place, capsys):
    drawings.folder(place / "photos", count=20)
    assert main(["preview", "--data", "photos", *SMALL]) == 0
    out = capsys.readouterr().out
    assert "photos: shape (32, 32, 32, 3)" in out
    assert pixels(out).shape == (8 + 4 * (20 + 2 * 192 + 8), 8 + 4 * 200, 3)
    drawings.folder(place / "single", ("calm",), 1)
    assert main(["preview", "--data", "single", *SMALL]) == 0
    assert "photos: shape (1, 32, 32, 3)" in capsys.readouterr().out


def test_preview_keeps_the_picture_and_the_prepared_copies_only(place, capsys):
    drawings.folder(place / "photos", count=3)
    assert main(["preview", "--data", "photos", *SMALL]) == 0
    assert {entry.name for entry in (place / "runs").iterdir()} == {"prepared", "preview"}
    assert {entry.name for entry in (place / "photos").iterdir()} == {"happy", "sad"}  # no split is recorded
    assert not (place / "models").exists()


def test_preview_of_nothing_is_one_line(place, capsys):
    assert main(["preview", "--data", "nowhere"]) == 2
    assert "nowhere: the folder of photos cannot be read" in capsys.readouterr().err
    drawings.folder(place / "photos", count=1)
    for path in (place / "photos").glob("*/*"):
        path.write_text("x")
    assert main(["preview", "--data", "photos", *SMALL]) == 2
    assert "not one of 2 files can be used" in capsys.readouterr().err
    shutil.rmtree(place / "photos")
    assert main(["preview", "--data", "photos"]) == 2


def test_a_grid_shows_each_photo_above_its_other_version():
    from trainer import pictures

    light, dark = np.full((3, 8, 8, 3), 250.0, np.float32), np.full((3, 8, 8, 3), 10.0, np.float32)
    sheet = pictures.grid(light, ["one", "two", "a very long name " * 20], dark)
    top, below = 8 + 20, 8 + 20 + 192
    for x in (8, 208, 408):
        assert (sheet[top : top + 192, x : x + 192] == 250).all()
        assert (sheet[below : below + 192, x : x + 192] == 10).all()
        assert sheet[8 : 8 + 20, x : x + 192].min() < 128  # a caption
    assert (sheet[8 : 8 + 20, 600:] == 255).all()  # cut to its width


def test_a_confusion_matrix_is_darkest_where_most_are():
    from trainer import pictures

    drawn = pictures.confusion(np.array([[9, 1], [0, 5]]), ["happy", "sad"])
    cells = [
        drawn[60 + r * 72 + 5 : 60 + r * 72 + 20, 110 + c * 72 + 5 : 110 + c * 72 + 20].mean()
        for r in (0, 1)
        for c in (0, 1)
    ]
    assert cells[3] < cells[0] < cells[1] < cells[2] == 255.0


def test_a_confusion_matrix_of_many_classes_is_its_shades():
    from trainer import pictures

    matrix = np.diag(np.arange(200))
    drawn = pictures.confusion(matrix, [str(number) for number in range(200)])
    assert drawn.shape == (200, 200, 3)
    assert tuple(drawn[7, 7]) == pictures.DEEP
    assert tuple(drawn[7, 8]) == tuple(drawn[0, 0]) == pictures.PAPER


def test_a_sprite_holds_the_thumbnails_row_by_row():
    from trainer import pictures

    thumbnails = np.arange(5, dtype=np.uint8).reshape(5, 1, 1, 1) * np.ones((1, 4, 6, 3), np.uint8)
    sheet = np.asarray(pictures.sprite(thumbnails))
    assert sheet.shape == (12, 18, 3)
    assert sheet[::4, ::6, 0].tolist() == [[0, 1, 2], [3, 4, 255], [255, 255, 255]]
