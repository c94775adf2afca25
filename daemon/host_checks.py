"""The doctor's checks of what Moodbox stands on: disks, kernel, journal, bundle, libraries, clock.

Invariant: nothing is changed but a scratch folder beside the tray, which is removed again.
"""

import ctypes
import errno
import importlib.metadata
import os
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

from daemon import fs
from daemon.events import parse
from daemon.finding import Finding, fail, graded, ok, warn
from daemon.journal import TAIL_BYTES, is_open, owners, read, segments
from daemon.logs import printable
from daemon.mounts import mount_of
from daemon.tray import INBOX
from trainer import bundle, quiet
from trainer.bundle import BundleError
from trainer.settings import Settings

DISTRIBUTIONS = ("tensorflow", "keras", "ai-edge-litert", "watchdog", "pillow")
SAFE_TYPES = ("ext4", "xfs", "btrfs", "tmpfs", "f2fs")  # whose renames never overwrite when told not to
LITTLE, NO_BYTES = 1_000_000_000, 20_000_000
FEW, NO_INODES = 10_000, 100
INOTIFY = Path("/proc/sys/fs/inotify")
AHEAD = timedelta(minutes=1)


def check_space(settings: Settings) -> Iterator[Finding]:
    """Yield how much room is left for what is moved and written. Raises OSError."""
    for name, root in (("tray", settings.tray.root), ("journal", settings.journal.root)):
        there = os.statvfs(_nearest(root))
        free, inodes = there.f_bavail * there.f_frsize, there.f_favail if there.f_files else NO_INODES + FEW
        text = (
            f"{name}: {free / 1e9:,.1f} GB and {inodes:,} inodes free"
            if there.f_files
            else f"{free / 1e9:,.1f} GB free"
        )
        failing = free < NO_BYTES or inodes < NO_INODES
        yield graded("space", text, "make room", failing=failing, warning=free < LITTLE or inodes < FEW)


def check_file_system(settings: Settings) -> Iterator[Finding]:
    """Yield how the inbox is watched, and whether renames and locks can be trusted. Raises OSError."""
    root = _nearest(settings.tray.root)
    mount, poll = mount_of(str(root)), settings.tray.poll
    if poll == "always" or (poll == "auto" and mount.is_shared):
        yield ok("watching", f"{mount.kind}: the inbox is looked through every second (tray.poll = {poll!r})")
    else:
        if mount.is_shared:
            yield warn("watching", f"{mount.kind} does not tell of what other hosts do: set tray.poll to 'auto'")
        yield from _check_inotify(settings, mount.kind)
    yield _check_rename(settings, root, mount.kind)
    if mount.is_shared and not mount.locks_hold:
        text = f"{mount.kind} as it is mounted here: locks hold on one machine only"
        yield warn("locks", f"{text}: what a daemon on another machine left waits for that machine (docs/scaling.md)")


def _check_inotify(settings: Settings, kind: str) -> Iterator[Finding]:
    folders = 1 + sum(len(dirs) for _, dirs, _ in os.walk(settings.tray.root / INBOX))
    most, instances = (int((INOTIFY / n).read_text()) for n in ("max_user_watches", "max_user_instances"))
    text = f"{kind}, by inotify: folders in the inbox: {folders:,}, fs.inotify.max_user_watches is {most:,}"
    cure = "raise it (sysctl), or the inbox is polled"
    yield graded("watching", text, cure, failing=False, warning=folders > most // 2)
    free = _has_instance()
    text = f"fs.inotify.max_user_instances is {instances:,}{'' if free else ', and all are taken'}"
    yield graded("watching", text, cure, failing=False, warning=not free)


def _has_instance() -> bool:
    fd: int = ctypes.CDLL(None).inotify_init1(os.O_CLOEXEC)
    if fd >= 0:
        os.close(fd)
    return fd >= 0


def _check_rename(settings: Settings, root: Path, kind: str) -> Finding:
    """Try it beside the tray: only a file system that is given something to rename tells."""
    carries = "delivered names carry the id of the file"
    for beside in (root.parent if root == settings.tray.root else root, settings.journal.root, tempfile.gettempdir()):
        if (
            os.path.isdir(beside)
            and os.stat(beside).st_dev == os.stat(root).st_dev
            and os.access(beside, os.W_OK | os.X_OK)
        ):
            if _renames(Path(beside)):
                return ok("renames", f"{kind} renames without overwriting")
            return warn("renames", f"{kind} cannot promise to overwrite nothing: {carries} (a local disk needs none)")
    if kind in SAFE_TYPES:
        return ok("renames", f"{kind} renames without overwriting (told by its type)")
    return warn(
        "renames", f"{kind} was not tried, as this user may write nowhere beside the tray: it may be that {carries}"
    )


def _renames(beside: Path) -> bool:
    with tempfile.TemporaryDirectory(prefix=".moodbox-doctor-", dir=beside) as scratch:
        (Path(scratch) / "a").touch()
        folder = os.open(scratch, fs.DIRECTORY)
        try:
            fs.rename_noreplace(folder, "a", folder, "b")
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOSYS):
                raise
            return False
        finally:
            os.close(folder)
    return True


def check_journal(settings: Settings) -> Iterator[Finding]:
    """Yield whether the journal can be written and read, and who writes it. Raises OSError."""
    root = settings.journal.root
    if not os.access(_nearest(root), os.W_OK | os.X_OK, effective_ids=True):
        yield fail("journal", f"{printable(root)} cannot be written by this user: chown it to the daemon's user")
    elif not root.exists():
        yield ok("journal", f"{printable(root)} is not there yet: the first start makes it")
    for owner in owners(root):
        newest = segments(root, owner)[-1][1]
        state = "a daemon writes it" if is_open(root, owner) else "nobody writes it now"
        with newest.open("rb") as file:
            bad = sum(raw.endswith(b"\n") and parse(raw) is None for raw in file)
        text = f"{printable(newest)}: {state}{f', {bad:,} lines cannot be read' if bad else ''}"
        writable = os.access(newest, os.W_OK, effective_ids=True)
        cure = "keep it, `moodbox accounts` says what it means" if writable else "this user cannot write it: chown it"
        yield graded("journal", text, cure, failing=not writable, warning=bool(bad))
        yield from _check_clock(newest)


def _check_clock(newest: Path) -> Iterator[Finding]:
    times = [line.ts for line in read(newest, max(0, newest.stat().st_size - TAIL_BYTES))]
    now = datetime.now(UTC)
    try:
        ahead = datetime.fromisoformat(times[-1]) - now if times else timedelta()
    except (ValueError, TypeError):
        return  # no time that Moodbox wrote
    if ahead > AHEAD:
        text = f"the journal's last line is from {times[-1]}, it is {now:%Y-%m-%dT%H:%MZ} now"
        yield fail("clock", f"{text}: set the clock (timedatectl)")
    elif times:
        yield ok("clock", f"it is {now:%Y-%m-%dT%H:%MZ}, later than the journal's last line")


def check_bundle(settings: Settings) -> Iterator[Finding]:
    """Yield whether the champion loads, and scores its golden images as it should. Raises OSError."""
    try:
        if bundle.champion(settings.models.root) is None and not bundle.numbers(settings.models.root):
            yield ok("model", "none there yet: the first start installs the one that ships")
            return
        with quiet.native_stderr():
            manifest = bundle.load(settings.models.root).manifest
    except BundleError as error:
        yield fail("model", printable(error))
        return
    classes = ", ".join(manifest.class_names)
    yield ok("model", f"{manifest.number} ({manifest.architecture}; {classes}) scores its golden images as it should")


def check_versions(_settings: Settings) -> Iterator[Finding]:
    """Yield which libraries are installed."""
    found, missing = list[str](), list[str]()
    for name in DISTRIBUTIONS:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
    if missing:
        yield fail("versions", f"{', '.join(missing)} not installed: install moodbox again in this environment")
    yield ok("versions", ", ".join(found))


def _nearest(path: Path) -> Path:
    """Return the path, or the nearest folder above it that exists."""
    return next(p for p in (path, *path.parents) if p.exists())
