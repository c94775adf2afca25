"""Real rounds of retraining, through the command: a champion that sees little, and drawn photos."""

import json
import os
import signal
import subprocess
import sys
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import bundles
import drawings
from trainer import bundle, decisions, known_labels, promotion, replay, split_record, teaching
from trainer.command_line import main

pytestmark = [
    pytest.mark.tf,
    # Keras reads TensorFlow variables with np.array(), which numpy 2.4 complains about
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"),
]
ROOT = Path(__file__).parent.parent
SIZE = 64
EACH = {"train": 30, "validation": 6, "test": 20}


def made(models, folder, labels):
    """Publish a champion of drawn photos, each class its colour; its features are the means of 16 parts."""
    from trainer import export, heads, teaching

    photos = [(label, number, split) for label in labels for split, numbers in blocks() for number in numbers]
    pixels = np.stack([np.asarray(drawings.photo(label, number, (SIZE, SIZE))) for label, number, _ in photos])
    backbone = coarse()
    features = backbone.predict(pixels.astype(np.float32), verbose=0).astype(np.float16)
    known = replay.Replay(
        features,
        np.array([labels.index(label) for label, *_ in photos], np.uint16),
        np.array([("train", "validation", "test").index(split) for *_, split in photos], np.uint8),
        np.arange(len(photos), dtype=np.uint64),
    )
    last = teaching.fit(known, np.zeros(len(photos), bool), len(labels))
    export.stage(heads.join(backbone, last, len(labels)), folder, len(labels), known)
    draft = bundles.draft(len(labels), class_names=labels, input_size=SIZE, architecture="efficientnet_lite0")
    bundle.promote(models, bundle.publish(models, folder, draft))


def coarse():
    """Return a backbone that takes no time to convert."""
    import keras

    picture = keras.Input((SIZE, SIZE, 3))
    parts = keras.layers.AveragePooling2D(SIZE // 4)(keras.layers.Rescaling(1 / 255)(picture))
    return keras.Model(picture, keras.layers.Flatten()(parts), name="coarse")


def blocks():
    start = 0
    for split, count in EACH.items():
        yield split, range(start, start + count)
        start += count


@pytest.fixture(scope="module")
def champion_of_two(tmp_path_factory):
    place = tmp_path_factory.mktemp("two")
    made(place / "models", place / "staged", ("happy", "sad"))
    return place / "models"


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch, champion_of_two):
    """Work in a directory with the champion of two classes; the tests' own process keeps its priority."""
    for name in [name for name in os.environ if name.upper().startswith("MOODBOX")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(os, "nice", lambda _: 19)
    monkeypatch.chdir(tmp_path)
    copy(champion_of_two, tmp_path / "models")
    return tmp_path


def copy(models, target):
    subprocess.run(["cp", "-a", str(models), str(target)], check=True)


def correct(place, label, looks, numbers):
    """Put drawn photos of the colour of `looks` into a class folder; those from 1000 on are new."""
    folder = place / "training" / label
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        drawings.photo(looks, number, (SIZE, SIZE)).save(folder / f"{looks}{number}.png")


def retrain(capsys, *argv, status=0):
    assert main(["retrain", *argv]) == status
    said = capsys.readouterr()
    return said.out if status == 0 else said.err.splitlines()[-1]


def lines(place):
    return decisions.read(place / "models")


def test_without_photos_there_is_nothing_to_learn(capsys, place):
    assert "nothing to learn from yet" in retrain(capsys)
    (place / "training" / "sad").mkdir(parents=True)
    (place / "training" / ".moodbox-deliveries.jsonl").write_text("{}\n")
    assert "nothing to learn from yet" in retrain(capsys)
    assert lines(place) == []


def deliver(place, numbers):
    """Draw photos and list them as delivered; return their paths."""
    (place / "tray").mkdir()
    paths = [place / "tray" / f"<b>{number}.png" for number in numbers]
    for path, number in zip(paths, numbers, strict=True):
        drawings.photo("calm", number, (SIZE, SIZE)).save(path)
    listed = [{"path": str(p), "sha256": sha256(p.read_bytes()).hexdigest(), "label": "happy"} for p in paths]
    (place / "training").mkdir()
    text = "".join(json.dumps(line) + "\n" for line in listed) + "{\n[]\n"
    (place / "training" / ".moodbox-deliveries.jsonl").write_text(text)
    return paths


def answers(place, paths):
    loaded = bundle.load(place / "models")
    predict, eye = loaded.predictor(), loaded.eye()
    return [bundle.decide(loaded.manifest, predict(eye(path)).scores.tolist()).label for path in paths]


def test_ten_corrections_teach_and_the_same_folder_is_not_judged_twice(capsys, place):
    from test_trainer_report import Page

    gone, changed, *delivered = deliver(place, range(2000, 2010))
    gone.unlink()
    changed.write_bytes(b"changed")
    (was,) = set(answers(place, delivered))
    other = "sad" if was == "happy" else "happy"
    correct(place, other, "calm", range(1000, 1010))
    said = retrain(capsys, "--set", 'tray.ignore=["*.part"]')
    assert f"new: 10 photos: 10 {other}" in said
    assert "the last layer learns anew" in said
    assert bundle.champion(place / "models") == 2
    assert lines(place)[-1]["event"] == "promoted"
    assert answers(place, delivered) == [other] * 8
    new = bundle.load(place / "models")
    assert len(replay.read(new).labels) == 2 * sum(EACH.values()) + 10
    assert (new.manifest.parent, new.manifest.metrics["judged"]["retraining"]) == (1, True)

    assert "of the last 8 photos that were sorted and not corrected, 8 would now go elsewhere" in said
    assert "Of the 10 new photos, 10 are answered as people said (0 before)" in said
    page = Page(Path(said.splitlines()[-1].removeprefix("report: ")))
    assert "script" not in page.tags
    assert len([link for link in page.links if link.startswith("data:image/jpeg;base64,")]) == 8
    assert "Promoted. The challenger is right" in page.text
    assert "<b>2002.png" in page.text
    assert ".moodbox" not in said

    assert "nothing new since the last round: bundle 2 stays" in retrain(capsys)
    assert main(["rollback"]) == 0
    assert "nothing new since the last round: bundle 1 stays" in retrain(capsys)
    assert main(["models"]) == 0
    assert "pinned by rollback" in " ".join(capsys.readouterr().out.split())
    correct(place, other, "calm", range(1010, 1014))
    assert "new: 4 photos" in retrain(capsys)
    assert (bundle.champion(place / "models"), lines(place)[-1]["before"]) == (3, 1)
    assert not decisions.pinned(lines(place))


def test_three_classes(capsys, place, tmp_path_factory):
    three = tmp_path_factory.mktemp("three")
    made(three / "models", three / "staged", ("calm", "happy", "sad"))
    subprocess.run(["rm", "-r", str(place / "models")], check=True)
    copy(three / "models", place / "models")
    correct(place, "calm", "red", range(1000, 1012))
    retrain(capsys)
    assert lines(place)[-1]["event"] == "promoted"
    assert bundle.load(place / "models", 2).manifest.threshold is None


def test_the_bundle_that_ships_learns_and_keeps_its_eye_for_faces(capsys, place):
    import portraits

    subprocess.run(["rm", "-r", str(place / "models")], check=True)
    (place / "training" / "sad").mkdir(parents=True)
    for number in range(10):
        portraits.photo(number, smiles=bool(number % 2)).save(place / "training" / "sad" / f"{number}.png")
    said = retrain(capsys)
    assert "462 photos" in said
    first, second = (bundle.load(place / "models", number) for number in (1, 2))
    assert first.model != second.model
    assert (first.manifest.faces, first.detector) == (second.manifest.faces, second.detector)
    assert first.manifest.threshold == second.manifest.threshold  # of both views together: the replay has one
    assert [len(replay.read(made).labels) for made in (first, second)] == [2880, 2890]


def test_a_rollback_while_it_trains_is_not_undone(capsys, place, monkeypatch):
    from trainer import retraining

    bundles.publish(place / "models", place / "tiny")
    correct(place, "sad", "calm", range(1000, 1004))

    def meanwhile(*_):
        bundle.promote(place / "models", 2)
        return 0, 0

    monkeypatch.setattr(retraining, "report", meanwhile)
    assert "somebody chose a champion meanwhile: the next retraining judges anew" in retrain(capsys, status=1)
    assert (bundle.champion(place / "models"), lines(place)) == (2, [])


def test_a_poisoned_round_that_the_others_outweigh_does_no_harm(capsys, place):
    correct(place, "sad", "happy", range(1000, 1040))
    correct(place, "happy", "sad", range(1000, 1040))
    retrain(capsys)
    (line,) = lines(place)
    judges = line["judges"][0]
    assert judges["challenger"] >= judges["champion"] or line["event"] == "refused"


def test_a_poisoned_round_is_refused_and_kept(capsys, place, monkeypatch):
    monkeypatch.setattr(teaching, "OWN_SHARE", 100.0)  # else what was learned before outweighs it
    correct(place, "sad", "happy", range(1000, 1040))
    correct(place, "happy", "sad", range(1000, 1040))
    assert "refused: The challenger is right" in retrain(capsys)
    assert (bundle.champion(place / "models"), bundle.numbers(place / "models")) == (1, [1, 2])
    (line,) = lines(place)
    assert (line["event"], line["champion"], line["challenger"]) == ("refused", 1, 2)
    assert line["judges"][0]["photos"] == 2 * EACH["test"]  # not one of the new ones
    assert "nothing new" in retrain(capsys)


def test_a_file_in_place_of_the_folder(capsys, place):
    (place / "training").touch()
    assert "training: the folder of photos cannot be read: Not a directory" in retrain(capsys, status=2)


def test_a_class_that_the_champion_does_not_know(capsys, place):
    correct(place, "angry", "red", [1])
    said = retrain(capsys, status=2)
    assert "class folder 'angry': the champion, bundle 1, has only happy, sad: `moodbox-train fit` makes" in said


def test_a_damaged_champion_is_one_line(capsys, place):
    correct(place, "sad", "calm", range(1000, 1004))
    (place / "models" / "1" / "model.keras").write_bytes(b"cut")
    assert "models/1: model.keras is not the file that was published" in retrain(capsys, status=1)
    (place / "models" / "1" / "model.tflite").write_bytes(b"cut")
    assert "models/1: model.tflite is not the file that was published" in retrain(capsys, status=1)
    assert lines(place) == []


def test_a_champion_without_features_says_how_many_photos_are_needed(capsys, place):
    bundles.publish(place / "models", place / "tiny")
    bundle.promote(place / "models", 2)
    correct(place, "sad", "sad", range(1000, 1006))
    said = retrain(capsys)
    assert "bundle 2 keeps no features of what it learned from" in said
    assert "200 training photos of each class are needed (trainer.full_from)" in said


def test_one_at_a_time(capsys, place):
    from trainer import retrain as command

    with command.alone(place / "models"):
        assert "a retraining is at work there: wait for its end" in retrain(capsys, status=1)
        assert main(["prune"]) == 1
    assert "nothing to learn from yet" in retrain(capsys)


def test_a_full_disk_is_one_line_then_the_next_round_works_and_prunes(capsys, place, monkeypatch):
    from trainer import export

    def full(*_, **__):
        raise OSError(28, os.strerror(28))

    correct(place, "sad", "calm", range(1000, 1004))
    with monkeypatch.context() as patched:
        patched.setattr(export, "to_litert", full)
        said = retrain(capsys, status=1)
    assert "No space left on device: nothing was published; make room there, then go on" in said
    for number in range(3):
        bundles.publish(place / "models", place / f"tiny{number}")
    assert "removed bundles 2, 3 (models.keep)" in retrain(capsys, "--set", "models.keep=2")
    assert bundle.numbers(place / "models") == [1, 4, 5]
    assert len(list((place / "runs").glob("*-retrain*"))) == 1
    assert main(["prune", "--dry-run", "--set", "models.keep=1"]) == 0
    assert "would remove bundle 4;" in capsys.readouterr().out
    assert main(["prune", "--set", "models.keep=1"]) == 0
    assert bundle.numbers(place / "models") == [1, 5]


def doubts(place):
    return known_labels.doubted(place / "models")


def test_labels_that_the_gate_spoke_against_judge_no_later_round(capsys, place, monkeypatch):
    correct(place, "sad", "happy", range(1000, 1040))
    correct(place, "happy", "sad", range(1000, 1040))
    with monkeypatch.context() as patched:
        patched.setattr(teaching, "OWN_SHARE", 100.0)  # else what was learned before outweighs it
        assert "refused: The challenger is right" in retrain(capsys)
        judges = lines(place)[-1]["judges"][0]["photos"]
        correct(place, "happy", "sad", [1040])
        assert "refused: The challenger is right" in retrain(capsys, "--set", "trainer.full_from=10")
    assert lines(place)[-1]["judges"][0]["photos"] == judges
    wrong = doubts(place)
    assert len(wrong) == 81
    correct(place, "sad", "sad", range(1050, 1060))
    assert "promoted: The challenger is right" in retrain(capsys)
    assert doubts(place) == wrong, "a model that heeds others does not vouch for them"
    assert lines(place)[-1]["judges"][0]["photos"] == judges


def test_a_gate_that_cannot_judge_speaks_against_nobody(capsys, place, monkeypatch):
    monkeypatch.setattr(promotion, "LEAST_JUDGES", 42)  # two more than there are
    correct(place, "sad", "sad", range(1000, 1040))
    correct(place, "happy", "happy", range(1000, 1040))
    assert "refused: Only 40 photos could judge" in retrain(capsys)
    assert not doubts(place)
    correct(place, "sad", "sad", [1040])
    assert "promoted: The challenger is right" in retrain(capsys)
    assert lines(place)[-1]["judges"][0]["photos"] > 42


RIGHT, WRONG = np.array([0, 1] * 20), np.array([1, 0] * 20)
PROMOTED, REFUSED, UNABLE = (
    promotion.decide(RIGHT[:count], RIGHT[:count], answers[:count], ("happy", "sad"), 0.5)
    for count, answers in ((40, RIGHT), (40, WRONG), (10, RIGHT))
)


@pytest.mark.parametrize(
    ("verdict", "learned", "stay"),
    [
        (PROMOTED, 1, "b"), (PROMOTED, 0, "bn"), (REFUSED, 1, "abn"), (REFUSED, 0, "abn"),
        (UNABLE, 1, "ab"), (UNABLE, 0, "abn"),
    ],
)  # fmt: skip
def test_doubts_stay_until_a_promoted_model_heeds_them(place, verdict, learned, stay):
    from trainer import contest, retraining

    labels = {"a": "sad\t?", "b": "sad\t?", "c": "sad", "n": "sad\t?"}
    (place / "models" / known_labels.NAME).write_text(json.dumps(labels))
    agreed = contest.Agreement(1, 1, 0, learned, frozenset("a"))
    found = retraining.doubted(place / "models", [SimpleNamespace(sha256="n")], verdict, agreed)
    assert found == set(stay)


def test_of_many_new_photos_those_of_every_class_are_asked_about(monkeypatch):
    from trainer import contest

    monkeypatch.setattr(contest, "MOST_ASKED", 20)
    photos = [SimpleNamespace(label=label, sha256=sha256(b"%d %d" % (label, n)).hexdigest()) for label in (0, 1)
              for n in range(100)]  # fmt: skip
    asked = [photo.label for photo in contest._some(photos, "")]
    assert len(asked) == 20
    assert 3 < sum(asked) < 17
    assert contest._some(photos, "") != contest._some(photos, "another round")
    assert str(contest.Agreement(500, 200, 1, 150)).startswith("Of 200 of the 500 new photos, 150 are answered")


def test_doubts_outlive_a_round_in_which_nothing_can_be_trained(capsys, place):
    correct(place, "sad", "calm", range(1000, 1003))
    hashes = [sha256(path.read_bytes()).hexdigest() for path in (place / "training").rglob("*.png")]
    split_record.add(place / "training", {found: split_record.Entry(b"", "test") for found in hashes})
    for _ in range(2):
        assert "none of them is for training" in retrain(capsys)
        assert len(doubts(place)) == 3
    assert lines(place) == []


def test_what_a_round_left_that_cannot_go_on_is_removed(capsys, place):
    for number, parts in enumerate(("features/own.npy", "training/features/clean.npy", "training/checkpoints/1")):
        left = place / "runs" / f"2999010{number + 1}T000000Z-retrain"  # a clock that was wrong
        (left / parts).parent.mkdir(parents=True)
        (left / parts).write_bytes(b"gigabytes")
        (left / "round.json").write_text('{"begun": "2999-01-01", "folder": "another"}' if number else "{")
        (left / "training" / "report.html").parent.mkdir(exist_ok=True)
        (left / "training" / "report.html").touch()
    correct(place, "sad", "calm", range(1000, 1004))
    retrain(capsys)
    assert not list((place / "runs").rglob("*.npy")) and not list((place / "runs").rglob("checkpoints"))
    assert len(list((place / "runs").glob("2999*/training/report.html"))) == 3
    assert len(list((place / "runs").glob("*-retrain*/result.json"))) == 1


def test_photos_that_changed_since_they_were_read_are_found_before_anything_is_trained(place):
    from trainer import train
    from trainer.errors import InputError
    from trainer.settings import Settings

    correct(place, "sad", "sad", [1000])
    correct(place, "happy", "happy", [1000])
    (place / "round").mkdir()
    with pytest.raises(InputError, match="photos changed meanwhile: the next retraining reads them"):
        train.train_and_evaluate(Settings(), place / "round", promote=False, expected="another")
    assert not list((place / "round").iterdir())


def test_where_the_folder_carries_it_the_whole_recipe_is_trained(capsys, place):
    correct(place, "happy", "happy", range(1000, 1120))
    correct(place, "sad", "sad", range(1000, 1120))
    few = ("--set", "trainer.full_from=10", "--set", "trainer.fine_tune=false", "--set", "trainer.epochs=1")
    few += ("--set", "trainer.test_fraction=0.45")
    said = retrain(capsys, *few)
    assert "the last layer learns anew" in said  # nobody could judge a model of these photos alone
    assert bundle.champion(place / "models") == 2
    correct(place, "sad", "sad", [1120])
    said = retrain(capsys, *few)
    assert "route: all of the recipe" in said
    assert lines(place)[-1]["judges"][0]["photos"] >= 30
    assert bundle.read_manifest(place / "models", 3).input_size == SIZE
    assert len(list((place / "runs").glob("*-retrain*/training/report.html"))) == 1
    assert main(["fit", "--resume"]) == 2  # a round is no run of fit's


KILLED = """
import os, signal, sys
from trainer import {module}
from trainer.command_line import main
def killed(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)
{module}.{name} = killed
main(["retrain"])
"""
MOMENTS = [("trainer.features", "compute"), ("trainer.decisions", "append"), ("trainer.bundle", "promote")]


def test_kills_leave_the_champion_and_the_next_round_goes_on(capsys, place):
    correct(place, "sad", "calm", range(1000, 1010))
    for module, name in MOMENTS:
        code = KILLED.format(module=module.partition(".")[2], name=name)
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=place, env=environment, check=False, capture_output=True
        )
        assert done.returncode == -signal.SIGKILL, done.stderr.decode()
        assert bundle.champion(place / "models") == 1
        bundle.load(place / "models")
    assert lines(place)[-1]["champion"] == 2  # decided, and not done
    assert bundle.numbers(place / "models") == [1, 2]  # published twice, by one round: once
    said = retrain(capsys)
    assert "bundle 2 is the champion: that was decided, and an interruption kept it" in said
    assert "nothing new" in said
    assert bundle.champion(place / "models") == 2
    bundle.load(place / "models")


def test_corrections_of_one_class_do_not_favour_it():
    from trainer import teaching

    weights = teaching.balanced(np.array([0, 0, 0, 1]), np.array([1.0, 1.0, 8.0, 1.0]), 2)
    assert weights[:3].sum() == pytest.approx(weights[3])
    assert weights.sum() == pytest.approx(11.0)
