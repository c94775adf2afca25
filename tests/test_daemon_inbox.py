"""daemon.inbox: finding, settling and claiming together; what cannot be taken waits without holding anything up."""

import errno
import os

import pytest

from daemon import fs
from daemon.inbox import EMPTY_SECONDS, Inbox
from daemon.intake import Intake
from daemon.watcher import Scanner
from daemon_parts import NOBODY, as_user, house, needs_root

RETRY = 30.0
PACE = {"batch_size": 4, "settle_seconds": 0.5, "wait_seconds": 0.1}


@pytest.fixture
def home(tmp_path):
    with house(tmp_path) as made:
        yield made


def inbox_of(home, scanner=None, **options):
    options = PACE | options
    return Inbox(home.fd, home.spool, scanner or Scanner((".*",)), Intake(**options), RETRY)


def run(inbox, now, until):
    """Do what the service does, jumping from one moment to the next at which something is due."""
    claims = []
    while now <= until:
        inbox.look(now)
        while (claim := inbox.claim(now, 1)) is not None:
            claims.append(claim)
        due = inbox.next_look(now)
        if due is None:
            break
        now = max(due, now + 0.001)
    return claims


def claimed(claims):
    return sorted(c.file for claim in claims for c in claim.batch.files)


def test_what_is_dropped_is_claimed_when_it_has_settled(home):
    home.drop({"a.jpg": b"a", "sub/b.jpg": b"b", ".hidden": b"x"})
    inbox = inbox_of(home)
    assert not inbox.is_idle
    assert run(inbox, 100.0, 100.55) == []
    assert inbox.waiting == 2
    (claim,) = run(inbox, 100.6, 101)
    assert claimed([claim]) == ["a.jpg", "sub/b.jpg"]
    assert all(500 <= c.queued_ms <= 700 for c in claim.batch.files)
    assert inbox.is_idle
    assert inbox.next_look(101) is None
    assert set(os.listdir(home.root / "inbox")) == {"sub", ".hidden"}


def test_nothing_is_looked_for_until_something_wakes(home):
    inbox = inbox_of(home)
    run(inbox, 0.0, 1.0)
    home.drop({"a.jpg": b"a"})
    assert run(inbox, 1.0, 5.0) == []
    inbox.wake()
    assert claimed(run(inbox, 5.0, 7.0)) == ["a.jpg"]


def test_a_file_that_grows_is_not_claimed(home):
    home.drop({"a.jpg": b"a", "b.jpg": b"b"})
    inbox = inbox_of(home)
    for step in range(5):
        with open(home.root / "inbox" / "a.jpg", "ab") as file:
            file.write(b"more")
        assert "a.jpg" not in claimed(run(inbox, step * 0.4, step * 0.4 + 0.39))
    assert claimed(run(inbox, 2.0, 4.0)) == ["a.jpg"]


def test_a_file_that_changed_after_it_settled_is_not_claimed(home):
    """While there is no room for another batch, a settled file may wait for long."""
    home.drop({"a.jpg": b"a"})
    inbox = inbox_of(home)
    inbox.look(0.0)
    inbox.look(0.5)
    with open(home.root / "inbox" / "a.jpg", "ab") as file:
        file.write(b"more")
    assert inbox.claim(60.0, 1) is None
    assert claimed(run(inbox, 60.0, 60.4)) == []
    assert claimed(run(inbox, 60.5, 62.0)) == ["a.jpg"]


def test_a_file_that_is_held_open_waits_and_the_others_do_not(home):
    home.drop({"a.jpg": b"a", "b.jpg": b"b"})
    inbox = inbox_of(home)
    with open(home.root / "inbox" / "a.jpg", "ab"):
        assert claimed(run(inbox, 0.0, 3.0)) == ["b.jpg"]
    assert claimed(run(inbox, 3.0, 5.0)) == ["a.jpg"]


def test_a_folder_in_a_files_place_is_never_claimed_as_a_whole(home):
    home.drop({"a": b"a"})
    inbox = inbox_of(home)
    inbox.look(0.0)
    (home.root / "inbox" / "a").unlink()
    home.drop({"a/b.jpg": b"b"})
    run(inbox, 0.5, 2.0)
    inbox.wake()
    assert claimed(run(inbox, 2.0, 4.0)) == ["a/b.jpg"]


def test_a_million_files_do_not_fit_in_memory_and_all_are_claimed(home):
    home.drop({f"{n}.jpg": b"" for n in range(45)})
    inbox = inbox_of(home, capacity=10)
    claims = run(inbox, 0.0, 60.0)
    assert len(claimed(claims)) == 45
    assert max(len(c.batch.files) for c in claims) == 4
    assert inbox.is_idle


@pytest.mark.parametrize("seam", ["mkdir", "rename"])
def test_what_a_full_disk_kept_from_being_claimed_is_claimed_later(home, monkeypatch, seam):
    """`once` must not take the inbox for empty."""
    home.drop({"a.jpg": b"a", "b.jpg": b"b"})
    inbox = inbox_of(home)
    inbox.look(0.0)
    inbox.look(0.5)

    def full(*_args, **_kwargs):
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as patch:
        patch.setattr(*{"mkdir": (os, "mkdir", full), "rename": (fs, "rename_noreplace", full)}[seam])
        claim = inbox.claim(1.0, 1)
    assert claim.fault.errno == errno.ENOSPC
    assert not inbox.is_idle
    assert claimed(run(inbox, 2.0, 4.0)) == ["a.jpg", "b.jpg"]


def test_a_fault_during_a_scan_does_not_hide_the_rest(home, monkeypatch):
    home.drop({f"{n}/a.jpg": b"" for n in range(3)})
    inbox = inbox_of(home)
    real, calls = os.scandir, []

    def fail_once(fd):
        calls.append(fd)
        if len(calls) == 1:
            raise OSError(errno.EIO, "disk")
        return real(fd)

    monkeypatch.setattr(os, "scandir", fail_once)
    with pytest.raises(OSError, match="disk"):
        inbox.look(0.0)
    assert not inbox.is_idle
    assert len(claimed(run(inbox, 1.0, 3.0))) == 3


def test_a_file_that_is_dropped_twice_is_claimed_twice(home, monkeypatch):
    """The name is used again between the scan and the claim of the first one: none of the two is lost."""
    home.drop({"a.jpg": b"first"})
    inbox = inbox_of(home)
    (first,) = run(inbox, 0.0, 1.0)
    home.drop({"a.jpg": b"second"})
    inbox.wake()
    (second,) = run(inbox, 1.0, 3.0)
    assert sorted(home.files().values()) == [b"first", b"second"]
    assert first.batch.name != second.batch.name


@needs_root
def test_what_may_not_be_read_or_moved_waits_is_named_and_is_tried_again(home):
    home.drop({"mine.jpg": b"m", "private.jpg": b"p", "roots/a.jpg": b"a"})
    tray_inbox = home.root / "inbox"
    for path in (home.root, *home.root.rglob("*")):
        os.chown(path, NOBODY, NOBODY)
    for name in ("private.jpg", "roots"):
        os.chown(tray_inbox / name, 0, 0)
    (tray_inbox / "private.jpg").chmod(0o600)
    (tray_inbox / "roots").chmod(0o755)
    inbox = inbox_of(home)

    def first():
        claims = run(inbox, 0.0, 2.0)
        assert inbox.is_idle, "once would never end"
        inbox.wake()
        assert run(inbox, 2.0, 4.0) == [], "tried again too early"
        return claimed(claims), set(inbox.blocked)

    assert as_user(NOBODY, first) == (["mine.jpg"], {"private.jpg", "roots/a.jpg"})

    def later():
        run(inbox, 0.0, 2.0)
        os.seteuid(0)
        os.chown(tray_inbox / "private.jpg", NOBODY, NOBODY)
        os.seteuid(NOBODY)
        inbox.wake()
        claims = run(inbox, 40.0, 42.0)
        return claimed(claims), set(inbox.blocked)

    def as_nobody():
        os.setegid(NOBODY)
        os.seteuid(NOBODY)
        return later()

    assert as_user(0, as_nobody) == (["private.jpg"], {"roots/a.jpg"})


def private(home, count, uid):
    """Drop files of which only `mine.jpg` may be read by another user."""
    home.drop({f"{number}.jpg": b"x" for number in range(count)} | {"mine.jpg": b"m"})
    for path in (home.root, *home.root.rglob("*")):
        os.chown(path, uid, uid)
    for number in range(count):
        os.chown(home.root / "inbox" / f"{number}.jpg", 0, 0)
        (home.root / "inbox" / f"{number}.jpg").chmod(0o600)


@needs_root
def test_what_may_not_be_read_is_told_once_and_is_no_rescue_however_often_it_is_tried(home):
    private(home, 20, NOBODY)
    inbox = inbox_of(home)

    def minutes():
        run(inbox, 0.0, 2.0)
        first, later = inbox.take_blocked(), {}
        inbox.take_rescued()
        for now in range(31, 600, 31):
            inbox.wake(by_event=False)
            run(inbox, float(now), now + 2.0)
            later |= inbox.take_blocked()
        return len(first), later, inbox.take_rescued(), len(inbox.blocked)

    assert as_user(NOBODY, minutes) == (20, {}, 0, 20)


@needs_root
def test_what_may_not_be_read_holds_up_nothing_that_may(home):
    private(home, 40, NOBODY)
    inbox = inbox_of(home)

    def first_claim():
        for now in (0.0, 0.6):
            inbox.wake()
            inbox.look(now)
        return claimed([inbox.claim(0.6, 1, at_once=True)])

    assert as_user(NOBODY, first_claim) == ["mine.jpg"]


@pytest.mark.parametrize("end", [Inbox.close, lambda inbox: inbox.follow(Scanner(()), RETRY, **PACE)])
def test_a_pass_that_has_not_ended_holds_no_folder_when_it_is_given_up(home, end):
    home.drop({f"deep/er/{number}.jpg": b"x" for number in range(20)})
    inbox = inbox_of(home, capacity=4)
    before = len(os.listdir("/proc/self/fd"))
    inbox.look(0.0)
    assert len(os.listdir("/proc/self/fd")) > before
    end(inbox)
    assert len(os.listdir("/proc/self/fd")) == before


def test_folders_that_have_been_empty_for_an_hour_are_removed(home):
    (home.root / "inbox" / "old" / "inner").mkdir(parents=True)
    (home.root / "inbox" / "used").mkdir()
    inbox = inbox_of(home)
    run(inbox, 0.0, 1.0)
    home.drop({"used/.keep": b""})
    for now in (10.0, EMPTY_SECONDS - 1):
        inbox.wake()
        run(inbox, now, now + 0.5)
    assert (home.root / "inbox" / "old" / "inner").is_dir()
    inbox.wake()
    run(inbox, EMPTY_SECONDS, EMPTY_SECONDS)
    assert sorted(os.listdir(home.root / "inbox")) == ["old", "used"]
    for now in (EMPTY_SECONDS + 1, 2 * EMPTY_SECONDS + 2):
        inbox.wake()
        run(inbox, now, now)
    assert os.listdir(home.root / "inbox") == ["used"]
