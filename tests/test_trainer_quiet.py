"""trainer.quiet: what loads says nothing unless it fails, and Python's collector does not look through it."""

import gc
import importlib
import importlib.util
import subprocess
import sys

import pytest

from trainer import quiet


@pytest.fixture
def collections():
    """The collections that have begun; the collector is as before afterwards."""
    seen, was_enabled = [], gc.isenabled()
    gc.unfreeze()  # another test loaded TensorFlow

    def note(phase, _):
        seen.append(phase)

    gc.callbacks.append(note)
    gc.enable()
    yield seen
    gc.callbacks.remove(note)
    gc.unfreeze()
    if not was_enabled:
        gc.disable()


def test_what_is_imported_is_never_looked_through(collections):
    with quiet.importing():
        kept = [[number] for number in range(200_000)]  # as many as would start the collector a hundred times
        assert "start" not in collections
    assert gc.isenabled()
    assert gc.get_freeze_count() >= len(kept)
    assert not any(found is kept for found in gc.get_objects()), "the collector still has it"


def test_a_second_import_keeps_no_garbage(collections):
    with quiet.importing():
        pass
    frozen = gc.get_freeze_count()
    with quiet.importing():
        kept = [[number] for number in range(1000)]
    assert any(found is kept for found in gc.get_objects())
    assert gc.get_freeze_count() <= frozen, "what was frozen may end, nothing is added"


def test_an_import_that_fails_leaves_the_collector_on(collections):
    with pytest.raises(ImportError), quiet.importing():
        raise ImportError("no TensorFlow")
    assert gc.isenabled()


def test_a_collector_that_was_off_stays_off(collections):
    gc.disable()
    with quiet.importing():
        pass
    assert not gc.isenabled()


def test_a_package_that_is_not_wanted_looks_missing_meanwhile():
    assert "this" not in sys.modules
    with quiet.without("this"), pytest.raises(ImportError):
        importlib.import_module("this")
    assert importlib.util.find_spec("this")
    with quiet.without("gc"):
        assert importlib.import_module("gc") is gc, "what is loaded stays"


@pytest.mark.parametrize("block", ["native_stderr", "importing"])
@pytest.mark.parametrize(("then", "heard"), [("pass", b""), ("raise ValueError('no')", b"chatter")])
def test_native_code_is_heard_only_where_something_fails(block, then, heard):
    code = f"import os\nfrom trainer import quiet\nwith quiet.{block}():\n    os.write(2, b'chatter')\n    {then}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.stderr.startswith(heard)
    assert (b"chatter" in done.stderr) == bool(heard)
