"""daemon.journald: entries to a real socket, and the stream that is left where nobody takes them."""

import os
import socket
import struct
import subprocess
import sys

import pytest

from daemon import journald


@pytest.fixture
def journal(tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "socket"))
        listener.settimeout(30)
        yield listener


def entry(data):
    """Take an entry apart as journald does: NAME=value, or NAME, length and bytes."""
    found = {}
    while data:
        line, _, rest = data.partition(b"\n")
        name, equals, value = line.partition(b"=")
        if not equals:
            length = struct.unpack("<Q", rest[:8])[0]
            value, rest = rest[8 : 8 + length], rest[9 + length :]
        found[name.decode()] = value.decode()
        data = rest
    return found


def test_an_entry_has_message_priority_and_fields(journal, tmp_path):
    fields = {"event": "settings reloaded", "needs_restart": ["tray.root"], "waiting": 3, "model": None}
    assert journald.send("warning", '{"json": 1}', fields, str(tmp_path / "socket"))
    assert entry(journal.recv(65_536)) == {
        "MESSAGE": '{"json": 1}', "PRIORITY": "4", "SYSLOG_IDENTIFIER": "moodbox", "MOODBOX_WAITING": "3",
        "MOODBOX_EVENT": "settings reloaded", "MOODBOX_NEEDS_RESTART": '["tray.root"]',
    }  # fmt: skip


def test_a_value_of_several_lines_forges_no_field(journal, tmp_path):
    text = "Traceback:\nPRIORITY=0\nMESSAGE=forged"
    assert journald.send("error", "m", {"exception": text}, str(tmp_path / "socket"))
    found = entry(journal.recv(65_536))
    assert (found["MOODBOX_EXCEPTION"], found["PRIORITY"], found["MESSAGE"]) == (text, "3", "m")


def test_what_is_too_long_or_has_no_reader_is_not_taken(journal, tmp_path):
    assert not journald.send("info", "x" * 10_000_000, {}, str(tmp_path / "socket"))
    assert not journald.send("info", "m", {}, str(tmp_path / "nowhere"))


@pytest.mark.parametrize("is_journal", [True, False])
def test_lines_carry_a_level_on_a_stream_to_the_journal_and_on_no_other(tmp_path, is_journal):
    code = """
import structlog
from daemon import journald, logs
journald.send.__defaults__ = ("/no/such/socket",)
logs.configure()
structlog.get_logger().warning("told", file="a\\nb")
logs.failed("why", 2)
"""
    with (tmp_path / "stream").open("wb") as stream:
        found = os.fstat(stream.fileno())
        name = f"{found.st_dev}:{found.st_ino}" if is_journal else "1:1"
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "JOURNAL_STREAM": name}
        subprocess.run([sys.executable, "-c", code], stderr=stream, env=environment, check=True)
    told, failed = (tmp_path / "stream").read_text().splitlines()
    assert told.startswith("<4>{" if is_journal else "{")
    assert failed == ("<3>" if is_journal else "") + "moodbox: why"
