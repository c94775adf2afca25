"""Ending a process: on Ctrl-C without a traceback, and without the interpreter's teardown.

TensorFlow makes that one long, and at times fatal.
"""

import contextlib
import os
import signal
import sys
from typing import NoReturn


def by_interrupt() -> None:
    """Have Ctrl-C end the process as it ends any other (the shell says 130): nothing is there yet to be tidied up."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def by_exception(*numbers: int) -> list[int]:
    """Have these signals raise KeyboardInterrupt from now on; the list that is returned tells which came.

    Where a library's native code is at work (TensorFlow's import, say), another exception may come of it, or none.
    """
    came: list[int] = []

    def stop(number: int, _: object) -> NoReturn:
        came.append(number)
        raise KeyboardInterrupt

    for number in numbers:
        signal.signal(number, stop)
    return came


def at_once(status: int) -> NoReturn:
    """End the process with what it said written out; nothing else is waited for, or cleaned up."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(status)
