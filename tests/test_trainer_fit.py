"""Real trainings of small drawn datasets, through the command."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import bundles
import drawings
from trainer import bundle, decisions, images, known_labels, replay

pytestmark = [
    pytest.mark.tf,
    # Keras reads TensorFlow variables with np.array(), which numpy 2.4 complains about
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"),
]
ROOT = Path(__file__).parent.parent
TUTORIAL = ("--architecture", "tutorial_cnn", "--set", "trainer.image_size=32", "--set", "trainer.batch_size=16")


def environment():
    kept = {name: value for name, value in os.environ.items() if not name.upper().startswith(("MOODBOX", "TF_CPP"))}
    return kept | {"PYTHONPATH": str(ROOT), "COLUMNS": "120"}


def moodbox_train(place, *argv):
    command = [sys.executable, "-m", "trainer", *argv]
    return subprocess.run(command, cwd=place, env=environment(), capture_output=True, text=True, check=False)


def only_run(place, architecture):
    (run,) = place.glob(f"runs/*-{architecture}")
    return run


def trainings(place):
    return [run for run in place.glob("runs/2*") if "evaluate" not in run.name]


def scalars(folder):
    """Read back what TensorBoard would show: {tag: values}."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util import tensor_util

    events = EventAccumulator(str(folder))
    events.Reload()
    return {
        tag: [float(tensor_util.make_ndarray(event.tensor_proto)) for event in events.Tensors(tag)]
        for tag in events.Tags()["tensors"]
        if tag.startswith("epoch_")
    }


@pytest.fixture(scope="module")
def default(tmp_path_factory):
    """Three classes, the default architecture and size."""
    place = tmp_path_factory.mktemp("default")
    drawings.folder(place / "photos", ("happy", "sad", "calm"), 36)
    (place / "photos" / "sad" / "broken.jpg").write_text("x")
    return SimpleNamespace(place=place, done=moodbox_train(place, "fit", "--data", "photos", "--epochs", "2"))


@pytest.fixture(scope="module")
def tutorial(tmp_path_factory):
    """Two classes, the tutorial's network, twice with the same seed; the second is not promoted."""
    place = tmp_path_factory.mktemp("tutorial")
    drawings.folder(place / "training")
    first = moodbox_train(place, "fit", *TUTORIAL, "--epochs", "2")
    second = moodbox_train(place, "fit", *TUTORIAL, "--epochs", "2", "--no-promote")
    return SimpleNamespace(place=place, first=first, second=second)


def test_fit_prints_what_was_measured_and_where_it_is(default):
    assert default.done.returncode == 0, default.done.stderr
    out, run = default.done.stdout, only_run(default.place, "efficientnet_lite0")
    for text in ("accuracy", "95 % interval", "balanced accuracy", "AUC", "confusion matrix", "taken for calm"):
        assert text in out
    assert f"bundle 1, now the champion: {default.place / 'models' / '1'}" in out
    assert "not used: sad/broken.jpg: not_an_image" in out
    assert f"report: {run / 'report.html'}" in out
    assert re.search(r"took \d+ s and \d\.\d GB of memory", out)


def test_fit_shows_progress_as_plain_lines_and_nothing_else(default, tutorial):
    for stderr in (default.done.stderr, tutorial.first.stderr):
        for line in stderr.splitlines():
            assert line.startswith(
                ("loading ", "photos ", "batches of ", "faces: ", "head: ", "fine_tune: ", "whole: ", "fine-tuning ")
            ), line
    assert "head: epoch 1/100  loss " in default.done.stderr
    assert "fine_tune: epoch 2/2  loss " in default.done.stderr


def test_the_default_model_learns_three_classes_and_serves_them(default, tmp_path):
    loaded = bundle.load(default.place / "models")
    manifest = loaded.manifest
    assert manifest.class_names == ("calm", "happy", "sad")
    assert (manifest.architecture, manifest.input_size, manifest.threshold) == ("efficientnet_lite0", 224, None)
    assert manifest.metrics["accuracy"] > 0.9
    predict = loaded.predictor()
    for label in manifest.class_names:
        drawings.photo(label, 999).save(tmp_path / "new.png")
        picture = images.decode(tmp_path / "new.png", size=224)
        assert bundle.decide(manifest, predict(picture).scores).label == label


def test_the_manifest_counts_the_photos_and_names_no_path(default):
    manifest = bundle.load(default.place / "models").manifest
    counts = manifest.dataset.counts
    assert sum(counts[split]["sad"] for split in counts) == 36
    assert manifest.metrics["photos"] == sum(counts["test"].values())
    assert manifest.parent is None
    assert {"python", "tensorflow", "keras", "ai-edge-litert", "numpy", "pillow", "moodbox"} == set(manifest.versions)
    assert set(manifest.files) == {
        "model.tflite", "model.keras", "replay.npz", "golden/expected.json",
        "golden/happy.png", "golden/sad.png", "golden/gradient.png", "golden/large.png",
    }  # fmt: skip
    for path in (default.place / "models" / "1").rglob("*"):
        assert not path.is_file() or str(default.place).encode() not in path.read_bytes()


def test_the_replay_holds_the_features_of_every_photo(default):
    loaded = bundle.load(default.place / "models")
    found = replay.read(loaded)
    view = sorted(only_run(default.place, "efficientnet_lite0").glob("data/*/*/*.png"))
    assert found.features.shape == (108, 1280)
    assert len(view) == 108
    rows = {int(prefix): row for row, prefix in enumerate(found.sha256_prefix)}
    for path in view:
        row = rows[int(path.stem[:16], 16)]
        assert loaded.manifest.class_names[found.labels[row]] == path.parent.name
        assert ("train", "validation", "test")[found.splits[row]] == path.parent.parent.name
    learned = replay.learned(loaded, [path.stem for path in view])
    assert [path.parent.parent.name != "test" for path in view] == learned


def test_a_replayed_feature_is_that_of_the_network_that_serves(default):
    from trainer import gradcam

    loaded = bundle.load(default.place / "models")
    found = replay.read(loaded)
    path = next(only_run(default.place, "efficientnet_lite0").glob("data/train/happy/*.png"))
    row = found.sha256_prefix.tolist().index(int(path.stem[:16], 16))
    network = gradcam.load(loaded.read("model.keras"))
    kernel, bias = network.get_layer("probabilities").get_weights()
    logits = found.features[row].astype(np.float32) @ kernel + bias
    scores = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    assert loaded.predictor()(images.decode(path)).scores == pytest.approx(scores, abs=0.02)


def test_evaluate_says_how_many_photos_it_learned_from(default):
    done = moodbox_train(default.place, "evaluate", "--data", "photos")
    assert done.returncode == 0, done.stderr
    learned = 108 - bundle.read_manifest(default.place / "models", 1).metrics["photos"]
    assert f"it has learned from {learned} of these photos: the figures flatter it" in done.stdout
    report = Path(re.search(r"report: (.*)", done.stdout)[1])
    assert f"learned from {learned} of these photos" in report.read_text()


def test_precisions_compares_the_three_on_photos_that_were_not_learned_from(default):
    done = moodbox_train(default.place, "precisions", "--data", "photos")
    assert done.returncode == 0, done.stderr
    photos = bundle.read_manifest(default.place / "models", 1).metrics["photos"]
    assert f"measured on {photos} photos" in done.stdout
    rows = [line.replace("│", " ").split() for line in done.stdout.splitlines() if line.startswith("│")]
    assert [row[0] for row in rows] == ["float32", "float16", "int8"]
    sizes = [float(row[1]) for row in rows]
    assert sizes[0] > 1.8 * sizes[1] > 1.8 * 1.5 * sizes[2]
    assert [float(row[4]) < limit for row, limit in zip(rows, (1e-6, 0.01, 0.5), strict=True)] == [True] * 3


@pytest.mark.parametrize("which", ["default", "tutorial"])
def test_tensorboard_gets_curves_histograms_and_photos(request, which):
    made = request.getfixturevalue(which)
    for run in trainings(made.place):
        stage = run / "tensorboard" / ("whole" if which == "tutorial" else "fine_tune")
        for part in ("train", "validation"):
            found = scalars(stage / part)
            assert {"epoch_loss", "epoch_accuracy", "epoch_cross_entropy"} <= set(found)
            assert len(found["epoch_loss"]) >= 2
            assert all(np.isfinite(found["epoch_loss"]))
        events = b"".join(path.read_bytes() for path in run.rglob("events.*"))
        for text in (b"histogram", b"training photos", b"hparams", b"settings", b"confusion", b"pr_curve"):
            assert text in events, text
        assert (which == "default") == (run / "tensorboard" / "projector" / "projector_config.pbtxt").exists()


@pytest.mark.parametrize("which", ["default", "tutorial"])
def test_a_run_holds_pictures_and_a_view_and_no_copy_of_the_bundle(request, which):
    made = request.getfixturevalue(which)
    for run in trainings(made.place):
        kept = {entry.name for entry in run.iterdir() if not entry.name.startswith("history-")}
        assert kept == {
            "confusion.png", "curves.png", "data", "report.html", "result.json", "run.json", "tensorboard",
        }  # fmt: skip
        assert "<svg" in (run / "report.html").read_text()
        for name in ("curves.png", "confusion.png"):
            assert images.decode(run / name).pixels.std() > 10


def test_the_tutorials_network_is_trained_and_served(tutorial):
    assert tutorial.first.returncode == 0, tutorial.first.stderr
    assert "whole: epoch 2/2" in tutorial.first.stderr
    loaded = bundle.load(tutorial.place / "models")
    manifest = loaded.manifest
    assert (manifest.architecture, manifest.input_size) == ("tutorial_cnn", 32)
    assert 0.3 <= manifest.threshold <= 0.7
    assert manifest.class_names == ("happy", "sad")
    assert manifest.metrics["photos"] == sum(manifest.dataset.counts["test"].values())
    assert "replay.npz" not in manifest.files
    assert loaded.predictor()(bundles.shown(np.zeros((32, 32, 3), np.uint8))).scores.sum() == pytest.approx(
        1.0, abs=1e-5
    )


def test_a_bundle_that_is_not_promoted_leaves_the_champion(tutorial):
    assert tutorial.second.returncode == 0, tutorial.second.stderr
    models = tutorial.place / "models"
    assert bundle.numbers(models) == [1, 2]
    assert bundle.champion(models) == 1
    assert bundle.read_manifest(models, 2).parent == 1
    assert "bundle 2, not the champion" in tutorial.second.stdout
    assert "rollback 2" in tutorial.second.stdout
    (line,) = decisions.read(tutorial.place / "models")
    read = bundle.read_manifest(tutorial.place / "models", 1)
    assert (line["event"], line["champion"], line["folder"]) == ("fit", 1, read.dataset.hash)
    assert len(known_labels.read(tutorial.place / "models")) == 80


def test_the_same_photos_and_seed_give_the_same_model(tutorial):
    first, second = (bundle.load(tutorial.place / "models", number) for number in (1, 2))
    assert first.model == second.model
    assert first.manifest.metrics == second.manifest.metrics
    assert first.manifest.dataset == second.manifest.dataset


def test_a_second_run_uses_the_prepared_copy_of_the_first(tutorial):
    prepared = list(tutorial.place.glob("runs/prepared/32px-v*/*/*.png"))
    assert len(prepared) == 80
    assert {path.stat().st_nlink for path in prepared} == {3}


BAD = [
    (["--architecture", "tutorial_cn"], "did you mean tutorial_cnn?"),
    (["--architecture", "tutorial_cnn", "--set", "trainer.image_size=8"], "at least 22"),
    (["--set", "trainer.image_size=100"], "multiple of 32"),
    (["--data", "few"], "class 'happy' has 3 usable photos"),
    ([*TUTORIAL, "--set", "trainer.batch_size=4096"], "trainer.batch_size 4096 takes about"),
    ([*TUTORIAL, "--set", "trainer.hooks=nowhere.py:Mine"], "trainer.hooks"),
]


@pytest.mark.parametrize(("argv", "match"), BAD)
def test_bad_input_that_only_training_finds_is_one_line_and_leaves_nothing(
    tutorial, tmp_path, monkeypatch, capsys, argv, match
):
    from trainer import memory
    from trainer.command_line import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(memory, "available", lambda: 50_000_000)
    drawings.folder(tmp_path / "few", count=3)
    os.symlink(tutorial.place / "training", tmp_path / "training")
    assert main(["fit", *argv]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("moodbox-train: ")
    assert match in last
    assert not (tmp_path / "models").exists()
    assert all(not (run / "result.json").exists() for run in tmp_path.glob("runs/2*"))


SMALL = ("--set", "trainer.image_size=64", "--set", "trainer.batch_size=8", "--epochs", "6")


def stopped_at(place, text, number, *argv):
    """Begin a training and send it a signal once it has said `text`; return its exit status and what it said then."""
    command = [sys.executable, "-m", "trainer", *argv]
    with subprocess.Popen(
        command, cwd=place, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        deadline = time.monotonic() + 120
        for line in process.stderr:
            if line.startswith(text) or time.monotonic() > deadline:
                break
        process.send_signal(number)
        rest = process.communicate(timeout=60)[1].splitlines()
    return process.returncode, rest


def test_a_run_that_was_interrupted_twice_ends_at_the_same_model(tmp_path):
    drawings.folder(tmp_path / "training")
    status, _ = stopped_at(tmp_path, "fine_tune: epoch 2/6", signal.SIGKILL, "fit", *SMALL)
    assert status == -signal.SIGKILL
    status, said = stopped_at(tmp_path, "fine_tune: epoch 4/6", signal.SIGTERM, "fit", *SMALL, "--resume")
    assert status == 130
    assert said[-1] == ("moodbox-train: interrupted: the same command with --resume goes on")
    assert not any("Traceback" in line for line in said)
    assert not (tmp_path / "models").exists()

    changed = moodbox_train(tmp_path, "fit", *SMALL, "--resume", "--set", "trainer.seed=1")
    assert changed.returncode == 2
    assert "cannot go on, since trainer.seed changed" in changed.stderr
    assert moodbox_train(tmp_path, "fit", *SMALL, "--resume").returncode == 0
    assert moodbox_train(tmp_path, "fit", *SMALL).returncode == 0

    resumed, straight = (bundle.load(tmp_path / "models", number) for number in (1, 2))
    assert resumed.model == straight.model
    assert resumed.manifest.metrics == straight.manifest.metrics
    histories = [path.read_text() for path in sorted(tmp_path.glob("runs/2*/history-fine_tune.csv"))]
    assert len(histories) == 2
    assert histories[0] == histories[1]


def test_ctrl_c_is_one_line_and_publishes_nothing(tutorial):
    elsewhere = ("--set", "models.root=other", "--set", "trainer.runs=stopped")
    argv = ("fit", *TUTORIAL, "--epochs", "100000", "--set", "trainer.patience=100000", *elsewhere)
    status, said = stopped_at(tutorial.place, "whole: epoch 2/", signal.SIGINT, *argv)
    assert status == 130
    assert said[-1].startswith("moodbox-train: interrupted")
    assert not any("Traceback" in line for line in said)
    assert not (tutorial.place / "other").exists()


def test_a_run_that_was_killed_once_it_had_published_publishes_nothing_more(tmp_path, monkeypatch, capsys):
    from trainer import runs
    from trainer.command_line import main

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    drawings.folder(tmp_path / "training")
    real = runs.finish
    monkeypatch.setattr(runs, "finish", killed)
    assert main(["fit", *TUTORIAL, "--epochs", "2"]) == 130
    os.unlink(tmp_path / "models" / "champion")
    monkeypatch.setattr(runs, "finish", real)
    assert main(["fit", *TUTORIAL, "--epochs", "2", "--resume"]) == 0
    assert bundle.numbers(tmp_path / "models") == [1]
    assert bundle.champion(tmp_path / "models") == 1
    assert main(["fit", *TUTORIAL, "--epochs", "2", "--resume"]) == 2
    assert "was not interrupted" in capsys.readouterr().err


def test_a_damaged_prepared_copy_is_one_clear_line(tmp_path, monkeypatch, capsys):
    from trainer.command_line import main

    monkeypatch.chdir(tmp_path)
    drawings.folder(tmp_path / "training")
    argv = ["fit", *TUTORIAL, "--epochs", "1", "--no-promote"]
    assert main(argv) == 0
    for path in tmp_path.glob("runs/prepared/*/*/*.png"):
        data = path.read_bytes()
        path.unlink()
        path.write_bytes(data[:200])
    assert main(argv) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("moodbox-train: ")
    assert "prepared: a prepared copy of a photo is damaged: delete that folder" in last
    assert bundle.numbers(tmp_path / "models") == [1]


def test_test_photos_that_change_or_vanish_while_it_trains_are_measured_as_they_were(tmp_path, monkeypatch):
    from trainer import assembly, train
    from trainer.settings import load

    monkeypatch.chdir(tmp_path)
    drawings.folder(tmp_path / "training")
    flags = [option for option in TUTORIAL if "=" in option]
    chosen = load(flags=[*flags, "trainer.architecture=tutorial_cnn"]).settings
    plan = train.Plan.of(chosen.trainer)
    data = train.prepare(chosen, plan)
    view = train.open_view(chosen, plan, data, tmp_path / "view")
    shown = assembly.never_seen(data, data.of("test"), None)
    before = assembly.files_of(view, shown)
    changed, gone = before[0][0], before[1][0]
    changed.write_bytes((tmp_path / "training" / "sad" / "sad1.png").read_bytes())
    gone.unlink()
    after = assembly.files_of(view, shown)
    assert [path for path, _ in after[2:]] == [path for path, _ in before[2:]]
    photos = data.of("test")
    for (path, label), photo in zip(after[:2], photos[:2], strict=True):
        assert path.stem == photo.sha256
        assert label == photo.label
        assert images.decode(path).pixels.shape == (32, 32, 3)


def test_a_model_that_guesses_is_published_and_not_the_champion(tmp_path):
    """The same photos under both names: nothing can tell them apart."""
    for label in ("happy", "sad"):
        (tmp_path / "training" / label).mkdir(parents=True)
        for number in range(40):
            drawings.photo("calm", number + 1000 * (label == "sad")).save(
                tmp_path / "training" / label / f"{number}.png"
            )
    done = moodbox_train(tmp_path, "fit", *TUTORIAL, "--epochs", "1", "--set", "trainer.learning_rate=0.000000001")
    assert done.returncode == 0, done.stderr
    assert "no better than guessing" in done.stdout
    assert bundle.numbers(tmp_path / "models") == [1]
    assert bundle.champion(tmp_path / "models") is None


def test_training_never_looks_at_the_test_photos(tutorial, tmp_path):
    from trainer import fit
    from trainer.tables import Trainer

    run = min(tutorial.place.glob("runs/2*"))
    for split in ("train", "validation"):
        shutil.copytree(run / "data" / split, tmp_path / "view" / split)
    asked = Trainer(architecture="tutorial_cnn", image_size=32, epochs=1)
    labels = {
        split: [("happy", "sad").index(path.parent.name) for path in sorted((run / "data" / split).glob("*/*.png"))]
        for split in ("train", "validation")
    } | {"test": []}
    count = sum(map(len, labels.values()))
    view = fit.View(tmp_path / "view", ("happy", "sad"), labels, np.arange(count))
    pictures = np.concatenate(list(view.batches(fit.Plan.of(asked), ("train", "validation", "test"))))
    assert len(pictures) == count, "a split without photos is none of Keras'"
    fitted = fit.fit(asked, fit.Plan.of(asked), view, tmp_path / "run")
    assert {"accuracy", "val_accuracy", "cross_entropy", "val_cross_entropy"} <= set(fitted.histories["whole"])
