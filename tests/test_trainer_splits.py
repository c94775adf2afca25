import fcntl
import hashlib
import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer import durable, split_record, splits, twins
from trainer.errors import FailureError
from trainer.split_record import NAME, DamagedRecordError, Entry
from trainer.splits import Found, Fractions

FRACTIONS = Fractions(0.25, 0.25)
CHAIN = 6  # photos of a series; each is a twin of the next two


def sha256(text):
    return hashlib.sha256(str(text).encode()).hexdigest()


def fingerprint(series, step=0):
    """Give the fingerprint of a photo of a series that changes bit by bit: 4 of the low bits at each step."""
    bits = np.random.default_rng(series).integers(0, 2, (16, 16), np.uint8)
    low = bits[:8, :8].ravel().copy()
    low[: 4 * step] ^= 1
    bits[:8, :8] = low.reshape(8, 8)
    return np.packbits(bits.ravel()).tobytes()


def photo(series, step=0, label=0):
    return Found(f"class{label}/{series}-{step}.jpg", label, sha256((series, step)), fingerprint(series, step))


def near(one, other):
    both = np.frombuffer(one.phash + other.phash, np.uint8).reshape(2, twins.BYTES)
    return len(twins.pairs(both, np.arange(2), np.zeros(2, np.int64))) > 0


def draw(found, record=None, fractions=FRACTIONS):
    return splits.draw(found, record or {}, fractions)


def recorded(found, split):
    return {found.sha256: Entry(found.phash, split)}


def series_of(split, steps=1):
    """Find a series whose photos' own hashes ask for this split."""
    return next(i for i in range(10_000) if all(FRACTIONS.split(photo(i, s).sha256) == split for s in range(steps)))


UNIVERSE = [photo(series, step) for series in range(5) for step in range(CHAIN)] + [
    Found(f"class0/flat{i}.jpg", 0, sha256(f"flat{i}"), b"") for i in range(5)
]
NEAR = {(a.sha256, b.sha256) for a in UNIVERSE for b in UNIVERSE if a is not b and a.phash and b.phash and near(a, b)}


def test_the_universe_of_these_tests_has_chains():
    assert len(NEAR) == 5 * 2 * (CHAIN - 1 + CHAIN - 2)


@given(
    st.lists(
        st.tuples(st.sets(st.sampled_from(range(len(UNIVERSE)))), st.sampled_from([0.1, 0.25, 0.4])),
        min_size=1,
        max_size=6,
    )
)
def test_whatever_is_added_and_removed_no_photo_moves_and_twins_are_together(steps):
    record = {}
    for present, share in steps:
        found = [UNIVERSE[i] for i in present]
        drawn = draw(found, record, Fractions(share, share))
        for known, entry in record.items():
            assert drawn.splits.get(known, entry.split) == entry.split
        assert drawn.splits.keys() | drawn.left_out.keys() == {p.sha256 for p in found}
        assert not drawn.splits.keys() & drawn.left_out.keys()
        assert not drawn.new.keys() & record.keys()
        record |= drawn.new
        assert drawn.splits.keys() <= record.keys()
        for one, other in NEAR:
            if one in drawn.splits and other in record:
                assert drawn.splits[one] == record[other].split


@given(st.randoms(use_true_random=False), st.sets(st.sampled_from(range(len(UNIVERSE)))))
def test_the_order_in_which_photos_are_found_does_not_matter(random, present):
    found = [UNIVERSE[i] for i in present]
    before = draw(found)
    random.shuffle(found)
    assert draw(found) == before


def test_a_photo_without_twins_goes_by_its_hash_so_that_two_machines_agree():
    found = [photo(series) for series in range(40)]
    assert draw(found).splits == {p.sha256: FRACTIONS.split(p.sha256) for p in found}
    assert len(set(draw(found).splits.values())) == 3


def test_new_twins_go_together_by_the_smallest_hash():
    for series in range(30):
        found = [photo(series, step) for step in range(CHAIN)]
        drawn = draw(found)
        expected = FRACTIONS.split(min(p.sha256 for p in found))
        assert set(drawn.splits.values()) == {expected}
        assert drawn.twins == (tuple(sorted(p.sha256 for p in found)),)


def test_a_new_photo_joins_its_recorded_twin_also_one_that_is_gone():
    series = series_of("train", 3)
    old, new, next_to_new = photo(series), photo(series, 2), photo(series, 4)
    for found in ([old, new, next_to_new], [new, next_to_new]):
        drawn = draw(found, recorded(old, "test"))
        assert {drawn.splits[p.sha256] for p in found} == {"test"}
    assert draw([new, next_to_new]).splits[new.sha256] == "train"


def test_a_photo_between_two_splits_is_left_out_and_both_are_named():
    first, between, last = photo(0), photo(0, 2), photo(0, 4)
    record = recorded(first, "train") | recorded(last, "test")
    drawn = draw([first, between, last], record)
    left = drawn.left_out[between.sha256]
    assert left.kind == "bridge"
    assert "class0/0-0.jpg (train)" in left.reason
    assert "class0/0-4.jpg (test)" in left.reason
    assert set(left.of) == {first.path, last.path}
    assert drawn.splits == {first.sha256: "train", last.sha256: "test"}
    assert drawn.new == {}
    alone = draw([between], record).left_out[between.sha256]
    assert alone.reason.count("a photo that was removed") == 2
    assert alone.of == ()


def test_near_duplicates_in_two_classes_are_both_left_out():
    happy, sad, bystander, other = photo(0), photo(0, 1, label=1), photo(0, 3), photo(1)
    drawn = draw([happy, sad, other])
    assert drawn.splits.keys() == {other.sha256}
    assert {s: (left.kind, left.of) for s, left in drawn.left_out.items()} == {
        happy.sha256: ("contradiction", (sad.path,)),
        sad.sha256: ("contradiction", (happy.path,)),
    }
    assert "nearly the same photo as class1/0-1.jpg" in drawn.left_out[happy.sha256].reason
    assert "(and 1 more)" in draw([happy, sad, bystander]).left_out[sad.sha256].reason
    assert drawn.new.keys() == {other.sha256}
    drawn = draw([happy, sad], recorded(happy, "test"))
    assert drawn.splits == {}


def test_a_picture_without_fingerprint_is_nobodys_twin():
    found = [Found(f"{i}.jpg", i % 2, sha256(i), b"") for i in range(30)]
    drawn = draw(found)
    assert drawn.twins == ()
    assert drawn.left_out == {}
    assert drawn.splits == {p.sha256: FRACTIONS.split(p.sha256) for p in found}


def test_a_chain_of_near_duplicates_ends(monkeypatch):
    """Without an end, one false step after the other could take all photos into one split."""
    monkeypatch.setattr(splits, "LONGEST", 3)
    ends = 0
    for series in range(40):
        found = [photo(series, step) for step in range(12)]
        drawn = draw(found)
        assert drawn.splits.keys() | drawn.left_out.keys() == {p.sha256 for p in found}
        ends += len(set(drawn.splits.values())) > 1
        for one in found:
            for other in found:
                if one.sha256 in drawn.splits and other.sha256 in drawn.splits and near(one, other):
                    assert drawn.splits[one.sha256] == drawn.splits[other.sha256]
    assert ends > 10


def test_what_touches_the_end_of_a_chain_goes_by_its_own_hash_or_is_left_out(monkeypatch):
    monkeypatch.setattr(splits, "LONGEST", 3)
    found = [Found(f"{i}.jpg", 0, sha256(i), fingerprint(0)) for i in range(12)]
    drawn = draw(found)
    ordered = sorted(p.sha256 for p in found)
    first = FRACTIONS.split(ordered[0])
    joined = set(ordered[:3]) | {s for s in ordered if FRACTIONS.split(s) == first}
    assert drawn.splits == dict.fromkeys(joined, first)
    assert drawn.left_out.keys() == set(ordered) - joined
    assert len(joined) < 12
    assert all("at the end of a chain of 3 near duplicates" in left.reason for left in drawn.left_out.values())


def test_in_a_crowd_too_the_order_does_not_matter(monkeypatch):
    monkeypatch.setattr(splits, "LONGEST", 3)
    monkeypatch.setattr(twins, "MOST", 2)
    found = [Found(f"{i}.jpg", 0, sha256(i), fingerprint(0)) for i in range(30)]
    assert draw(found[::-1]) == draw(found) == draw(found[15:] + found[:15])


# On disk


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    return folder


def settle(root, found, fractions=FRACTIONS, record=None):
    return splits.settle(root, found, fractions, split_record.read(root) if record is None else record)


def test_the_record_has_a_line_for_each_photo_and_reads_back(root):
    found = [photo(series) for series in range(10)] + [Found("flat.jpg", 0, sha256("flat"), b"")]
    drawn, note = settle(root, found)
    assert note == ""
    lines = (root / NAME).read_bytes().splitlines()
    assert len(lines) == 11
    assert b'"phash":"' + found[0].phash.hex().encode() + b'","split":"' in (root / NAME).read_bytes()
    assert split_record.read(root) == drawn.new
    assert {s: entry.split for s, entry in split_record.read(root).items()} == drawn.splits
    assert os.listdir(root) == [NAME]


def test_fractions_change_for_new_photos_only(root):
    old, new = [photo(series) for series in range(30)], [photo(series) for series in range(30, 60)]
    before = settle(root, old)[0].splits
    after = settle(root, [*old, *new], Fractions(1e-6, 1e-6))[0].splits
    assert {s: after[s] for s in before} == before
    assert {after[p.sha256] for p in new} == {"train"}


def test_a_run_that_finds_nothing_new_writes_nothing(root, monkeypatch):
    found = [photo(series) for series in range(10)]
    settle(root, found)
    before = (root / NAME).stat()

    def refuse(*_):
        raise AssertionError("written")

    monkeypatch.setattr(durable, "write_new", refuse)
    settle(root, found)
    settle(root, found[:3])
    assert (root / NAME).stat().st_ino == before.st_ino


def test_new_lines_come_behind_the_old_ones_and_the_removed_stay(root):
    settle(root, [photo(0), photo(1)])
    before = (root / NAME).read_bytes()
    settle(root, [photo(1), photo(2)])
    after = (root / NAME).read_bytes()
    assert after.startswith(before)
    assert len(after.splitlines()) == 3


GOOD = b'{"sha256":"' + b"a" * 64 + b'","phash":"","split":"test"}\n'


@pytest.mark.parametrize(
    "bad",
    [
        GOOD[:-1],  # the end of the line is missing: the file was cut
        GOOD[:40] + b"\n",
        b"\n",
        b"\xff\xfe\n",
        b"[]\n",
        b'"text"\n',
        b"null\n",
        GOOD.replace(b"test", b"tset"),
        GOOD.replace(b'"test"', b"1"),
        GOOD.replace(b"a" * 64, b"a" * 63),
        GOOD.replace(b"a" * 64, b"A" * 64),
        GOOD.replace(b'"phash":""', b'"phash":"12"'),
        GOOD.replace(b'"phash":""', b'"phash":null'),
        GOOD.replace(b"test", b"train"),  # the same photo again, elsewhere
    ],
)
def test_a_damaged_record_is_one_line_of_error_and_no_new_split(root, bad):
    (root / NAME).write_bytes(GOOD + bad)
    with pytest.raises(DamagedRecordError, match=r"\.moodbox-splits\.jsonl: line 2 is damaged") as caught:
        settle(root, [photo(0)])
    assert "\n" not in str(caught.value)
    assert (root / NAME).read_bytes() == GOOD + bad


def test_a_record_that_cannot_be_read_is_an_error(root):
    (root / NAME).mkdir()
    with pytest.raises(DamagedRecordError, match="cannot be read: not a regular file"):
        split_record.read(root)


def test_a_record_that_is_a_pipe_is_not_waited_for(root):
    os.mkfifo(root / NAME)
    with pytest.raises(DamagedRecordError, match="not a regular file"):
        split_record.read(root)


def test_a_record_in_a_form_of_a_later_version_keeps_its_splits(root):
    (root / NAME).write_bytes(GOOD.replace(b"}", b',"source":"camera"}') + GOOD)
    assert split_record.read(root) == {"a" * 64: Entry(b"", "test")}


@pytest.mark.parametrize("name", ["write_new", "sync_directory"])
def test_a_folder_that_cannot_be_written_is_said_in_one_line(root, monkeypatch, name):
    def refuse(*_):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(durable, name, refuse)
    drawn, note = settle(root, [photo(0)])
    assert drawn.splits.keys() == {photo(0).sha256}
    if name == "write_new":
        assert "the split could not be recorded (Read-only file system)" in note
        assert "\n" not in note
        assert os.listdir(root) == []
    else:
        assert note == ""
        assert len(split_record.read(root)) == 1


class Killed(BaseException):
    pass


@pytest.mark.parametrize("name", ["fsync", "rename"])
def test_a_crash_while_writing_leaves_the_old_record(root, monkeypatch, name):
    settle(root, [photo(0)])
    before = (root / NAME).read_bytes()

    def die(*_):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(durable.os, name, die)
        with pytest.raises(Killed):
            settle(root, [photo(0), photo(1)])
    assert (root / NAME).read_bytes() == before
    assert os.listdir(root) == [NAME]


def test_what_another_run_recorded_meanwhile_counts(root):
    """Two runs begin with no record: the second one takes the first one's splits, and adds its own."""
    everything_to_test = Fractions(0.0, 1.0)
    settle(root, [photo(series) for series in range(10)], everything_to_test)
    drawn, _ = settle(root, [photo(series) for series in range(20)], FRACTIONS, record={})
    assert {drawn.splits[photo(series).sha256] for series in range(10)} == {"test"}
    record = split_record.read(root)
    assert len(record) == 20
    assert {s: entry.split for s, entry in record.items()} == drawn.splits


def test_two_runs_do_not_write_at_the_same_time(root):
    import fcntl

    with split_record.locked(root):
        other = os.open(root, os.O_RDONLY)
        with pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(other)


def test_a_lock_that_somebody_keeps_is_not_waited_for_for_ever(root, monkeypatch):
    monkeypatch.setattr(split_record, "LOCK_SECONDS", 0.2)
    other = os.open(root, os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_SH)
    with pytest.raises(FailureError, match="another program holds a lock on this folder"), split_record.locked(root):
        pass
    os.close(other)


def test_a_file_system_without_locks_or_directory_fsync_will_do(root, monkeypatch):
    def refuse(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(durable.fcntl, "flock", refuse)
    monkeypatch.setattr(durable, "sync_directory", refuse)
    assert settle(root, [photo(0)])[1] == ""
    assert len(split_record.read(root)) == 1
