"""The predictors of a model that serves: one for each thread, and one with several cores for a photo that comes alone.

Invariant: all of them give the same scores for the same picture; no two threads use one at the same time.
"""

from collections.abc import Callable
from dataclasses import dataclass

from trainer.views import Predictor

MOST = 4  # cores for one photo: more would mostly wait for one another

Make = Callable[[int], Predictor]  # with so many cores, warm


@dataclass(frozen=True)
class Predictors:
    """`each`: by thread of the pipeline, one core each. `alone`: for whoever has the pipeline to itself."""

    each: tuple[Predictor, ...]
    alone: Predictor

    @classmethod
    def made(cls, make: Make, threads: int) -> "Predictors":
        """Make them for a pipeline of `threads` threads; with one thread there is one predictor."""
        each = tuple(make(1) for _ in range(threads))
        return cls(each, each[0] if threads == 1 else make(min(threads, MOST)))
