"""The classifier: a loaded bundle, and what its scores mean.

Invariant: predictors are warm before the first photo, and every decision is `trainer.bundle.decide`, the only rule that
there is.
"""

from pathlib import Path

from trainer import bundle
from trainer.bundle import Bundle, BundleError
from trainer.views import Predictor

__all__ = ["BundleError", "Classifier"]


class Classifier:
    """What serves: a bundle that was loaded, checked and replayed."""

    def __init__(self, loaded: Bundle) -> None:
        self._bundle = loaded
        self.manifest = loaded.manifest
        self.number = loaded.manifest.number
        self.threshold = loaded.manifest.threshold
        self.classes = loaded.manifest.class_names
        self.eye = loaded.eye()

    @classmethod
    def load(cls, models: Path) -> "Classifier":
        """Load the champion; where there is no bundle at all, install the one that ships. Raises BundleError."""
        bundle.install_shipped(models)
        return cls(bundle.load(models))

    def make_predictor(self) -> Predictor:
        """Return a warm predictor for one thread: a picture that `eye` decoded, to probabilities."""
        predictor = self._bundle.predictor()
        predictor.warm(self.eye.size)
        return predictor

    def decide(self, scores: tuple[float, ...]) -> tuple[str, float]:
        """Turn scores into (label, its probability). Raises ValueError where they are no finite numbers."""
        decided = bundle.decide(self.manifest, scores)
        return decided.label, decided.score

    def describe(self) -> str:
        """Return one line for people."""
        views = " and faces" if self.manifest.faces else ""
        return f"model {self.number} ({self.manifest.architecture}{views}; {', '.join(self.classes)})"
