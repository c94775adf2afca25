"""The learner: `moodbox learn` at intervals, in a process of its own, so that sorting never waits for it.

Invariant: at most one runs, it is ended with the daemon, and whatever becomes of it costs the daemon a line in its log.
"""

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import IO, Any

import structlog

FIRST_SECONDS = 60.0  # after the start: what people moved while no daemon ran is not left for long
STOP_SECONDS = 5.0
HANGS_SECONDS = 1800.0  # a million photos take a minute
log = structlog.get_logger()


def command_of(argv: Sequence[str], orig_argv: Sequence[str]) -> list[str]:
    """Return the command line of this process (`moodbox run …`) with `learn` in the place of `run`."""
    options = argv[2:]
    return [sys.executable, *orig_argv[1 : len(orig_argv) - len(options) - 1], "learn", *options]


class Learner:
    """Runs `command` every `seconds` (0: never). Times are monotonic seconds."""

    def __init__(self, command: Sequence[str], seconds: float, now: float) -> None:
        self._command, self._seconds = list(command), seconds
        self._due = now + min(seconds, FIRST_SECONDS)
        self._process: subprocess.Popen[bytes] | None = None
        self._since = now
        self._output: IO[Any] | None = None

    def step(self, now: float) -> str:
        """Start it where it is due; where it has ended, log what it said. Return what hangs."""
        if self._process is not None:
            if self._process.poll() is not None:
                self._tell()
        elif self._seconds and now >= self._due:
            self._due, self._since = now + self._seconds, now
            self._start()
        hangs = self._process is not None and now - self._since > HANGS_SECONDS
        return "`moodbox learn` does not end" if hangs else ""

    def follow(self, seconds: float, now: float) -> None:
        """Run it this often from now on."""
        if seconds != self._seconds:
            self._seconds, self._due = seconds, now + min(seconds, FIRST_SECONDS)

    def close(self) -> None:
        """End it; what it has not done, the next one does."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._forget()

    def _start(self) -> None:
        try:
            self._output = tempfile.TemporaryFile()  # noqa: SIM115  # a pipe might fill, and it would wait for ever
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=self._output, stderr=subprocess.STDOUT
            )
        except OSError as error:
            log.warning("people's corrections could not be looked for", error=str(error))
            self._forget()

    def _tell(self) -> None:
        assert self._process is not None  # noqa: S101  # the caller saw it end
        assert self._output is not None  # noqa: S101
        self._output.seek(0)
        said = self._output.read(4096).decode(errors="backslashreplace").strip().splitlines()
        if self._process.returncode:
            log.warning("people's corrections were not learned", said="".join(said[-1:]))
        elif learned := [line for line in said if line.startswith("learned")]:
            log.info("people's corrections", said="; ".join(learned))
        self._forget()

    def _forget(self) -> None:
        if self._output is not None:
            self._output.close()
        self._process = self._output = None
