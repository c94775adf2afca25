import json
import math
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import bundles
from trainer import bundle, durable
from trainer.bundle import BundleError

RED, GREEN, _ = bundles.COLOURS
ROOT = Path(__file__).parent.parent


@pytest.fixture
def models(tmp_path):
    bundles.publish(tmp_path / "models", tmp_path / "staged")
    bundle.promote(tmp_path / "models", 1)
    return tmp_path / "models"


def picture(colour):
    return bundles.shown(np.full((bundles.SIZE, bundles.SIZE, 3), colour, np.uint8))


def edit_manifest(models, **fields):
    path = models / "1" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def leftovers(models):
    return [entry.name for entry in models.iterdir() if entry.name.startswith(".")]


def test_a_published_bundle_loads_and_predicts(models):
    loaded = bundle.load(models)
    assert loaded.manifest.number == 1
    scores = loaded.predictor()(picture(GREEN)).scores
    assert scores.dtype == np.float32
    assert scores == pytest.approx(bundles.scores(GREEN), abs=1e-3)
    assert bundle.decide(loaded.manifest, scores).label == "sad"
    assert bundle.decide(loaded.manifest, loaded.predictor()(picture(RED)).scores).label == "happy"


def test_what_was_loaded_outlives_its_folder(models):
    loaded = bundle.load(models)
    shutil.rmtree(models)
    assert loaded.predictor()(picture(RED)).scores[0] > 0.9


def test_three_classes_have_no_threshold(tmp_path):
    number = bundles.publish(tmp_path / "models", tmp_path / "staged", classes=3)
    loaded = bundle.load(tmp_path / "models", number)
    assert loaded.manifest.threshold is None
    assert bundle.decide(loaded.manifest, loaded.predictor()(picture((0, 0, 255))).scores).label == "red"


def test_a_predictor_refuses_pixels_of_another_shape_or_type(models):
    predict = bundle.load(models).predictor()
    with pytest.raises(ValueError, match="expected uint8"):
        predict(bundles.shown(np.zeros((1, 2, 3), np.uint8)))
    with pytest.raises(ValueError, match="expected uint8"):
        predict(bundles.shown(picture(RED).pixels.astype(np.float32)))


def test_numbers_grow_and_ignore_what_is_no_bundle(models, tmp_path):
    (models / "notes.txt").write_text("x")
    (models / "07").mkdir()
    (models / ".staging-x").mkdir()
    (models / "12").write_text("a file")
    assert bundle.numbers(models) == [1]
    assert bundles.publish(models, tmp_path / "second") == 2
    assert bundle.numbers(models) == [1, 2]
    assert bundle.numbers(tmp_path / "nowhere") == []


def test_a_number_once_used_is_not_used_again_while_a_later_one_exists(models, tmp_path):
    bundles.publish(models, tmp_path / "second")
    shutil.rmtree(models / "1")
    assert bundles.publish(models, tmp_path / "third") == 3


def test_promote_switches_the_champion_and_leaves_nothing_behind(models, tmp_path):
    bundles.publish(models, tmp_path / "second")
    assert bundle.champion(models) == 1
    bundle.promote(models, 2)
    assert bundle.champion(models) == 2
    assert os.readlink(models / "champion") == "2"
    assert leftovers(models) == []


@pytest.mark.parametrize("name", ["symlink", "rename", "fsync"])
def test_there_is_a_champion_at_every_step_of_promoting(models, tmp_path, monkeypatch, name):
    bundles.publish(models, tmp_path / "second")
    with monkeypatch.context() as patch:
        crash_at(patch, os, name, 1)
        with pytest.raises(Killed):
            bundle.promote(models, 2)
    assert bundle.champion(models) == (2 if name == "fsync" else 1)


def test_promote_refuses_a_bundle_that_is_not_there(models):
    with pytest.raises(BundleError, match="no such bundle"):
        bundle.promote(models, 9)
    assert bundle.champion(models) == 1


def test_promote_says_what_stands_in_its_way(models):
    os.unlink(models / "champion")
    (models / "champion").mkdir()
    with pytest.raises(BundleError, match="cannot be replaced"):
        bundle.promote(models, 1)
    assert leftovers(models) == []
    with pytest.raises(BundleError, match="not a symlink"):
        bundle.champion(models)


@pytest.mark.parametrize("target", ["../elsewhere", "01", "", "x"])
def test_a_champion_link_to_something_else_is_an_error(models, target):
    os.unlink(models / "champion")
    if target:
        os.symlink(target, models / "champion")
        with pytest.raises(BundleError, match="no bundle's number"):
            bundle.champion(models)
    else:
        assert bundle.champion(models) is None
        with pytest.raises(BundleError, match="no bundle is champion"):
            bundle.load(models)


def test_a_champion_that_was_deleted_is_named(models):
    shutil.rmtree(models / "1")
    with pytest.raises(BundleError, match=r"models/1: there is no such bundle; .*rollback"):
        bundle.load(models)


FILES = ["model.tflite", "golden/0.png", "golden/expected.json", "manifest.json"]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "one bit", "a directory", "longer"])
def test_damage_to_any_file_that_serving_needs_is_refused_by_name(models, name, damage):
    path = models / "1" / name
    data = path.read_bytes()
    os.unlink(path)
    if damage == "a directory":
        path.mkdir()
    elif damage != "missing":
        flipped = data[:40] + bytes([data[40] ^ 1]) + data[41:]
        path.write_bytes({"empty": b"", "cut": data[:-9], "one bit": flipped, "longer": data + b"}"}[damage])
    with pytest.raises(BundleError) as caught:
        bundle.load(models)
    text = str(caught.value)
    assert "models/1" in text
    assert "\n" not in text
    assert name in text or damage == "one bit"
    assert "moodbox-train" in text


@pytest.mark.parametrize("name", ["model.keras"])
def test_damage_to_what_serving_does_not_need_is_found_when_it_is_read(models, name):
    loaded = bundle.load(models)
    assert loaded.read(name) == b"stands for a keras file"
    (models / "1" / name).write_bytes(b"something else")
    assert bundle.load(models).manifest.number == 1
    with pytest.raises(BundleError, match="sha256 differs"):
        loaded.read(name)


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"format_version": 3, "a_new_key": 1}, "bundle format 3"),
        ({"preprocessing_version": 99}, "preprocessing version 99"),
        ({"number": 5}, "says that it is bundle 5"),
        ({"class_names": ["happy", "inbox"]}, "inbox"),
        ({"class_names": ["happy", "../sad"]}, "plain folder name"),
        ({"class_names": ["happy"]}, "class_names"),
        ({"class_names": ["a", "b", "c"]}, "threshold"),
        ({"class_names": ["a", "b", "c"], "threshold": None}, r"output is \(1, 2\)"),
        ({"input_size": 64}, r"input is \(1, 32, 32, 3\)"),
        ({"threshold": 1.5}, "threshold"),
        ({"surprise": 1}, "surprise"),
        ({"created": "2026-01-02T03:04:05+02:00"}, "UTC"),
        ({"files": {"../../etc/passwd": "0"}}, "does not belong"),
        ({"files": {}}, "names no model.tflite"),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(models, fields, match):
    edit_manifest(models, **fields)
    with pytest.raises(BundleError, match=match) as caught:
        bundle.load(models)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "expected",
    [
        {"tolerance": 0.01, "scores": {"0.png": [0.5, 0.5]}},
        {"tolerance": 0.01, "scores": {"0.png": [1.0]}},
        {"tolerance": 0.01, "scores": {"0.png": [0.9963, 0.0037, 0.0]}},
        {"tolerance": 0.01, "scores": {}},
        {"tolerance": 1.0, "scores": {"0.png": [0.5, 0.5]}},
        {"tolerance": 0.01, "scores": {"0.png": [float("nan"), float("nan")]}},
        {"tolerance": 0.01, "scores": {"../0.png": [0.5, 0.5]}},
        [],
    ],
)
def test_publishing_a_bundle_that_disagrees_with_its_golden_images_leaves_nothing(tmp_path, expected):
    staged = bundles.stage(tmp_path / "staged")
    (staged / "golden" / "expected.json").write_text(json.dumps(expected))
    with pytest.raises(BundleError):
        bundle.publish(tmp_path / "models", staged, bundles.draft())
    assert list((tmp_path / "models").iterdir()) == []


@pytest.mark.parametrize("name", ["model.tflite", "golden/expected.json", "golden/0.png"])
def test_publishing_without_a_needed_file_leaves_nothing(tmp_path, name):
    staged = bundles.stage(tmp_path / "staged")
    os.unlink(staged / name)
    with pytest.raises(BundleError, match=name):
        bundle.publish(tmp_path / "models", staged, bundles.draft())
    assert list((tmp_path / "models").iterdir()) == []


@pytest.mark.parametrize("model", [b"", b"no flat buffer", bundles.tflite()[:700]])
def test_a_model_that_litert_cannot_run_is_refused(tmp_path, model):
    staged = bundles.stage(tmp_path / "staged")
    (staged / "model.tflite").write_bytes(model)
    with pytest.raises(BundleError, match=r"model\.tflite"):
        bundle.publish(tmp_path / "models", staged, bundles.draft())


def test_publishers_at_the_same_time_get_different_numbers(tmp_path):
    models = tmp_path / "models"
    staged = bundles.stage(tmp_path / "staged")
    with ThreadPoolExecutor(8) as pool:
        given_out = list(pool.map(lambda _: bundle.publish(models, staged, bundles.draft()), range(16)))
    assert sorted(given_out) == list(range(1, 17)) == bundle.numbers(models)
    assert all(bundle.load(models, number).manifest.number == number for number in given_out)
    assert leftovers(models) == []


class Killed(BaseException):
    """Stands for SIGKILL: nothing may handle it."""


def crash_at(monkeypatch, module, name, step):
    """Let the `step`-th call of a system call end the process instead."""
    real, calls = getattr(module, name), []

    def call(*args, **kwargs):
        calls.append(args)
        if len(calls) == step:
            raise Killed
        return real(*args, **kwargs)

    monkeypatch.setattr(module, name, call)
    return calls


@pytest.mark.parametrize("name", ["fsync", "rename"])
def test_a_crash_at_any_step_of_publishing_leaves_no_half_bundle(models, tmp_path, monkeypatch, name):
    staged = bundles.stage(tmp_path / "second")
    monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: None)
    for step in range(1, 100):
        with monkeypatch.context() as patch:
            calls = crash_at(patch, os, name, step)
            try:
                bundle.publish(models, staged, bundles.draft())
            except Killed:
                pass
            else:
                break
        assert len(calls) == step
        assert bundle.champion(models) == 1
        assert all(bundle.load(models, number) for number in bundle.numbers(models))
    assert step > 2
    assert bundle.numbers(models)[-1] >= 2


def test_every_file_and_directory_is_synced_before_the_rename(tmp_path, monkeypatch):
    events = []
    real_sync, real_rename = os.fsync, os.rename
    monkeypatch.setattr(os, "fsync", lambda fd: (events.append(os.readlink(f"/proc/self/fd/{fd}")), real_sync(fd)))
    monkeypatch.setattr(os, "rename", lambda a, b: (events.append(f"{b}"), real_rename(a, b)))
    models = tmp_path / "models"
    bundles.publish(models, tmp_path / "staged")
    renamed = events.index(str(models / "1"))
    before = {os.path.basename(event) for event in events[:renamed]}
    assert {"model.tflite", "model.keras", "0.png", "1.png", "expected.json", "golden"} <= before
    assert any(name.startswith(".manifest.json.") for name in before)
    assert any(name.startswith(".staging-") for name in before)
    assert events[renamed + 1 :] == [str(models)]


def test_a_full_disk_leaves_nothing(models, tmp_path, monkeypatch):
    def full(path, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(durable, "write_new", full)
    with pytest.raises(OSError, match="No space"):
        bundles.publish(models, tmp_path / "second")
    assert bundle.numbers(models) == [1]
    assert leftovers(models) == []


def test_staging_folders_of_crashed_publishers_are_removed_after_a_day(models, tmp_path):
    for name, mtime in ((".staging-old", 0), (".staging-new", None)):
        (models / name).mkdir()
        os.utime(models / name, None if mtime is None else (mtime, mtime))
    bundles.publish(models, tmp_path / "second")
    assert leftovers(models) == [".staging-new"]


@pytest.fixture
def packaged(tmp_path, monkeypatch):
    """Make a tiny bundle stand for the one that ships with the package."""
    made = tmp_path / "package"
    bundles.publish(made, tmp_path / "for-package")
    (made / "1").rename(made / "bundle")
    monkeypatch.setattr("importlib.resources.files", lambda _: made)
    return made / "bundle"


def test_the_shipped_bundle_is_installed_once(packaged, tmp_path):
    models = tmp_path / "models"
    assert bundle.install_shipped(models) == 1
    assert bundle.load(models).manifest.number == 1
    assert bundle.install_shipped(models) is None
    assert leftovers(models) == []


def test_the_shipped_bundle_is_not_installed_beside_others(packaged, models):
    os.unlink(models / "champion")
    edit_manifest(models, seed=1)
    assert bundle.install_shipped(models) is None
    assert bundle.champion(models) is None


def test_a_crash_between_installing_and_promoting_is_made_good(packaged, tmp_path):
    models = tmp_path / "models"
    bundle.install_shipped(models)
    os.unlink(models / "champion")
    assert bundle.install_shipped(models) == 1
    assert bundle.champion(models) == 1


def test_two_installations_at_once_give_one_bundle(packaged, tmp_path):
    models = tmp_path / "models"
    with ThreadPoolExecutor(6) as pool:
        results = list(pool.map(lambda _: bundle.install_shipped(models), range(6)))
    assert 1 in results
    assert bundle.numbers(models) == [1]
    assert bundle.load(models).manifest.number == 1
    assert leftovers(models) == []


def test_an_installation_without_a_shipped_bundle_says_what_to_do(packaged, tmp_path):
    shutil.rmtree(packaged)
    with pytest.raises(BundleError, match="moodbox-train fit"):
        bundle.install_shipped(tmp_path / "models")


def test_a_damaged_shipped_bundle_is_not_installed(packaged, tmp_path):
    (packaged / "model.tflite").write_bytes(b"cut")
    with pytest.raises(BundleError, match="sha256 differs"):
        bundle.install_shipped(tmp_path / "models")
    assert list((tmp_path / "models").iterdir()) == []


probability = st.floats(0.0, 1.0)


@given(probability, st.floats(0.01, 0.99))
def test_two_classes_are_decided_by_the_threshold_alone(score, threshold):
    manifest = bundles.draft(threshold=threshold)
    decision = bundle.decide(manifest, [1.0 - score, score])
    assert decision.label == ("sad" if score >= threshold else "happy")
    assert decision.score == (score if score >= threshold else 1.0 - score)


@given(st.lists(probability, min_size=3, max_size=3))
def test_more_classes_are_decided_by_the_most_probable(scores):
    decision = bundle.decide(bundles.draft(3), scores)
    assert decision.score == max(scores)
    assert decision.label == ("blue", "green", "red")[scores.index(max(scores))]


@pytest.mark.parametrize("scores", [[math.nan, 0.5], [0.5, math.inf], [1.0], [0.2, 0.3, 0.5], []])
def test_scores_that_are_no_probabilities_of_the_classes_raise(scores):
    with pytest.raises(ValueError, match="finite numbers"):
        bundle.decide(bundles.draft(), scores)


GOOD_NAMES = ["happy", "Sehr glücklich", "笑", "a" * 100, "no.dots.at.start", "-x", "inbox2"]
BAD_NAMES = [
    "", ".", "..", ".hidden", "a/b", "/", "inbox", "INBOX", "Review", "rejected", "Undone", "a" * 101, "é" * 51,
    "tab\there", "nul\0", "line\nend", "\x85", "\udcff",
]  # fmt: skip


@pytest.mark.parametrize("name", GOOD_NAMES)
def test_class_names_that_can_be_folders(name):
    assert bundle.check_class_name(name) == name


@pytest.mark.parametrize("name", BAD_NAMES)
def test_class_names_that_cannot(name):
    with pytest.raises(ValueError, match="class name"):
        bundle.check_class_name(name)


@pytest.mark.parametrize("names", [("Sad", "sad"), ("é", "e\u0301"), ("x", "x")])
def test_class_names_must_differ_in_more_than_case(names):
    with pytest.raises(ValueError, match="differ only"):
        bundle.check_class_names(names)


def test_importing_the_bundle_module_is_light():
    code = "import sys, trainer.bundle; print([m for m in ('numpy', 'tensorflow', 'PIL') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_bundle_that_ships_installs_and_serves(tmp_path):
    """It and the weights beside it stay small enough for a package, and hold nothing but what they should."""
    assert bundle.install_shipped(tmp_path / "models") == 1
    loaded = bundle.load(tmp_path / "models")
    assert loaded.manifest.class_names == ("happy", "sad")
    assert loaded.predictor()(bundles.shown(np.zeros((224, 224, 3), np.uint8))).scores.sum() == pytest.approx(
        1.0, abs=1e-5
    )
    files = [path for path in (ROOT / "trainer" / "pretrained").rglob("*") if path.is_file() and path.suffix != ".pyc"]
    assert max(path.stat().st_size for path in files) < 30e6
    assert sum(path.stat().st_size for path in files) < 60e6
    shipped = {str(p.relative_to(ROOT / "trainer/pretrained/bundle")) for p in files if "bundle" in p.parts}
    assert shipped == {"manifest.json", *loaded.manifest.files}
    assert {name for name in shipped if name.endswith((".png", ".jpg"))} == {
        f"golden/{name}.png" for name in ("happy", "sad", "gradient", "large", "portrait_happy", "portrait_sad", "face")
    }
    assert loaded.manifest.views == ("scene", "faces")


def test_a_pipe_in_place_of_a_file_is_not_waited_for(models):
    (models / "1/manifest.json").unlink()
    os.mkfifo(models / "1/manifest.json")
    with pytest.raises(BundleError, match=r"manifest.json is no regular file"):
        bundle.load(models, 1)
