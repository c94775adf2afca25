"""The service with real files, inotify, journal and spool, and a stand-in for TensorFlow's pipeline."""

import contextlib
import errno
import itertools
import os
import shutil
import subprocess
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image
from structlog.testing import capture_logs

from daemon import fs, pulse, tray
from daemon import session as session_module
from daemon.events import Line
from daemon.journal import Journal, read
from daemon.service import PipelineError, Service, StuckError
from daemon.session import Session
from stand_in import Silence, StandIn, classify, make_service, settings_for
from test_crash import check, drop, everything, lines

DEADLINE = 60.0  # on a busy machine TensorFlow alone takes 20 to load


def until(condition, what: str) -> None:
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end, f"waited in vain: {what}"
        time.sleep(0.005)  # polling with a deadline


@contextlib.contextmanager
def running(service: Service):
    tray.create(service.settings.tray.root)
    failures: list[BaseException] = []

    def run() -> None:
        try:
            service.run()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        until(
            lambda: (service._session is not None and service._session.hearing._watcher) or failures,
            "the service is ready",
        )
        yield failures
    finally:
        service.stop()
        thread.join(timeout=DEADLINE)
        assert not thread.is_alive()


def picture(path: Path, shade: int = 220, mark: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (shade, shade, mark)).save(path, "PNG")
    return path


def test_once_sorts_what_is_there_and_ends(tmp_path):
    before = drop(tmp_path)
    service = make_service(settings_for(tmp_path))
    assert service.run() == {}
    check(tmp_path, before)
    assert {line["event"] for line in lines(tmp_path)} >= {"started", "stopped", "sorted", "rejected", "totals"}


def test_once_ends_with_its_last_delivery(tmp_path, monkeypatch):
    """Nothing happens after it that would wake the loop."""
    monkeypatch.setattr(session_module, "POLL_SECONDS", 3600.0)
    monkeypatch.setattr(pulse, "every", lambda is_idle: 3600.0 if is_idle else 1.0)
    tray.create(tmp_path / "tray")
    picture(tmp_path / "tray" / "inbox" / "photo.png")
    service = make_service(settings_for(tmp_path, tray={"poll": "always"}))
    thread = threading.Thread(target=service.run)
    thread.start()
    try:
        thread.join(timeout=DEADLINE)
        assert not thread.is_alive()
    finally:
        service.stop()
        thread.join()


def test_files_that_arrive_by_copy_and_by_move_are_sorted(tmp_path):
    settings = settings_for(tmp_path, daemon={"rescan_seconds": 60})
    with running(make_service(settings, once=False)):
        inbox = settings.tray.root / "inbox"
        picture(inbox / "copied.png", mark=1)
        picture(tmp_path / "outside.png", shade=20, mark=2).rename(inbox / "moved.png")
        picture(tmp_path / "trip" / "day" / "a.png", mark=3)
        (tmp_path / "trip").rename(inbox / "trip")
        tree = settings.tray.root
        expected = [tree / "happy/copied.png", tree / "sad/moved.png", tree / "happy/trip/day/a.png"]
        until(lambda: all(p.exists() for p in expected), "all three are sorted by events alone")


def test_a_stop_finishes_what_is_in_work(tmp_path):
    settings = settings_for(tmp_path)
    before = drop(tmp_path, count=9)
    service = make_service(settings, once=False)
    with running(service):
        until(lambda: service.audience.lines, "the first delivery")
    after = everything(tmp_path)
    assert set(after) == set(before)
    assert not [p for p in after.values() if p.startswith(".work/")]
    assert lines(tmp_path)[-1]["event"] == "stopped"


def test_a_file_that_somebody_still_writes_waits(tmp_path):
    settings = settings_for(tmp_path)
    inbox = settings.tray.root / "inbox"
    data = picture(tmp_path / "whole.png").read_bytes()
    with running(make_service(settings, once=False)):
        with (inbox / "slow.png").open("wb", buffering=0) as writer:
            writer.write(data[:40])
            picture(inbox / "other.png", mark=1)
            until(lambda: (settings.tray.root / "happy/other.png").exists(), "its neighbour is sorted")
            assert (inbox / "slow.png").exists()
            writer.write(data[40:])
        until(lambda: (settings.tray.root / "happy/slow.png").exists(), "it is sorted once it is whole")
    assert not any((settings.tray.root / "rejected").iterdir())


def test_two_daemons_share_a_tray_and_sort_nothing_twice(tmp_path):
    before = drop(tmp_path, count=60)
    settings = settings_for(tmp_path, daemon={"batch_size": 2})
    first, second = (make_service(settings, once=False) for _ in range(2))
    with running(first), running(second):
        until(lambda: not any(p.is_file() for p in (tmp_path / "tray/inbox").rglob("*")), "the inbox is empty")
        until(lambda: len(first.audience.lines) + len(second.audience.lines) == 61, "all are delivered")
    check(tmp_path, before)
    assert {p.name.rpartition("-")[0] for p in (tmp_path / "log").glob("*.jsonl")} == {"d", "d-2"}


def test_the_work_of_a_dead_daemon_is_taken_over_at_the_next_rescan(tmp_path):
    settings = settings_for(tmp_path)
    picture(tmp_path / "other/1-00ff.0/left.png")
    (tmp_path / "other/lock").write_bytes(os.fsencode(settings.journal.root) + b"\0")
    with running(make_service(settings, once=False)):
        work = (tmp_path / "other").rename(settings.tray.root / ".work/other")  # whole, as an owner makes its own
        until(lambda: (settings.tray.root / "happy/left.png").exists(), "the file that was left is sorted")
        until(lambda: not work.exists(), "the dead owner's directory is removed")


def test_a_full_disk_is_waited_out_and_told_once(tmp_path, monkeypatch):
    settings = settings_for(tmp_path)
    full, real = threading.Event(), fs.rename_noreplace
    full.set()

    def rename(source, name, target, new_name):
        if full.is_set() and not name.startswith("."):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(source, name, target, new_name)

    monkeypatch.setattr("daemon.backoff.FIRST", 0.01)
    monkeypatch.setattr("daemon.backoff.LONGEST", 0.05)
    service = make_service(settings, once=False)
    with capture_logs() as logs, running(service):
        monkeypatch.setattr(fs, "rename_noreplace", rename)
        picture(settings.tray.root / "inbox/a.png")
        until(lambda: service._backoff.fault, "the fault is noticed")
        assert (settings.tray.root / "inbox/a.png").exists()
        full.clear()
        until(lambda: (settings.tray.root / "happy/a.png").exists(), "it works again by itself")
    told = Counter(entry["event"] for entry in logs)
    assert told["waiting: nothing moves until this is mended"] == 1
    assert told["working again"] == 1


def test_a_failed_fsync_of_the_journal_is_not_retried_on_that_file(tmp_path, monkeypatch):
    before = drop(tmp_path)
    settings = settings_for(tmp_path)
    real, calls = os.fsync, []

    def fsync(fd):
        calls.extend([fd] if os.readlink(f"/proc/self/fd/{fd}").endswith("d-1.jsonl") else [])
        if len(calls) == 3:  # after the one at opening and that of the line `started`
            calls.append(fd)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(fd)

    monkeypatch.setattr("daemon.backoff.FIRST", 0.01)
    service = make_service(settings)
    monkeypatch.setattr("daemon.journal.os.fsync", fsync)
    service.run()
    assert len(calls) == 4, "it is not used again"
    assert (tmp_path / "log/d-2.jsonl").exists()
    check(tmp_path, before)


def test_a_tray_that_goes_away_is_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr("daemon.backoff.FIRST", 0.01)
    monkeypatch.setattr("daemon.backoff.LONGEST", 0.05)
    settings = settings_for(tmp_path)
    root = settings.tray.root
    service = make_service(settings, once=False)
    with running(service):
        root.rename(tmp_path / "unmounted")
        root.mkdir()  # the empty mount point
        until(lambda: service._session is None, "it notices")
        assert not list(root.iterdir())
        root.rmdir()
        (tmp_path / "unmounted").rename(root)
        picture(root / "inbox/a.png")
        until(lambda: (root / "happy/a.png").exists(), "it works again")


def test_a_deleted_inbox_is_made_again_and_watched(tmp_path):
    settings = settings_for(tmp_path)
    inbox = settings.tray.root / "inbox"
    service = make_service(settings, once=False)
    with running(service):
        watcher = service._session.hearing._watcher
        inbox.rmdir()
        until(lambda: service._session.hearing._watcher not in (None, watcher), "it is watched again")
        picture(inbox / "a.png")
        until(lambda: (settings.tray.root / "happy/a.png").exists(), "it is sorted")


def test_a_file_that_kills_the_process_is_rejected_and_its_mates_are_sorted(tmp_path):
    from test_crash import Daemons

    settings = settings_for(tmp_path)
    tray.create(settings.tray.root)
    inbox = settings.tray.root / "inbox"
    for index in range(3):
        picture(inbox / f"mate{index}.png", mark=index)
    poison = picture(inbox / "mate1b.png", mark=9)
    poison.write_bytes(poison.read_bytes() + b"POISON")
    daemons = Daemons()
    deaths = 0
    while daemons.run(tmp_path):
        deaths += 1
        assert deaths <= 1 + settings.daemon.max_attempts
    daemons.close()
    assert deaths == 1 + settings.daemon.max_attempts  # once in company, then alone
    assert (settings.tray.root / "rejected/mate1b.png").exists()
    assert len(list((settings.tray.root / "happy").iterdir())) == 3
    rejected = next(line for line in lines(tmp_path) if line["event"] == "rejected")
    assert rejected["error_code"] == "crashes"
    assert rejected["attempt"] == settings.daemon.max_attempts
    assert rejected["sha256"]


class Patient(StandIn):
    """Reads once, and again only when there is more to be read: how long that takes is the test's business."""

    more = threading.Event()

    def _work(self) -> None:
        while (job := self._queue.get()) is not None:
            for index, path in enumerate(job[1]):
                self._post(job[0], index, classify(path))
            assert self.more.wait(DEADLINE)


def test_what_failed_to_decode_while_young_is_looked_at_again(tmp_path, monkeypatch):
    monkeypatch.setattr(Patient, "more", threading.Event())
    settings = settings_for(tmp_path)
    root = settings.tray.root
    data = picture(tmp_path / "whole.png").read_bytes()
    service = make_service(settings, once=False, make_pipe=Patient)
    with running(service) as failures:
        (root / "inbox/late.png").write_bytes(data[:50])  # closed: no lease tells that more is to come
        until(lambda: service._session.workload.outcomes == 1, "it is claimed, and read in vain")
        with next((root / ".work").rglob("late.png")).open("ab") as writer:
            writer.write(data[50:])
        Patient.more.set()
        until(lambda: (root / "happy/late.png").exists(), "it is sorted when whole")
    assert not failures
    assert not any((root / "rejected").iterdir())


class Stuck(StandIn):
    def slowest(self, _now: float) -> tuple[float, bytes]:
        return 61.0, b"/tray/.work/d/1-a.0/long.png"


class Dead(StandIn):
    failure = "Traceback: a thread died"


@pytest.mark.parametrize(("pipe", "error"), [(Stuck, StuckError), (Dead, PipelineError)])
def test_a_stuck_or_dead_thread_ends_the_service(tmp_path, pipe, error):
    settings = settings_for(tmp_path)
    tray.create(settings.tray.root)
    with pytest.raises(error):
        Service(settings, StandIn(), pipe, Silence(), once=False).run()


def fill(ballast: Path) -> None:
    """Take all bytes and all inodes that are left."""
    ballast.mkdir()
    with (ballast / "bytes").open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"\0" * 4096)
    with contextlib.suppress(OSError):
        for number in range(10_000):
            (ballast / str(number)).touch()


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system takes root")
@pytest.mark.parametrize("place", ["tray", "log"])
def test_a_really_full_disk_loses_nothing(tmp_path, monkeypatch, place):
    monkeypatch.setattr("daemon.backoff.FIRST", 0.01)
    monkeypatch.setattr("daemon.backoff.LONGEST", 0.05)
    small = tmp_path / place
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k,nr_inodes=200", "tmpfs", str(small)], check=True)
    try:
        before = drop(tmp_path, count=20)
        inbox, hold = tmp_path / "tray/inbox", tmp_path / "tray/hold"
        inbox.rename(hold)
        service = make_service(settings_for(tmp_path), once=False)
        with running(service):
            fill(small / ".ballast")
            for path in hold.iterdir():
                path.rename(inbox / path.name)
            hold.rmdir()
            until(lambda: service._backoff.fault, "the disk is found full")
            shutil.rmtree(small / ".ballast")
            until(lambda: len(service.audience.lines) == 21, "it goes on by itself")
        check(tmp_path, before)
    finally:
        subprocess.run(["umount", "-l", str(small)], check=True)


def test_a_tray_and_its_log_that_were_moved_after_a_crash_are_recovered(tmp_path):
    from test_crash import Daemons

    old = tmp_path / "old"
    old.mkdir()
    before = drop(old)
    daemons = Daemons()
    assert daemons.run(old, 75), "the kill comes after a line and before its move"
    daemons.close()
    assert any(p.is_file() and p.name != "lock" for p in (old / "tray/.work").rglob("*"))
    old.rename(tmp_path / "new")
    make_service(settings_for(tmp_path / "new")).run()
    check(tmp_path / "new", before)


class Slow(StandIn):
    def _work(self) -> None:
        while (job := self._queue.get()) is not None:
            for index, path in enumerate(job[1]):
                time.sleep(0.01)  # a slow machine, no wait
                self._post(job[0], index, classify(path))


def test_photos_that_are_in_work_when_the_tray_goes_away_are_sorted_when_it_is_back(tmp_path, monkeypatch):
    """A renamed tray (or a lazy umount) does not make intact photos look as if they had vanished."""
    monkeypatch.setattr("daemon.backoff.FIRST", 0.01)
    monkeypatch.setattr("daemon.backoff.LONGEST", 0.05)
    before = drop(tmp_path, count=40)
    settings = settings_for(tmp_path, daemon={"rescan_seconds": 60})
    root = settings.tray.root
    service = make_service(settings, once=False, make_pipe=Slow)
    with running(service):
        until(lambda: service.audience.lines, "the first delivery")
        root.rename(tmp_path / "away")
        until(lambda: service._session is None, "it notices")
        (tmp_path / "away").rename(root)
        until(lambda: not any(p.is_file() for p in (root / "inbox").rglob("*")), "the inbox is empty")
        until(lambda: service._session and not service._session.workload.files, "all is delivered")
    assert not [line for line in lines(tmp_path) if line.get("error_code") == "vanished"]
    check(tmp_path, before)


def test_a_folder_that_takes_a_links_place_while_it_waits_is_no_file(tmp_path):
    settings = settings_for(tmp_path, tray={"poll": "always"})
    tray.create(settings.tray.root)
    inbox = settings.tray.root / "inbox"
    (inbox / "link").symlink_to("/etc/passwd")
    session = Session.open(settings, StandIn(), lambda _key, _paths: None, lambda: None)
    try:
        session.inbox.look(0.0)
        session.inbox.look(1.0)
        (inbox / "link").unlink()
        picture(inbox / "link" / "sub" / "a.png")
        claim = session.inbox.claim(2.0, session.journal.segment)
        assert claim is not None
        assert claim.batch.files == ()
        assert (inbox / "link/sub/a.png").exists()
    finally:
        session.close()


def test_a_daemon_that_stops_does_not_spin_for_what_it_will_not_take(tmp_path):
    settings = settings_for(tmp_path, daemon={"rescan_seconds": 3600})
    tray.create(settings.tray.root)
    picture(settings.tray.root / "inbox" / "a.png")
    session = Session.open(settings, StandIn(), lambda _key, _paths: None, lambda: None)
    try:
        now = time.monotonic()
        for moment in (now, now + 0.01):
            session.inbox.wake()
            session.step(moment, may_claim=False)
        assert session.inbox.waiting == 1
        assert session.next_step(now + 0.02) == now + 0.02
        assert session.next_step(now + 0.02, may_claim=False) > now + 0.02
    finally:
        session.abandon()


def test_a_journal_that_somebody_wrote_into_or_moved_is_left(tmp_path):
    log = tmp_path / "log"
    journal = Journal(log, "d", 1 << 20)
    journal.append([Line(event="started")])
    with (log / "d-1.jsonl").open("ab") as other:
        other.write(b'{"torn":')
    journal.append([Line(event="sorted", id="a", label="happy")])
    (log / "d-2.jsonl").rename(log / "moved")
    journal.append([Line(event="sorted", id="b", label="happy")])
    journal.close()
    found = [line.id for path in log.iterdir() for line in read(path) if line.event == "sorted"]
    assert sorted(found) == ["a", "b"]
    assert journal.totals.sorted == {"happy": 2}


def test_a_file_that_no_event_told_of_is_found_by_the_rescan_and_counted(tmp_path, monkeypatch):
    settings = settings_for(tmp_path)
    rare = settings_for(tmp_path, daemon={"rescan_seconds": 60})
    service = make_service(settings, once=False)
    monkeypatch.setattr(service, "event", lambda: None)  # the kernel's queue is full: no event arrives
    with running(service):
        until(lambda: service._session.inbox.is_idle, "what was there at the start is seen: it has no event either")
        picture(settings.tray.root / "inbox/quiet.png")
        until(lambda: (settings.tray.root / "happy/quiet.png").exists(), "the rescan finds it")
        until(lambda: service.totals.rescued == 1, "it is counted")
    monkeypatch.undo()
    with running(other := make_service(rare, once=False)):
        before = other.totals.rescued
        picture(settings.tray.root / "inbox/told.png")
        until(lambda: (settings.tray.root / "happy/told.png").exists(), "an event tells of it")
    assert other.totals.rescued == before


def test_a_clock_that_jumps_changes_nothing(tmp_path, monkeypatch):
    years = itertools.cycle((0, 20, -30, 400, -1))
    real = time.time_ns
    monkeypatch.setattr("daemon.workload.time.time_ns", lambda: real() + next(years) * 31_536_000 * 10**9)
    monkeypatch.setattr("daemon.journal.utc_now", lambda: f"{2026 + next(years):04d}-01-01T00:00:00.000Z")
    before = drop(tmp_path, count=12)
    make_service(settings_for(tmp_path)).run()
    check(tmp_path, before)
