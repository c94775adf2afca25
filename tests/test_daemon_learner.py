"""daemon.learner: `moodbox learn` in a process of its own, on a timer, and never in the daemon's way."""

import os
import sys
import time

import pytest
from structlog.testing import capture_logs

from daemon.learner import Learner, command_of
from daemon_parts import wait_for


def script(code):
    return [sys.executable, "-c", code]


@pytest.mark.parametrize(
    ("orig", "argv", "learns"),
    [
        (["python", "/bin/moodbox", "run"], ["/bin/moodbox", "run"], ["/bin/moodbox", "learn"]),
        (
            ["python", "-P", "-m", "daemon", "run", "--tray", "run"],
            ["/x/daemon/__main__.py", "run", "--tray", "run"],
            ["-P", "-m", "daemon", "learn", "--tray", "run"],
        ),
    ],
)
def test_it_is_the_same_command_with_learn_for_run(orig, argv, learns):
    assert command_of(argv, orig) == [sys.executable, *learns]


def ended(learner):
    def has_ended():
        learner.step(0.0)
        return learner._process is None

    wait_for(has_ended)


def test_it_runs_when_it_is_due_and_says_what_was_learned():
    learner = Learner(script("print('learned 3: happy → sad')"), 10.0, now=0.0)
    with capture_logs() as said:
        learner.step(9.9)
        assert learner._process is None
        learner.step(10.0)
        ended(learner)
        learner.step(19.9)
        assert learner._process is None
    assert [line["said"] for line in said] == ["learned 3: happy → sad"]


@pytest.mark.parametrize("code", ["print('nothing new to learn')", "print('x' * 1_000_000)"])
def test_nothing_new_is_not_said(code):
    learner = Learner(script(code), 1.0, now=0.0)
    with capture_logs() as said:
        learner.step(1.0)
        ended(learner)
    assert said == []


def test_a_failure_is_a_line_and_it_is_tried_again():
    learner = Learner(script("import sys; sys.exit('no space left')"), 1.0, now=0.0)
    with capture_logs() as said:
        for now in (1.0, 2.0):
            learner.step(now)
            ended(learner)
    assert [line["said"] for line in said] == ["no space left"] * 2


def test_a_command_that_is_not_there_is_a_line():
    learner = Learner(["/nowhere/python"], 1.0, now=0.0)
    with capture_logs() as said:
        learner.step(1.0)
    assert len(said) == 1


def test_only_one_runs_and_closing_ends_it(tmp_path):
    code = f"import os, time; open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    learner = Learner(script(code), 1.0, now=0.0)
    learner.step(1.0)
    wait_for(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
    pid = int((tmp_path / "pid").read_text())
    learner.step(100.0)
    assert learner._process.pid == pid
    begun = time.monotonic()
    learner.close()
    assert time.monotonic() - begun < 5
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_zero_seconds_are_never():
    learner = Learner(script("print('learned 1')"), 0.0, now=0.0)
    learner.step(1e9)
    assert learner._process is None
