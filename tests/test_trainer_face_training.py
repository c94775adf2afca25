"""Training on scenes and faces: from a folder of drawn people to a bundle that reads faces, and a daemon with it."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import drawings
import portraits
from trainer import bundle, prepared, replay, viewing
from trainer.manifest import FaceRules
from trainer.settings import load

pytestmark = [
    pytest.mark.tf,
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"),
]
pytest.importorskip("keras")

from trainer import augment, face_network, face_training  # noqa: E402  after keras

ROOT = Path(__file__).parent.parent
QUICK = ("--architecture", "tutorial_cnn", "--set", "trainer.image_size=32", "--set", "trainer.batch_size=16",
         "--epochs", "1")  # fmt: skip
PEOPLE, SMALL = 70, 20


def run(module, place, *argv):
    kept = {name: value for name, value in os.environ.items() if not name.upper().startswith(("MOODBOX", "TF_CPP"))}
    environment = kept | {"PYTHONPATH": str(ROOT), "COLUMNS": "120"}
    command = [sys.executable, "-m", module, *argv]
    return subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    """A bundle made from people and small pictures of faces; the scene's network learns next to nothing."""
    place = tmp_path_factory.mktemp("people")
    portraits.folder(place / "training", PEOPLE)
    for name, smiles in (("happy", True), ("sad", False)):
        for number in range(SMALL):
            drawn = portraits.photo(1000 + number, smiles=smiles).resize((48, 48))
            drawn.save(place / "training" / name / f"small{number}.png")
    return SimpleNamespace(place=place, done=run("trainer", place, "fit", *QUICK))


@pytest.fixture(scope="module")
def model(people):
    assert people.done.returncode == 0, people.done.stderr
    return bundle.load(people.place / "models")


def test_faces_are_looked_at_without_being_asked_where_most_photos_have_them(people, model):
    assert "% of a sample of the photos, so faces are looked at, too" in people.done.stderr
    assert "faces: epoch 5/5  loss " in people.done.stderr
    assert "it looks at: the scene and the faces" in people.done.stdout
    assert model.manifest.views == ("scene", "faces")
    assert {"detector.tflite", "face.tflite", "face.keras", "model.tflite"} <= set(model.manifest.files)


def test_small_pictures_teach_the_face_network_alone(people, model):
    known = replay.prefixes([h for h in all_hashes(people.place / "training") if h])
    (run_folder,) = people.place.glob("runs/*-tutorial_cnn")
    scenes = [path.stem for path in run_folder.glob("data/*/*/*.png")]
    assert len(scenes) == 2 * PEOPLE
    assert len(known) == 2 * (PEOPLE + SMALL)
    assert sum(sum(of.values()) for of in model.manifest.dataset.counts.values()) == 2 * (PEOPLE + SMALL)


def all_hashes(folder):
    import hashlib

    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*.png")]


def test_the_faces_tell_the_classes_apart_where_the_scene_does_not(model):
    eye, predict = model.eye(), model.predictor()
    right = 0
    for number in range(2000, 2020):
        for smiles, label in ((True, "happy"), (False, "sad")):
            judged = predict(picture_of(eye, portraits.photo(number, smiles=smiles)))
            right += bundle.decide(model.manifest, judged.scores).label == label
    assert right >= 36


def picture_of(eye, drawn):
    import io

    file = io.BytesIO()
    drawn.save(file, "PNG")
    return eye(file.getvalue())


def test_the_report_says_what_the_faces_are_good_for(people, model):
    (report,) = people.place.glob("runs/*-tutorial_cnn/report.html")
    text = report.read_text(encoding="utf-8")
    for words in ("Scenes and faces", "one face", "a face as a whole", "scene alone", "both together"):
        assert words in text


def test_the_daemon_journals_faces_and_the_scores_of_each_view(people, model):
    inbox = people.place / "tray" / "inbox"
    inbox.mkdir(parents=True)
    (people.place / "tray" / ".moodbox").touch()
    portraits.photo(3000, smiles=True).save(inbox / "smile.png")
    portraits.photo(3001, smiles=False).resize((48, 48)).save(inbox / "small.png")
    drawings.photo("happy", 1, (300, 200)).save(inbox / "nobody.png")
    done = run("daemon", people.place, "once")
    assert done.returncode == 0, done.stderr
    lines = {
        line["file"]: line
        for path in people.place.glob("log/*.jsonl")
        for line in map(json.loads, path.read_text().splitlines())
        if line["event"] == "sorted"
    }
    rules = model.manifest.faces
    smile = lines["smile.png"]
    if max(smile["views"]["scene"].values()) < rules.sure:
        assert smile["faces"]["count"] == 1
        left, top, width, height = smile["faces"]["boxes"][0]
        assert 0 <= left < left + width <= portraits.SIDE
        assert 0 <= top < top + height <= portraits.SIDE
        assert set(smile["views"]) == {"scene", "faces"}
    assert lines["small.png"]["faces"] == {"count": 1, "boxes": [], "whole": True}
    assert set(lines["small.png"]["views"]) == {"faces"}
    assert lines["nobody.png"].get("faces", {"count": 0})["count"] == 0
    for line in lines.values():
        assert sum(line["scores"].values()) == pytest.approx(1, abs=1e-4)


def test_explain_draws_the_faces_and_says_what_each_view_says(people, model):
    portraits.photo(4000, smiles=False).save(people.place / "one.png")
    done = run("trainer", people.place, "explain", "one.png", "training/sad/small1.png")
    assert done.returncode == 0, done.stderr
    assert "1 face found; scene: " in done.stdout
    assert "taken for a face as a whole; faces: " in done.stdout
    assert "48 x 48; the model saw 48 x 48, grey" in done.stdout


def test_evaluate_knows_which_small_pictures_it_learned_from(people, model):
    done = run("trainer", people.place, "evaluate", "--data", "training")
    assert done.returncode == 0, done.stderr
    counts = model.manifest.dataset.counts
    taught = sum(sum(counts[split].values()) for split in ("train", "validation"))
    learned = replay.learned(model, all_hashes(people.place / "training"))
    assert learned is None  # the tutorial's network has no features to replay
    assert "this bundle keeps no record of its photos" in done.stdout
    assert taught < 2 * (PEOPLE + SMALL)


def test_asked_for_scenes_alone_it_pays_nothing_for_faces(people, tmp_path):
    place = tmp_path
    portraits.folder(place / "training", 30)
    done = run("trainer", place, "fit", *QUICK, "--set", 'trainer.views=["scene"]')
    assert done.returncode == 0, done.stderr
    made = bundle.load(place / "models", 1)
    assert made.manifest.views == ("scene",)
    assert "detector.tflite" not in made.manifest.files
    assert "face" not in done.stderr
    assert made.eye().rules is None


def test_too_few_faces_leave_the_scene_alone_and_say_so(tmp_path):
    portraits.folder(tmp_path / "training", 30)
    done = run("trainer", tmp_path, "fit", *QUICK)
    assert done.returncode == 0, done.stderr
    assert "are needed: only scenes are used" in done.stderr
    assert "it looks at: the scene\n" in done.stdout
    assert bundle.load(tmp_path / "models", 1).manifest.views == ("scene",)


def settings_of(root, **trainer):
    return load(options={"dataset": {"root": str(root)}, "trainer": trainer}).settings


def test_pictures_without_faces_are_looked_at_as_scenes(tmp_path, capsys):
    """Tiny ones, too: that a picture is small makes no face of it before it was looked at."""
    root = drawings.folder(tmp_path / "photos")
    assert viewing.settled(settings_of(root)).trainer.views == ("scene",)
    assert "only whole pictures are looked at (trainer.views)" in capsys.readouterr().err


def test_what_was_asked_for_is_not_looked_into(tmp_path):
    asked = settings_of(tmp_path / "missing", views=("scene", "faces"))
    assert viewing.settled(asked) == asked


def test_files_that_are_no_pictures_do_not_count(tmp_path):
    root = portraits.folder(tmp_path / "photos", 3)
    for number in range(20):
        (root / "happy" / f"broken{number}.jpg").write_text("x")
    assert viewing.share_with_faces(settings_of(root)) > 0.8


def test_the_shipped_network_keeps_its_last_layer_only_for_its_own_classes():
    own, other, three = (
        face_network.pretrained(48, names) for names in (("happy", "sad"), ("cat", "dog"), ("a", "b", "c"))
    )

    def last(network):
        return network.get_layer("probabilities").get_weights()[0]

    assert not np.array_equal(last(own), last(other))
    assert last(three).shape == (128, 3)
    for network in (other, three):
        first = [n.get_layer("conv1").get_weights()[0] for n in (own, network)]
        assert np.array_equal(*first)


def test_light_and_contrast_do_not_matter_to_it():
    network = face_network.pretrained(48, ("happy", "sad"))
    crop = np.random.default_rng(0).integers(60, 190, (1, 48, 48), np.uint8)
    darker = (crop * 0.6 + 20).astype(np.uint8)
    assert face_network.scores(network, crop) == pytest.approx(face_network.scores(network, darker), abs=0.02)


def test_a_face_and_its_mirror_image_are_the_same_to_it():
    network = face_network.pretrained(48, ("happy", "sad"))
    crops = np.random.default_rng(0).integers(0, 256, (3, 48, 48), np.uint8)
    assert face_network.scores(network, crops) == pytest.approx(
        face_network.scores(network, np.ascontiguousarray(crops[:, :, ::-1])), abs=1e-5
    )


def test_augmentation_follows_from_its_generator_alone_and_stays_a_picture():
    crops = np.random.default_rng(0).integers(0, 256, (20, 48, 48), np.uint8)
    first, again, other = (augment.faces(crops, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert (first.shape, first.dtype) == ((20, 48, 48, 1), np.float32)
    assert 0 <= first.min() <= first.max() <= 255
    assert np.abs(first[..., 0] - crops).mean() > 5


def test_batches_of_an_epoch_are_the_same_whoever_asks_when():
    shown = examples_of(10)
    batches = shown.batches(np.arange(10), 4, seed=3)
    first = [batches[index] for index in range(len(batches))]
    batches.epoch = 1
    assert not np.array_equal(batches[0][0], first[0][0])
    batches.epoch = 0
    for index in (2, 0, 1):
        assert np.array_equal(batches[index][0], first[index][0])
    plain = shown.batches(np.arange(10), 4)
    assert np.array_equal(plain[0][0][..., 0], shown.crops[:4])


def examples_of(count, owners=None):
    crops = np.random.default_rng(0).integers(0, 256, (count, 48, 48), np.uint8)
    owners = np.arange(count) if owners is None else np.array(owners)
    photos = owners.max() + 2
    return face_training.FaceExamples(("happy", "sad"), crops, owners, np.arange(photos) % 2, np.zeros(photos, bool))


def test_the_faces_of_a_photo_are_judged_together_and_photos_without_are_not():
    network = face_network.pretrained(48, ("happy", "sad"))
    shown = examples_of(4, owners=[0, 0, 2, 2])
    found = face_training.by_photo(network, shown, np.array([0, 1, 2]))
    assert np.isnan(found[1]).all()
    alone = np.log(face_network.scores(network, shown.crops[:2])).mean(axis=0)
    expected = np.exp(alone) / np.exp(alone).sum()
    assert found[0] == pytest.approx(expected, abs=1e-5)


def test_the_prepared_copy_keeps_the_faces_exactly(tmp_path):
    from trainer import faces, views

    cache = prepared.Cache(tmp_path / "prepared", 32, 1_000_000, FaceRules())
    portraits.photo(1, smiles=True).save(tmp_path / "one.png")
    data = (tmp_path / "one.png").read_bytes()
    fresh, again = cache.add("ab" * 32, data), cache.add("ab" * 32, data)
    assert isinstance(again, prepared.Prepared)
    assert again.origin == fresh.origin == (240, 240, "PNG", 1, False)
    found = faces.Finder(faces.shipped_detector(), FaceRules())(views.Eye(32, FaceRules())(data))
    assert np.array_equal(again.crops(1), found.crops)
    assert np.array_equal(again.pixels, fresh.pixels)


def test_scenes_with_and_without_faces_are_prepared_apart(tmp_path):
    caches = [
        prepared.Cache(tmp_path, 32, 1_000_000, rules)
        for rules in (None, FaceRules(), FaceRules(margin=2.0), FaceRules(weight=2.0, sure=0.8))
    ]
    paths = [cache.path("ab" * 32) for cache in caches]
    assert len(set(paths)) == 3
    assert paths[1] == paths[3]  # how the views are weighed changes no pixel


@pytest.fixture
def cache(tmp_path):
    return prepared.Cache(tmp_path / "prepared", 32, 1_000_000, FaceRules())


@pytest.fixture
def kept(cache, tmp_path):
    """A prepared photo of one person: its hash, its bytes, its two files."""
    portraits.photo(1, smiles=True).save(tmp_path / "one.png")
    data = (tmp_path / "one.png").read_bytes()
    cache.add("ab" * 32, data)
    copy = cache.path("ab" * 32)
    return SimpleNamespace(hash="ab" * 32, data=data, copy=copy, strip=copy.with_suffix(".faces.png"))


@pytest.mark.parametrize("harm", ["no strip", "short copy", "empty copy", "no picture"])
def test_a_prepared_copy_that_is_not_whole_is_made_anew(cache, kept, harm):
    before = kept.copy.read_bytes(), kept.strip.read_bytes()
    if harm == "no strip":
        kept.strip.unlink()
    elif harm == "no picture":
        kept.copy.write_bytes(b"no picture")
    else:
        kept.copy.write_bytes(before[0][: 60 if harm == "short copy" else 0])
    cache.add(kept.hash, kept.data)
    assert (kept.copy.read_bytes(), kept.strip.read_bytes()) == before


@pytest.mark.parametrize("shape", [(96, 48), (48, 24), (24, 48)])
def test_a_strip_that_holds_other_faces_is_one_clear_line(kept, shape):
    """Too many rows would give every later photo the face of the one before it."""
    from PIL import Image

    from trainer.errors import FailureError

    Image.fromarray(np.zeros(shape, np.uint8)).save(kept.strip)
    with pytest.raises(FailureError, match=r"faces\.png: this prepared copy is damaged .* delete it"):
        prepared.Prepared(kept.copy).crops(1)


@pytest.mark.parametrize("split", ["validation", "test"])
def test_where_too_few_unknown_photos_are_left_faces_are_not_looked_at(monkeypatch, capsys, split):
    from trainer import assembly
    from trainer.dataset import SPLITS, Dataset, Fractions, Photo

    found = tuple(
        Photo(f"{label}/{part}{i}", label, f"{label:08x}{SPLITS.index(part):04x}{i:04x}" + "0" * 48, part)
        for label in (0, 1)
        for part in SPLITS
        for i in range(6)
    )
    data = Dataset(Path("photos"), ("happy", "sad"), found, (), Fractions(0.2, 0.2))
    assert assembly.leaves_enough_unseen(data, FaceRules())
    known = replay.prefixes([p.sha256 for p in data.of(split) if p.label == 1][:5])
    monkeypatch.setattr(face_network, "learned", lambda: known)
    assert not assembly.leaves_enough_unseen(data, FaceRules())
    assert f"faces: too few {split} photos are left" in capsys.readouterr().err
    left = assembly.never_seen(data, data.of(split), FaceRules())
    assert len(left.photos) == 7


def test_small_pictures_whose_colour_tells_them_apart_are_judged_as_scenes(tmp_path):
    """Crops of faces are grey: where the scene's network knows better, the faces are dropped."""
    from PIL import Image

    for name, tint in (("red", (1.0, 0.6, 0.6)), ("blue", (0.6, 0.6, 1.0))):
        (tmp_path / "training" / name).mkdir(parents=True)
        for number in range(70):
            drawn = portraits.photo(number + (500 if name == "red" else 0), smiles=bool(number % 2)).resize((56, 56))
            tinted = Image.fromarray((np.asarray(drawn) * tint).astype(np.uint8))
            tinted.save(tmp_path / "training" / name / f"{number}.png")
    asked = ["--architecture", "tutorial_cnn", "--epochs", "6", "--set", "trainer.image_size=32"]
    asked += ["--set", "trainer.batch_size=8", "--set", "trainer.learning_rate=0.003"]
    asked += ["--set", 'trainer.views=["scene", "faces"]']
    done = run("trainer", tmp_path, "fit", *asked)
    assert done.returncode == 0, done.stderr
    made = bundle.load(tmp_path / "models", 1)
    assert "they make it no better on the validation photos" in done.stderr
    assert made.manifest.views == ("scene",)
    assert made.manifest.metrics["accuracy"] > 0.9


def test_the_weights_that_ship_are_made_by_a_command_and_say_what_they_learned_from(tmp_path, monkeypatch, capsys):
    from trainer import pretraining

    for number in range(40):
        for name, smiles in (("happy", True), ("sad", False)):
            (tmp_path / "faces" / name).mkdir(parents=True, exist_ok=True)
            drawn = portraits.photo(number, smiles=smiles).resize((48, 48))
            drawn.save(tmp_path / "faces" / name / f"{number}.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pretraining, "EPOCHS", 2)
    out = tmp_path / "weights.npz"
    data = ["--data", str(tmp_path / "faces"), "--validation", str(tmp_path / "faces"), "--out", str(out)]
    assert pretraining.main(data) == 0
    assert "of 80 pictures that it never saw" in capsys.readouterr().out
    with np.load(out) as stored:
        assert stored["class_names"].tolist() == ["happy", "sad"]
        known = set(stored["learned"].tolist())
        assert stored["conv1/kernel"].shape == (3, 3, 1, 32)
        assert all(np.isfinite(stored[name]).all() for name in stored.files if name != "class_names")
    assert known == set(replay.prefixes(all_hashes(tmp_path / "faces")).tolist())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["faces", "weights.npz"]


def test_check_counts_faces_and_does_not_judge_the_labels_of_small_pictures(people):
    done = run("trainer", people.place, "check", "--set", "trainer.image_size=64", "--set", "trainer.batch_size=16")
    assert done.returncode == 0, done.stderr
    assert f"of {2 * PEOPLE} photos (" in done.stdout
    assert f"faces as a whole: {2 * SMALL} small pictures" in done.stdout
    assert "smaller than" not in done.stdout
    (report,) = people.place.glob("runs/check/*/report.json")
    said = json.loads(report.read_text())
    assert not [s["path"] for s in said["suspects"] if "small" in s["path"]]
    assert len(said["faces"]) == 2 * (PEOPLE + SMALL)
    assert said["faces"]["happy/small0.png"] == 1
