"""daemon.intake: what is settled, and when a batch is due; time is a number here."""

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from daemon.intake import FEW, PIECE, Intake, Sighting

SETTLE, WAIT, SIZE, CAPACITY = 0.5, 0.05, 3, 7


def made(**options):
    return Intake(**{"batch_size": SIZE, "settle_seconds": SETTLE, "wait_seconds": WAIT} | options)


def seen(file, size=1, mtime_ns=1, inode=1, kind="file"):
    return Sighting(file, kind, size, mtime_ns, inode)


def files(batch):
    return [s.file for s in batch]


def test_a_file_is_settled_when_it_looks_the_same_twice_far_enough_apart():
    intake = made(wait_seconds=0.0)
    intake.see(seen("a"), 10.0)
    assert intake.batch(20.0) == [], "seen once, however long ago, says nothing"
    intake.see(seen("a"), 10.49)
    assert intake.batch(10.49) == []
    intake.see(seen("a"), 10.5)
    assert files(intake.batch(10.5)) == ["a"]


def test_any_change_starts_the_wait_again():
    for change in ({"size": 2}, {"mtime_ns": 2}, {"inode": 2}, {"kind": "symlink"}):
        intake = made(wait_seconds=0.0)
        intake.see(seen("a"), 0.0)
        intake.see(seen("a"), 0.5)
        assert len(intake.batch(0.5)) == 1
        intake.see(seen("a", **change), 0.6)
        assert intake.batch(5.0) == []
        intake.see(seen("a", **change), 1.09)
        assert intake.batch(1.09) == []
        intake.see(seen("a", **change), 1.1)
        assert len(intake.batch(1.1)) == 1


def test_a_full_batch_goes_at_once_and_a_small_one_when_its_oldest_has_waited():
    intake = made()
    for now in (0.0, 0.5):
        for name in "ab":
            intake.see(seen(name), now)
    assert intake.batch(0.5) == []
    assert intake.next_look() == 0.55
    assert files(intake.batch(0.55)) == ["a", "b"]
    for now in (0.0, 0.51):
        for name in "cd":
            intake.see(seen(name), now)
    assert files(intake.batch(0.51)) == ["a", "b", "c"], "the oldest first"


def test_a_small_batch_goes_at_once_where_nothing_is_in_work():
    intake = made()
    for now in (0.0, 0.5):
        intake.see(seen("a"), now)
    assert intake.batch(0.5) == []
    assert files(intake.batch(0.5, at_once=True)) == ["a"]
    intake.forget("a")
    assert intake.batch(0.5, at_once=True) == []


def test_a_file_that_is_being_written_lets_the_others_pass():
    intake = made(wait_seconds=0.0)
    for now in (0.0, 0.5):
        for name in "abcd":
            intake.see(seen(name), now)
    intake.defer("a", 0.5)
    assert files(intake.batch(0.5)) == ["b", "c", "d"]
    assert intake.unsettled(0.9) == []
    assert intake.unsettled(1.0) == ["a"]


def test_a_few_files_are_looked_at_with_every_event_but_not_thousands():
    intake = made()
    intake.see(seen("a"), 0.0)
    assert intake.unsettled(0.1) == []
    assert intake.unsettled(0.1, at_once=True) == ["a"]
    for number in range(FEW):
        intake.see(seen(str(number)), 0.1)
    assert intake.unsettled(0.2, at_once=True) == []
    assert intake.unsettled(0.5, at_once=True) == ["a"]


def test_thousands_that_are_due_are_looked_at_piece_by_piece_the_first_ones_first():
    intake, names = made(), [str(number) for number in range(PIECE + 10)]
    for name in names:
        intake.see(seen(name), 0.0)
    assert intake.unsettled(0.5) == names[:PIECE]
    for name in names[:PIECE]:
        intake.see(seen(name), 0.5)
    assert intake.unsettled(0.5) == names[PIECE:]


def test_what_is_forgotten_is_new_when_it_comes_again():
    intake = made(wait_seconds=0.0)
    intake.see(seen("a"), 1.0)
    assert "a" in intake
    assert intake.forget("a") == 1.0
    assert intake.forget("a") is None
    assert "a" not in intake
    intake.see(seen("a"), 2.0)
    assert intake.batch(2.0) == []


def test_the_next_look_is_when_something_becomes_due():
    intake = made()
    assert intake.next_look() is None
    intake.see(seen("a"), 0.9)
    intake.see(seen("b"), 1.0)
    assert intake.next_look() == 1.4
    intake.see(seen("a", size=2), 1.1)
    assert intake.next_look() == 1.5


def test_there_is_always_room_for_a_batch():
    assert made(batch_size=50, capacity=10).room == 50


class Producers(RuleBasedStateMachine):
    """Files that come, change and go; a daemon that looks now and then. `history`: sightings since a change."""

    def __init__(self):
        super().__init__()
        self.intake = made(capacity=CAPACITY)
        self.now = 100.0
        self.inbox = {}
        self.history = {}
        self.settled_at = {}
        self.done = 0

    def look(self, file):
        if file in self.intake and file not in self.inbox:
            self.intake.forget(file)
            self.history.pop(file, None)
            self.settled_at.pop(file, None)
        elif file in self.inbox and (file in self.intake or self.intake.room):
            sighting = seen(file, size=self.inbox[file])
            before = self.history.get(file, [])
            same = before if before and before[-1][1] == sighting else []
            self.history[file] = [*same, (self.now, sighting)]
            if not same:
                self.settled_at.pop(file, None)
            if self.now - self.history[file][0][0] >= SETTLE:
                self.settled_at.setdefault(file, self.now)
            self.intake.see(sighting, self.now)

    @rule(file=st.sampled_from("abcdefghij"), size=st.integers(1, 3))
    def write(self, file, size):
        self.inbox[file] = size

    @rule(file=st.sampled_from("abcdefghij"))
    def remove(self, file):
        self.inbox.pop(file, None)

    @rule(seconds=st.sampled_from([0.0, 0.01, 0.25, 0.5, 3.0]))
    def wait(self, seconds):
        self.now += seconds

    @rule(file=st.sampled_from("abcdefghij"))
    def see_one(self, file):
        self.look(file)

    @rule()
    def see_all(self):
        for file in sorted({*self.inbox, *self.history}):
            self.look(file)

    @precondition(lambda self: self.settled_at)
    @rule(data=st.data())
    def defer(self, data):
        file = data.draw(st.sampled_from(sorted(self.settled_at)))
        self.intake.defer(file, self.now)
        self.history[file] = [(self.now, self.history[file][-1][1])]
        del self.settled_at[file]

    @rule(at_once=st.booleans())
    def take_batch(self, at_once=False):
        batch = self.intake.batch(self.now, at_once=at_once)
        for sighting in batch:
            (first, _), (last, _) = self.history[sighting.file][0], self.history[sighting.file][-1]
            assert last - first >= SETTLE
            assert all(s == sighting for _, s in self.history[sighting.file])
        settled = len(self.settled_at)
        oldest = min(self.settled_at.values(), default=self.now)
        due = settled >= SIZE or (settled and (at_once or self.now - oldest >= WAIT))
        assert len(batch) == (min(SIZE, settled) if due else 0)
        if batch:
            assert self.settled_at[batch[0].file] == oldest, "the oldest is not in the batch"
        for sighting in batch:
            self.intake.forget(sighting.file)
            del self.history[sighting.file], self.settled_at[sighting.file]
            self.inbox.pop(sighting.file, None)

    @invariant()
    def what_is_tracked_is_what_was_seen(self):
        assert len(self.intake) == len(self.history) <= CAPACITY
        assert self.intake.room == CAPACITY - len(self.history)
        due = self.intake.next_look()
        assert (due is None) == (not self.history)

    def teardown(self):
        """Nobody writes any more: everything comes out, in as few batches as there can be."""
        for _ in range(12):
            for file in sorted({*self.inbox, *self.history}):
                self.look(file)
            self.now += SETTLE
            for file in self.intake.unsettled(self.now):
                self.look(file)
            self.now += WAIT
            while self.intake.batch(self.now):
                self.take_batch()
        assert not self.inbox
        assert self.intake.next_look() is None


Producers.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestProducers = Producers.TestCase
