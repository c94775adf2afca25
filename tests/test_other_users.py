"""Two real users: people who drop files with whatever modes, and a daemon that is neither them nor root."""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
from PIL import Image

import pictures
from daemon import learn, tray
from daemon.status import describe, gather
from daemon_parts import NOBODY, as_user, needs_root
from stand_in import make_service, settings_for
from test_daemon_service import running, until

PERSON = 12_345
pytestmark = needs_root


@pytest.fixture
def root():
    """A tray of the daemon's, with an inbox that all may write in, in a place that all may enter."""
    base = Path(tempfile.mkdtemp())
    base.chmod(0o755)
    os.chown(base, NOBODY, NOBODY)
    as_user(NOBODY, lambda: tray.create(base / "tray"))
    (base / "tray/inbox").chmod(0o2777)
    yield base
    shutil.rmtree(base)


@pytest.fixture(autouse=True, scope="module")
def loaded(tmp_path_factory):
    """Load everything that is loaded late: the other users need not be able to read this Python."""
    base = tmp_path_factory.mktemp("warm")
    tray.create(base / "tray")
    pictures.write_picture(base / "tray/inbox/a.png")
    make_service(settings_for(base, tray={"poll": "always"})).run()


def once(root: Path) -> dict[str, str]:
    return as_user(NOBODY, lambda: dict(make_service(settings_for(root, tray={"poll": "always"})).run()))


def drop(root: Path) -> None:
    """Drop as people do: cp, cp -r of a 0755 folder, mv of a 0600 file, rsync -a's modes, umask 077."""
    inbox, home = root / "tray/inbox", Path(tempfile.mkdtemp(dir=root.parent))
    for number, name in enumerate(("plain.png", "trip/day/a.png", "private.png", "secret/b.png", "good/c.png")):
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_bytes(pictures.picture("PNG") + bytes([number]))
    for folder in ("trip", "trip/day"):
        (home / folder).chmod(0o755)
    (home / "private.png").chmod(0o600)
    (home / "secret").chmod(0o700)
    (home / "good").chmod(0o777)
    shutil.copy(home / "plain.png", inbox)
    subprocess.run(["cp", "-rp", str(home / "trip"), str(home / "secret"), str(home / "good"), str(inbox)], check=True)
    (home / "private.png").rename(inbox / "private.png")
    shutil.rmtree(home)


def test_what_the_daemon_may_not_have_waits_and_all_else_goes_on(root):
    as_user(PERSON, lambda: drop(root))
    blocked = once(root)
    assert set(blocked) == {"trip/day/a.png", "private.png", "secret"}
    assert all(blocked.values())
    assert {p.name for p in (root / "tray/happy").rglob("*.png")} | {
        p.name for p in (root / "tray/sad").rglob("*.png")
    } == {"plain.png", "c.png"}
    assert (root / "tray/inbox/private.png").stat().st_uid == PERSON, "people's files stay theirs"


def test_status_names_what_waits_and_why(root):
    def look() -> str:
        settings = settings_for(root)
        service = make_service(settings, once=False)
        shown = [""]

        def names_all() -> bool:
            shown[0] = "\n".join(describe(gather(settings)))
            return shown[0].count("knows a cure") == 3

        with running(service):
            until(names_all, "status names what waits")
        return shown[0]

    as_user(PERSON, lambda: drop(root))
    shown = as_user(NOBODY, look)
    assert "private.png: the daemon may not read or move it" in shown
    assert "secret: the daemon may not read this folder" in shown


def test_once_the_modes_are_mended_it_is_taken(root):
    as_user(PERSON, lambda: drop(root))
    once(root)
    cure = ["chmod", "-R", "a+rwX", *map(str, (root / "tray/inbox").iterdir())]
    as_user(PERSON, lambda: subprocess.run(cure, check=False) and None)
    assert once(root) == {}
    assert not [p for p in (root / "tray/inbox").rglob("*") if p.is_file()]
    assert len(list((root / "tray").rglob("*.png"))) == 5


def test_a_sticky_inbox_is_named(root):
    os.chown(root / "tray/inbox", 0, 0)  # the owner of a sticky folder may move what is in it
    (root / "tray/inbox").chmod(0o3777)
    as_user(PERSON, lambda: drop(root))
    assert "sticky" in once(root)["plain.png"]
    assert (root / "tray/inbox/plain.png").exists()


def test_a_class_folder_that_cannot_be_written_is_waited_out(root):
    happy = root / "tray/happy"

    def lock_out_and_back() -> str:
        service = make_service(settings_for(root), once=False)
        with running(service), pytest.MonkeyPatch.context() as patch:
            patch.setattr("daemon.backoff.FIRST", 0.01)
            patch.setattr("daemon.backoff.LONGEST", 0.05)
            happy.chmod(0o555)
            Image.new("RGB", (8, 8), (230, 230, 0)).save(root / "tray/inbox/a.png")
            until(lambda: service._backoff.fault, "it is noticed")
            told = service._backoff.fault
            happy.chmod(0o755)
            until((happy / "a.png").exists, "it goes on by itself")
            return told

    assert "folder happy" in as_user(NOBODY, lock_out_and_back)


@pytest.mark.parametrize("what", ["once", "learn"])
def test_root_does_not_work_in_another_users_tray(root, what, capsys):
    """What root makes there, the daemon could not use: its learning would fail each night from then on."""
    once(root)
    before = sorted(str(path) for path in root.rglob("*"))
    settings = settings_for(root, models={"root": str(root / "models")})
    if what == "once":
        with pytest.raises(tray.TrayError, match=r"another user's: run it as that user \(sudo -u "):
            make_service(settings).run()
    else:
        assert learn.run(settings, by_hand=False) == 2
        assert "another user's: run it as that user" in capsys.readouterr().err
    assert sorted(str(path) for path in root.rglob("*")) == before
