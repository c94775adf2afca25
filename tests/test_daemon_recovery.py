"""daemon.recovery, daemon.delivery and daemon.workload: from claim to place, through faults and deaths."""

import contextlib
import errno
import hashlib
import os
import time
from pathlib import Path

import pytest
from PIL import Image

from daemon import fs, owner, recovery
from daemon.batch import Batch, Claimed
from daemon.delivery import Delivery, Review, decision
from daemon.events import Line
from daemon.inspection import Outcome, Report
from daemon.journal_folder import JournalFolder
from daemon.spool import Spool
from daemon.workload import LOOK_AGAIN
from daemon_parts import NOBODY, Decider, as_user, classify, house, needs_root
from pictures import encoded

BROKEN = b"no picture at all"


@pytest.fixture
def home(tmp_path):
    with house(tmp_path) as made:
        yield made


def shade(level):
    return encoded(Image.new("RGB", (16, 16), (level, level, level)), "PNG")


BRIGHT, DARK = shade(250), shade(5)


def old(home, *files):
    """Make dropped files look as if nobody had written them for long."""
    for file in files:
        os.utime(home.root / "inbox" / file, (1e9, 1e9), follow_symlinks=False)


class Faults:
    """Every call at a seam fails from the n-th on, until `mend`."""

    def __init__(self, monkeypatch, seam, *, after=0, code=errno.ENOSPC):
        target, name = seam
        real, self._left, self._broken = getattr(target, name), after, True

        def call(*args, **kwargs):
            if self._broken:
                if self._left == 0:
                    raise OSError(code, "fault")
                self._left -= 1
            return real(*args, **kwargs)

        monkeypatch.setattr(target, name, call)

    def mend(self):
        self._broken = False


SEAMS = [(fs, "rename_noreplace"), (os, "fsync"), (os, "write"), (os, "mkdir"), (os, "rmdir"), (fs, "sync_file_system")]


def check_once(home, dropped, places=None):
    """Every dropped file is in one place with its bytes, has one decision, and the journal knows where it is."""
    after = home.files()
    lines = [line for name in ("d", "d-2") for line in home.lines(name)]
    decisions = [line for line in lines if line.event in ("sorted", "review", "rejected")]
    assert sorted(line.file for line in decisions) == sorted(dropped)
    assert len({line.id for line in decisions}) == len(decisions)
    now = {line.id: line.destination for line in decisions}
    now |= {line.id: line.destination for line in lines if line.event == "redirected"}
    assert {line.file: after[now[line.id]] for line in decisions} == dropped
    assert not [p for p in after if p.startswith((".work/", "inbox/"))]
    if places is not None:
        assert {line.file: now[line.id] for line in decisions} == places


def finish(home, now=0.0, seconds=100.0):
    """Step as the service does, backing off after faults, until nothing is left."""
    while not (home.workload.in_work == 0 and home.workload.files == 0):
        assert now < seconds, "it never ends"
        home.workload.step(now)
        now += 1.0
    return now


# Decisions


def outcome(bright=None, **report):
    return Outcome(Report(**report), None if bright is None else (bright, 1 - bright), 1.5)


def decided(result, below=0.0, fraction=0.0):
    return decision(Claimed("id", "sub/a.jpg", 12.5), Batch("1-b", 2, ()), result, Decider(), Review(below, fraction))


def test_a_sure_score_is_sorted_and_an_unsure_one_goes_to_review():
    line = decided(outcome(0.9, sha256="x", bytes=3, width=1, height=2, format="PNG", decode_ms=2.0), below=0.8)
    assert (line.event, line.label, line.score, line.destination) == ("sorted", "happy", 0.9, "happy")
    assert line.scores == {"happy": 0.9, "sad": 0.1}
    assert (line.id, line.batch, line.file, line.source) == ("id", "1-b", "sub/a.jpg", "inbox/sub/a.jpg")
    assert (line.queued_ms, line.attempt, line.model, line.threshold, line.infer_ms) == (12.5, 2, 7, 0.5, 1.5)
    line = decided(outcome(0.79), below=0.8)
    assert (line.event, line.label, line.destination) == ("review", "happy", "review")


def test_a_share_of_what_is_sure_goes_to_review_too_chosen_by_its_hash():
    hashes = [hashlib.sha256(str(n).encode()).hexdigest() for n in range(2000)]
    lines = [decided(outcome(0.9, sha256=h), below=0.8, fraction=0.1) for h in hashes]
    audited = [line for line in lines if line.event == "review"]
    assert 140 < len(audited) < 260
    assert all(line.audit and line.destination == "review" for line in audited)
    assert all(line.audit is None for line in lines if line.event == "sorted")
    again = [decided(outcome(0.9, sha256=h), below=0.8, fraction=0.1) for h in hashes]
    assert again == lines
    firsts = [int(line.sha256[0], 16) for line in audited]
    assert len(set(firsts)) == 16  # it has nothing to do with the split, which goes by the first bits
    unsure = decided(outcome(0.7, sha256=hashes[0]), below=0.8, fraction=1.0)
    assert (unsure.event, unsure.audit) == ("review", None)


def test_a_file_without_scores_is_rejected_with_the_reason():
    line = decided(outcome(code="corrupt", error="damaged", sha256="x"))
    assert (line.event, line.destination, line.error_code, line.error) == ("rejected", "rejected", "corrupt", "damaged")
    assert (line.label, line.scores, line.sha256) == (None, None, "x")


def test_scores_that_are_no_numbers_are_rejected_too(monkeypatch):
    def refuse(_self, _scores):
        raise ValueError("no finite numbers")

    monkeypatch.setattr(Decider, "decide", refuse)
    line = decided(outcome(float("nan")))
    assert (line.event, line.error_code, line.model) == ("rejected", "no_score", 7)


# Delivery


def delivery(home, *files):
    batch = home.claim(*files)
    results = [classify(home.spool.path(batch, f)) for f in files]
    return Delivery(
        batch, [decision(c, batch, o, Decider(), Review()) for c, o in zip(batch.files, results, strict=True)]
    )


def test_the_line_is_durable_before_the_move_and_the_photos_before_the_line(home, monkeypatch):
    home.drop({"a.png": BRIGHT})
    going = delivery(home, "a.png")
    steps = []
    for target, name in ((fs, "sync_file_system"), (os, "write"), (os, "fsync"), (fs, "rename_noreplace")):
        real = getattr(target, name)

        def noted(*args, real=real, name=name):
            what = os.readlink(f"/proc/self/fd/{args[0]}") if name == "fsync" else ""
            steps.append((name, what.removeprefix(str(home.base))))
            return real(*args)

        monkeypatch.setattr(target, name, noted)
    going.run(home.spool, home.journal, home.own.folder)
    assert steps == [
        ("sync_file_system", ""), ("write", ""), ("fsync", "/log/d-1.jsonl"), ("rename_noreplace", ""),
        ("fsync", "/tray/happy"),
    ]  # fmt: skip


def test_nothing_moves_without_a_line(home, monkeypatch):
    home.drop({"a.png": BRIGHT, "b.png": DARK})
    going = delivery(home, "a.png", "b.png")
    with monkeypatch.context() as patch:
        Faults(patch, (os, "write"))
        with pytest.raises(OSError, match="fault"):
            going.run(home.spool, home.journal, home.own.folder)
    assert all(p.startswith(".work/") for p in home.files())
    going.run(home.spool, home.journal, home.own.folder)
    check_once(home, {"a.png": BRIGHT, "b.png": DARK}, {"a.png": "happy/a.png", "b.png": "sad/b.png"})


@pytest.mark.parametrize("seam", SEAMS, ids=lambda s: s[1])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_delivery_goes_on_after_a_fault_at_any_step(tmp_path, seam, code):
    for after in range(8):
        with house(tmp_path / str(after)) as home, pytest.MonkeyPatch.context() as patch:
            dropped = {"a.png": BRIGHT, "sub/b.png": DARK, "c.txt": BROKEN}
            home.drop(dropped)
            (home.root / "happy" / "a.png").write_bytes(b"taken")
            going = delivery(home, *dropped)
            faults = Faults(patch, seam, after=after, code=code)
            for _ in range(2):
                try:
                    going.run(home.spool, home.journal, home.own.folder)
                except OSError:
                    faults.mend()
            going.run(home.spool, home.journal, home.own.folder)
            check_once(home, dropped)
            assert (home.root / "happy" / "a.png").read_bytes() == b"taken"


def test_a_name_that_is_taken_after_the_line_is_redirected_by_a_line_first(home, monkeypatch):
    home.drop({"a.png": BRIGHT})
    going = delivery(home, "a.png")
    real = home.journal.append

    def append(lines):
        real(lines)
        if lines[0].event == "sorted":
            (home.root / "happy" / "a.png").write_bytes(b"a person's")

    monkeypatch.setattr(home.journal, "append", append)
    (line,) = going.run(home.spool, home.journal, home.own.folder)
    assert line.destination == "happy/a-2.png", "people are told where it is"
    check_once(home, {"a.png": BRIGHT}, {"a.png": "happy/a-2.png"})
    (redirected,) = [e for e in home.lines() if e.event == "redirected"]
    assert (redirected.id, redirected.batch, redirected.file) == (line.id, line.batch, "a.png")
    assert (home.root / "happy" / "a.png").read_bytes() == b"a person's"


def test_after_a_redirection_the_file_goes_where_the_newest_line_says(home, monkeypatch):
    """Even where a fault came between, and the first name is free again by then."""
    home.drop({"a.png": BRIGHT})
    going = delivery(home, "a.png")
    taken = home.root / "happy" / "a.png"
    real = home.journal.append

    def append(lines):
        real(lines)
        if lines[0].event == "sorted":
            taken.write_bytes(b"a person's")
        else:
            taken.unlink()
            faults.append(Faults(monkeypatch, (fs, "rename_noreplace")))

    faults = []
    monkeypatch.setattr(home.journal, "append", append)
    with pytest.raises(OSError, match="fault"):
        going.run(home.spool, home.journal, home.own.folder)
    faults[0].mend()
    going.run(home.spool, home.journal, home.own.folder)
    check_once(home, {"a.png": BRIGHT}, {"a.png": "happy/a-2.png"})


@needs_root
def test_a_person_who_takes_a_folder_away_does_not_stop_the_others(home):
    """The folder may be written when the place is chosen, and not any more when the file is moved."""
    home.drop({"trip/a.png": BRIGHT, "b.png": BRIGHT})
    (home.root / "happy" / "trip").mkdir()
    for path in (home.root, home.log, *home.root.rglob("*"), *home.log.rglob("*")):
        os.chown(path, NOBODY, NOBODY)

    def delivered():
        os.setegid(NOBODY)
        os.seteuid(NOBODY)
        going = delivery(home, "trip/a.png", "b.png")
        real = home.journal.append

        def append(lines):
            real(lines)
            os.seteuid(0)
            os.chown(home.root / "happy" / "trip", 0, 0)
            os.chmod(home.root / "happy" / "trip", 0o755)
            os.seteuid(NOBODY)

        home.journal.append = append
        going.run(home.spool, home.journal, home.own.folder)

    # tmp_path is root's alone: what is opened by path (the pictures) must be reachable
    for parent in (home.base, *home.base.parents):
        if parent.stat().st_uid == 0 and str(parent).startswith("/tmp/pytest"):
            parent.chmod(0o711)
    as_user(0, delivered)
    check_once(
        home, {"trip/a.png": BRIGHT, "b.png": BRIGHT}, {"trip/a.png": "happy/trip-2/a.png", "b.png": "happy/b.png"}
    )


# The workload


def test_a_batch_is_classified_journalled_and_delivered(home):
    dropped = {"a.png": BRIGHT, "sub/b.png": DARK, "c.txt": BROKEN}
    home.drop(dropped)
    old(home, "c.txt")
    workload = home.start_workload()
    workload.take(home.claim(*dropped))
    assert (workload.files, workload.in_work) == (3, 1)
    lines = workload.step(0.0)
    assert [line.event for line in lines] == ["sorted", "sorted", "rejected"]
    assert workload.is_idle(0.0)
    assert workload.files == 0
    check_once(home, dropped, {"a.png": "happy/a.png", "sub/b.png": "sad/sub/b.png", "c.txt": "rejected/c.txt"})
    assert os.listdir(home.own.folder) == ["lock"]


def test_a_bad_file_never_fails_another(home, tmp_path):
    dropped = {"a.png": BRIGHT, "empty.png": b"", "cut.png": BRIGHT[:60], "text.png": BROKEN, "z.png": DARK}
    home.drop(dropped)
    old(home, *dropped)
    inbox = home.root / "inbox"
    os.mkfifo(inbox / "pipe.png")
    (inbox / "link.png").symlink_to(tmp_path)
    workload = home.start_workload()
    workload.take(home.claim(*dropped, "pipe.png", "link.png"))
    lines = {line.file: line for line in workload.step(0.0)}
    codes = {f: line.error_code for f, line in lines.items() if line.event == "rejected"}
    assert codes == {
        "empty.png": "empty", "cut.png": "truncated", "text.png": "not_an_image", "pipe.png": "fifo",
        "link.png": "symlink",
    }  # fmt: skip
    assert (home.root / "rejected" / "link.png").is_symlink()
    assert (lines["a.png"].destination, lines["z.png"].destination) == ("happy/a.png", "sad/z.png")


def test_two_batches_are_in_work_and_no_more(home):
    home.drop({str(n): BRIGHT for n in range(3)})
    pending = []
    workload = home.start_workload(submit=lambda key, paths: pending.append((key, paths)))
    assert workload.has_room
    workload.take(home.claim("0"))
    assert workload.has_room
    workload.take(home.claim("1"))
    assert not workload.has_room
    key, paths = pending[1]
    workload.post(key, 0, classify(paths[0]))
    workload.post("from an earlier session", 0, classify(paths[0]))
    assert [line.file for line in workload.step(0.0)] == ["1"]
    assert workload.has_room
    assert workload.files == 1


def test_a_file_that_fails_while_it_may_still_grow_is_read_again_and_holds_up_nobody(home):
    home.drop({"young.png": BRIGHT[:60], "a.png": BRIGHT})
    workload = home.start_workload()
    workload.take(home.claim("young.png", "a.png"))
    assert [line.file for line in workload.step(10.0)] == ["a.png"]
    assert (workload.files, workload.in_work) == (1, 0)
    assert not workload.is_idle(10.0)
    assert workload.next_step() == 10.0 + LOOK_AGAIN
    assert workload.step(11.0) == []
    (held,) = Path(home.root / ".work").rglob("young.png")
    held.write_bytes(BRIGHT)
    workload.step(12.0)
    assert [line.event for line in workload.step(12.0)] == ["sorted"]
    check_once(home, {"young.png": BRIGHT, "a.png": BRIGHT})


def test_a_young_file_that_stays_broken_is_rejected_at_the_second_look(home):
    home.drop({"young.png": BROKEN})
    workload = home.start_workload()
    workload.take(home.claim("young.png"))
    assert workload.step(0.0) == []
    workload.step(2.0)
    assert [line.error_code for line in workload.step(2.0)] == ["not_an_image"]
    assert len(home.submitted) == 2


def test_a_good_file_that_changed_while_it_was_read_is_read_again(home):
    home.drop({"a.png": DARK})

    def changes(key, paths):
        home.workload.post(key, 0, classify(paths[0]))
        if len(home.submitted) < 3:
            Path(os.fsdecode(paths[0])).write_bytes(BRIGHT if len(home.submitted) == 2 else DARK + b"x" * 9)
        home.submitted.append(key)

    workload = home.start_workload(submit=changes)
    workload.take(home.claim("a.png"))
    finish(home)
    check_once(home, {"a.png": BRIGHT}, {"a.png": "happy/a.png"})


def test_a_claimed_file_that_is_still_open_for_writing_waits(home):
    home.drop({"a.png": BRIGHT})
    workload = home.start_workload()
    batch = home.claim("a.png")
    with open(home.spool.path(batch, "a.png"), "rb+"):
        workload.take(batch)
        assert workload.step(0.0) == []
        workload.step(2.0)
        assert workload.step(2.0) == []
    workload.step(4.0)
    assert len(workload.step(4.0)) == 1


def test_a_file_that_cannot_be_read_is_tried_again_much_later_and_once_need_not_wait(home):
    home.drop({"a.png": BRIGHT, "b.png": DARK})
    faulty = [True]

    def unreadable(key, paths):
        for index, path in enumerate(paths):
            bad = faulty[0] and b"a.png" in path
            home.workload.post(key, index, Outcome(Report(code="unreadable", error="EIO")) if bad else classify(path))

    workload = home.start_workload(submit=unreadable)
    workload.take(home.claim("a.png", "b.png"))
    assert [line.file for line in workload.step(0.0)] == ["b.png"]
    assert workload.is_idle(0.0)
    assert workload.next_step() == 30.0
    faulty[0] = False
    workload.step(30.0)
    assert [line.file for line in workload.step(30.0)] == ["a.png"]


def test_restarts_do_not_count_against_a_file_that_cannot_be_read(tmp_path):
    """Nobody dies of it: it waits, and is named, until somebody mends its mode."""
    with house(tmp_path) as home:
        home.drop({"a.png": BRIGHT})
        home.claim("a.png")
    for _ in range(5):
        with house(tmp_path) as home:
            post = lambda key, _: home.workload.post(key, 0, Outcome(Report(code="unreadable", error="EACCES")))  # noqa: E731
            workload = home.start_workload(submit=post)
            workload.take_alone(recovery.recover(home.own, home.spool, home.journal, home.journal).adopted)
            workload.step(0.0)
            workload.step(0.0)
            assert workload.unreadable == {"a.png": "it waits in .work: it cannot be read"}
            assert home.decisions() == []
    with house(tmp_path) as home:
        left = recovery.recover(home.own, home.spool, home.journal, home.journal)
        assert [batch.attempt for batch in left.adopted] == [0]
        home.start_workload().take_alone(left.adopted)
        finish(home)
        check_once(home, {"a.png": BRIGHT})


def test_once_does_not_wait_for_an_unreadable_file_however_often_it_rescans(home):
    home.drop({"a.png": BRIGHT})
    report = Report(code="unreadable", error="EIO")
    submit = lambda key, _paths: home.workload.post(key, 0, Outcome(report))  # noqa: E731
    workload = home.start_workload(submit=submit, retry_seconds=0.1)
    workload.take(home.claim("a.png"))
    workload.step(0.0)
    assert workload.is_idle(0.0)


def test_a_file_that_is_due_while_there_is_no_room_does_not_make_the_loop_spin(home):
    home.drop({"young.png": BROKEN, "a.png": BRIGHT, "b.png": BRIGHT})
    workload = home.start_workload(submit=lambda *_: None)
    workload.take(batch := home.claim("young.png"))
    workload.post(batch.name, 0, classify(home.spool.path(batch, "young.png")))
    workload.step(0.0)
    for file in ("a.png", "b.png"):
        workload.take(home.claim(file))
    workload.step(5.0)
    assert workload.next_step() is None, "only an outcome makes room, and it wakes the loop"


def test_a_fault_while_files_are_set_aside_does_not_make_one_of_them_look_delivered(home, monkeypatch):
    """The first of two is in its new folder already: not finding it in the old one does not mean that it is settled."""
    dropped = {"a.png": BRIGHT, "b.png": BRIGHT, "c.png": DARK}
    home.drop(dropped)

    def touched(key, paths):
        for index, path in enumerate(paths):
            home.workload.post(key, index, classify(path))
            if not home.submitted and b"c.png" not in path:
                os.utime(path, (index, index))
        home.submitted.append(key)

    workload = home.start_workload(submit=touched)
    workload.take(home.claim(*dropped))
    faults = Faults(monkeypatch, (fs, "rename_noreplace"), after=1)
    with pytest.raises(OSError, match="fault"):
        workload.step(0.0)
    faults.mend()
    assert [line.file for line in workload.step(1.0)] == ["c.png"]
    finish(home, 2.0)
    check_once(home, dropped)


def test_a_suspect_is_begun_only_when_nothing_else_is_in_work(home):
    home.drop({"a.png": BRIGHT, "suspect.png": DARK})
    workload = home.start_workload(submit=lambda key, paths: home.submitted.append((key, paths)))
    workload.take(home.claim("a.png"))
    workload.take_alone([home.claim("suspect.png")])
    workload.step(0.0)
    assert len(home.submitted) == 1
    workload.post(home.submitted[0][0], 0, classify(home.submitted[0][1][0]))
    workload.step(1.0)
    assert len(home.submitted) == 2
    assert b".1/suspect.png" in home.submitted[1][1][0], "the attempt is counted before"


@pytest.mark.parametrize("seam", SEAMS, ids=lambda s: s[1])
def test_the_workload_goes_on_after_a_fault_at_any_step(tmp_path, seam):
    """Some files settled, some not: what was set aside before the fault is not forgotten after it."""
    for after in range(12):
        with house(tmp_path / str(after)) as home, pytest.MonkeyPatch.context() as patch:
            dropped = {"a.png": BRIGHT, "y1.png": BROKEN, "sub/y2.png": BRIGHT[:60], "b.png": DARK}
            home.drop(dropped)
            workload = home.start_workload()
            workload.take(home.claim(*dropped))
            faults = Faults(patch, seam, after=after)
            told = []
            for second in range(20):
                try:
                    told += workload.step(float(second))
                except OSError:
                    faults.mend()
                    os.utime(next((home.root / ".work").rglob("y1.png"), home.base), (1e9, 1e9))
            finish(home, 20.0)
            check_once(home, dropped)
            assert sorted(line.file for line in told) == sorted(dropped), "a decision was not told"


# Recovery


class Death(BaseException):
    """Stands for SIGKILL: nothing after it is done (the tests of whole processes are in test_crash.py)."""


def test_what_was_claimed_and_not_decided_is_adopted_and_sorted_one_by_one(tmp_path):
    dropped = {"a.png": BRIGHT, "sub/b.png": DARK}
    with house(tmp_path) as dead:
        dead.drop(dropped)
        claimed = dead.claim(*dropped)
    with house(tmp_path) as home:
        left = recovery.recover(home.own, home.spool, home.journal, home.journal)
        assert (left.finished, [len(b.files) for b in left.adopted]) == (0, [1, 1])
        workload = home.start_workload()
        workload.take_alone(left.adopted)
        assert not workload.has_room, "nothing else is in work beside a suspect"
        finish(home)
        assert [len(paths) for _, paths in home.submitted] == [1, 1]
        check_once(home, dropped, {"a.png": "happy/a.png", "sub/b.png": "sad/sub/b.png"})
        assert [line.attempt for line in home.decisions()] == [1, 1]
        assert claimed.name not in {line.batch for line in home.decisions()}
        assert os.listdir(home.own.folder) == ["lock"]


def test_what_was_decided_is_delivered_where_the_line_says(tmp_path, monkeypatch):
    dropped = {"a.png": BRIGHT, "b.png": DARK, "c.png": BRIGHT}
    with house(tmp_path) as dead:
        dead.drop(dropped)
        going = delivery(dead, *dropped)
        with monkeypatch.context() as patch:
            Faults(patch, (fs, "rename_noreplace"), after=1)
            with pytest.raises(OSError, match="fault"):
                going.run(dead.spool, dead.journal, dead.own.folder)
        (dead.root / "sad" / "b.png").write_bytes(b"a person was quicker")
    with house(tmp_path) as home:
        left = recovery.recover(home.own, home.spool, home.journal, home.journal)
        assert (left.finished, left.adopted) == (2, [])
        check_once(home, dropped, {"a.png": "happy/a.png", "b.png": "sad/b-2.png", "c.png": "happy/c.png"})
        again = recovery.recover(home.own, home.spool, home.journal, home.journal)
        assert (again.finished, again.adopted) == (0, [])


def test_a_redirected_file_is_delivered_where_the_redirection_says(tmp_path):
    with house(tmp_path) as dead:
        dead.drop({"a.png": BRIGHT})
        batch = dead.claim("a.png")
        line = Line(event="sorted", id=batch.files[0].id, batch=batch.name, file="a.png", destination="happy/a.png")
        dead.journal.append([line])
        dead.journal.append([line.model_copy(update={"event": "redirected", "destination": "happy/a-2.png"})])
    with house(tmp_path) as home:
        assert recovery.recover(home.own, home.spool, home.journal, home.journal).finished == 1
        assert home.files() == {"happy/a-2.png": BRIGHT}


def test_a_file_that_kills_is_tried_alone_so_many_times_and_then_rejected(tmp_path):
    dropped = {"killer.png": BRIGHT, "a.png": DARK}
    with house(tmp_path) as home:
        home.drop(dropped)
        home.claim(*dropped)
    deaths = 0

    def kills(key, paths):
        if b"killer" in paths[0]:
            raise Death
        home.workload.post(key, 0, classify(paths[0]))

    for _ in range(10):
        with house(tmp_path) as home:
            left = recovery.recover(home.own, home.spool, home.journal, home.journal)
            workload = home.start_workload(submit=kills)
            workload.take_alone(sorted(left.adopted, key=lambda b: b.files[0].file, reverse=True))
            try:
                finish(home)
                break
            except Death:
                deaths += 1
    assert deaths == 3
    with house(tmp_path) as home:
        check_once(home, dropped, {"killer.png": "rejected/killer.png", "a.png": "sad/a.png"})
        (line,) = [e for e in home.decisions() if e.event == "rejected"]
        assert (line.error_code, line.attempt) == ("crashes", 3)
        assert line.sha256
        assert [e.attempt for e in home.decisions() if e.file == "a.png"] == [1], "a neighbour's deaths were counted"


def test_a_restart_that_nobody_died_of_counts_against_nobody(tmp_path):
    with house(tmp_path) as home:
        home.drop({"a.png": BRIGHT})
        home.claim("a.png")
    for _ in range(6):
        with house(tmp_path) as home:
            left = recovery.recover(home.own, home.spool, home.journal, home.journal)
            home.start_workload().take_alone(left.adopted)
    assert [batch.attempt for batch in left.adopted] == [0]


def test_a_recovery_that_is_killed_again_and_again_comes_to_an_end(tmp_path, monkeypatch):
    """What one adopted, the next need not move again: with many files none would ever come to the last."""
    dropped = {f"{n}.png": BRIGHT for n in range(6)}
    with house(tmp_path) as home:
        home.drop(dropped)
        home.claim(*dropped)
    for _ in range(len(dropped) - 1):
        with house(tmp_path) as home, monkeypatch.context() as patch:
            Faults(patch, (fs, "rename_noreplace"), after=1)
            with contextlib.suppress(OSError):
                recovery.recover(home.own, home.spool, home.journal, home.journal)
    with house(tmp_path) as home, monkeypatch.context() as patch:
        Faults(patch, (fs, "rename_noreplace"))
        left = recovery.recover(home.own, home.spool, home.journal, home.journal)
        assert sorted(b.files[0].file for b in left.adopted) == sorted(dropped)


def test_an_id_that_a_line_has_is_not_given_to_another_file(tmp_path):
    """A crash tore the lines of a batch: one of its files was decided, the other was not."""
    dropped = {"a.png": BRIGHT, "b.png": DARK}
    with house(tmp_path) as home:
        home.drop(dropped)
        going = delivery(home, *dropped)
        home.journal.append([going.lines[0].model_copy(update={"destination": "happy/a.png"})])
    with house(tmp_path) as home:
        left = recovery.recover(home.own, home.spool, home.journal, home.journal)
        home.start_workload().take_alone(left.adopted)
        finish(home)
        check_once(home, dropped)


@pytest.mark.parametrize("seam", SEAMS, ids=lambda s: s[1])
def test_what_others_left_is_recovered_in_spite_of_faults_and_nothing_is_forgotten(tmp_path, seam):
    """The faults come and go while this daemon lives: what it took before one must still be sorted by it."""
    for after in range(14):
        base = tmp_path / str(after)
        dropped = {"a.png": BRIGHT, "sub/b.png": DARK, "c.png": BRIGHT, "d.png": DARK}
        with house(base) as home:
            with house(base) as dead, pytest.MonkeyPatch.context() as patch:
                assert dead.own.name == "d-2"
                dead.drop(dropped)
                going = delivery(dead, "c.png", "d.png")
                dead.claim("a.png", "sub/b.png")
                Faults(patch, (fs, "rename_noreplace"))
                with pytest.raises(OSError, match="fault"):
                    going.run(dead.spool, dead.journal, dead.own.folder)
            workload = home.start_workload()
            with pytest.MonkeyPatch.context() as patch:
                faults = Faults(patch, seam, after=after)
                for _ in range(3):
                    try:
                        left = recovery.recover_others(home.work, home.own, home.spool, home.journal, 1 << 20)
                        workload.take_alone(left.adopted)
                    except OSError:
                        pass
                faults.mend()
                left = recovery.recover_others(home.work, home.own, home.spool, home.journal, 1 << 20)
                workload.take_alone(left.adopted)
            finish(home)
            check_once(home, dropped)
            left_over = list(owner.others(home.work, home.own.name))
            assert left_over == [] or (seam[1] == "rmdir" and os.listdir(home.root / ".work" / "d-2") == [])


def test_what_a_living_daemon_has_is_left_alone(tmp_path):
    with house(tmp_path) as one, house(tmp_path) as two:
        two.drop({"a.png": BRIGHT})
        two.claim("a.png")
        left = recovery.recover_others(one.work, one.own, one.spool, one.journal, 1 << 20)
        assert (left.finished, left.adopted) == (0, [])
        assert [p for p in one.files() if p.startswith(".work/d-2/")]


def test_an_owner_that_left_nothing_is_cleaned_up_even_without_its_journal(tmp_path):
    """The log was moved, and settings.toml says where to: nobody needs the old place any more."""
    with house(tmp_path) as home:
        owner.acquire(home.work, "old", JournalFolder(Path("/no/such/log"))).release()
        recovery.recover_others(home.work, home.own, home.spool, home.journal, 1 << 20)
        assert list(owner.others(home.work, home.own.name)) == []


def test_what_a_daemon_of_another_machine_left_waits_for_its_journal(tmp_path):
    """A log of the same path is here, too: it is another one, and would say that nothing was decided."""
    with house(tmp_path) as home:
        theirs = owner.acquire(home.work, "attics", JournalFolder(home.log, "f" * 32, "attic"))
        home.drop({"a.png": BRIGHT})
        batch = Spool(home.fd, theirs.folder).claim(["a.png"], 1, {}).batch
        theirs.release()
        left = recovery.recover_others(home.work, home.own, home.spool, home.journal, 1 << 20)
        assert left.left_alone["attics"].startswith("the journal of attics, which left files in .work, is not in ")
        assert f".work/attics/{batch.folder}/a.png" in home.files()


def test_an_owner_with_another_journal_that_left_nothing_still_tells_of_it(tmp_path):
    with house(tmp_path) as home:
        owner.acquire(home.work, "attics", JournalFolder(home.log, "f" * 32, "attic")).release()
        recovery.recover_others(home.work, home.own, home.spool, home.journal, 1 << 20)
        assert list(owner.others(home.work, home.own.name)) == ["attics"]


def test_files_without_their_journal_wait_and_it_says_where_it_is_missing(tmp_path):
    with house(tmp_path) as home:
        with house(tmp_path) as dead:
            dead.drop({"a.png": BRIGHT})
            dead.claim("a.png")
        home.log.rename(tmp_path / "elsewhere")
        found = recovery.recover_others(home.work, home.own, home.spool, home.journal, 1 << 20)
        assert "d-2, which left files" in found.left_alone["d-2"]
        assert "bring it back" in found.left_alone["d-2"]
        assert [p for p in home.files() if p.startswith(".work/d-2/")]
        (tmp_path / "elsewhere").rename(home.log)
        assert len(recovery.recover_others(home.work, home.own, home.spool, home.journal, 1 << 20).adopted) == 1


@needs_root
def test_a_journal_that_may_not_be_looked_at_is_named_each_time_and_waited_for(tmp_path):
    """Its owner is let go of between: else it would look alive, and the next start would take another name."""
    shut = tmp_path / "shut"
    with house(tmp_path / "home") as home:
        (shut / "log").mkdir(parents=True)
        for folder in tmp_path.parents:
            folder.chmod(folder.stat().st_mode | 0o5)
        tmp_path.chmod(0o755)
        theirs = owner.acquire(home.work, "old", JournalFolder(shut / "log"))
        home.drop({"a.png": BRIGHT})
        Spool(home.fd, theirs.folder).claim(["a.png"], 1, {})
        theirs.release()
        for path in (tmp_path / "home", *(tmp_path / "home").rglob("*"), shut / "log"):
            os.chown(path, NOBODY, NOBODY)
        shut.chmod(0o700)

        def recover():
            return recovery.recover_others(home.work, home.own, home.spool, home.journal, 1 << 20)

        def thrice():
            before = os.listdir("/proc/self/fd")
            said = [recover().left_alone for _ in range(3)]
            return said, os.listdir("/proc/self/fd") == before

        assert as_user(NOBODY, thrice) == ([{"old": "Permission denied"}] * 3, True)
        shut.chmod(0o755)
        assert as_user(NOBODY, lambda: len(recover().adopted)) == 1


def test_what_is_no_batch_is_not_touched(tmp_path):
    with house(tmp_path) as home:
        (home.root / ".work" / "d" / "notes").mkdir()
        (home.root / ".work" / "d" / "notes" / "a.txt").write_text("x")
        assert recovery.recover(home.own, home.spool, home.journal, home.journal).adopted == []
        assert (home.root / ".work" / "d" / "notes" / "a.txt").exists()


def test_young_means_young_by_the_wall_clock(home):
    """A file from the far future is not taken for a growing one for ever."""
    home.drop({"future.png": BROKEN})
    then = time.time() + 1e6
    os.utime(home.root / "inbox" / "future.png", (then, then))
    workload = home.start_workload()
    workload.take(home.claim("future.png"))
    assert len(workload.step(0.0)) == 1


def test_without_its_lock_an_owner_is_named_and_left_alone_dead_or_alive(tmp_path):
    """What tells whether its daemon lives, and where its journal is, is gone."""
    with house(tmp_path) as home:
        with house(tmp_path) as other:
            other.drop({"a.png": BRIGHT})
            other.claim("a.png")
            (home.root / ".work/d-2/lock").unlink()
            living = recovery.recover_others(home.work, home.own, home.spool, home.journal, 1 << 20)
        before = home.files()
        dead = recovery.recover_others(home.work, home.own, home.spool, home.journal, 1 << 20)
        assert (living.left_alone, dead.adopted) == (dead.left_alone, [])
        assert "move them to the inbox" in dead.left_alone["d-2"]
        assert home.files() == before


def test_a_folder_without_a_lock_and_without_files_is_nobodys_concern(tmp_path):
    with house(tmp_path) as home:
        (home.root / ".work/d-2/batch").mkdir(parents=True)
        (home.root / ".work/notes").write_text("no owner")
        (home.root / ".work/d/lock").unlink()  # our own: we live
        assert recovery.recover_others(home.work, home.own, home.spool, home.journal, 1 << 20).left_alone == {}
