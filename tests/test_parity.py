"""One picture, one score: Keras, LiteRT and the daemon's own path agree on the model that ships."""

import queue
import resource
from collections import Counter

import numpy as np
import pytest

import pictures
from daemon_parts import wait_for
from trainer import bundle

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


class Asked:
    """Counts the pictures that a predictor of so many cores is asked about."""

    def __init__(self, classifier):
        self.by_cores, self._make = Counter(), classifier.make_predictor

    def make(self, cores):
        predict = self._make(cores)

        def counted(picture):
            self.by_cores[cores] += 1
            return predict(picture)

        return counted


@pytest.fixture(scope="module")
def answers(shipped):
    """What the daemon's tf.data pipeline of three threads says of batches, one after the other, and who was asked."""
    from daemon.classifier import Classifier
    from daemon.inspection import Limits
    from daemon.pipeline import Pipeline

    def run(batches, then=lambda: None):
        posted = queue.SimpleQueue()
        classifier, limits = Classifier(shipped), Limits(10_000_000, 100_000_000)
        asked = Asked(classifier)
        pipeline = Pipeline(classifier.eye, asked.make, lambda *o: posted.put(o), threads=3, limits=limits)
        found = []
        for paths in batches:
            pipeline.submit("batch", [str(path).encode() for path in paths])
            outcomes = {index: outcome for _, index, outcome in (posted.get(timeout=60) for _ in paths)}
            found += [outcomes[index] for index in range(len(paths))]
            wait_for(lambda: pipeline._models[0].chunks == 0)
            then()
        pipeline.close()
        return found, asked.by_cores

    return run


def test_pictures_share_their_buffers(answers, tmp_path):
    """Each page that the kernel has to give anew costs time: without `memory.keep_buffers` 1,400 of them a photo."""
    file = tmp_path / "a.jpg"
    file.write_bytes(pictures.encoded(pictures.quadrants(640, 480), "JPEG"))
    faults = [resource.getrusage(resource.RUSAGE_SELF).ru_minflt]
    answers([[file] * 30] * 3, lambda: faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt))
    assert (faults[-1] - faults[-2]) / 30 < 300


@pytest.fixture(scope="module")
def served(answers, files):
    return answers([files])[0]


def test_a_photo_that_comes_alone_has_several_cores_and_the_same_scores(answers, files, served):
    alone, asked = answers([[path] for path in files])
    assert asked.keys() == {3}
    for path, one, found in zip(files, alone, served, strict=True):
        assert (one.scores, one.boxes) == (found.scores, found.boxes), path.name


def test_the_daemon_scores_as_the_bundle_does(shipped, files, served):
    eye, predict = shipped.eye(), shipped.predictor()
    for path, found in zip(files, served, strict=True):
        judged = predict(eye(path))
        assert found.scores == pytest.approx(judged.scores, abs=1e-6), path.name
        assert found.views.keys() == judged.views.keys(), path.name
        for name, scores in judged.views.items():
            assert found.views[name] == pytest.approx(scores, abs=1e-6), (path.name, name)
        assert (found.boxes, found.is_face) == (judged.boxes, judged.is_face), path.name


def test_keras_scores_as_the_daemon_does(shipped, files, served):
    from trainer import face_network, faces, gradcam

    scene, face = (gradcam.load(shipped.read(name)) for name in ("model.keras", "face.keras"))
    eye, find = shipped.eye(), faces.Finder(shipped.detector, shipped.manifest.faces)
    decoded = [eye(path) for path in files]
    by_scene = scene.predict(np.stack([p.pixels for p in decoded]).astype(np.float32), verbose=0)[:, 0]
    for path, picture, sad, found in zip(files, decoded, by_scene, served, strict=True):
        if "scene" in found.views:
            assert found.views["scene"][1] == pytest.approx(sad, abs=TOLERANCE), path.name
        if "faces" in found.views:
            odds = np.log(face_network.scores(face, find(picture).crops)).mean(axis=0)
            expected = 1 / (1 + np.exp(odds[0] - odds[1]))
            assert found.views["faces"][1] == pytest.approx(expected, abs=TOLERANCE), path.name


def test_both_views_are_one_answer(served):
    """The log-odds of the scene and of the faces add up; where there is one view, it is the answer."""

    def log_odds(scores):
        return np.log(scores[1] / scores[0])

    for found in served:
        total = sum(log_odds(scores) for scores in found.views.values())
        assert log_odds(found.scores) == pytest.approx(total, abs=0.02)


def test_the_pictures_tell_the_paths_apart(served):
    """Scores that were all alike would prove nothing, and neither would pictures without faces."""
    assert np.ptp([found.scores[1] for found in served]) > 0.2
    assert {tuple(found.views) for found in served} == {("scene",), ("scene", "faces"), ("faces",)}
    assert {found.is_face for found in served} == {True, False}
    assert any(found.boxes is None for found in served), "no scene was sure alone"
