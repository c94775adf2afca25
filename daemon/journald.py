"""journald's native protocol: a log line with its priority and its fields, where standard error is the journal.

Invariant: a line that journald does not take this way goes to standard error like any other. The protocol is a datagram
of fields (systemd.io/JOURNAL_NATIVE_PROTOCOL); the PyPI packages for it compile against libsystemd.
"""

import json
import os
import socket
import struct
import sys
from collections.abc import Mapping

PATH = "/run/systemd/journal/socket"
PRIORITIES = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}


def is_stderr() -> bool:
    """Tell whether standard error is a stream to the journal: the service manager says which file that is."""
    try:
        found = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError, AttributeError):
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"


def prefixed(level: str, text: str) -> str:
    """Return lines for a stream to the journal, each with its priority (SyslogLevelPrefix=)."""
    return "\n".join(f"<{PRIORITIES[level]}>{line}" for line in text.split("\n"))


def send(level: str, message: str, fields: Mapping[str, object], path: str = PATH) -> bool:
    """Send one entry; False where journald did not take it. Fields are named MOODBOX_…: `journalctl MOODBOX_FILE=…`."""
    entry: dict[str, object] = {"MESSAGE": message, "PRIORITY": PRIORITIES[level], "SYSLOG_IDENTIFIER": "moodbox"}
    entry |= {f"MOODBOX_{name.upper()}": _text(value) for name, value in fields.items() if value is not None}
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        sender.settimeout(1.0)
        try:
            sender.sendto(b"".join(_field(name, str(value)) for name, value in entry.items()), path)
        except OSError:
            return False
    return True


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _field(name: str, value: str) -> bytes:
    data = value.encode(errors="backslashreplace")
    if b"\n" not in data:
        return b"%s=%s\n" % (name.encode(), data)
    return b"%s\n%s%s\n" % (name.encode(), struct.pack("<Q", len(data)), data)
