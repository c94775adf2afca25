"""Hot swap: real bundles, links and files; the service's real loop. Only `load` is held up or broken, at its seam."""

import errno
import itertools
import json
import os
import queue
import shutil
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from structlog.testing import capture_logs

import bundles
from daemon import succession
from daemon.classifier import Classifier
from daemon.inspection import Limits, Outcome, inspect
from daemon.predictors import Predictors
from daemon.service import Service
from daemon.succession import Refusal, Succession, Successor
from daemon_parts import LIMITS, Decider, classify, house, wait_for
from stand_in import Silence, settings_for
from test_crash import everything, lines
from test_daemon_service import running
from trainer import bundle

RED = (200, 60, 40)
STEEPS = {1: 0.04, 2: 0.01, 3: 0.02, 4: 0.015}  # how steep each model is: their scores tell which of them spoke


@pytest.fixture
def models(tmp_path):
    """Four bundles of the same classes, of two sizes; the first is the champion."""
    for number, steep in STEEPS.items():
        size = bundles.SIZE if number % 2 else 2 * bundles.SIZE
        bundles.publish(tmp_path / "models", tmp_path / f"stage{number}", steep=steep, input_size=size)
    bundle.promote(tmp_path / "models", 1)
    return tmp_path / "models"


def loader(models, threads=1):
    def load(number):
        classifier = Classifier.load(models, number)
        return Successor(classifier, classifier.eye, Predictors.made(classifier.make_predictor, threads))

    return load


class Loading:
    """The seam: counts what is loaded, and holds it up while `gate` is closed."""

    def __init__(self, models):
        self.numbers, self.gate, self._load = [], threading.Event(), loader(models)
        self.gate.set()

    def __call__(self, number):
        self.numbers.append(number)
        assert self.gate.wait(60)
        return self._load(number)


def successions(models, load=None, serving=1):
    return Succession(models, load or loader(models), Classifier.load(models, serving), lambda: None)


# What is seen, loaded and refused


def test_the_champion_that_serves_is_no_news(models):
    load = Loading(models)
    heir = successions(models, load)
    heir.look()
    assert (heir.news, heir.status, load.numbers) == (None, "", [])


def test_a_new_champion_comes_loaded_and_warm_once(models):
    load = Loading(models)
    heir = successions(models, load)
    bundle.promote(models, 2)
    for _ in range(3):
        heir.look()
    assert isinstance(heir.news, Successor)
    assert load.numbers == [2]
    predict, eye = heir.news.predictors.each[0], heir.news.eye
    expected = bundles.scores(RED, steep=STEEPS[2])
    assert predict(eye(bundles.png(RED))).scores == pytest.approx(expected, abs=0.01)
    heir.took(heir.news)
    heir.look()
    assert (heir.news, load.numbers) == (None, [2]), "it serves now"


def tampered(models):
    (models / "2/model.tflite").write_bytes(bundles.tflite(steep=0.03))


def other_golden(models):
    """Published elsewhere, where it scored otherwise: the hashes are right."""
    path, manifest = models / "2/golden/expected.json", models / "2/manifest.json"
    path.write_text(path.read_text().replace("0.8", "0.6"))
    fields = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(fields | {"files": bundle.hashes(models / "2")}))


def newer(models):
    path = models / "2/manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format_version": 99}))


def other_classes(models):
    republish(models, class_names=("cats", "dogs"))


def other_order(models):
    republish(models, class_names=("sad", "happy"))


def republish(models, **fields):
    path = models / "2/manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


BREAKAGES = [
    (tampered, "model.tflite is not the file that was published"),
    (other_golden, "on this machine, not"),
    (newer, "it has bundle format 99"),
    (lambda models: (models / "2/model.tflite").unlink(), "model.tflite is missing"),
    (lambda models: (models / "2/manifest.json").write_text("{"), "manifest.json is damaged or cut short"),
    (lambda models: shutil.rmtree(models / "2"), "there is no such bundle"),
    (other_classes, "it has other classes (cats, dogs instead of happy, sad): restart the daemon to take it"),
    (other_order, "it has other classes (sad, happy instead of happy, sad)"),
]


@pytest.mark.parametrize(("spoil", "told"), BREAKAGES)
def test_a_bundle_that_cannot_serve_is_refused_once(models, spoil, told):
    load = Loading(models)
    heir = successions(models, load)
    spoil(models)
    promote_blindly(models, 2)
    heir.look()
    assert isinstance(heir.news, Refusal)
    assert (heir.news.model, heir.news.trace) == (2, None)
    assert told in heir.news.error
    assert "\n" not in heir.news.error
    assert heir.status == f"model 2 refused: {heir.news.error}"
    heir.took(heir.news)
    heir.look()
    assert (heir.news, load.numbers) == (None, [2])
    assert heir.status.startswith("model 2 refused: "), "it is still said why"


def promote_blindly(models, target):
    """As `ln -sfn` does it: nobody looks at the bundle first."""
    link = models / "new"
    link.symlink_to(str(target))
    link.rename(models / "champion")


def test_a_half_copied_bundle_is_taken_when_it_is_whole(models, tmp_path):
    load = Loading(models)
    heir = successions(models, load)
    whole = (models / "2").rename(tmp_path / "whole")
    promote_blindly(models, 2)
    told = []
    for path in sorted(whole.rglob("*"), key=lambda p: ("manifest" in p.name, p)):
        if path.is_file():
            target = models / "2" / path.relative_to(whole)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes()[:7])
            told.append(look_and_take(heir))
            target.write_bytes(path.read_bytes())
            told.append(look_and_take(heir))
    *refused, last = filter(None, told)
    assert isinstance(last, Successor)
    assert all(isinstance(news, Refusal) for news in refused)
    assert len(load.numbers) > len(refused) + 1, "tried again with every change"
    assert all(one.error != next_one.error for one, next_one in itertools.pairwise(refused)), "told once"


def look_and_take(heir):
    heir.look()
    if (news := heir.news) is not None:
        heir.took(news)
    return news


@pytest.mark.parametrize(("target", "told"), [(None, "champion is missing"), ("../evil", "no bundle's number")])
def test_a_link_that_names_nothing_is_believed_at_the_second_sight(models, target, told):
    heir = successions(models)
    (models / "champion").unlink()
    if target:
        (models / "champion").symlink_to(target)
    assert look_and_take(heir) is None, "`ln -sf` takes it away for an instant"
    news = look_and_take(heir)
    assert isinstance(news, Refusal)
    assert news.model is None
    assert told in news.error
    assert "rollback" in news.error, "and what to do"
    assert heir.status.startswith("champion refused: ")
    assert look_and_take(heir) is None, "told once"
    (models / "champion").unlink(missing_ok=True)
    (models / "champion").symlink_to("1")
    heir.look()
    assert heir.status == "", "all is well again"


def test_back_to_the_model_that_serves_is_forgiven_and_the_next_time_told_anew(models):
    heir = successions(models)
    tampered(models)
    for _ in range(2):
        promote_blindly(models, 2)
        assert isinstance(look_and_take(heir), Refusal)
        promote_blindly(models, 1)
        assert look_and_take(heir) is None
        assert heir.status == ""


def test_a_refused_bundle_that_is_named_anew_is_tried_again_and_not_told_again(models):
    load = Loading(models)
    heir = successions(models, load)
    tampered(models)
    for _ in range(3):
        promote_blindly(models, 2)
        heir.look()
        heir.look()
    assert load.numbers == [2, 2, 2]
    assert isinstance(look_and_take(heir), Refusal)
    promote_blindly(models, 2)
    assert look_and_take(heir) is None


@pytest.mark.parametrize("error", [RuntimeError("no\nsuch op"), MemoryError(), KeyError("x")])
def test_any_exception_is_a_refusal_with_its_traceback(models, error):
    def load(_number):
        raise error

    heir = successions(models, load)
    bundle.promote(models, 2)
    heir.look()
    assert type(error).__name__ in heir.news.error
    assert "\n" not in heir.news.error
    assert "Traceback" in heir.news.trace


def test_the_newest_wins_where_the_champion_moves_on_during_a_load(models):
    load = Loading(models)
    heir = successions(models, load)
    load.gate.clear()
    bundle.promote(models, 2)
    thread = threading.Thread(target=heir.look)
    thread.start()
    wait_for(lambda: load.numbers)
    assert heir.status == "model 2 is being loaded"
    bundle.promote(models, 3)
    load.gate.set()
    thread.join(60)
    assert heir.news is None, "2 is not wanted any more"
    heir.look()
    assert heir.news.serving.number == 3


def test_a_successor_that_nobody_has_taken_yet_gives_way_to_the_newest(models):
    heir = successions(models)
    bundle.promote(models, 2)
    heir.look()
    bundle.promote(models, 3)
    heir.look()
    assert heir.news.serving.number == 3
    bundle.promote(models, 1)
    heir.look()
    assert heir.news is None


def test_news_that_come_while_older_ones_are_taken_are_not_lost(models):
    heir = successions(models)
    bundle.promote(models, 2)
    heir.look()
    older = heir.news
    bundle.promote(models, 3)
    heir.look()
    heir.took(older)
    assert heir.news.serving.number == 3


# Who decides what


def test_a_batch_is_decided_by_the_model_whose_scores_it_gets(tmp_path):
    """What was taken before the swap by the old one; what was set aside and is read again by the new one."""
    with house(tmp_path) as home:
        home.drop({"early.png": bundles.png((250,) * 3), "late.png": b"", "later.png": bundles.png((250,) * 3)})
        pending = []
        workload = home.start_workload(submit=lambda key, paths: pending.append((key, paths)))
        workload.take(home.claim("early.png", "late.png"))
        workload.decider = newer_one = Decider()
        newer_one.number, newer_one.threshold = 8, 0.01
        workload.take(home.claim("later.png"))
        answer(workload, pending)
        assert {line.file: (line.model, line.label) for line in workload.step(0.0)} == {
            "early.png": (7, "happy"),
            "later.png": (8, "sad"),
        }
        workload.step(3.0)  # late.png, empty and young, is read again
        Path(os.fsdecode(pending[0][1][0])).write_bytes(bundles.png((250,) * 3))
        answer(workload, pending)
        assert [(line.file, line.model) for line in workload.step(3.1)] == [("late.png", 8)]


def answer(workload, pending):
    while pending:
        key, paths = pending.pop()
        for index, path in enumerate(paths):
            workload.post(key, index, classify(path))


# The service, with a pipe that predicts with real bundles in one thread


class BundlePipe:
    """A pipeline without TensorFlow: what is submitted goes with the eye and the predictor of that moment."""

    failure = None

    def __init__(self, post, classifier):
        self._post, self._model = post, (classifier.eye, classifier.make_predictor())
        self._queue = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def submit(self, key, paths):
        self._queue.put((self._model, key, paths))

    def swap(self, eye, predictors):
        self._model = (eye, predictors.each[0])

    def slowest(self, _now):
        return 0.0, b""

    def close(self):
        self._queue.put(None)
        self._thread.join(timeout=5)

    def _work(self):
        while (job := self._queue.get()) is not None:
            (eye, predict), key, paths = job
            for index, path in enumerate(paths):
                report, picture = inspect(path, eye, LIMITS)
                scores = None if picture is None else tuple(map(float, predict(picture).scores))
                self._post(key, index, Outcome(report, scores, 0.1))


@pytest.fixture
def load(models, monkeypatch):
    monkeypatch.setattr(succession, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr("daemon.pulse.EVERY", 0.02)
    return Loading(models)


def make_service(tmp_path, models, load, **options):
    classifier = Classifier.load(models)
    settings = settings_for(tmp_path, models={"root": str(models)}, daemon={"rescan_seconds": 60, "threads": 2})

    def make(post):
        return BundlePipe(post, classifier)

    return Service(settings, classifier, make, Silence(), **({"once": False, "load": load} | options))


def photo(inbox, number):
    """Drop a picture of one colour, all of them different."""
    colour = (60 + number % 140, 200 - number % 140, number // 140)
    Image.new("RGB", (40, 40), colour).save(inbox.parent.parent / "part.png")
    (inbox.parent.parent / "part.png").rename(inbox / f"{number}.png")
    return colour


def check_lines(root, colours):
    """Each file was decided once, by a model that was journalled before, and the scores are that model's."""
    known, decided = set(), Counter()
    for line in lines(root):
        if line["event"] in ("started", "model_loaded"):
            known.add(line["model"])
        elif line["event"] != "totals" and "scores" in line:
            decided[line["file"]] += 1
            assert line["model"] in known
            expected = bundles.scores(colours[line["file"]], steep=STEEPS[line["model"]])
            assert list(line["scores"].values()) == pytest.approx(expected, abs=0.01), line
    assert decided == Counter(dict.fromkeys(colours, 1))
    assert not [p for p in everything(root).values() if p.startswith(("inbox/", ".work/"))]


def events(root, name):
    """Return all whole lines of an event: the daemon may be writing the last one."""
    paths = sorted((root / "log").glob("*.jsonl"))
    whole = [json.loads(raw) for path in paths for raw in path.read_bytes().split(b"\n")[:-1] if raw]
    return [line for line in whole if line["event"] == name]


def test_photos_do_not_wait_for_a_slow_load(tmp_path, models, load):
    service = make_service(tmp_path, models, load)
    inbox = tmp_path / "tray/inbox"
    colours = {}
    with capture_logs() as logs, running(service):
        load.gate.clear()
        bundle.promote(models, 2)
        wait_for(lambda: "model 2 is being loaded" in service.upkeep.status(0.0, service._state))
        for number in range(10):
            colours[f"{number}.png"] = photo(inbox, number)
        wait_for(lambda: len(service.audience.lines) == 10)
        assert {line.model for line in service.audience.lines} == {1}
        assert not events(tmp_path, "model_loaded")
        load.gate.set()
        wait_for(lambda: service.serving.number == 2)
        assert "model 2;" in service.upkeep.status(0.0, service._state)
        colours["10.png"] = photo(inbox, 10)
        wait_for(lambda: len(service.audience.lines) == 11)
    assert service.audience.lines[-1].model == 2
    assert service.totals.model == 2
    assert [entry["serving"] for entry in logs if entry["event"] == "a new model serves"]
    check_lines(tmp_path, colours)


@pytest.mark.parametrize(("spoil", "told"), BREAKAGES)
def test_a_broken_bundle_is_refused_while_photos_flow(tmp_path, models, load, spoil, told):
    spoil(models)
    service = make_service(tmp_path, models, load)
    inbox = tmp_path / "tray/inbox"
    colours = {}
    with capture_logs() as logs, running(service):
        for number in range(30):
            colours[f"{number}.png"] = photo(inbox, number)
            if number == 10:
                promote_blindly(models, 2)
        wait_for(lambda: len(service.audience.lines) == 30)
        wait_for(lambda: events(tmp_path, "model_refused"))
        wait_for(lambda: "; model 2 refused: " in service.upkeep.status(0.0, service._state))
        colours["30.png"] = photo(inbox, 30)
        wait_for(lambda: len(service.audience.lines) == 31)
    (line,) = events(tmp_path, "model_refused")
    assert line["model"] == 2
    assert told in line["error"]
    assert service.totals.refused["model"] == 2
    assert [e["model"] for e in logs if e["event"] == "a new model is refused: the old one goes on"] == [2]
    assert {line.model for line in service.audience.lines} == {1}
    check_lines(tmp_path, colours)


def test_a_defect_of_loading_is_logged_with_its_traceback(tmp_path, models, load):
    def broken(_number):
        raise RuntimeError("a defect")

    with capture_logs() as logs, running(make_service(tmp_path, models, broken)) as failures:
        bundle.promote(models, 2)
        wait_for(lambda: events(tmp_path, "model_refused"))
    assert not failures
    assert "Traceback" in next(entry["exception"] for entry in logs if "exception" in entry)


def test_a_bundle_that_is_completed_while_the_daemon_runs_is_taken(tmp_path, models, load):
    data = (models / "2/model.tflite").read_bytes()
    (models / "2/model.tflite").write_bytes(data[:100])
    service = make_service(tmp_path, models, load)
    with running(service):
        promote_blindly(models, 2)
        wait_for(lambda: events(tmp_path, "model_refused"))
        (models / "2/model.tflite").write_bytes(data)
        wait_for(lambda: service.serving.number == 2)
        assert service.totals.refused is None
    assert len(events(tmp_path, "model_loaded")) == 1


def test_a_stop_does_not_wait_for_a_load(tmp_path, models, load):
    load.gate.clear()
    service = make_service(tmp_path, models, load)
    try:
        with running(service) as failures:
            bundle.promote(models, 2)
            wait_for(lambda: load.numbers == [2])
        assert not failures
        assert lines(tmp_path)[-1]["event"] == "stopped"
    finally:
        load.gate.set()


@pytest.mark.parametrize("is_good", [True, False])
def test_a_journal_that_cannot_be_written_delays_the_news_and_loses_none(tmp_path, models, load, monkeypatch, is_good):
    monkeypatch.setattr("daemon.backoff.FIRST", 0.01)
    monkeypatch.setattr("daemon.backoff.LONGEST", 0.05)
    full, real = threading.Event(), os.fsync

    def fsync(fd):
        if full.is_set() and ".jsonl" in os.readlink(f"/proc/self/fd/{fd}"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(fd)

    if not is_good:
        tampered(models)
    service = make_service(tmp_path, models, load)
    event = "model_loaded" if is_good else "model_refused"
    with running(service):
        monkeypatch.setattr("daemon.journal.os.fsync", fsync)
        full.set()
        promote_blindly(models, 2)
        wait_for(lambda: service._backoff.fault)
        assert service.serving.number == 1, "no model serves before its line is durable"
        full.clear()
        wait_for(lambda: service._backoff.fault is None and len(events(tmp_path, event)) == 1)
        colour = photo(tmp_path / "tray/inbox", 1)
        wait_for(lambda: service.audience.lines)
        monkeypatch.undo()
    assert service.serving.number == (2 if is_good else 1)
    assert len(events(tmp_path, event)) == 1
    check_lines(tmp_path, {"1.png": colour})


def test_a_tray_that_comes_back_is_served_by_the_new_model(tmp_path, models, load, monkeypatch):
    monkeypatch.setattr("daemon.backoff.FIRST", 0.01)
    monkeypatch.setattr("daemon.backoff.LONGEST", 0.05)
    service = make_service(tmp_path, models, load)
    root = tmp_path / "tray"
    with running(service):
        root.rename(tmp_path / "away")
        wait_for(lambda: service._session is None)
        bundle.promote(models, 2)
        wait_for(lambda: load.numbers == [2])
        (tmp_path / "away").rename(root)
        colour = photo(root / "inbox", 1)
        wait_for(lambda: service.audience.lines)
        wait_for(lambda: service.serving.number == 2)
    check_lines(tmp_path, {"1.png": colour})


def test_without_a_loader_the_model_stays(tmp_path, models, load):
    """The canary's service."""
    service = make_service(tmp_path, models, None)
    with running(service):
        bundle.promote(models, 2)
        photo(tmp_path / "tray/inbox", 1)
        wait_for(lambda: service.audience.lines)
        assert service.serving.number == 1
        assert "2" not in service.upkeep.status(0.0, service._state).split(";")[0]


# The real pipeline


def tf_pipeline(classifier, deliver, threads=2):
    from daemon.pipeline import Pipeline

    limits = Limits(10_000_000, 10_000_000)
    return Pipeline(classifier.eye, classifier.make_predictor, deliver, threads=threads, limits=limits)


@pytest.mark.tf
def test_each_chunk_is_judged_by_the_model_it_was_submitted_to(tmp_path, models):
    """Of other sizes, with faces and without: and what is not used any more is let go."""
    shipped = tmp_path / "shipped"
    bundle.install_shipped(shipped)
    sources = [
        Classifier.load(models, 1),
        Classifier.load(models, 2),
        Classifier.load(shipped),
        Classifier.load(models),
    ]
    golden = [os.fsencode(path) for path in sorted((shipped / "1/golden").glob("*.png"))]
    outcomes, answered = {}, threading.Semaphore(0)

    def deliver(key, index, outcome):
        outcomes[key, index] = outcome
        answered.release()

    pipeline = tf_pipeline(sources[0], deliver)
    batches = {}
    for round_ in range(5):
        for number, source in enumerate(sources):
            if round_ or number:
                pipeline.swap(source.eye, Predictors.made(source.make_predictor, 2))
            key = f"{round_}-{number}"
            batches[key] = source
            pipeline.submit(key, golden)
    for _ in range(len(batches) * len(golden)):
        assert answered.acquire(timeout=60), pipeline.failure
    wait_for(lambda: len(pipeline._models) == 1)
    pipeline.close()
    expected = {id(s): [s.make_predictor()(s.eye(os.fsdecode(path))) for path in golden] for s in sources}
    for key, source in batches.items():
        for index, judged in enumerate(expected[id(source)]):
            found = outcomes[key, index]
            assert found.scores == pytest.approx(judged.scores, abs=1e-6), (key, index)
            assert found.boxes == judged.boxes, (key, index)
    assert any(outcome.boxes for outcome in outcomes.values()), "no face was found at all"
    firsts = np.array([[outcomes[f"0-{n}", i].scores[0] for i in range(len(golden))] for n in range(3)])
    assert np.ptp(firsts, axis=0).max() > 0.1, "the models do not differ"


@pytest.mark.tf
def test_a_flood_of_photos_while_the_champion_changes_again_and_again(tmp_path, models, monkeypatch):
    monkeypatch.setattr(succession, "LOOK_SECONDS", 0.05)
    classifier = Classifier.load(models)
    settings = settings_for(tmp_path, models={"root": str(models)}, daemon={"threads": 2})
    make = lambda post: tf_pipeline(classifier, post)  # noqa: E731
    service = Service(settings, classifier, make, Silence(), load=loader(models, threads=2), once=False)
    inbox = tmp_path / "tray/inbox"
    colours, champions = {}, [2, 3, 2, 4, 1, 3, 4, 1]

    def left():
        assert not failures
        return len(colours) - len(service.audience.lines)

    with running(service) as failures:
        for champion in champions:
            bundle.promote(models, champion)
            until, ends = len(colours) + 60, time.monotonic() + 60
            while service.serving.number != champion or len(colours) < until:
                wait_for(lambda: left() < 200)  # a flood, but not one that grows for as long as a load takes
                colours[f"{len(colours)}.png"] = photo(inbox, len(colours))
                assert time.monotonic() < ends, "it never served"
        wait_for(lambda: left() == 0, 60)
    assert [line["model"] for line in events(tmp_path, "model_loaded")] == champions
    assert {line.model for line in service.audience.lines} == {1, 2, 3, 4}
    check_lines(tmp_path, colours)
