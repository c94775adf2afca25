import io

import numpy as np
import pytest
from PIL import Image, ImageEnhance

import pictures
from trainer import images, twins

COUNT = 30


def scene(seed):
    """Draw large and small blocks of random colours, in a shape of its own."""
    width, height = 200 + 17 * (seed % 7), 150 + 13 * (seed % 5)
    large = np.asarray(pictures.noise(width, height, 40, seed), np.float64)
    return Image.fromarray(
        (0.7 * large + 0.3 * np.asarray(pictures.noise(width, height, 9, seed + 1))).astype(np.uint8)
    )


def encoded(image, kind="JPEG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def fingerprint(data, size=224):
    return twins.fingerprint(images.decode(data, size=size).pixels)


def array(fingerprints):
    return np.frombuffer(b"".join(fingerprints), np.uint8).reshape(-1, twins.BYTES)


def pairs(fingerprints, groups=None):
    rows = array(fingerprints)
    groups = np.zeros(len(rows), np.int64) if groups is None else groups
    return {tuple(pair) for pair in twins.pairs(rows, np.arange(len(rows)), groups).tolist()}


def cropped(image, share):
    width, height = image.size
    return image.crop((0, int(height * share), int(width * (1 - share)), height))


COPIES = {
    "recompressed": lambda image: encoded(image, quality=40),
    "halved": lambda image: encoded(image.resize((image.width // 2, image.height // 2))),
    "enlarged": lambda image: encoded(image.resize((image.width * 2, image.height * 2)), "PNG"),
    "stretched": lambda image: encoded(image.resize((image.width * 2, image.height))),
    "grey": lambda image: encoded(image.convert("L")),
    "brighter": lambda image: encoded(ImageEnhance.Brightness(image).enhance(1.15)),
    "paler": lambda image: encoded(ImageEnhance.Contrast(image).enhance(0.7)),
    "mirrored": lambda image: encoded(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)),
    "cropped": lambda image: encoded(cropped(image, 0.01)),
    "in another format": lambda image: encoded(image, "WEBP"),
}


@pytest.fixture(scope="module")
def scenes():
    return [scene(10 * seed) for seed in range(COUNT)]


@pytest.fixture(scope="module")
def originals(scenes):
    return [fingerprint(encoded(image, quality=95)) for image in scenes]


@pytest.mark.parametrize("change", COPIES.values(), ids=COPIES)
def test_a_copy_of_a_photo_is_its_twin(scenes, originals, change):
    copies = [fingerprint(change(image)) for image in scenes]
    found = pairs([*originals, *copies])
    assert sum((i, COUNT + i) in found and (COUNT + i, i) in found for i in range(COUNT)) >= COUNT - 1


def test_different_photos_are_no_twins(originals):
    others = [fingerprint(encoded(scene(1000 + seed))) for seed in range(100)]
    assert pairs([*originals, *others]) == set()


def test_a_photo_upside_down_is_no_twin(scenes, originals):
    turned = [fingerprint(encoded(image.transpose(Image.Transpose.ROTATE_180))) for image in scenes]
    assert pairs([*originals, *turned]) == set()


def test_the_size_of_the_prepared_copy_does_not_matter(scenes, originals):
    others = [fingerprint(encoded(image, quality=95), size) for image in scenes for size in (64, 256, 300)]
    found = pairs([*originals, *others])
    assert all((i, COUNT + 3 * i + j) in found for i in range(COUNT) for j in range(3))


@pytest.mark.parametrize("colour", ["white", "black", (200, 180, 20)])
def test_a_picture_without_contrast_has_no_fingerprint(colour):
    flat = np.asarray(Image.new("RGB", (224, 224), colour)).astype(np.int64)
    faint = np.clip(flat + np.random.default_rng(0).integers(-5, 6, flat.shape), 0, 255).astype(np.uint8)
    assert twins.fingerprint(flat.astype(np.uint8)) == b""
    assert twins.fingerprint(faint) == b""
    faint[:, 100:120] = 128
    assert len(twins.fingerprint(faint)) == twins.BYTES


@pytest.mark.parametrize(
    ("low", "others", "expected"),
    [(8, 0, True), (9, 0, False), (0, 60, True), (0, 61, False), (8, 52, True), (8, 53, False)],
)
def test_so_many_bits_may_differ(low, others, expected):
    """What was measured on real photos: more, and portraits of two people become one."""
    bits = np.random.default_rng(0).integers(0, 2, (2, 16, 16), np.uint8)
    bits[1] = bits[0]
    bits[1, 0, : min(low, 8)] ^= 1
    bits[1, 1, : max(0, low - 8)] ^= 1
    bits[1, 8:].ravel()[:others] ^= 1
    assert bool(pairs([np.packbits(fingerprint).tobytes() for fingerprint in bits])) == expected


def near_and_far(count, seed=0):
    """Give random fingerprints, each second one the first with some bits turned, many of them at the very edge."""
    rng = np.random.default_rng(seed)
    bits = rng.integers(0, 2, (count, 16, 16), np.uint8)
    for row in range(1, count, 2):
        turned = np.zeros(256, np.uint8)
        turned[: rng.integers(50, 63)] = 1
        bits[row] = bits[row - 1] ^ rng.permutation(turned).reshape(16, 16)
        low = np.zeros(64, np.uint8)
        low[: rng.integers(5, 11)] = 1
        bits[row, :8, :8] = bits[row - 1, :8, :8] ^ rng.permutation(low).reshape(8, 8)
        if row % 4 == 1:
            bits[row, :, 1::2] ^= 1
    return np.packbits(bits.reshape(count, 256), axis=1), bits


def expected(bits):
    mirror = (np.arange(16) % 2).astype(np.uint8)
    near = np.zeros((len(bits), len(bits)), bool)
    for turned in (bits, bits ^ mirror):
        low = (turned[:, None, :8, :8] != bits[None, :, :8, :8]).sum(axis=(2, 3))
        near |= (low <= twins.LOW) & ((turned[:, None] != bits[None]).sum(axis=(2, 3)) <= twins.ALL)
    np.fill_diagonal(near, val=False)
    return np.argwhere(near)


@pytest.mark.parametrize("small", [0, 10_000], ids=["index", "all with all"])
@pytest.mark.parametrize("crowd", [7, 1 << 22])
def test_all_pairs_within_the_distances_are_found_and_no_others(monkeypatch, small, crowd):
    rows, bits = near_and_far(400)
    monkeypatch.setattr(twins, "SMALL", small)
    monkeypatch.setattr(twins, "CROWD", crowd)
    monkeypatch.setattr(twins, "CHUNK", 150)
    found = twins.pairs(rows, np.arange(400), np.zeros(400, np.int64))
    assert 100 < len(found) < 400
    assert np.array_equal(found, expected(bits))


def test_only_what_is_sought_is_looked_up():
    rows, bits = near_and_far(40)
    sought = np.array([3, 4, 20])
    every = expected(bits)
    assert np.array_equal(twins.pairs(rows, sought, np.zeros(40, np.int64)), every[np.isin(every[:, 0], sought)])


def test_nothing_is_no_error():
    assert twins.pairs(np.empty((0, 32), np.uint8), np.arange(0), np.arange(0)).shape == (0, 2)


def test_of_a_crowd_each_photo_keeps_a_few_twins_in_each_group(monkeypatch):
    monkeypatch.setattr(twins, "MOST", 3)
    rows = np.zeros((100, 32), np.uint8)
    groups = np.arange(100) % 2
    found = twins.pairs(rows, np.arange(100), groups)
    assert len(found) == 600
    for row in range(100):
        others = found[found[:, 0] == row, 1]
        assert row not in others
        assert np.bincount(groups[others]).tolist() == [3, 3]
    assert set(found[found[:, 0] == 50, 1]) == {0, 1, 2, 3, 4, 5}
