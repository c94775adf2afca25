import numpy as np
import pytest

from trainer import suspects


def drawn(seed=0, classes=3, count=80, width=64, distance=3.0):
    """Draw float16 features of well separated classes, and wrong labels for a tenth of them."""
    rng = np.random.default_rng(seed)
    truth = np.repeat(np.arange(classes), count)
    centres = rng.normal(size=(classes, width)) * distance / np.sqrt(2)
    features = (centres[truth] + rng.normal(size=(len(truth), width)) * 2).astype(np.float16)
    wrong = rng.choice(len(truth), len(truth) // 10, replace=False)
    labels = truth.copy()
    labels[wrong] = (truth[wrong] + rng.integers(1, classes, len(wrong))) % classes
    return features, labels, truth, set(wrong.tolist())


@pytest.mark.parametrize("classes", [2, 3])
def test_wrong_labels_are_found_with_the_class_that_is_right(classes):
    features, labels, truth, wrong = drawn(classes=classes)
    found = suspects.find(features, labels, seed=0)
    indices = {suspect.index for suspect in found}
    assert len(indices & wrong) >= 0.75 * len(wrong)
    assert len(indices & wrong) >= 0.8 * len(indices)
    for suspect in found:
        assert suspect.given == labels[suspect.index] != suspect.likely
        assert 0 < suspect.probability <= 1
    right = [suspect.likely == truth[suspect.index] for suspect in found if suspect.index in wrong]
    assert np.mean(right) >= 0.9


def test_the_surest_come_first():
    features, labels, _, wrong = drawn(distance=0.6)
    found = [suspect.index in wrong for suspect in suspects.find(features, labels, seed=0)]
    half = len(found) // 2
    assert np.mean(found[:half]) > np.mean(found[half:]) + 0.1


def test_right_labels_are_not_suspected():
    features, _, truth, _ = drawn()
    assert len(suspects.find(features, truth, seed=0)) <= 2


def test_the_worst_are_those_with_wrong_labels():
    features, labels, _, wrong = drawn()
    rows = suspects.worst(features, labels, 0.05, seed=0)
    assert rows.dtype == np.int64
    assert len(rows) == 12
    assert rows.tolist() == sorted(set(rows.tolist()))
    assert len(wrong & set(rows.tolist())) >= 11
    assert suspects.worst(features, labels, 0.0, seed=0).shape == (0,)


def test_the_same_seed_gives_the_same_answer():
    features, labels, _, _ = drawn(distance=0.6)
    assert suspects.find(features, labels, seed=3) == suspects.find(features, labels, seed=3)
    assert suspects.find(features, labels, seed=3) != suspects.find(features, labels, seed=4)


def test_near_duplicates_do_not_speak_for_one_another():
    """Each wrong label has a copy that is as wrong: found in its group, hidden by its twin without."""
    features, labels, _, wrong = drawn(width=300, count=25)
    noise = np.random.default_rng(1).normal(size=features.shape) * 0.01
    twice, both = np.concatenate([features, features + noise]).astype(np.float16), np.concatenate([labels, labels])
    groups = np.tile(np.arange(len(labels)), 2)

    def recall(together):
        indices = {suspect.index for suspect in suspects.find(twice, both, seed=0, groups=together)}
        return np.mean([row in indices and row + len(labels) in indices for row in wrong])

    assert recall(groups) >= 0.9
    assert recall(None) <= recall(groups) - 0.2


def test_a_class_with_few_photos_is_not_judged():
    features, labels, _, _ = drawn()
    labels = labels.copy()
    labels[:3] = 3
    found = suspects.find(features, labels, seed=0)
    assert found
    assert not {3} & {suspect.given for suspect in found}
    assert not {3} & {suspect.likely for suspect in found}
    assert not {0, 1, 2} & set(suspects.worst(features, labels, 0.2, seed=0).tolist())


@pytest.mark.parametrize("labels", [[0] * 10, [0] * 10 + [1] * 4, [], [0, 1]])
def test_too_few_photos_give_no_suspects(labels):
    features = np.random.default_rng(0).normal(size=(len(labels), 8)).astype(np.float16)
    assert suspects.find(features, np.array(labels, np.int64), seed=0) == []
    assert suspects.worst(features, np.array(labels, np.int64), 0.5, seed=0).shape == (0,)


def test_a_class_of_one_picture_only_is_not_judged():
    features, labels, _, _ = drawn(classes=2)
    groups = np.where(labels == 1, 1000, np.arange(len(labels)))
    assert suspects.find(features, labels, seed=0, groups=groups) == []


@pytest.mark.tf
def test_the_strength_is_that_of_the_trained_head():
    from trainer import heads

    assert suspects.C == heads.LOGISTIC_C
