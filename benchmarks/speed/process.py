"""Processes that are measured: when they are ready, what CPU time and memory they take from then on."""

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

TICKS = os.sysconf("SC_CLK_TCK")
WAIT_SECONDS = 300.0
MOODBOX = Path(sys.executable).with_name("moodbox")


@dataclass(frozen=True)
class Usage:
    """What a process took: seconds since it was begun, seconds of CPU (user and system), MiB at its peak."""

    seconds: float
    cpu: float
    peak: float

    def since(self, earlier: "Usage") -> "Usage":
        """Return what was taken after `earlier`; the peak is the whole process's."""
        return Usage(self.seconds - earlier.seconds, self.cpu - earlier.cpu, self.peak)


class Process:
    """A program under measurement. It says that it is ready by sd_notify, as the daemon does."""

    def __init__(self, command: Sequence[str | Path], socket_folder: Path) -> None:
        address = socket_folder / "notify"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(os.fspath(address))
        self._begun = time.monotonic()
        environment = {**os.environ, "NOTIFY_SOCKET": os.fspath(address)}
        self.log = (socket_folder / "log").open("w+")
        self._process = subprocess.Popen(command, env=environment, stdout=self.log, stderr=self.log)
        self.pid = self._process.pid

    def ready(self) -> Usage:
        """Wait until the program says READY=1; return what it took until then."""
        self._socket.settimeout(0.5)
        while time.monotonic() - self._begun < WAIT_SECONDS:
            with contextlib.suppress(TimeoutError):
                if b"READY=1" in self._socket.recv(65_536):
                    return self.usage()
            if self._process.poll() is not None:
                break
        self.log.seek(0)
        raise SystemExit(f"{self._process.args}: did not become ready: {self.log.read()[-2000:]}")

    def usage(self) -> Usage:
        """Return what the running process has taken so far, to the kernel's clock tick (0.01 s)."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        cpu = (int(fields[11]) + int(fields[12])) / TICKS
        return Usage(time.monotonic() - self._begun, cpu, self._peak())

    def _peak(self) -> float:
        status = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024

    def wait(self) -> Usage:
        """Wait for the program's end; return all that it took, its children included."""
        _, status, used = os.wait4(self.pid, 0)
        self._process.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.monotonic() - self._begun
        if self._process.returncode != 0:
            self.log.seek(0)
            raise SystemExit(f"{self._process.args}: exit status {self._process.returncode}: {self.log.read()[-2000:]}")
        return Usage(seconds, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.returncode is None:
            self._process.terminate()
            self._process.wait()
        self._socket.close()
        self.log.close()


@contextlib.contextmanager
def started(command: Sequence[str | Path]) -> Iterator[Process]:
    """Start a program, and end it at last."""
    with tempfile.TemporaryDirectory(prefix="mb") as folder, Process(command, Path(folder)) as process:
        yield process


def daemon(command: str, place: Path, *settings: str) -> list[str | Path]:
    """Return the command line of `moodbox COMMAND` with its tray, log and models below `place`."""
    chosen = [f"tray.root={place}/tray", f"journal.root={place}/log", f"models.root={place}/models", *settings]
    own = place / "settings.toml"
    own.write_text("")
    return [MOODBOX, command, "--settings", own, *(part for text in chosen for part in ("--set", text))]
