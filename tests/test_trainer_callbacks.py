"""Real trainings of tiny networks: killed, resumed, stopped, on a disk that is full."""

import csv
import json
import os
import pty
import selectors
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

pytestmark = [
    pytest.mark.tf,
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"),
]
ROOT = Path(__file__).parent.parent
DEADLINE = 120.0

# A training with everything that has a state: dropout, AdamW, a schedule, batch norm, shuffled batches.
TRAINING = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
import os, sys, time
from pathlib import Path
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
from trainer import quiet
with quiet.native_stderr():
    import keras, numpy as np, tensorflow as tf
    from trainer import callbacks
from trainer.errors import FailureError
from trainer.tables import Trainer

keras.utils.set_random_seed(1)
tf.config.experimental.enable_op_determinism()
EPOCHS, BATCHES = 6, 4
workdir, slow, last = Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
asked = Trainer(patience=int(os.environ.get("PATIENCE", 50)), batch_size=16)


class Batches(keras.utils.PyDataset):
    epoch = 0

    def __len__(self):
        return BATCHES

    def __getitem__(self, index):
        rows = np.random.default_rng((7, self.epoch)).permutation(64)[index * 16 : index * 16 + 16]
        return X[rows], Y[rows]


class Slow(keras.callbacks.Callback):
    done = 0

    def on_train_batch_end(self, batch, logs=None):
        self.done += 1
        print("batch", flush=True)
        time.sleep(slow)
        if self.done == last:
            signal.pause()  # until it is killed


def network():
    layers = keras.layers
    made = keras.Sequential([
        keras.Input((WIDTH,)), layers.Dense(16, "relu"), layers.BatchNormalization(), layers.Dropout(0.5),
        layers.Dense(1, "sigmoid"),
    ])
    rate = keras.optimizers.schedules.CosineDecay(0.05, EPOCHS * BATCHES)
    metric = keras.metrics.BinaryCrossentropy(name="cross_entropy")
    made.compile(keras.optimizers.AdamW(rate), "binary_crossentropy", metrics=["accuracy", metric])
    return made


WIDTH = int(os.environ.get("WIDTH", 8))
X = np.random.default_rng(0).random((96, WIDTH), np.float32)
Y = (X[:, :1] > 0.5).astype(np.int32)
Y[64:] = np.random.default_rng(1).integers(0, 2, (32, 1))  # what cannot be learned: the loss rises soon
stage = callbacks.Stage("head", workdir, EPOCHS)
batches, model = Batches(), network()
validation = X[64:], Y[64:]
watching = callbacks.watching(stage, asked, validation=validation, class_names=("happy", "sad"))
try:
    with callbacks.guarded(stage, watching):
        model.fit(batches, validation_data=validation, epochs=EPOCHS, verbose=0, shuffle=False,
                  callbacks=[callbacks.EpochOrder(batches), *watching, Slow()])
except FailureError as error:
    sys.exit(f"failed: {error}")
except KeyboardInterrupt:
    sys.exit("interrupted")
print("best", callbacks.restore_best(model, stage))
model.save_weights(workdir / "final.weights.h5")
"""


def environment(**more):
    return os.environ | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore", "COLUMNS": "200"} | more


def command(workdir, slow=0.0, last=0):
    return [sys.executable, "-c", TRAINING, str(workdir), str(slow), str(last)]


def train(workdir, **env):
    return subprocess.run(command(workdir), env=environment(**env), capture_output=True, text=True, check=False)


def killed(workdir, *, after):
    """Train, and kill once so many batches of this start are done: in the middle of an epoch."""
    with subprocess.Popen(
        command(workdir, last=after), env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as run:
        for _ in range(after):
            assert run.stdout.readline() == "batch\n"
        run.send_signal(signal.SIGKILL)
        return run.stderr.read()


def weights(workdir, name="final.weights.h5"):
    """Read all variables of a file, those of the optimizer, too."""
    import h5py

    found = {}
    with h5py.File(workdir / name) as file:
        file.visititems(lambda name, item: found.update({name: item[()]}) if isinstance(item, h5py.Dataset) else None)
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A training that nobody interrupts."""
    workdir = tmp_path_factory.mktemp("whole")
    done = train(workdir)
    assert done.returncode == 0, done.stderr
    return workdir, done


@pytest.fixture(scope="module")
def resumed(tmp_path_factory):
    """The same training, killed in its second epoch, again in its fourth, and then left alone."""
    workdir = tmp_path_factory.mktemp("resumed")
    said = [killed(workdir, after=6), killed(workdir, after=10)]
    with (workdir / "history-head.csv").open("a") as file:
        file.write("3,0.5,0.7")  # as a kill in the middle of a write leaves it
    done = train(workdir)
    assert done.returncode == 0, done.stderr
    return workdir, [*said, done.stderr]


def test_a_training_that_was_killed_twice_ends_with_the_same_weights(whole, resumed):
    for file in ("final.weights.h5", "checkpoints/head-006.weights.h5"):
        expected, found = weights(whole[0], file), weights(resumed[0], file)
        assert len(expected) > 15
        assert expected.keys() == found.keys()
        for name, value in expected.items():
            np.testing.assert_array_equal(value, found[name], err_msg=name)


def test_a_training_that_was_killed_twice_has_the_same_history(whole, resumed):
    texts = [(workdir / "history-head.csv").read_text() for workdir in (whole[0], resumed[0])]
    assert texts[0] == texts[1]
    assert len(texts[0].splitlines()) == 7


def test_going_on_says_at_which_epoch(resumed):
    first, second, third = resumed[1]
    assert "resuming" not in first
    assert second.splitlines()[0] == "head: resuming at epoch 2"
    assert third.splitlines()[0] == "head: resuming at epoch 4"


def test_the_weights_of_the_best_and_the_last_epoch_are_kept(whole):
    workdir, done = whole
    best = int(done.stdout.split("best ")[1])
    kept = {path.name for path in (workdir / "checkpoints").iterdir()}
    assert kept == {f"head-{best:03d}.weights.h5", "head-006.weights.h5"}


def test_a_finished_stage_is_not_trained_again(whole, tmp_path):
    import shutil

    workdir = shutil.copytree(whole[0], tmp_path / "again")
    done = train(workdir)
    assert "batch" not in done.stdout
    assert (workdir / "history-head.csv").read_text() == (whole[0] / "history-head.csv").read_text()
    assert weights(workdir).keys() == weights(whole[0]).keys()


def test_early_stopping_counts_the_epochs_before_a_kill(whole, tmp_path):
    with (whole[0] / "history-head.csv").open() as file:
        losses = [float(row["val_cross_entropy"]) for row in csv.DictReader(file)]
    expected = next(i for i in range(1, 6) if losses[i] >= min(losses[:i])) + 1
    assert expected < 6
    killed(tmp_path, after=4 * (expected - 1) + 2)
    done = train(tmp_path, PATIENCE="1")
    assert f"head: stopped after epoch {expected} (no better for 1 epochs)" in done.stderr, done.stderr
    assert json.loads((tmp_path / "backup/head/training_metadata.json").read_text())["stopped"] is True
    assert "batch" not in train(tmp_path, PATIENCE="1").stdout


def test_progress_is_plain_lines_where_nobody_watches(whole):
    lines = whole[1].stderr.splitlines()
    assert [line.split("  ")[0] for line in lines] == [f"head: epoch {n}/6" for n in range(1, 7)]
    assert "loss 0." in lines[0] and "validation accuracy 0." in lines[0]


def on_terminal(argv, interrupt_at=""):
    """Run with stderr on a terminal; send Ctrl-C once a text shows up. Return the screen's bytes and the status."""
    main, side = pty.openpty()
    with (
        subprocess.Popen(argv, env=environment(TERM="xterm"), stdout=subprocess.DEVNULL, stderr=side) as run,
        selectors.DefaultSelector() as screen,
    ):
        os.close(side)
        screen.register(main, selectors.EVENT_READ)
        seen, ends = b"", time.monotonic() + DEADLINE
        while time.monotonic() < ends:
            if not screen.select(1.0):
                continue
            try:
                seen += os.read(main, 65536)
            except OSError:  # the other side is closed
                break
            if interrupt_at and interrupt_at.encode() in seen:
                run.send_signal(signal.SIGINT)
                interrupt_at = ""
        status = run.wait(DEADLINE)
    os.close(main)
    return seen.decode(), status


def test_the_bar_ends_cleanly_on_ctrl_c(tmp_path):
    screen, status = on_terminal(command(tmp_path, 0.2), "epoch 2/6")
    assert status == 1
    assert "━" in screen
    assert screen.rindex("\x1b[?25h") > screen.rindex("\x1b[?25l")  # the cursor is shown again
    last = screen[screen.rindex("\x1b[?25h") :]
    assert "━" not in last
    assert "interrupted\r\n" in last


def test_a_file_system_that_takes_no_more_is_one_line(tmp_path):
    """A limit on the size of files makes the kernel refuse real writes, as a full disk does."""
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({0}, {0})); "
    for size in (3000, 160_000):
        workdir = tmp_path / str(size)
        workdir.mkdir()
        argv = command(workdir)
        argv[2] = limit.format(size) + argv[2]
        done = subprocess.run(argv, env=environment(WIDTH="2000"), capture_output=True, text=True, check=False)
        assert done.returncode == 1
        lines = [line for line in done.stderr.splitlines() if line]
        assert lines[-1].startswith(f"failed: {workdir}: File too large: "), done.stderr
        assert all(line.startswith("head: ") for line in lines[:-1]), done.stderr


def test_a_disk_fault_is_told_from_other_errors():
    import tensorflow as tf

    from trainer.disk import disk_errors, fault
    from trainer.errors import FailureError

    full = "No space left on device"
    assert fault(OSError(28, full)) == full
    assert (
        fault(OSError("Unable to synchronously create file (errno = 28, error message = 'No space left on device')"))
        == full
    )
    assert fault(RuntimeError("Can't decrement id ref count (error message = 'No space left on device')")) == full
    assert fault(tf.errors.ResourceExhaustedError(None, None, f"events; {full}")) == full
    assert fault(tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor")) is None
    assert fault(FileNotFoundError(2, "No such file or directory")) is None
    with pytest.raises(FailureError, match="runs/x: No space left on device"), disk_errors(Path("runs/x")):
        raise OSError(28, full)
    with pytest.raises(ValueError, match="another"), disk_errors(Path("runs/x")):
        raise ValueError("another")


# The rest runs in this process, without training.


@pytest.fixture
def stage(tmp_path):
    from trainer.callbacks import Stage

    return Stage("head", tmp_path / "a {run}", 10)


def rows(stage, *losses):
    stage.workdir.mkdir(exist_ok=True)
    lines = ["epoch,accuracy,val_cross_entropy", *(f"{i},0.5,{loss}" for i, loss in enumerate(losses))]
    stage.history_csv.write_text("".join(f"{line}\r\n" for line in lines))


def test_the_best_epoch_is_the_first_with_the_lowest_validation_loss(stage):
    from trainer.callbacks import best_epoch, history

    rows(stage, 0.7, 0.3, "nan", 0.3)
    assert best_epoch(stage) == 2
    assert history(stage)["accuracy"] == [0.5] * 4


def test_without_validation_the_last_epoch_is_the_best(stage):
    from trainer.callbacks import best_epoch, history

    rows(stage, "NA", "NA")
    assert history(stage) == {"accuracy": [0.5, 0.5]}
    assert best_epoch(stage) == 2


def test_no_finished_epoch_and_a_damaged_state_are_one_line(stage):
    from trainer import stages
    from trainer.callbacks import best_epoch, history
    from trainer.errors import FailureError

    with pytest.raises(FailureError, match="no epoch was finished"):
        best_epoch(stage)
    rows(stage, 0.5, "x")
    with pytest.raises(FailureError, match=r"history-head.csv: a row is damaged: start again without --resume"):
        history(stage)
    stage.history_csv.write_bytes(b"\xff\xfe")
    with pytest.raises(FailureError, match="damaged"):
        history(stage)
    stage.backup.mkdir(parents=True)
    for text in ("{", "[]", '{"epoch": 1}'):
        (stage.backup / stages.COMMIT).write_text(text)
        with pytest.raises(FailureError, match=r"training_metadata.json: damaged"):
            stages.committed(stage)


def test_rows_that_the_commit_counts_and_the_file_lacks_are_an_error(stage):
    from trainer import stages
    from trainer.errors import FailureError

    rows(stage, 0.5, 0.4)
    stages.trim(stage, 2)
    with pytest.raises(FailureError, match="holds fewer than 3 epochs"):
        stages.trim(stage, 3)


def test_only_this_stages_other_weights_and_half_written_ones_are_deleted(stage):
    from trainer import stages

    stage.checkpoints.mkdir(parents=True)
    names = ["head-001", "head-002", "head-1000", "head-x", "fine-head-001", "head2-001"]
    for name in [*(f"{name}.weights.h5" for name in names), ".head-003.weights.h5.0f.tmp", ".other.tmp"]:
        (stage.checkpoints / name).touch()
    stages.prune(stage, [2, 1000])
    left = {path.name.removesuffix(".weights.h5") for path in stage.checkpoints.iterdir()}
    assert left == {"head-002", "head-1000", "head-x", "fine-head-001", "head2-001", ".other.tmp"}


def test_weights_that_cannot_be_loaded_are_one_line(stage):
    import keras

    from trainer.callbacks import restore_best
    from trainer.errors import FailureError

    rows(stage, 0.5)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    with pytest.raises(FailureError, match=r"head-001.weights.h5: these weights cannot be loaded"):
        restore_best(model, stage)
    stage.checkpoints.mkdir()
    stage.checkpoint(1).write_bytes(b"torn")
    with pytest.raises(FailureError, match="cannot be loaded"):
        restore_best(model, stage)
    keras.Sequential([keras.Input((3,)), keras.layers.Dense(5)]).save_weights(stage.checkpoint(1))
    with pytest.raises(FailureError, match="cannot be loaded"):
        restore_best(model, stage)


def test_the_best_weights_go_into_a_model_that_is_not_compiled(stage):
    import keras

    from trainer.callbacks import restore_best

    rows(stage, 0.5)
    stage.checkpoints.mkdir()
    compiled, plain = (keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)]) for _ in range(2))
    compiled.compile("adam", "mse")
    compiled.fit(np.ones((2, 3)), np.ones((2, 2)), verbose=0)
    compiled.save_weights(stage.checkpoint(1))
    assert restore_best(plain, stage) == 1
    np.testing.assert_array_equal(compiled.get_weights()[0], plain.get_weights()[0])


@pytest.mark.parametrize(
    ("asked", "reason"),
    [({"stop_at_accuracy": 0.8}, "accuracy 0.900 reaches trainer.stop_at_accuracy"),
     ({"stop_below_loss": 0.3}, "loss 0.250 reaches trainer.stop_below_loss"),
     ({"stop_at_accuracy": 0.95, "stop_below_loss": 0.2}, ""), ({}, "")],
)  # fmt: skip
def test_training_stops_where_it_is_good_enough(asked, reason):
    from types import SimpleNamespace

    from trainer.stopping import Target
    from trainer.tables import Trainer

    target = Target(Trainer(**asked))
    target.set_model(SimpleNamespace(stop_training=False))
    target.on_epoch_end(0, {"val_accuracy": 0.9, "val_cross_entropy": 0.25})
    assert target.reason.endswith(reason)
    assert target.model.stop_training is bool(reason)


def test_a_loss_that_is_no_number_any_more_ends_training_with_one_line():
    from trainer.errors import FailureError
    from trainer.stopping import Diverged

    Diverged().on_epoch_end(0, {"loss": 1.0})
    for name in ("loss", "val_cross_entropy"):
        with pytest.raises(FailureError, match=r"epoch 3: the loss is not a number any more: try a lower"):
            Diverged().on_epoch_end(2, {"loss": 1.0, name: float("nan")})


def test_a_stream_is_made_anew_for_each_epoch_and_in_its_order():
    import keras
    import tensorflow as tf

    from trainer.callbacks import EpochOrder, EpochStream

    made, seen = [], []

    def make(epoch):
        made.append(epoch)
        return tf.data.Dataset.from_tensor_slices((np.full((6, 2), epoch, np.float32), np.zeros((6, 1)))).batch(4)

    stream = EpochStream(make, 2)
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse", run_eagerly=True)
    original = model.train_step
    model.train_step = lambda data: [seen.append(float(data[0][0, 0])), original(data)][1]
    model.fit(stream, epochs=4, initial_epoch=2, verbose=0, shuffle=False, callbacks=[EpochOrder(stream)])
    assert seen == [2.0, 2.0, 3.0, 3.0]
    assert made[-2:] == [2, 3]
