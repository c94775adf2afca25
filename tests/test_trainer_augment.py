import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import drawings

pytestmark = [
    pytest.mark.tf,
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"),
]
ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def photos():
    return np.stack([np.asarray(drawings.photo("happy", n, (48, 48)), np.float32) for n in range(48)])


def augmented(photos, seed, batches=1):
    from trainer import augment

    layers = augment.layers(seed)
    return [augment.augment(photos, layers).numpy() for _ in range(batches)]


def test_augmented_photos_are_photos(photos):
    (found,) = augmented(photos, 0)
    assert found.shape == photos.shape
    assert found.dtype == np.float32
    assert found.min() >= 0.0 and found.max() <= 255.0
    bright = np.full((4, 8, 8, 3), 255.0, np.float32)
    assert augmented(bright, 0)[0].max() <= 255.0


def test_every_photo_is_changed_and_each_in_its_own_way(photos):
    (found,) = augmented(np.repeat(photos[:1], 48, axis=0), 0)
    assert (np.abs(found - photos[0]).mean(axis=(1, 2, 3)) > 1.0).all()
    assert len({photo.tobytes() for photo in found}) == 48


def test_the_same_seed_and_order_give_the_same_pictures(photos):
    first, second, other = augmented(photos, 3, 2), augmented(photos, 3, 2), augmented(photos, 4, 2)
    for batch in (0, 1):
        np.testing.assert_array_equal(first[batch], second[batch])
    assert not np.array_equal(first[0], first[1])
    assert not np.array_equal(first[0], other[0])


def test_about_a_sixth_is_grey_and_half_is_mirrored(photos):
    from trainer import augment

    side = np.zeros((200, 16, 16, 3), np.float32)
    side[:, :, 8:] = (200.0, 100.0, 40.0)
    found = augment.augment(side, augment.layers(1)).numpy()
    grey = np.ptp(found, axis=3).max(axis=(1, 2)) < 1.0
    assert 0.05 < grey.mean() < 0.3
    mirrored = found[:, :, :5].mean(axis=(1, 2, 3)) > found[:, :, -5:].mean(axis=(1, 2, 3))
    assert 0.35 < mirrored.mean() < 0.65


def test_light_and_dark_stay_near_those_of_the_photo(photos):
    (found,) = augmented(photos, 0)
    weights = np.array([0.299, 0.587, 0.114])
    light = (found @ weights).mean(axis=(1, 2)) - (photos @ weights).mean(axis=(1, 2))
    assert np.abs(light).max() < 60.0
    assert np.abs(light.mean()) < 15.0
    assert light.std() > 5.0


# A run in which TensorFlow refuses what is not deterministic; eager, and in a tf.data stream.
DETERMINED = """
import hashlib, json
from trainer import quiet
with quiet.native_stderr():
    import keras, numpy as np, tensorflow as tf
    from trainer import augment
keras.utils.set_random_seed(1)
tf.config.experimental.enable_op_determinism()
photos = np.random.default_rng(0).uniform(0, 255, (32, 32, 32, 3)).astype(np.float32)
layers, mapped = augment.layers(5), augment.layers(5)
eager = [augment.augment(photos[i:i + 8], layers).numpy() for i in range(0, 32, 8)]
stream = tf.data.Dataset.from_tensor_slices(photos).batch(8)
streamed = [b.numpy() for b in stream.map(lambda batch: augment.augment(batch, mapped))]
print(json.dumps([hashlib.sha256(b"".join(b.tobytes() for b in batches)).hexdigest() for batches in (eager, streamed)]))
print(float(max(np.abs(a - b).max() for a, b in zip(eager, streamed))))
"""


def test_augmentation_is_the_same_in_every_run_that_asks_for_determinism():
    env = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    runs = [
        subprocess.run([sys.executable, "-c", DETERMINED], env=env, capture_output=True, text=True, check=False)
        for _ in range(2)
    ]
    assert [run.returncode for run in runs] == [0, 0], runs[0].stderr
    assert runs[0].stdout == runs[1].stdout
    hashes, largest = runs[0].stdout.splitlines()
    assert len(json.loads(hashes)) == 2
    assert float(largest) < 0.05  # eager or traced: the same pictures, but for rounding
