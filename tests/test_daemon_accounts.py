"""daemon.accounts and daemon.history: what the journal says of each file, and where it really is."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.progress import Progress

from daemon import accounts as accounts_module
from daemon import command_line as moodbox
from daemon.events import Line, encode
from daemon.history import History, fold
from daemon.journal import Journal, segments
from daemon_parts import NOBODY, as_user, files_in, house, lay, needs_root
from stand_in import make_service, settings_for
from test_daemon_service import picture
from trainer.settings import load

FILES = ("a.png", "trip/b.png", "trip/c.png", "d.png")


@pytest.fixture
def sorted_tray(tmp_path):
    """A tray where the daemon has sorted four happy pictures of different sizes and rejected a pipe and a text."""
    with house(tmp_path):
        pass
    inbox = tmp_path / "tray/inbox"
    for mark, name in enumerate(FILES):
        data = picture(inbox / name, mark=mark).read_bytes()
        (inbox / name).write_bytes(data + b"x" * mark)
    (inbox / "text.jpg").write_text("no picture")
    os.utime(inbox / "text.jpg", (1e9, 1e9))
    os.mkfifo(inbox / "pipe")
    make_service(settings_for(tmp_path)).run()
    assert {f"happy/{name}" for name in FILES} < set(files_in(tmp_path / "tray"))
    return tmp_path


def command(root, *flags):
    settings = [f"--set={name}" for name in (f"tray.root={root}/tray", f"journal.root={root}/log")]
    return moodbox.main(["accounts", *settings, *flags])


@pytest.fixture
def accounts(sorted_tray, capsysbinary):
    def ask(*flags):
        status = command(sorted_tray, "--json", *flags)
        found = orjson.loads(capsysbinary.readouterr().out)
        assert status == (0 if found["is_good"] else 1)
        assert found["files"] == sum(found["counts"].values())
        return status, {k: n for k, n in found["counts"].items() if n}, found["names"]

    return ask


@pytest.mark.parametrize("flags", [(), ("--deep",)])
def test_all_is_in_place_after_a_run(accounts, flags):
    assert accounts(*flags)[:2] == (0, {"in_place": 6})


def test_what_a_person_moved_is_found_by_its_bytes(accounts, sorted_tray):
    tray = sorted_tray / "tray"
    (tray / "happy/a.png").rename(tray / "sad/other.png")
    (tray / "happy/trip").rename(tray / "review/trip")
    (tray / "happy/d.png").rename(tray / "inbox/d.png")
    status, counts, names = accounts()
    assert (status, counts) == (0, {"in_place": 2, "moved": 4})
    assert "happy/a.png → sad/other.png" in names["moved"]
    assert "happy/trip/b.png → review/trip/b.png" in names["moved"]


def test_what_is_gone_is_missing(accounts, sorted_tray):
    (sorted_tray / "tray/happy/a.png").unlink()
    (sorted_tray / "tray/rejected/pipe").unlink()
    status, counts, names = accounts()
    assert (status, counts) == (1, {"in_place": 4, "missing": 2})
    assert sorted(names["missing"]) == ["happy/a.png", "rejected/pipe"]


def test_other_content_of_the_same_size_is_found_by_deep_alone(accounts, sorted_tray):
    path = sorted_tray / "tray/happy/a.png"
    path.write_bytes(path.read_bytes()[::-1])
    assert accounts()[:2] == (0, {"in_place": 6})
    status, counts, names = accounts("--deep")
    assert (status, counts, names["changed"]) == (1, {"in_place": 5, "changed": 1}, ["happy/a.png"])


def test_other_content_of_another_size_is_found_at_once(accounts, sorted_tray):
    (sorted_tray / "tray/happy/a.png").write_bytes(b"edited")
    assert accounts()[:2] == (1, {"in_place": 5, "changed": 1})


def test_two_files_that_changed_places_are_moved_not_changed(accounts, sorted_tray):
    happy = sorted_tray / "tray/happy"
    (happy / "a.png").rename(happy / "x")
    (happy / "d.png").rename(happy / "a.png")
    (happy / "x").rename(happy / "d.png")
    assert accounts("--deep")[:2] == (0, {"in_place": 4, "moved": 2})


def test_one_copy_does_not_stand_for_two_files(accounts, sorted_tray):
    tray = sorted_tray / "tray"
    data = (tray / "happy/a.png").read_bytes()
    (tray / "inbox/twin.png").write_bytes(data)
    make_service(settings_for(sorted_tray)).run()
    assert accounts()[:2] == (0, {"in_place": 7})
    (tray / "happy/twin.png").unlink()
    assert accounts()[:2] == (1, {"in_place": 6, "missing": 1}), "the file at a.png is a.png's own"
    (tray / "happy/a.png").rename(tray / "sad/a.png")
    assert accounts()[1]["moved"] == 1


def test_two_copies_of_one_batch_do_not_stand_for_each_other(accounts, sorted_tray):
    tray = sorted_tray / "tray"
    for name in ("x.png", "y.png"):
        picture(tray / "inbox" / name, mark=77)
    make_service(settings_for(sorted_tray)).run()
    assert accounts()[:2] == (0, {"in_place": 8})
    (tray / "happy/x.png").unlink()
    assert accounts()[:2] == (1, {"in_place": 7, "missing": 1})


def test_what_is_dropped_again_is_the_later_lines_business(accounts, sorted_tray):
    tray = sorted_tray / "tray"
    for _ in range(2):
        (tray / "happy/a.png").rename(tray / "inbox/a.png")
        make_service(settings_for(sorted_tray)).run()
    assert accounts()[:2] == (0, {"in_place": 6, "again": 2})
    (tray / "happy/a.png").unlink()
    assert accounts()[:2] == (1, {"in_place": 5, "again": 2, "missing": 1}), "the last one is not there"


def test_a_place_that_was_used_twice_holds_one_file(accounts, sorted_tray):
    tray = sorted_tray / "tray"
    for name in ("happy/a.png", "rejected/pipe"):
        (tray / name).unlink()
    picture(tray / "inbox/a.png", mark=99)
    os.mkfifo(tray / "inbox/pipe")
    make_service(settings_for(sorted_tray)).run()
    status, counts, names = accounts()
    assert (status, counts) == (1, {"in_place": 6, "again": 1, "missing": 1})
    assert (names["missing"], names["again"]) == (["happy/a.png"], ["rejected/pipe"])


def test_a_file_in_work_is_no_loss(accounts, sorted_tray):
    tray = sorted_tray / "tray"
    (tray / "happy/a.png").rename(tray / "inbox/a.png")
    with house(sorted_tray) as home:
        assert len(home.claim("a.png").files) == 1
    assert accounts()[:2] == (0, {"in_place": 5, "in_work": 1})


def test_what_lies_in_work_without_a_lock_is_named_with_what_to_do(sorted_tray, capsysbinary):
    picture(sorted_tray / "tray/inbox/new.png", mark=9)
    with house(sorted_tray) as home:
        folder = home.claim("new.png").folder
    (sorted_tray / "tray/.work/d/lock").unlink()
    assert command(sorted_tray) == 1
    said = capsysbinary.readouterr().out.decode()
    assert "left       1: the lock of .work/d is gone" in said
    assert f"left: .work/d/{folder}/new.png" in said
    assert command(sorted_tray, "--json") == 1
    assert orjson.loads(capsysbinary.readouterr().out)["left"] == [f".work/d/{folder}/new.png"]


def test_a_link_in_a_place_of_a_folder_is_not_followed(accounts, sorted_tray, tmp_path):
    tray = sorted_tray / "tray"
    (tray / "happy/trip").rename(tmp_path / "outside")
    (tray / "happy/trip").symlink_to(tmp_path / "outside")
    assert accounts()[1]["missing"] == 2


def test_counts_and_twenty_names_are_shown_so_that_a_terminal_is_safe(sorted_tray, capsys):
    sha = [hashlib.sha256(bytes([n])).hexdigest() for n in range(25)]
    lines = [
        Line(event="sorted", id=f"i{n}", batch="b", file=f"{n}", destination=f"happy/\x1b{n}", bytes=0, sha256=sha[n])
        for n in range(25)
    ]
    journal = Journal(sorted_tray / "log", "other", 1 << 20)
    journal.append(lines)
    journal.close()
    assert command(sorted_tray) == 1
    out = capsys.readouterr().out
    assert "missing    25" in out
    assert sum(line.startswith(r"missing: happy/\x1b") for line in out.splitlines()) == 20
    assert "and 5 more" in out
    assert "\x1b" not in out


def test_two_decisions_and_unreadable_lines_are_reported(sorted_tray, capsys):
    path = segments(sorted_tray / "log", "d")[0][1]
    decision = next(raw for raw in path.read_bytes().splitlines(True) if b'"event":"sorted"' in raw)
    other = orjson.loads(decision) | {"label": "sad", "destination": "sad/a.png"}
    with path.open("ab") as file:
        file.write(decision + b"no json\n" + orjson.dumps(other) + b'\n{"schema":1,"to')
    command(sorted_tray)
    out = capsys.readouterr().out
    assert "defect     1 ids" in out
    assert "unreadable 1 lines" in out
    assert "unreadable: d-1.jsonl:" in out


def test_without_a_tray_it_is_one_line_and_status_2(tmp_path, capsys):
    assert command(tmp_path) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_it_loads_no_tensorflow_and_changes_nothing(sorted_tray):
    before = files_in(sorted_tray), {p: p.lstat().st_mtime_ns for p in sorted_tray.rglob("*")}
    code = (
        "import sys, daemon.command_line as m; m.main(sys.argv[1:]);"
        "print([m for m in sys.modules if m.startswith(('tensorflow', 'keras'))])"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code, "accounts", "--deep"],
        cwd=sorted_tray, capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert ran.stdout.endswith("[]\n")
    assert before == (files_in(sorted_tray), {p: p.lstat().st_mtime_ns for p in sorted_tray.rglob("*")})


CLASSES = ("happy", "sad")
steps = st.lists(st.sampled_from(["redirect", "restore", "restore elsewhere", "again"]), max_size=4)


@given(fates=st.lists(st.tuples(st.sampled_from(CLASSES), steps), max_size=8), order=st.permutations(range(3)))
def test_the_fold_says_where_the_last_move_went(fates, order):
    """Files are sorted, redirected and restored by three owners; journals are read in any order of the owners."""
    journals = [[], [], []]
    places = {}
    clock = 0

    def write(owner, **fields):
        nonlocal clock
        clock += 1
        ts = f"2026-01-01T00:{clock // 60:02}:{clock % 60:02}.000Z"
        journals[owner].append(Line(ts=ts, **fields))
        places[fields["id"]] = fields["destination"]

    for number, (label, events) in enumerate(fates):
        base = {"id": f"i{number}", "file": f"f{number}"}
        write(0, event="sorted", batch="b", destination=f"{label}/f{number}", bytes=number, **base)
        owner, batch = 0, "b"
        for step, event in enumerate(events):
            if event == "redirect":
                place = places[base["id"]].split("/")[0]
                write(owner, event="redirected", batch=batch, destination=f"{place}/f{number}-{step}", **base)
            elif event == "again":  # written again after a failed fsync
                last = [line for line in journals[owner] if line.id == base["id"] and line.event != "redirected"][-1]
                if last.batch == batch and journals[owner][-1] is last:
                    journals[owner].append(last)
            else:
                owner = 1 if event == "restore" else 2
                batch = f"u{number}-{step}"
                write(owner, event="restored", batch=batch, destination=f"undone/f{number}-{step}", **base)
    history = History()
    for owner in order:
        for line in journals[owner]:
            history.read(encode(line))
    assert {entry.id: entry.place for entry in history.entries()} == places
    assert len(history) == len(places)
    assert (history.unreadable_count, history.conflicts) == (0, {})


@given(name=st.binary(min_size=1, max_size=20).filter(lambda b: b"\0" not in b and b"/" not in b))
def test_names_survive_the_fold_whatever_they_are_made_of(name):
    history = History()
    file = os.fsdecode(name)
    history.read(encode(Line(ts="2026-01-01", event="rejected", id="i", batch="b", file=file, destination=f"x/{file}")))
    (entry,) = history.entries()
    assert (entry.file, entry.place, entry.sha256, entry.size) == (file, f"x/{file}", None, None)


@needs_root
def test_what_may_not_be_read_is_named_and_all_else_is_told(sorted_tray):
    """A person closed a file, or a folder: no reason to tell nothing at all."""
    base = Path(tempfile.mkdtemp())  # where others may enter
    base.chmod(0o755)
    subprocess.run(["cp", "-a", sorted_tray / "tray", sorted_tray / "log", base], check=True)
    subprocess.run(["chown", "-hR", f"{NOBODY}:{NOBODY}", base], check=True)
    hidden = base / "tray/happy" / FILES[0]
    os.chown(hidden, 0, 0)
    hidden.chmod(0o600)
    (base / "tray/happy/closed").mkdir(mode=0o700)

    def ask():
        settings = load(
            None, (), {"tray": {"root": str(base / "tray")}, "journal": {"root": str(base / "log")}}
        ).settings
        with Progress(disable=True) as progress:
            found = accounts_module.settle(settings, progress, deep=True)
        return found.others["hidden"], found.in_place, found.is_good

    assert as_user(NOBODY, ask) == ([f"happy/{FILES[0]}"], 5, False)
    shutil.rmtree(base)


def test_a_journal_that_was_copied_beside_itself_counts_once(sorted_tray):
    log = sorted_tray / "log"
    before = sorted(fold(log).entries(), key=lambda e: e.id)
    lay(log, {"copy-1.jsonl": (log / "d-1.jsonl").read_bytes()})
    history = fold(log)
    assert (len(history), history.conflicts) == (6, {})
    assert sorted(history.entries(), key=lambda e: e.id) == before


@pytest.mark.parametrize("field", [{"model": 2**40}, {"bytes": 2**70}, {"bytes": -1}])
def test_numbers_that_no_daemon_writes_make_a_line_unreadable(field):
    line = {"schema": 1, "ts": "2026-05-31T12:00:00.000Z", "event": "sorted", "id": "1", "batch": "1-a", "file": "a",
            "destination": "happy/a.jpg", "label": "happy", **field}  # fmt: skip
    history = History()
    history.read(json.dumps(line).encode())
    assert (history.unreadable_count, len(history)) == (1, 0)
