"""The canary: a drawn picture that goes the whole way through the real service, in a tray of its own.

Invariant: only a scratch folder is written, and it is removed; the real tray, journal and models are not touched.
"""

import contextlib
import hashlib
import os
import signal
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from PIL import Image, ImageDraw

from daemon import logs, tray
from daemon.classifier import Classifier
from daemon.events import Line
from daemon.inspection import Limits
from daemon.service import Pipe, Post, Service
from trainer import bundle, quiet
from trainer.settings import Settings

SECONDS = 60.0  # after which it is given up
NAME = "canary.png"


class CanaryError(Exception):
    """The picture did not come out where it should."""


class _Listener:
    """An audience that remembers."""

    def __init__(self) -> None:
        self.lines: list[Line] = []

    def ready(self, serving: str, waiting: int) -> None:
        """Nothing."""

    def decided(self, line: Line, _waiting: int) -> None:
        """Remember."""
        self.lines.append(line)


def fly(settings: Settings) -> str:
    """Sort a picture; return what became of it. Raises CanaryError, or whatever goes wrong."""
    logs.configure(quiet=True)
    os.environ.pop("NOTIFY_SOCKET", None)  # it is not this service that systemd waits for
    signal.signal(signal.SIGIO, signal.SIG_IGN)
    with _scratch() as scratch:
        own = _settings(settings, scratch)
        tray.create(own.tray.root)
        picture = own.tray.root / tray.INBOX / NAME
        _draw().save(picture)
        digest = hashlib.sha256(picture.read_bytes()).hexdigest()
        line = _sort(own)
        came_out = own.tray.root / (line.destination or "")
        if line.event == "rejected":
            raise CanaryError(f"it was rejected: {line.error}")
        if hashlib.sha256(came_out.read_bytes()).hexdigest() != digest:
            raise CanaryError(f"{line.destination} is not what was dropped")
        return f"a drawn picture was sorted to {line.destination} by model {line.model}, in {line.infer_ms} ms"


@contextlib.contextmanager
def _scratch() -> Iterator[Path]:
    before = tempfile.tempdir
    with tempfile.TemporaryDirectory(prefix="moodbox-canary-") as scratch:
        tempfile.tempdir = scratch  # TensorFlow's autograph leaves files there when a process ends at once
        try:
            yield Path(scratch)
        finally:
            tempfile.tempdir = before


def _settings(settings: Settings, scratch: Path) -> Settings:
    """Return the real settings with a tray and a journal in `scratch`; and models, where there are none."""
    has_champion = bundle.champion(settings.models.root) is not None
    tray_table = {"root": scratch / "tray", "settle_seconds": 0.0, "ignore": ()}
    return settings.model_copy(
        update={
            "tray": settings.tray.model_copy(update=tray_table),
            "journal": settings.journal.model_copy(update={"root": scratch / "log"}),
            "models": settings.models
            if has_champion
            else settings.models.model_copy(update={"root": scratch / "models"}),
        }
    )


def _sort(settings: Settings) -> Line:
    listener = _Listener()
    with quiet.native_stderr():
        classifier = Classifier.load(settings.models.root)

        def make(post: Post) -> Pipe:
            with quiet.importing(), quiet.without("keras"):
                from daemon.pipeline import Pipeline  # noqa: PLC0415  # TensorFlow: seconds

            limits = Limits(settings.tray.max_file_bytes, settings.tray.max_pixels)
            return Pipeline(classifier.eye, classifier.make_predictor, post, threads=1, limits=limits)

        os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")  # as the daemon does
        service = Service(settings, classifier, make, listener, once=True)
        watch = threading.Timer(SECONDS, service.stop)
        watch.start()
        try:
            service.run()
        finally:
            watch.cancel()
    if len(listener.lines) != 1:
        raise CanaryError(f"no decision came in {SECONDS:.0f} seconds")
    return listener.lines[0]


def _draw() -> Image.Image:
    image = Image.new("RGB", (96, 96), (250, 220, 90))
    draw = ImageDraw.Draw(image)
    draw.ellipse((16, 16, 80, 80), outline=(60, 40, 20), width=4)
    draw.arc((32, 36, 64, 68), 20, 160, fill=(60, 40, 20), width=4)
    return image
