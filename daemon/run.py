"""`moodbox run` and `moodbox once`: the service with its real parts, TensorFlow's pipeline and a bundle in LiteRT.

Invariant: whatever ends the process, nothing is half done: what was in work is delivered, or waits in `.work` for the
next start.
"""

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import NoReturn

import structlog

from daemon import logs, systemd, tray
from daemon.classifier import BundleError, Classifier
from daemon.console import Console, Feed, Tally, has_terminal
from daemon.inspection import Limits
from daemon.journal import was_served
from daemon.learner import Learner, command_of
from daemon.owner import OwnerError
from daemon.predictors import Predictors
from daemon.reload import Reloader
from daemon.service import MakePipe, Pipe, PipelineError, Post, Service, StuckError
from daemon.succession import Load, Successor
from daemon.upkeep import Upkeep
from trainer import quiet
from trainer.settings import Loaded, Settings

BAD_INPUT, FAILED = 2, 1
log = structlog.get_logger()


def forever(loaded: Loaded, load: Callable[[], Loaded]) -> int:
    """Sort what arrives until SIGTERM or SIGINT; SIGHUP reloads the settings by `load`. Return the exit status."""
    logs.configure()
    reloader = Reloader(loaded, load)
    if not has_terminal():  # whose hang-up, which SIGHUP means then, must end this process
        heed_reload(reloader)  # from now on: while the model loads, it would end the process
    return _serve(loaded, Feed(loaded), reloader)


def once(loaded: Loaded) -> int:
    """Sort what is in the inbox, with a progress bar; return the exit status."""
    logs.configure(quiet=True)
    with Tally(loaded) as tally:
        return _serve(loaded, tally, None)


def _serve(loaded: Loaded, console: Console, reloader: Reloader | None) -> int:
    settings, is_once = loaded.settings, reloader is None
    if settings.journal.root.is_relative_to(settings.tray.root):
        return logs.failed("journal.root is inside tray.root: the log must not be in the tray", BAD_INPUT)
    try:
        tray.create(settings.tray.root, was_used=lambda: was_served(settings.journal.root, settings.tray.root))
        console.starting()
        with quiet.native_stderr(), systemd.loading("loading the model"):
            classifier = Classifier.load(settings.models.root)
        make_pipe, load = _make_pipe(settings, classifier), _make_load(settings)
        learner = Learner(
            command_of(sys.argv, sys.orig_argv), 0.0 if is_once else settings.daemon.learn_seconds, time.monotonic()
        )
        service = Service(
            settings, classifier, make_pipe, console, once=is_once, load=load, upkeep=Upkeep(learner, reloader)
        )
        _heed_signals(service)
        with contextlib.closing(learner):
            return console.finished(service.run())
    except (tray.TrayError, OwnerError, BundleError) as error:
        return logs.failed(str(error), BAD_INPUT)
    except OSError as error:
        return logs.failed(logs.refusal(error), FAILED)
    except PipelineError as error:
        log.error("a thread of the pipeline died", exception=str(error))
        return FAILED
    except StuckError as error:
        if service.is_stopping:
            return logs.failed(f"{error}: stopped; the next start takes the file alone", FAILED)
        log.error("starting again: the file will be taken alone", error=str(error))
        _start_again()


def _make_pipe(settings: Settings, classifier: Classifier) -> MakePipe:
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")  # LiteRT predicts on the CPU: leave a GPU to others
    limits = Limits(settings.tray.max_file_bytes, settings.tray.max_pixels)
    threads = settings.daemon.cores

    def make(post: Post) -> Pipe:
        # TensorFlow would import Keras, and that scikit-learn, matplotlib and more: half of the time, 180 MB.
        with quiet.importing(), quiet.without("keras"):
            from daemon.pipeline import Pipeline  # noqa: PLC0415  # seconds: after everything that can fail at once

            return Pipeline(classifier.eye, classifier.make_predictor, post, threads=threads, limits=limits)

    return make


def _make_load(settings: Settings) -> Load:
    def load(number: int) -> Successor:
        classifier = Classifier.load(settings.models.root, number)
        predictors = Predictors.made(classifier.make_predictor, settings.daemon.cores)
        return Successor(classifier, classifier.eye, predictors)

    return load


def heed_reload(reloader: Reloader) -> None:
    """Have SIGHUP reload the settings; safe at any time."""
    signal.signal(signal.SIGHUP, lambda *_: reloader.ask())


def _heed_signals(service: Service) -> None:
    if service.upkeep.reloader is not None:
        service.upkeep.reloader.wake = service.wake
    stops = [signal.SIGTERM, signal.SIGINT]
    if service.upkeep.reloader is None or has_terminal():
        stops += [signal.SIGHUP] if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN else []  # nohup
    for number in stops:
        signal.signal(number, lambda *_: service.stop())
    signal.signal(signal.SIGIO, signal.SIG_IGN)  # it comes when a writer breaks a lease, and would end the process


def _start_again() -> NoReturn:
    """Replace this process, stuck threads and all, by a new one; recovery takes the files from there."""
    sys.stdout.flush()
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # it is inherited: until the new one listens, it would be ended
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
