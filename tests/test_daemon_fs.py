"""daemon.fs: renames that overwrite nothing, directories that are never links, leases, names."""

import errno
import os
import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon import fs
from daemon_parts import NOBODY, as_user, held, needs_root


@pytest.fixture
def folder(tmp_path):
    fd = os.open(tmp_path, fs.DIRECTORY)
    yield fd
    os.close(fd)


@pytest.mark.parametrize("kind", ["file", "empty folder", "dangling link"])
def test_a_rename_never_overwrites(tmp_path, folder, kind):
    (tmp_path / "new").write_text("new")
    taken = tmp_path / "taken"
    {"file": taken.touch, "empty folder": taken.mkdir, "dangling link": lambda: taken.symlink_to("nowhere")}[kind]()
    with pytest.raises(FileExistsError):
        fs.rename_noreplace(folder, "new", folder, "taken")
    assert (tmp_path / "new").read_text() == "new"


def test_a_rename_of_what_is_gone_says_so(folder):
    with pytest.raises(FileNotFoundError):
        fs.rename_noreplace(folder, "gone", folder, "new")


@pytest.mark.parametrize("position", [0, 1, 2])
def test_a_link_in_any_component_is_not_followed(tmp_path, folder, position):
    outside = tmp_path / "outside"
    (outside / "b" / "c").mkdir(parents=True)
    (tmp_path / "a" / "b" / "c").mkdir(parents=True)
    parts = ["a", "b", "c"]
    link = tmp_path.joinpath(*parts[: position + 1])
    link.rename(tmp_path / "aside")
    link.symlink_to(outside)
    with pytest.raises(fs.FolderBlockedError) as caught:
        fs.open_folder(folder, parts, make_mode=0o755)
    assert (caught.value.component, caught.value.errno) == (position, errno.ENOTDIR)
    assert sorted(os.listdir(outside)) == ["b"]


def test_a_file_in_the_way_is_named(tmp_path, folder):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b").touch()
    with pytest.raises(fs.FolderBlockedError, match="a/b"):
        fs.open_folder(folder, ("a", "b", "c"), make_mode=0o755)


def test_folders_are_made_with_their_mode_whatever_the_umask(tmp_path, folder):
    before = os.umask(0o077)
    try:
        os.close(fs.open_folder(folder, ("a", "b"), make_mode=fs.PUBLIC_MODE))
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a" / "b").stat().st_mode) == 0o2775


def test_opening_leaves_no_descriptor_behind(tmp_path, folder):
    (tmp_path / "file").touch()
    before = held(tmp_path)
    for parts in (("file",), ("file", "b"), ("gone",)):
        with pytest.raises(OSError, match=r"file|gone"):
            fs.open_folder(folder, parts)
    assert held(tmp_path) == before


@needs_root
def test_another_users_folder_is_told_from_a_fault(tmp_path, folder):
    (tmp_path / "theirs").mkdir(mode=0o700)
    tmp_path.chmod(0o755)

    def blocked():
        with pytest.raises(fs.FolderBlockedError) as caught:
            fs.open_folder(folder, ("theirs", "x"))
        return caught.value.component, caught.value.errno

    assert as_user(NOBODY, blocked) == (0, errno.EACCES)


def test_many_folders_are_synced_and_closed_before_descriptors_run_out(tmp_path, folder):
    for n in range(300):
        (tmp_path / str(n)).mkdir()
    before = len(held(tmp_path))
    with fs.Folders(folder) as folders:
        for n in range(300):
            folders.fd((str(n),))
        assert len(held(tmp_path)) < before + 257
        assert folders.fd(("1",)) == folders.fd(("1",))
        folders.sync()
    assert len(held(tmp_path)) == before


def test_a_writer_is_seen_and_so_is_its_end(tmp_path):
    path = tmp_path / "photo"
    with path.open("wb"):
        fd = os.open(path, os.O_RDONLY)
        assert fs.is_open_for_writing(fd) is True
    assert fs.is_open_for_writing(fd) is False
    with path.open("rb"):
        assert fs.is_open_for_writing(fd) is False
    os.close(fd)


def test_a_writer_that_comes_after_the_look_is_not_held_up(tmp_path):
    path = tmp_path / "photo"
    path.touch()
    fd = os.open(path, os.O_RDONLY)
    fs.is_open_for_writing(fd)
    os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))  # EWOULDBLOCK while a lease is held
    os.close(fd)


@needs_root
def test_the_kernel_does_not_tell_about_other_peoples_files(tmp_path):
    path = tmp_path / "photo"
    path.touch(mode=0o644)
    fd = os.open(path, os.O_RDONLY)
    assert as_user(NOBODY, lambda: fs.is_open_for_writing(fd)) is None
    os.close(fd)


def test_everything_but_folders_is_listed(tmp_path, folder):
    (tmp_path / "top" / "sub" / "empty").mkdir(parents=True)
    (tmp_path / "top" / "sub" / "file").touch()
    (tmp_path / "top" / "to_folder").symlink_to("sub")
    (tmp_path / "top" / "dangling").symlink_to("nowhere")
    os.mkfifo(tmp_path / "top" / "pipe")
    assert fs.files_below(folder, "top") == ["dangling", "pipe", "sub/file", "to_folder"]


@needs_root
def test_a_folder_that_cannot_be_read_is_not_taken_for_an_empty_one(tmp_path, folder):
    (tmp_path / "top" / "secret").mkdir(parents=True)
    (tmp_path / "top" / "secret" / "photo").touch()
    (tmp_path / "top" / "secret").chmod(0o700)
    tmp_path.chmod(0o755)

    def listed():
        with pytest.raises(PermissionError):
            fs.files_below(folder, "top")

    as_user(NOBODY, listed)


def test_only_empty_folders_are_removed(tmp_path, folder):
    (tmp_path / "top" / "a" / "b").mkdir(parents=True)
    (tmp_path / "top" / "c").mkdir()
    (tmp_path / "top" / "c" / "photo").touch()
    fs.remove_empty(folder, "top")
    assert [str(p.relative_to(tmp_path)) for p in sorted(tmp_path.rglob("*"))] == ["top", "top/c", "top/c/photo"]
    (tmp_path / "top" / "c" / "photo").unlink()
    fs.remove_empty(folder, "top")
    fs.remove_empty(folder, "top")  # gone already: nothing to do
    assert not list(tmp_path.iterdir())


@given(st.binary(min_size=1, max_size=255).filter(lambda n: not {0, 47} & set(n)), st.integers(2, 10**30))
def test_a_suffixed_name_is_a_valid_other_name_with_the_same_extension(raw, number):
    name, suffix = os.fsdecode(raw), f"-{number}"
    found = fs.suffixed(name, suffix)
    assert suffix in found
    assert found != name
    assert 0 < len(os.fsencode(found)) <= 255
    assert "/" not in found
    extension = os.path.splitext(name)[1]
    assert len(os.fsencode(extension)) > 32 or found.endswith(extension)


def test_a_shortened_name_is_not_cut_within_a_character():
    assert fs.suffixed("ä" * 125 + ".jpeg", "-2") == "ä" * 124 + "-2.jpeg"
    assert fs.suffixed("ä" * 125 + ".jpg", "-2") == "ä" * 124 + "-2.jpg"
    assert fs.suffixed("x." + "y" * 253, "-2") == "x." + "y" * 251 + "-2"


def test_kinds_have_names(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "symlink").symlink_to("x")
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    for name in ("fifo", "symlink", "folder", "file"):
        assert fs.kind(os.lstat(tmp_path / name).st_mode) == name
    assert fs.kind(os.lstat("/dev/null").st_mode) == "device"


def test_a_folder_whose_mode_cannot_be_set_is_named(folder, monkeypatch):
    def refuse(_fd, _mode):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "fchmod", refuse)
    with pytest.raises(PermissionError, match=r"not permitted: its mode cannot be set: 'happy'"):
        fs.make_folder(folder, "happy", fs.PUBLIC_MODE)
