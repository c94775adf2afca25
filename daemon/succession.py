"""The succession: a new champion is loaded, checked and warmed in a thread of its own, beside the model that serves.

Invariant: whatever `models/` holds, and however long it takes to read, costs the model that serves nothing. What comes
of it is one of two things, a successor that is ready or the reason why it is refused, and waits here until the service
has journalled it.
"""

import os
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from daemon.logs import printable
from daemon.predictors import Predictors
from trainer import bundle
from trainer.bundle import BundleError
from trainer.views import Eye

LOOK_SECONDS = 1.0
HANGS_SECONDS = 300.0  # the largest bundle loads in less
FRESH = "`moodbox-train rollback N` names one"


class Serving(Protocol):
    """What the service needs of a classifier: see daemon.classifier."""

    number: int
    threshold: float | None
    classes: tuple[str, ...]

    def decide(self, scores: tuple[float, ...]) -> tuple[str, float]: ...
    def describe(self) -> str: ...


@dataclass(frozen=True)
class Successor:
    """A champion that is ready to serve, with warm predictors for the pipeline."""

    serving: Serving
    eye: Eye
    predictors: Predictors


@dataclass(frozen=True)
class Refusal:
    """Why a champion does not serve, in one line; `model` is None where the link names none. `trace`: of a defect."""

    model: int | None
    error: str
    trace: str | None = field(default=None, compare=False)

    def __str__(self) -> str:
        return f"{'champion' if self.model is None else f'model {self.model}'} refused: {self.error}"


Load = Callable[[int], Successor]  # raises BundleError, or whatever else goes wrong


@dataclass(frozen=True)
class _Sight:
    """What the link names, or what is wrong with it; and how the link and the files of that bundle look.

    A refused bundle is tried again only when its looks change: a copy is completed, or `rollback` names it anew.
    """

    number: int | None
    fault: str | None
    looks: tuple[object, ...]


class Succession:
    """Looks at the champion about once a second, from `start` to `stop`. `news` and `took` are for the service."""

    def __init__(self, models: Path, load: Load, serving: Serving, wake: Callable[[], None]) -> None:
        self._models, self._load, self._serving, self._wake = models, load, serving, wake
        self._lock = threading.Lock()
        self._news: Successor | Refusal | None = None
        self._refusal: Refusal | None = None
        self._settled: _Sight | None = None  # what the last news were of
        self._doubted: _Sight | None = None
        self._loading: int | None = None
        self._looking_since: float | None = None
        self._stopped = threading.Event()

    def start(self) -> None:
        """Begin to look. The thread is a daemon: one that hangs on a dead disk does not keep the process alive."""
        threading.Thread(target=self._watch, name="succession", daemon=True).start()

    def stop(self) -> None:
        """Look no more; does not wait for a bundle that is being loaded."""
        self._stopped.set()

    @property
    def news(self) -> Successor | Refusal | None:
        """What the service has to journal: the same until `took` is called, or the champion has moved on."""
        return self._news

    def took(self, news: Successor | Refusal) -> None:
        """Take note that these news were journalled; a successor serves from now on."""
        with self._lock:
            if self._news is news:
                self._news = None
            if isinstance(news, Successor):
                self._serving = news.serving

    @property
    def status(self) -> str:
        """What is to be said of the champion while another model serves; empty where there is nothing to say."""
        if (number := self._loading) is not None:
            return f"model {number} is being loaded"
        return str(self._refusal or "")

    def hangs(self, now: float) -> str:
        """Say that a look at the champion does not end (a dead disk): it costs nothing but a new model."""
        since = self._looking_since
        return f"{printable(self._models)} does not answer" if since is not None and now - since > HANGS_SECONDS else ""

    def _watch(self) -> None:
        while not self._stopped.is_set():
            self._looking_since = time.monotonic()
            self.look()
            self._looking_since = None
            self._stopped.wait(LOOK_SECONDS)

    def look(self) -> None:
        """Look at the champion once; load it where it is neither the model that serves nor known already."""
        number, fault = _named(self._models)
        if number == self._serving.number:
            self._forget()
            return
        sight = _Sight(number, fault, _looks(self._models, number))
        if sight != self._settled and self._is_believed(sight):
            found = self._try(sight)
            if _named(self._models) == (number, fault):  # else it has moved on meanwhile: the newest wins
                self._hand_over(sight, found)

    def _is_believed(self, sight: _Sight) -> bool:
        """Believe at its second sight only that the link is missing or damaged: `ln -sf` removes it for an instant."""
        was, self._doubted = self._doubted, sight
        return sight.fault is None or sight == was

    def _try(self, sight: _Sight) -> Successor | Refusal:
        if sight.number is None:
            return Refusal(None, sight.fault or "")
        self._loading = sight.number
        try:
            found = self._load(sight.number)
        except (BundleError, OSError) as error:
            return Refusal(sight.number, _one_line(error))
        except Exception as error:  # noqa: BLE001  # the model that serves goes on, whatever is wrong with the new one
            text = f"bundle {self._models / str(sight.number)}: {type(error).__name__}: {error}; the log says where"
            return Refusal(sight.number, _one_line(text), traceback.format_exc())
        finally:
            self._loading = None
        return self._judge(found)

    def _judge(self, found: Successor) -> Successor | Refusal:
        """Refuse other classes: the tray's folders, and what people were told of them, are those of the start."""
        new, old = found.serving, self._serving
        if new.classes == old.classes:
            return found
        named = f"{', '.join(new.classes)} instead of {', '.join(old.classes)}"
        return Refusal(new.number, f"it has other classes ({named}): restart the daemon to take it")

    def _hand_over(self, sight: _Sight, found: Successor | Refusal) -> None:
        with self._lock:
            self._settled = sight
            if found == self._refusal:  # tried again, with the same end
                return
            self._refusal = found if isinstance(found, Refusal) else None
            self._news = found
        self._wake()

    def _forget(self) -> None:
        with self._lock:
            self._news = self._refusal = self._settled = None


def _named(models: Path) -> tuple[int | None, str | None]:
    """Return the champion's number, or what is wrong with the link."""
    try:
        number = bundle.champion(models)
    except BundleError as error:
        return None, _one_line(error)
    return number, f"{models / bundle.CHAMPION} is missing: {FRESH}" if number is None else None


def _looks(models: Path, number: int | None) -> tuple[object, ...]:
    paths = [models / bundle.CHAMPION]
    if number is not None:
        folder = models / str(number)
        paths += [folder, *(Path(top, name) for top, _, names in os.walk(folder) for name in names)]
    return tuple((str(path), _look_of(path)) for path in sorted(paths))


def _look_of(path: Path) -> tuple[int, ...] | None:
    """Return what changes when a file, its content or its mode does; None where there is none."""
    try:
        st = os.lstat(path)
    except OSError:
        return None
    return st.st_ino, st.st_size, st.st_ctime_ns


def _one_line(text: object) -> str:
    return " ".join(str(text).split())
