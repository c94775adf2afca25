"""deploy/: what can be seen of it without installing it (test_deploy_service.py does)."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

import pytest

from machine import ROOT, skip
from test_moodbox import DEADLINE, clean, until
from trainer.settings import load

DEPLOY = ROOT / "deploy"
INSTALL = DEPLOY / "install.sh"
CONTAINERFILE = DEPLOY / "Containerfile"
SERVICES = ("moodbox.service", "moodbox@.service", "moodbox-retrain.service", "moodbox-retrain@.service")


def instructions():
    """Return the Containerfile's instructions in order: (name, the rest)."""
    text = CONTAINERFILE.read_text().replace("\\\n", " ")
    return [tuple(line.split(None, 1)) for line in text.splitlines() if line and not line.startswith("#")]


def only(name):
    [value] = (rest for found, rest in instructions() if found == name)
    return value


def install(*options, **settings):
    done = subprocess.run(["bash", INSTALL, *options], capture_output=True, text=True, check=False, **settings)
    return done.returncode, done.stdout + done.stderr


# ---- install.sh where it cannot work


def test_only_root_can_install():
    if os.geteuid() != 0:
        assert install() == (1, "install.sh: only root can do this: sudo deploy/install.sh\n")
        return
    with tempfile.TemporaryDirectory() as folder:  # the checkout may be in root's home
        os.chmod(folder, 0o755)
        shutil.copytree(DEPLOY, f"{folder}/deploy")
        command = ["setpriv", "--reuid=65534", "--clear-groups", "bash", f"{folder}/deploy/install.sh"]
        done = subprocess.run(command, cwd="/", capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "install.sh: only root can do this: sudo deploy/install.sh\n")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root comes that far")
@pytest.mark.skipif(Path("/run/systemd/system").exists(), reason="systemd runs here")
def test_without_systemd_it_says_so_in_one_line():
    status, said = install()
    assert (status, said.count("\n")) == (1, 1)
    assert "systemd does not run here" in said


@pytest.mark.parametrize(
    ("options", "status", "named"),
    [
        (["--whels", "x"], 2, "--whels: no such option"),
        (["--wheels"], 2, "usage:"),
        (["--purge"], 1, "--purge goes with --uninstall"),
        (["--tray", "../x"], 1, "a name is made of"),
        (["--tray", "settings"], 1, "a name is made of"),
        (["--help"], 0, "usage:"),
    ],
)
def test_bad_options_are_named(options, status, named):
    found, said = install(*options)
    assert (found, named in said) == (status, True), said


# ---- units


def sections(unit):
    return [line for line in (DEPLOY / unit).read_text().splitlines() if line and not line.startswith("#")]


@pytest.mark.parametrize("unit", SERVICES)
def test_the_units_score_at_most_one(unit):
    if not shutil.which("systemd-analyze"):
        skip("needs systemd-analyze")
    command = ["systemd-analyze", "security", "--offline=true", "--threshold=10", "--no-pager", DEPLOY / unit]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("unit", SERVICES)
def test_there_is_one_writable_root_that_holds_all_that_the_settings_name(unit):
    [root] = (line.split("=")[1] for line in sections(unit) if line.startswith("ReadWritePaths="))
    settings = load(DEPLOY / "settings.toml").settings
    for path in (settings.tray.root, settings.journal.root, settings.models.root, settings.dataset.root,
                 settings.trainer.runs):  # fmt: skip
        assert str(path).startswith(root.replace("-%i", "") + "/")


@pytest.mark.parametrize("unit", ["moodbox.service", "moodbox-retrain.service", "moodbox-retrain.timer"])
def test_the_units_of_one_of_several_trays_differ_in_its_name_alone(unit):
    def lines(name):
        text = (DEPLOY / name).read_text()
        return [line for line in text.splitlines() if not line.startswith("#")]

    own = {"/var/lib/moodbox": "/var/lib/moodbox-%i", "settings.toml": "%i.toml", "=Moodbox,": "=Moodbox (%i),"}
    expected = lines(unit)
    for plain, instance in own.items():
        expected = [line.replace(plain, instance) for line in expected]
    assert lines(unit.replace(".", "@.")) == expected


def test_the_installed_settings_name_paths_and_nothing_else():
    written = tomllib.loads((DEPLOY / "settings.toml").read_text())
    assert {f"{table}.{key}" for table, keys in written.items() for key in keys} == {
        "tray.root", "journal.root", "models.root", "dataset.root", "trainer.runs",
    }  # fmt: skip


def test_no_folder_that_people_write_in_is_made_before_the_trays_disk_is_there():
    made = [line.split()[1] for line in sections("moodbox.tmpfiles") if line.startswith("d ")]
    assert [path for path in made if "/tray" in path] == ["/var/lib/moodbox/tray"]
    [mode] = (line.split()[2] for line in sections("moodbox.tmpfiles") if line.startswith("d /var/lib/moodbox/tray "))
    assert not int(mode, 8) & 0o1022, "no sticky bit, not writable for the group or others"


# ---- the container


def test_the_container_is_not_root_and_starts_from_a_fixed_version():
    bases = [rest.split()[0] for name, rest in instructions() if name == "FROM"]
    assert all(re.fullmatch(r"python:3\.1[1-3]\.\d+-slim-[a-z]+", base) for base in bases)
    assert len(set(bases)) == 1, "what was built for one Python runs on the same"
    user, _, group = only("USER").partition(":")
    assert int(user) > 0
    assert int(group) > 0
    assert [name for name, _ in instructions()].index("USER") < [name for name, _ in instructions()].index("ENTRYPOINT")


def test_the_container_copies_what_there_is():
    for name, rest in instructions():
        if name == "COPY" and "--from=" not in rest:
            for source in rest.split()[:-1]:
                assert (ROOT / source).exists(), source
    assert {"COPY daemon daemon", "COPY trainer trainer"} <= {f"{name} {rest}" for name, rest in instructions()}


def test_the_container_writes_into_its_volume_alone():
    volume = only("VOLUME")
    settings = load(DEPLOY / "settings.toml").settings
    assert all(
        path.is_relative_to(volume) for path in (settings.tray.root, settings.journal.root, settings.models.root)
    )
    assert f'"{volume}"' in [rest for name, rest in instructions() if name == "RUN"][-1]


@pytest.mark.tf
def test_the_containers_commands_run_are_healthy_and_end_by_the_signal(tmp_path):
    """Entry point, command, health check and stop signal as an engine would use them, in this environment."""
    start = json.loads(only("ENTRYPOINT")) + json.loads(only("CMD"))
    check = json.loads(only("HEALTHCHECK").split("CMD", 1)[1])
    stop = signal.Signals[only("STOPSIGNAL")]
    environment = clean() | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    options = {"cwd": tmp_path, "env": environment, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    assert subprocess.run(check, **options, check=False).returncode != 0, "nothing runs yet"
    with subprocess.Popen(start, **options) as daemon:
        until(lambda: subprocess.run(check, **options, check=False).returncode == 0)
        daemon.send_signal(stop)
        assert daemon.wait(DEADLINE) == 0
    assert subprocess.run(check, **options, check=False).returncode != 0
    assert not any(word in ("sh", "bash", "-c") for word in (*start, *shlex.split(" ".join(check))))
