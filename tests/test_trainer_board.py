"""What TensorBoard is given, read back from the event files, and the command that serves it."""

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import drawings
from trainer import board
from trainer.command_line import main
from trainer.settings import Settings

pytestmark = [
    pytest.mark.tf,
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"),
]
ROOT = Path(__file__).parent.parent
NAMES = ("happy", "sad")


def events(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder), size_guidance={"tensors": 0})
    found.Reload()
    return found


def values(folder, tag):
    """Read back {step: array}."""
    from tensorboard.util import tensor_util

    return {event.step: tensor_util.make_ndarray(event.tensor_proto) for event in events(folder).Tensors(tag)}


def plugin(folder, tag):
    return events(folder).SummaryMetadata(tag).plugin_data.plugin_name


def image(folder, tag, step):
    import io

    with Image.open(io.BytesIO(values(folder, tag)[step][2])) as found:
        return np.asarray(found.convert("RGB"))


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    """A small network, trained for three epochs with all that watches, and profiled."""
    import keras

    from trainer import callbacks
    from trainer.tables import Trainer

    keras.utils.set_random_seed(0)
    stage = callbacks.Stage("head", tmp_path_factory.mktemp("runs") / "run", 3)
    layers = keras.layers
    model = keras.Sequential(
        [keras.Input((6,), name="features"), layers.Dropout(0.2), layers.Dense(1, "sigmoid", name="probabilities")]
    )
    metric = keras.metrics.MeanMetricWrapper(keras.losses.BinaryCrossentropy(reduction=None), name="cross_entropy")
    rate = keras.optimizers.schedules.CosineDecay(0.1, 18)
    model.compile(keras.optimizers.Adam(rate), "binary_crossentropy", metrics=["accuracy", metric])
    x = np.random.default_rng(0).random((48, 6), np.float32)
    y = (x[:, 0] > 0.5).astype(np.int32)
    watching = callbacks.watching(
        stage, Trainer(batch_size=8, profile=True), validation=(x[:20], y[:20]), class_names=NAMES
    )
    with callbacks.guarded(stage, watching):
        model.fit(x, y, batch_size=8, epochs=3, validation_data=(x[:20], y[:20]), callbacks=watching, verbose=0)
    return stage, model, (x[:20], y[:20])


def test_curves_and_the_learning_rate_of_each_epoch_are_written(stage):
    from trainer.callbacks import history

    for part, prefix in (("train", ""), ("validation", "val_")):
        for name in ("loss", "accuracy", "cross_entropy"):
            found = values(stage[0].logs / part, f"epoch_{name}")
            assert list(found) == [0, 1, 2]
            assert [float(value) for value in found.values()] == pytest.approx(history(stage[0])[f"{prefix}{name}"])
    rates = [float(rate) for rate in values(stage[0].logs / "train", "epoch_learning_rate").values()]
    assert 0.1 > rates[0] > rates[1] > rates[2] == pytest.approx(0.0, abs=1e-6)


def test_weight_histograms_of_each_epoch_are_written(stage):
    tag = next(tag for tag in events(stage[0].logs / "train").Tags()["tensors"] if "kernel/histogram" in tag)
    assert plugin(stage[0].logs / "train", tag) == "histograms"
    found = values(stage[0].logs / "train", tag)
    assert len(found) == 3
    (kernel,) = (weight.numpy() for weight in stage[1].weights if f"{weight.path}/histogram" == tag)
    np.testing.assert_array_equal(found[2][:, 2], np.histogram(kernel, bins=30)[0])


def test_a_histogram_is_that_of_tensorflow(tmp_path):
    import tensorflow as tf

    numbers = np.random.default_rng(0).normal(size=(20, 50)).astype(np.float32)
    with tf.summary.create_file_writer(str(tmp_path)).as_default():
        tf.summary.histogram("theirs", numbers, step=0)
        board.histogram(tf.summary, "ours", numbers, 0)
        board.histogram(tf.summary, "diverged", np.array([1.0, np.nan, np.inf]), 0)
    np.testing.assert_allclose(values(tmp_path, "ours")[0], values(tmp_path, "theirs")[0], rtol=1e-6)
    assert plugin(tmp_path, "ours") == plugin(tmp_path, "theirs")
    assert values(tmp_path, "diverged")[0][:, 2].sum() == 1


def test_the_graph_of_the_network_is_written(stage):
    names = {node.name for node in events(stage[0].logs / "train").Graph().node}
    assert any("probabilities" in name and "MatMul" in name for name in names)


def test_a_profile_is_written_where_it_is_asked_for(stage):
    assert list(stage[0].logs.glob("train/plugins/profile/*/*.xplane.pb"))


def test_the_confusion_matrix_of_each_epoch_is_a_picture(stage):
    from trainer import pictures

    stage, model, (x, y) = stage
    predicted = (model.predict_on_batch(x)[:, 0] > 0.5).astype(int)
    expected = np.zeros((2, 2), int)
    np.add.at(expected, (y, predicted), 1)
    assert plugin(stage.logs / "validation", "confusion matrix") == "images"
    for step in (0, 1, 2):
        assert image(stage.logs / "validation", "confusion matrix", step).shape == (212, 262, 3)
    last = image(stage.logs / "validation", "confusion matrix", 2)
    np.testing.assert_array_equal(last, pictures.confusion(expected, NAMES))


def test_the_pr_curve_of_each_epoch_is_one_that_the_plug_in_reads(stage):
    from tensorboard.plugins.pr_curve import metadata

    stage, model, (x, y) = stage
    folder = stage.logs / "validation"
    scores = model.predict_on_batch(x)[:, 0]
    for name, positive in (("sad", y == 1), ("happy", y == 0)):
        tag = f"{name}/pr_curves"
        assert plugin(folder, tag) == metadata.PLUGIN_NAME
        content = events(folder).SummaryMetadata(tag).plugin_data.content
        assert metadata.parse_plugin_metadata(content).num_thresholds == 201
        found = values(folder, tag)
        assert list(found) == [0, 1, 2]
        own = scores if name == "sad" else 1 - scores
        true, false = found[2][0, 100], found[2][1, 100]
        assert true == np.sum(positive & (np.floor(own * 200) >= 100))
        assert false == np.sum(~positive & (np.floor(own * 200) >= 100))


def test_each_folder_has_one_file_since_tensorboard_follows_only_the_newest(stage):
    for part in ("train", "validation"):
        assert len(list((stage[0].logs / part).glob("events.*"))) == 1


def test_validation_may_come_in_batches_with_a_column_for_each_class(tmp_path):
    import keras
    import tensorflow as tf

    from trainer.events import Events, ValidationBoard

    x = np.eye(3, dtype=np.float32)[[0, 1, 2, 2, 1]]
    model = keras.Sequential([keras.Input((3,)), keras.layers.Softmax()])
    batches = tf.data.Dataset.from_tensor_slices((x, x * 0.9 + 0.03)).batch(2)
    seen = []
    for number, validation in enumerate(
        (batches, (x, np.array([0, 1, 2, 2, 1])), (x, np.array([[0], [1], [2], [2], [1]])))
    ):
        shown = Events(tmp_path / str(number), profile=False)
        shown.set_model(model)
        pictured = ValidationBoard(shown, validation, (), 2)
        pictured.set_model(model)
        pictured.on_train_begin()
        pictured.on_epoch_end(4)
        shown.close()
        seen.append(image(tmp_path / str(number) / "validation", "confusion matrix", 4))
        assert {"0/pr_curves", "2/pr_curves"} <= set(events(tmp_path / str(number) / "validation").Tags()["tensors"])
    np.testing.assert_array_equal(seen[0], seen[1])
    np.testing.assert_array_equal(seen[0], seen[2])


def test_the_settings_are_a_table_of_text(tmp_path):
    settings = Settings(trainer={"hooks": "a|b.py:C", "seed": 7}, tray={"ignore": ("*.a", "*.b")})
    board.text(tmp_path, settings)
    assert plugin(tmp_path, "settings") == "text"
    lines = values(tmp_path, "settings")[0].item().decode().splitlines()
    assert lines[:2] == ["| setting | value |", "| --- | --- |"]
    assert lines[2].startswith("| trainer.")
    assert "| trainer.seed | `7` |" in lines
    assert "| trainer.hooks | `a\\|b.py:C` |" in lines
    assert "| tray.ignore | `*.a, *.b` |" in lines
    assert "| daemon.name |  |" in lines


def test_hparams_hold_what_was_set_and_what_came_of_it(tmp_path):
    from tensorboard.plugins.hparams import metadata

    board.hparams(
        tmp_path, {"learning_rate": 0.5, "architecture": "x", "fine_tune": True, "seed": 3}, {"accuracy": 0.9}
    )
    found = events(tmp_path)
    parse = metadata.parse_session_start_info_plugin_data
    session = parse(found.SummaryMetadata(metadata.SESSION_START_INFO_TAG).plugin_data.content)
    assert session.hparams["learning_rate"].number_value == 0.5
    assert session.hparams["architecture"].string_value == "x"
    assert session.hparams["fine_tune"].bool_value is True
    experiment = metadata.parse_experiment_plugin_data(
        found.SummaryMetadata(metadata.EXPERIMENT_TAG).plugin_data.content
    )
    assert [info.name.tag for info in experiment.metric_infos] == ["test/accuracy"]
    assert values(tmp_path, "test/accuracy")[0] == pytest.approx(0.9)


def test_the_projector_finds_points_labels_and_thumbnails(tmp_path):
    from google.protobuf import text_format
    from tensorboard.plugins.projector import projector_config_pb2
    from tensorboard.plugins.projector.projector_plugin import _read_tensor_tsv_file

    features = np.random.default_rng(0).normal(size=(10, 4)).astype(np.float16)
    thumbnails = np.stack([np.asarray(drawings.photo("sad", n, (24, 16))) for n in range(10)])
    board.projector(tmp_path / "new", features, np.arange(10) % 2, ("hap\tpy", "sad"), thumbnails)
    config = projector_config_pb2.ProjectorConfig()
    text_format.Parse((tmp_path / "new" / "projector_config.pbtxt").read_text(), config)
    (shown,) = config.embeddings
    read = _read_tensor_tsv_file(str(tmp_path / "new" / shown.tensor_path))
    np.testing.assert_allclose(read, features, rtol=1e-3)
    assert (tmp_path / "new" / shown.metadata_path).read_text().splitlines() == ["hap\\tpy", "sad"] * 5
    assert list(shown.sprite.single_image_dim) == [24, 16]
    with Image.open(tmp_path / "new" / shown.sprite.image_path) as sheet:
        assert sheet.size == (4 * 24, 4 * 16)
    assert events(tmp_path / "new").Tags()["tensors"]  # without events it would be no run


def test_the_projector_takes_some_of_very_many_each_with_its_own_picture(tmp_path, monkeypatch):
    from trainer import results

    class Few:
        """50 photos, each as bright as its number, seven at a time."""

        class_names = NAMES

        def rows(self, _):
            return np.arange(10, 60)

        def all_labels(self):
            return np.arange(60) // 35

        def thumbnails(self, _, side):
            for start in range(0, 50, 7):
                numbers = np.arange(start, min(50, start + 7), dtype=np.uint8)
                yield np.broadcast_to(numbers[:, None, None, None], (len(numbers), side, side, 3))

    monkeypatch.setattr(board, "PROJECTED", 6)
    results.project(SimpleNamespace(features=np.arange(60.0)[:, np.newaxis]), Few(), tmp_path)
    assert [float(line) for line in (tmp_path / "features.tsv").read_text().split()] == [10, 19, 29, 39, 49, 59]
    assert (tmp_path / "labels.tsv").read_text().split() == ["happy"] * 3 + ["sad"] * 3
    with Image.open(tmp_path / "sprite.png") as sheet:
        side = sheet.width // 3
        corners = [sheet.getpixel((side * column, side * row))[0] for row in range(2) for column in range(3)]
    assert corners == [0, 9, 19, 29, 39, 49]


def test_a_batch_is_shown_with_and_without_its_augmented_version(tmp_path):
    photos = np.stack([np.asarray(drawings.photo("sad", n, (16, 16)), np.float32) for n in range(3)])
    board.show_batch(tmp_path / "a", photos, [1, 0, 1], NAMES)
    board.show_batch(tmp_path / "b", photos, np.array([1, 0, 1]), NAMES, photos[:, :, ::-1])
    plain = image(tmp_path / "a", "training photos", 0)
    both = image(tmp_path / "b", "training photos, each above its augmented version", 0)
    assert both.shape[0] == plain.shape[0] + 192
    np.testing.assert_array_equal(plain[:200], both[:200])


# The command.


@pytest.fixture
def runs(tmp_path, monkeypatch):
    for name in [name for name in os.environ if name.upper().startswith("MOODBOX")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs"


def free_port():
    """Return a port that nobody has, below those that the kernel gives to whoever asks for any: it stays free."""
    for port in random.SystemRandom().sample(range(20_000, 32_000), 100):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no port is free")


def test_runs_are_linked_where_tensorboard_looks(runs):
    board.listed(runs / "one")
    board.listed(runs / "one")
    (runs / "one" / "tensorboard").mkdir(parents=True)
    board.listed(runs / "one")
    assert [entry.resolve() for entry in (runs / ".tensorboard").iterdir()] == [runs / "one" / "tensorboard"]


@pytest.mark.parametrize(
    "make", [lambda _: None, lambda runs: runs.mkdir(), lambda runs: (runs / "prepared").mkdir(parents=True)]
)
def test_no_runs_is_one_line_and_what_to_do(runs, capsys, make):
    make(runs)
    assert main(["tensorboard"]) == 2
    said = capsys.readouterr().err
    assert said == f"moodbox-train: {runs}: no runs to show yet: `moodbox-train fit --data DIR` makes one\n"


def test_a_port_that_cannot_be_had_is_one_line(runs, capsys):
    (runs / "one" / "tensorboard").mkdir(parents=True)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["tensorboard", "--port", str(port)]) == 1
        assert capsys.readouterr().err.startswith(f"moodbox-train: port {port} cannot be used (Address already in use)")
    assert main(["tensorboard", "--port", "70000"]) == 2
    assert "choose one from 1024 to 65535" in capsys.readouterr().err


def answer(port, path, process, deadline=120.0):
    ends = time.monotonic() + deadline
    while time.monotonic() < ends and process.poll() is None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/data/{path}", timeout=5) as reply:
                if found := json.load(reply):
                    return found
        except OSError:
            time.sleep(0.1)
    raise AssertionError(f"no answer: {'too late' if process.poll() is None else 'it ended'}")


@pytest.mark.parametrize("linked", [True, False])
def test_the_command_serves_all_runs_on_this_machine_alone_and_without_tensorflow(runs, linked):
    board.text(runs / "one" / "tensorboard", Settings())
    points, thumbnails = np.eye(2), np.zeros((2, 2, 2, 3), np.uint8)
    board.projector(runs / "one" / "tensorboard", points, np.arange(2), NAMES, thumbnails)
    board.hparams(runs / "two" / "tensorboard", {"seed": 1}, {"accuracy": 0.5})
    if not linked:
        (runs / ".tensorboard").write_text("in the way: as on a file system without links")
    port = free_port()
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-X", "importtime", "-m", "trainer", "tensorboard", "--port", str(port)]
    with (runs.parent / "said").open("w") as said:
        process = subprocess.Popen(command, env=env, stderr=said, stdout=subprocess.DEVNULL)
        try:
            found = answer(port, "runs", process)
            assert found == (["one", "two"] if linked else ["one/tensorboard", "two/tensorboard"])
            assert answer(port, "plugin/text/tags", process)
            assert answer(port, "plugin/projector/runs", process) == found[:1]
            with socket.socket() as outside, pytest.raises(OSError):  # noqa: PT011  refused, whatever the words
                outside.connect((own_address(), port))
        finally:
            process.send_signal(signal.SIGINT)
            status = process.wait(60)
    lines = (runs.parent / "said").read_text().splitlines()
    assert not [line for line in lines if line.split("|")[-1].strip().split(".")[0] == "tensorflow"]
    assert "Traceback" not in "".join(lines)
    assert status == 0


def own_address():
    """Return this machine's address in its network; where it has none, one that leads nowhere."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return "127.0.0.2"
        return probe.getsockname()[0]
