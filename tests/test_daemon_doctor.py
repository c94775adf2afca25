"""moodbox doctor: each thing that can be wrong is found, named with its cure, and nothing is changed by looking."""

import importlib.metadata
import os
import shutil
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import pytest

import bundles
from daemon import command_line as moodbox
from daemon import doctor, fs, host_checks, tray
from daemon.events import Line
from daemon.journal import Journal
from daemon.mounts import Mount
from daemon_parts import NOBODY, as_user, files_in, house, lay, needs_root
from trainer import bundle
from trainer.settings import SettingsError, load


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A healthy house: a settings file, a tray with class folders, a journal and a champion."""
    monkeypatch.setattr(host_checks, "_has_instance", lambda: True)  # other tests may hold them all just now
    roots = "".join(f'[{t}]\nroot = "{d}"\n' for t, d in (("tray", "tray"), ("journal", "log"), ("models", "models")))
    (tmp_path / "settings.toml").write_text(roots + '[daemon]\nname = "d"\n')
    with house(tmp_path) as made:
        made.drop({"a.png": b"a", "trip/b.png": b"b"})
        made.journal.append([Line(event="started")])
    bundles.publish(tmp_path / "models", tmp_path / "stage")
    bundle.promote(tmp_path / "models", 1)
    return tmp_path


def diagnose(home, canary=None):
    """Return the findings, as level and text by name, and check the exit status."""
    loaded = load(home / "settings.toml")
    found = list(doctor.examine(loaded, canary))
    assert doctor.run(loaded, canary) == (1 if any(f.level == "FAIL" for f in found) else 0)
    return found


def levels(found, name):
    return [f.level for f in found if f.name == name]


def complaints(found):
    return [f"{f.level} {f.name}: {f.text}" for f in found if f.level != "ok"]


def test_in_a_healthy_house_all_is_ok(home):
    found = diagnose(home, canary=lambda _settings: "sings")
    assert complaints(found) == []
    names = ["settings", "tray", "folders", "modes", "inbox", "acl", "space", "watching", "renames", "journal", "clock"]
    assert {f.name for f in found} == {*names, "versions", "model", "canary"}
    assert "2 wait" in next(f.text for f in found if f.name == "inbox")


def test_looking_changes_nothing(home):
    (home / "tray/happy").rmdir()
    (home / "tray/review").rmdir()
    before = files_in(home), {p: p.stat().st_mtime_ns for p in home.rglob("*")}
    found = diagnose(home)
    assert complaints(found) == ["warn folders: review, happy missing: made by the next start"]
    assert before == (files_in(home), {p: p.stat().st_mtime_ns for p in home.rglob("*")})


def test_before_the_first_start_nothing_fails(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = list(doctor.examine(load(), None))
    assert {f.level for f in found} == {"ok", "warn"}
    assert "`moodbox run` makes it" in next(f.text for f in found if f.name == "tray")
    assert os.listdir(tmp_path) == []


def test_a_tray_that_the_journal_knows_and_that_is_gone_fails(home):
    (home / "tray").rename(home / "elsewhere")
    found = diagnose(home)
    assert levels(found, "tray") == ["FAIL"]
    assert "mounted" in complaints(found)[0]


def test_a_tray_without_its_marker_fails(home):
    (home / "tray/.moodbox").unlink()
    assert levels(diagnose(home), "tray") == ["FAIL"]


@pytest.mark.parametrize(
    ("folder", "mode", "cure"),
    [
        (".work", 0o755, "chmod 700"),
        (".", 0o775, "chmod go-w"),
        ("happy", 0o3775, "chmod -t"),
        ("inbox", 0o3775, "chmod -t"),
    ],
)
def test_wrong_modes_are_named_with_their_cure(home, folder, mode, cure):
    (home / "tray" / folder).chmod(mode)
    (found,) = complaints(diagnose(home))
    assert cure in found


def test_photos_of_an_owner_without_a_lock_are_named_and_the_cure_cures(home):
    with house(home) as made:
        batch = made.claim("a.png")
    left = home / "tray/.work/d"
    (left / "lock").unlink()
    [found] = complaints(diagnose(home))
    assert found.startswith("FAIL work: the lock of .work/d is gone")
    assert found.endswith("move them to the inbox, and remove it (files in it: 1)")
    (left / batch.folder / "a.png").rename(home / "tray/inbox/a.png")
    shutil.rmtree(left)
    assert complaints(diagnose(home)) == []


def test_a_folder_that_is_a_link_fails(home):
    (home / "tray/happy").rmdir()
    (home / "tray/happy").symlink_to("sad")
    assert "happy in the tray is a link" in complaints(diagnose(home))[0]


def as_nobody(home, paths):
    """Give the house to another user but for `paths`, and diagnose as that user."""
    diagnose(home)  # loads all that it needs: another user may not read this Python's libraries
    for path in (home, *home.rglob("*")):
        os.chown(path, NOBODY, NOBODY, follow_symlinks=False)
    for path in [home, *home.parents][:-2]:
        os.chmod(path, 0o755)
    for path, mode in paths.items():
        os.chown(home / path, 0, 0)
        os.chmod(home / path, mode)
    return as_user(NOBODY, lambda: diagnose(home))


@needs_root
def test_files_and_folders_that_cannot_be_taken_are_named(home):
    lay(home / "tray/inbox", {f"private{n}.png": b"" for n in range(6)} | {"locked/c.png": b"", "closed/d.png": b""})
    modes = {f"tray/inbox/private{n}.png": 0o600 for n in range(6)}
    text = "\n".join(complaints(as_nobody(home, modes | {"tray/inbox/locked": 0o755, "tray/inbox/closed": 0o700})))
    assert "closed: the daemon may not read this folder" in text
    assert "locked/c.png: this user may not move it" in text
    assert "private0.png: this user may not read it" in text
    assert "private5.png" not in text, "five are named"
    assert "3 more; the cure: chmod -R g+rwX" in text
    assert "warn acl" in text


@needs_root
def test_a_sticky_inbox_fails_for_whom_it_is_not(home):
    text = "\n".join(complaints(as_nobody(home, {"tray/inbox": 0o1777, "tray/inbox/a.png": 0o644})))
    assert "FAIL modes: inbox is sticky" in text
    assert "a.png: this user may not move it: its folder is sticky" in text


@needs_root
def test_a_class_folder_and_a_journal_that_cannot_be_written_fail(home):
    found = as_nobody(home, {"tray/happy": 0o755, "log/d-1.jsonl": 0o644, "log": 0o755})
    assert [c.split(":")[0] for c in complaints(found)] == ["FAIL folders", "FAIL journal", "FAIL journal"]
    assert "setfacl -m u:nobody:rwx" in complaints(found)[0]


@needs_root
def test_another_user_is_told_to_ask_as_the_trays(home):
    as_nobody(home, {})
    assert any("sudo -u nobody" in c for c in complaints(diagnose(home)))


@needs_root
def test_a_folder_on_another_mount_fails(home):
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(home / "tray/happy")], check=True)
    try:
        assert any("FAIL folders: happy is on another mount" in c for c in complaints(diagnose(home)))
    finally:
        subprocess.run(["umount", str(home / "tray/happy")], check=True)


@needs_root
def test_a_full_disk_fails(home):
    (home / "log").rename(home / "old")
    (home / "log").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(home / "log")], check=True)
    try:
        (text,) = complaints(diagnose(home))
        assert text.startswith("FAIL space: journal: 0.0 GB")
        assert "make room" in text
    finally:
        subprocess.run(["umount", str(home / "log")], check=True)


def test_a_file_system_that_may_overwrite_is_told(home, monkeypatch):
    def refuse(*_):
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(fs, "rename_noreplace", refuse)
    (text,) = complaints(diagnose(home))
    assert text.startswith("warn renames")
    assert not list(home.glob(".moodbox-doctor*")), "the scratch folder is removed"


def test_a_network_file_system_is_polled_and_it_says_so(home, monkeypatch):
    monkeypatch.setattr(host_checks, "mount_of", lambda _: Mount("nfs4", frozenset({"rw", "local_lock=none"})))
    found = diagnose(home)
    text = next(f.text for f in found if f.name == "watching")
    assert text.startswith("nfs4: the inbox is looked through every second")
    assert "locks" not in {f.name for f in found}


def test_a_mount_whose_locks_hold_on_one_machine_is_told(home, monkeypatch):
    monkeypatch.setattr(host_checks, "mount_of", lambda _: Mount("nfs4", frozenset({"rw", "local_lock=all"})))
    text = next(f.text for f in diagnose(home) if f.name == "locks")
    assert text.startswith("nfs4 as it is mounted here: locks hold on one machine only")


def test_too_few_inotify_watches_are_told(home, monkeypatch, tmp_path):
    lay(tmp_path / "proc", {"max_user_watches": b"3\n", "max_user_instances": b"128\n"})
    monkeypatch.setattr(host_checks, "INOTIFY", tmp_path / "proc")
    (text,) = complaints(diagnose(home))
    assert "max_user_watches is 3: raise it" in text


def test_inotify_instances_that_are_all_taken_are_told(home, monkeypatch):
    assert isinstance(host_checks._has_instance(), bool)
    monkeypatch.setattr(host_checks, "_has_instance", lambda: False)
    (text,) = complaints(diagnose(home))
    assert "all are taken: raise it" in text


def test_a_running_daemon_and_unreadable_lines_are_told(home):
    with (home / "log/d-1.jsonl").open("ab") as file:
        file.write(b"no json\n")
    journal = Journal(home / "log", "d", 1 << 20)
    found = diagnose(home)
    journal.close()
    (text,) = complaints(found)
    assert "a daemon writes it, 1 lines cannot be read" in text
    assert text.startswith("warn journal")
    assert any("nobody writes it now" in f.text for f in diagnose(home))


def test_a_clock_that_was_set_back_fails(home):
    future = (datetime.now(UTC) + timedelta(hours=3)).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    journal = Journal(home / "log", "d", 1 << 20)
    journal.append([Line(event="stopped", ts=future)])
    journal.close()
    (text,) = complaints(diagnose(home))
    assert text.startswith("FAIL clock")


def test_a_damaged_bundle_fails(home):
    model = home / "models/1/model.tflite"
    model.write_bytes(model.read_bytes()[:-1] + b"\1")
    (text,) = complaints(diagnose(home))
    assert text.startswith("FAIL model")


def test_a_missing_library_fails(home, monkeypatch):
    real = importlib.metadata.version

    def version(name):
        if name == "keras":
            raise importlib.metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    (text,) = complaints(diagnose(home))
    assert "keras not installed" in text


def test_a_canary_that_fails_is_one_line_whatever_it_raises(home):
    def die(_settings):
        raise ImportError("libtensorflow.so: \x1b no such file\nmore")

    (text,) = complaints(diagnose(home, die))
    assert text.startswith(r"FAIL canary: a drawn picture was not sorted: ImportError: libtensorflow.so: \x1b no such")


def test_a_check_that_cannot_be_made_is_a_failure_not_a_traceback(home, monkeypatch):
    def refuse(_folder):
        raise PermissionError(13, "Permission denied", "tray/.moodbox")

    monkeypatch.setattr(tray, "open_tray", refuse)
    (text,) = complaints(diagnose(home))
    assert text == "FAIL tray: tray/.moodbox: Permission denied: ask as the daemon's user"


def test_a_missing_settings_file_is_bad_input(tmp_path, capsys):
    assert moodbox.main(["doctor", "--settings", str(tmp_path / "none.toml"), "--no-canary"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    with pytest.raises(SettingsError):
        load(tmp_path / "none.toml")


@pytest.mark.tf
def test_the_real_canary_goes_the_whole_way_and_leaves_nothing(home, tmp_path):
    bundle.install_shipped(home / "shipped")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    before = files_in(home / "tray"), files_in(home / "log"), files_in(home / "models")
    ran = subprocess.run(
        [sys.executable, "-m", "daemon", "doctor", "--settings", "settings.toml", "--set=models.root=shipped"],
        cwd=home, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TMPDIR": str(scratch)},
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout + ran.stderr
    last = ran.stdout.splitlines()[-1]
    assert last.startswith("ok    canary    a drawn picture was sorted to ")
    assert "by model 1" in last
    assert os.listdir(scratch) == []
    assert before == (files_in(home / "tray"), files_in(home / "log"), files_in(home / "models"))
    assert "Traceback" not in ran.stderr
