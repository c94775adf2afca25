"""Bundles that look at the scene alone, as the other contestants do.

`scene` is the shipped one's network without faces; `small` a MobileNetV3Small of 224 px, where the model does not hide
what everything else costs (random weights, which cost the same). Run as `python -m benchmarks.speed.network NAME
MODELS`, in a process of its own, since TensorFlow is needed.
"""

import sys
import tempfile
from pathlib import Path

import keras

from trainer import bundle, export, gradcam
from trainer.images import PREPROCESSING_VERSION

SIZE, CLASSES = 224, ("happy", "sad")


def small() -> keras.Model:
    """Return the small network."""
    keras.utils.set_random_seed(0)
    shape = (SIZE, SIZE, 3)
    return keras.applications.MobileNetV3Small(shape, weights=None, classes=1, classifier_activation="sigmoid")


def scene() -> keras.Model:
    """Return the shipped model's scene network."""
    with tempfile.TemporaryDirectory() as folder:
        bundle.install_shipped(Path(folder))
        return gradcam.load(bundle.load(Path(folder)).read(export.KERAS_MODEL))


def main() -> None:
    name, models = sys.argv[1], Path(sys.argv[2])
    network = {"small": small, "scene": scene}[name]()
    with tempfile.TemporaryDirectory() as folder:
        staged = Path(folder) / "staged"
        export.stage(network, staged, len(CLASSES), None)
        draft = bundle.Manifest(
            number=1, class_names=CLASSES, input_size=SIZE, preprocessing_version=PREPROCESSING_VERSION,
            threshold=bundle.THRESHOLD, architecture=name, metrics={}, seed=0,
            dataset=bundle.DatasetSummary(hash="0" * 64, counts={}), versions=export.versions(),
            created=export.now(), files={},
        )  # fmt: skip
        bundle.promote(models, bundle.publish(models, staged, draft))


if __name__ == "__main__":
    main()
