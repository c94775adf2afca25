import html.parser
import os
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import bundles
import drawings
from trainer import bundle, report
from trainer.evaluate import Predictions, measure, predict

HOSTILE = "<img src=x onerror=alert(1)>\x1b[2J\u202egpj"
VOID = {"meta", "img", "br", "path", "use", "rect"}


class Page(html.parser.HTMLParser):
    """Collects what a page is made of, and complains where a tag is not closed."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.links, self.open, self.alts, self.text = [], [], [], [], ""
        self.feed(path.read_text())
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.tags.append(tag)
        self.links += [v for k, v in attrs if k in ("src", "href", "xlink:href", "action")]
        self.alts += [found["alt"]] if "alt" in found else []
        assert not [name for name in found if name.startswith("on")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        self.open = self.open[:-1] if tag not in VOID else self.open

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data if "style" not in self.open else ""


def staged(folder, classes=2, **fields):
    return bundle.Bundle(bundles.stage(folder, classes), bundles.draft(classes, **fields), bundles.tflite(classes))


@pytest.fixture
def photos(tmp_path):
    """Forty photos, every fourth in the wrong folder."""
    root = drawings.folder(tmp_path / "photos", count=20)
    found = sorted(root.rglob("*.*"))
    for i, path in enumerate(found):  # scores of all kinds
        colour = (125 + i, 115 - i, 50) if path.parent.name == "happy" else (135 - i, 105 + i, 50)
        Image.new("RGB", (48, 40), colour).save(path)
    return [(path, (("happy", "sad").index(path.parent.name) + (i % 4 == 0)) % 2) for i, path in enumerate(found)]


def written(tmp_path, photos, classes=2, **options):
    made = staged(tmp_path / "staged", classes)
    told = predict(made, photos, 1_000_000)
    path = tmp_path / "report.html"
    report.write(path, made, told, measure(made, told), **({"title": "A title", "facts": {"folder": "here"}} | options))
    return path


def test_a_report_is_one_page_that_needs_nothing_else(tmp_path, photos):
    history = {name: [0.7, 0.5] for name in ("cross_entropy", "val_cross_entropy", "accuracy", "val_accuracy")}
    path = written(tmp_path, photos, history=history, notes=["a note"])
    page = Page(path)
    assert not {"script", "link", "iframe", "object", "form"} & set(page.tags)
    assert all(link.startswith(("data:image/jpeg;base64,", "#")) for link in page.links)
    assert "url(http" not in path.read_text()
    assert "@import" not in path.read_text()
    assert len(re.findall(r'id="([^"]+)"', path.read_text())) == len(set(re.findall(r'id="([^"]+)"', path.read_text())))
    assert [name for name in os.listdir(tmp_path) if name.endswith(".tmp")] == []


def test_a_report_says_what_there_is_to_say(tmp_path, photos):
    history = {name: [0.7, 0.5] for name in ("cross_entropy", "val_cross_entropy", "accuracy", "val_accuracy")}
    text = Page(written(tmp_path, photos, history=history, notes=["learned from some"])).text
    for expected in (
        "A title", "Right on 30 of 40 photos", "Always answering", "learned from some", "here", "All 10 mistakes",
        "Calibration error", "ROC curve", "sad: area", "Precision and recall", "Scores", "The least certain", "Loss",
        "Time per photo", "not published yet", "tiny", "0" * 64, "moodbox 0.1.0", "A photo of sad, taken for happy",
        "happy/happy0.jpg",
    ):  # fmt: skip
        assert expected in text
    assert "Loss" not in Page(written(tmp_path / "b", photos)).text


def test_names_are_shown_as_text_whatever_they_hold(tmp_path):
    folder = tmp_path / "<b>"
    folder.mkdir()
    photos = []
    for i in range(4):
        path = folder / f"{HOSTILE}{i}\udcff.png"
        drawings.photo("happy", i).save(path)
        photos.append((path, 1))
    path = written(tmp_path, photos, title=HOSTILE, facts={HOSTILE: "\udcff" + HOSTILE}, notes=[HOSTILE])
    page = Page(path)
    assert page.links.count("x") == 0
    assert r"<b>/<img src=x onerror=alert(1)>\x1b[2J\u202egpj0\udcff.png" in page.text
    assert "\x1b" not in page.text


@pytest.mark.parametrize("name", ["<script>alert(1)", "&amp;", "$x_2$", "_sad", "日本", "#222221", "'\""])
def test_class_names_are_shown_as_they_are(tmp_path, photos, name):
    made = staged(tmp_path / "staged", class_names=("happy", name))
    told = predict(made, photos, 1_000_000)
    report.write(tmp_path / "report.html", made, told, measure(made, told), title="x", facts={})
    page = Page(tmp_path / "report.html")
    assert "script" not in page.tags
    assert f"taken for {name}" in page.text
    assert f"{name}: area" in page.text


def shown_scores(text):
    """Return the score of "sad" of each photo that is shown, in order."""
    return [float(score) for score in re.findall(r"sad ([01]\.\d\d)(?:,|\n)", text)]


def test_worst_mistakes_come_first_and_then_the_answers_nearest_to_the_threshold(tmp_path, photos):
    made = staged(tmp_path / "staged")
    told = predict(made, photos, 1_000_000)
    report.write(tmp_path / "report.html", made, told, measure(made, told), title="x", facts={})
    text = Page(tmp_path / "report.html").text
    worst, uncertain = text.index("The worst mistakes"), text.index("The least certain")
    sad = told.scores[:, 1].astype(float)
    wrong = (sad >= 0.5) != told.labels
    far = [abs(score - 0.5) for score in shown_scores(text[worst:uncertain])]
    assert far == pytest.approx(sorted(np.abs(sad[wrong] - 0.5), reverse=True), abs=0.006)
    near = [abs(score - 0.5) for score in shown_scores(text[uncertain:])]
    assert near == pytest.approx(sorted(np.abs(sad[~wrong] - 0.5))[: report.MOST_UNCERTAIN], abs=0.006)


def test_a_photo_that_is_gone_costs_its_picture_only(tmp_path, photos):
    made = staged(tmp_path / "staged")
    told = predict(made, photos, 1_000_000)
    for path, _ in photos[::4]:
        os.remove(path)
    report.write(tmp_path / "report.html", made, told, measure(made, told), title="x", facts={})
    assert Page(tmp_path / "report.html").text.count("cannot be read any more") == 10


def test_no_mistake_and_one_class_make_a_report(tmp_path, photos):
    right = [(path, 0) for path, _ in photos if path.parent.name == "happy"]
    text = Page(written(tmp_path, right)).text
    assert "every answer was right" in text
    assert "All photos are of 'happy'" in text
    assert "only one class occurs" in text
    assert "ROC curve" not in text


def test_one_photo_makes_a_report(tmp_path, photos):
    assert "Right on 1 of 1 photos" in Page(written(tmp_path, photos[1:2])).text


def test_three_classes_have_a_curve_each_and_no_threshold(tmp_path):
    root = drawings.folder(tmp_path / "photos", ("happy", "sad", "calm"), count=8)
    photos = [(path, i % 3) for i, path in enumerate(sorted(root.rglob("*.*")))]
    text = Page(written(tmp_path, photos, classes=3)).text
    assert [name for name in ("blue", "green", "red") if f"{name}: area" in text] == ["blue", "green", "red"]
    assert "the threshold in use" not in text


def test_a_report_stays_small_whatever_the_folder_holds(tmp_path):
    """Photos of noise, which no JPEG makes small; as many mistakes as are shown; long names; many classes."""
    names = tuple(f"class {i} {'x' * 90}" for i in range(150))
    manifest = bundles.draft(2).model_copy(update={"class_names": names, "threshold": None})
    made = bundle.Bundle(bundles.stage(tmp_path / "staged"), manifest, b"")
    folder = tmp_path / ("d" * 200)
    folder.mkdir()
    paths = []
    for i in range(36):
        paths.append(folder / f"{i}{'n' * 200}.png")
        noise = np.random.default_rng(i).integers(0, 256, (300, 300, 3), dtype=np.uint8)
        Image.fromarray(noise).save(paths[-1])
    random, count = np.random.default_rng(0), 5000
    scores = random.dirichlet(np.ones(150), count).astype(np.float32)
    labels, zeros = random.integers(0, 150, count), np.zeros(count, int)
    told = Predictions(
        names, tuple(paths[i % 36] for i in range(count)), labels, scores, zeros, zeros, zeros * 1.0, zeros * 1.0
    )
    report.write(tmp_path / "report.html", made, told, measure(made, told), title="x", facts={})
    assert (tmp_path / "report.html").stat().st_size < 5_000_000
    assert "too many for a table" in Page(tmp_path / "report.html").text


def test_a_full_disk_leaves_the_old_report(tmp_path, photos, monkeypatch):
    path = written(tmp_path, photos)
    before = path.read_bytes()

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    made = bundle.Bundle(tmp_path / "staged", bundles.draft(), bundles.tflite())
    told = predict(made, photos, 1_000_000)
    with pytest.raises(OSError, match="No space"):
        report.write(path, made, told, measure(made, told), title="new", facts={})
    assert path.read_bytes() == before
    assert [name for name in os.listdir(tmp_path) if "tmp" in name] == []


def told_of(confusion, confidence):
    from trainer.evaluate import Metrics
    from trainer.verdict import verdict

    return " ".join(verdict(Metrics(("a", "b"), confusion, 0.9, 0.05), np.full(sum(map(sum, confusion)), confidence)))


def test_the_verdict_says_no_more_than_the_intervals_bear_out():
    assert "not clearly better than always answering 'b'" in told_of(((2, 8), (1, 89)), 0.9)
    assert "not clearly better" not in told_of(((80, 20), (20, 80)), 0.8)
    assert "So few photos" in told_of(((20, 5), (5, 20)), 0.8)
    assert "So few photos" not in told_of(((80, 20), (20, 80)), 0.8)
    assert "more of the photos of 'b'" in told_of(((50, 50), (5, 95)), 0.7)
    assert "more of the photos" not in told_of(((75, 25), (20, 80)), 0.8)


def test_the_verdict_tells_whether_scores_are_honest():
    from trainer.evaluate import Metrics
    from trainer.verdict import verdict

    def said(error, confidence):
        return " ".join(verdict(Metrics(("a", "b"), ((800, 200), (200, 800)), 0.9, error), np.full(2000, confidence)))

    assert "its scores are honest" in said(0.02, 0.81)
    few = Metrics(("a", "b"), ((20, 5), (5, 20)), 0.9, 0.05)
    assert "honest" not in " ".join(verdict(few, np.linspace(0.6, 1.0, 50)))
    assert "surer than it should be" in said(0.15, 0.95)
    assert "less sure than it should be" in said(0.15, 0.65)
    assert "only roughly" in said(0.15, 0.82)


@pytest.mark.tf
@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")
def test_each_photo_has_its_overlay_where_there_is_a_keras_model(tmp_path, photos):
    from trainer import model

    made = staged(tmp_path / "staged")
    model.tutorial_cnn(bundles.SIZE, 2).save(tmp_path / "staged" / "model.keras")
    told = predict(made, photos, 1_000_000)
    report.write(tmp_path / "report.html", made, told, measure(made, told), title="x", facts={})
    page = Page(tmp_path / "report.html")
    assert page.alts.count("the photo") == len(page.alts) / 2 == 10 + report.MOST_UNCERTAIN
    assert "no Grad-CAM" not in page.text


def test_without_a_keras_model_the_report_says_so(tmp_path, photos):
    page = Page(written(tmp_path, photos))
    assert set(page.alts) == {"the photo"}
    assert "There are no Grad-CAM overlays: its model.keras is no Keras file" in page.text


def test_a_published_bundle_is_explained_by_the_file_that_was_published(tmp_path, photos):
    bundles.publish(tmp_path / "models", tmp_path / "staged")
    made = bundle.load(tmp_path / "models", 1)
    Path(tmp_path / "models" / "1" / "model.keras").write_bytes(b"another")
    told = predict(made, photos, 1_000_000)
    report.write(tmp_path / "report.html", made, told, measure(made, told), title="x", facts={})
    assert "model.keras is not the file that was published" in Page(tmp_path / "report.html").text
