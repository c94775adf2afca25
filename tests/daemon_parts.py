"""What the tests of the daemon's parts share: a real tray with an owner, files with any name, and other users."""

import contextlib
import ctypes
import os
import pickle
import re
import time
import traceback
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from daemon import fs, owner, tray
from daemon.delivery import Review
from daemon.events import DECISIONS
from daemon.inspection import Limits, Outcome, inspect
from daemon.journal import Journal, read, segments
from daemon.journal_folder import identified
from daemon.spool import Spool
from daemon.workload import Rules, Workload
from trainer.views import Eye

NOBODY = 65534
PR_SET_DUMPABLE = 4
CLASSES = ("happy", "sad")
LIMITS = Limits(10_000_000, 1_000_000)
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another user")


def wait_for(condition, seconds=30.0):
    """Poll until the condition holds, and fail where it never does."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)
    return found


def as_user(uid, function):
    """Return what `function()` returns in a child process of that user, or fail with its traceback."""
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # numpy's threads do not run here
        child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setgid(uid)
            os.setuid(uid)
            ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 1)  # as exec does; else /proc/self belongs to root still
            answer = (True, function())
        except BaseException:
            answer = (False, traceback.format_exc())
        os.write(writing, pickle.dumps(answer))
        os._exit(0)
    os.close(writing)
    with open(reading, "rb") as file:
        is_good, result = pickle.loads(file.read())
    os.waitpid(child, 0)
    assert is_good, result
    return result


def lay(folder, files):
    """Write files: relative path (str, as Python decodes names) to bytes."""
    for name, data in files.items():
        path = os.path.join(folder, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "xb") as file:
            file.write(data)


def files_in(folder):
    """Return every file below a folder, links included: path → bytes (for a link, where it points)."""
    found = {}
    for top, dirs, names in os.walk(folder):
        for name in (*names, *(d for d in dirs if os.path.islink(os.path.join(top, d)))):
            path = os.path.join(top, name)
            relative = os.path.relpath(path, folder)
            if relative == tray.MARKER or re.fullmatch(r"\.work/[^/]+/lock", relative):
                continue
            if os.path.islink(path):
                found[relative] = os.fsencode(os.readlink(path))
            elif os.path.isfile(path):
                found[relative] = Path(path).read_bytes()
    return found


def held(folder):
    """Return what this process holds open in or below a folder: threads of other tests may open others meanwhile."""
    found = []
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            found.append((int(fd), os.readlink(f"/proc/self/fd/{fd}")))
    return sorted((fd, path) for fd, path in found if path.startswith(str(folder)))


class Decider:
    """Bright is happy, dark is sad."""

    number, classes, threshold = 7, CLASSES, 0.5

    def decide(self, scores):
        index = int(scores[1] >= self.threshold)
        return self.classes[index], scores[index]


def classify(path):
    report, picture = inspect(path, Eye(8), LIMITS)
    if picture is None:
        return Outcome(report)
    bright = float(picture.pixels.mean() / 255)
    return Outcome(report, (bright, 1 - bright), 0.1)


@dataclass
class House:
    """A tray that one owner holds, with its journal; `close` frees the locks as the end of a process does."""

    base: Path
    name: str = "d"
    segment_bytes: int = 1 << 20
    workload: Workload | None = None
    submitted: list = field(default_factory=list)

    def __post_init__(self):
        self.root, self.log = self.base / "tray", self.base / "log"
        tray.create(self.root)
        self.fd = tray.open_tray(self.root)
        tray.check_folders(self.fd, CLASSES)
        self.work = fs.open_folder(self.fd, (tray.WORK,))
        self.own = owner.acquire(self.work, self.name, identified(self.log))
        self.journal = Journal(self.log, self.own.name, self.segment_bytes)
        self.spool = Spool(self.fd, self.own.folder)

    def close(self):
        self.journal.close()
        self.own.release()
        os.close(self.work)
        os.close(self.fd)

    def drop(self, files):
        lay(self.root / "inbox", files)

    def claim(self, *files):
        return self.spool.claim(files, self.journal.segment, {}).batch

    def files(self):
        return files_in(self.root)

    def lines(self, name=None):
        return [line for _, path in segments(self.log, name or self.own.name) for line in read(path)]

    def decisions(self, name=None):
        return [line for line in self.lines(name) if line.event in DECISIONS]

    def start_workload(self, submit=None, **rules):
        """Make a workload whose pipeline is `submit(key, paths)`; by default it classifies at once."""
        options = {"limits": LIMITS, "max_attempts": 3, "review": Review(), "retry_seconds": 30.0} | rules

        def classify_all(key, paths):
            self.submitted.append((key, list(paths)))
            for index, path in enumerate(paths):
                self.workload.post(key, index, classify(path))

        self.workload = Workload(
            self.spool, self.journal, self.own.folder, Decider(), submit or classify_all, Rules(**options)
        )
        return self.workload


@contextlib.contextmanager
def house(base, **options):
    made = House(Path(base), **options)
    try:
        yield made
    finally:
        made.close()
