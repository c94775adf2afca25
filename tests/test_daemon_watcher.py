"""daemon.watcher: events wake, and come from a real kernel; the scan finds everything, a piece at a time."""

import json
import os
import shutil
import subprocess
import sys
import threading
from time import monotonic as clock

import pytest
from structlog.testing import capture_logs

from daemon import fs
from daemon import watcher as watcher_module
from daemon.hearing import Hearing
from daemon.watcher import MAX_DEPTH, MAX_PATH, Scanner, Watcher
from daemon_parts import NOBODY, as_user, held, lay, needs_root, wait_for


@pytest.fixture
def tray(tmp_path):
    (tmp_path / "inbox").mkdir()
    fd = os.open(tmp_path, fs.DIRECTORY)
    yield fd
    os.close(fd)


@pytest.fixture
def inbox(tmp_path, tray):
    return tmp_path / "inbox"


@pytest.fixture
def woken(inbox):
    """A watcher on the inbox, and the event that it sets."""
    event = threading.Event()
    watcher = Watcher(str(inbox), event.set)
    yield watcher, event
    watcher.stop()


@pytest.fixture
def heard(woken, monkeypatch):
    """What the watcher hears of: path to when first (monotonic seconds)."""
    times = {}
    monkeypatch.setattr(watcher_module._Waker, "on_any_event", lambda _, e: times.setdefault(e.src_path, clock()))
    return times


def scan(tray, scanner=None, count=100_000, known=()):
    return sorted(s.file for s in (scanner or Scanner(())).scan(tray, count, lambda f: f in known))


# Events

HAPPENINGS = {
    "a copy": lambda inbox: (inbox / "new.jpg").write_bytes(b"x"),
    "a move into the inbox": lambda inbox: (inbox.parent / "outside.jpg").rename(inbox / "new.jpg"),
    "a hard link": lambda inbox: os.link(inbox.parent / "outside.jpg", inbox / "new.jpg"),
    "a symbolic link": lambda inbox: (inbox / "new.jpg").symlink_to("nowhere"),
    "a rename within": lambda inbox: (inbox / "old.jpg").rename(inbox / "new.jpg"),
    "more bytes": lambda inbox: (inbox / "old.jpg").open("ab").close(),
    "a file in a subfolder": lambda inbox: (inbox / "sub" / "new.jpg").write_bytes(b"x"),
    "a new folder": lambda inbox: (inbox / "folder").mkdir(),
    "a folder that is moved in": lambda inbox: (inbox.parent / "folder").rename(inbox / "folder"),
}


@pytest.mark.parametrize("what", HAPPENINGS)
def test_what_happens_in_the_inbox_wakes(inbox, what):
    lay(inbox, {"old.jpg": b"o", "sub/old.jpg": b"o"})
    lay(inbox.parent, {"outside.jpg": b"x", "folder/new.jpg": b"x"})
    event = threading.Event()
    watcher = Watcher(str(inbox), event.set)
    try:
        HAPPENINGS[what](inbox)
        assert event.wait(30), "nothing woke"
    finally:
        watcher.stop()


def test_reading_is_not_even_heard_of(inbox, heard):
    """The settle check opens every file itself: waking on that would never end."""

    def catch_up(name):
        """Make a file, and wait until that is told of: things are told in the order in which they happen."""
        (inbox / name).touch()
        wait_for(lambda: str(inbox / name) in heard)

    lay(inbox, {"photo.jpg": b"x"})
    catch_up("first.jpg")
    assert str(inbox / "photo.jpg") in heard
    heard.clear()
    for _ in range(50):
        (inbox / "photo.jpg").read_bytes()
        os.listdir(inbox)
    (inbox.parent / "elsewhere").touch()
    catch_up("last.jpg")
    assert set(heard) <= {str(inbox / "first.jpg"), str(inbox / "last.jpg")}


def test_a_file_that_leaves_holds_no_event_back(inbox, heard):
    """watchdog would hold back all that comes after a claim for half a second, to pair both ends of a rename."""
    waits = []
    for number in range(5):
        old, new = inbox / f"old{number}.jpg", inbox / f"new{number}.jpg"
        old.touch()
        wait_for(lambda old=old: str(old) in heard)
        old.rename(inbox.parent / "claimed.jpg")
        made = clock()
        new.touch()
        wait_for(lambda new=new: str(new) in heard)
        waits.append(heard[str(new)] - made)
    assert min(waits) < 0.5, "each was held back"


def test_a_folder_that_moves_about_stays_watched(inbox, woken, heard):
    """Both ends of its move are heard of apart, also where a person takes it out and puts it back."""
    folder = inbox / "trip"
    (folder / "day").mkdir(parents=True)
    wait_for(lambda: str(folder / "day") in heard)
    for place in (inbox / "renamed", inbox.parent / "outside", inbox / "back"):
        folder = folder.rename(place)
    for number in range(20):
        folder = folder.rename(inbox / f"again{number}")
    folder.rename(inbox / "back")
    (inbox / "back" / "day" / "new.jpg").touch()
    wait_for(lambda: str(inbox / "back" / "day" / "new.jpg") in heard)
    assert woken[0].is_alive()


def test_a_folder_that_left_is_heard_no_more_and_another_of_its_name_does_no_harm(inbox, woken, heard):
    """A file manager's bin does that: watchdog's own bookkeeping fails, its thread ends, and nothing is heard."""
    folder, outside = inbox / "trip", inbox.parent / "outside"
    (folder / "day").mkdir(parents=True)
    wait_for(lambda: str(folder / "day") in heard)
    folder.rename(outside)
    (folder / "day").mkdir(parents=True)
    shutil.rmtree(folder)
    (outside / "day" / "photo.jpg").touch()
    shutil.rmtree(outside)
    (inbox / "new.jpg").touch()
    wait_for(lambda: str(inbox / "new.jpg") in heard)
    assert not [path for path in heard if path.endswith("photo.jpg")]
    assert woken[0].is_alive()


@pytest.mark.filterwarnings("ignore:Callback with id:RuntimeWarning")  # pytest puts back what the watcher hushes
def test_a_folder_that_is_moved_into_a_new_one_before_that_is_watched_stays_heard(inbox, woken, heard):
    """The walk through the new one finds it, and gets its old watch: what tells of the move comes later."""
    (inbox / "trip" / "day").mkdir(parents=True)
    wait_for(lambda: str(inbox / "trip" / "day") in heard)
    (emitter,) = woken[0]._observer.emitters
    with emitter.watches._lock:
        (inbox / "new").mkdir()
        (inbox / "trip").rename(inbox / "new" / "trip")
    wait_for(lambda: str(inbox / "new") in heard)
    for folder in (inbox / "new" / "trip", inbox / "new" / "trip" / "day"):
        (folder / "photo.jpg").touch()
        wait_for(lambda folder=folder: str(folder / "photo.jpg") in heard)


@needs_root
def test_a_folder_is_heard_from_the_moment_on_at_which_it_may_be_read(inbox):
    shut = inbox / "shut"
    shut.mkdir()
    for folder in inbox.parents:
        folder.chmod(folder.stat().st_mode | 0o5)
    os.chown(inbox, NOBODY, NOBODY)
    shut.chmod(0o700)
    asking, asked = os.pipe()
    going, go_on = os.pipe()

    def listen():
        paths = set()
        watcher_module._Waker.on_any_event = lambda _, event: paths.add(event.src_path)
        watcher = Watcher(str(inbox), lambda: None)
        os.write(asked, b".")
        os.read(going, 1)
        wait_for(lambda: str(shut) in paths)
        os.write(asked, b".")
        wait_for(lambda: str(shut / "photo.jpg") in paths)
        watcher.stop()
        return True

    def person():
        os.read(asking, 1)
        shut.chmod(0o755)
        os.write(go_on, b".")
        os.read(asking, 1)
        (shut / "photo.jpg").touch()

    thread = threading.Thread(target=person)
    thread.start()
    try:
        assert as_user(NOBODY, listen)
    finally:
        os.write(asked, b"..")
        thread.join()
        for fd in (asking, asked, going, go_on):
            os.close(fd)


def test_a_long_upload_wakes_nobody_until_it_is_done(inbox, heard):
    path = inbox / ".upload.part"
    with open(path, "wb", buffering=0) as file:
        wait_for(lambda: str(path) in heard)
        heard.clear()
        file.writelines(b"a piece" for _ in range(50))
        (inbox / "another.jpg").touch()
        wait_for(lambda: str(inbox / "another.jpg") in heard)
        assert str(path) not in heard
    wait_for(lambda: str(path) in heard)


def test_deleting_the_inbox_is_noticed(inbox, woken):
    watcher, _ = woken
    assert watcher.is_alive()
    shutil.rmtree(inbox)
    wait_for(lambda: not watcher.is_alive())
    inbox.mkdir()
    wait_for(lambda: not watcher.is_alive())  # the new folder may have the old one's inode: its emitter ends soon


def test_another_folder_under_the_inboxs_name_is_noticed(inbox, woken):
    watcher, _ = woken
    inbox.rename(inbox.with_name("old"))
    assert not watcher.is_alive()
    inbox.mkdir()
    assert not watcher.is_alive()


def test_a_handler_that_raises_is_noticed(inbox, recwarn):
    def fail():
        raise SystemExit  # ends the thread without a report

    watcher = Watcher(str(inbox), fail)
    (inbox / "photo.jpg").touch()
    wait_for(lambda: not watcher.is_alive())
    watcher.stop()


LIMITED = """
import json, os, sys
sys.path[:] = json.loads(sys.argv[2])
from daemon.watcher import Watcher

def inotify_descriptors():
    links = (f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd"))
    return [link for link in links if os.path.lexists(link) and "inotify" in os.readlink(link)]

try:
    watcher = Watcher(sys.argv[1], id)
    print(watcher.is_alive(), watcher.is_full)
    watcher.stop()
except OSError:
    for _ in range(5):
        try:
            Watcher(sys.argv[1], print)
        except OSError as error:
            print(error.errno, len(inotify_descriptors()))
"""


@needs_root
@pytest.mark.parametrize(("watches", "said"), [(0, "28 0\n" * 5), (4, "True True\n"), (9, "True False\n")])
def test_without_watches_to_spare_it_says_so(inbox, watches, said):
    lay(inbox, {f"{number}/photo.jpg": b"" for number in range(8)})
    script = f'echo {watches} > /proc/sys/user/max_inotify_watches || exit 77; exec "$@"'
    command = ["unshare", "--user", "--map-root-user", "sh", "-c", script, "sh", sys.executable, "-c", LIMITED]
    ran = subprocess.run(
        [*command, str(inbox), json.dumps(sys.path)], capture_output=True, text=True, check=False, timeout=60
    )
    if ran.returncode in (77, 1) and "Errno" not in ran.stdout and not ran.stdout:
        pytest.skip(f"no user namespaces here: {ran.stderr[-200:]}")
    assert ran.stdout == said, ran.stderr


def test_where_folders_get_no_watch_the_inbox_is_polled_and_that_is_told_once(inbox, tray, monkeypatch):
    hearing = Hearing(inbox.parent, lambda: None)
    assert not hearing.is_whole
    hearing.mend(tray, "never")
    assert hearing.is_whole
    monkeypatch.setattr(Watcher, "is_full", True)
    with capture_logs() as logs:
        hearing.mend(tray, "never")
        hearing.mend(tray, "never")
        assert not hearing.is_whole
        watcher, hearing._retry_at = hearing._watcher, 0.0
        hearing.mend(tray, "never")
        assert hearing._watcher is not watcher, "somebody may have raised the limit"
        monkeypatch.setattr(Watcher, "is_full", False)
        hearing.mend(tray, "never")
        assert hearing.is_whole
    assert [entry["event"] for entry in logs] == ["the inbox is polled"]
    hearing.stop()


# The scan


def test_everything_is_found_whatever_it_is(tray, inbox):
    names = [os.fsdecode(n) for n in (b"\xff.jpg", b"a\nb", b"-rf", b"sub/deep/c.jpg", b"x" * 255)]
    lay(inbox, dict.fromkeys(names, b"123"))
    os.mkfifo(inbox / "pipe")
    (inbox / "link").symlink_to("sub")
    (inbox / "dangling").symlink_to("nowhere")
    found = {s.file: s for s in Scanner(()).scan(tray, 100, lambda _: False)}
    assert set(found) == {*names, "pipe", "link", "dangling"}
    assert {n: found[n].kind for n in ("pipe", "link", "-rf")} == {"pipe": "fifo", "link": "symlink", "-rf": "file"}
    st = (inbox / "-rf").stat()
    assert (found["-rf"].size, found["-rf"].mtime_ns, found["-rf"].inode) == (3, st.st_mtime_ns, st.st_ino)


def test_what_is_ignored_is_ignored_whatever_its_case(tray, inbox):
    lay(inbox, dict.fromkeys(["a.jpg", "B.PART", ".hidden", "thumbs.db", "@eaDir/a.jpg", "part", "x.part\n"], b""))
    scanner = Scanner((".*", "*.part", "Thumbs.db", "@eaDir"))
    assert scan(tray, scanner) == ["a.jpg", "part", "x.part\n"]
    assert scan(tray) == sorted(["a.jpg", "B.PART", ".hidden", "thumbs.db", "@eaDir/a.jpg", "part", "x.part\n"])


def test_a_scan_goes_on_where_it_stopped_and_finds_each_file_once(tray, inbox):
    files = [f"{n % 7}/{n % 3}/{n}.jpg" for n in range(100)]
    lay(inbox, dict.fromkeys(files, b""))
    scanner, found = Scanner(()), []
    for _ in range(11):
        found += [s.file for s in scanner.scan(tray, 10, lambda _: False)]
    assert sorted(found) == sorted(files)
    assert not scanner.in_pass


def test_known_files_are_not_counted(tray, inbox):
    lay(inbox, {f"{n}.jpg": b"" for n in range(50)})
    known = {f"{n}.jpg" for n in range(50) if n % 10}
    assert scan(tray, count=5, known=known) == ["0.jpg", "10.jpg", "20.jpg", "30.jpg", "40.jpg"]


def test_what_vanishes_during_a_scan_is_no_fault(tray, inbox):
    files = [f"{n}/a.jpg" for n in range(20)]
    lay(inbox, dict.fromkeys(files, b""))
    scanner = Scanner(())
    first = next(iter(scanner.scan(tray, 1, lambda _: False))).file
    for n in range(20):
        shutil.rmtree(inbox / str(n))
    assert scan(tray, scanner) in ([], [first])
    assert not scanner.in_pass


def test_a_scan_holds_no_descriptors_when_it_ends_or_is_given_up(tray, inbox):
    lay(inbox, {"a/b/c/1.jpg": b"", "a/b/c/2.jpg": b""})
    before = held(inbox)
    scanner = Scanner(())
    scan(tray, scanner)
    assert held(inbox) == before
    list(scanner.scan(tray, 1, lambda _: False))
    assert scanner.in_pass
    scanner.forget()
    assert held(inbox) == before
    assert len(scan(tray, scanner)) == 2


def fail_at(monkeypatch, number):
    """Let the scandir of this number fail, and no other."""
    real, calls = os.scandir, []

    def fail_once(fd):
        calls.append(fd)
        if len(calls) == number:
            raise OSError(5, "disk")
        return real(fd)

    monkeypatch.setattr(os, "scandir", fail_once)


def test_after_a_fault_the_next_scan_begins_again(tray, inbox, monkeypatch):
    lay(inbox, {f"{n}/a.jpg": b"" for n in range(3)})
    scanner = Scanner(())
    fail_at(monkeypatch, 1)
    with pytest.raises(OSError, match="disk"):
        scan(tray, scanner)
    assert not scanner.in_pass
    assert len(scan(tray, scanner)) == 3


def test_a_folder_that_cannot_be_read_costs_the_others_nothing(tray, inbox, monkeypatch):
    lay(inbox, {f"{n}/a.jpg": b"" for n in range(3)})
    scanner = Scanner(())
    fail_at(monkeypatch, 3)
    assert len(scan(tray, scanner)) == 2
    assert list(scanner.blocked.values()) == ["this folder cannot be read: disk"]
    assert len(scan(tray, scanner)) == 3


def test_what_is_too_deep_or_too_long_waits_and_is_named(tray, inbox):
    deep = "/".join(["d"] * (MAX_DEPTH + 1))
    lay(inbox, {f"{deep}/a.jpg": b"", "/".join(["d"] * MAX_DEPTH) + "/ok.jpg": b""})
    fd = os.open(inbox, fs.DIRECTORY)
    path = ""
    while len(path) < MAX_PATH - 200:
        os.mkdir("e" * 200, dir_fd=fd)
        child = os.open("e" * 200, fs.DIRECTORY, dir_fd=fd)
        os.close(fd)
        fd, path = child, f"{path}{'e' * 200}/"
    os.close(os.open("f" * 255, os.O_CREAT | os.O_WRONLY, dir_fd=fd))
    os.close(fd)
    scanner = Scanner(())
    assert scan(tray, scanner) == ["/".join(["d"] * MAX_DEPTH) + "/ok.jpg"]
    assert sorted(len(p) for p in scanner.blocked) == sorted([len(deep), len(path) + 255])
    assert all("move" in reason for reason in scanner.blocked.values())


@needs_root
def test_folders_that_may_not_be_read_wait_and_cost_the_others_nothing(tray, inbox):
    lay(
        inbox,
        {"open/a.jpg": b"", "closed/b.jpg": b"", "list only/c.jpg": b"", "list only/sub/d.jpg": b"", "z.jpg": b""},
    )
    (inbox / "closed").chmod(0o711)
    (inbox / "list only").chmod(0o744)
    inbox.parent.chmod(0o755)

    def found():
        scanner = Scanner(())
        return scan(tray, scanner), scanner.blocked

    files, blocked = as_user(NOBODY, found)
    assert files == ["open/a.jpg", "z.jpg"]
    assert set(blocked) == {"closed", "list only", "list only/sub"}


def test_empty_folders_are_named_when_a_pass_ends(tray, inbox):
    lay(inbox, {"full/a.jpg": b"", "ignored/.x": b""})
    (inbox / "outer" / "inner").mkdir(parents=True)
    scanner = Scanner((".*",))
    scan(tray, scanner)
    assert scanner.empty == {"outer/inner"}
    (inbox / "outer" / "inner").rmdir()
    scan(tray, scanner)
    assert scanner.empty == {"outer"}


def test_an_inbox_that_is_missing_is_made_and_one_that_is_a_link_is_a_fault(tray, inbox):
    inbox.rmdir()
    assert scan(tray) == []
    assert inbox.is_dir()
    inbox.rmdir()
    inbox.symlink_to("/tmp")
    with pytest.raises(OSError, match="inbox"):
        scan(tray)


def test_a_look_at_one_file_follows_nothing(tray, inbox):
    lay(inbox, {"sub/a.jpg": b"12"})
    (inbox / "link").symlink_to("sub")
    files = ("sub/a.jpg", "link", "gone", "gone/a.jpg", "link/a.jpg", "sub/a.jpg/x", "sub")
    found = dict(Scanner(()).look(tray, files))
    assert found["sub/a.jpg"].size == 2
    assert found["link"].kind == "symlink"
    assert [found[file] for file in files[2:6]] == [None] * 4
    assert found["sub"] is None, "a folder in a file's place would be claimed as a whole"
