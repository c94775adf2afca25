"""daemon.owner: a lock that the kernel frees, whatever the process dies of; tested with real processes."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from daemon import fs, owner
from daemon_parts import NOBODY, as_user, needs_root

HOLD = """
import os, sys
from pathlib import Path
from daemon import fs, owner
work = os.open(sys.argv[1], fs.DIRECTORY)
print(owner.acquire(work, sys.argv[2], Path(sys.argv[3])).name, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def work(tmp_path):
    (tmp_path / "work").mkdir()
    fd = os.open(tmp_path / "work", fs.DIRECTORY)
    yield fd
    os.close(fd)


@pytest.fixture
def daemon(tmp_path):
    """Start processes that hold an owner's directory."""
    running = []

    def start(name="host", log="/log"):
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(tmp_path / "work"), name, log],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        running.append(process)
        return process, process.stdout.readline().strip()

    yield start
    for process in running:
        process.kill()
        process.communicate()


def test_each_running_daemon_has_a_name_of_its_own(work, daemon):
    (first, one), (_, two) = daemon(), daemon()
    assert (one, two) == ("host", "host-2")
    mine = owner.acquire(work, "host", Path("/log"))
    assert mine.name == "host-3"
    mine.release()
    first.kill()
    first.wait()
    again = owner.acquire(work, "host", Path("/log"))
    assert again.name == "host"
    again.release()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_directory_can_be_taken_only_when_its_daemon_is_dead(work, daemon, number):
    process, name = daemon(log="/the log/here")
    assert list(owner.others(work, "me")) == [name]
    assert owner.take(work, name) is None
    process.send_signal(number)
    process.wait()
    dead = owner.take(work, name)
    assert (dead.name, dead.journal) == (name, Path("/the log/here"))
    assert owner.take(work, name) is None, "taken twice"
    owner.remove(work, dead)
    dead.release()
    assert list(owner.others(work, "me")) == []
    assert owner.take(work, name) is None


def test_a_journal_path_of_any_bytes_survives(work, tmp_path):
    log = Path(os.fsdecode(b"/lo\xffg\n/" + b"x" * 200))
    owner.acquire(work, "host", log).release()
    taken = owner.take(work, "host")
    assert taken.journal == log
    taken.release()


def test_what_another_journal_belongs_to_is_left_for_its_own_daemon(work):
    owner.acquire(work, "host", Path("/old")).release()
    mine = owner.acquire(work, "host", Path("/new"))
    assert mine.name == "host-2"
    old = owner.take(work, "host")
    assert old.journal == Path("/old")
    old.release()
    mine.release()


def test_what_is_no_owner_is_passed_over(work, tmp_path):
    (tmp_path / "work" / "file").touch()
    (tmp_path / "work" / "folder").mkdir()
    (tmp_path / "work" / "link").symlink_to("folder")
    (tmp_path / "work" / ".hidden").mkdir()
    assert list(owner.others(work, "me")) == ["file", "folder", "link"]
    assert [owner.take(work, n) for n in ("file", "folder", "link", "gone")] == [None] * 4
    mine = owner.acquire(work, "file", Path("/log"))
    assert mine.name == "file-2"
    mine.release()


def test_a_name_that_is_becoming_free_is_not_fought_over(work, tmp_path):
    """Between a recovery's unlink and its rmdir a new daemon takes the empty directory's name."""
    dead = owner.acquire(work, "host", Path("/log"))
    os.unlink("lock", dir_fd=dead.folder)
    new = owner.acquire(work, "host", Path("/log"))
    assert new.name == "host"
    owner.remove(work, dead)
    dead.release()
    assert owner.take(work, "host") is None
    assert os.listdir(tmp_path / "work" / "host") == ["lock"]
    new.release()


def test_a_lock_in_a_directory_that_was_replaced_is_worth_nothing(work, tmp_path, monkeypatch):
    owner.acquire(work, "host", Path("/log")).release()
    real = owner._lock

    def replaced_meanwhile(folder, flags):
        monkeypatch.setattr(owner, "_lock", real)
        (tmp_path / "work" / "host").rename(tmp_path / "aside")
        owner.acquire(work, "host", Path("/log")).release()
        return real(folder, flags)

    monkeypatch.setattr(owner, "_lock", replaced_meanwhile)
    assert owner.take(work, "host") is None


def test_a_directory_with_files_in_it_is_not_removed_and_stays_takeable(work, tmp_path):
    dead = owner.acquire(work, "host", Path("/log"))
    (tmp_path / "work" / "host" / "photo").touch()
    owner.remove(work, dead)
    dead.release()
    again = owner.take(work, "host")
    assert again is not None, "without its lock nobody would ever find the photo"
    again.release()


def test_a_full_disk_leaves_nothing_half_made(work, tmp_path, monkeypatch):
    def full(*_args, **_kwargs):
        raise OSError(errno.ENOSPC, "full")

    before = os.listdir("/proc/self/fd")
    for call in ("write", "fsync", "mkdir", "rename"):
        with monkeypatch.context() as patch:
            patch.setattr(os, call, full)
            with pytest.raises(OSError, match="full"):
                owner.acquire(work, "host", Path("/log"))
    assert os.listdir(tmp_path / "work") == []
    assert os.listdir("/proc/self/fd") == before


@needs_root
def test_what_another_users_daemon_left_holds_nobody_up(work, tmp_path):
    """`sudo moodbox once` beside the service leaves a directory that the service may not open."""
    owner.acquire(work, "roots", Path("/log")).release()
    os.chown(tmp_path / "work", NOBODY, NOBODY)

    def taken():
        mine = owner.acquire(work, "roots", Path("/log"))
        return owner.take(work, "roots"), mine.name

    assert as_user(NOBODY, taken) == (None, "roots-2")
