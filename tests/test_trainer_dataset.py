import hashlib
import os
import re
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import drawings
from trainer import dataset, durable, images, prepared, split_record
from trainer.dataset import DatasetError, Fractions
from trainer.errors import FailureError
from trainer.photos import Rules
from trainer.tables import IGNORE

FRACTIONS = Fractions(0.25, 0.25)
RULES = Rules(IGNORE, 1_000_000)


def read(root, fractions=FRACTIONS, rules=RULES, prepare=lambda _, data: images.decode(data, size=16)):
    return dataset.read(root, prepare, fractions, rules)


def at_size(_, data):
    return images.decode(data, size=64)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    return drawings.folder(tmp_path_factory.mktemp("drawn") / "photos")


@pytest.fixture
def photos(drawn, tmp_path):
    return shutil.copytree(drawn, tmp_path / "photos")


def reasons(data):
    return {unused.path: unused.reason for unused in data.unused}


def test_every_photo_is_used_and_knows_its_class(photos):
    data = read(photos)
    assert data.class_names == ("happy", "sad")
    assert data.unused == ()
    assert Counter(photo.label for photo in data.photos) == {0: 40, 1: 40}
    for photo in data.photos:
        assert photo.path.startswith(data.class_names[photo.label] + "/")
        assert photo.sha256 == hashlib.sha256((photos / photo.path).read_bytes()).hexdigest()
    data.require_enough()


def test_any_number_of_classes_in_the_order_of_their_names(tmp_path):
    data = read(drawings.folder(tmp_path / "p", ("sad", "calm", "happy"), 3))
    assert data.class_names == ("calm", "happy", "sad")
    assert {photo.label: photo.path.split("/")[0] for photo in data.photos} == {0: "calm", 1: "happy", 2: "sad"}


def test_subfolders_of_a_class_belong_to_it(photos):
    (photos / "happy" / "2024" / "summer").mkdir(parents=True)
    os.rename(photos / "happy" / "happy0.jpg", photos / "happy" / "2024" / "summer" / "x.jpg")
    data = read(photos)
    assert len(data.photos) == 80
    assert next(photo.label for photo in data.photos if photo.path == "happy/2024/summer/x.jpg") == 0


def test_a_split_never_changes(photos):
    """A photo stays where it is when others are added, renamed, removed, and on every machine."""
    before = {photo.sha256: photo.split for photo in read(photos).photos}
    for number in range(100, 110):
        drawings.photo("happy", number).save(photos / "happy" / f"{number}.png")
    os.rename(photos / "sad" / "sad1.png", photos / "sad" / "renamed.png")
    os.unlink(photos / "sad" / "sad3.png")
    after = {photo.sha256: photo.split for photo in read(photos).photos}
    assert len(after) == 89
    assert all(after[sha256] == split for sha256, split in before.items() if sha256 in after)
    assert FRACTIONS.split("00" * 32) == "test"
    assert FRACTIONS.split("40" * 32) == "validation"
    assert FRACTIONS.split("80" * 32) == FRACTIONS.split("ff" * 32) == "train"


@given(st.binary(min_size=32, max_size=32), st.floats(0.01, 0.49), st.floats(0.01, 0.49))
def test_a_split_is_one_of_three(digest, validation, test):
    assert Fractions(validation, test).split(digest.hex()) in dataset.SPLITS


def test_splits_have_about_the_size_that_was_asked_for():
    hashes = [hashlib.sha256(str(i).encode()).hexdigest() for i in range(5000)]
    found = Counter(map(Fractions(0.15, 0.1).split, hashes))
    assert found["validation"] == pytest.approx(750, abs=90)
    assert found["test"] == pytest.approx(500, abs=90)


def test_the_hash_names_contents_and_classes_not_files(photos):
    before = read(photos).hash
    os.rename(photos / "sad" / "sad1.png", photos / "sad" / "renamed.png")
    assert read(photos).hash == before
    os.rename(photos / "sad" / "renamed.png", photos / "happy" / "moved.png")
    assert read(photos).hash != before
    data = read(photos)
    lines = sorted(f"{data.class_names[photo.label]} {photo.sha256}\n" for photo in data.photos)
    assert data.hash == hashlib.sha256("".join(lines).encode()).hexdigest()


def test_what_cannot_be_used_is_listed_with_its_reason(photos):
    happy = photos / "happy"
    (happy / "empty.jpg").write_bytes(b"")
    (happy / "text.jpg").write_text("not a picture")
    (happy / "cut.png").write_bytes((happy / "happy1.png").read_bytes()[:300])
    (happy / "big.png").write_bytes(b"x" * 1_000_001)
    os.symlink(happy / "happy1.png", happy / "link.png")
    os.symlink(photos / "sad", happy / "linked-folder")
    os.mkfifo(happy / "pipe.jpg")
    (photos / "beside.jpg").write_bytes(b"x")
    os.symlink(photos / "sad", photos / "linked-class")
    data = read(photos)
    assert data.class_names == ("happy", "sad")
    assert len(data.photos) == 80
    found = reasons(data)
    for path, reason in {
        "happy/empty.jpg": "empty",
        "happy/text.jpg": "not_an_image",
        "happy/cut.png": "truncated",
        "happy/big.png": "larger than 1,000,000 bytes",
        "happy/link.png": "link",
        "happy/linked-folder": "link",
        "happy/pipe.jpg": "not a regular file",
        "beside.jpg": "beside the class folders",
        "linked-class": "link",
    }.items():
        assert reason in found.pop(path)
    assert found == {}


def test_a_file_that_vanishes_or_is_forbidden_is_listed(photos, monkeypatch):
    from trainer import dataset as module

    real = module.read_bytes

    def forbidden(path, most):
        if path.name == "sad1.png":
            raise PermissionError(13, "Permission denied")
        return real(path, most)

    monkeypatch.setattr(module, "read_bytes", forbidden)
    assert reasons(read(photos)) == {"sad/sad1.png": "cannot be read: Permission denied"}


def test_hidden_and_ignored_files_are_skipped_without_a_word(photos):
    for name in (".DS_Store", ".hidden.jpg", "Thumbs.db", "x.part"):
        (photos / "happy" / name).write_bytes(b"x")
    (photos / ".thumbnails").mkdir()
    (photos / "happy" / "@eaDir").mkdir()
    (photos / "happy" / "@eaDir" / "x.jpg").write_bytes(b"x")
    data = read(photos)
    assert data.unused == ()
    assert len(data.photos) == 80


def test_of_equal_photos_one_is_used(photos):
    shutil.copy(photos / "sad" / "sad0.jpg", photos / "sad" / "a copy.jpg")
    data = read(photos)
    assert len(data.photos) == 80
    assert reasons(data) == {"sad/sad0.jpg": "the same photo as sad/a copy.jpg"}


def smaller(source, target):
    """Save a photo again, as another program would: other bytes, the same picture."""
    image = Image.open(source)
    image.resize((image.width - 4, image.height - 4)).save(target, "PNG")


def test_near_duplicates_are_used_and_share_a_split(photos):
    for number in range(20):
        smaller(photos / "sad" / f"sad{number}.{('jpg', 'png')[number % 2]}", photos / "sad" / f"again{number}.png")
    data = read(photos, prepare=at_size)
    assert data.unused == ()
    assert len(data.photos) == 100
    split = {photo.path: photo.split for photo in data.photos}
    assert len(data.twins) == 20
    assert all(len(group) == 2 and len({split[path] for path in group}) == 1 for group in data.twins)
    assert {split[path] for group in data.twins for path in group} == set(dataset.SPLITS)


def test_near_duplicates_in_two_classes_are_used_in_neither_nor_are_their_copies(photos):
    smaller(photos / "sad" / "sad0.jpg", photos / "happy" / "again.png")
    shutil.copy(photos / "happy" / "again.png", photos / "happy" / "again and again.png")
    data = read(photos, prepare=at_size)
    assert len(data.photos) == 79
    assert {(u.path, u.kind, u.of) for u in data.unused} == {
        ("happy/again and again.png", "contradiction", ("sad/sad0.jpg",)),
        ("happy/again.png", "contradiction", ("sad/sad0.jpg",)),
        ("sad/sad0.jpg", "contradiction", ("happy/again and again.png",)),
    }
    assert "nearly the same photo as sad/sad0.jpg" in reasons(data)["happy/again.png"]


def test_a_photo_between_two_splits_is_left_out(photos):
    happy = photos / "happy"
    read(photos, prepare=at_size)
    record = split_record.read(photos)
    sha = {name: hashlib.sha256((happy / name).read_bytes()).hexdigest() for name in ("happy1.png", "happy3.png")}
    text = (photos / split_record.NAME).read_text()
    for name, split in zip(sha, ("train", "test"), strict=True):  # as if both were alike and had been recorded apart
        entry = record[sha[name]]
        line = f'"phash":"{entry.phash.hex()}","split":"{entry.split}"'
        text = text.replace(line, f'"phash":"{record[sha["happy1.png"]].phash.hex()}","split":"{split}"')
    (photos / split_record.NAME).write_text(text)
    smaller(happy / "happy1.png", happy / "between.png")
    reason = reasons(read(photos, prepare=at_size))["happy/between.png"]
    assert "happy/happy3.png (test) and of happy/happy1.png (train)" in reason


def test_the_split_is_recorded_beside_the_photos_and_is_no_photo(photos):
    first = read(photos, rules=Rules((), 1_000_000))
    assert first.unused == ()
    assert len(split_record.read(photos)) == 80
    (photos / f".{split_record.NAME}.0123.tmp").write_bytes(b"left by a crash")
    assert read(photos, rules=Rules((), 1_000_000)) == first
    changed = read(photos, fractions=Fractions(0.01, 0.01))
    assert {p.sha256: p.split for p in changed.photos} == {p.sha256: p.split for p in first.photos}


def test_a_folder_that_is_only_measured_on_gets_no_record(photos):
    data = dataset.read(photos, lambda _, photo: images.decode(photo, size=16), FRACTIONS, RULES, record=False)
    assert len(data.photos) == 80
    assert not (photos / split_record.NAME).exists()
    (photos / split_record.NAME).write_text("damaged")
    assert dataset.read(photos, lambda _, photo: images.decode(photo, size=16), FRACTIONS, RULES, record=False) == data


def test_a_damaged_record_is_found_before_anything_is_decoded(photos):
    (photos / split_record.NAME).write_text("damaged")

    def decode(*_):
        raise AssertionError("decoded")

    with pytest.raises(split_record.DamagedRecordError, match="line 1 is damaged"):
        read(photos, prepare=decode)


def test_a_read_only_folder_is_used_and_said_in_one_line(photos, monkeypatch, capsys):
    def refuse(*_):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(durable, "write_new", refuse)
    data = read(photos)
    assert len(data.photos) == 80
    (note,) = data.notes
    assert "could not be recorded (Read-only file system)" in note
    assert note in capsys.readouterr().err.splitlines()


def test_a_photo_in_two_classes_is_used_in_neither(photos):
    shutil.copy(photos / "sad" / "sad0.jpg", photos / "happy" / "x.jpg")
    data = read(photos)
    assert len(data.photos) == 79
    assert {path for path, reason in reasons(data).items() if "'happy' and 'sad'" in reason} == {
        "happy/x.jpg",
        "sad/sad0.jpg",
    }


def error(root, **options):
    with pytest.raises(DatasetError) as caught:
        read(root, **options).require_enough()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_folders_that_hold_no_dataset(tmp_path, photos):
    assert "cannot be read: No such file" in error(tmp_path / "nowhere")
    assert "Not a directory" in error(photos / "sad" / "sad0.jpg")
    (tmp_path / "flat").mkdir()
    assert "no class folders" in error(tmp_path / "flat")
    (tmp_path / "flat" / "happy").mkdir()
    assert "hold no photos" in error(tmp_path / "flat")
    (tmp_path / "flat" / "happy" / "x.jpg").write_text("text")
    assert re.search(r"not one of 1 files can be used; happy/x.jpg, for one: not_an_image", error(tmp_path / "flat"))
    shutil.rmtree(photos / "sad")
    assert "only one class folder, 'happy'" in error(photos)


@pytest.mark.parametrize("name", ["inbox", "Review", "x" * 101, "bell\a"])
def test_a_class_name_that_a_tray_could_not_hold_is_an_error(photos, name):
    (photos / name).mkdir()
    assert "rename that folder" in error(photos)


def test_class_names_that_differ_only_in_case_are_an_error(photos):
    (photos / "HAPPY").mkdir()
    assert "differ only in case" in error(photos)


def test_too_few_photos_say_how_many_are_needed(tmp_path):
    message = error(drawings.folder(tmp_path / "p", count=4))
    assert "class 'happy' has 4 usable photos" in message
    assert "at least 5 in train, 2 in validation, 2 in test" in message
    assert "about 24 per class" in message


def test_an_empty_class_is_too_few(photos):
    (photos / "calm").mkdir()
    assert "class 'calm' has 0 usable photos" in error(photos)


def test_each_file_is_read_once(photos, monkeypatch):
    from trainer import dataset as module

    opened = Counter()
    real = module.read_bytes
    monkeypatch.setattr(module, "read_bytes", lambda path, most: opened.update([path]) or real(path, most))
    read(photos)
    assert len(opened) == 80
    assert set(opened.values()) == {1}


@pytest.fixture
def cache(tmp_path):
    return prepared.Cache(tmp_path / "prepared", 32, 1_000_000)


def test_the_prepared_copy_holds_the_decoders_pixels(photos, cache):
    for photo in read(photos, prepare=cache.add).photos:
        path = cache.path(photo.sha256)
        assert path.parent.name == photo.sha256[:2]
        assert path.parent.parent.name == f"32px-v{images.PREPROCESSING_VERSION}"
        expected = images.decode(photos / photo.path, size=32).pixels
        assert np.array_equal(images.decode(path).pixels, expected)
        assert np.array_equal(images.decode(path, size=32).pixels, expected)


def test_a_second_run_decodes_nothing(photos, cache, monkeypatch):
    first = read(photos, prepare=cache.add)

    def decode(*_, **__):
        raise AssertionError("decoded again")

    monkeypatch.setattr(images, "decode", decode)
    assert read(photos, prepare=cache.add) == first


def test_a_photo_is_decoded_once_also_for_its_fingerprint(photos, cache, monkeypatch):
    decoded = Counter()
    real = images.decode

    def decode(source, **options):
        decoded[type(source).__name__] += 1
        return real(source, **options)

    monkeypatch.setattr(images, "decode", decode)
    read(photos, prepare=cache.add)
    assert decoded == {"bytes": 80}


def test_without_the_record_the_fingerprints_come_from_the_prepared_copy(photos, cache, monkeypatch):
    read(photos, prepare=cache.add)
    before = (photos / split_record.NAME).read_bytes()
    (photos / split_record.NAME).unlink()
    real = images.decode

    def decode(source, **options):
        assert isinstance(source, Path), "a photo was decoded again"
        return real(source, **options)

    monkeypatch.setattr(images, "decode", decode)
    read(photos, prepare=cache.add)
    assert (photos / split_record.NAME).read_bytes() == before


def test_the_prepared_copy_says_what_the_photo_was(photos, cache):
    data = (photos / "sad" / "sad0.jpg").read_bytes()
    cache.add("ab" * 32, data)
    again = cache.add("ab" * 32, data)
    assert again.origin == (48, 40, "JPEG", 0, False)
    Image.fromarray(again.pixels).save(cache.path("ab" * 32))
    assert cache.add("ab" * 32, data).origin is None


def test_a_damaged_prepared_copy_is_named_and_the_photo_is_not_blamed(photos, cache):
    read(photos, prepare=cache.add)
    (photos / split_record.NAME).unlink()
    path = next(cache.root.rglob("*.png"))
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(FailureError, match=f"{path.name}: this prepared copy is damaged.*delete it"):
        read(photos, prepare=cache.add)


class Killed(BaseException):
    pass


@pytest.mark.parametrize("name", ["fsync", "rename"])
def test_a_crash_while_preparing_leaves_no_partial_file(photos, cache, monkeypatch, name):
    data = (photos / "sad" / "sad0.jpg").read_bytes()

    def die(*_):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(durable.os, name, die)
        with pytest.raises(Killed):
            cache.add("ab" * 32, data)
    assert [path for path in cache.root.rglob("*") if path.is_file()] == []
    cache.add("ab" * 32, data)
    assert images.decode(cache.path("ab" * 32)).width == 32


def test_a_full_disk_is_not_the_photos_fault(photos, cache, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(durable, "write_new", full)
    with pytest.raises(OSError, match="No space"):
        read(photos, prepare=cache.add)


def linked(data, cache, view):
    prepared.link(cache, ((p.split, data.class_names[p.label], p.sha256) for p in data.photos), data.class_names, view)
    return view


def test_a_view_links_to_the_cache(photos, cache, tmp_path):
    data = read(photos, prepare=cache.add)
    view = linked(data, cache, tmp_path / "view")
    for photo in data.photos:
        path = view / photo.split / data.class_names[photo.label] / f"{photo.sha256}.png"
        assert path.samefile(cache.path(photo.sha256))
    assert len(list(view.rglob("*.png"))) == 80


def test_a_view_copies_where_links_are_refused(photos, cache, tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    data = read(photos, prepare=cache.add)
    assert len(list(linked(data, cache, tmp_path / "view").rglob("*.png"))) == 80


@pytest.mark.tf
@pytest.mark.parametrize("split", dataset.SPLITS)
def test_keras_reads_the_decoders_pixels_in_the_datasets_order(photos, cache, tmp_path, split):
    """Train and serve cannot differ: what Keras streams is what images.decode gives for the same photo."""
    from trainer import input_pipeline

    data = read(photos, prepare=cache.add)
    view = linked(data, cache, tmp_path / "view")
    expected = data.of(split)
    seen = 0
    for pixels, labels in input_pipeline.stream(view / split, data.class_names, 32, 8, None):
        assert pixels.dtype == "float32"
        assert labels.dtype == "int32"
        for row, label in zip(pixels.numpy(), labels.numpy(), strict=True):
            photo = expected[seen]
            assert label == photo.label
            assert np.array_equal(row, images.decode(photos / photo.path, size=32).pixels.astype(np.float32))
            seen += 1
    assert seen == len(expected)


@pytest.mark.tf
def test_a_seed_gives_the_same_order_again_and_another_in_the_next_epoch(photos, cache, tmp_path):
    from trainer import input_pipeline

    data = read(photos, prepare=cache.add)
    view = linked(data, cache, tmp_path / "view")

    def orders(seed):
        stream = input_pipeline.stream(view / "train", data.class_names, 32, 8, seed)
        return [np.concatenate([pixels.numpy()[:, 0, 0, 0] for pixels, _ in stream]).tolist() for _ in range(2)]

    first = orders(7)
    assert first == orders(7)
    assert first[0] != first[1]
    assert sorted(first[0]) == sorted(first[1]) == sorted(orders(8)[0])
    assert first != orders(8)
