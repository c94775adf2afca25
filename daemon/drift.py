"""What corrections tell, in words: the live error rate, and whether the last week was like the model's test photos.

Invariant: pure; it warns only where chance alone would hardly do it (a 95 % interval, over enough photos) and the
difference is one that a person would care for.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import date
from typing import Any

from daemon.logs import printable
from daemon.rates import Rates

LEAST = 100  # photos of a week; fewer say nothing
SHARE, CONFIDENCE = 0.15, 0.07  # differences that matter: of a class's share, of the mean confidence


def described(rates: Rates) -> Iterator[str]:
    """Yield how often people corrected what was sorted, over all and by class and model; and what audits told."""
    sorted_, corrected = rates.of("sorted"), rates.of("corrected")
    if corrected.total() > 0:
        yield f"{_rate(corrected.total(), sorted_.total())}: {_by_class(corrected, sorted_)}"
        for model in rates.model_numbers():
            of_model = rates.of("corrected", model=model), rates.of("sorted", model=model)
            if of_model[0].total() > 0:
                yield f"model {model}: {_rate(*(counts.total() for counts in of_model))}: {_by_class(*of_model)}"
    for model in rates.model_numbers():
        right, wrong = (rates.of(f"audit {what}", model=model).total() for what in ("right", "wrong"))
        if right + wrong > 0 and right >= 0:
            low, high = _interval(right, right + wrong)
            share = right / (right + wrong)
            yield (f"model {model}: right in {share:.0%} ({low:.0%} to {high:.0%}) of {right + wrong:,} photos "
                   "that were picked by chance")  # fmt: skip


def _rate(corrected: int, photos: int) -> str:
    return f"{corrected:,} of {photos:,}" + (f" ({corrected / photos:.1%})" if photos else "")


def _by_class(corrected: Counter[str], sorted_: Counter[str]) -> str:
    return ", ".join(f"{printable(name)} {_rate(corrected[name], n)}" for name, n in sorted(sorted_.items()))


def _interval(right: int, photos: int) -> tuple[float, float]:
    from trainer.calibration import wilson  # noqa: PLC0415  numpy: `status` does without where there is nothing to say

    return wilson(right, photos)


def warnings(rates: Rates, metrics: Mapping[str, Any], today: date) -> Iterator[str]:
    """Yield a line for each figure of the week that is not what the model's own test photos gave.

    `metrics` are a manifest's; those that it lacks are not compared.
    """
    sorted_, corrected = rates.week(today, "sorted"), rates.week(today, "corrected")
    photos = sorted_.total()
    if photos < LEAST:
        return
    yield from _of_classes(sorted_, photos, metrics)
    accuracy = metrics.get("accuracy")
    if not isinstance(accuracy, float):
        return
    confidence = rates.week(today, "score").total() / 1000 / photos
    if confidence < accuracy - CONFIDENCE:
        yield (f"in the last week the model was {confidence:.0%} sure on average, and right in {accuracy:.0%} on its "
               "test photos: these photos may be of another kind")  # fmt: skip
    wrong, expected = min(max(corrected.total(), 0), photos), 1 - accuracy
    if wrong / photos - _half_interval(wrong / photos, photos) > expected:
        yield (f"people corrected {wrong:,} of the last week's {photos:,} photos ({wrong / photos:.0%}); on its test "
               f"photos the model was wrong in {expected:.0%}: `moodbox-train retrain` learns from them")  # fmt: skip


def _of_classes(sorted_: Counter[str], photos: int, metrics: Mapping[str, Any]) -> Iterator[str]:
    confusion, names = metrics.get("confusion"), list(metrics.get("classes") or ())
    if not confusion or len(names) != len(confusion):
        return
    tested = sum(map(sum, confusion))
    for name, taken in zip(names, map(sum, zip(*confusion, strict=True)), strict=True):
        share, expected = sorted_[name] / photos, taken / tested
        chance = math.hypot(_half_interval(share, photos), _half_interval(expected, tested))
        if abs(share - expected) > max(SHARE, chance):
            yield (f"{share:.0%} of the last week's {photos:,} photos were taken for {name}, of its test photos "
                   f"{expected:.0%}: if that is how your photos are, all is well")  # fmt: skip


def _half_interval(share: float, photos: int) -> float:
    low, high = _interval(round(min(max(share, 0.0), 1.0) * photos), photos)
    return (high - low) / 2
