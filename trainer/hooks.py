"""A user's own code at the begin and end of training, of epochs and of batches: `trainer.hooks` in settings.toml.

Invariant: a mistake in that setting, or in the code that it names, is one line that says trainer.hooks and where; never
a traceback, and never a training that goes on without the hooks.
"""

import difflib
import importlib
import importlib.util
import sys
import sysconfig
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import keras

from trainer.errors import FailureError, InputError
from trainer.progress import printable
from trainer.stages import Stage
from trainer.tables import Trainer

OWN = Path(__file__).parent
Logs = dict[str, Any] | None


class Hooks(keras.callbacks.Callback):  # type: ignore[misc]  # Keras has no types
    r"""What a class of your own inherits from; override what you need.

    Put this into a file, such as `slack.py`, and `hooks = "slack.py:Notify"` into `[trainer]` of settings.toml:

        from trainer.hooks import Hooks

        class Notify(Hooks):
            def train_begin(self):
                self.best = 0.0

            def epoch_end(self, epoch, figures):
                if figures["val_accuracy"] > self.best:
                    self.best = figures["val_accuracy"]
                    with open(self.workdir / "best.txt", "a") as file:
                        file.write(f"{self.stage} epoch {epoch}: {self.best:.3f}\n")
                if self.best == 1.0:
                    self.stop()

    Every method is called in each stage of a run. `epoch` and `batch` count from 1. `figures` holds loss, accuracy and
    cross_entropy, at the end of an epoch also val_loss, val_accuracy and val_cross_entropy, as floats. A run that goes
    on after a kill makes the unfinished epoch again, hooks and all.
    """

    stage: str  # such as "head"
    workdir: Path  # the run's own folder
    settings: Trainer  # the [trainer] table; `self.model`, Keras's, is there, too

    def train_begin(self) -> None:
        """Before the first epoch."""

    def train_end(self) -> None:
        """After the last epoch."""

    def epoch_begin(self, epoch: int) -> None:
        """Before an epoch."""

    def epoch_end(self, epoch: int, figures: dict[str, float]) -> None:
        """After an epoch and its validation, before its weights are kept."""

    def batch_begin(self, batch: int) -> None:
        """Before a training batch."""

    def batch_end(self, batch: int, figures: dict[str, float]) -> None:
        """After a training batch; the figures are the means of the epoch so far."""

    def stop(self) -> None:
        """End this stage's training after the batch or epoch that runs."""
        self.model.stop_training = True

    def on_train_begin(self, logs: Logs = None) -> None:
        """Keras calls these six."""
        del logs
        self._call(self.train_begin)

    def on_train_end(self, logs: Logs = None) -> None:
        del logs
        self._call(self.train_end)

    def on_epoch_begin(self, epoch: int, logs: Logs = None) -> None:
        del logs
        self._call(self.epoch_begin, epoch + 1)

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        self._call(self.epoch_end, epoch + 1, dict(logs or {}))

    def on_train_batch_begin(self, batch: int, logs: Logs = None) -> None:
        del logs
        self._call(self.batch_begin, batch + 1)

    def on_train_batch_end(self, batch: int, logs: Logs = None) -> None:
        self._call(self.batch_end, batch + 1, dict(logs or {}))

    def _call(self, method: Callable[..., None], *given: Any) -> None:
        try:
            method(*given)
        except (InputError, FailureError):
            raise
        except (Exception, SystemExit) as error:  # a user's code raises what it likes
            raise InputError(_told(self.settings.hooks, f"{method.__name__} failed", error)) from error


def load(name: str, asked: Trainer, stage: Stage) -> Hooks | None:
    """Return the hooks that `name`, "module:Class" or "file.py:Class", stands for; None where it is empty.

    Files and modules are looked for in the working directory. Raises InputError, one line, for every mistake.
    """
    if not name:
        return None
    found = _class(name)
    try:
        hooks = found()
    except (Exception, SystemExit) as error:
        raise InputError(_told(name, "__init__ failed", error)) from error
    hooks.stage, hooks.workdir, hooks.settings = stage.name, stage.workdir, asked
    return hooks


def find(name: str) -> type[Hooks] | None:
    """Return the class that `name` stands for; None where it is empty. Raises InputError."""
    return _class(name) if name else None


def _class(name: str) -> type[Hooks]:
    where, colon, class_name = name.rpartition(":")
    if not colon or not where or not class_name.isidentifier():
        raise InputError(f'trainer.hooks = "{printable(name)}": write "module:Class" or "file.py:Class"')
    module = _module(name, where)
    own = [key for key, value in vars(module).items() if isinstance(value, type) and issubclass(value, Hooks)]
    found = vars(module).get(class_name)
    if found is None:
        close = difflib.get_close_matches(class_name, own, n=1)
        hint = f": did you mean {close[0]}?" if close else ""
        raise InputError(f'trainer.hooks = "{printable(name)}": there is no {class_name} in {printable(where)}{hint}')
    if not isinstance(found, type) or not issubclass(found, Hooks):
        raise InputError(
            f'trainer.hooks = "{printable(name)}": {class_name} is not a class made from trainer.hooks.Hooks'
        )
    return found


def _module(name: str, where: str) -> ModuleType:
    """Import a file or a module; a file is run anew each time, so that two stages share nothing by chance."""
    try:
        if where.endswith(".py"):
            return _from_file(Path(where))
        sys.path.append(str(Path.cwd()))  # last: what lies there must not hide a library
        try:
            return importlib.import_module(where)
        finally:
            sys.path.remove(str(Path.cwd()))
    except FileNotFoundError as error:
        if error.filename == where:
            raise InputError(f'trainer.hooks = "{printable(name)}": there is no such file') from None
        raise InputError(_told(name, "import failed", error)) from error
    except ModuleNotFoundError as error:
        if error.name and (where == error.name or where.startswith(f"{error.name}.")):
            raise InputError(f'trainer.hooks = "{printable(name)}": there is no module {error.name}') from None
        raise InputError(_told(name, "import failed", error)) from error
    except (Exception, SystemExit) as error:
        raise InputError(_told(name, "import failed", error)) from error


def _from_file(path: Path) -> ModuleType:
    path.open("rb").close()  # FileNotFoundError with the name as it was given
    spec = importlib.util.spec_from_file_location(path.stem, path.absolute())
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _told(name: str, what: str, error: BaseException) -> str:
    """Say what failed, and the last line of the user's own code that was at work, not the library's below it."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if Path(f.filename).parent != OWN]
    place = next((f"{Path(f.filename).name}, line {f.lineno}" for f in reversed(frames) if _users(f.filename)), "")
    if isinstance(error, SyntaxError):
        place = f"{Path(error.filename or '').name}, line {error.lineno}"
    text = printable(" ".join(str(error).split()))[:200]
    where = f" ({printable(place)})" if place else ""
    return f'trainer.hooks = "{printable(name)}": {what}: {type(error).__name__}: {text}{where}'


def _users(filename: str) -> bool:
    library = Path(sysconfig.get_path("stdlib")), Path(sysconfig.get_path("purelib"))
    return not filename.startswith("<") and not any(Path(filename).is_relative_to(folder) for folder in library)
