"""daemon.systemd: datagrams to a real socket, and silence where nobody listens."""

import contextlib
import os
import socket
import threading
import time

import pytest

from daemon.pulse import Pulse
from daemon.systemd import notify, watchdog_seconds


@pytest.fixture(params=["path", "abstract"])
def manager(request, tmp_path, monkeypatch):
    """Listen as systemd does, at a path or in the abstract name space."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        name = str(tmp_path / "notify") if request.param == "path" else f"@moodbox-test-{os.getpid()}"
        listener.bind(name.replace("@", "\0", 1))
        listener.settimeout(30)
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        yield listener


def fill(listener):
    """Send until its queue is full."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other, contextlib.suppress(BlockingIOError):
        other.setblocking(False)
        while True:
            other.sendto(b"noise", listener.getsockname())


def test_each_keyword_is_a_line(manager):
    notify(READY=1, STATUS="model 3; 2 in work")
    assert manager.recv(4096) == b"READY=1\nSTATUS=model 3; 2 in work"


@pytest.mark.parametrize("word", ["READY", "RELOADING"])
def test_a_manager_that_is_busy_for_a_moment_still_gets_it(manager, monkeypatch, word):
    """A READY that is dropped would have the service killed; a RELOADING, have the manager wait for it."""
    monkeypatch.setattr("daemon.systemd.URGENT_SECONDS", 30.0)  # the moment is this test's
    fill(manager)
    sender = threading.Thread(target=notify, kwargs={word: 1})
    sender.start()
    sender.join(0.2)
    assert sender.is_alive(), "it gave up at once"
    deadline = time.monotonic() + 30
    while manager.recv(4096) != f"{word}=1".encode():
        assert time.monotonic() < deadline
    sender.join()


def test_a_status_that_a_busy_manager_did_not_take_is_sent_again(manager):
    pulse = Pulse()
    fill(manager)
    pulse.tell(1.0, lambda: "2 waiting")
    manager.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            assert manager.recv(4096) == b"noise"
    for now in (2.0, 3.0):
        pulse.tell(now, lambda: "2 waiting")
    assert manager.recv(4096) == b"STATUS=2 waiting"
    with pytest.raises(BlockingIOError):
        manager.recv(4096)  # once


def test_a_manager_that_does_not_listen_holds_nobody_up_for_long(manager):
    fill(manager)
    begun = time.monotonic()
    notify(WATCHDOG=1)
    assert time.monotonic() - begun < 4


@pytest.mark.parametrize("address", ["", "relative", "/no/such/socket", "@nobody-listens-here"])
def test_where_nobody_listens_nothing_happens(monkeypatch, address):
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    notify(READY=1)
    monkeypatch.delenv("NOTIFY_SOCKET")
    notify(READY=1)


@pytest.mark.parametrize(
    ("pid", "micros", "expected"),
    [
        (None, "30000000", 30.0), ("me", "500000", 0.5), ("1", "30000000", None), (None, None, None), (None, "", None),
        (None, "soon", None),
    ],
)  # fmt: skip
def test_the_watchdog_is_only_ours_if_it_says_so(monkeypatch, pid, micros, expected):
    for name, value in (("WATCHDOG_PID", str(os.getpid()) if pid == "me" else pid), ("WATCHDOG_USEC", micros)):
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    assert watchdog_seconds() == expected
