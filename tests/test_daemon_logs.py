"""daemon.logs and daemon.console: diagnostics on stderr, and names that cannot act on a terminal."""

import errno
import io
import json
import os
import sys

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from daemon import logs
from daemon.console import Feed
from daemon.logs import printable
from trainer.settings import load


@pytest.fixture(autouse=True)
def _restored():
    yield
    structlog.reset_defaults()


class Terminal(io.StringIO):
    def isatty(self):
        return True


def logged(monkeypatch, stream, **options):
    monkeypatch.setattr(sys, "stderr", stream)
    logs.configure(**options)
    log = structlog.get_logger()
    log.info("told", file="a\x1b[2Jb\n" + os.fsdecode(b"\xff"), count=3)
    log.debug("not told")
    try:
        int("inside")
    except ValueError:
        log.exception("failed")
    return stream.getvalue()


@given(st.text() | st.binary().map(os.fsdecode))
def test_what_is_printable_can_be_printed_and_acts_on_nothing(text):
    shown = printable(text)
    shown.encode()
    assert shown.isprintable()
    if text.isprintable():
        assert shown == text


def test_escapes_are_readable():
    assert printable("a\nb\x1b\u202e") == r"a\nb\x1b\u202e"
    assert printable(os.fsdecode(b"\xff")) == r"\xff"
    assert printable("grüße 日本 ✓") == "grüße 日本 ✓"
    assert printable(None) == "None"


def test_elsewhere_than_on_a_terminal_each_event_is_a_line_of_json(monkeypatch):
    text = logged(monkeypatch, io.StringIO())
    told, failed = (json.loads(line) for line in text.splitlines())
    assert (told["event"], told["level"], told["count"]) == ("told", "info", 3)
    assert told["file"] == r"a\x1b[2Jb\n\xff"
    assert told["timestamp"].endswith("Z")
    assert "ValueError: invalid literal" in failed["exception"]


def test_on_a_terminal_it_is_readable_and_names_are_still_harmless(monkeypatch):
    text = logged(monkeypatch, Terminal())
    assert r"a\x1b[2Jb\n" in text
    assert "\x1b[2J" not in text
    assert "Traceback" in text


def test_quiet_means_warnings_only(monkeypatch):
    text = logged(monkeypatch, io.StringIO(), quiet=True)
    assert "told" not in text
    assert "failed" in text


def test_a_full_disk_is_told_with_its_cure():
    said = logs.refusal(OSError(errno.ENOSPC, "No space left on device"))
    assert said == "No space left on device: make room where tray.root, journal.root and models.root are"
    assert logs.refusal(OSError(errno.EIO, "Input/output error", "/x")) == "/x: Input/output error"


@pytest.mark.parametrize(("stdin", "stderr", "said"), [(Terminal, io.StringIO, "inbox; Ctrl-C stops"),
                                                       (io.StringIO, Terminal, "inbox; Ctrl-C stops"),
                                                       (io.StringIO, io.StringIO, "inbox")])  # fmt: skip
def test_ctrl_c_is_offered_only_where_somebody_can_press_it(monkeypatch, stdin, stderr, said):
    monkeypatch.setattr(sys, "stdin", stdin())
    monkeypatch.setattr(sys, "stderr", stderr())
    with capture_logs() as entries:
        Feed(load(None, (), {})).ready("model 1", 0)
    assert [entry["event"] for entry in entries] == [f"ready: drop photos into the {said}"]
