"""trainer.ending: Ctrl-C ends a command quietly, whatever Python is importing at that moment."""

import signal
import subprocess
import sys

import pytest

# As the installed script does it; SIGINT comes with the import of the module that the first argument names.
SCRIPT = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
class Interrupts:
    def find_spec(self, name, path, target=None):
        if name == wanted:
            sys.meta_path.remove(self)
            try:
                os.kill(os.getpid(), signal.SIGINT)
            except KeyboardInterrupt as error:
                raise made(error)
def native(error):
    return ImportError("initialization failed")
wanted, made = sys.argv.pop(1), {"as it is": lambda error: error, "native": native}[sys.argv.pop(1)]
sys.meta_path.insert(0, Interrupts())
"""


def interrupted(folder, package, module, *arguments, made="as it is"):
    """Return the exit status of a command that was interrupted while it imported a module, and what it said."""
    script = f"{SCRIPT}from {package}.__main__ import command\nsys.exit(command())\n"
    done = subprocess.run(
        [sys.executable, "-c", script, module, made, *arguments],
        cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False, timeout=120,
    )  # fmt: skip
    return done.returncode, done.stderr


@pytest.mark.parametrize(("package", "module"), [("daemon", "structlog"), ("daemon", "pydantic"),
                                                 ("trainer", "pydantic"), ("trainer", "argparse")])  # fmt: skip
def test_ctrl_c_while_python_still_imports_ends_quietly(tmp_path, package, module):
    assert interrupted(tmp_path, package, module, "--help") == (-signal.SIGINT, "")  # the shell says 130


@pytest.mark.tf
@pytest.mark.parametrize(("command", "module", "made"), [("once", "ai_edge_litert", "as it is"),
                                                         ("once", "ai_edge_litert", "native"),
                                                         ("doctor", "tensorflow", "as it is")])  # fmt: skip
def test_ctrl_c_while_a_model_is_loaded_ends_quietly(tmp_path, command, module, made):
    """From inside of native code it may come out as an ImportError."""
    assert interrupted(tmp_path, "daemon", module, command, "--tray", "t", made=made) == (130, "")
