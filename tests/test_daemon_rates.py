"""daemon.rates and daemon.drift: what people's corrections tell of the models, and when a week is unlike the tests."""

from datetime import date

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.drift import described, warnings
from daemon.events import Line
from daemon.rates import Rates
from daemon.totals import Totals

TODAY = date(2026, 5, 31)
METRICS = {"accuracy": 0.9, "confusion": [[45, 5], [5, 45]], "classes": {"happy": {}, "sad": {}}}


def decision(label, model=1, *, event="sorted", score=0.9, day="2026-05-30", **fields):
    return Line(event=event, label=label, model=model, score=score, ts=f"{day}T12:00:00.000Z", **fields)


def correction(predicted, label, was=None, model=1, **fields):
    source = {"source": "happy/a.jpg"} | fields
    return Line(event="corrected", label=label, predicted=predicted, was=was, model=model,
                ts="2026-05-31T12:00:00.000Z", **source)  # fmt: skip


def test_a_correction_counts_once_and_no_more_when_it_is_taken_back():
    rates = Rates().plus([decision("happy"), decision("happy"), decision("sad")])
    rates = rates.plus([correction("happy", "sad", "happy")])
    assert list(described(rates)) == [
        "1 of 3 (33.3%): happy 1 of 2 (50.0%), sad 0 of 1 (0.0%)",
        "model 1: 1 of 3 (33.3%): happy 1 of 2 (50.0%), sad 0 of 1 (0.0%)",
    ]
    rates = rates.plus([correction("happy", "happy", "sad")])
    assert list(described(rates)) == []


def test_each_model_has_its_own_rate():
    rates = Rates().plus([decision("happy", 9), decision("happy", 10), correction("happy", "sad", "happy", 10)])
    assert rates.of("corrected", model="9").total() == 0
    assert rates.of("corrected", model="10").total() == 1
    assert rates.model_numbers() == ["9", "10"]


def test_a_copy_in_another_class_is_no_mistake_of_the_model():
    assert not Rates().plus([decision("happy"), correction("happy", "sad", source=None)]).of("corrected").total()


def test_audits_are_counted_apart_and_what_was_unsure_is_not():
    lines = [
        correction("happy", "happy", None, audit=True), correction("happy", "sad", None, audit=True),
        correction("sad", "sad", None, audit=True), correction("sad", "happy", None, audit=False),
    ]  # fmt: skip
    [line] = described(Rates().plus(lines))
    assert line == "model 1: right in 67% (21% to 94%) of 3 photos that were picked by chance"
    changed = Rates().plus([*lines, correction("sad", "happy", "sad", audit=True)])
    assert "33%" in next(iter(described(changed)))


@given(st.lists(st.tuples(st.sampled_from("hs"), st.sampled_from("hs"), st.sampled_from([None, "h", "s"]),
                          st.integers(1, 3), st.sampled_from([None, True, False])), max_size=40),
       st.integers(0, 40))  # fmt: skip
def test_rates_add_up_over_owners_and_survive_the_journal(lines, cut):
    written = [correction(p, label, was, model, audit=audit) for p, label, was, model, audit in lines]
    together, apart = Totals().plus(written), Totals().plus(written[:cut]) + Totals().plus(written[cut:])
    nonzero = [{key: n for key, n in t.rates.models.items() if n} for t in (together, apart)]
    assert nonzero[0] == nonzero[1]
    assert Totals.from_dict(together.as_dict()) == together


def test_old_days_are_forgotten_and_only_a_week_counts():
    lines = [decision("happy", day=f"2026-05-{day:02}") for day in range(1, 32)]
    rates = Rates().plus(lines)
    assert len({day for day, _, _ in rates.days}) == 15
    assert rates.week(TODAY, "sorted")["happy"] == 7
    assert rates.week(date(2027, 1, 1), "sorted").total() == 0


def week(happy, sad, score=0.92, corrected=0):
    lines = [decision("happy", score=score)] * happy + [decision("sad", score=score)] * sad
    return Rates().plus(lines + [correction("happy", "sad", "happy")] * corrected)


@pytest.mark.parametrize(
    ("rates", "words"),
    [
        (week(100, 100), []),
        (week(60, 0, 0.5, 30), []),  # too few to say anything
        (week(100, 100, corrected=20), []),  # as often as on the test photos
        (week(100, 100, corrected=60), ["people corrected 60 of the last week's 200 photos (30%)"]),
        (week(100, 100, score=0.75), ["75% sure on average"]),
        (week(180, 20), ["90% of the last week's 200 photos were taken for happy", "10% of the last"]),
    ],
)
def test_a_week_is_named_where_it_is_unlike_the_test_photos(rates, words):
    found = list(warnings(rates, METRICS, TODAY))
    assert len(found) == len(words)
    for line, expected in zip(found, words, strict=True):
        assert expected in line


@pytest.mark.parametrize("taken_back", [False, True])
def test_corrections_of_older_photos_warn_of_nothing_impossible(taken_back):
    """A person tidies up what was sorted long ago: more corrections, or fewer than none, in a week of few photos."""
    was, label = ("sad", "happy") if taken_back else ("happy", "sad")
    rates = week(55, 55).plus([correction("happy", label, was)] * 400)
    for line in (*warnings(rates, METRICS, TODAY), *described(rates)):
        assert " -" not in line


def test_a_manifest_without_figures_warns_of_nothing():
    assert list(warnings(week(180, 20, 0.5, 90), {}, TODAY)) == []
