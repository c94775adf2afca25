import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer import calibration
from trainer.calibration import choose_threshold, ece, ece_by_chance, reliability


def drawn(count, shift=0.0, share=0.5, seed=0):
    """Draw labels and honest scores of class 1 whose log-odds are then off by `shift`."""
    random = np.random.default_rng(seed)
    labels = (random.random(count) < share).astype(int)
    odds = 2.0 * random.normal(np.where(labels == 1, 1.0, -1.0)) + shift
    return labels, (1 / (1 + np.exp(-odds))).astype(np.float32)


def balanced_accuracy(labels, scores, threshold):
    return np.mean([np.mean((scores[labels == label] >= threshold) == label) for label in (0, 1)])


answers = st.integers(1, 400).flatmap(
    lambda count: st.tuples(
        st.lists(st.sampled_from(np.linspace(0, 1, 41).tolist()), min_size=count, max_size=count).map(np.array),
        st.lists(st.booleans(), min_size=count, max_size=count).map(np.array),
    )
)


@given(answers, st.integers(1, 20), st.randoms())
@settings(max_examples=60, deadline=None)
def test_bins_hold_each_photo_once_keep_equal_scores_together_and_know_no_order(both, bins, random):
    confidence, correct = both
    found = reliability(confidence, correct, bins)
    assert sum(b.count for b in found) == len(confidence)
    assert sum(b.count * b.accuracy for b in found) == pytest.approx(correct.sum())
    assert sum(b.count * b.confidence for b in found) == pytest.approx(confidence.sum())
    assert len(found) <= bins
    assert all(one.confidence < other.confidence for one, other in itertools.pairwise(found))
    order = random.sample(range(len(confidence)), len(confidence))
    again = reliability(confidence[order], correct[order], bins)
    assert [(b.count, b.accuracy) for b in again] == [(b.count, b.accuracy) for b in found]
    assert 0 <= ece(confidence, correct, bins) <= 1


def test_bins_are_of_about_equal_mass():
    scores = np.random.default_rng(0).random(1000)
    assert {b.count for b in reliability(scores, scores > 0.5, 15)} == {66, 67}


def test_the_error_is_the_distance_of_confidence_and_accuracy():
    right = np.array([True] * 8 + [False] * 2)
    assert ece(np.full(10, 0.8), right) == pytest.approx(0.0)
    assert ece(np.full(10, 0.95), right) == pytest.approx(0.15)
    twice = np.concatenate([np.full(10, 0.8), np.full(30, 0.6)])
    assert ece(twice, np.concatenate([right, np.full(30, True)])) == pytest.approx(0.75 * 0.4)


@pytest.mark.parametrize("count", [60, 300, 3000])
def test_honest_scores_are_off_by_what_chance_makes(count):
    found, expected = [], []
    for seed in range(20):
        random = np.random.default_rng(seed)
        confidence = random.uniform(0.5, 1.0, count)
        found.append(ece(confidence, random.random(count) < confidence))
        expected.append(ece_by_chance(confidence))
    assert np.mean(found) == pytest.approx(np.mean(expected), rel=0.15)


@given(st.integers(0, 2**20), st.integers(0, 300), st.floats(-3, 3), st.floats(0.1, 0.9), st.sampled_from([1, 2, 3, 8]))
@settings(max_examples=40, deadline=None)
def test_a_threshold_is_within_limits_better_on_its_photos_and_knows_no_order(seed, count, shift, share, digits):
    labels, scores = drawn(count, shift, share, seed)
    scores = np.round(scores, digits)
    threshold = choose_threshold(labels, scores)
    assert calibration.LOWEST <= threshold <= calibration.HIGHEST
    order = np.random.default_rng(seed).permutation(count)
    assert choose_threshold(labels[order], scores[order]) == threshold
    if threshold != 0.5:
        assert balanced_accuracy(labels, scores, threshold) > balanced_accuracy(labels, scores, 0.5)


@pytest.mark.parametrize("count", [0, 1, 30, 49])
def test_few_photos_choose_nothing(count):
    assert choose_threshold(*drawn(count, shift=2.0)) == 0.5


def test_few_photos_of_one_class_choose_nothing():
    labels, scores = drawn(1000, shift=2.0, share=0.02)
    assert 0 < labels.sum() < 25
    assert choose_threshold(labels, scores) == 0.5


@pytest.mark.parametrize("scores", [(0.1, 0.9), (0.9, 0.1), (0.5, 0.5), (0.0, 0.0), (0.1, 0.2)])
def test_where_nothing_is_to_be_gained_one_half_stays(scores):
    labels = np.repeat([0, 1], 100)
    assert choose_threshold(labels, np.array(scores, np.float32)[labels]) == 0.5


@pytest.mark.parametrize("count", [60, 400, 3000])
def test_honest_scores_mostly_keep_one_half_and_are_hardly_harmed(count):
    new = drawn(50_000, seed=99)
    found = [choose_threshold(*drawn(count, seed=seed)) for seed in range(40)]
    assert found.count(0.5) >= 32
    harm = [balanced_accuracy(*new, 0.5) - balanced_accuracy(*new, threshold) for threshold in found]
    assert np.mean(harm) < 0.001


def test_scores_that_are_off_get_the_threshold_that_sets_them_right():
    """Log-odds that are 0.7 too high: the best threshold is at 0.668, and new photos gain from it."""
    assert choose_threshold(*drawn(3000, shift=0.7)) == pytest.approx(0.668, abs=0.03)
    assert choose_threshold(*drawn(3000, shift=-0.7)) == pytest.approx(0.332, abs=0.03)
    new = drawn(20_000, shift=0.9, seed=1)
    threshold = choose_threshold(*drawn(400, shift=0.9))
    assert balanced_accuracy(*new, threshold) > balanced_accuracy(*new, 0.5) + 0.005


def test_the_classes_count_the_same_however_many_photos_they_have():
    labels, scores = drawn(30_000, shift=0.6, share=0.1)
    assert choose_threshold(labels, scores) == pytest.approx(0.646, abs=0.03)


def test_a_photo_that_is_sure_and_wrong_does_not_decide():
    labels, scores = drawn(400, shift=0.9)
    first = choose_threshold(labels, scores)
    assert first != 0.5
    labels, scores = np.append(labels, [0, 1]), np.append(scores, np.float32([1.0, 0.0]))
    assert choose_threshold(labels, scores) == pytest.approx(first, abs=0.02)


@pytest.mark.parametrize(
    ("right", "photos", "interval"),
    [(81, 100, (0.7222, 0.8749)), (10, 10, (0.7225, 1.0)), (0, 10, (0.0, 0.2775)), (0, 0, (0.0, 1.0))],
)
def test_the_interval_of_a_share_is_wilsons(right, photos, interval):
    assert calibration.wilson(right, photos) == pytest.approx(interval, abs=1e-4)
