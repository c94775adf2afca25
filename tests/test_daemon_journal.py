"""daemon.journal and daemon.events: durable lines, exact names, and what is left after every kind of accident."""

import errno
import fcntl
import os
import stat
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from daemon import journal as journal_module
from daemon import journal_lock
from daemon.events import DECISIONS, SCHEMA, Line, encode, parse
from daemon.journal import Journal, is_open, lines_of, owners, read, segments, tail_totals
from daemon.totals import Totals
from daemon_parts import held

RAW = st.sampled_from([b"\xff", "\u2028".encode(), "\x85".encode(), b"\n", b"\\xff", b"\xed\xb2\x80"]) | st.binary(
    min_size=1, max_size=255
).filter(lambda n: not {0, 47} & set(n))
NAMES = st.lists(RAW, min_size=1, max_size=3).map(lambda parts: os.fsdecode(b"/".join(parts)))


def line(number, **fields):
    defaults = {"event": "sorted", "id": str(number), "batch": "1-b", "file": f"{number}.jpg", "label": "happy"}
    return Line(**defaults | fields)


def ids(root, owner="d"):
    return [entry.id for _, path in segments(root, owner) for entry in read(path) if entry.event in DECISIONS]


def counted(root, owner="d"):
    """Count everything, from the first line to the last."""
    lines = [entry for _, path in segments(root, owner) for entry in read(path) if entry.event != "totals"]
    return Totals().plus(lines)


@pytest.fixture
def opened(tmp_path):
    journal = Journal(tmp_path, "d", 1 << 20)
    yield journal
    journal.close()


class Broken:
    """os.write and os.fsync with faults: `room` bytes can still be written, `syncs` fsyncs still succeed."""

    def __init__(self, monkeypatch, *, room=None, syncs=None, longest=None):
        self.room, self.syncs, self.longest = room, syncs, longest
        self.synced = []
        self._write, self._fsync = os.write, os.fsync
        monkeypatch.setattr(journal_module.os, "write", self.write)
        monkeypatch.setattr(journal_module.os, "fsync", self.fsync)

    def write(self, fd, data):
        size = min(len(data), self.longest or len(data))
        if self.room is not None:
            if self.room == 0:
                raise OSError(errno.ENOSPC, "full")
            size = min(size, self.room)
            self.room -= size
        return self._write(fd, data[:size])

    def fsync(self, fd):
        if self.syncs is not None:
            if self.syncs == 0:
                self.syncs = None
                raise OSError(errno.EIO, "disk")
            self.syncs -= 1
        self.synced.append(os.readlink(f"/proc/self/fd/{fd}"))
        self._fsync(fd)


# The line


@given(NAMES, NAMES, NAMES, st.text().filter(lambda t: not any("\ud800" <= c < "\ue000" for c in t)))
def test_a_line_survives_whatever_the_names_are(file, source, destination, error):
    before = Line(event="rejected", ts="t", file=file, source=source, destination=destination, error=error)
    raw = encode(before)
    assert raw.endswith(b"\n")
    assert raw.count(b"\n") == 1
    raw.decode()
    assert parse(raw) == before


def test_a_name_that_is_no_text_is_shown_with_escapes_and_carried_exactly():
    fields = orjson.loads(encode(Line(event="sorted", file=os.fsdecode(b"a\xff.jpg"))))
    assert fields["file"] == "a\\xff.jpg"
    assert fields["file_b64"] == "Yf8uanBn"
    assert fields["schema"] == SCHEMA
    assert "error" not in fields


def test_an_error_text_that_is_no_text_is_escaped():
    assert parse(encode(Line(event="rejected", error=os.fsdecode(b"no \xff")))).error == "no \\xff"


@pytest.mark.parametrize(
    "raw",
    [
        b"", b"\n", b"{}", b"[]", b"null", b"1", b"{", b'"text"', b'{"schema":1}', b'{"schema":2,"event":"sorted"}',
        b'{"schema":1,"event":"other"}', b'{"schema":1,"event":"sorted","new":1}', b"\xff", b"[" * 5000,
        b'{"schema":1,"event":"sorted","file_b64":1}', b'{"schema":1,"event":"sorted","file_b64":"?"}',
        b'{"schema":1,"event":"sorted","bytes":"many"}', b"\0" * 100,
    ],
)  # fmt: skip
def test_what_is_no_line_of_ours_is_none(raw):
    assert parse(raw) is None


LINES = st.builds(
    line,
    st.integers(0, 99),
    event=st.sampled_from(["sorted", "review", "rejected", "redirected", "started", "model_loaded", "model_refused"]),
    model=st.none() | st.integers(1, 3),
    label=st.sampled_from(["happy", "sad"]),
    error_code=st.sampled_from([None, "corrupt"]),
    error=st.none() | st.just(os.fsdecode(b"bad \xff")),
    file=NAMES,
    ts=st.sampled_from(["2026-01-01", "2026-01-02"]),
)


@given(st.lists(LINES), st.lists(LINES))
def test_totals_add_up_however_they_are_cut(first, second):
    whole = Totals().plus([*first, *second])
    assert Totals().plus(first).plus(second) == whole
    assert Totals.from_dict(orjson.loads(orjson.dumps(Totals().plus(first).as_dict()))).plus(second).as_dict() == (
        whole.as_dict()
    )
    added = Totals().plus(first) + Totals().plus(second)
    assert (added.sorted, added.rejected, added.events) == (whole.sorted, whole.rejected, whole.events)


def test_the_totals_name_the_model_that_serves_and_why_a_newer_one_does_not():
    refused = Line(event="model_refused", model=2, error="no \udcff", ts="2026-01-01")
    totals = Totals().plus([Line(event="started", model=1), refused])
    assert (totals.model, totals.refused) == (1, {"model": 2, "error": "no \udcff", "ts": "2026-01-01"})
    other = Totals().plus([Line(event="model_refused", model=3, error="x", ts="2026-01-02")])
    assert (totals + other).refused == (other + totals).refused == other.refused, "the newest of all daemons"
    assert orjson.dumps(totals.as_dict())
    for event, model in (("model_loaded", 2), ("started", 4)):
        later = totals.plus([Line(event=event, model=model)])
        assert (later.model, later.refused) == (model, None)


# The file


def test_lines_are_on_disk_before_append_returns(tmp_path, monkeypatch, opened):
    broken = Broken(monkeypatch)
    opened.append([line(1), line(2)])
    assert broken.synced == [str(tmp_path / "d-1.jsonl")], "one fsync per batch"
    assert ids(tmp_path) == ["1", "2"]
    assert all(entry.ts.endswith("Z") for entry in read(tmp_path / "d-1.jsonl"))


def test_the_folder_of_a_new_segment_is_synced_too(tmp_path, monkeypatch):
    broken = Broken(monkeypatch)
    Journal(tmp_path / "new", "d", 1 << 20).close()
    assert str(tmp_path / "new") in broken.synced


@pytest.mark.parametrize("longest", [1, 7])
def test_short_writes_are_continued(tmp_path, monkeypatch, opened, longest):
    Broken(monkeypatch, longest=longest)
    opened.append([line(1), line(2)])
    assert ids(tmp_path) == ["1", "2"]


def test_a_torn_tail_is_mended_wherever_it_was_torn(tmp_path):
    whole = b"".join(encode(line(n, ts="t", file=os.fsdecode(b"\xffx\n") * 9)) for n in range(3))
    ends = [i + 1 for i, byte in enumerate(whole) if byte == 10]
    for cut in range(len(whole) + 1):
        root = tmp_path / str(cut)
        root.mkdir()
        (root / "d-1.jsonl").write_bytes(whole[:cut])
        kept = sum(end <= cut for end in ends)
        assert ids(root) == [str(n) for n in range(kept)], "a reader takes a torn line for one"
        journal = Journal(root, "d", 1 << 20)
        journal.append([line("new")])
        journal.close()
        assert ids(root) == [*(str(n) for n in range(kept)), "new"]
        assert tail_totals(root, "d").sorted["happy"] == kept + 1


def test_a_long_torn_line_is_mended(tmp_path):
    (tmp_path / "d-1.jsonl").write_bytes(encode(line(1)) + b"x" * 200_000)
    Journal(tmp_path, "d", 1 << 20).close()
    assert (tmp_path / "d-1.jsonl").read_bytes() == encode(line(1))
    (tmp_path / "e-1.jsonl").write_bytes(b"x" * 200_000)
    Journal(tmp_path, "e", 1 << 20).close()
    assert (tmp_path / "e-1.jsonl").read_bytes() == b""


def test_what_can_be_read_at_the_start_is_made_durable(tmp_path, monkeypatch):
    (tmp_path / "d-1.jsonl").write_bytes(encode(line(1)))
    broken = Broken(monkeypatch)
    Journal(tmp_path, "d", 1 << 20).close()
    assert broken.synced[0] == str(tmp_path / "d-1.jsonl")


@pytest.mark.parametrize("room", [0, 1, 50, 150, 300])
def test_a_full_disk_leaves_no_half_line_and_the_same_lines_can_be_written_later(tmp_path, monkeypatch, opened, room):
    opened.append([line(0)])
    with monkeypatch.context() as patch:
        Broken(patch, room=room)
        for _ in range(3):
            with pytest.raises(OSError, match="full"):
                opened.append([line(1), line(2), line(3)])
        assert ids(tmp_path) == ["0"]
        assert opened.totals.events["sorted"] == 1
    opened.append([line(1), line(2), line(3)])
    assert ids(tmp_path) == ["0", "1", "2", "3"]
    assert len(list(tmp_path.glob("*.jsonl"))) == 2, "a file for every failure"
    assert opened.totals == tail_totals(tmp_path, "d") == counted(tmp_path)


def test_after_a_failed_fsync_nothing_is_written_to_that_file_again(tmp_path, monkeypatch, opened):
    opened.append([line(0)])
    size = (tmp_path / "d-1.jsonl").stat().st_size
    with monkeypatch.context() as patch:
        Broken(patch, syncs=0)
        with pytest.raises(OSError, match="disk"):
            opened.append([line(1)])
    assert (tmp_path / "d-1.jsonl").stat().st_size == size
    opened.append([line(1)])
    assert (tmp_path / "d-1.jsonl").stat().st_size == size
    assert opened.segment == 2
    assert ids(tmp_path) == ["0", "1"]


def test_a_half_line_that_could_not_even_be_cut_back_is_passed_over(tmp_path, monkeypatch, opened):
    opened.append([line(0)])
    with monkeypatch.context() as patch:
        Broken(patch, room=30)
        patch.setattr(os, "ftruncate", lambda *_: (_ for _ in ()).throw(OSError(errno.EIO, "disk")))
        with pytest.raises(OSError, match="full"):
            opened.append([line(1)])
    opened.append([line(1)])
    assert ids(tmp_path) == ["0", "1"]
    assert tail_totals(tmp_path, "d") == counted(tmp_path)


def test_segments_are_cut_by_size_and_a_batchs_lines_stay_together(tmp_path):
    journal = Journal(tmp_path, "d", 4096)
    for batch in range(30):
        journal.append([line(f"{batch}-{n}", batch=f"{journal.segment}-{batch}") for n in range(10)])
    journal.close()
    found = segments(tmp_path, "d")
    assert [number for number, _ in found] == list(range(1, len(found) + 1))
    assert len(found) > 5
    for _, path in found:
        assert path.stat().st_size < 4096 + 10 * 300
        assert len([1 for entry in read(path) if entry.event == "sorted"]) % 10 == 0
    assert len(ids(tmp_path)) == 300
    assert Journal(tmp_path, "d", 4096).segment == len(found)


def test_a_segment_that_a_person_deleted_is_not_written_to(tmp_path, opened):
    opened.append([line(1)])
    (tmp_path / "d-1.jsonl").unlink()
    opened.append([line(2)])
    assert ids(tmp_path) == ["2"]
    assert tail_totals(tmp_path, "d").events["sorted"] == 2, "the counts outlive the lines"


def test_names_of_owners_may_hold_numbers_and_dashes(tmp_path):
    for name in ("host", "host-2", "host-2-x", "a-1"):
        journal = Journal(tmp_path, name, 1 << 20)
        journal.append([line(name)])
        journal.close()
    (tmp_path / "host-0.jsonl").touch()
    (tmp_path / "notes.txt").touch()
    assert owners(tmp_path) == ["a-1", "host", "host-2", "host-2-x"]
    assert ids(tmp_path, "host") == ["host"]
    assert ids(tmp_path, "host-2") == ["host-2"]
    assert owners(tmp_path / "none") == []
    assert tail_totals(tmp_path / "none", "host") == Totals()


def test_the_tenth_segment_comes_after_the_ninth(tmp_path):
    for number in (10, 9, 1):
        (tmp_path / f"d-{number}.jsonl").write_bytes(encode(line(number)))
    assert ids(tmp_path) == ["1", "9", "10"]


def test_the_newest_line_of_each_file_counts(tmp_path):
    journal = Journal(tmp_path, "d", 1 << 20)
    odd = os.fsdecode(b"\xff")
    journal.append([line(1, batch="1-a", file=odd), line(2, batch="1-other", file=odd), line(3, batch="1-a", file="x")])
    journal.append([line(1, batch="1-a", file=odd, event="redirected", destination="happy/new")])
    journal.append([line(4, batch="1-a", file="x", event="corrected"), Line(event="stopped")])
    journal.close()
    found = lines_of(tmp_path, "d", ["1-a", "1-none"])
    assert {key: entry.id for key, entry in found.items()} == {("1-a", odd): "1", ("1-a", "x"): "3"}
    assert found["1-a", odd].destination == "happy/new"
    assert lines_of(tmp_path, "d", []) == {}


def test_lines_are_looked_for_in_the_segment_of_the_claim_and_later_ones(tmp_path):
    for number in (1, 2, 3):
        (tmp_path / f"d-{number}.jsonl").write_bytes(encode(line(number, batch="2-b", file=str(number))))
    assert [entry.id for entry in lines_of(tmp_path, "d", ["2-b"]).values()] == ["2", "3"]


def test_lines_of_a_segment_without_totals_are_counted_too(tmp_path):
    """A crash between a segment's first line and its totals, or a person's editor."""
    journal = Journal(tmp_path, "d", 1 << 20)
    journal.append([line(1)])
    journal.close()
    for number in (2, 3):
        (tmp_path / f"d-{number}.jsonl").write_bytes(encode(line(number)))
    assert tail_totals(tmp_path, "d").sorted["happy"] == 3


def test_the_totals_are_read_from_the_tail(tmp_path, monkeypatch):
    journal = Journal(tmp_path, "d", 1 << 30)
    for n in range(0, 3000, 10):
        journal.append([line(i, error="y" * 300) for i in range(n, n + 10)])
    journal.close()
    size = (tmp_path / "d-1.jsonl").stat().st_size
    assert size > 3 * journal_module.TAIL_BYTES
    starts = []
    real = journal_module.read
    monkeypatch.setattr(journal_module, "read", lambda path, start=0: starts.append(start) or real(path, start))
    assert tail_totals(tmp_path, "d").sorted["happy"] == 3000
    assert starts == [size - journal_module.TAIL_BYTES]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(LINES, min_size=1, max_size=40), max_size=12), st.integers(1, 5000), st.integers(200, 4000))
def test_the_tails_totals_equal_a_full_count(batches, window, segment_bytes):
    with tempfile.TemporaryDirectory() as base, pytest.MonkeyPatch.context() as patch:
        patch.setattr(journal_module, "TAIL_BYTES", window)
        root = Path(base)
        journal = Journal(root, "d", segment_bytes)
        for batch in batches:
            journal.append(batch)
        journal.close()
        assert tail_totals(root, "d").as_dict() == counted(root).as_dict() == journal.totals.as_dict()


class Accidents(RuleBasedStateMachine):
    """Appends, full disks, failed fsyncs and kills in any order: what was promised is there, once and in order."""

    def __init__(self):
        super().__init__()
        self.base = tempfile.TemporaryDirectory()
        self.root = Path(self.base.name)
        self.journal = Journal(self.root, "d", 1500)
        self.promised = []
        self.next = 0

    def lines(self, count):
        self.next += count
        return [line(n) for n in range(self.next - count, self.next)]

    @rule(count=st.integers(1, 150))
    def append(self, count):
        lines = self.lines(count)
        self.journal.append(lines)
        self.promised += [entry.id for entry in lines]

    @rule(count=st.integers(1, 5), room=st.integers(0, 100))
    def append_to_a_full_disk(self, count, room):
        with pytest.MonkeyPatch.context() as patch:
            Broken(patch, room=room)
            with pytest.raises(OSError, match="full"):
                self.journal.append(self.lines(count))

    @rule(count=st.integers(1, 5), syncs=st.integers(0, 2))
    def append_with_a_failing_disk(self, count, syncs):
        lines = self.lines(count)
        with pytest.MonkeyPatch.context() as patch:
            Broken(patch, syncs=syncs)
            try:
                self.journal.append(lines)
            except OSError:
                return
        self.promised += [entry.id for entry in lines]

    @rule(tail=st.binary(max_size=40).map(lambda b: b.replace(b"\n", b"x")))
    def die_while_writing(self, tail):
        self.journal.close()
        with segments(self.root, "d")[-1][1].open("ab") as file:
            file.write(tail)
        self.journal = Journal(self.root, "d", 1500)

    @invariant()
    def what_was_promised_is_there(self):
        assert ids(self.root) == self.promised
        assert tail_totals(self.root, "d").as_dict() == counted(self.root).as_dict() == self.journal.totals.as_dict()

    def teardown(self):
        self.journal.close()
        self.base.cleanup()


Accidents.TestCase.settings = settings(max_examples=40, stateful_step_count=15, deadline=None)
TestAccidents = Accidents.TestCase


# The lock

HOLD = """
import sys
from pathlib import Path
from daemon.journal import Journal
journal = Journal(Path(sys.argv[1]), "d", 1 << 20)
print("held", flush=True)
sys.stdin.read()
"""


def test_a_journal_is_locked_for_as_long_as_its_daemon_lives(tmp_path, monkeypatch):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    assert is_open(tmp_path, "d")
    monkeypatch.setattr(journal_lock, "SECONDS", 0.01)
    before = held(tmp_path)
    with pytest.raises(BlockingIOError, match="another daemon writes this journal"):
        Journal(tmp_path, "d", 1 << 20)
    assert held(tmp_path) == before
    process.kill()
    process.communicate()
    assert not is_open(tmp_path, "d")
    Journal(tmp_path, "d", 1 << 20).close()


def test_a_journal_that_cannot_be_read_is_not_left_locked(tmp_path, monkeypatch):
    Journal(tmp_path, "d", 1 << 20).close()
    with monkeypatch.context() as patch:
        patch.setattr(journal_module, "tail_totals", lambda *_: (_ for _ in ()).throw(OSError(errno.EIO, "disk")))
        with pytest.raises(OSError, match="disk"):
            Journal(tmp_path, "d", 1 << 20)
    assert not is_open(tmp_path, "d")


def test_who_may_read_a_journal_cannot_keep_its_daemon_from_it(tmp_path):
    Journal(tmp_path, "d", 1 << 20).close()
    assert stat.S_IMODE((tmp_path / ".d.lock").stat().st_mode) == 0o600
    with (tmp_path / "d-1.jsonl").open("rb") as reader:
        fcntl.flock(reader, fcntl.LOCK_SH)
        Journal(tmp_path, "d", 1 << 20).close()


def test_a_daemon_that_waits_for_room_still_has_its_journal(tmp_path, monkeypatch):
    journal = Journal(tmp_path, "d", 1 << 20)
    with monkeypatch.context() as patch:
        patch.setattr(journal_module, "_write_all", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
        with pytest.raises(OSError, match="full"):
            journal.append([Line(event="started")])
    assert is_open(tmp_path, "d")
    journal.append([Line(event="started")])
    journal.close()
    assert not is_open(tmp_path, "d")


def test_a_look_at_the_lock_does_not_keep_a_daemon_from_starting(tmp_path, monkeypatch):
    """What `moodbox status` does at the very moment, however long a moment lasts here."""
    monkeypatch.setattr(journal_lock, "SECONDS", 30.0)
    Journal(tmp_path, "d", 1 << 20).close()
    with (tmp_path / ".d.lock").open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        timer = threading.Timer(0.1, fcntl.flock, (file, fcntl.LOCK_UN))
        timer.start()
        Journal(tmp_path, "d", 1 << 20).close()
        timer.join()
