"""Quiet: keeps the chatter of TensorFlow's and LiteRT's native code off stderr while they load, and Python's collector.

Invariant: only what is written while nothing fails is dropped; where the block raises an error (and not that somebody
pressed Ctrl-C), its output is shown. There is no setting for these messages: they come before absl's logging is set up,
or from a logger that Python cannot reach.
"""

import contextlib
import gc
import os
import sys
import tempfile
from collections.abc import Iterator


@contextlib.contextmanager
def native_stderr() -> Iterator[None]:
    """Hold back what is written to file descriptor 2, by any thread, while the block runs."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # a machine without a GPU is no error
    sys.stderr.flush()
    terminal = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        except Exception:
            held.seek(0)
            os.write(terminal, held.read())
            raise
        finally:
            sys.stderr.flush()
            os.dup2(terminal, 2)
            os.close(terminal)


@contextlib.contextmanager
def without(name: str) -> Iterator[None]:
    """Have a package that is not loaded yet look as if it were not installed, while the block runs."""
    if name in sys.modules:
        yield
        return
    sys.modules[name] = None  # type: ignore[assignment]  # what Python itself takes for "there is none"
    try:
        yield
    finally:
        del sys.modules[name]


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """Import TensorFlow in the block, or what needs it: quietly, and in three quarters of the time.

    Python's collector would look through all that it makes six times over, for next to nothing, and later all threads
    would wait for half a second (measured) whenever it looks through that again: it is told not to. Once in a process,
    since what is frozen is never collected.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        with native_stderr():
            yield
    finally:
        if not gc.get_freeze_count():
            gc.freeze()
        if was_enabled:
            gc.enable()
