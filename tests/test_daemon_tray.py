"""daemon.tray: made once, told from an empty mount point, one mount, plain folders."""

import os
import stat
import subprocess
import sys

import pytest

from daemon import tray
from daemon.tray import TrayError
from daemon_parts import NOBODY, as_user, held, needs_root


@pytest.fixture
def root(tmp_path):
    tray.create(tmp_path / "tray")
    return tmp_path / "tray"


def opened(root):
    fd = tray.open_tray(root)
    try:
        tray.check_folders(fd, ("happy", "sad"))
    finally:
        os.close(fd)


def test_a_new_tray_has_its_folders_and_its_marker(tmp_path):
    before = os.umask(0o002)
    try:
        tray.create(tmp_path / "a" / "tray")
    finally:
        os.umask(before)
    root = tmp_path / "a" / "tray"
    modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in root.iterdir() if p.is_dir()}
    assert modes == {"inbox": 0o2775, "review": 0o2775, "rejected": 0o2775, "undone": 0o2775, ".work": 0o700}
    assert stat.S_IMODE(root.stat().st_mode) == 0o755, "whoever may write in the root can swap a folder for a link"
    assert (root / ".moodbox").is_file()


def test_making_a_tray_again_changes_nothing(root):
    (root / "inbox" / "photo").write_text("mine")
    marker = (root / ".moodbox").stat()
    tray.create(root)
    assert (root / "inbox" / "photo").read_text() == "mine"
    assert (root / ".moodbox").stat() == marker


def test_a_folder_of_somebody_elses_files_is_not_made_a_tray(tmp_path):
    (tmp_path / "thesis.odt").touch()
    with pytest.raises(TrayError, match="thesis"):
        tray.create(tmp_path)
    assert os.listdir(tmp_path) == ["thesis.odt"]


def test_a_fresh_disk_can_be_a_tray(tmp_path):
    (tmp_path / "lost+found").mkdir()
    tray.create(tmp_path)
    opened(tmp_path)


def test_a_file_is_no_tray(tmp_path):
    (tmp_path / "tray").touch()
    with pytest.raises(TrayError, match="is a file"):
        tray.create(tmp_path / "tray")


def test_the_root_itself_may_be_a_link(root, tmp_path):
    (tmp_path / "link").symlink_to(root)
    tray.create(tmp_path / "link")
    opened(tmp_path / "link")


@pytest.mark.parametrize("make", [lambda _: None, lambda p: p.mkdir(), lambda p: p.touch()])
def test_what_is_no_tray_is_refused_with_a_hint(tmp_path, make):
    make(tmp_path / "tray")
    before = held(tmp_path)
    with pytest.raises(TrayError, match="is its disk mounted"):
        tray.open_tray(tmp_path / "tray")
    assert held(tmp_path) == before


def test_another_folder_under_the_same_name_is_not_the_same_tray(root):
    fd = tray.open_tray(root)
    assert tray.is_same(root, fd)
    root.rename(root.with_name("old"))
    assert not tray.is_same(root, fd)
    tray.create(root)
    assert not tray.is_same(root, fd)
    os.close(fd)


def test_without_its_marker_it_is_no_tray_any_more(root):
    fd = tray.open_tray(root)
    (root / ".moodbox").unlink()
    assert not tray.is_same(root, fd)
    os.close(fd)


def test_missing_folders_are_made_again(root):
    (root / "inbox").rmdir()
    opened(root)
    assert {"inbox", "happy", "sad"} <= set(os.listdir(root))


@pytest.mark.parametrize("name", ["inbox", "happy", ".work"])
@pytest.mark.parametrize("kind", ["link", "file"])
def test_a_link_or_file_in_a_folders_place_is_refused(root, tmp_path, name, kind):
    if (root / name).exists():
        (root / name).rmdir()
    if kind == "link":
        (root / name).symlink_to(tmp_path)
    else:
        (root / name).touch()
    with pytest.raises(TrayError, match=name):
        opened(root)


@needs_root
def test_a_class_folder_that_cannot_be_written_is_a_fault_that_is_named(root):
    opened(root)
    for path in (root, *root.iterdir()):
        os.chown(path, NOBODY, NOBODY)
    os.chown(root / "sad", 0, 0)
    (root / "sad").chmod(0o755)
    fd = tray.open_tray(root)

    def refused():
        with pytest.raises(PermissionError, match="sad"):
            tray.check_folders(fd, ("happy", "sad"))

    as_user(NOBODY, refused)
    (root / "sad").chmod(0o700)
    as_user(NOBODY, refused)
    os.close(fd)


@needs_root
def test_a_folder_on_another_mount_is_refused(root, tmp_path):
    opened(root)
    (tmp_path / "elsewhere").mkdir()
    code = (
        "import sys; from pathlib import Path; from daemon import tray\n"
        "fd = tray.open_tray(Path(sys.argv[1]))\n"
        "try: tray.check_folders(fd, ('happy',))\n"
        "except tray.TrayError as error: print(error)"
    )
    script = 'mount --bind "$1/elsewhere" "$1/tray/happy" || exit 77; exec "$2" -c "$3" "$1/tray"'
    command = ["unshare", "--mount", "sh", "-c", script, "sh", str(tmp_path), sys.executable, code]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    if ran.returncode == 77:
        pytest.skip("mounts are not allowed here")
    assert "happy is on another mount" in ran.stdout, ran.stderr


def test_a_tray_that_was_served_before_is_not_made_anew(tmp_path):
    from daemon.journal import was_served
    from stand_in import make_service, settings_for

    settings = settings_for(tmp_path)
    tray.create(settings.tray.root)
    make_service(settings).run()
    settings.tray.root.rename(tmp_path / "unmounted")
    settings.tray.root.mkdir()
    assert was_served(settings.journal.root, settings.tray.root)
    assert not was_served(settings.journal.root, tmp_path / "another")
    with pytest.raises(TrayError, match="is its disk mounted"):
        tray.create(settings.tray.root, was_used=lambda: was_served(settings.journal.root, settings.tray.root))
    assert not list(settings.tray.root.iterdir())
