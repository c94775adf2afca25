import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import bundles
import drawings
from trainer import bundle, charts, dataset, images, replay, views
from trainer.errors import FailureError, InputError
from trainer.evaluate import Metrics, Predictions, measure, predict, tables


def bundle_of(classes=2, **fields):
    return bundle.Bundle(None, bundles.draft(classes, **fields), bundles.tflite(classes))


def evaluate(bundle, photos, max_pixels):
    return measure(bundle, predict(bundle, photos, max_pixels))


def predictions(classes, labels, scores):
    """Return predictions of photos that are nowhere."""
    count = len(labels)
    nothing, names = np.zeros(count), bundle_of(classes).manifest.class_names
    sizes = np.zeros(count, int)
    scores = np.array(scores, np.float32)
    return Predictions(names, (Path("x.jpg"),) * count, np.array(labels), scores, sizes, sizes, nothing, nothing)


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
    told = predictions(2, [0, 0, 1, 1], scores)
    metrics = measure(bundle_of(), told)
    assert metrics.confusion == ((1, 1), (0, 2))
    assert metrics.auc == pytest.approx(0.75)
    assert measure(bundle_of(threshold=0.7), told).confusion == ((2, 0), (1, 1))


def test_auc_of_more_classes_is_the_mean_of_one_against_the_rest():
    scores = np.array([[0.8, 0.1, 0.1], [0.2, 0.5, 0.3], [0.1, 0.2, 0.7], [0.3, 0.4, 0.3]], np.float32)
    metrics = measure(bundle_of(3), predictions(3, [0, 1, 2, 2], scores))
    assert metrics.confusion == ((1, 0, 0), (0, 1, 0), (0, 1, 1))
    assert metrics.auc == pytest.approx((1 + 1 + 0.875) / 3)


def test_one_class_alone_has_an_accuracy_and_no_auc():
    metrics = measure(bundle_of(), predictions(2, [1], [[0.2, 0.8]]))
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


def test_each_class_has_its_precision_and_recall():
    metrics = Metrics(("a", "b", "c"), ((8, 2, 0), (4, 6, 0), (0, 0, 0)), None)
    assert metrics.recalls == (0.8, 0.6, None)
    assert metrics.precisions == (8 / 12, 6 / 8, None)
    assert metrics.as_json()["classes"]["b"] == {"photos": 10, "precision": 0.75, "recall": 0.6}


def test_the_interval_of_the_balanced_accuracy_holds_it_and_shrinks_with_more_photos():
    few, many = (Metrics(("a", "b"), ((9 * n, n), (3 * n, 7 * n)), None) for n in (1, 100))
    for metrics in (few, many):
        assert metrics.balanced_interval[0] < metrics.balanced_accuracy < metrics.balanced_interval[1]
    assert few.balanced_interval[0] < 0.62
    assert many.balanced_interval[0] > 0.78
    one_class = Metrics(("a", "b"), ((9, 1), (0, 0)), None)
    assert one_class.balanced_interval == pytest.approx(one_class.interval)


def test_the_calibration_error_is_of_the_answers_own_scores():
    """Answered "happy" at 0.7 or "sad" at 0.7, right three times out of four."""
    told = predictions(2, [0, 1, 1, 0], [[0.7, 0.3], [0.3, 0.7], [0.3, 0.7], [0.3, 0.7]])
    assert measure(bundle_of(), told).ece == pytest.approx(0.05)


@pytest.mark.parametrize("scores", [[[1, 0]], [[0, 1]], [[0.5, 0.5]]])
def test_whatever_is_measured_the_json_is_finite(scores):
    text = json.dumps(measure(bundle_of(), predictions(2, [1], scores)).as_json(), allow_nan=False)
    assert json.loads(text)["photos"] == 1


def test_the_tables_hold_every_figure():
    figures, confusion = tables(Metrics(("a", "b"), ((8, 2), (3, 27)), 0.9, 0.04))
    assert [str(cell) for cell in figures.columns[0].cells] == [
        "accuracy", "balanced accuracy", "AUC", "calibration error (ECE)"
    ]  # fmt: skip
    assert [str(cell) for cell in confusion.columns[-1].cells] == ["80%", "90%", ""]
    assert [str(cell) for cell in confusion.columns[1].cells] == ["8", "3", "73%"]


def test_predictions_know_sizes_and_times(tmp_path):
    drawings.photo("happy", 1, (70, 30)).save(tmp_path / "a.png")
    drawings.photo("sad", 1, (20, 50)).save(tmp_path / "b.jpg")
    told = predict(bundle_of(), [(tmp_path / "a.png", 0), (tmp_path / "b.jpg", 1)], 1_000_000)
    assert (told.widths.tolist(), told.heights.tolist()) == ([70, 20], [30, 50])
    assert told.scores.dtype == np.float32
    assert told.scores.sum(axis=1) == pytest.approx([1, 1])
    assert (told.decode_ms > 0).all()
    assert (told.predict_ms > 0).all()


def test_no_photo_is_an_input_error():
    with pytest.raises(InputError, match="no photo"):
        predict(bundle_of(), [], 1_000_000)


def went_bad(path):
    path.write_bytes(b"no picture")


@pytest.mark.parametrize(("happened", "told"), [(went_bad, "not a picture"), (os.remove, "No such file")])
def test_a_photo_that_went_bad_is_one_line(tmp_path, happened, told):
    root = drawings.folder(tmp_path, count=3)
    photos = [(path, 0) for path in root.rglob("*.jpg")]
    bad = root / "happy" / "x\x07.jpg"
    os.rename(photos[0][0], bad)
    happened(bad)
    with pytest.raises(FailureError, match=r"happy/x\\x07.jpg: it could be read before") as caught:
        evaluate(bundle_of(), [(bad, 0), *photos[1:]], 1_000_000)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_model_that_gives_no_numbers_is_one_line(tmp_path, monkeypatch):
    drawings.photo("happy", 1).save(tmp_path / "a.png")
    nothing = views.Judged(np.array([np.nan, 0], np.float32), {})
    monkeypatch.setattr(views.Predictor, "__call__", lambda *_: nothing)
    with pytest.raises(FailureError, match=r"a\.png: bundle 1 gives no number"):
        evaluate(bundle_of(), [(tmp_path / "a.png", 0)], 1_000_000)


def test_the_charts_are_pictures(tmp_path):
    """Class names with mathematics, digits alone, or other scripts are drawn as they are."""
    history = {name: [0.5, 0.4] for name in ("cross_entropy", "val_cross_entropy", "accuracy", "val_accuracy")}
    charts.draw_curves(history, tmp_path / "curves.png")
    charts.draw_curves({name: values[:1] for name, values in history.items()}, tmp_path / "one.png")
    broken = {"cross_entropy": [0.5, float("nan"), float("inf")], "accuracy": [0.5, 0.6, 0.7]}
    charts.draw_curves(broken, tmp_path / "broken.png")
    charts.draw_confusion(Metrics(("$a_b$", "1", "日本"), ((1, 0, 0), (0, 0, 0), (2, 3, 4)), None), tmp_path / "c.png")
    many = Metrics(tuple(map(str, range(200))), tuple(map(tuple, np.diag(np.arange(200)).tolist())), None)
    charts.draw_confusion(many, tmp_path / "many.png")
    for name in ("curves.png", "one.png", "broken.png", "c.png", "many.png"):
        assert images.decode(tmp_path / name).pixels.std() > 10
    with Image.open(tmp_path / "many.png") as drawn:
        assert max(drawn.size) < 4000


def test_a_replay_is_read_back_and_counts_what_was_learned_from(tmp_path):
    hashes = [f"{number:016x}" + "0" * 48 for number in range(6)]
    splits = np.array([dataset.SPLITS.index(split) for split in ("train", "train", "validation", "test")], np.uint8)
    written = replay.Replay(
        np.arange(8, dtype=np.float16).reshape(4, 2),
        np.array([0, 1, 0, 1], np.uint16),
        splits,
        replay.prefixes(hashes[:4]),
        replay.prefixes(hashes[5:]),
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
        "faces_prefix": "uint64",
    }
    assert np.array_equal(found.features, written.features)
    assert replay.learned(loaded, hashes) == [True, True, True, False, False, True]
    assert replay.learned(bundle_of(), hashes) is None


def test_a_replay_with_pickled_objects_is_not_loaded(tmp_path):
    staged = bundles.stage(tmp_path / "staged")
    np.savez(staged / "replay.npz", features=np.array([{"an": "object"}], dtype=object))
    bundle.publish(tmp_path / "models", staged, bundles.draft())
    with pytest.raises(bundle.BundleError, match=r"replay\.npz does not hold features"):
        replay.read(bundle.load(tmp_path / "models", 1))


def test_a_replay_that_is_no_archive_is_refused_in_one_line(tmp_path):
    staged = bundles.stage(tmp_path / "staged")
    (staged / "replay.npz").write_bytes(b"junk")
    bundle.publish(tmp_path / "models", staged, bundles.draft())
    with pytest.raises(bundle.BundleError, match=r"replay\.npz does not hold features"):
        replay.read(bundle.load(tmp_path / "models", 1))
