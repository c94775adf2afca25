import numpy as np
import pytest

import bundles
import drawings
from trainer import bundle, charts, dataset, images, replay
from trainer.evaluate import Metrics, evaluate, measure


def bundle_of(classes=2, **fields):
    return bundle.Bundle(None, bundles.draft(classes, **fields), bundles.tflite(classes))


def test_figures_follow_from_the_confusion_matrix():
    metrics = Metrics(("happy", "sad"), ((8, 2), (3, 27)), 0.9)
    assert metrics.photos == 40
    assert metrics.accuracy == 35 / 40
    assert metrics.balanced_accuracy == pytest.approx((0.8 + 0.9) / 2)


@pytest.mark.parametrize(
    ("right", "wrong", "interval"),
    [(81, 19, (0.7222, 0.8749)), (10, 0, (0.7225, 1.0)), (0, 10, (0.0, 0.2775)), (1, 1, (0.0945, 0.9055))],
)
def test_the_interval_is_wilsons(right, wrong, interval):
    """The score interval, not the normal one: it never leaves 0 to 1, and 10 of 10 is not certainty."""
    metrics = Metrics(("a", "b"), ((right, wrong), (0, 0)), None)
    assert metrics.interval == pytest.approx(interval, abs=1e-4)


def test_decisions_and_auc_for_two_classes():
    scores = np.array([[0.9, 0.1], [0.4, 0.6], [0.5, 0.5], [0.2, 0.8]], np.float32)
    metrics = measure(bundle_of(), np.array([0, 0, 1, 1]), scores)
    assert metrics.confusion == ((1, 1), (0, 2))
    assert metrics.auc == pytest.approx(0.75)
    assert measure(bundle_of(threshold=0.7), np.array([0, 0, 1, 1]), scores).confusion == ((2, 0), (1, 1))


def test_auc_of_more_classes_is_the_mean_of_one_against_the_rest():
    scores = np.array([[0.8, 0.1, 0.1], [0.2, 0.5, 0.3], [0.1, 0.2, 0.7], [0.3, 0.4, 0.3]], np.float32)
    metrics = measure(bundle_of(3), np.array([0, 1, 2, 2]), scores)
    assert metrics.confusion == ((1, 0, 0), (0, 1, 0), (0, 1, 1))
    assert metrics.auc == pytest.approx((1 + 1 + 0.875) / 3)


def test_one_class_alone_has_an_accuracy_and_no_auc():
    metrics = measure(bundle_of(), np.array([1]), np.array([[0.2, 0.8]], np.float32))
    assert (metrics.accuracy, metrics.balanced_accuracy, metrics.auc) == (1.0, 1.0, None)
    assert metrics.as_json()["auc"] is None


def test_photos_are_measured_through_the_served_model(tmp_path):
    root = drawings.folder(tmp_path / "photos", count=12)
    photos = [(path, ("happy", "sad").index(path.parent.name)) for path in sorted(root.rglob("*.*"))]
    metrics = evaluate(bundle_of(), photos, 1_000_000)
    assert metrics.confusion == ((12, 0), (0, 12))
    assert metrics.auc == 1.0
    wrong = evaluate(bundle_of(), [(path, 1 - label) for path, label in photos], 1_000_000)
    assert wrong.confusion == ((0, 12), (12, 0))


def test_a_photo_that_went_bad_is_an_error(tmp_path):
    (tmp_path / "x.jpg").write_bytes(b"no picture")
    with pytest.raises(images.ImageError):
        evaluate(bundle_of(), [(tmp_path / "x.jpg", 0)], 1_000_000)


def test_the_charts_are_pictures(tmp_path):
    """Class names with mathematics, digits alone, or other scripts are drawn as they are."""
    history = {name: [0.5, 0.4] for name in ("cross_entropy", "val_cross_entropy", "accuracy", "val_accuracy")}
    charts.draw_curves(history, tmp_path / "curves.png")
    charts.draw_curves({name: values[:1] for name, values in history.items()}, tmp_path / "one.png")
    charts.draw_confusion(Metrics(("$a_b$", "1", "é"), ((1, 0, 0), (0, 0, 0), (2, 3, 4)), None), tmp_path / "c.png")
    for name in ("curves.png", "one.png", "c.png"):
        assert images.decode(tmp_path / name).pixels.std() > 10


def test_a_replay_is_read_back_and_counts_what_was_learned_from(tmp_path):
    hashes = [f"{number:016x}" + "0" * 48 for number in range(6)]
    splits = np.array([dataset.SPLITS.index(split) for split in ("train", "train", "validation", "test")], np.uint8)
    written = replay.Replay(
        np.arange(8, dtype=np.float16).reshape(4, 2),
        np.array([0, 1, 0, 1], np.uint16),
        splits,
        replay.prefixes(hashes[:4]),
    )
    written.write(bundles.stage(tmp_path / "staged") / "replay.npz")
    bundle.publish(tmp_path / "models", tmp_path / "staged", bundles.draft())
    loaded = bundle.load(tmp_path / "models", 1)
    found = replay.read(loaded)
    assert {name: values.dtype.name for name, values in vars(found).items()} == {
        "features": "float16",
        "labels": "uint16",
        "splits": "uint8",
        "sha256_prefix": "uint64",
    }
    assert np.array_equal(found.features, written.features)
    assert replay.taught(loaded, hashes) == 3
    assert replay.taught(bundle_of(), hashes) is None


def test_a_replay_with_pickled_objects_is_not_loaded(tmp_path):
    staged = bundles.stage(tmp_path / "staged")
    np.savez(staged / "replay.npz", features=np.array([{"an": "object"}], dtype=object))
    bundle.publish(tmp_path / "models", staged, bundles.draft())
    with pytest.raises(ValueError, match="allow_pickle=False"):
        replay.read(bundle.load(tmp_path / "models", 1))
