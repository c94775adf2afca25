"""Who teaches and who judges in a round; no training."""

from hashlib import sha256

import numpy as np
import pytest

import bundles
from trainer import bundle, known_labels, lessons, replay
from trainer.dataset import SPLITS, Dataset, Fractions, Photo
from trainer.lessons import Lessons

NAMES = ("happy", "sad")


def name_of(number):
    return sha256(str(number).encode()).hexdigest()


def folder(tmp_path, photos, names=("sad",)):
    """Return a dataset of photos (number, label, split)."""
    found = tuple(Photo(f"{number}.png", names.index(label), name_of(number), split) for number, label, split in photos)
    return Dataset(tmp_path, names, found, (), Fractions(0.15, 0.15))


def replayed(rows):
    """Return a replay of photos (number, label, split); the features are the number."""
    return replay.Replay(
        np.array([[number] for number, *_ in rows], np.float16).reshape(len(rows), 1),
        np.array([NAMES.index(label) for _, label, _ in rows], np.uint16),
        np.array([SPLITS.index(split) for *_, split in rows], np.uint8),
        replay.prefixes([name_of(number) for number, *_ in rows]),
        replay.prefixes([name_of("face")]),
    )


@pytest.fixture
def champion(tmp_path):
    staged = bundles.stage(tmp_path / "staged")
    replayed([(1, "happy", "train"), (2, "happy", "test"), (3, "sad", "test"), (4, "sad", "validation")]).write(
        staged / replay.REPLAY
    )
    bundle.publish(tmp_path / "models", staged, bundles.draft())
    return bundle.load(tmp_path / "models", 1)


def judges(material):
    return {photo.path.removesuffix(".png") for photo in material.judges}


def test_only_held_out_photos_with_their_old_label_judge(tmp_path, champion):
    before = {name_of(10): "sad", name_of(11): "happy", name_of(12): "sad", name_of(1): "sad", name_of("face"): "sad"}
    photos = [(10, "sad", "test"), (11, "sad", "test"), (12, "sad", "train"), (13, "sad", "test"), (1, "sad", "test")]
    data = folder(tmp_path, [*photos, ("face", "sad", "test")])
    assert judges(lessons.of(champion, data, before)) == {"10"}
    assert judges(lessons.of(champion, data, None)) == set()


def test_a_photo_of_the_replay_that_is_in_the_folder_does_not_judge_by_its_old_label(tmp_path, champion):
    material = lessons.of(champion, folder(tmp_path, [(2, "sad", "test")]), None)
    assert material.replayed_judges().tolist() == [False, False, True, False]
    assert judges(material) == set()
    assert material.data.photos[0].label == NAMES.index("sad")


def test_a_picture_keeps_the_split_that_it_has_in_the_replay(tmp_path, champion):
    data = folder(tmp_path, [(2, "sad", "train"), (1, "sad", "test"), (9, "sad", "train")])
    material = lessons.of(champion, data, {name_of(n): "sad" for n in (1, 2, 9)})
    splits = {photo.path: photo.split for photo in material.data.photos}
    assert splits == {"2.png": "test", "1.png": "train", "9.png": "train"}
    assert judges(material) == set()
    assert material.data.class_names == NAMES
    assert material.data.hash == data.hash


def test_what_is_new(tmp_path, champion):
    data = folder(tmp_path, [(1, "sad", "train"), (3, "sad", "test"), (9, "sad", "train")])
    new = {photo.path for photo in lessons.of(champion, data, None).new}
    assert new == {"1.png", "9.png"}
    new = lessons.of(champion, data, {name_of(1): "sad", name_of(3): "happy", name_of(9): "sad"}).new
    assert lessons.described(new, NAMES) == "1 sad"


def test_a_relabelled_picture_replaces_its_row(tmp_path, champion):
    old = replay.read(champion)
    photos = [Photo("1.png", 1, name_of(1), "train"), Photo("9.png", 1, name_of(9), "train")]
    together, own = lessons.merged(old, photos, np.array([[7], [8]], np.float16))
    assert own.tolist() == [False, False, False, True, True]
    assert together.labels.tolist() == [0, 1, 1, 1, 1]
    assert together.features[:, 0].tolist() == [2, 3, 4, 7, 8]
    assert len(np.unique(together.sha256_prefix)) == 5
    assert together.faces_prefix.tolist() == old.faces_prefix.tolist()


def test_what_is_kept_is_bounded_and_the_newest_stay(champion, monkeypatch):
    monkeypatch.setattr(lessons, "MOST_ROWS", 3)
    photos = [Photo("9.png", 1, name_of(9), "train")]
    together, own = lessons.merged(replay.read(champion), photos, np.array([[8]], np.float16))
    assert (len(together.labels), own.tolist()) == (3, [False, False, True])


def test_of_very_many_photos_some_are_chosen_by_their_content(tmp_path, champion, monkeypatch):
    monkeypatch.setattr(lessons, "MOST_OWN", 5)
    found = [(number, "sad", "train") for number in range(20)]
    chosen = {photo.sha256 for photo in lessons.scenes(lessons.of(champion, folder(tmp_path, found), None), None)}
    assert chosen == set(sorted(name_of(number) for number in range(20))[:5])


def test_the_whole_recipe_needs_enough_of_each_class(tmp_path, champion):
    def enough(happy, sad, full_from):
        photos = [(f"h{n}", "happy", "train") for n in range(happy)] + [(f"s{n}", "sad", "train") for n in range(sad)]
        material = lessons.of(champion, folder(tmp_path, photos, NAMES), None)
        return material.enough_for_all(full_from)

    assert enough(3, 3, 3)
    assert not enough(3, 2, 3)
    ten = replayed([(number, "happy", "train") for number in range(100, 110)])
    for count in (4, 5):  # half of what the champion had learned from
        data = folder(tmp_path, [(number, "happy", "train") for number in range(count)], NAMES)
        assert Lessons(champion, ten, data, (), ()).enough_for_all(0) == (count == 5)


def test_labels_are_those_of_the_last_round(tmp_path):
    data = folder(tmp_path, [(1, "sad", "test")])
    known_labels.write(tmp_path, data)
    assert known_labels.read(tmp_path) == {name_of(1): "sad"}
    assert known_labels.unchanged(data.photos[0], data, known_labels.read(tmp_path))
