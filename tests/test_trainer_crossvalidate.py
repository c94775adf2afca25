import json
from types import SimpleNamespace

import numpy as np
import pytest

import drawings
import portraits
from trainer.dataset import Photo
from trainer.errors import InputError

pytestmark = [
    pytest.mark.tf,
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"),
]
pytest.importorskip("keras")

from trainer import commands, crossvalidate  # noqa: E402  after keras
from trainer.command_line import main  # noqa: E402

DATA = SimpleNamespace(root="photos", twins=())


def groups_of(photos, pattern, data=DATA):
    finder = commands.expression(pattern) if pattern else None
    return crossvalidate.group(data, photos, crossvalidate.kinship(data, photos), finder)


def photos(*names):
    return [Photo(f"happy/{name}", 0, f"{i:064x}", "train") for i, name in enumerate(names)]


def test_the_groups_are_what_the_expression_finds_in_the_file_name(monkeypatch):
    monkeypatch.setattr(crossvalidate, "LEAST", 2)
    found = groups_of(photos("a_1", "b_1", "a_2", "b_2", "a_3"), "^([a-z])_")
    assert {name: rows.tolist() for name, rows in found.items()} == {"a": [0, 2, 4], "b": [1, 3]}


def test_small_groups_are_measured_together(monkeypatch):
    monkeypatch.setattr(crossvalidate, "LEAST", 2)
    found = groups_of(photos("a_1", "b_1", "a_2", "c_1"), "^([a-z])_")
    assert {name: rows.tolist() for name, rows in found.items()} == {"a": [0, 2], crossvalidate.REST: [1, 3]}


def test_what_matches_no_group_is_trained_on_and_never_measured(monkeypatch, capsys):
    monkeypatch.setattr(crossvalidate, "LEAST", 1)
    found = groups_of(photos("a_1", "?", "b_1", "7"), "^([a-z])_")
    assert {name: rows.tolist() for name, rows in found.items()} == {"a": [0], "b": [2]}
    assert "2 photos are in no group" in capsys.readouterr().err


def test_without_an_expression_there_are_five_parts_that_do_not_follow_the_split(monkeypatch):
    monkeypatch.setattr(crossvalidate, "LEAST", 2)
    rng = np.random.default_rng(0)
    many = [Photo(f"happy/{i}", 0, rng.bytes(32).hex(), "train") for i in range(500)]
    found = groups_of(many, "")
    assert sorted(found) == [f"part {n}" for n in range(1, 6)]
    assert sum(map(len, found.values())) == 500
    assert min(map(len, found.values())) > 60
    for rows in found.values():
        positions = [int(many[row].sha256[:16], 16) / 2**64 for row in rows]
        assert 0.4 < np.mean(positions) < 0.6


def test_near_duplicates_are_kin_and_never_in_two_of_the_five_parts():
    rng = np.random.default_rng(0)
    many = [Photo(f"happy/{i}", 0, rng.bytes(32).hex(), "train") for i in range(100)]
    twins = tuple((f"happy/{i}", f"happy/{i + 1}", f"happy/{i + 2}") for i in range(0, 90, 3))
    data = SimpleNamespace(root="photos", twins=twins)
    kin = crossvalidate.kinship(data, many)
    fewer = crossvalidate.kinship(data, many[1:])  # one that is not measured may have a near duplicate that is
    assert len(fewer) == len(kin) - 1
    assert len(set(kin.tolist())) == 40
    parts = {row: name for name, rows in groups_of(many, "", data).items() for row in rows.tolist()}
    assert all(parts[i] == parts[i + 1] == parts[i + 2] for i in range(0, 90, 3))
    assert len(set(parts.values())) == 5


@pytest.mark.parametrize(
    ("pattern", "match"),
    [("(", "no regular expression"), ("^a", "put what names the group into parentheses"), ("(x)?", "no two groups")],
)
def test_an_expression_that_makes_no_groups_is_one_clear_line(pattern, match):
    with pytest.raises(InputError, match=match):
        groups_of(photos("a_1", "b_1"), pattern)


def test_each_group_is_measured_by_a_model_of_the_others(tmp_path, monkeypatch, capsys):
    """Three collectors; the labels of the third are all wrong, which only one that learns from the others can say."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr(crossvalidate, "LEAST", 2)
    for number in range(60):
        for label, other in (("happy", "sad"), ("sad", "happy")):
            collector = "aabbc"[number % 5]
            folder = tmp_path / "photos" / (other if collector == "c" else label)
            folder.mkdir(parents=True, exist_ok=True)
            drawings.photo(label, number).save(folder / f"{collector}_{label}{number}.png")
    settings = ("--set", "trainer.image_size=64", "--set", "trainer.fine_tune=false", "--epochs", "20")
    assert main(["crossvalidate", "--data", "photos", "--groups", "^([abc])_", *settings]) == 0
    rows = {}
    for line in capsys.readouterr().out.splitlines():
        cells = [cell.strip() for cell in line.strip("│┃ ").replace("┃", "│").split("│")]
        if len(cells) > 2:
            rows[cells[0]] = cells[1:]
    assert [rows[name][0] for name in "abc"] == ["48", "48", "24"]
    assert float(rows["a"][1].rstrip("%")) > 80
    assert float(rows["b"][1].rstrip("%")) > 80
    assert float(rows["c"][1].rstrip("%")) < 20
    assert rows["all photos"][0] == "120"
    for scratch in ("features", "backup", "checkpoints"):
        assert list(tmp_path.glob(f"runs/2*/**/{scratch}")) == []
    (result,) = tmp_path.glob("runs/*/result.json")
    assert json.loads(result.read_text())["groups"]["a"]["photos"] == 48


def test_groups_that_hold_one_class_each_are_one_clear_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(crossvalidate, "LEAST", 2)
    drawings.folder(tmp_path / "photos", count=20)
    settings = ("--set", "trainer.image_size=64", "--set", "trainer.fine_tune=false")
    assert main(["crossvalidate", "--data", "photos", "--groups", "^(happy|sad)", *settings]) == 2
    assert "without this group no photo of 'happy' is left" in capsys.readouterr().err


def test_a_network_without_a_backbone_is_one_clear_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    drawings.folder(tmp_path / "photos", count=10)
    assert main(["crossvalidate", "--data", "photos", "--architecture", "tutorial_cnn"]) == 2
    assert "tutorial_cnn: it has no backbone" in capsys.readouterr().err


def test_faces_are_trained_on_and_judged_in_each_round(tmp_path, monkeypatch, capsys):
    """Two collectors of drawn people, and small pictures of nobody's that teach the network for faces alone."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    for number in range(120):
        for label, smiles in (("happy", True), ("sad", False)):
            folder = tmp_path / "photos" / label
            folder.mkdir(parents=True, exist_ok=True)
            person = portraits.photo(number, smiles=smiles)
            person.save(folder / f"{'ab'[number % 2]}_{label}{number}.png")
            if number < 10:
                portraits.photo(1000 + number, smiles=smiles).resize((40, 40)).save(folder / f"face{number}.png")
    settings = ("--set", "trainer.image_size=64", "--set", "trainer.fine_tune=false", "--epochs", "5")
    both = ("--set", 'trainer.views=["scene", "faces"]')
    assert main(["crossvalidate", "--data", "photos", "--groups", "^([ab])_", *settings, *both]) == 0
    said = capsys.readouterr()
    (result,) = tmp_path.glob("runs/*/result.json")
    figures = json.loads(result.read_text())["groups"]
    assert {name: fold["photos"] for name, fold in figures.items()} == {"a": 120, "b": 120}
    assert min(fold["accuracy"] for fold in figures.values()) > 0.9
    assert said.err.count("faces: epoch 5/5") == 2


def test_a_face_as_a_whole_is_answered_by_the_faces_alone_as_in_serving(monkeypatch, tmp_path):
    from trainer.face_training import FaceExamples
    from trainer.manifest import FaceRules

    crops = np.zeros((2, 48, 48), np.uint8)
    by_faces = FaceExamples(("happy", "sad"), crops, np.arange(2), np.array([0, 1]), np.array([True, False]))
    monkeypatch.setattr(crossvalidate.face_training, "enough", lambda *_: True)
    monkeypatch.setattr(crossvalidate.face_training, "train", lambda *_: (None, {}))
    said = np.array([(0.2, 0.8), (0.2, 0.8)], np.float32)
    monkeypatch.setattr(crossvalidate.face_training, "by_photo", lambda *_: said)
    rounds = SimpleNamespace(plan=SimpleNamespace(faces=FaceRules()), settings=SimpleNamespace(trainer=None))
    scenes = np.array([(0.95, 0.05), (0.95, 0.05)], np.float32)
    scores = crossvalidate._with_faces(rounds, by_faces, np.arange(2), np.arange(2), scenes, tmp_path)
    assert scores[0] == pytest.approx([0.2, 0.8])
    assert scores[1] == pytest.approx([0.95, 0.05])
