import errno
import os
from types import SimpleNamespace

import numpy as np
import pytest

pytestmark = pytest.mark.tf
keras = pytest.importorskip("keras")

from trainer import features  # noqa: E402  after keras
from trainer.errors import InputError  # noqa: E402


@pytest.fixture(scope="module")
def lower():
    image = keras.Input((8, 8, 3))
    return keras.Model(image, keras.layers.AveragePooling2D(2)(image))


def pictures(count=70):
    return np.random.default_rng(0).uniform(0, 255, (count, 8, 8, 3)).astype(np.float32)


def chunks(images):
    return [images[i : i + features.CHUNK] for i in range(0, len(images), features.CHUNK)]


def test_maps_are_those_of_the_photos_in_order_and_read_through_a_memory_map(lower, tmp_path):
    images = pictures()
    maps = features.compute(lower, chunks(images), len(images), tmp_path / "x" / "clean.npy", "photos")
    assert isinstance(maps, np.memmap)
    assert (maps.shape, maps.dtype) == ((70, 4, 4, 3), np.float16)
    assert np.asarray(maps, np.float32) == pytest.approx(lower.predict(images, verbose=0), abs=0.2)


def test_what_is_there_is_not_computed_again(lower, tmp_path):
    images = pictures()
    first = features.compute(lower, chunks(images), len(images), tmp_path / "clean.npy", "photos")

    def never():
        raise AssertionError
        yield

    assert np.array_equal(first, features.compute(lower, never(), len(images), tmp_path / "clean.npy", "photos"))


def test_an_interrupted_computation_leaves_no_file_of_that_name(lower, tmp_path):
    images = pictures()

    def interrupted():
        yield images[:32]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        features.compute(lower, interrupted(), len(images), tmp_path / "clean.npy", "photos")
    assert not (tmp_path / "clean.npy").exists()
    again = features.compute(lower, chunks(images), len(images), tmp_path / "clean.npy", "photos")
    assert len(again) == 70


def test_a_disk_that_is_too_small_is_said_before_anything_is_computed(lower, tmp_path, monkeypatch):
    monkeypatch.setattr(features.shutil, "disk_usage", lambda _: SimpleNamespace(free=features.SPARE_BYTES + 100))
    with pytest.raises(InputError, match=r"features of these photos take 0\.0 GB.*trainer\.runs"):
        features.compute(lower, [], 70, tmp_path / "clean.npy", "photos")
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_is_an_os_error_and_no_signal(lower):
    """/dev/full refuses every write; a write to a memory map would have been a SIGBUS."""
    small = keras.Model(lower.input, lower.output)
    images = np.repeat(pictures(64), 8, 0)
    folder = "/dev"
    assert os.path.exists(f"{folder}/full")
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        features._fill(
            features.Path("/dev/full"),
            (len(images), 4, 4, 3),
            features._maps(small, chunks(images)),
            np.dtype(np.float16),
        )


class TestBatches:
    def made(self, seed, rows=range(50), copies=2):
        maps = [np.full((60, 1), copy, np.float16) + np.arange(60)[:, None] / 100 for copy in range(copies)]
        targets = np.arange(60, dtype=np.float32)[:, None]
        return features.Batches([m.astype(np.float16) for m in maps], np.array(rows), targets, 16, seed)

    def all_of(self, batches):
        x, y = zip(*(batches[i] for i in range(len(batches))), strict=True)
        return np.concatenate(x), np.concatenate(y)

    def test_every_row_comes_once_in_each_epoch(self):
        batches = self.made(seed=7)
        orders = []
        for epoch in range(4):
            batches.epoch = epoch
            _, y = self.all_of(batches)
            assert sorted(y[:, 0]) == list(range(50))
            orders.append(tuple(y[:, 0]))
        assert len(set(orders)) == 4

    def test_the_order_depends_on_seed_and_epoch_alone(self):
        one, other = self.made(seed=7), self.made(seed=7)
        self.all_of(one)
        one.epoch = other.epoch = 3
        for a, b in zip(self.all_of(one), self.all_of(other), strict=True):
            assert np.array_equal(a, b)
        assert not np.array_equal(self.all_of(self.made(seed=7))[1], self.all_of(self.made(seed=8))[1])

    def test_each_copy_of_a_photo_gets_its_turn(self):
        batches = self.made(seed=7)
        seen = set()
        for epoch in range(12):
            batches.epoch = epoch
            x, y = self.all_of(batches)
            seen |= {(int(row), int(value)) for value, row in zip(x[:, 0], y[:, 0], strict=True)}
        assert seen == {(row, copy) for row in range(50) for copy in (0, 1)}

    def test_without_a_seed_the_rows_come_in_order_from_the_first_copy(self):
        x, y = self.all_of(self.made(seed=None, rows=[5, 3, 40]))
        assert y[:, 0].tolist() == [5, 3, 40]
        assert x[:, 0] == pytest.approx([0.05, 0.03, 0.40], abs=1e-3)


def test_the_two_parts_of_a_backbone_give_what_the_whole_gives():
    from trainer import model

    backbone = model.find("efficientnet_lite0").backbone(64)
    images = np.random.default_rng(0).uniform(0, 255, (3, 64, 64, 3)).astype(np.float32)
    expected = backbone(images, training=False).numpy()
    for cut in ("", "block10_add"):
        parts = features.Parts.of(backbone, cut)
        maps = parts.lower(images, training=False).numpy().astype(np.float16)
        assert parts.pooled(maps).astype(np.float32) == pytest.approx(expected, abs=2e-2)
    assert parts.lower.output_shape == (None, 4, 4, 112)
