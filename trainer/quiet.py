"""Quiet: keeps the chatter of TensorFlow's and LiteRT's native code off stderr while they load.

Invariant: only what is written while nothing fails is dropped; where the block raises an error (and not that somebody
pressed Ctrl-C), its output is shown. There is no setting for these messages: they come before absl's logging is set up,
or from a logger that Python cannot reach.
"""

import contextlib
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
