"""The classifier: a loaded bundle, and what its scores mean.

Invariant: predictors are warm before the first photo, and every decision is `trainer.bundle.decide`, the only rule that
there is.
"""

import tempfile
from collections.abc import Mapping
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
    def load(cls, models: Path, number: int | None = None) -> "Classifier":
        """Load a bundle, the champion by default: where there is none, the one that ships. Raises BundleError."""
        if number is None:
            bundle.install_shipped(models)
        return cls(bundle.load(models, number))

    def packed(self) -> dict[str, bytes]:
        """Return the bundle's files that another machine needs to judge as this one does; name → bytes."""
        names = [n for n in self.manifest.files if n.startswith(bundle.GOLDEN) or n.endswith(".tflite")]
        files = {name: self._bundle.read(name) for name in names}
        return files | {bundle.MANIFEST: (self._bundle.path / bundle.MANIFEST).read_bytes()}

    @classmethod
    def unpacked(cls, number: int, files: Mapping[str, bytes]) -> "Classifier":
        """Load what `packed` gave, checked and replayed on this machine. Raises BundleError."""
        with tempfile.TemporaryDirectory(prefix="moodbox-") as models:
            for name, data in files.items():
                path = Path(models, str(number), name)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
            return cls(bundle.load(Path(models), number))

    def make_predictor(self, cores: int = 1) -> Predictor:
        """Return a warm predictor, for one thread at a time: a picture that `eye` decoded, to probabilities."""
        predictor = self._bundle.predictor(cores)
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
