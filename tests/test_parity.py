"""One picture, one score: Keras, LiteRT and the daemon's own path agree on the model that ships."""

import threading

import numpy as np
import pytest

import pictures
from trainer import bundle, images

pytestmark = [
    pytest.mark.tf,
    # Keras reads TensorFlow variables with np.array(), which numpy 2.4 complains about
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"),
]
TOLERANCE = 0.01


@pytest.fixture(scope="module")
def shipped(tmp_path_factory):
    models = tmp_path_factory.mktemp("models")
    bundle.install_shipped(models)
    return bundle.load(models)


@pytest.fixture(scope="module")
def files(shipped, tmp_path_factory):
    """The golden images, and a photo-like file of each format that the product reads, one of them turned by EXIF."""
    folder = tmp_path_factory.mktemp("pictures")
    made = sorted((shipped.path / "golden").glob("*.png"))
    for kind in pictures.FORMATS:
        made.append(folder / f"{kind.lower()}.bin")
        made[-1].write_bytes(pictures.encoded(pictures.quadrants(400, 300), kind))
    return made


@pytest.fixture(scope="module")
def served(shipped, files):
    """What the daemon's tf.data pipeline says of each file."""
    from daemon.classifier import Classifier
    from daemon.inspection import Limits
    from daemon.pipeline import Pipeline

    outcomes, done = {}, threading.Event()

    def deliver(_, index, outcome):
        outcomes[index] = outcome
        if len(outcomes) == len(files):
            done.set()

    classifier = Classifier(shipped)
    limits = Limits(10_000_000, 10_000_000)
    pipeline = Pipeline(classifier.make_predictor, deliver, size=classifier.size, threads=2, limits=limits)
    pipeline.submit("batch", [str(path).encode() for path in files])
    assert done.wait(60), pipeline.failure
    pipeline.close()
    return [np.array(outcomes[index].scores) for index in range(len(files))]


def test_the_daemon_scores_as_the_bundle_does(shipped, files, served):
    predict = shipped.predictor()
    for path, found in zip(files, served, strict=True):
        expected = predict(images.decode(path, size=shipped.manifest.input_size).pixels)
        assert found == pytest.approx(expected, abs=1e-6), path.name


def test_keras_scores_as_the_daemon_does(shipped, files, served):
    from trainer import gradcam

    network = gradcam.load(shipped.read("model.keras"))
    pixels = np.stack([images.decode(path, size=shipped.manifest.input_size).pixels for path in files])
    scores = network.predict(pixels.astype(np.float32), verbose=0)[:, 0]
    for path, expected, found in zip(files, scores, served, strict=True):
        assert found[1] == pytest.approx(expected, abs=TOLERANCE), path.name


def test_the_pictures_tell_the_paths_apart(served):
    """Scores that were all alike would prove nothing."""
    assert np.ptp([scores[1] for scores in served]) > 0.2
