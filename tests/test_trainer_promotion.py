import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.stats import binomtest

from trainer.promotion import LEAST_JUDGES, LEAST_OF_CLASS, SIGNIFICANT, decide, mcnemar

NAMES = ("calm", "happy", "sad")
FLOOR = 0.5


@st.composite
def rounds(draw, least=0, most=150, classes=3):
    """Return labels and the answers of two models, which are right about as often as each other or not."""
    count = draw(st.integers(least, most))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    labels = random.integers(0, classes, count)

    def answers():
        wrong = random.random(count) > draw(st.floats(0, 1))
        return np.where(wrong, (labels + 1) % classes, labels)

    return labels, answers(), answers()


def judged(labels, champion, challenger, floor=FLOOR):
    return decide(labels, champion, challenger, NAMES, floor)


def case(*counts):
    """Return a round from rows (label, photos, right by both, gained, lost)."""
    rows = []
    for label, photos, both, gained, lost in counts:
        wrong = (label + 1) % 3
        rows += [(label, label, label)] * both + [(label, wrong, label)] * gained + [(label, label, wrong)] * lost
        rows += [(label, wrong, wrong)] * (photos - both - gained - lost)
    return np.array(rows).T


@given(rounds())
def test_a_challenger_that_is_right_less_often_is_never_promoted(found):
    labels, champion, challenger = found
    if judged(*found).promoted:
        assert (challenger == labels).sum() >= (champion == labels).sum()


@given(rounds())
def test_of_two_models_at_most_one_replaces_the_other_unless_they_are_equal(found):
    labels, one, other = found
    if judged(labels, one, other).promoted and judged(labels, other, one).promoted:
        assert (one == labels).sum() == (other == labels).sum()


@given(rounds(), st.randoms(use_true_random=False))
def test_the_order_of_the_photos_does_not_matter(found, random):
    order = list(range(len(found[0])))
    random.shuffle(order)
    assert judged(*(answers[order] for answers in found)) == judged(*found)


@given(rounds(least=LEAST_JUDGES))
def test_a_model_does_not_lose_to_itself(found):
    labels, _, challenger = found
    assume(np.bincount(labels, minlength=3).min() >= LEAST_OF_CLASS)
    verdict = judged(labels, challenger, challenger)
    assert verdict.promoted == (verdict.balanced[1] > FLOOR)


@given(rounds())
def test_no_class_loses_beyond_chance(found):
    verdict = judged(*found)
    if verdict.promoted:
        assert not [s for s in verdict.classes if s.lost > s.gained and s.p < SIGNIFICANT]
        assert min(share.photos for share in verdict.classes) >= LEAST_OF_CLASS


@given(rounds(), st.floats(0, 1))
def test_every_verdict_has_a_reason_and_figures_that_add_up(found, floor):
    verdict = judged(*found, floor)
    assert verdict.reason.endswith(".")
    assert verdict.overall.gained - verdict.overall.lost == verdict.overall.challenger - verdict.overall.champion
    assert verdict.overall.photos == sum(share.photos for share in verdict.classes)
    assert [share["name"] for share in verdict.as_json()["judges"]] == ["all", *NAMES]


@given(st.integers(0, 60), st.integers(0, 60))
def test_the_test_is_mcnemars(gained, lost):
    assert mcnemar(gained, lost) == mcnemar(lost, gained)
    expected = binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    assert mcnemar(gained, lost) == pytest.approx(expected)


EQUAL = (1, 20, 15, 1, 1), (2, 20, 15, 1, 1)


@pytest.mark.parametrize(
    ("counts", "promoted", "reason"),
    [
        (((0, 20, 15, 1, 1), *EQUAL), True, "is right as often as the champion: 80.0% against 80.0% of 60 photos"),
        (((0, 20, 15, 3, 0), *EQUAL), True, "5 gained, 2 lost, p = 0.45"),
        (((0, 20, 15, 0, 1), *EQUAL), False, "right less often than the champion: 78.3% against 80.0%"),
        (((0, 9, 9, 0, 0), (1, 9, 9, 0, 0), (2, 9, 9, 0, 0)), False, "Only 27 photos could judge"),
        (((0, 9, 9, 0, 0), (1, 20, 9, 0, 0), (2, 20, 9, 0, 0)), False, "Only 9 photos of 'calm' could judge"),
        (((0, 20, 0, 5, 0), (1, 20, 5, 0, 0), (2, 20, 5, 0, 0)), False, "right on 25.0% (the mean over the classes)"),
        (((0, 40, 20, 20, 0), (1, 20, 10, 0, 6), (2, 20, 20, 0, 0)), False, "worse at 'happy', beyond chance: 50.0%"),
        (((0, 40, 20, 20, 0), (1, 20, 15, 0, 5), (2, 20, 20, 0, 0)), True, "is right more often than the champion"),
    ],
)
def test_the_decision_in_words(counts, promoted, reason):
    verdict = judged(*case(*counts))
    assert (verdict.promoted, reason in verdict.reason) == (promoted, True), verdict.reason


def test_no_floor_lets_a_guess_through():
    found = case((0, 30, 10, 0, 0), (1, 30, 10, 0, 0), (2, 30, 10, 0, 0))
    assert "more than 33.3% is asked" in judged(*found, floor=0.0).reason
