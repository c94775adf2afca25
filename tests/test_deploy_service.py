"""The installed service under a real systemd, from its first installation to its last trace; told in order."""

import json
import os
import re
import struct
import subprocess
import time
from pathlib import Path

import orjson
import pytest
from PIL import Image

from daemon_parts import wait_for
from machine import ROOT, WHEELS, Machine, prepare_wheels, repack

pytestmark = pytest.mark.timeout(600)
STATE, TRAY, INBOX = "/var/lib/moodbox", "/var/lib/moodbox/tray", "/var/lib/moodbox/tray/inbox"
SERVICE, RETRAIN = "moodbox.service", "moodbox-retrain.service"
UNITS = (
    *(f"moodbox{kind}.service" for kind in ("", "@x", "-retrain", "-retrain@x")),
    *(f"moodbox-retrain{kind}.timer" for kind in ("", "@x")),
)
SUDO = 'sudo() { if [ "$1" = -u ]; then runuser "$@"; else "$@"; fi; }'  # there need not be one
THEIRS = ("/var/lib/moodbox", "/etc/moodbox", "/etc/tmpfiles.d/moodbox-tray.conf", "/srv/")
# Somebody else's, though it looks like Moodbox's: a program, a copy of the settings, a folder, a unit.
SOMEBODYS = """
mkdir -p /opt/moodbox/our-tools /etc/moodbox /var/lib/moodbox-backup
touch /opt/moodbox/our-tools/x "/etc/moodbox/my backup.toml" /etc/moodbox/settings.old.toml /etc/moodbox/backup.toml
touch /var/lib/moodbox-backup/x
printf '[Service]\\nExecStart=/bin/sleep infinity\\n' >/run/systemd/system/moodboxer.service
systemctl daemon-reload; systemctl start moodboxer
"""
SYSTEMDS = {"/var/lib/systemd/timers"}  # made by systemd for the first timer that there ever was
SECONDS = 90.0
OFFLINE = ("--wheels", f"/mnt/{WHEELS}")


@pytest.fixture(scope="module")
def machine():
    """A machine on which anna is to drop photos, and bert is not."""
    prepare_wheels()
    machine = Machine()
    try:
        machine.sh("useradd -m anna; useradd -m bert; mkdir /srv/wheels")
        machine.before = machine.files()
        yield machine
    finally:
        machine.close()


def lines(machine, *events):
    """Return all whole lines of these events: the daemon may be writing the last one."""
    found = [orjson.loads(raw) for path in sorted(machine.path(f"{STATE}/log").glob("*.jsonl"))
             for raw in path.read_bytes().split(b"\n")[:-1]]  # fmt: skip
    return [line for line in found if line["event"] in events]


def draw(machine, user, *names, shade=200):
    """Draw bright pictures of that user's, no two alike, in the home folder."""
    for number, name in enumerate(names):
        path = machine.path(f"/home/{user}/{name}")
        machine.run("mkdir", "-p", f"/home/{user}/{Path(name).parent}", user=user)
        Image.new("RGB", (160, 120), (shade + number % 50, shade, 3 * number % 250)).save(path)
        machine.run("chown", f"{user}:{user}", f"/home/{user}/{name}")


def drop(machine, *names):
    """Have anna copy pictures of these names into the inbox."""
    draw(machine, "anna", *names)
    machine.run("cp", *names, INBOX, user="anna")


def places(machine):
    """Return file name → the folder of the tray that it is in, for what was delivered."""
    delivered = [p for label in ("happy", "sad") for p in machine.path(f"{TRAY}/{label}").rglob("*.*")]
    return {path.name: path.relative_to(machine.path(TRAY)).parts[0] for path in delivered}


def wait_sorted(machine, *names):
    wait_for(lambda: set(names) <= set(places(machine)), SECONDS)


def is_ready(machine):
    return machine.show(SERVICE, "ActiveState") == "active"


def drop_in(machine, unit, text):
    """Change a unit as an administrator does; "" takes the change back."""
    path = machine.path(f"/run/systemd/system/{unit}.d/test.conf")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    machine.run("systemctl", "daemon-reload")


def default_entries(machine, path):
    """Return (tag, permissions) of the default ACL (acl(5)): owner, group, a named group, mask, others."""
    raw = os.getxattr(machine.path(path), "system.posix_acl_default")
    return [struct.unpack_from("<HH", raw, offset) for offset in range(4, len(raw), 8)]


def recipes(heading):
    """Return the commands that docs/operations.md has after some words."""
    page = (ROOT / "docs/operations.md").read_text()
    return [block.split("```")[0] for block in page.split(heading)[1].split("```text\n")[1:]]


def packages(machine):
    """Return the folder of the packages of the version that was installed first."""
    return machine.sh("echo /opt/moodbox/0.1.0-1/lib/python3.*/site-packages").strip()


def current(machine):
    return machine.run("readlink", "/opt/moodbox/current").strip()


def test_a_dry_run_says_what_would_be_done_and_does_nothing(machine):
    said = machine.install(*OFFLINE, "--dry-run")
    assert "/etc/moodbox/settings.toml" in said
    assert "systemctl restart moodbox.service" in said
    assert machine.files() == machine.before


def test_a_disk_without_room_is_named_before_anything_is_written(machine):
    machine.sh("mkdir /opt/moodbox; mount -t tmpfs -o size=50m none /opt/moodbox")
    said = machine.install(*OFFLINE, status=1)
    machine.sh("ls -A /opt/moodbox; umount /opt/moodbox; rmdir /opt/moodbox")
    assert "/opt/moodbox has 50 MB free, and 3000 MB are needed" in said
    assert machine.files() == machine.before


def test_a_python_that_does_not_do_is_named(machine):
    said = machine.run("/mnt/deploy/install.sh", *OFFLINE, "--python", "/bin/false", status=1)
    assert said.startswith("install.sh: /bin/false: no Python 3.11 to 3.13 with venv that every user may run")
    assert said.count("\n") == 1


def test_a_checkout_builds_what_it_installs(machine):
    """Where pip finds packages is its own business: here, in a folder."""
    found = f"PIP_NO_INDEX=1 PIP_FIND_LINKS=/mnt/{WHEELS} /mnt/deploy/install.sh --dry-run"
    assert "installing 0.1.0-1 in /opt/moodbox" in machine.sh(found)
    assert machine.files() == machine.before


def test_one_command_installs_it_without_a_network(machine):
    said = machine.install(*OFFLINE)
    assert "moodbox.service is active" in said
    assert machine.show(SERVICE, "StatusText").startswith("model 1")
    assert machine.show("moodbox-retrain.timer", "NextElapseUSecRealtime")
    assert machine.run("systemctl", "is-enabled", SERVICE, "moodbox-retrain.timer").split() == ["enabled"] * 2
    machine.run("usermod", "--append", "--groups", "moodbox", "anna")


def test_the_units_are_clean_and_locked_down(machine):
    assert machine.run("systemd-analyze", "verify", *UNITS) == ""
    for unit in (SERVICE, RETRAIN, "moodbox@x.service", "moodbox-retrain@x.service"):
        machine.run("systemd-analyze", "security", "--threshold=10", "--no-pager", unit)  # 10 stands for 1.0
    assert machine.show(SERVICE, "WatchdogUSec") == "3min"


def test_run_again_it_changes_nothing(machine):
    files, pid = machine.files(), machine.show(SERVICE, "MainPID")
    assert "is installed already" in machine.install(*OFFLINE)
    assert machine.show(SERVICE, "MainPID") == pid
    assert not {path for path in machine.files() ^ files if not path.startswith(STATE)}


def test_a_half_installed_version_is_removed_and_what_is_somebody_elses_stays(machine):
    machine.sh("mkdir -p /opt/moodbox/9.9-1/lib; touch /opt/moodbox/9.9-1/unfinished")
    machine.sh(SOMEBODYS)
    said = machine.install(*OFFLINE)
    assert "removing 9.9-1" in said
    assert "moodbox@" not in said, "a file in /etc/moodbox is no tray"
    assert not machine.path("/opt/moodbox/9.9-1").exists()
    assert machine.path("/opt/moodbox/our-tools/x").exists()
    assert not machine.path("/usr/local/lib/tmpfiles.d/moodbox-backup.conf").exists()


def test_the_folders_are_the_groups_and_nobody_elses(machine):
    def mode(path):
        return machine.run("stat", "--format", "%a %U %G", path).strip()

    assert mode(TRAY) == "2750 moodbox moodbox"
    assert mode(f"{TRAY}/.work") == "700 moodbox moodbox"
    for folder in ("inbox", "happy", "sad", "review", "rejected", "undone"):
        assert mode(f"{TRAY}/{folder}").split()[0] in ("2770", "2775")
        assert default_entries(machine, f"{TRAY}/{folder}") == [(1, 7), (4, 7), (8, 7), (16, 7), (32, 0)]
    assert "Permission denied" in machine.run("ls", TRAY, user="bert", status=2)
    assert "run this as the daemon's user" in machine.run("moodbox", "status", user="bert", status=1)
    assert "Permission denied" in machine.sh(f"echo > {INBOX}/bert.jpg", user="bert", status=1)
    assert "running" in machine.run("moodbox", "status", user="anna")


def test_it_is_active_only_when_it_is_ready(machine):
    machine.run("systemctl", "restart", "--no-block", SERVICE)
    seen = set()
    wait_for(lambda: seen.add(machine.show(SERVICE, "ActiveState")) or "activating" in seen, SECONDS)
    started = len(lines(machine, "started"))
    assert not is_ready(machine)
    wait_for(lambda: is_ready(machine), SECONDS)
    assert len(lines(machine, "started")) >= max(started, 2)
    assert machine.show(SERVICE, "StatusText").startswith("model 1")


def test_an_administrators_settings_are_reloaded_and_kept(machine):
    settings, pid = machine.path("/etc/moodbox/settings.toml"), machine.show(SERVICE, "MainPID")
    text = settings.read_text()
    chosen = text + "\n[daemon]\nlearn_seconds = 0\nrescan_seconds = 1\n"  # the timer learns; and a test waits less
    settings.write_text(chosen + "name = 'tester'\n")
    machine.run("systemctl", "reload", SERVICE)
    wait_for(lambda: "daemon.name" in machine.show(SERVICE, "StatusText"), SECONDS)  # it needs a restart
    settings.write_text(chosen)
    machine.run("systemctl", "reload", SERVICE)
    wait_for(lambda: "daemon.name" not in machine.show(SERVICE, "StatusText"), SECONDS)
    assert machine.show(SERVICE, "MainPID") == pid


def test_what_people_drop_is_sorted_and_stays_theirs(machine):
    draw(machine, "anna", "cp.jpg", "mv.jpg", "rsync.jpg", "trip/a.jpg", "day/b.jpg")
    script = f"cp cp.jpg {INBOX}; mv mv.jpg {INBOX}; cp -r trip {INBOX}"
    machine.sh(f"umask 002; chmod 775 trip; {script}", user="anna")
    machine.run("rsync", "-a", "rsync.jpg", f"{INBOX}/", user="anna")
    machine.run("rsync", "-a", "--chmod=D2775,F664", "day", f"{INBOX}/", user="anna")
    draw(machine, "anna", "all/c/f.jpg", "all/g.jpg")
    machine.run("rsync", "-rtO", "--chmod=D2775,F664", "all/", f"{INBOX}/", user="anna")
    wait_sorted(machine, "cp.jpg", "mv.jpg", "rsync.jpg", "a.jpg", "b.jpg", "f.jpg", "g.jpg")
    owners = machine.sh(f"find {TRAY}/happy {TRAY}/sad -name '*.jpg' -printf '%u\\n'").split()
    assert set(owners) == {"anna"}


def test_what_shuts_the_service_out_waits_and_is_named(machine):
    draw(machine, "anna", "private.jpg", "plain/c.jpg", "moved/d.jpg", "synced/e.jpg")
    machine.sh(
        f"umask 022; chmod 600 private.jpg; mv private.jpg {INBOX}; cp -r plain {INBOX}; mv moved {INBOX}; "
        f"rsync -a synced {INBOX}/",
        user="anna",
    )
    named = {"private.jpg", "plain/c.jpg", "moved/d.jpg", "synced/e.jpg"}
    wait_for(lambda: all(name in machine.run("moodbox", "status") for name in named), SECONDS)
    warnings = ("journalctl", "-u", SERVICE, "-p", "warning", "--no-pager")
    wait_for(lambda: "private.jpg" in machine.run(*warnings), SECONDS)
    machine.sh(f"chmod -R g+rwX,o+rwX {INBOX}/*", user="anna")
    wait_sorted(machine, "private.jpg", "c.jpg", "d.jpg", "e.jpg")


def test_a_photo_that_somebody_still_writes_is_not_taken(machine):
    """CAP_LEASE: the file of another user, complete to the eye, and unchanged for longer than it takes to settle."""
    draw(machine, "anna", "slow.jpg")
    command = machine.command("bash", "-c", f"exec 3>{INBOX}/slow.jpg; cat slow.jpg >&3; echo; read", user="anna")
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout.readline() == "\n"
        drop(machine, "later.jpg")
        written = time.monotonic()
        wait_sorted(machine, "later.jpg")
        wait_for(lambda: time.monotonic() > written + 3, SECONDS)  # settle_seconds is 0.5
        assert machine.path(f"{INBOX}/slow.jpg").exists()
        writer.communicate("\n")
    wait_sorted(machine, "slow.jpg")


def test_killed_in_the_middle_it_starts_again_and_nothing_is_lost(machine):
    drop_in(machine, SERVICE, "[Service]\nRestartSec=100ms\n")
    names = [f"burst{number}.png" for number in range(60)]
    before, restarts = len(lines(machine, "sorted")), int(machine.show(SERVICE, "NRestarts"))
    drop(machine, *names)
    wait_for(lambda: len(lines(machine, "sorted")) > before, SECONDS)
    machine.run("systemctl", "kill", "--signal=KILL", SERVICE)
    wait_for(lambda: int(machine.show(SERVICE, "NRestarts")) > restarts, SECONDS)
    wait_for(lambda: is_ready(machine), SECONDS)
    wait_sorted(machine, *names)
    assert int(machine.show(SERVICE, "NRestarts")) == restarts + 1
    machine.run("runuser", "-u", "moodbox", "--", "moodbox", "accounts", "--deep")  # fails where anything is missing
    files = [line["file"] for line in lines(machine, "sorted") if line["file"].startswith("burst")]
    assert sorted(files) == sorted(names), "each was decided once"


def test_the_watchdog_ends_one_that_is_stuck(machine):
    drop_in(machine, SERVICE, "[Service]\nRestartSec=100ms\nWatchdogSec=5s\nTimeoutAbortSec=1s\n")
    machine.run("systemctl", "restart", SERVICE)
    pid = machine.show(SERVICE, "MainPID")
    machine.run("kill", "-STOP", pid)
    wait_for(lambda: machine.show(SERVICE, "MainPID") not in (pid, "0") and is_ready(machine), SECONDS)
    assert "Watchdog timeout" in machine.run("journalctl", "-u", SERVICE, "--no-pager")
    drop_in(machine, SERVICE, "")
    drop(machine, "after.jpg")
    wait_sorted(machine, "after.jpg")


def test_the_timer_learns_from_what_people_moved(machine):
    names = [name for name, label in places(machine).items() if label == "happy" and name.startswith("burst")][:12]
    machine.sh(f"mv {' '.join(f'{TRAY}/happy/{name}' for name in names)} {TRAY}/sad/", user="anna")
    calendar = "[Timer]\nOnCalendar=\nOnCalendar=*:*:0/2\nRandomizedDelaySec=0\nAccuracySec=100ms\n"
    drop_in(machine, "moodbox-retrain.timer", calendar)
    machine.run("systemctl", "restart", "moodbox-retrain.timer")
    wait_for(lambda: machine.show(RETRAIN, "ActiveState") == "activating", SECONDS)
    drop_in(machine, "moodbox-retrain.timer", "")
    machine.run("systemctl", "restart", "moodbox-retrain.timer")
    wait_for(lambda: machine.show(RETRAIN, "ActiveState") in ("inactive", "failed"), SECONDS)
    said = machine.run("journalctl", "-u", RETRAIN, "--no-pager", "-o", "cat")
    assert machine.show(RETRAIN, "Result") == "success", said
    assert {line["file"] for line in lines(machine, "corrected")} == set(names)
    assert machine.path(f"{STATE}/models/2/manifest.json").exists(), said
    assert machine.path(f"{STATE}/models/decisions.jsonl").exists()


def test_a_new_model_is_swapped_in_while_it_serves(machine):
    pid = machine.show(SERVICE, "MainPID")
    for number in (1, 2, 1):
        machine.run("runuser", "-u", "moodbox", "--", "moodbox-train", "rollback", str(number))
        wait_for(lambda number=number: machine.show(SERVICE, "StatusText").startswith(f"model {number}"), SECONDS)
    assert f"model     {number} (" in machine.run("moodbox", "status")
    assert machine.show(SERVICE, "MainPID") == pid


def test_a_retraining_that_is_stopped_is_no_failure_and_one_that_fails_is_told(machine):
    hook = machine.path("/etc/moodbox/on-failure")
    hook.write_text('#!/bin/sh\necho "$1" >/srv/told\n')
    hook.chmod(0o755)
    learned = "moodbox-train"  # its second command: it answers SIGTERM by a status of its own
    machine.run("systemctl", "start", "--no-block", RETRAIN)
    running = f"cat /proc/$(systemctl show --value -p MainPID {RETRAIN})/cmdline"
    wait_for(lambda: learned in machine.sh(running, status=None), SECONDS)  # between its commands there is no process
    machine.run("systemctl", "stop", RETRAIN)
    assert (machine.show(RETRAIN, "ActiveState"), machine.show(RETRAIN, "Result")) == ("inactive", "success")
    assert not machine.path("/srv/told").exists()
    drop_in(machine, RETRAIN, "[Service]\nEnvironment=MOODBOX_TRAINER__RUN=x\n")
    machine.run("systemctl", "start", RETRAIN, status=1)
    told = machine.path("/srv/told")
    wait_for(lambda: told.exists() and told.read_text(), SECONDS)
    assert told.read_text() == "moodbox-retrain\n"
    drop_in(machine, RETRAIN, "")
    machine.sh("rm /srv/told /etc/moodbox/on-failure; systemctl reset-failed")


PROBE = """
import ctypes, json, mmap, os, socket
def connect(path, kind=socket.SOCK_STREAM):
    with socket.socket(socket.AF_UNIX, kind) as mine:
        mine.connect(path)
def attempt(function):
    try:
        function()
    except OSError as error:
        return error.strerror
    return "allowed"
libc = ctypes.CDLL(None, use_errno=True)
def unshare(flags):
    if libc.unshare(flags):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
print(json.dumps({
    "its own state": attempt(lambda: open("/var/lib/moodbox/probe", "w")),
    "a unix socket": attempt(lambda: socket.socket(socket.AF_UNIX)),
    "the journal": attempt(lambda: connect("/run/systemd/journal/socket", socket.SOCK_DGRAM)),
    "another's socket": attempt(lambda: connect("/run/open")),
    "write elsewhere": attempt(lambda: open("/srv/open/probe", "w")),
    "read a home": attempt(lambda: os.listdir("/home/anna")),
    "IPv4": attempt(lambda: socket.socket(socket.AF_INET)),
    "IPv6": attempt(lambda: socket.socket(socket.AF_INET6)),
    "netlink": attempt(lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)),
    "a namespace": attempt(lambda: unshare(0x10000000)),
    "another's process": attempt(lambda: open("/proc/1/status")),
    "a core of its own": attempt(lambda: os.sched_setaffinity(0, [0])),
    "the kernel's settings": attempt(lambda: open("/proc/sys/kernel/hostname")),
    "code that it wrote": attempt(lambda: mmap.mmap(-1, 4096, prot=mmap.PROT_WRITE | mmap.PROT_EXEC)),
}))
"""
# A socket that every user may write to, as the system's D-Bus is.
SOCKET = """
import os, socket
os.umask(0)
held = socket.create_server("/run/open", family=socket.AF_UNIX)
print("listening", flush=True)
input()
os.unlink("/run/open")
"""
PLAIN = "[Service]\nUser=moodbox\n"


def allowed(machine, unit):
    """Run the probe as a service with the text of a unit, but for what it starts; return what it was allowed to do."""
    own = ("ExecStart", "OnFailure", "Type", "Restart", "Watchdog")
    kept = "\n".join(line for line in unit.splitlines() if not line.startswith(own))
    start = "[Service]\nType=oneshot\nExecStart=/opt/moodbox/current/bin/python /srv/probe.py"
    machine.path("/srv/probe.py").write_text(PROBE)
    machine.path("/run/systemd/system/probe.service").write_text(kept.replace("[Service]", start))
    machine.sh("mkdir -pm 777 /srv/open; chmod 755 /home/anna; systemctl daemon-reload; systemctl start probe.service")
    said = machine.run("journalctl", "-u", "probe.service", "-o", "cat", "--no-pager").splitlines()
    found = json.loads(next(line for line in reversed(said) if line.startswith("{")))
    machine.sh(f"rm {STATE}/probe /run/systemd/system/probe.service; systemctl daemon-reload")
    return {name for name, answer in found.items() if answer == "allowed"}


@pytest.mark.parametrize("unit", [SERVICE, RETRAIN])
def test_the_sandbox_shuts_it_in(machine, unit):
    """Each is tried with the unit's own properties, as the unit's own user; and without them, to see that it could."""
    needed = {"its own state", "a unix socket", "the journal"} | (
        {"code that it wrote", "the kernel's settings"} if unit == RETRAIN else set()
    )
    holder = machine.command("/opt/moodbox/current/bin/python", "-c", SOCKET)
    with subprocess.Popen(holder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "listening\n"
        assert allowed(machine, machine.path(f"/usr/local/lib/systemd/system/{unit}").read_text()) == needed
        assert allowed(machine, PLAIN) == set(re.findall(r'"(.+)": attempt', PROBE))
        other.communicate("\n")


def test_a_backup_brings_everything_back(machine):
    state, kept = places(machine), len(lines(machine, "corrected"))
    backup, restore = recipes("## Backup and restore")[:2]
    machine.sh(f"{SUDO}\n{backup}")
    machine.sh(f"{SUDO}\n{restore}")
    assert places(machine) == state
    machine.run("rm", "-r", f"{STATE}/empty")
    assert len(default_entries(machine, f"{TRAY}/happy")) == 5
    machine.sh(f"{SUDO}; sudo -u moodbox moodbox accounts; sudo -u moodbox moodbox learn")
    assert len(lines(machine, "corrected")) == kept, "nothing looks as if people had moved it"
    drop(machine, "restored.jpg")
    wait_sorted(machine, "restored.jpg")


def test_an_upgrade_keeps_what_people_drop_meanwhile_and_what_was_set(machine):
    old, settings = current(machine), machine.path("/etc/moodbox/settings.toml").read_text()
    # The same program under a newer number, with the packages of the old one: installed in seconds.
    newer = {"old.pth": f"{packages(machine)}\n"}
    repack(machine.path("/srv/wheels/good"), "0.2.0", newer)
    draw(machine, "anna", "meanwhile.jpg")
    upgrade = machine.command("/mnt/deploy/install.sh", "--wheels", "/srv/wheels/good")
    with subprocess.Popen(upgrade, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as running:
        wait_for(lambda: not is_ready(machine), SECONDS)
        machine.run("cp", "meanwhile.jpg", INBOX, user="anna")
        said, _ = running.communicate()
    assert running.returncode == 0, said
    assert current(machine) == "/opt/moodbox/0.2.0-1"
    wait_sorted(machine, "meanwhile.jpg")
    assert machine.path("/etc/moodbox/settings.toml").read_text() == settings
    assert "/opt/moodbox/0.2.0-1/" in machine.run("cat", f"/proc/{machine.show(SERVICE, 'MainPID')}/cmdline")
    assert machine.path(old).exists(), "there is one to go back to"


BROKEN = """
import sys, time
def command():
    if "--version" not in sys.argv:
        time.sleep(3)
        sys.exit("moodbox: broken on purpose")
"""


def test_run_again_after_an_upgrade_the_version_before_stays(machine):
    old = "/opt/moodbox/0.1.0-1"
    machine.run("/mnt/deploy/install.sh", "--wheels", "/srv/wheels/good")
    assert machine.path(old).exists()


def test_a_full_disk_cuts_no_file_in_the_middle(machine):
    repack(machine.path("/srv/wheels/bad"), "0.3.0", {"daemon/__main__.py": BROKEN})
    folder = "/usr/local/lib/tmpfiles.d"
    machine.sh(f"mount -t tmpfs -o size=4k none {folder}; head -c 4096 /dev/zero >{folder}/full")
    units = machine.sh("sha256sum /usr/local/lib/systemd/system/moodbox*")
    said = machine.run("/mnt/deploy/install.sh", "--wheels", "/srv/wheels/bad", status=1)
    assert "No space left on device" in said
    assert "install.sh: not installed; 0.2.0-1 goes on" in said
    assert machine.sh("sha256sum /usr/local/lib/systemd/system/moodbox*") == units
    assert current(machine) == "/opt/moodbox/0.2.0-1"
    machine.run("umount", folder)


def test_an_upgrade_that_does_not_become_ready_goes_back_also_when_it_was_interrupted(machine):
    upgrade = machine.command("/mnt/deploy/install.sh", "--wheels", "/srv/wheels/bad")
    for sent, status, told in (("TERM", 130, "0.3.0-1 is in place and was not yet seen to serve"), ("KILL", -9, "")):
        with subprocess.Popen(upgrade, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as running:
            assert any("waiting until" in line for line in running.stdout)
            machine.sh(f"kill -{sent} $(pgrep -o -f ^/bin/bash./mnt/deploy/install.sh)")
            assert told in running.stdout.read()
        assert running.returncode == status
    assert current(machine) == "/opt/moodbox/0.3.0-1", "that is where it was killed"
    wait_for(lambda: "auto-restart" in machine.show(SERVICE, "SubState"), SECONDS)
    said = machine.run("/mnt/deploy/install.sh", "--wheels", "/srv/wheels/bad", status=1)
    assert "moodbox.service is not ready; its last words:\n" in said
    assert "moodbox: broken on purpose" in said
    assert "0.3.0-1 did not become ready; 0.2.0-1 serves again\n" in said
    assert current(machine) == "/opt/moodbox/0.2.0-1"
    assert not machine.path("/opt/moodbox/0.3.0-1").exists()
    assert is_ready(machine)


def test_an_upgrade_that_cannot_be_installed_leaves_the_old_one_at_work(machine):
    pid = machine.show(SERVICE, "MainPID")
    repack(machine.path("/srv/wheels/torn"), "0.4.0", {})
    [wheel] = machine.path("/srv/wheels/torn").iterdir()
    wheel.write_bytes(wheel.read_bytes()[:-5000])
    said = machine.run("/mnt/deploy/install.sh", "--wheels", "/srv/wheels/torn", status=1)
    assert "not installed; 0.2.0-1 goes on" in said
    assert not machine.path("/opt/moodbox/0.4.0-1").exists()
    assert (current(machine), machine.show(SERVICE, "MainPID")) == ("/opt/moodbox/0.2.0-1", pid)


CATS, CATS_DISK = "moodbox@cats.service", r"var-lib-moodbox\x2dcats.mount"


def test_another_tray_has_a_service_of_its_own_and_a_disk(machine):
    unit = "[Mount]\nWhat=/srv/disk\nWhere=/var/lib/moodbox-cats\nType=none\nOptions=bind\n"
    machine.run("mkdir", "/srv/disk")
    machine.path(f"/run/systemd/system/{CATS_DISK}").write_text(unit)
    machine.sh("systemctl daemon-reload")
    said = machine.run("/mnt/deploy/install.sh", "--wheels", "/srv/wheels/good", "--tray", "cats", status=1)
    assert f"/var/lib/moodbox-cats: its disk is not mounted, though {CATS_DISK} names one" in said
    machine.run("systemctl", "start", CATS_DISK)
    said = machine.run("/mnt/deploy/install.sh", "--wheels", "/srv/wheels/good", "--tray", "cats")
    assert "photos: /var/lib/moodbox-cats/tray/inbox;" in said
    assert "settings: /etc/moodbox/cats.toml" in said
    written = machine.path("/etc/moodbox/cats.toml").read_text()
    assert "systemctl reload moodbox@cats; systemctl status moodbox@cats\n" in written
    assert machine.show(CATS, "ActiveState") == "active"
    draw(machine, "anna", "cat.jpg")
    machine.run("cp", "cat.jpg", "/var/lib/moodbox-cats/tray/inbox", user="anna")
    wait_for(lambda: list(machine.path("/srv/disk/tray").glob("[hs]*/cat.jpg")), SECONDS)
    assert machine.show("moodbox-retrain@cats.timer", "ActiveState") == "active"
    assert "cat.jpg" not in places(machine)


def test_the_service_comes_and_goes_with_its_disk(machine):
    machine.run("systemctl", "stop", CATS_DISK)
    assert machine.show(CATS, "ActiveState") == "inactive"
    machine.run("mv", "/srv/disk", "/srv/away")
    machine.run("systemctl", "start", CATS, status=1)
    machine.run("systemd-tmpfiles", "--create")  # as on the next boot
    assert not machine.path("/var/lib/moodbox-cats/tray/inbox").exists(), "nothing to drop into below the mount point"
    machine.sh(f"mv /srv/away /srv/disk; systemctl start '{CATS_DISK}'")
    wait_for(lambda: machine.show(CATS, "ActiveState") == "active", SECONDS)


def test_a_tray_that_cannot_start_does_not_hold_up_the_others(machine):
    settings = machine.path("/etc/moodbox/cats.toml")
    settings.write_text(settings.read_text() + "\n[daemon]\nraescan_seconds = 1\n")
    machine.run("systemctl", "restart", CATS, status=1)
    wait_for(lambda: machine.show(CATS, "SubState") == "auto-restart", SECONDS)
    machine.run("cp", "-al", packages(machine), "/srv/packages")  # this version uses them, too, and its folder goes
    repack(machine.path("/srv/wheels/newer"), "0.5.0", {"old.pth": "/srv/packages\n"})
    said = machine.run("/mnt/deploy/install.sh", "--wheels", "/srv/wheels/newer", status=1)
    assert "moodbox@cats.service is not ready; its last words:" in said
    assert "raescan_seconds" in said
    assert "moodbox.service is active" in said
    assert said.endswith(
        "0.5.0-1 is in place, but moodbox@cats.service does not become ready: mend what it says and run this again\n"
    )
    assert current(machine) == "/opt/moodbox/0.5.0-1"
    assert machine.path("/opt/moodbox/0.5.0-1/proven").exists()


def test_with_the_service_stopped_a_version_is_not_proven_and_nothing_is_enabled(machine):
    machine.run("systemctl", "disable", "--now", SERVICE, CATS)
    for _ in range(2):
        said = machine.run("/mnt/deploy/install.sh", "--wheels", "/srv/wheels/bad")
        assert "no service has become ready with 0.3.0-1 yet: 0.5.0-1 stays, to go back to" in said
    assert not machine.path("/opt/moodbox/0.3.0-1/proven").exists()
    assert machine.path("/opt/moodbox/0.5.0-1/proven").exists()
    assert machine.run("systemctl", "is-enabled", SERVICE, status=1) == "disabled\n"
    assert machine.show(SERVICE, "ActiveState") == "inactive"


def test_one_can_go_back_by_hand(machine):
    """As docs/operations.md says."""
    [recipe, *_] = recipes("To go back by hand")
    machine.sh(f"{SUDO}\n{recipe.replace('0.1.0-1', '0.5.0-1')}")
    assert current(machine) == "/opt/moodbox/0.5.0-1"
    assert is_ready(machine)
    machine.run("systemctl", "enable", SERVICE)


def test_a_tray_that_is_removed_stays_away(machine):
    machine.run("/mnt/deploy/install.sh", "--tray", "backup", "--uninstall", "--purge", status=1)
    machine.run("/mnt/deploy/install.sh", "--tray", "cats", "--uninstall")
    said = machine.run("/mnt/deploy/install.sh", "--wheels", "/srv/wheels/newer")
    assert "cats" not in said
    assert machine.run("systemctl", "list-units", "--all", "--no-legend", "moodbox*cats*") == ""
    assert not machine.path("/usr/local/lib/tmpfiles.d/moodbox-cats.conf").exists()
    assert machine.path("/etc/moodbox/cats.toml").exists()
    said = machine.run("/mnt/deploy/install.sh", "--tray", "cats", "--uninstall", "--purge")
    assert "/var/lib/moodbox-cats is emptied, and stays: a disk is mounted there (/var/lib/moodbox-cats)" in said
    assert not list(machine.path("/srv/disk").iterdir())
    assert not machine.path("/etc/moodbox/cats.toml").exists()
    machine.sh(f"systemctl stop '{CATS_DISK}'; rm '/run/systemd/system/{CATS_DISK}'; rmdir /var/lib/moodbox-cats")


def test_the_tray_can_be_on_another_disk(machine):
    """As docs/operations.md says."""
    change, recipe = recipes("**The tray on another disk.**")[:2]
    machine.sh("mkdir /srv/photos; mount -t tmpfs none /srv/photos")
    drop_in(machine, SERVICE, change)
    drop_in(machine, RETRAIN, change.split("[Install]")[0])
    machine.sh(f"{SUDO}\n{recipe}")
    draw(machine, "anna", "elsewhere.jpg")
    machine.run("cp", "elsewhere.jpg", "/srv/photos/tray/inbox", user="anna")
    wait_for(lambda: list(machine.path("/srv/photos/tray").glob("[hs]*/elsewhere.jpg")), SECONDS)
    assert default_entries(machine, "/srv/photos/tray/happy") == default_entries(machine, f"{TRAY}/happy")


def test_uninstalled_it_leaves_people_what_is_theirs(machine):
    machine.run("systemctl", "stop", SERVICE)
    machine.run("/mnt/deploy/install.sh", "--uninstall")
    left = {path for path in machine.files() - machine.before if not path.startswith("/home/")}
    assert {path for path in left if not path.startswith(THEIRS)} == SYSTEMDS | {
        "/opt/moodbox", "/opt/moodbox/our-tools", "/opt/moodbox/our-tools/x"
    }  # fmt: skip
    assert f"{TRAY}/happy/cp.jpg" in left or f"{TRAY}/sad/cp.jpg" in left
    assert "/etc/moodbox/settings.toml" in left
    machine.run("/mnt/deploy/install.sh", "--uninstall")
    assert (
        machine.run("systemctl", "list-unit-files", "--no-legend", "moodbox*", status=None).split()[0]
        == "moodboxer.service"
    )
    assert machine.show("moodboxer.service", "ActiveState") == "active", "what only looks like ours goes on"


def test_purged_it_leaves_what_is_in_use_and_says_so(machine):
    machine.sh(
        f"mount -t tmpfs none {STATE}; echo >{STATE}/photo\n"
        "runuser -u moodbox -- sleep infinity </dev/null >/dev/null 2>&1 &"
    )
    wait_for(lambda: machine.run("pgrep", "-u", "moodbox", status=None), SECONDS)
    said = machine.run("/mnt/deploy/install.sh", "--uninstall", "--purge", status=1)
    assert f"{STATE} is emptied, and stays: a disk is mounted there ({STATE})" in said
    assert "userdel: user moodbox is currently used by process" in said
    assert said.endswith("not all is removed, see above: mend what it says and run this again\n")
    assert not machine.path("/etc/moodbox").exists()
    machine.sh(f"pkill -u moodbox sleep; umount {STATE}")


def test_purged_it_leaves_nothing(machine):
    machine.run("/mnt/deploy/install.sh", "--uninstall", "--purge")
    assert machine.path("/var/lib/moodbox-backup/x").exists()
    machine.sh(
        "systemctl stop moodboxer; rm -r /run/systemd/system/moodboxer.service /var/lib/moodbox-backup /opt/moodbox"
    )
    assert {path for path in machine.files() - machine.before if not path.startswith(("/home/", "/srv/"))} == SYSTEMDS
    assert machine.before - machine.files() == set()
    assert "moodbox" not in machine.path("/etc/passwd").read_text() + machine.path("/etc/group").read_text()
    assert machine.run("systemctl", "--failed", "--no-legend") == ""
