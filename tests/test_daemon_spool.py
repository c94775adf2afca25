"""daemon.spool, daemon.places, daemon.writers: a file exists exactly once, with its bytes; nothing is overwritten."""

import errno
import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from daemon import fs, writers
from daemon.batch import Batch, Claimed, Move, new_name, split_folder
from daemon.inbox import remove_folder
from daemon.intake import Sighting
from daemon.spool import Spool
from daemon.watcher import Scanner
from daemon_parts import NOBODY, House, as_user, files_in, house, needs_root


@pytest.fixture
def home(tmp_path):
    with house(tmp_path) as made:
        yield made


ODD = [
    b"-rf", b"--", b"a\nb", b" ", b"...", b"..a", b"\xff\xfe.jpg", b"\x80" * 255, b"IMG.JPG", b"img.jpg", b"Img.jpg",
    b"x" * 255, b"x" * 251 + b".jpg", "ä".encode() * 127, b"a.jpg", b"a-2.jpg", b"a-3.jpg", b"a", b"b", b"*", b"$(id)",
    b"\\x80", b"\x1b[2J", "\u2028.png".encode(), b"happy", b"inbox", b"lock", b".moodbox2",
]  # fmt: skip
NAME = st.sampled_from(ODD) | st.binary(min_size=1, max_size=255).filter(
    lambda n: not {0, 47} & set(n) and n not in (b".", b"..")
)
PATH = st.lists(NAME, min_size=1, max_size=4).map(lambda parts: os.fsdecode(b"/".join(parts)))
FOLDER = st.sampled_from(["happy", "sad", "review", "rejected"])
THERE = st.sampled_from(["file", "folder", "link", "link to a folder"])


def try_to_lay(folder, path, kind, data, outside):
    """Put something there, as far as what is there already lets us."""
    whole = os.path.join(folder, path)
    try:
        os.makedirs(os.path.dirname(whole), exist_ok=True)
        if kind == "file":
            with open(whole, "xb") as file:
                file.write(data)
        elif kind == "folder":
            os.mkdir(whole)
        else:
            os.symlink("nowhere" if kind == "link" else outside, whole)
    except OSError:
        return False
    return True


def deliver_all(home, batch, places, race=()):
    """Choose and deliver until nothing is in the way; `race` are moves whose place a person takes first."""
    reserved, racing = set(), set(race)
    pending = [Move(c, home.spool.choose(places[c.file], c, reserved)) for c in batch.files]
    for _ in range(20):
        for move in pending:
            if move.claimed.file in racing:
                racing.discard(move.claimed.file)
                try_to_lay(home.root, move.destination, "file", b"raced " + os.fsencode(move.destination), "")
        delivered = {m.claimed.file: m.destination for m in pending}
        taken = home.spool.deliver(home.own.folder, batch.folder, pending)
        yield {f: d for f, d in delivered.items() if f not in {m.claimed.file for m in taken}}
        if not taken:
            return
        reserved = set()
        pending = [Move(m.claimed, home.spool.choose(places[m.claimed.file], m.claimed, reserved)) for m in taken]
    raise AssertionError("no end to it")


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_whatever_the_names_and_clashes_every_file_is_delivered_once_and_nothing_is_overwritten(data):
    with tempfile.TemporaryDirectory() as base, house(base) as home:
        outside = os.path.join(base, "outside")
        os.mkdir(outside)
        dropped = data.draw(st.lists(PATH, min_size=1, max_size=8, unique=True))
        dropped = [p for p in dropped if try_to_lay(home.root / "inbox", p, "file", b"dropped " + os.fsencode(p), "")]
        assume(dropped)
        places = {path: data.draw(FOLDER) for path in dropped}
        for path in dropped:  # clashes with the file, or with one of its folders
            if data.draw(st.booleans()):
                depth = data.draw(st.integers(1, path.count("/") + 1))
                where = "/".join((places[path], *path.split("/")[:depth]))
                try_to_lay(home.root, where, data.draw(THERE), b"there " + os.fsencode(where), outside)
        there = {p: b for p, b in home.files().items() if not p.startswith("inbox/")}
        folders = {str(p.relative_to(home.root)) for p in home.root.rglob("*") if p.is_dir()}

        batch = home.claim(*dropped)
        assert {c.file for c in batch.files} == set(dropped)
        delivered = {}
        for done in deliver_all(home, batch, places, data.draw(st.sets(st.sampled_from(dropped)))):
            delivered |= done
        home.spool.finish(batch)

        after = home.files()
        raced = {p for p, b in after.items() if b.startswith(b"raced ")}
        assert {p: after[p] for p in there} == there, "a person's file was overwritten"
        assert {f: after.pop(d) for f, d in delivered.items()} == {p: b"dropped " + os.fsencode(p) for p in dropped}
        assert set(after) - raced == set(there), "a file is in two places, or came from nowhere"
        assert not os.listdir(outside), "a link was followed"
        assert [n for n in os.listdir(home.own.folder) if n != "lock"] == []
        for file, destination in delivered.items():
            assert destination.count("/") == file.count("/") + 1
            blocked = destination in there or destination in folders or raced
            assert blocked or destination == f"{places[file]}/{file}" or "-" in destination


def test_the_structure_is_kept(home):
    home.drop({"trip/day 1/a.jpg": b"a", "b.jpg": b"b"})
    batch = home.claim("trip/day 1/a.jpg", "b.jpg")
    assert [c.id for c in batch.files] == [f"{batch.name}-0", f"{batch.name}-1"]
    *_, delivered = deliver_all(home, batch, {"trip/day 1/a.jpg": "happy", "b.jpg": "sad"})
    assert home.files() == {"happy/trip/day 1/a.jpg": b"a", "sad/b.jpg": b"b"}
    assert delivered == {"trip/day 1/a.jpg": "happy/trip/day 1/a.jpg", "b.jpg": "sad/b.jpg"}


def test_files_of_one_batch_do_not_choose_the_same_place(home):
    ids = [Claimed(f"id{n}", "a.jpg") for n in range(30)]
    reserved = set()
    chosen = [home.spool.choose("happy", claimed, reserved) for claimed in ids]
    assert len(set(chosen)) == 30
    assert chosen[:3] == ["happy/a.jpg", "happy/a-2.jpg", "happy/a-3.jpg"]
    assert chosen[-1] == "happy/a-id29.jpg"


def test_a_clash_in_another_folder_is_none(home):
    home.drop({"trip/a.jpg": b"a"})
    (home.root / "happy" / "a.jpg").write_bytes(b"there")
    list(deliver_all(home, home.claim("trip/a.jpg"), {"trip/a.jpg": "happy"}))
    assert home.files() == {"happy/trip/a.jpg": b"a", "happy/a.jpg": b"there"}


def test_of_two_claims_only_one_gets_the_file(tmp_path):
    with house(tmp_path) as one, house(tmp_path) as two:
        assert (one.own.name, two.own.name) == ("d", "d-2")
        one.drop({"a.jpg": b"a"})
        claims = [one.claim("a.jpg"), two.claim("a.jpg")]
        assert [len(c.files) for c in claims] == [1, 0]
        assert os.listdir(two.own.folder) == ["lock"], "an empty batch leaves nothing behind"


def test_a_name_that_is_used_again_while_it_is_claimed_is_another_file(home):
    home.drop({"a.jpg": b"first"})
    first = home.claim("a.jpg")
    home.drop({"a.jpg": b"second"})
    second = home.claim("a.jpg")
    for batch in (second, first):
        list(deliver_all(home, batch, {"a.jpg": "happy"}))
    assert home.files() == {"happy/a.jpg": b"second", "happy/a-2.jpg": b"first"}


def test_what_is_gone_or_hidden_behind_a_link_is_not_claimed(home, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a.jpg").write_bytes(b"not dropped")
    (home.root / "inbox" / "link").symlink_to(tmp_path / "elsewhere")
    claim = home.spool.claim(["gone.jpg", "gone/a.jpg", "link/a.jpg"], 1, {})
    assert (claim.batch.files, claim.blocked, claim.fault) == ((), {}, None)
    assert (tmp_path / "elsewhere" / "a.jpg").read_bytes() == b"not dropped"


def test_the_links_themselves_are_claimed_and_not_what_they_point_at(home, tmp_path):
    (tmp_path / "secret").write_bytes(b"secret")
    (home.root / "inbox" / "link.jpg").symlink_to(tmp_path / "secret")
    batch = home.claim("link.jpg")
    list(deliver_all(home, batch, {"link.jpg": "rejected"}))
    assert os.readlink(home.root / "rejected" / "link.jpg") == str(tmp_path / "secret")


def test_a_full_disk_ends_a_claim_but_what_was_moved_is_known(home, monkeypatch):
    home.drop({"a": b"a", "b": b"b", "c": b"c"})
    real = fs.rename_noreplace

    def full_at_b(source, name, target, new_name):
        if name == "b":
            raise OSError(errno.ENOSPC, "full")
        real(source, name, target, new_name)

    monkeypatch.setattr(fs, "rename_noreplace", full_at_b)
    claim = home.spool.claim(["a", "b", "c"], 1, {"a": 5.0})
    assert claim.fault.errno == errno.ENOSPC
    assert [(c.file, c.queued_ms) for c in claim.batch.files] == [("a", 5.0)]
    assert set(os.listdir(home.root / "inbox")) == {"b", "c"}


def test_a_disk_without_room_for_a_batch_is_a_fault_of_the_claim(home, monkeypatch):
    home.drop({"a": b"a"})

    def full(*_args, **_kwargs):
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "mkdir", full)
    claim = home.spool.claim(["a"], 1, {})
    assert claim.fault.errno == errno.ENOSPC
    assert claim.batch.files == ()


@needs_root
def test_what_belongs_to_others_waits_and_is_named(home):
    """The daemon is nobody; root's folder can be read, not written, and root's file cannot be read."""
    home.drop({"mine.jpg": b"m", "roots/a.jpg": b"a", "closed/b.jpg": b"b", "private.jpg": b"p"})
    inbox = home.root / "inbox"
    for path in (home.root, *home.root.rglob("*")):
        os.chown(path, NOBODY, NOBODY)
    for name, mode in (("roots", 0o755), ("closed", 0o700), ("private.jpg", 0o600)):
        os.chown(inbox / name, 0, 0)
        (inbox / name).chmod(mode)
    seen = {s.file: s for s in Scanner(()).scan(home.fd, 10, lambda _: False)}
    seen["closed/b.jpg"] = Sighting("closed/b.jpg", "file", 1, 0, 0)

    def claimed():
        spool = Spool(home.fd, home.own.folder)
        ready = {s.file: why for s, why in writers.readiness(home.fd, seen.values())}
        claim = spool.claim(["mine.jpg", "roots/a.jpg", "closed/b.jpg"], 1, {})
        return ready["private.jpg"], ready["mine.jpg"], [c.file for c in claim.batch.files], claim.blocked, claim.fault

    text = "the daemon may not read or move it"
    blocked = {"roots/a.jpg": text, "closed/b.jpg": text}
    assert as_user(NOBODY, claimed) == (text, None, ["mine.jpg"], blocked, None)


@needs_root
@pytest.mark.parametrize("deep", ["", "deep/", "deep/deeper/"])
def test_a_persons_own_folder_in_a_class_folder_is_left_alone(home, deep):
    """Also where the folders below it are still to be made."""
    home.drop({f"trip/{deep}a.jpg": b"a"})
    (home.root / "happy" / "trip").mkdir()
    for path in (home.root, *home.root.rglob("*")):
        os.chown(path, NOBODY, NOBODY)
    os.chown(home.root / "happy" / "trip", 0, 0)
    (home.root / "happy" / "trip").chmod(0o755)

    def delivered():
        home.spool = Spool(home.fd, home.own.folder)
        list(deliver_all(home, home.claim(f"trip/{deep}a.jpg"), {f"trip/{deep}a.jpg": "happy"}))

    as_user(NOBODY, delivered)
    assert home.files() == {f"happy/trip-2/{deep}a.jpg": b"a"}


@pytest.mark.parametrize("code", [errno.EXDEV, errno.EPERM])
def test_a_folder_that_refuses_without_looking_like_it_is_left_alone(home, monkeypatch, code):
    """A mount below a class folder, or an immutable folder."""
    home.drop({"trip/deep/a.jpg": b"a"})
    (home.root / "happy" / "trip" / "deep").mkdir(parents=True)
    refusing = (home.root / "happy" / "trip" / "deep").stat().st_ino
    real = fs.rename_noreplace

    def refuse(source, name, target, new_name):
        if os.fstat(target).st_ino == refusing:
            raise OSError(code, os.strerror(code))
        real(source, name, target, new_name)

    monkeypatch.setattr(fs, "rename_noreplace", refuse)
    rounds = list(deliver_all(home, home.claim("trip/deep/a.jpg"), {"trip/deep/a.jpg": "happy"}))
    assert home.files() == {"happy/trip-2/deep/a.jpg": b"a"}
    assert len(rounds) == 2


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EIO, errno.EDQUOT])
def test_a_fault_of_the_environment_is_raised_and_nothing_is_lost(home, monkeypatch, code):
    home.drop({"trip/a.jpg": b"a"})
    batch = home.claim("trip/a.jpg")
    with monkeypatch.context() as patch:
        patch.setattr(fs, "rename_noreplace", lambda *_: (_ for _ in ()).throw(OSError(code, "fault")))
        with pytest.raises(OSError, match="fault"):
            list(deliver_all(home, batch, {"trip/a.jpg": "happy"}))
    list(deliver_all(home, batch, {"trip/a.jpg": "happy"}))
    assert home.files() == {"happy/trip/a.jpg": b"a"}


def test_a_class_folder_that_is_no_folder_is_a_fault(home):
    home.drop({"a.jpg": b"a"})
    batch = home.claim("a.jpg")
    (home.root / "happy").rmdir()
    (home.root / "happy").symlink_to("sad")
    with pytest.raises(OSError, match="happy is no plain folder"):
        home.spool.choose("happy", batch.files[0], set())


def test_a_class_folder_that_a_person_removed_is_made_again(home):
    home.drop({"a.jpg": b"a"})
    batch = home.claim("a.jpg")
    (home.root / "happy").rmdir()
    list(deliver_all(home, batch, {"a.jpg": "happy"}))
    assert home.files() == {"happy/a.jpg": b"a"}


def test_repeating_a_delivery_does_no_harm(home):
    home.drop({"a.jpg": b"a", "b.jpg": b"b"})
    batch = home.claim("a.jpg", "b.jpg")
    moves = [Move(c, f"happy/{c.file}") for c in batch.files]
    assert home.spool.deliver(home.own.folder, batch.folder, moves[:1]) == []
    assert home.spool.deliver(home.own.folder, batch.folder, moves) == []
    home.spool.finish(batch)
    assert home.spool.deliver(home.own.folder, batch.folder, moves) == []
    home.spool.finish(batch)
    assert home.files() == {"happy/a.jpg": b"a", "happy/b.jpg": b"b"}


def old_nfs(_source, name, _target, new_name):
    """As the kernel does it: a source that is missing first, then the file system's refusal."""
    raise OSError(errno.EINVAL, "Invalid argument", name, None, new_name)


def test_without_the_kernels_promise_every_delivered_name_carries_the_id(home, monkeypatch):
    monkeypatch.setattr(fs, "rename_noreplace", old_nfs)
    home.drop({"trip/a.jpg": b"a", "b.jpg": b"b"})
    (home.root / "happy" / "trip").symlink_to("nowhere")
    batch = home.claim("trip/a.jpg", "b.jpg")
    list(deliver_all(home, batch, {"trip/a.jpg": "happy", "b.jpg": "sad"}))
    ids = [c.id for c in batch.files]
    assert home.files() == {
        "happy/trip": b"nowhere", f"happy/trip-2/a-{ids[0]}.jpg": b"a", f"sad/b-{ids[1]}.jpg": b"b",
    }  # fmt: skip


def test_without_the_promise_a_delivery_that_goes_on_redirects_nothing(home, monkeypatch):
    monkeypatch.setattr(fs, "rename_noreplace", old_nfs)
    home.drop({"a.jpg": b"a", "b.jpg": b"b"})
    batch = home.claim("a.jpg", "b.jpg")
    moves = [Move(c, f"happy/{c.id}.jpg") for c in batch.files]
    assert home.spool.deliver(home.own.folder, batch.folder, moves[:1]) == []
    assert home.spool.deliver(home.own.folder, batch.folder, moves) == [], "what is there already is no other's"


def test_without_the_promise_a_name_that_a_line_gave_before_is_not_used(home, monkeypatch):
    home.drop({"a.jpg": b"a"})
    batch = home.claim("a.jpg")
    monkeypatch.setattr(fs, "rename_noreplace", old_nfs)
    home.spool = Spool(home.fd, home.own.folder)
    for _ in range(2):
        move = Move(batch.files[0], "happy/a.jpg")
        assert home.spool.deliver(home.own.folder, batch.folder, [move]) == [move]
    assert home.spool.choose("happy", batch.files[0], set()) == f"happy/a-{batch.files[0].id}.jpg"


def sighting(home, file):
    return next(Scanner(()).look(home.fd, [file]))[1]


def readiness(home, seen):
    return next(writers.readiness(home.fd, [seen]))[1]


def test_a_file_is_ready_only_as_it_was_seen_last_and_without_a_writer(home):
    home.drop({"a.jpg": b"a"})
    seen = sighting(home, "a.jpg")
    assert readiness(home, seen) is None
    with open(home.root / "inbox" / "a.jpg", "ab") as file:
        assert readiness(home, seen) == "changing"
        file.write(b"more")
    assert readiness(home, seen) == "changing", "it was written since it settled"
    assert readiness(home, sighting(home, "a.jpg")) is None
    (home.root / "inbox" / "a.jpg").unlink()
    assert readiness(home, seen) is None, "the claim finds out"
    (home.root / "inbox" / "a.jpg").mkdir()
    assert readiness(home, seen) == "changing"


def test_a_claimed_file_that_changes_is_not_settled(home):
    home.drop({"a.jpg": b"a"})
    batch = home.claim("a.jpg")
    path = home.spool.path(batch, "a.jpg")
    st_ = os.stat(path)
    seen = (st_.st_ino, st_.st_size, st_.st_mtime_ns)
    assert writers.is_settled(path, seen)
    with open(path, "rb+"):
        assert not writers.is_settled(path, seen)
    os.utime(path, (1, 1))
    assert not writers.is_settled(path, seen)
    os.unlink(path)
    assert writers.is_settled(path, seen)


def test_setting_files_aside_can_be_repeated_and_keeps_the_rest(home, monkeypatch):
    home.drop({"a": b"a", "sub/b": b"b", "c": b"c"})
    batch = home.claim("a", "sub/b", "c")
    real, left = fs.rename_noreplace, [1]

    def full_after_one(*args):
        if not left:
            raise OSError(errno.ENOSPC, "full")
        left.pop()
        real(*args)

    monkeypatch.setattr(fs, "rename_noreplace", full_after_one)
    with pytest.raises(OSError, match="full"):
        home.spool.set_aside(batch, ["a", "sub/b"], "1-aside")
    left[:] = [1, 1]
    aside = home.spool.set_aside(batch, ["a", "sub/b"], "1-aside")
    assert aside.folder == "1-aside.0"
    assert fs.files_below(home.own.folder, aside.folder) == ["a", "sub/b"]
    assert fs.files_below(home.own.folder, batch.folder) == ["c"]


def test_an_attempt_is_counted_in_the_folders_name_and_can_be_repeated(home, monkeypatch):
    home.drop({"a": b"a"})
    batch = home.claim("a")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(errno.EIO, "disk")))
        with pytest.raises(OSError, match="disk"):
            home.spool.begin_alone(batch)
    begun = home.spool.begin_alone(batch)
    assert begun.attempt == 1
    assert Path(os.fsdecode(home.spool.path(begun, "a"))).read_bytes() == b"a"
    assert split_folder(begun.folder) == (batch.name, 1)


def test_only_batches_look_like_batches():
    name = new_name(12)
    assert split_folder(Batch(name, 3, ()).folder) == (name, 3)
    for other in ("lock", ".new-12", "x-1.0", "12-ab", "12-ab.x", ""):
        with pytest.raises(ValueError, match=r".*"):
            split_folder(other)


def test_inbox_folders_are_removed_only_when_empty(home):
    home.drop({"a/b/photo": b"x"})
    remove_folder(home.fd, "a/b")
    assert (home.root / "inbox" / "a" / "b" / "photo").exists()
    (home.root / "inbox" / "a" / "b" / "photo").unlink()
    remove_folder(home.fd, "a/b")
    remove_folder(home.fd, "a/b")
    assert files_in(home.root) == {}
    assert os.listdir(home.root / "inbox" / "a") == []


def test_four_hundred_subfolders_at_once(tmp_path):
    with house(tmp_path) as home:
        assert isinstance(home, House)
        files = [f"{n}/a.jpg" for n in range(400)]
        home.drop({f: f.encode() for f in files})
        list(deliver_all(home, home.claim(*files), dict.fromkeys(files, "happy")))
        assert home.files() == {f"happy/{f}": f.encode() for f in files}
