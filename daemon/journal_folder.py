"""The folder of a journal, and its identity: another machine may have another folder under the same path.

Invariant: the identity is made once, under a lock, and stays with the folder wherever it is moved.
"""

import contextlib
import errno
import os
import platform
import secrets
from dataclasses import dataclass
from pathlib import Path

from trainer import durable

NAME = "journal.id"
MACHINE_ID = Path("/etc/machine-id")
CHARACTERS = 32
SECONDS = 10.0  # that another daemon may take to make it


@dataclass(frozen=True)
class JournalFolder:
    """Where the lines of an owner are, and the machine that told; `ident` and `host` are "" where nobody did."""

    path: Path
    ident: str = ""
    host: str = ""

    def is_same(self, other: "JournalFolder") -> bool:
        """Tell whether both are one folder, as far as is known; also one that was deleted and made again."""
        if self.host in ("", other.host) and self._is_copy(other):
            return False
        if self.ident and self.ident == other.ident:
            return True
        return self.path == other.path and ("" in (self.ident, other.ident) or self.host == other.host)

    def _is_copy(self, other: "JournalFolder") -> bool:
        """Tell whether both are here, in two folders, whatever identity was copied along."""
        return self.path.is_dir() and other.path.is_dir() and not self.path.samefile(other.path)

    def is_another(self, own: "JournalFolder") -> bool:
        """Tell whether this is the journal of others than write in `own`: it is here, or on another machine."""
        return not self.is_same(own) and (self.path.is_dir() or self.host not in ("", own.host))

    @property
    def is_there(self) -> bool:
        """Whether the folder is there, on this machine."""
        return self.path.is_dir() and ("" in (self.ident, found := _ident(self.path)) or self.ident == found)


def identified(path: Path) -> JournalFolder:
    """Return a journal's folder with its identity; what is missing is made. Raises OSError."""
    path.mkdir(parents=True, exist_ok=True)
    return JournalFolder(path, _ident(path) or _make(path), this_host())


def _make(path: Path) -> str:
    file = path / NAME
    busy = OSError(errno.EBUSY, "another daemon does not let go of it", str(file))
    with durable.exclusive(file, os.O_RDWR | os.O_CREAT, busy, 0o644, seconds=SECONDS):
        if not (ident := _ident(path)):
            ident = secrets.token_hex(CHARACTERS // 2)
            file.write_text(ident)
            file.chmod(0o644)  # what root makes, the service's user has to read
            durable.sync_file(file)
            durable.sync_directory(path)
    return ident


def this_host() -> str:
    """Return what this machine is called, and how it is told from others of that name."""
    ident = ""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        ident = MACHINE_ID.read_text(encoding="utf-8").strip()
    return f"{platform.node()} {ident}".strip()


def _ident(path: Path) -> str:
    """Return the identity of a folder; "" where it has none, or half of one."""
    try:
        ident = (path / NAME).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""
    return ident if len(ident) == CHARACTERS else ""
