"""moodbox undo: what it selects, what it leaves alone, and that no kill of it loses anything."""

import errno
import os
import queue
import random
import shutil
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pytest
from rich.progress import Progress

from daemon import accounts, fs, selection, status, undo
from daemon import command_line as moodbox
from daemon.history import fold
from daemon.journal import Journal, owners, tail_totals
from daemon.selection import SelectionError, moment
from daemon_parts import NOBODY, as_user, files_in, house, needs_root
from stand_in import make_service, settings_for
from test_crash import Daemons, everything
from test_daemon_service import picture, running, until

FILES = ("a.png", "trip/b.png", "trip/c.png", "dark.png")
UNDOS = """
import os, sys, traceback
from pathlib import Path
from stand_in import die_at, settings_for
from daemon import undo
from daemon.selection import Selection
import rich.progress, rich.console, pwd

for text in sys.stdin:
    root, kill_at, resort = text.split()
    child = os.fork()
    if child == 0:
        try:
            sys.stdout = open(os.devnull, "w")
            settings = settings_for(Path(root))
            if int(kill_at):
                die_at(int(kill_at))
            status = undo.run(settings, Selection(model=7), resort=bool(int(resort)), yes=True)
            os._exit(0 if status == 1 else status)  # a killed undo before has left some in .work
        except BaseException:
            traceback.print_exc()
            os._exit(3)
    print(os.waitpid(child, 0)[1], flush=True)
"""


class Undos(Daemons):
    """A process that runs `undo --model 7 --yes` again and again, each time in a fork of its own."""

    def __init__(self):
        path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
        self._process = subprocess.Popen(
            [sys.executable, "-c", UNDOS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONPATH": path},
        )  # fmt: skip

    def run(self, root, kill_at=0, resort=0):
        return super().run(root, f"{kill_at} {resort}")


WORKERS = 4


@pytest.fixture(scope="module")
def pairs():
    """Processes that run undos and daemons, for trials side by side."""
    made = [(Undos(), Daemons()) for _ in range(WORKERS)]
    free = queue.SimpleQueue()
    for pair in made:
        free.put(pair)
    yield free
    for pair in made:
        for process in pair:
            process.close()


def side_by_side(pairs, trial, numbers):
    """Return what `trial(number, undos, daemons)` returned for each number."""

    def run(number):
        pair = pairs.get()
        try:
            return trial(number, *pair)
        finally:
            pairs.put(pair)

    with ThreadPoolExecutor(WORKERS) as pool:
        return list(pool.map(run, numbers))


def sort(root, files=FILES):
    for mark, name in enumerate(files):
        picture(root / "tray/inbox" / name, shade=30 if "dark" in name else 220, mark=mark)
    make_service(settings_for(root)).run()


@pytest.fixture
def sorted_tray(tmp_path):
    with house(tmp_path):
        pass
    sort(tmp_path)
    return tmp_path


@pytest.fixture
def ask(sorted_tray, monkeypatch, capsys):
    """Call `moodbox undo` in the tray's parent directory; returns (status, stdout)."""
    monkeypatch.chdir(sorted_tray)

    def call(*arguments):
        names = (f"tray.root={sorted_tray}/tray", f"journal.root={sorted_tray}/log", "daemon.name=d")
        status = moodbox.main(["undo", *(f"--set={name}" for name in names), *arguments])
        printed = capsys.readouterr()
        return status, printed.out + printed.err

    return call


def places(root):
    return sorted(files_in(root / "tray"))


def check_accounts(root):
    with Progress(disable=True) as progress:
        found = accounts.settle(settings_for(root), progress, deep=True)
    assert found.is_good, found.others
    assert not found.others["in_work"]
    return found


def test_it_only_lists_unless_told_to_do_it(ask, sorted_tray):
    before = files_in(sorted_tray)
    status, out = ask("--model", "7")
    assert status == 0
    assert "happy/trip/b.png → undone/trip/b.png" in out
    assert "sad/dark.png → undone/dark.png" in out
    assert "4 would be moved: --yes does it" in out
    assert files_in(sorted_tray) == before


def test_files_come_back_to_the_path_that_they_were_dropped_with(ask, sorted_tray):
    before = everything(sorted_tray)
    status, out = ask("--model", "7", "--yes")
    assert status == 0
    assert places(sorted_tray) == sorted(f"undone/{name}" for name in FILES)
    assert set(everything(sorted_tray)) == set(before)
    assert "happy/a.png → undone/a.png" in out
    assert os.listdir(sorted_tray / "tray/.work") == ["d"], "its owner's directory is gone"
    check_accounts(sorted_tray)
    assert ask("--model", "7", "--yes") == (0, "nothing to take back\n")


def test_a_restored_line_says_what_was_moved_and_totals_count_it(ask, sorted_tray):
    decisions = {e.file: e for e in fold(sorted_tray / "log").entries()}
    ask("happy/a.png", "--yes")
    (line,) = [e for e in fold(sorted_tray / "log").entries() if e.folder == "undone"]
    assert (line.id, line.sha256) == (decisions["a.png"].id, decisions["a.png"].sha256)
    text = (sorted_tray / "log/d-undo-1.jsonl").read_text()
    assert '"event":"restored"' in text
    assert '"source":"happy/a.png","destination":"undone/a.png"' in text
    assert tail_totals(sorted_tray / "log", "d-undo").events == Counter(restored=1)
    assert "undone    1" in status.describe(status.gather(settings_for(sorted_tray)))


def test_resort_has_them_sorted_again(ask, sorted_tray):
    assert ask("happy/trip/b.png", "--resort", "--yes")[0] == 0
    assert "inbox/trip/b.png" in places(sorted_tray)
    assert check_accounts(sorted_tray).in_place == 4
    make_service(settings_for(sorted_tray)).run()
    assert "happy/trip/b.png" in places(sorted_tray)
    found = check_accounts(sorted_tray)
    assert (found.in_place, len(found.others["again"])) == (4, 1)


def test_what_was_undone_can_be_sorted_again(ask, sorted_tray):
    ask("happy/a.png", "--yes")
    assert ask("undone/a.png", "--resort", "--yes")[0] == 0
    make_service(settings_for(sorted_tray)).run()
    assert "happy/a.png" in places(sorted_tray)
    check_accounts(sorted_tray)


def test_a_file_that_was_sorted_twice_to_one_place_comes_back_once(ask, sorted_tray):
    tray = sorted_tray / "tray"
    (tray / "happy/a.png").rename(tray / "inbox/a.png")
    make_service(settings_for(sorted_tray)).run()
    status, out = ask("--model", "7", "--yes")
    assert (status, out.count("→"), out.count("left alone")) == (0, 4, 0)
    check_accounts(sorted_tray)


@pytest.mark.parametrize(
    "file", ["happy/a.png", "tray/happy/a.png", "{root}/tray/happy/a.png", "./tray/sad/../happy/a.png"]
)
def test_a_file_is_named_from_the_working_directory_or_the_tray(ask, sorted_tray, file):
    status, out = ask(file.format(root=sorted_tray))
    assert (status, out.count("→")) == (0, 1)
    assert "happy/a.png → undone/a.png" in out


def test_a_tray_behind_a_link_is_the_same_tray(ask, sorted_tray, tmp_path):
    (tmp_path / "link").symlink_to(sorted_tray / "tray")
    assert "happy/a.png → undone/a.png" in ask(str(tmp_path / "link/happy/a.png"))[1]


def test_what_is_asked_for_narrows(ask, sorted_tray):
    sort(sorted_tray, ("late.png",))
    batch = next(e.batch for e in fold(sorted_tray / "log").entries() if e.file == "late.png")
    assert ask("--batch", batch)[1].count("→") == 1
    assert ask("--batch", batch, "--model", "8")[1] == "nothing to take back\n"
    assert ask("--batch", batch, "happy/a.png")[1] == "nothing to take back\n"
    assert ask("--since", "1h")[1].count("→") == 5
    assert ask("--since", "2999-01-01")[1] == "nothing to take back\n"


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((), "say what is to be taken back"),
        (("--yes",), "say what is to be taken back"),
        (("--since", "yesterday"), "yesterday"),
        (("/etc/passwd",), "not in the tray"),
    ],
)
def test_bad_input_is_one_line_and_status_2(ask, arguments, named):
    status, out = ask(*arguments)
    assert (status, out.count("\n")) == (2, 1)
    assert named in out


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2h", "2026-05-31T10:00:00+00:00"),
        ("3d", "2026-05-28T12:00:00+00:00"),
        ("90s", "2026-05-31T11:58:30+00:00"),
        ("2026-05-30T08:00Z", "2026-05-30T08:00:00+00:00"),
        ("2026-05-30T08:00+02:00", "2026-05-30T06:00:00+00:00"),
    ],
)
def test_times_are_iso_or_ago(text, expected):
    now = datetime(2026, 5, 31, 12, tzinfo=UTC)
    assert moment(text, now) == datetime.fromisoformat(expected).timestamp() * 1000


@pytest.mark.parametrize("text", ["", "2x", "h", "999999999w", "2026-13-01"])
def test_no_time_is_refused(text):
    with pytest.raises(SelectionError, match="--since"):
        moment(text, datetime(2026, 5, 31, tzinfo=UTC))


def test_a_date_without_a_zone_is_local():
    assert moment("2026-05-31", datetime.now(UTC)) == datetime(2026, 5, 31).astimezone().timestamp() * 1000


def test_what_is_not_as_delivered_is_left_alone(ask, sorted_tray):
    tray = sorted_tray / "tray"
    (tray / "happy/a.png").rename(tray / "sad/a.png")
    (tray / "sad/dark.png").write_bytes(b"edited")
    (tray / "happy/trip").rename(tray / "outside")
    (tray / "happy/trip").symlink_to(tray / "outside")
    before = files_in(tray)
    status, out = ask("--model", "7", "sad/a.png", "happy/a.png", "sad/dark.png", "happy/trip/b.png", "--yes")
    assert status == 1
    assert "left alone: sad/a.png: the journal knows of no such file" in out
    assert "left alone: happy/a.png: it is not there any more" in out
    assert "left alone: sad/dark.png: its content is not what was delivered" in out
    assert "left alone: happy/trip/b.png: it is not there any more" in out
    assert files_in(tray) == before


def test_what_has_no_hash_is_left_alone(ask, sorted_tray):
    os.mkfifo(sorted_tray / "tray/inbox/pipe")
    make_service(settings_for(sorted_tray)).run()
    status, out = ask("rejected/pipe", "--yes")
    assert (status, "no hash" in out) == (1, True)


def test_a_file_that_changes_after_it_was_compared_is_put_back(ask, sorted_tray, monkeypatch):
    real = undo.errand

    def late(*arguments):
        (sorted_tray / "tray/happy/a.png").write_bytes(b"edited")
        return real(*arguments)

    monkeypatch.setattr(undo, "errand", late)
    status, out = ask("--model", "7", "--yes")
    assert status == 1
    assert "left alone: happy/a.png: it was changed just now" in out
    assert (sorted_tray / "tray/happy/a.png").read_bytes() == b"edited"
    assert len([p for p in places(sorted_tray) if p.startswith("undone/")]) == 3


def test_what_is_there_is_not_overwritten(ask, sorted_tray):
    undone = sorted_tray / "tray/undone"
    (undone / "a.png").write_bytes(b"was here before")
    ask("--model", "7", "--yes")
    assert (undone / "a.png").read_bytes() == b"was here before"
    assert (undone / "a-2.png").exists()
    check_accounts(sorted_tray)


def test_a_name_that_is_taken_after_the_line_is_redirected(ask, sorted_tray, monkeypatch):
    real, undone = Journal.append, sorted_tray / "tray/undone"

    def append(journal, lines):
        real(journal, lines)
        if lines[0].event == "restored":
            (undone / "a.png").write_bytes(b"in between")

    monkeypatch.setattr(Journal, "append", append)
    assert ask("happy/a.png", "--yes")[0] == 0
    assert (undone / "a.png").read_bytes() == b"in between"
    assert (undone / "a-2.png").exists()
    assert '"event":"redirected"' in (sorted_tray / "log/d-undo-1.jsonl").read_text()
    check_accounts(sorted_tray)


def test_files_that_were_dropped_under_one_path_come_back_side_by_side(ask, sorted_tray):
    for mark in (8, 9):
        picture(sorted_tray / "tray/inbox/a.png", mark=mark)
        make_service(settings_for(sorted_tray)).run()
    picture(sorted_tray / "tray/inbox/trip/b.png/x.png", mark=10)  # a folder where a file's name was
    make_service(settings_for(sorted_tray)).run()
    before = everything(sorted_tray)
    assert ask("--model", "7", "--yes")[0] == 0
    assert set(everything(sorted_tray)) == set(before)
    assert {"undone/a.png", "undone/a-2.png", "undone/a-3.png"} < set(places(sorted_tray))
    check_accounts(sorted_tray)


def test_many_files_go_in_several_batches(ask, sorted_tray, monkeypatch):
    monkeypatch.setattr(undo, "BATCH", 2)
    assert ask("--model", "7", "--yes")[0] == 0
    lines = (sorted_tray / "log/d-undo-1.jsonl").read_text().splitlines()
    assert len({line.split('"batch":"')[1][:18] for line in lines if '"event":"restored"' in line}) == 2
    check_accounts(sorted_tray)


@pytest.mark.parametrize("call", ["sync_file_system", "rename_noreplace"])
def test_a_fault_before_the_line_puts_everything_back(ask, sorted_tray, monkeypatch, call):
    before, real, count = files_in(sorted_tray / "tray"), getattr(fs, call), [0]

    def fail_once(*arguments):
        count[0] += 1
        if count[0] == (1 if call == "sync_file_system" else 3):
            raise OSError(errno.EIO, "no luck")
        return real(*arguments)

    monkeypatch.setattr(fs, call, fail_once)
    status, out = ask("--model", "7", "--yes")
    assert (status, "no luck" in out) == (1, True)
    assert files_in(sorted_tray / "tray") == before
    assert ask("--model", "7", "--yes")[0] == 0
    check_accounts(sorted_tray)


def test_it_works_while_the_daemon_runs(ask, sorted_tray):
    with running(make_service(settings_for(sorted_tray), once=False)) as failures:
        assert ask("--model", "7", "--yes")[0] == 0
        assert ask("undone/a.png", "--resort", "--yes")[0] == 0
        until(lambda: (sorted_tray / "tray/happy/a.png").exists(), "it is sorted again")
    assert not failures
    assert sorted(owners(sorted_tray / "log")) == ["d", "d-undo"]
    check_accounts(sorted_tray)


@needs_root
def test_another_user_is_told_whose_tray_it_is(ask, sorted_tray):
    for path in (sorted_tray, *sorted_tray.rglob("*")):
        os.chown(path, NOBODY, NOBODY, follow_symlinks=False)
    before = files_in(sorted_tray)
    status, out = ask("--model", "7", "--yes")
    assert status == 2
    assert "sudo -u nobody" in out
    assert files_in(sorted_tray) == before
    for path in [sorted_tray, *sorted_tray.parents][:-2]:
        os.chmod(path, 0o755)
    assert as_user(NOBODY, lambda: ask("--model", "7", "--yes"))[0] == 0


def prepared(root: Path, template: Path) -> dict[str, str]:
    """Copy a tray that was sorted (the owner's directory names its journal by its path: it is left out)."""
    for folder in ("tray", "log"):
        shutil.copytree(template / folder, root / folder, symlinks=True)
    shutil.rmtree(root / "tray/.work/d")
    return everything(root)


def check_after(root: Path, before: dict[str, str]) -> None:
    after = everything(root)
    assert set(after) == set(before), "a file was lost, changed or doubled"
    assert not [p for p in after.values() if p.startswith((".work/", "inbox/"))], after
    assert after[next(d for d, p in before.items() if p == "undone/a.png")] == "undone/a.png"
    check_accounts(root)


# To the inbox there are fewer steps: a private folder is not synced by itself.
@pytest.mark.parametrize(("resort", "stride", "steps"), [(0, 1, 60), (1, 4, 56)])
def test_a_kill_at_every_step_loses_nothing(pairs, sorted_tray, tmp_path, resort, stride, steps):
    (sorted_tray / "tray/undone/a.png").write_text("was here before")

    def trial(step, undos, daemons):
        root = tmp_path / "kills" / str(step)
        before = prepared(root, sorted_tray)
        if not undos.run(root, step, resort):
            return None
        assert set(everything(root)) == set(before), f"lost by the kill at step {step}"
        told = [e.sha256.hex() for e in fold(root / "log").entries() if e.folder == "undone"]
        assert not daemons.run(root)
        check_after(root, before)
        after = everything(root)
        assert all(after[digest].startswith("undone/") for digest in told), "a line was not kept"
        return sum(path.startswith("undone/") for path in places(root)) - 1

    undone = side_by_side(pairs, trial, range(1, 100, stride))
    kills = len(undone) - undone.count(None)
    assert undone[kills:] == [None] * (len(undone) - kills) != [], "the last steps come after the end"
    assert kills > steps / stride, "the steps were not counted"
    assert sum(undone[:kills]) > (-1 if resort else kills), "most kills come after the lines"
    if not resort:
        assert undone[0] == 0
        assert undone[kills - 1] == len(FILES)


def test_kills_of_what_goes_on_after_a_killed_undo_lose_nothing(pairs, sorted_tray, tmp_path):
    (sorted_tray / "tray/undone/a.png").write_text("was here before")

    def trial(number, undos, daemons):
        rng, kills = random.Random(number), 0
        root = tmp_path / "kills" / str(number)
        before = prepared(root, sorted_tray)
        for _ in range(3):
            kills += undos.run(root, rng.randint(10, 80), number % 2)
            kills += daemons.run(root, rng.randint(1, 120))
            assert set(everything(root)) == set(before)
        assert not daemons.run(root)
        check_after(root, before)
        return kills

    assert sum(side_by_side(pairs, trial, range(24))) > 40


def test_a_selection_of_nothing_is_refused_whoever_asks(tmp_path):
    with pytest.raises(SelectionError):
        selection.select(fold(tmp_path), selection.Selection(), tmp_path, "undone")
