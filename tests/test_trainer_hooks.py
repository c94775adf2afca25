import inspect
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from trainer.errors import InputError
from trainer.tables import Trainer

pytestmark = [
    pytest.mark.tf,
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"),
]

RECORDER = """
    from trainer.hooks import Hooks

    class Recorder(Hooks):
        def __init__(self):  # without super().__init__(): people forget
            self.seen = []

        def train_begin(self):
            self.seen.append(("train_begin", self.stage, self.workdir.name, self.settings.batch_size))

        def train_end(self):
            self.seen.append(("train_end",))

        def epoch_begin(self, epoch):
            self.seen.append(("epoch_begin", epoch))

        def epoch_end(self, epoch, figures):
            self.seen.append(("epoch_end", epoch, sorted(figures)))

        def batch_begin(self, batch):
            self.seen.append(("batch_begin", batch))

        def batch_end(self, batch, figures):
            self.seen.append(("batch_end", batch, sorted(figures)))

    class Plain:
        pass
"""


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(textwrap.dedent(RECORDER))
    return tmp_path


def load(name):
    from trainer import hooks
    from trainer.stages import Stage

    return hooks.load(name, Trainer(hooks=name), Stage("head", Stage("head", hooks.Path.cwd(), 2).workdir, 2))


def fit(hooks, epochs=2):
    import keras

    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, "sigmoid")])
    model.compile("sgd", "binary_crossentropy", metrics=["accuracy"])
    x, y = np.ones((4, 2), np.float32), np.ones((4, 1), np.float32)
    model.fit(x, y, batch_size=2, epochs=epochs, validation_data=(x, y), verbose=0, callbacks=[hooks])
    return model


def written(place, body):
    (place / "bad.py").write_text(textwrap.dedent(body))
    return "bad.py:Bad"


def test_no_setting_no_hooks():
    assert load("") is None


@pytest.mark.parametrize("name", ["mine.py:Recorder", "mine:Recorder"])
def test_hooks_are_called_at_begin_and_end_of_training_epochs_and_batches(place, name):
    hooks = load(name)
    fit(hooks)
    train, both = ["accuracy", "loss"], ["accuracy", "loss", "val_accuracy", "val_loss"]
    batches = [(what, n, *rest) for n in (1, 2) for what, *rest in (("batch_begin",), ("batch_end", train))]
    epochs = [step for n in (1, 2) for step in [("epoch_begin", n), *batches, ("epoch_end", n, both)]]
    assert hooks.seen == [("train_begin", "head", place.name, 32), *epochs, ("train_end",)]


def test_hooks_can_stop_the_training(place):
    (place / "stop.py").write_text(
        "from trainer.hooks import Hooks\nclass Stop(Hooks):\n"
        "    def epoch_end(self, epoch, figures):\n        self.last = epoch\n        self.stop()\n"
    )
    hooks = load("stop.py:Stop")
    fit(hooks, epochs=5)
    assert hooks.last == 1


def test_the_example_in_the_documentation_works(place):
    from trainer import hooks

    lines = inspect.cleandoc(hooks.Hooks.__doc__).splitlines()
    (place / "notify.py").write_text(
        textwrap.dedent("\n".join(line for line in lines if not line or line.startswith("    ")))
    )
    made = load("notify.py:Notify")
    made.set_model(SimpleNamespace(stop_training=False))
    made.on_train_begin()
    for epoch, accuracy in enumerate((0.5, 0.4, 1.0)):
        made.on_epoch_end(epoch, {"val_accuracy": accuracy})
    assert (place / "best.txt").read_text() == "head epoch 1: 0.500\nhead epoch 3: 1.000\n"
    assert made.model.stop_training


MISTAKES = [
    ("mine", 'write "module:Class" or "file.py:Class"'),
    ("mine.py:", 'write "module:Class"'),
    (":Recorder", 'write "module:Class"'),
    ("none.py:Recorder", "there is no such file"),
    ("nowhere:Recorder", "there is no module nowhere"),
    ("os.nowhere:Recorder", "there is no module os.nowhere"),
    ("mine.py:Recorded", "there is no Recorded in mine.py: did you mean Recorder?"),
    ("mine.py:Plain", "Plain is not a class made from trainer.hooks.Hooks"),
    ("json:dumps", "dumps is not a class made from trainer.hooks.Hooks"),
    (".:Recorder", "import failed: "),
    ("a\nb.py:Recorder", "there is no such file"),
]


@pytest.mark.parametrize(("name", "match"), MISTAKES)
def test_a_wrong_setting_is_one_line(name, match):
    with pytest.raises(InputError) as caught:
        load(name)
    text = str(caught.value)
    assert match in text
    assert text.startswith("trainer.hooks = ")
    assert "\n" not in text


BROKEN = [
    ("import trainer.hooks\nclass Bad(trainer.hooks.Hooks:\n", r"import failed: SyntaxError: .*\(bad.py, line 2\)"),
    ("\n\n1 / 0", r"import failed: ZeroDivisionError: division by zero \(bad.py, line 3\)"),
    ("import nothing_like_it", r"import failed: ModuleNotFoundError: .*nothing_like_it.*\(bad.py, line 1\)"),
    ("raise SystemExit('no')", "import failed: SystemExit: no"),
    ("open('gone.txt')", r"import failed: FileNotFoundError: .*gone.txt.*\(bad.py, line 1\)"),
    (
        "from trainer.hooks import Hooks\nclass Bad(Hooks):\n    def __init__(self):\n        self.x = {}['k']\n",
        r"__init__ failed: KeyError: 'k' \(bad.py, line 4\)",
    ),
    (
        "from trainer.hooks import Hooks\nclass Bad(Hooks):\n    def __init__(self, channel):\n        pass\n",
        "__init__ failed: TypeError: .*channel",
    ),
]


@pytest.mark.parametrize(("body", "match"), BROKEN)
def test_code_that_does_not_load_is_one_line_with_its_place(place, body, match):
    with pytest.raises(InputError, match=r"^trainer.hooks = \"bad.py:Bad\": " + match) as caught:
        load(written(place, body))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("method", "what"),
    [("train_begin(self)", "train_begin"), ("epoch_end(self, epoch, figures)", "epoch_end"),
     ("batch_end(self, batch, figures)", "batch_end")],
)  # fmt: skip
def test_an_error_in_a_hook_is_one_line_with_its_place(place, method, what):
    body = "import json\nfrom trainer.hooks import Hooks\nclass Bad(Hooks):\n"
    hooks = load(written(place, f"{body}    def {method}:\n        json.loads('{{')\n"))
    with pytest.raises(InputError, match=rf"{what} failed: JSONDecodeError: .*\(bad.py, line 5\)$"):
        fit(hooks)


def test_a_file_in_the_working_directory_does_not_hide_a_library(place):
    (place / "wave.py").write_text("raise ValueError('the wrong wave')")
    code = "from trainer import hooks; hooks._module('wave:X', 'wave'); print('right')"
    done = subprocess.run(
        [sys.executable, "-P", "-W", "ignore", "-c", code],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout == "right\n", done.stderr
