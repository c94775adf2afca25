"""daemon.status: from the journal's tail and the folders, at once, without a daemon and without changing anything."""

import os
import subprocess
import sys
from datetime import UTC, datetime

import orjson
import pytest

import bundles
from daemon import status
from daemon.events import Line
from daemon.journal import Journal
from daemon.status import as_json, describe, gather
from daemon_parts import files_in, house, lay
from trainer import bundle, decisions
from trainer.settings import load


@pytest.fixture
def settings(tmp_path):
    tables = {name: {"root": str(tmp_path / name)} for name in ("tray", "models")}
    return load(None, (), tables | {"journal": {"root": str(tmp_path / "log")}}).settings


def shown(settings):
    return "\n".join(describe(gather(settings)))


def write(root, owner, *lines):
    journal = Journal(root, owner, 1 << 20)
    journal.append(lines)
    journal.close()


def test_before_the_first_start_it_says_what_will_come(settings):
    text = shown(settings)
    assert "not running" in text
    assert "no tray yet" in text
    assert "none yet: the one that ships" in text
    assert "sorted    0" in text
    assert not settings.tray.root.exists(), "status makes nothing"
    assert not settings.journal.root.exists()


def test_the_last_retraining_is_told(settings, tmp_path):
    (tmp_path / "models").mkdir()
    now = datetime(2026, 5, 31, 3, 15, tzinfo=UTC)
    assert "retrained" not in shown(settings)
    decisions.append(tmp_path / "models", "refused", now, champion=1, challenger=2, reason="It is worse.")
    assert "retrained 2026-05-31T03:15 refused: It is worse." in shown(settings)
    decisions.append(tmp_path / "models", "rollback", now, champion=1, before=2)
    assert "rollback: bundle 1, which stays until the next promotion" in shown(settings)


def test_everything_that_a_person_asks_for_is_there(settings, tmp_path):
    with house(tmp_path) as home:
        home.drop({"a.jpg": b"", "sub/b.jpg": b"", ".part": b""})
        lines = [Line(event="sorted", label=label) for label in ("happy", "sad", "happy")]
        error, file = "the file is\x1b[2J empty", os.fsdecode(b"x\xff.jpg")
        lines += [Line(event="review"), Line(event="rejected", error_code="empty", error=error, file=file)]
        home.journal.append(lines)
        bundles.publish(settings.models.root, tmp_path / "stage")
        bundle.promote(settings.models.root, 1)
        text = shown(settings)
        found = as_json(gather(settings))
    assert "daemon    d running" in text
    assert "model     1 (tiny; happy, sad)" in text
    assert "waiting   2 in the inbox; 1 ignored (tray.ignore)" in text
    assert "sorted    3 (happy 2, sad 1)" in text
    assert "review    0 to be looked at, of 1 that were sent there" in text
    assert "rejected  1 (empty 1)" in text
    assert r"x\xff.jpg: the file is\x1b[2J empty" in text
    assert found["running"] == ["d"]
    assert (found["waiting"], found["ignored"]) == (2, 1)
    assert found["totals"]["sorted"] == {"happy": 2, "sad": 1}
    assert "not running" in shown(settings), "the lock is gone"


def test_the_model_that_serves_is_named_and_the_one_that_will(settings, tmp_path):
    for number in (1, 2):
        bundles.publish(settings.models.root, tmp_path / str(number))
    bundle.promote(settings.models.root, 2)
    assert "model     2 (tiny; happy, sad)" in shown(settings)
    with house(tmp_path) as home:
        home.journal.append([Line(event="started", model=1)])
        assert "model     1 (tiny; happy, sad); model 2 is being loaded" in shown(settings)
        home.journal.append([Line(event="model_loaded", model=2)])
        assert "model     2 (tiny; happy, sad)\n" in shown(settings)


def test_why_a_champion_is_refused_is_said_as_long_as_it_is_the_champion(settings, tmp_path):
    for number in (1, 2, 3):
        bundles.publish(settings.models.root, tmp_path / str(number))
    link = settings.models.root / "champion"
    with house(tmp_path) as home:
        home.journal.append([Line(event="started", model=1)])
        for number, told in ((2, "model 2 refused"), (None, "champion refused")):
            link.unlink(missing_ok=True)
            if number:
                link.symlink_to(str(number))
            home.journal.append([Line(event="model_refused", model=number, error="it is\x1b[2J broken")])
            assert rf"model     1 (tiny; happy, sad); {told}: it is\x1b[2J broken" in shown(settings)
        bundle.promote(settings.models.root, 3)
        assert "model     1 (tiny; happy, sad); model 3 is being loaded" in shown(settings)
        bundle.promote(settings.models.root, 1)
        assert "model     1 (tiny; happy, sad)\n" in shown(settings)
        link.unlink()
        link.symlink_to("nowhere")
        assert "model     1 (tiny; happy, sad)" in shown(settings), "what serves is said all the same"
    assert "cannot be used" in shown(settings), "nothing serves, and nothing will"


def test_the_counts_of_all_owners_are_added_up(settings):
    write(settings.journal.root, "a", Line(event="sorted", label="happy", ts="1"))
    write(settings.journal.root, "b-2", Line(event="sorted", label="happy"), Line(event="rejected", error_code="x"))
    assert "sorted    2 (happy 2)" in shown(settings)


def test_names_that_are_no_text_do_not_stop_it(tmp_path):
    root = tmp_path / os.fsdecode(b"tr\xffay")
    settings = load(None, (), {"tray": {"root": str(root)}, "journal": {"root": str(tmp_path / "log")}}).settings
    running = Journal(tmp_path / "log", os.fsdecode(b"\x1b[31m\xff"), 1 << 20)
    text = shown(settings)
    assert r"\x1b[31m\xff running" in text
    text.encode()
    assert "\x1b" not in text
    orjson.dumps(as_json(gather(settings)))
    running.close()


def test_reading_changes_nothing(settings, tmp_path):
    with house(tmp_path) as home:
        home.drop({"a.jpg": b"a"})
        home.journal.append([Line(event="started")])
        before = files_in(tmp_path), {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
        shown(settings)
        assert before == (files_in(tmp_path), {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")})


def test_a_torn_or_foreign_journal_is_read_as_far_as_it_goes(settings):
    write(settings.journal.root, "a", Line(event="sorted", label="happy"))
    with (settings.journal.root / "a-1.jsonl").open("ab") as file:
        file.write(b'{"schema":9,"event":"new"}\nno json\n{"schema":1,"ev')
    assert "sorted    1" in shown(settings)


def test_counting_what_waits_ends_at_a_limit(settings, monkeypatch):
    monkeypatch.setattr(status, "COUNT_LIMIT", 10)
    lay(settings.tray.root / "inbox", {f"{n % 3}/{n}": b"" for n in range(30)})
    (settings.tray.root / "inbox" / "loop").symlink_to(".")
    assert "waiting   10 or more in the inbox" in shown(settings)


def test_a_bundle_that_cannot_be_used_is_named(settings):
    (settings.models.root / "1").mkdir(parents=True)
    (settings.models.root / "champion").symlink_to("1")
    assert "cannot be used" in shown(settings)


def test_it_loads_no_tensorflow(settings):
    code = "import sys, daemon.status; print([m for m in sys.modules if m.startswith(('tensorflow', 'keras'))])"
    ran = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert ran.stdout == "[]\n"
