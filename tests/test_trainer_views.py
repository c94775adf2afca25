"""trainer.views: scene and faces are two opinions and one answer."""

import dataclasses
import io
import math
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import bundles
from trainer import faces, golden, images, views
from trainer.images import Picture
from trainer.manifest import FaceRules

RULES = FaceRules()


class Network:
    """Stands for a LiteRT network: always the same scores, and counts how often it was asked."""

    def __init__(self, *scores):
        self.scores, self.asked = np.array(scores, np.float32), 0

    def __call__(self, pixels):
        self.asked += 1
        return self.scores


def reader(face, rules=RULES):
    return views.FaceReader(faces.Finder(faces.shipped_detector(), rules), face)


def predictor(scene, face, rules=RULES, *, ahead=False):
    return views.Predictor(scene, reader(face, rules), ahead=ahead)


def decoded(drawn):
    file = io.BytesIO()
    drawn.save(file, "PNG")
    return views.Eye(32, RULES)(file.getvalue())


PORTRAIT = decoded(golden.portrait(300, smiles=True))
EMPTY = decoded(Image.new("RGB", (300, 300), (90, 120, 90)))
SMALL = decoded(golden.portrait(300, smiles=True).resize((48, 48)))


def odds(scores):
    return math.log(scores[1] / scores[0])


def test_both_views_add_up_their_log_odds():
    judged = predictor(Network(0.7, 0.3), Network(0.2, 0.8))(PORTRAIT)
    assert odds(judged.scores) == pytest.approx(odds((0.7, 0.3)) + odds((0.2, 0.8)), abs=1e-4)
    assert {name: scores.tolist() for name, scores in judged.views.items()} == {
        "scene": pytest.approx([0.7, 0.3]),
        "faces": pytest.approx([0.2, 0.8]),
    }
    assert len(judged.boxes) == 1


def test_the_faces_count_as_much_as_their_weight_says():
    rules = FaceRules(weight=2.5)
    judged = predictor(Network(0.7, 0.3), Network(0.2, 0.8), rules)(PORTRAIT)
    assert odds(judged.scores) == pytest.approx(odds((0.7, 0.3)) + 2.5 * odds((0.2, 0.8)), abs=1e-4)


def test_without_a_face_the_scene_answers():
    scene, face = Network(0.7, 0.3), Network(0.2, 0.8)
    judged = predictor(scene, face)(EMPTY)
    assert judged.scores.tolist() == scene.scores.tolist()
    assert (list(judged.views), judged.boxes, face.asked) == (["scene"], (), 0)


def test_a_small_picture_is_answered_by_the_face_network_alone():
    scene, face = Network(0.7, 0.3), Network(0.2, 0.8)
    judged = predictor(scene, face)(SMALL)
    assert judged.scores.tolist() == pytest.approx([0.2, 0.8])
    assert (list(judged.views), judged.boxes, judged.is_face, scene.asked) == (["faces"], (), True, 0)


def test_where_the_scene_is_sure_nobody_looks_for_faces():
    face = Network(0.2, 0.8)
    judged = predictor(Network(0.95, 0.05), face)(PORTRAIT)
    assert judged.scores.tolist() == pytest.approx([0.95, 0.05])
    assert (list(judged.views), judged.boxes, face.asked) == (["scene"], None, 0)


def test_several_faces_are_one_opinion():
    scores = [np.array(s, np.float32) for s in ((0.9, 0.1), (0.4, 0.6))]
    mean = (odds(scores[0]) + odds(scores[1])) / 2
    assert odds(views.combined(scores)) == pytest.approx(mean, abs=1e-4)


def test_a_model_of_scenes_alone_never_decodes_detail():
    picture = views.Eye(32)(bundles.png((200, 60, 40), 200))
    assert picture.detail is None
    judged = views.Predictor(Network(0.7, 0.3))(picture)
    assert (list(judged.views), judged.boxes) == (["scene"], None)


def test_an_eye_decodes_as_large_as_faces_need():
    big = Image.new("RGB", (1280, 960), (90, 120, 90))
    picture = decoded(big)
    assert (picture.detail.shape, picture.width) == ((480, 640, 3), 1280)


SHARES = st.lists(st.floats(0, 1), min_size=3, max_size=3).filter(sum)


@given(SHARES, SHARES, st.floats(0.1, 5))
def test_the_answer_is_a_probability_whatever_the_views_say(scene, face, weight):
    scene, face = (np.array([values], np.float64) / sum(values) for values in (scene, face))
    both = views.together(scene, face, FaceRules(weight=weight))
    assert both.shape == (1, 3)
    assert np.isfinite(both).all()
    assert both.sum() == pytest.approx(1, abs=1e-5)


def test_training_and_serving_put_the_views_together_alike():
    """`together` judges many photos at once, for cross-validation; `Predictor` one at a time."""
    by_scene = np.array([(0.7, 0.3), (0.95, 0.05), (0.6, 0.4)], np.float32)
    by_faces = np.array([(0.2, 0.8), (0.2, 0.8), (np.nan, np.nan)], np.float32)
    shown = [PORTRAIT, PORTRAIT, EMPTY]
    one_by_one = [
        predictor(Network(*scene), Network(0.2, 0.8))(picture).scores
        for scene, picture in zip(by_scene, shown, strict=True)
    ]
    assert views.together(by_scene, by_faces, RULES) == pytest.approx(np.stack(one_by_one), abs=1e-6)


def test_the_detail_is_the_same_picture_as_the_scene():
    """A JPEG whose DCT scale follows what is asked for: both views come from one decoding."""
    file = io.BytesIO()
    drawn = golden.portrait(1500, smiles=True)
    drawn.save(file, "JPEG", quality=95)
    picture = images.decode(file.getvalue(), size=224, detail=640)
    assert isinstance(picture, Picture)
    small = np.asarray(Image.fromarray(picture.detail).resize((224, 224), Image.Resampling.BILINEAR)).astype(int)
    assert np.abs(small - picture.pixels).mean() < 2


def test_looking_ahead_answers_alike_one_picture_after_the_other():
    def judge(ahead):
        judges = [predictor(Network(*scores), Network(0.2, 0.8), ahead=ahead) for scores in ((0.95, 0.05), (0.7, 0.3))]
        found = [judge(picture) for picture in (PORTRAIT, EMPTY, SMALL, PORTRAIT) for judge in judges]
        return [(f.scores.tolist(), sorted(f.views), f.boxes, f.is_face) for f in found]

    assert judge(ahead=True) == judge(ahead=False)


def test_looking_ahead_does_not_wait_for_the_scene():
    looking, begun = reader(Network(0.2, 0.8)), threading.Event()
    find = looking.find

    def look(picture):
        begun.set()
        return find(picture)

    def scene(pixels):
        assert begun.wait(30), "nobody looks for faces yet"
        return np.array([0.7, 0.3], np.float32)

    looking.find = look
    assert len(views.Predictor(scene, looking, ahead=True)(PORTRAIT).boxes) == 1


def test_a_detector_that_fails_ahead_fails_the_picture_that_asked():
    judge = predictor(Network(0.7, 0.3), Network(0.2, 0.8), ahead=True)
    with pytest.raises(ValueError, match="detail"):
        judge(dataclasses.replace(PORTRAIT, detail=None))
    assert len(judge(PORTRAIT).boxes) == 1
