"""moodbox learn: what people did with sorted photos becomes examples and lines; what nobody did teaches nothing."""

import fcntl
import hashlib
import os
import shutil
import signal
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import bundles
from daemon import command_line as moodbox
from daemon import learn, served
from daemon.events import Line
from daemon.history import fold
from daemon.journal import owners, read, segments
from daemon_parts import NOBODY, as_user, house, needs_root
from stand_in import make_service, settings_for
from test_daemon_service import picture
from trainer import bundle, deliveries, durable

BRIGHT = ("a.png", "b.png", "trip/c.png", "same.png")
DARK = ("d.png", "trip/e.png")


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A tray where four happy and two sad pictures were sorted, and one file rejected; six models, the 1st serves."""
    monkeypatch.setattr(learn.os, "nice", lambda _: 0)  # these tests go on after it
    return Home(tmp_path)


class Home:
    def __init__(self, root: Path) -> None:
        self.root, self.tray, self.training = root, root / "tray", root / "training"
        bundles.publish(root / "models", root / "staged")
        bundle.promote(root / "models", 1)
        with house(root):
            pass
        for mark, name in enumerate(BRIGHT):
            picture(self.tray / "inbox" / name, mark=mark)
        for mark, name in enumerate(DARK):
            picture(self.tray / "inbox" / name, shade=20, mark=mark)
        (self.tray / "inbox/text.jpg").write_text("no picture")
        os.utime(self.tray / "inbox/text.jpg", (1e9, 1e9))
        self.sort()

    def settings(self, **tables):
        places = {"models": {"root": str(self.root / "models")}, "dataset": {"root": str(self.training)},
                  "trainer": {"runs": str(self.root / "runs")}}  # fmt: skip
        return settings_for(self.root, **(places | tables))

    def sort(self, **tables) -> None:
        make_service(self.settings(**tables)).run()

    def learn(self, *, by_hand: bool = False, **tables) -> int:
        return learn.run(self.settings(**tables), by_hand=by_hand)

    def undo(self, *arguments: str) -> int:
        places = [f"--set=tray.root={self.tray}", f"--set=journal.root={self.root}/log", "--yes"]
        *flags, file = arguments
        return moodbox.main(["undo", *places, *flags, str(self.tray / file)])

    def move(self, source: str, target: str) -> str:
        """Move as a file manager does; return the photo's hash."""
        (self.tray / target).parent.mkdir(parents=True, exist_ok=True)
        os.rename(self.tray / source, self.tray / target)
        return self.hash(target)

    def hash(self, place: str) -> str:
        return hashlib.sha256((self.tray / place).read_bytes()).hexdigest()

    def examples(self) -> dict[str, str]:
        """Return the class of each example by its hash; each is what its name says."""
        files = [path for path in self.training.glob("*/*") if not path.name.startswith(".")]
        for path in files:
            assert hashlib.sha256(path.read_bytes()).hexdigest() == path.stem
        assert len({path.stem for path in files}) == len(files)
        return {path.stem: path.parent.name for path in files}

    def lines(self) -> list[Line]:
        return [line for _, path in segments(self.root / "log", "d-learn") for line in read(path) if line.id]


def test_a_photo_moved_to_another_class_is_learned_once(home, capsys):
    sha256 = home.move("happy/a.png", "sad/a.png")
    assert home.learn() == 0
    said, more = capsys.readouterr().out.splitlines()
    assert said == "learned 1: happy → sad"
    assert "moodbox-train retrain" in more
    assert home.examples() == {sha256: "sad"}
    [line] = home.lines()
    assert (line.event, line.label, line.predicted, line.was, line.model) == ("corrected", "sad", "happy", "happy", 7)
    assert (line.source, line.destination, line.sha256) == ("happy/a.png", "sad/a.png", sha256)
    assert line.score == pytest.approx(0.575, abs=0.01)
    for _ in range(2):
        assert home.learn() == 0
        assert "nothing new" in capsys.readouterr().out
    assert home.lines() == [line]


def test_what_stays_or_goes_teaches_nothing(home):
    home.move("happy/b.png", "happy/renamed.png")
    home.move("happy/trip/c.png", "happy/2026/c.png")
    os.remove(home.tray / "sad/d.png")
    home.move("sad/trip/e.png", "../elsewhere.png")
    assert home.learn() == 0
    assert home.examples() == {}
    assert {(line.event, line.destination) for line in home.lines()} == {
        ("moved", "happy/renamed.png"), ("moved", "happy/2026/c.png"),
    }  # fmt: skip


def test_what_was_renamed_is_not_read_again(home, monkeypatch):
    home.move("happy/b.png", "happy/renamed.png")
    assert home.learn() == 0
    monkeypatch.setattr(learn.Look, "sha256", lambda *_: pytest.fail("a photo in its place was read"))
    assert home.learn() == 0


def test_the_label_follows_a_photo_that_is_moved_again(home):
    sha256 = home.move("happy/a.png", "sad/a.png")
    home.learn()
    home.move("sad/a.png", "sad/sub/other.png")
    home.learn()
    assert home.examples() == {sha256: "sad"}
    home.move("sad/sub/other.png", "happy/a.png")
    home.learn()
    assert home.examples() == {sha256: "happy"}
    assert [(line.event, line.label, line.was, line.predicted) for line in home.lines()] == [
        ("corrected", "sad", "happy", "happy"), ("moved", "sad", None, None), ("corrected", "happy", "sad", "happy"),
    ]  # fmt: skip


def test_a_photo_from_review_is_learned_and_one_put_there_is_not_yet(home):
    picture(home.tray / "inbox/unsure.png", shade=190)
    home.sort(daemon={"review_below": 0.55})
    home.move("review/unsure.png", "happy/unsure.png")
    home.move("sad/d.png", "review/d.png")
    home.learn()
    assert home.examples() == {home.hash("happy/unsure.png"): "happy"}
    sha256 = home.move("review/d.png", "sad/d.png")  # a person looked, and agrees with the model
    home.learn()
    assert home.examples()[sha256] == "sad"


def test_a_photo_put_in_by_hand_is_learned(home):
    picture(home.tray / "sad/by_hand.png", shade=99)
    shutil.copy(home.tray / "happy/a.png", home.tray / "sad/copied.png")
    shutil.copy(home.tray / "happy/b.png", home.tray / "happy/copy of b.png")
    (home.tray / "sad/notes.jpg").write_text("no picture")
    assert home.learn() == home.learn() == 0
    assert home.examples() == {home.hash("sad/by_hand.png"): "sad", home.hash("sad/copied.png"): "sad"}
    by_hand, copied = sorted(home.lines(), key=lambda line: line.file or "")
    assert (by_hand.predicted, by_hand.was, by_hand.source) == (None, None, None)
    assert (copied.predicted, copied.was, copied.model) == ("happy", None, 7)
    home.move("sad/by_hand.png", "happy/by_hand.png")
    home.learn()
    assert home.examples()[home.hash("happy/by_hand.png")] == "happy"


def test_one_photo_in_two_class_folders_by_hand_teaches_nothing(home, capsys):
    for name in ("happy", "sad"):
        picture(home.tray / name / "new.png", shade=99)
    assert home.learn() == 0
    assert home.examples() == {}
    assert "several class folders" in capsys.readouterr().out


def test_of_two_that_hold_the_same_bytes_the_one_that_is_gone_was_moved(home):
    shutil.copy(home.tray / "happy/same.png", home.tray / "inbox/same.png")
    home.sort()
    sha256 = home.move("happy/same-2.png", "sad/same-2.png")
    home.learn()
    [line] = home.lines()
    assert (line.source, line.sha256) == ("happy/same-2.png", sha256)
    assert home.examples() == {sha256: "sad"}


def test_two_that_changed_places_are_both_corrected(home):
    (home.tray / "sad/a.png").write_bytes((home.tray / "sad/d.png").read_bytes())
    os.remove(home.tray / "sad/d.png")
    shutil.copy(home.tray / "happy/a.png", home.root / "a")
    with (home.root / "a").open("ab") as file:
        file.write(b"longer")
    os.replace(home.root / "a", home.tray / "inbox/a.png")
    os.remove(home.tray / "happy/a.png")
    os.remove(home.tray / "sad/a.png")
    picture(home.tray / "inbox/dark/a.png", shade=10)
    home.sort()
    happy, sad = home.hash("happy/a.png"), home.hash("sad/dark/a.png")
    os.rename(home.tray / "happy/a.png", home.root / "held")
    os.rename(home.tray / "sad/dark/a.png", home.tray / "happy/a.png")
    os.rename(home.root / "held", home.tray / "sad/dark/a.png")
    home.learn()
    assert home.examples() == {happy: "sad", sad: "happy"}


def test_copies_and_renames_within_a_class_teach_nothing(home):
    """Whatever became of the photo before: it is still the daemon's word that it is happy."""
    home.move("happy/a.png", "happy/2026/a.png")
    shutil.copy(home.tray / "happy/2026/a.png", home.tray / "happy/best.png")
    assert home.undo("--resort", "happy/b.png") == 0
    home.sort()
    shutil.copy(home.tray / "happy/b.png", home.tray / "happy/copy.png")
    home.learn()
    home.move("happy/b.png", "happy/other.png")
    home.learn()
    assert home.undo("happy/same.png") == 0
    os.rename(home.tray / "undone/same.png", home.tray / "inbox/same.png")
    home.sort()
    shutil.copy(home.tray / "happy/same.png", home.tray / "happy/again.png")
    home.learn()
    assert home.examples() == {}


def test_the_word_of_a_daemon_never_takes_the_place_of_a_persons(home):
    sha256 = home.move("happy/a.png", "sad/a.png")
    home.learn()
    os.rename(home.tray / "sad/a.png", home.tray / "inbox/again.png")
    home.sort()  # happy, says the model
    home.move("happy/again.png", "happy/a.png")
    home.learn()
    assert home.examples() == {sha256: "sad"}


def test_a_line_that_cannot_be_read_makes_no_prediction_into_a_label(home, capsys):
    path = home.root / "log/d-1.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"schema":1', b'"schema":2', 3))
    sha256 = home.move("sad/d.png", "happy/d.png")
    known = b'"file":"d.png"' in b"".join(line for line in path.read_bytes().splitlines() if b'"schema":1' in line)
    assert home.learn() == 0
    assert home.examples() == ({sha256: "happy"} if known else {})
    assert "not all of the journal can be read" in capsys.readouterr().out


def test_a_file_that_came_after_the_looking_is_not_taken_for_a_persons(home, monkeypatch):
    picture(home.tray / "happy/n.png", mark=99)
    real = learn.fold

    def fold_then_deliver(root):
        history = real(root)
        monkeypatch.setattr(learn, "fold", real)
        os.remove(home.tray / "happy/n.png")
        picture(home.tray / "inbox/n.png", mark=98)
        home.sort()
        return history

    monkeypatch.setattr(learn, "fold", fold_then_deliver)
    home.learn()
    assert (home.tray / "happy/n.png").exists()
    assert home.examples() == {}


@needs_root
def test_what_may_not_be_read_costs_no_other_photo(home, capsys):
    sha256 = home.move("happy/a.png", "sad/a.png")
    picture(home.tray / "sad/private.png", shade=99).chmod(0o600)
    (home.tray / "sad/closed").mkdir(mode=0o744)
    picture(home.tray / "sad/closed/x.png", shade=98)
    for path in (home.root, *home.root.rglob("*")):
        if path.name not in ("private.png", "closed", "x.png"):
            os.chown(path, NOBODY, NOBODY)
    for path in [home.root, *home.root.parents][:-2]:
        os.chmod(path, 0o755)
    assert as_user(NOBODY, home.learn) == 0
    assert home.examples() == {sha256: "sad"}


def test_many_files_that_are_no_pictures_are_passed_over(home, monkeypatch, capsys):
    monkeypatch.setattr(learn, "BY_HAND", 2)
    sha256 = home.move("happy/a.png", "sad/a.png")
    for number in range(4):
        (home.tray / f"happy/{number}.xmp").write_text(f"sidecar {number}")
    assert home.learn() == 0
    assert home.examples() == {sha256: "sad"}


def test_a_photo_that_was_edited_where_it_is_teaches_nothing(home):
    with (home.tray / "happy/a.png").open("ab") as file:
        file.write(b"more")
    home.learn()
    assert home.examples() == {}
    assert home.lines() == []


def test_a_rejected_file_that_is_moved_to_a_class_teaches_nothing(home, capsys):
    home.move("rejected/text.jpg", "happy/text.jpg")
    assert home.learn() == 0
    assert home.examples() == {}
    assert "nothing new" in capsys.readouterr().out


def test_links_pipes_and_ignored_names_are_passed_over(home):
    os.symlink(home.tray / "happy/a.png", home.tray / "sad/link.png")
    os.symlink(home.tray / "happy", home.tray / "sad/folder")
    os.mkfifo(home.tray / "sad/pipe.png")
    shutil.copy(home.tray / "happy/a.png", home.tray / "sad/.hidden.png")
    assert home.learn() == 0
    assert home.examples() == {}


def test_names_that_are_not_utf8_survive(home):
    target = os.fsencode(home.tray / "sad") + b"/\xff\n.png"
    os.rename(home.tray / "happy/a.png", target)
    assert home.learn() == home.learn() == 0
    [line] = home.lines()
    assert os.fsencode(line.destination) == b"sad/\xff\n.png"


def test_what_a_killed_run_left_is_swept_and_a_name_proves_nothing(home):
    sha256 = home.move("happy/a.png", "sad/a.png")
    folder = home.training / "sad"
    folder.mkdir(parents=True)
    (folder / f".{sha256}.png.{'0' * 32}.tmp").write_bytes(b"half")
    (folder / f"{sha256}.png").write_bytes(b"half")
    home.learn()
    assert home.examples() == {sha256: "sad"}
    assert [path.name for path in folder.iterdir()] == [f"{sha256}.png"]


def test_two_daemons_of_one_tray_learn_a_correction_once(home):
    home.move("happy/a.png", "sad/a.png")
    home.learn(daemon={"name": "alpha"})
    home.learn(daemon={"name": "beta"})
    lines = [line for owner in owners(home.root / "log") for _, path in segments(home.root / "log", owner)
             for line in read(path) if line.event == "corrected"]  # fmt: skip
    assert len(lines) == 1


def test_many_photos_by_hand_need_a_word(home, capsys, monkeypatch):
    monkeypatch.setattr(learn, "BY_HAND", 1)
    for mark in range(2):
        picture(home.tray / f"sad/new{mark}.png", shade=99, mark=mark)
    assert home.learn() == 2
    assert "the journal knows nothing of 2 photos" in capsys.readouterr().err
    assert home.learn() == 2
    assert home.examples() == {}
    [line] = [line for _, path in segments(home.root / "log", "d-learn") for line in read(path) if line.error]
    assert "the journal knows nothing of 2 photos" in line.error  # status tells it; it is not written again each hour
    assert home.learn(by_hand=True) == 0
    assert set(home.examples().values()) == {"sad"}


def test_a_log_that_was_deleted_makes_no_predictions_into_labels(home):
    """What the daemon sorted before the log that is there began is nobody's correction."""
    shutil.rmtree(home.root / "log")
    picture(home.tray / "inbox/new.png", mark=77)
    home.sort()
    assert home.learn() == 0
    assert home.examples() == {}


def test_another_journal_of_the_same_tray_is_refused(home, capsys):
    home.sort(journal={"root": str(home.root / "log2")}, daemon={"name": "other"})
    assert home.learn() == 2
    assert "journal.root" in capsys.readouterr().err
    home.sort()  # its own daemon recovers for the other, which is gone, and must not take its word away
    assert home.learn() == 2
    for file in (home.root / "log2").glob("*.jsonl"):
        shutil.copy(file, home.root / "log")
    shutil.rmtree(home.tray / ".work" / "other")
    assert home.learn() == 0
    assert home.examples() == {}


def test_only_one_learns_at_a_time(home, capsys, monkeypatch):
    monkeypatch.setattr(learn, "WAIT_SECONDS", 0.3)
    home.learn()
    with (home.root / "log" / learn.LOCK).open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert home.learn(daemon={"name": "another"}) == 2
    assert "does not end" in capsys.readouterr().err


def test_one_that_finds_another_at_work_waits_for_its_end(home, capfd, monkeypatch):
    """A nightly retraining that meets the daemon's hourly look must not fail for it."""
    home.learn()
    sha256 = home.move("happy/a.png", "sad/a.png")
    file = (home.root / "log" / learn.LOCK).open("r+b")
    fcntl.flock(file, fcntl.LOCK_EX)
    monkeypatch.setattr(durable.time, "sleep", lambda _: file.close())  # it ends while we wait
    assert home.learn() == 0
    assert capfd.readouterr().err.count("waiting for its end") == 1
    assert home.examples() == {sha256: "sad"}


def test_a_full_disk_loses_nothing(home, monkeypatch, capsys):
    sha256 = home.move("happy/a.png", "sad/a.png")

    def refuse(path, _data):
        raise OSError(28, "No space left on device", str(path.parent))

    with monkeypatch.context() as patched:
        patched.setattr(durable, "replace", refuse)
        assert home.learn() == 1
    assert "No space left" in capsys.readouterr().err
    assert home.lines() == []
    assert home.learn() == 0
    assert home.examples() == {sha256: "sad"}


def test_undo_and_accounts_know_what_people_did(home, capsys):
    home.move("happy/a.png", "sad/a.png")
    home.move("happy/b.png", "happy/renamed.png")
    home.learn()
    flags = [f"--set=tray.root={home.tray}", f"--set=journal.root={home.root}/log"]
    assert moodbox.main(["accounts", *flags, "--deep"]) == 0
    assert "in place   7" in capsys.readouterr().out
    assert moodbox.main(["undo", *flags, "--model", "7"]) == 0
    assert "sad/a.png" not in capsys.readouterr().out
    assert moodbox.main(["undo", *flags, "--yes", str(home.tray / "sad/a.png")]) == 0
    assert (home.tray / "undone/a.png").exists()


KILLED = """
import sys
from pathlib import Path
from stand_in import die_at
from test_daemon_learn import Home
from daemon import learn

home = Home.__new__(Home)
home.root = Path(sys.argv[1])
home.tray, home.training = home.root / "tray", home.root / "training"
die_at(int(sys.argv[2]))
sys.exit(home.learn())
"""


def test_a_kill_at_any_step_is_made_good(home):
    one, two = home.move("happy/a.png", "sad/a.png"), home.move("sad/d.png", "happy/d.png")
    home.learn()
    home.move("sad/a.png", "happy/a.png")
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    for step in range(1, 60):
        command = [sys.executable, "-c", KILLED, str(home.root), str(step)]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL, done.stderr
        if step % 2:  # undone and done again, so that there is something to do in each run
            assert home.learn() == 0
            place, other = (
                ("happy/a.png", "sad/a.png") if (home.tray / "happy/a.png").exists() else ("sad/a.png", "happy/a.png")
            )
            home.move(place, other)
    else:
        pytest.fail("it was killed at every step")
    assert home.learn() == 0
    label = "happy" if (home.tray / "happy/a.png").exists() else "sad"
    assert home.examples() == {one: label, two: "happy"}


def test_the_newest_deliveries_are_listed_for_the_report(home):
    home.move("happy/a.png", "sad/a.png")
    home.learn()
    home.learn()
    listed = [orjson.loads(line) for line in (home.training / deliveries.NAME).read_bytes().splitlines()]
    assert {Path(entry["path"]).relative_to(home.tray).as_posix() for entry in listed} == {
        "happy/b.png", "happy/trip/c.png", "happy/same.png", "sad/d.png", "sad/trip/e.png",
    }  # fmt: skip
    for entry in listed:
        assert hashlib.sha256(Path(entry["path"]).read_bytes()).hexdigest() == entry["sha256"]
        assert entry["label"] == Path(entry["path"]).relative_to(home.tray).parts[0]
        assert entry["model"] == 7


def test_days_that_are_over_are_shown_in_tensorboard(home):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    home.move("happy/a.png", "sad/a.png")
    home.learn()
    assert not (home.root / "runs").exists()  # today is not over
    history, tomorrow = fold(home.root / "log"), datetime.fromtimestamp(datetime.now(UTC).timestamp() + 86_400, UTC)
    for _ in range(2):
        served.show(home.settings(), history, {}, tomorrow)
    [path] = (home.root / "runs/served/tensorboard").iterdir()
    shown = EventAccumulator(str(path)).Reload()
    values = {tag: shown.Scalars(tag)[0].value for tag in shown.Tags()["scalars"]}
    assert values["served/photos"] == 6
    assert values["served/share/happy"] == pytest.approx(4 / 6)
    assert values["served/corrected"] == pytest.approx(1 / 6)
    assert 0.5 < values["served/confidence"] < 1


@settings(max_examples=25, deadline=None)
@given(moves=st.lists(st.tuples(st.integers(0, 9), st.sampled_from(["happy", "sad", "review", "gone"]), st.booleans()),
                      max_size=30))  # fmt: skip
def test_the_examples_are_what_people_said_last_whatever_they_do(tmp_path_factory, moves):
    """A model of the rules: the class that a photo was moved to last, out of another one or review/, is its label."""
    home, where, taught = _with_photos(tmp_path_factory.mktemp("people")), {}, {}
    doubted = set()
    try:
        for number, target, learns in moves:
            place = where.get(number, f"happy/{number}.png")
            if target == "gone":
                aside = home.root / f"{number}.png"
                if (home.tray / place).exists():
                    os.rename(home.tray / place, aside)
            elif (home.tray / place).exists():
                where[number] = f"{target}/{number}.png"
                os.rename(home.tray / place, home.tray / where[number])
            if learns:
                _say(home, where, taught, doubted)
        _say(home, where, taught, doubted)
        assert home.examples() == {home.hashes[n]: label for n, label in taught.items()}
    finally:
        shutil.rmtree(home.root)


def _say(home: Home, where: dict[int, str], taught: dict[int, str], doubted: set[int]) -> None:
    for number, place in where.items():
        label = place.split("/")[0]
        if not (home.tray / place).exists():
            continue
        if label == "review":
            doubted.add(number)
        elif label != taught.get(number, None if number in doubted else "happy"):
            taught[number] = label
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(learn.os, "nice", lambda _: 0)
        assert home.learn() == 0


def _with_photos(root: Path) -> Home:
    """A tray with ten photos in happy/, journalled as the daemon would."""
    home = Home.__new__(Home)
    home.root, home.tray, home.training = root, root / "tray", root / "training"
    bundles.publish(root / "models", root / "staged")
    bundle.promote(root / "models", 1)
    with house(root) as opened:
        lines = []
        home.hashes = {}
        for number in range(10):
            path = picture(home.tray / f"happy/{number}.png", mark=number)
            home.hashes[number] = home.hash(f"happy/{number}.png")
            lines.append(Line(event="sorted", id=str(number), batch="1-a", file=path.name, model=7, label="happy",
                              destination=f"happy/{number}.png", sha256=home.hashes[number], score=0.9,
                              bytes=path.stat().st_size, ts="2026-01-01T00:00:00.000Z"))  # fmt: skip
        opened.journal.append(lines)
    assert owners(root / "log") == ["d"]
    return home
