"""daemon.inspection: whatever a file is, it is read once and reported; nothing but regular files is ever opened."""

import hashlib
import os
import socket
import threading

import pytest

import pictures
from daemon.inspection import FileError, Limits, fingerprint, inspect
from daemon_parts import LIMITS, NOBODY, as_user, held, needs_root
from trainer.views import Eye


def inspected(path, limits=LIMITS, size=8):
    report, picture = inspect(os.fsencode(path), Eye(size), limits)
    assert (picture is None) == (report.code is not None)
    return report, picture and picture.pixels


def test_a_picture_is_read_once_hashed_and_decoded(tmp_path):
    data = pictures.picture("JPEG", 64, 48)
    path = tmp_path / os.fsdecode(b"\xff\n.jpg")
    path.write_bytes(data)
    report, pixels = inspected(path)
    st = path.stat()
    assert (report.sha256, report.bytes) == (hashlib.sha256(data).hexdigest(), len(data))
    assert (report.width, report.height, report.format) == (64, 48, "JPEG")
    assert (report.inode, report.mtime_ns) == (st.st_ino, st.st_mtime_ns)
    assert (pixels.shape, str(pixels.dtype)) == ((8, 8, 3), "uint8")
    assert report.decode_ms > 0


@pytest.mark.parametrize(
    ("data", "code"),
    [(b"", "empty"), (b"no picture", "not_an_image"), (pictures.picture("PNG")[:100], "truncated")],
)
def test_a_file_that_is_no_picture_is_reported_with_its_hash(tmp_path, data, code):
    (tmp_path / "x").write_bytes(data)
    report, _ = inspected(tmp_path / "x")
    assert (report.code, report.sha256, report.bytes) == (code, hashlib.sha256(data).hexdigest(), len(data))
    assert report.error
    assert report.inode


def test_limits_are_limits(tmp_path):
    data = pictures.picture("PNG")
    (tmp_path / "x").write_bytes(data)
    assert inspected(tmp_path / "x", Limits(len(data), 64 * 48))[0].code is None
    report, _ = inspected(tmp_path / "x", Limits(len(data) - 1, 64 * 48))
    assert (report.code, report.bytes, report.sha256) == ("too_large", len(data), None), "not even hashed"
    assert inspected(tmp_path / "x", Limits(len(data), 64 * 48 - 1))[0].code == "too_many_pixels"


def make(path, kind):
    if kind == "symlink":
        (path.parent / "target.jpg").write_bytes(pictures.picture())
        path.symlink_to("target.jpg")
    elif kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))


@pytest.mark.parametrize("kind", ["symlink", "folder", "fifo", "socket"])
def test_what_is_no_regular_file_is_named_and_not_opened(tmp_path, kind, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "x", kind)
    monkeypatch.setattr(os, "open", lambda *_a, **_k: pytest.fail("it was opened"))
    report, _ = inspected("x")
    assert (report.code, report.sha256, report.inode) == (kind, None, None)


def test_a_fifo_that_takes_a_files_place_does_not_hang(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "x").touch()
    regular = os.lstat(tmp_path / "x")
    monkeypatch.setattr(os, "lstat", lambda _: regular)
    done = []
    thread = threading.Thread(target=lambda: done.append(inspected(tmp_path / "fifo")[0].code), daemon=True)
    thread.start()
    thread.join(30)
    assert done == ["empty"]


def test_a_file_that_grows_while_it_is_read_does_not_look_settled(tmp_path, monkeypatch):
    (tmp_path / "x").write_bytes(b"12345")
    real = os.fstat

    def grows(fd):
        found = real(fd)
        if found.st_size == 5 and found.st_ino == (tmp_path / "x").stat().st_ino:
            with (tmp_path / "x").open("ab") as file:
                file.write(b"6789")
        return found

    monkeypatch.setattr(os, "fstat", grows)
    report, _ = inspected(tmp_path / "x")
    assert report.bytes not in (5, 9)


def test_what_vanished_is_told_from_what_cannot_be_read(tmp_path):
    report, _ = inspected(tmp_path / "gone")
    assert (report.code, report.inode) == ("vanished", None)


@needs_root
def test_a_file_that_may_not_be_read_is_tried_again(tmp_path, monkeypatch):
    (tmp_path / "x").write_bytes(b"x")
    (tmp_path / "x").chmod(0o600)
    monkeypatch.chdir(tmp_path)
    report, _ = as_user(NOBODY, lambda: inspect(b"x", Eye(8), LIMITS))
    assert report.code == "unreadable"
    assert "Permission denied" in report.error


def test_a_file_that_must_not_be_decoded_is_hashed_all_the_same(tmp_path):
    (tmp_path / "x").write_bytes(b"poison")
    report = fingerprint(os.fsencode(tmp_path / "x"), LIMITS, FileError("crashes", "it kills"))
    assert (report.code, report.error) == ("crashes", "it kills")
    assert report.sha256 == hashlib.sha256(b"poison").hexdigest()
    (tmp_path / "link").symlink_to("x")
    assert fingerprint(os.fsencode(tmp_path / "link"), LIMITS, FileError("crashes", "x")).sha256 is None
    assert fingerprint(os.fsencode(tmp_path / "gone"), LIMITS, FileError("crashes", "x")).code == "crashes"


def test_no_descriptor_is_left_open(tmp_path):
    (tmp_path / "x").write_bytes(b"x")
    before = held(tmp_path)
    inspected(tmp_path / "x")
    inspected(tmp_path / "x", Limits(0, 1))
    assert held(tmp_path) == before
