"""A bundle with a small network, where the model does not hide what everything else costs: MobileNetV3Small, 224 px.

Its weights are random, which costs the same; run as `python -m benchmarks.speed.network MODELS`, in a process of its
own, since TensorFlow is needed.
"""

import sys
import tempfile
from pathlib import Path

import keras

from trainer import bundle, export
from trainer.images import PREPROCESSING_VERSION

SIZE, CLASSES = 224, ("happy", "sad")


def main() -> None:
    models = Path(sys.argv[1])
    keras.utils.set_random_seed(0)
    small = keras.applications.MobileNetV3Small(
        (SIZE, SIZE, 3), weights=None, classes=1, classifier_activation="sigmoid"
    )
    with tempfile.TemporaryDirectory() as folder:
        staged = Path(folder) / "staged"
        export.stage(small, staged, len(CLASSES), None)
        draft = bundle.Manifest(
            number=1, class_names=CLASSES, input_size=SIZE, preprocessing_version=PREPROCESSING_VERSION,
            threshold=bundle.THRESHOLD, architecture="MobileNetV3Small", metrics={}, seed=0,
            dataset=bundle.DatasetSummary(hash="0" * 64, counts={}), versions=export.versions(),
            created=export.now(), files={},
        )  # fmt: skip
        bundle.promote(models, bundle.publish(models, staged, draft))


if __name__ == "__main__":
    main()
