import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import bundles
import drawings
from trainer import bundle, commands
from trainer.command_line import main

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """Work in an empty directory, with no settings from outside."""
    for name in [name for name in os.environ if name.upper().startswith("MOODBOX")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def photos(place):
    return drawings.folder(place / "photos")


@pytest.fixture
def models(place):
    for number in (1, 2, 3):
        bundles.publish(place / "models", place / f"staged{number}", parent=number - 1 or None)
        bundle.promote(place / "models", number)
    return place / "models"


def fails(capsys, status, *argv):
    """Run a command that must fail with one line; return the line."""
    assert main(argv) == status
    said = capsys.readouterr().err.splitlines()
    last = said[-1]
    assert last.startswith("moodbox-train: ")
    assert not any("Traceback" in line or line.startswith("moodbox-train") for line in said[:-1])
    return last


BAD = [
    (["fit", "--data", "nowhere"], "nowhere: the folder of photos cannot be read: No such file"),
    (["fit", "--data", "photos/sad/sad0.jpg"], "Not a directory"),
    (["fit", "--data", "photos/sad"], "no class folders"),
    (["check", "--data", "nowhere"], "cannot be read"),
    (["check"], "training: the folder of photos cannot be read"),
    (["fit", "--data", "photos", "--set", "trainer.sede=1"], "did you mean seed?"),
    (["fit", "--data", "photos", "--set", "trainer.seed"], "table.key=value"),
    (["fit", "--data", "photos", "--epochs", "-1"], "trainer.epochs"),
    (["fit", "--data", "photos", "--epochs", "0"], "--epochs 0: train for at least one epoch"),
    (["crossvalidate", "--data", "photos", "--groups", "("], "no regular expression"),
    (["crossvalidate", "--data", "photos", "--groups", "(a{99999999999999999999})"], "no regular expression"),
    (["crossvalidate", "--data", "photos", "--groups", "^a"], "put what names the group into parentheses"),
    (["fit", "--data", "photos", "--settings", "none.toml"], "does not exist"),
    (["evaluate", "--data", "photos", "--model", "7"], "no bundle 7; there are: none"),
    (["explain", "photos/sad/sad0.jpg", "--model", "7"], "no bundle 7; there are: none"),
    (["precisions", "--data", "photos", "--model", "7"], "no bundle 7; there are: none"),
    (["fit", "--data", "photos", "--resume"], "was not interrupted"),
    (["crossvalidate", "--data", "nowhere"], "cannot be read"),
    (["tensorboard"], "runs"),
    (["rollback"], "no bundle is champion"),
    (["rollback", "7"], "no bundle 7"),
]


@pytest.mark.parametrize(("argv", "match"), BAD)
def test_bad_input_is_one_line_and_exit_status_2(capsys, photos, place, argv, match):
    assert match in fails(capsys, 2, *argv)
    assert {entry.name for entry in place.iterdir()} == {"photos"}


@pytest.mark.parametrize(
    "argv", [[], ["fly"], ["fit", "--epochs", "many"], ["rollback", "one"], ["models", "--data", "x"]]
)
def test_a_wrong_command_line_is_argparses_error(capsys, argv):
    with pytest.raises(SystemExit) as caught:
        main(argv)
    assert caught.value.code == 2
    assert "usage: moodbox-train" in capsys.readouterr().err


def test_a_failure_is_one_line_and_exit_status_1(capsys, models, place):
    (models / "3" / "model.tflite").write_bytes(b"cut")
    assert "models/3: model.tflite is not the file" in fails(capsys, 1, "rollback", "3")
    os.unlink(models / "champion")
    os.mkdir(models / "champion")
    assert "not a symlink" in fails(capsys, 1, "models")


def test_a_system_error_is_one_line(capsys, monkeypatch, photos):
    def full(*_, **__):
        raise OSError(28, "No space left on device", "runs/x")

    monkeypatch.setattr(commands, "models", full)
    assert fails(capsys, 1, "models") == "moodbox-train: runs/x: No space left on device"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_is_one_line_and_exit_status_130(capsys, monkeypatch, photos, number):
    monkeypatch.setattr(commands, "models", lambda *_, **__: signal.raise_signal(number))
    assert fails(capsys, 130, "models") == "moodbox-train: interrupted"


@pytest.mark.parametrize("columns", ["80", "120"])
def test_models_lists_the_bundles_with_figures_and_lineage(capsys, models, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", columns)
    (models / "2" / "manifest.json").write_text("{")
    assert main(["models"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= int(columns)
    (last,) = [line for line in lines if "3 *" in line]
    assert last.replace("│", " ").split()[:4] == ["3", "*", "2", "100.0%"]
    for text in ("happy,", "tiny", "damaged", "champion", "2026-01-02"):
        assert any(text in line for line in lines), text


def test_models_as_json_is_a_manifest_per_line(capsys, models):
    (models / "2" / "manifest.json").write_text("{")
    assert main(["models", "--json"]) == 0
    first, second, third = map(json.loads, capsys.readouterr().out.splitlines())
    assert (first["number"], first["champion"], first["class_names"]) == (1, False, ["happy", "sad"])
    assert second["number"] == 2
    assert "damaged" in second["error"]
    assert (third["champion"], third["parent"]) == (True, 2)


def test_models_says_where_there_are_none(capsys, place):
    assert main(["models"]) == 0
    assert f"no bundles in {place / 'models'}" in capsys.readouterr().out


def test_rollback_goes_back_from_parent_to_parent(capsys, models):
    assert main(["rollback"]) == 0
    assert bundle.champion(models) == 2
    said, pinned, more = capsys.readouterr().out.splitlines()
    assert "stays until" in pinned
    assert said == "champion: bundle 2 (was 3)"
    assert "a daemon that runs takes it within seconds" in more
    assert main(["rollback"]) == 0
    assert bundle.champion(models) == 1
    assert "there is no bundle before 1" in fails(capsys, 2, "rollback")


def test_rollback_to_a_number(models):
    assert main(["rollback", "1"]) == 0
    assert bundle.champion(models) == 1
    assert main(["rollback", "3"]) == 0
    assert bundle.champion(models) == 3


def test_rollback_works_from_a_damaged_or_missing_champion(models):
    (models / "3" / "manifest.json").write_text("{")
    assert main(["rollback"]) == 0
    assert bundle.champion(models) == 2
    shutil.rmtree(models / "2")
    assert main(["rollback"]) == 0
    assert bundle.champion(models) == 1


def test_rollback_refuses_a_bundle_that_does_not_work(capsys, models):
    (models / "2" / "model.tflite").write_bytes(b"cut")
    assert "models/2" in fails(capsys, 1, "rollback")
    assert bundle.champion(models) == 3


def test_evaluate_measures_any_folder_with_the_champion_or_a_number(capsys, models, photos):
    (photos / "sad" / "broken.jpg").write_text("x")
    for argv, number in ((["evaluate", "--data", "photos"], 3), (["evaluate", "--data", "photos", "--model", "1"], 1)):
        assert main(argv) == 0
        out = capsys.readouterr().out
        assert f"bundle {number}, tiny" in out
        assert "measured on 80 photos" in out
        assert "100.0%  (95 % interval 95.4% to 100.0%)" in out
        assert "not used: sad/broken.jpg" in out
        assert "keeps no record of its photos" in out
        (report,) = [line.removeprefix("report: ") for line in out.splitlines() if line.startswith("report: ")]
        assert "keeps no record of its photos" in Path(report).read_text()


def test_evaluate_takes_a_folder_with_some_of_the_classes(capsys, models, photos):
    shutil.rmtree(photos / "happy")
    assert main(["evaluate", "--data", "photos"]) == 0
    assert "only one class occurs" in capsys.readouterr().out


def test_evaluate_names_a_class_that_the_bundle_does_not_know(capsys, models, photos):
    os.rename(photos / "happy", photos / "merry")
    assert "class folder 'merry': bundle 3 has only happy, sad" in fails(capsys, 2, "evaluate", "--data", "photos")


@pytest.mark.parametrize("argv", [["--help"], ["models"], ["models", "--json"], ["rollback"], ["fit", "--help"]])
def test_what_needs_no_tensorflow_does_not_import_it(models, photos, argv):
    code = (
        "import json, sys\nfrom trainer.command_line import main\n"
        f"try: main({argv!r})\nexcept SystemExit: pass\n"
        "print(json.dumps([m for m in ('tensorflow', 'keras', 'sklearn', 'matplotlib') if m in sys.modules]))"
    )
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == []


def test_a_reader_that_stops_reading_is_no_error(models):
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    command = f"{sys.executable} -m trainer models | true"
    done = subprocess.run(["bash", "-c", command], env=env, capture_output=True, text=True, check=True)
    assert "Traceback" not in done.stderr
