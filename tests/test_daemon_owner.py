"""daemon.owner: a lock that the kernel frees, whatever the process dies of; tested with real processes."""

import errno
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from daemon import fs, journal_folder, mounts, owner
from daemon.journal_folder import NAME, JournalFolder, identified
from daemon.mounts import Mount
from daemon_parts import NOBODY, as_user, held, needs_root

HOLD = """
import os, sys
from pathlib import Path
from daemon import fs, owner
from daemon.journal_folder import JournalFolder
work = os.open(sys.argv[1], fs.DIRECTORY)
print(owner.acquire(work, sys.argv[2], JournalFolder(Path(sys.argv[3]))).name, flush=True)
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
    mine = owner.acquire(work, "host", JournalFolder(Path("/log")))
    assert mine.name == "host-3"
    mine.release()
    first.kill()
    first.wait()
    again = owner.acquire(work, "host", JournalFolder(Path("/log")))
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
    assert (dead.name, dead.journal) == (name, JournalFolder(Path("/the log/here")))
    assert owner.take(work, name) is None, "taken twice"
    owner.remove(work, dead)
    dead.release()
    assert list(owner.others(work, "me")) == []
    assert owner.take(work, name) is None


def test_a_journal_path_of_any_bytes_survives(work, tmp_path):
    log = Path(os.fsdecode(b"/lo\xffg\n/" + b"x" * 200))
    owner.acquire(work, "host", JournalFolder(log)).release()
    taken = owner.take(work, "host")
    assert taken.journal == JournalFolder(log)
    taken.release()


def test_what_another_journal_belongs_to_is_left_for_its_own_daemon(work):
    owner.acquire(work, "host", JournalFolder(Path("/old"))).release()
    mine = owner.acquire(work, "host", JournalFolder(Path("/new")))
    assert mine.name == "host-2"
    old = owner.take(work, "host")
    assert old.journal == JournalFolder(Path("/old"))
    old.release()
    mine.release()


def test_what_is_no_owner_is_passed_over(work, tmp_path):
    (tmp_path / "work" / "file").touch()
    (tmp_path / "work" / "folder").mkdir()
    (tmp_path / "work" / "link").symlink_to("folder")
    (tmp_path / "work" / ".hidden").mkdir()
    assert list(owner.others(work, "me")) == ["file", "folder", "link"]
    assert [owner.take(work, n) for n in ("file", "folder", "link", "gone")] == [None] * 4
    mine = owner.acquire(work, "file", JournalFolder(Path("/log")))
    assert mine.name == "file-2"
    mine.release()


def test_a_name_that_is_becoming_free_is_not_fought_over(work, tmp_path):
    """Between a recovery's unlink and its rmdir a new daemon takes the empty directory's name."""
    dead = owner.acquire(work, "host", JournalFolder(Path("/log")))
    os.unlink("lock", dir_fd=dead.folder)
    new = owner.acquire(work, "host", JournalFolder(Path("/log")))
    assert new.name == "host"
    owner.remove(work, dead)
    dead.release()
    assert owner.take(work, "host") is None
    assert os.listdir(tmp_path / "work" / "host") == ["lock"]
    new.release()


def test_a_lock_in_a_directory_that_was_replaced_is_worth_nothing(work, tmp_path, monkeypatch):
    owner.acquire(work, "host", JournalFolder(Path("/log"))).release()
    real = owner._lock

    def replaced_meanwhile(folder, flags):
        monkeypatch.setattr(owner, "_lock", real)
        (tmp_path / "work" / "host").rename(tmp_path / "aside")
        owner.acquire(work, "host", JournalFolder(Path("/log"))).release()
        return real(folder, flags)

    monkeypatch.setattr(owner, "_lock", replaced_meanwhile)
    assert owner.take(work, "host") is None


def test_a_directory_with_files_in_it_is_not_removed_and_stays_takeable(work, tmp_path):
    dead = owner.acquire(work, "host", JournalFolder(Path("/log")))
    (tmp_path / "work" / "host" / "photo").touch()
    owner.remove(work, dead)
    dead.release()
    again = owner.take(work, "host")
    assert again is not None, "without its lock nobody would ever find the photo"
    again.release()


def test_a_full_disk_leaves_nothing_half_made(work, tmp_path, monkeypatch):
    def full(*_args, **_kwargs):
        raise OSError(errno.ENOSPC, "full")

    before = held(tmp_path)
    for call in ("write", "fsync", "mkdir", "rename"):
        with monkeypatch.context() as patch:
            patch.setattr(os, call, full)
            with pytest.raises(OSError, match="full"):
                owner.acquire(work, "host", JournalFolder(Path("/log")))
    assert os.listdir(tmp_path / "work") == []
    assert held(tmp_path) == before


@needs_root
def test_what_another_users_daemon_left_holds_nobody_up(work, tmp_path):
    """`sudo moodbox once` beside the service leaves a directory that the service may not open."""
    owner.acquire(work, "roots", JournalFolder(Path("/log"))).release()
    os.chown(tmp_path / "work", NOBODY, NOBODY)

    def taken():
        mine = owner.acquire(work, "roots", JournalFolder(Path("/log")))
        return owner.take(work, "roots"), mine.name

    assert as_user(NOBODY, taken) == (None, "roots-2")


# Several machines

LOCAL_LOCKS = Mount("nfs4", frozenset({"local_lock=all"}))


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Become another machine: `machine("b")`."""

    def become(name):
        (tmp_path / "machine-id").write_text(name)

    monkeypatch.setattr(journal_folder, "MACHINE_ID", tmp_path / "machine-id")
    become("a")
    return become


def test_where_locks_hold_on_one_machine_another_machines_owner_is_left_alone(work, tmp_path, machine, monkeypatch):
    monkeypatch.setattr(mounts, "mount_of", lambda _: LOCAL_LOCKS)
    owner.acquire(work, "d", identified(tmp_path)).release()  # or it lives: from here nobody can tell
    machine("b")
    with pytest.raises(owner.ElsewhereError, match=r"d may run on .* a, and .* start it there, or"):
        owner.take(work, "d")
    mine = owner.acquire(work, "d", identified(tmp_path))
    assert mine.name == "d-2"
    mine.release()
    machine("a")
    again = owner.take(work, "d")
    assert again is not None
    again.release()


def test_what_another_machine_just_makes_is_not_swept_away(work, tmp_path, machine, monkeypatch):
    monkeypatch.setattr(mounts, "mount_of", lambda _: LOCAL_LOCKS)
    owner.acquire(work, owner.HIDDEN + "x", identified(tmp_path)).release()
    machine("b")
    owner.acquire(work, "d", identified(tmp_path)).release()
    assert sorted(os.listdir(tmp_path / "work")) == [owner.HIDDEN + "x", "d"]


@pytest.mark.parametrize("mount", [Mount("ext4"), Mount("nfs4", frozenset({"local_lock=none"}))])
def test_where_locks_hold_on_all_machines_the_lock_alone_tells(mount, work, tmp_path, machine, monkeypatch):
    monkeypatch.setattr(mounts, "mount_of", lambda _: mount)
    owner.acquire(work, "d", identified(tmp_path)).release()
    assert os.listdir(tmp_path / "work" / "d") == [owner.LOCK]
    machine("b")
    taken = owner.take(work, "d")
    assert taken is not None
    taken.release()


def test_a_mount_whose_options_changed_is_believed(work, tmp_path, machine, monkeypatch):
    monkeypatch.setattr(mounts, "mount_of", lambda _: LOCAL_LOCKS)
    owner.acquire(work, "d", identified(tmp_path)).release()
    machine("b")
    monkeypatch.setattr(mounts, "mount_of", lambda _: Mount("nfs4"))
    taken = owner.take(work, "d")
    assert taken is not None
    taken.release()


def test_a_journals_folder_keeps_its_identity_when_it_is_moved(tmp_path):
    made = identified(tmp_path / "log")
    assert identified(tmp_path / "log") == made
    (tmp_path / "log").rename(tmp_path / "moved")
    assert identified(tmp_path / "moved").ident == made.ident
    assert not made.is_there
    other = identified(tmp_path / "log")  # of the same path, and another one: as on another machine
    assert other.path == made.path
    assert not made.is_there
    assert other.is_there


def test_half_an_identity_is_none(tmp_path):
    made = identified(tmp_path)
    (tmp_path / NAME).write_text(made.ident[:7])
    assert made.is_there, "what cannot be told is no reason to refuse"
    assert len(identified(tmp_path).ident) == len(made.ident)


def test_a_journal_that_was_deleted_on_this_machine_is_followed_by_the_next_of_its_name(work, tmp_path):
    owner.acquire(work, "d", identified(tmp_path)).release()
    (tmp_path / NAME).unlink()
    again = identified(tmp_path)
    mine = owner.acquire(work, "d", again)
    assert (mine.name, mine.journal) == ("d", again)
    mine.release()


def test_an_owner_of_the_same_path_on_another_machine_keeps_its_name(work, tmp_path):
    theirs = JournalFolder(tmp_path, "a" * 32, "attic")
    owner.acquire(work, "d", theirs).release()
    mine = owner.acquire(work, "d", identified(tmp_path))
    assert mine.name == "d-2"
    assert dict(owner.journals(work))["d"] == theirs
    assert theirs.is_another(mine.journal)
    mine.release()


def test_one_journal_that_two_machines_mount_in_two_places_is_one(work, tmp_path):
    mine = identified(tmp_path)
    owner.acquire(work, "d", JournalFolder(tmp_path / "elsewhere", mine.ident, "attic")).release()
    taken = owner.acquire(work, "d", mine)
    assert (taken.name, taken.journal) == ("d", mine)
    taken.release()


def test_a_copy_of_a_journal_is_another_one_on_the_same_machine(work, tmp_path):
    first = identified(tmp_path / "log")
    shutil.copytree(tmp_path / "log", tmp_path / "log2")
    copy = identified(tmp_path / "log2")
    assert copy.ident == first.ident
    assert copy.is_another(first)
    owner.acquire(work, "d", first).release()
    mine = owner.acquire(work, "d", copy)
    assert mine.name == "d-2"
    mine.release()


def test_a_lock_that_is_taken_over_tells_its_journal_anew(work, tmp_path):
    """An identity that was lost, or an earlier version that had none: all machines agree again after a restart."""
    (tmp_path / "work" / "d").mkdir()
    (tmp_path / "work" / "d" / owner.LOCK).write_bytes(os.fsencode(tmp_path) + b"\0")
    for _ in range(2):
        journal = identified(tmp_path)
        owner.acquire(work, "d", journal).release()
        assert dict(owner.journals(work))["d"] == journal
        (tmp_path / NAME).unlink()


def test_the_lock_of_an_earlier_version_names_no_identity(work, tmp_path):
    (tmp_path / "work" / "d").mkdir()
    (tmp_path / "work" / "d" / owner.LOCK).write_bytes(os.fsencode(tmp_path) + b"\0")
    mine = owner.acquire(work, "d", identified(tmp_path))
    assert mine.name == "d"
    mine.release()


@needs_root
def test_a_journal_that_root_began_can_be_gone_on_with_by_the_services_user(tmp_path, monkeypatch):
    before = os.umask(0o077)
    try:
        made = identified(tmp_path / "log")
    finally:
        os.umask(before)
    (tmp_path / "log").chmod(0o755)
    monkeypatch.chdir(tmp_path / "log")  # to where tmp_path itself lets nobody
    assert as_user(NOBODY, lambda: identified(Path())).ident == made.ident
