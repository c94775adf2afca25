"""`moodbox run` and `moodbox once`: the service with its real parts, TensorFlow's pipeline and a bundle in LiteRT.

Invariant: whatever ends the process, nothing is half done: what was in work is delivered, or waits in `.work` for the
next start.
"""

# ruff: noqa: T201

import os
import signal
import sys
from typing import NoReturn

import structlog

from daemon import logs, tray
from daemon.classifier import BundleError, Classifier
from daemon.console import Console, Feed, Tally
from daemon.inspection import Limits
from daemon.journal import was_served
from daemon.owner import OwnerError
from daemon.service import MakePipe, Pipe, PipelineError, Post, Service, StuckError
from trainer import quiet
from trainer.settings import Loaded, Settings

BAD_INPUT, FAILED = 2, 1
log = structlog.get_logger()


def forever(loaded: Loaded) -> int:
    """Sort what arrives until SIGTERM or SIGINT; return the exit status."""
    logs.configure()
    return _serve(loaded, Feed(loaded), is_once=False)


def once(loaded: Loaded) -> int:
    """Sort what is in the inbox, with a progress bar; return the exit status."""
    logs.configure(quiet=True)
    with Tally(loaded) as tally:
        return _serve(loaded, tally, is_once=True)


def _serve(loaded: Loaded, console: Console, *, is_once: bool) -> int:
    settings = loaded.settings
    if settings.journal.root.is_relative_to(settings.tray.root):
        return _failed("journal.root is inside tray.root: the log must not be in the tray", BAD_INPUT)
    try:
        tray.create(settings.tray.root, was_used=lambda: was_served(settings.journal.root, settings.tray.root))
        console.starting()
        with quiet.native_stderr():
            classifier = Classifier.load(settings.models.root)
        service = Service(settings, classifier, _make_pipe(settings, classifier), console, once=is_once)
        _heed_signals(service)
        return console.finished(service.run())
    except (tray.TrayError, OwnerError, BundleError) as error:
        return _failed(str(error), BAD_INPUT)
    except OSError as error:
        named = f"{error.filename}: " if error.filename else ""
        return _failed(f"{named}{error.strerror or error}", FAILED)
    except PipelineError as error:
        log.error("a thread of the pipeline died", exception=str(error))
        return FAILED
    except StuckError as error:
        if service.is_stopping:
            return _failed(f"{error}: stopped; the next start takes the file alone", FAILED)
        log.error("starting again: the file will be taken alone", error=str(error))
        _start_again()


def _make_pipe(settings: Settings, classifier: Classifier) -> MakePipe:
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")  # LiteRT predicts on the CPU: leave a GPU to others
    limits = Limits(settings.tray.max_file_bytes, settings.tray.max_pixels)
    threads = settings.daemon.cores

    def make(post: Post) -> Pipe:
        with quiet.native_stderr():
            from daemon.pipeline import Pipeline  # noqa: PLC0415  # seconds: after everything that can fail at once

            return Pipeline(classifier.eye, classifier.make_predictor, post, threads=threads, limits=limits)

    return make


def _heed_signals(service: Service) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: service.stop())
    signal.signal(signal.SIGIO, signal.SIG_IGN)  # it comes when a writer breaks a lease, and would end the process


def _failed(text: str, status: int) -> int:
    print(f"moodbox: {logs.printable(text)}", file=sys.stderr)
    return status


def _start_again() -> NoReturn:
    """Replace this process, stuck threads and all, by a new one; recovery takes the files from there."""
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
