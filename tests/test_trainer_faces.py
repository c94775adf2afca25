"""trainer.detector and trainer.faces: where the faces are, and what is cut out of a picture."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import bundles
from trainer import faces, golden, images
from trainer.detector import Detector, Face
from trainer.litert import ModelFormatError
from trainer.manifest import FaceRules

RULES = FaceRules()
DETECTOR = Detector(faces.shipped_detector())


@pytest.fixture(scope="module")
def find():
    return faces.Finder(faces.shipped_detector(), RULES)


def picture(drawn):
    file = io.BytesIO()
    drawn.save(file, "PNG")
    return images.decode(file.getvalue(), size=32, detail=RULES.detail)


def crowd(*places, size=(640, 480), side=150):
    """A picture with a drawn person at each place."""
    scene = Image.new("RGB", size, (90, 120, 90))
    for place in places:
        scene.paste(golden.portrait(side, smiles=True), place)
    return picture(scene)


def middle(box):
    left, top, width, height = box
    return left + width / 2, top + height / 2


@pytest.mark.parametrize("side", [100, 300, 900])
def test_a_drawn_person_is_found_at_any_size(find, side):
    found = find(picture(golden.portrait(side, smiles=False)))
    assert len(found.boxes) == 1
    assert middle(found.boxes[0]) == pytest.approx((0.5 * side, 0.55 * side), abs=0.06 * side)
    assert not found.is_face


def test_boxes_are_where_the_faces_are_in_the_full_picture(find):
    """2000 pixels wide: faces are looked for in 640, and boxes are told in 2000."""
    found = find(crowd((100, 100), (1300, 300), size=(2000, 1000), side=500))
    places = sorted(middle(box) for box in found.boxes)
    assert places == [pytest.approx((350, 375), abs=30), pytest.approx((1550, 575), abs=30)]


def test_the_largest_faces_come_first_and_only_so_many(find):
    places = [(0, 0), (160, 0), (320, 0), (480, 0), (0, 240), (160, 240)]
    scene = Image.fromarray(crowd(*places).detail)
    scene.paste(golden.portrait(230, smiles=True), (400, 240))
    found = find(picture(scene))
    assert len(found.boxes) == len(found.crops) == RULES.most
    assert middle(found.boxes[0]) == pytest.approx((515, 366), abs=20)
    areas = [width * height for _, _, width, height in found.boxes]
    assert areas == sorted(areas, reverse=True)


def test_where_there_is_no_face_there_are_no_crops(find):
    found = find(picture(Image.new("RGB", (300, 200), (90, 120, 90))))
    assert (found.crops.shape, found.boxes) == ((0, RULES.size, RULES.size), ())


@pytest.mark.parametrize(
    ("size", "whole"), [((64, 64), True), ((48, 48), True), ((64, 128), True), ((64, 129), False), ((65, 65), False)]
)
def test_a_small_picture_is_a_face_as_a_whole(find, size, whole):
    found = find(picture(golden.portrait(200, smiles=True).resize(size)))
    assert found.is_face == whole
    assert not (whole and found.boxes)
    assert found.crops.shape[1:] == (RULES.size, RULES.size)


def test_a_crop_is_the_face_in_grey_with_a_margin(find):
    seen = crowd((200, 150), side=200)
    found = find(seen)
    left, top, width, height = found.boxes[0]
    side = RULES.margin * max(width, height)
    x, y = left + width / 2 - side / 2, top + (0.5 - RULES.raised) * height - side / 2
    expected = Image.fromarray(seen.detail).convert("L").resize((48, 48), box=(x, y, x + side, y + side))
    assert np.abs(found.crops[0].astype(int) - np.asarray(expected)).mean() < 6


def test_a_face_at_the_edge_is_cut_out_as_a_square(find):
    """Half of the margin is beyond the picture: the edge is repeated, and nothing is stretched."""
    whole, cut = find(crowd((200, 100), side=300)), find(crowd((-90, -80), side=300))
    assert len(whole.crops) == len(cut.crops) == 1
    assert cut.crops[0][:, -10:].std() > 5
    left, top, _, _ = cut.boxes[0]
    assert min(left, top) >= 0


def test_exif_turns_the_faces_too(find):
    file = io.BytesIO()
    exif = Image.Exif()
    exif[274] = 6
    drawn = Image.new("RGB", (600, 400), (90, 120, 90))
    drawn.paste(golden.portrait(300, smiles=True), (20, 30))
    drawn.rotate(90, expand=True).save(file, "JPEG", quality=95, exif=exif)
    found = find(images.decode(file.getvalue(), size=32, detail=RULES.detail))
    assert [middle(box) for box in found.boxes] == [pytest.approx((170, 195), abs=15)]


def test_a_picture_without_its_detail_is_a_mistake(find):
    with pytest.raises(ValueError, match="without its detail"):
        find(images.decode(bundles.png((200, 60, 40), 200), size=32))


@pytest.mark.parametrize("data", [b"", b"no network", bundles.tflite()])
def test_what_is_no_face_detector_is_refused(data):
    with pytest.raises(ModelFormatError):
        Detector(data)


@given(
    width=st.integers(1, 700),
    height=st.integers(1, 700),
    box=st.tuples(*[st.floats(0, 1)] * 4),
)
def test_any_box_in_any_picture_gives_a_crop(width, height, box):
    """The square around it, of the picture with its edge repeated on all sides."""
    left, top, wide, high = box
    detail = np.random.default_rng(width * height).integers(0, 256, (height, width, 3), np.uint8)
    face = Face(0.9, left, top, min(wide, 1 - left), min(high, 1 - top))
    side = max(faces.SMALLEST_CROP, round(RULES.margin * max(face.width * width, face.height * height)))
    x = round((face.left + face.width / 2) * width - side / 2) + side
    y = round((face.top + face.height * (0.5 - RULES.raised)) * height - side / 2) + side
    square = np.pad(detail, [(side, side), (side, side), (0, 0)], mode="edge")[y : y + side, x : x + side]
    expected = faces._scaled(square, RULES.size)
    assert np.array_equal(faces._cut(detail, face, RULES), expected)


@given(st.integers(1, 300), st.integers(1, 300), st.integers(0, 2**32 - 1))
def test_boxes_lie_in_the_picture_whatever_it_shows(width, height, seed):
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    for face in DETECTOR(noise, 0.05):
        assert face.left >= 0 and face.top >= 0 and face.width > 0 and face.height > 0
        assert face.left + face.width <= 1 and face.top + face.height <= 1
