"""A machine with a real systemd, in namespaces that are thrown away (systemd.sh), for the tests of deploy/."""

import os
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
WHEELS = ".venv/wheels"
PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
LONGEST = 280.0
MEMORY = 6_000_000_000  # the program is in memory, and works


def skip(reason: str) -> None:
    """Skip; where everything was prepared for the tests, a skip would hide a fault."""
    if os.environ.get("CI"):
        pytest.fail(f"in CI nothing may be left out: {reason}")
    pytest.skip(reason)


class Machine:
    """Runs from construction to `close`. The repository is at /mnt, read-only."""

    def __init__(self) -> None:
        available = int(re.search(r"MemAvailable:\s+(\d+)", Path("/proc/meminfo").read_text())[1]) * 1024
        if available < MEMORY:
            skip(f"needs {MEMORY / 1e9:.0f} GB of free memory, there are {available / 1e9:.1f}")
        with tempfile.TemporaryFile("w+") as errors:
            command = [ROOT / "tests/systemd.sh", ROOT]
            pipe = subprocess.PIPE
            self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=errors, text=True)
            self.pid = self._process.stdout.readline().strip()
            if not self.pid:
                errors.seek(0)
                skip(f"no systemd to test with: {errors.read().strip()} (exit {self._process.wait()})")

    def close(self) -> None:
        self._process.communicate()

    def path(self, inside: str) -> Path:
        """Return where a path inside is to be reached from here."""
        return Path(f"/proc/{self.pid}/root{inside}")

    def command(self, *words: str, user: str = "root") -> list[str]:
        home = "/root" if user == "root" else f"/home/{user}"
        become = () if user == "root" else ("runuser", "-u", user, "--")
        enter = ("nsenter", "-t", self.pid, "-a", "env", "-i", "-C", home, f"HOME={home}", PATH, "LANG=C.UTF-8")
        return [*enter, *become, *words]

    def run(self, *words: str, user: str = "root", status: int | None = 0) -> str:
        """Run a command inside and return what it said, both streams; it has to end with `status` (None: any)."""
        streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        command = self.command(*words, user=user)
        done = subprocess.run(command, **streams, text=True, timeout=LONGEST, check=False)
        assert status in (None, done.returncode), f"{words}: exit {done.returncode}\n{done.stdout}"
        return done.stdout

    def sh(self, script: str, user: str = "root", status: int | None = 0) -> str:
        return self.run("bash", "-ec", script, user=user, status=status)

    def show(self, unit: str, name: str) -> str:
        return self.run("systemctl", "show", "--value", "-p", name, unit).strip()

    def install(self, *options: str, status: int | None = 0) -> str:
        python = f"python3.{sys.version_info.minor}"
        return self.run("/mnt/deploy/install.sh", "--python", python, *options, status=status)

    def files(self) -> set[str]:
        """Return every path where programs are installed: elsewhere, what the host does meanwhile shows through."""
        return set(self.run("find", "/etc", "/home", "/opt", "/srv", "/usr", "/var", "-xdev").splitlines())


def prepare_wheels() -> None:
    """Gather the wheels of everything, once: inside there is no network."""
    made = subprocess.run(["make", "wheels"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr


def repack(folder: Path, version: str, files: Mapping[str, str]) -> None:
    """Make a wheel of another version in `folder`, with other `files`, that asks for no other package."""
    [wheel] = (ROOT / WHEELS).glob("moodbox-*.whl")
    old = wheel.name.split("-")[1]
    written = dict[str, bytes]()
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            written[name.replace(f"moodbox-{old}.", f"moodbox-{version}.")] = archive.read(name)
    meta = f"moodbox-{version}.dist-info"
    lines = written[f"{meta}/METADATA"].decode().replace(f"\nVersion: {old}\n", f"\nVersion: {version}\n").splitlines()
    written[f"{meta}/METADATA"] = "\n".join(x for x in lines if not x.startswith("Requires-Dist")).encode()
    written |= {name: text.encode() for name, text in files.items()}
    written[f"{meta}/RECORD"] = "".join(f"{name},,\n" for name in written).encode()
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(folder / wheel.name.replace(old, version, 1), "w") as archive:
        for name, data in written.items():
            archive.writestr(name, data)
