"""The real daemon without TensorFlow: a stand-in for the pipeline, which decodes and scores in a thread of its own.

Run as a program it is `moodbox once` (or run) with that pipeline. KILL_AT=N ends the process by SIGKILL at the N-th
half-step: before or after a system call that changes the disk. Everything else is the real thing.
"""

import os
import queue
import signal
import sys
import threading
import time
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pictures
from daemon import fs, inspection, journal, logs
from daemon.events import Line
from daemon.inspection import Limits, Outcome
from daemon.service import Service
from trainer import images, views
from trainer.settings import Settings, load

CHANGES = ("rename", "mkdir", "rmdir", "unlink", "fsync", "write", "ftruncate", "fchmod")
POISON = b"POISON"


class StandIn:
    """Classifier and pipeline in one: bright pictures are happy, dark ones sad; POISON in a file kills the process."""

    number = 7
    classes = ("happy", "sad")
    threshold = 0.5
    failure: str | None = None
    limits = Limits(10_000_000, 1_000_000)

    def __init__(self, post: Callable[[str, int, Outcome], None] | None = None) -> None:
        self._post = post
        self._queue: queue.SimpleQueue[tuple[str, Sequence[bytes]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, daemon=True)
        if post is not None:
            self._thread.start()

    def describe(self) -> str:
        return "stand-in"

    def decide(self, scores: tuple[float, ...]) -> tuple[str, float]:
        index = int(scores[1] >= self.threshold)
        return self.classes[index], scores[index]

    def submit(self, key: str, paths: Sequence[bytes]) -> None:
        self._queue.put((key, paths))

    def slowest(self, _now: float) -> tuple[float, bytes]:
        return 0.0, b""

    def close(self) -> None:
        self._queue.put(None)
        self._thread.join(timeout=5)

    def _work(self) -> None:
        while (job := self._queue.get()) is not None:
            for index, path in enumerate(job[1]):
                assert self._post is not None
                self._post(job[0], index, classify(path))


def classify(path: bytes) -> Outcome:
    report, picture = inspection.inspect(path, views.Eye(16), Limits(10_000_000, 1_000_000))
    if picture is None:
        return Outcome(report)
    if os.path.isfile(path) and POISON in Path(os.fsdecode(path)).read_bytes():
        os.kill(os.getpid(), signal.SIGKILL)
    bright = float(picture.pixels.mean() / 255)
    return Outcome(report, (bright, 1 - bright), 0.1)


class Slow(StandIn):
    """As slow as a model is: a machine of several does not take everything before the others have looked."""

    def submit(self, key: str, paths: Sequence[bytes]) -> None:
        time.sleep(0.005 * len(paths))
        super().submit(key, paths)


class Deaf:
    """An audience that forgets: a daemon's memory stays flat."""

    def ready(self, serving: str, waiting: int) -> None:
        pass

    def decided(self, line: Line, waiting: int) -> None:
        pass


class Silence:
    """An audience that remembers."""

    def __init__(self) -> None:
        self.lines: list[Line] = []

    def ready(self, serving: str, waiting: int) -> None:
        pass

    def decided(self, line: Line, waiting: int) -> None:
        self.lines.append(line)


def make_service(settings: Settings, *, once: bool = True, make_pipe: Any = StandIn) -> Service:
    return Service(settings, StandIn(), make_pipe, Silence(), once=once)


def settings_for(root: Path, **tables: dict[str, Any]) -> Settings:
    """Settings of a quick daemon below `root`."""
    options: dict[str, Any] = {
        "tray": {"root": str(root / "tray"), "settle_seconds": 0.0},
        "journal": {"root": str(root / "log"), "segment_bytes": 16_384},
        "daemon": {"name": "d", "batch_size": 4, "batch_wait_seconds": 0.0, "rescan_seconds": 0.2},
    }
    for table, values in tables.items():
        options[table] = options.get(table, {}) | values
    return load(None, (), options).settings


def die_at(step: int) -> None:
    """Have this process killed at half-step `step`, counted in the thread that calls this."""
    count, thread = 0, threading.get_ident()

    def half_step() -> None:
        nonlocal count
        if threading.get_ident() == thread:
            count += 1
            if count == step:
                os.kill(os.getpid(), signal.SIGKILL)

    def wrap(owner: Any, name: str) -> None:
        real = getattr(owner, name)

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            half_step()
            result = real(*args, **kwargs)
            half_step()
            return result

        setattr(owner, name, wrapped)

    for name in CHANGES:
        wrap(os, name)
    wrap(fs, "rename_noreplace")
    wrap(fs, "sync_file_system")


def serve(root: Path, broken: str) -> None:
    """Run until SIGTERM; `broken` leaves out a step that a power cut must show to be needed, or is "polled"."""
    if broken == "no-sync":
        fs.sync_file_system = lambda _fd: None
    if broken == "no-fsync":
        journal.os = types.SimpleNamespace(**{**vars(os), "fsync": lambda _fd: None})
    logs.configure(quiet=True)
    signal.signal(signal.SIGIO, signal.SIG_IGN)
    poll = {"tray": {"poll": "always"}} if broken == "polled" else {}  # a network file system tells of nothing
    service = Service(settings_for(root, **poll), StandIn(), Slow if poll else StandIn, Deaf())
    signal.signal(signal.SIGTERM, lambda *_: service.stop())
    service.run()


def main() -> None:
    """Serve lines of stdin, `ROOT KILL_AT`, each in a fork of its own whose wait status is printed."""
    signal.signal(signal.SIGIO, signal.SIG_IGN)
    logs.configure(quiet=True)
    images.decode(pictures.picture("PNG"))  # sets the decoder up once for all forks
    for text in sys.stdin:
        root, kill_at = text.split()
        child = os.fork()
        if child == 0:
            try:
                from daemon import tray

                settings = settings_for(Path(root), tray={"poll": "always"})  # watchdog takes half a second to stop
                if int(kill_at):
                    die_at(int(kill_at))
                tray.create(settings.tray.root)
                make_service(settings).run()
                os._exit(0)
            except BaseException:
                import traceback

                traceback.print_exc()
                os._exit(1)
        print(os.waitpid(child, 0)[1], flush=True)


if __name__ == "__main__":
    serve(Path(sys.argv[1]), sys.argv[2]) if len(sys.argv) > 1 else main()
