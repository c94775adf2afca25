"""What a daemon does beside the photos: pings, status, reload, metrics; real services, sockets, files and signals."""

import os
import pwd
import signal
import socket
import subprocess
import sys
import threading
import time
import types
from pathlib import Path

import orjson
import pytest
from prometheus_client.parser import text_string_to_metric_families
from structlog.testing import capture_logs

from daemon import pulse, status, systemd
from daemon.events import Line
from daemon.journal import Journal
from daemon.logs import printable
from daemon.meter import Histogram, Meter
from daemon.metrics import Textfile
from daemon.pulse import Pulse, Stall
from daemon.reload import AT_START, Reloader, merge
from daemon.service import StuckError
from daemon.succession import Succession
from daemon.upkeep import State, Upkeep
from daemon_parts import NOBODY, as_user, needs_root
from stand_in import StandIn, make_service, settings_for
from test_daemon_service import picture, running, until
from trainer.settings import SettingsError, load


@pytest.fixture
def manager(tmp_path, monkeypatch):
    """Listen as systemd does; a thread keeps what was sent."""
    heard: list[str] = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))

        def listen():
            while (data := listener.recv(65_536)) != b"end":
                heard.append(data.decode())

        thread = threading.Thread(target=listen)
        thread.start()
        yield heard
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.sendto(b"end", str(tmp_path / "notify"))
        thread.join()


def pings(heard):
    return sum("WATCHDOG=1" in text for text in heard)


def catch_up(heard):
    """Wait until all that was sent so far is heard: it is heard in the order in which it was sent."""
    mark = f"{len(heard)}"
    until(lambda: systemd.notify(X_MARK=mark), "there is room for a mark")
    until(lambda: f"X_MARK={mark}" in heard, "the mark is heard")


# The watchdog


class Lost(StandIn):
    """A pipeline that answers nothing and works on nothing: a chunk got lost."""

    def submit(self, key, paths):
        pass


def test_a_batch_on_which_no_thread_works_stops_the_pings_and_is_told(tmp_path, manager, monkeypatch):
    monkeypatch.setenv("WATCHDOG_USEC", "30000")
    monkeypatch.setattr("daemon.service.STOP_SECONDS", 0.1)
    settings = settings_for(tmp_path, daemon={"decode_seconds": 0.5})
    with capture_logs() as logs, running(make_service(settings, once=False, make_pipe=Lost)) as failures:
        until(lambda: pings(manager) > 5, "it is pinged")
        picture(settings.tray.root / "inbox/a.png")
        until(lambda: [entry for entry in logs if entry["event"].startswith("stuck")], "it is told")
        catch_up(manager)
        count = pings(manager)
        threading.Event().wait(0.3)  # ten times the watchdog's time: silence takes time to hear
        catch_up(manager)
        assert pings(manager) == count
        assert not failures, "the loop itself goes on: it is systemd that ends it"


class Busy(Lost):
    def slowest(self, _now):
        return 0.4, b"/tray/.work/d/1-a.0/long.png"


def test_a_decoder_that_hangs_is_pinged_for_until_the_daemon_ends_it_itself(tmp_path, manager, monkeypatch):
    monkeypatch.setenv("WATCHDOG_USEC", "30000")
    settings = settings_for(tmp_path, daemon={"decode_seconds": 0.5})
    pipes = []

    def make(post):
        pipes.append(Busy(post))
        return pipes[0]

    with running(make_service(settings, once=False, make_pipe=make)) as failures:
        picture(settings.tray.root / "inbox/a.png")
        until(lambda: not (settings.tray.root / "inbox/a.png").exists(), "it is claimed")
        begun = time.monotonic()
        until(lambda: time.monotonic() - begun > 1.0, "twice the limit passes")
        count = pings(manager)
        until(lambda: pings(manager) > count, "pings go on while a thread is busy")
        pipes[0].slowest = lambda _now: (0.6, b"/long.png")
        until(lambda: failures, "the daemon ends it")
        assert isinstance(failures[0], StuckError)


def test_status_counts_the_last_photo_before_the_loop_goes_idle(tmp_path, manager, monkeypatch):
    monkeypatch.setattr("daemon.pulse.IDLE_EVERY", 3600.0)
    settings = settings_for(tmp_path, daemon={"rescan_seconds": 3600})
    with running(make_service(settings, once=False)):
        picture(settings.tray.root / "inbox/a.png")
        until(lambda: any("0 waiting, 0 in work; 1 sorted so far" in text for text in manager), "it is told")


def test_a_full_disk_is_no_reason_to_be_killed(tmp_path, manager, monkeypatch):
    monkeypatch.setenv("WATCHDOG_USEC", "30000")
    settings = settings_for(tmp_path, daemon={"decode_seconds": 0.1})
    with running(make_service(settings, once=False)):
        monkeypatch.setattr("daemon.journal.Journal.append", _full)
        picture(settings.tray.root / "inbox/a.png")
        until(lambda: any("waiting: " in text and "No space left" in text for text in manager), "STATUS says why")
        count = pings(manager)
        until(lambda: pings(manager) > count + 10, "pings go on")
        monkeypatch.undo()


def _full(*_):
    raise OSError(28, os.strerror(28))


def test_a_stall_is_what_nobody_works_on():
    stall = Stall()
    assert stall.seconds(10.0, batches=1, outcomes=0, is_busy=False) == 0
    assert stall.seconds(15.0, batches=1, outcomes=0, is_busy=False) == 5
    assert stall.seconds(16.0, batches=1, outcomes=1, is_busy=False) == 0, "an outcome came"
    assert stall.seconds(20.0, batches=1, outcomes=1, is_busy=True) == 0, "a thread works"
    assert stall.seconds(25.0, batches=1, outcomes=1, is_busy=False) == 5
    assert stall.seconds(30.0, batches=0, outcomes=1, is_busy=False) == 0, "nothing waits"


@pytest.mark.parametrize(("fault", "is_ill"), [("No space left on device", False), (None, True)])
def test_outcomes_that_a_full_disk_keeps_from_being_delivered_are_no_stall(tmp_path, fault, is_ill):
    upkeep, load = Upkeep(), types.SimpleNamespace(in_pipeline=1, outcomes=3)
    state = State(settings_for(tmp_path), StandIn(), types.SimpleNamespace(workload=load), fault, "")
    told = [upkeep._ill(now, state, is_busy=False) for now in (0.0, 1000.0)]
    assert told[0] == ""
    assert bool(told[1]) == is_ill


def test_pings_come_thrice_in_the_watchdogs_time(manager, monkeypatch):
    monkeypatch.setenv("WATCHDOG_USEC", "900000")
    pulse = Pulse()
    for tenth in range(31):
        pulse.ping(100 + tenth / 10, "", bool)
    until(lambda: pings(manager) >= 10, "they came")
    assert pings(manager) in (10, 11)


def test_more_time_is_asked_for_while_it_loads_and_no_longer(manager):
    with systemd.loading("loading"):
        until(lambda: any("EXTEND_TIMEOUT_USEC=30000000" in t and "STATUS=loading" in t for t in manager), "it asks")
    assert not [t for t in threading.enumerate() if t.name == "more time"]
    with systemd.loading("never ends", seconds=-1.0):
        gone = lambda: not [t for t in threading.enumerate() if t.name == "more time"]  # noqa: E731
        until(gone, "a load that never ends is not excused for ever")
    assert not any("never ends" in text for text in manager)


def test_a_long_recovery_asks_for_more_time_before_ready(tmp_path, manager):
    settings = settings_for(tmp_path)
    for number in range(3):
        picture(settings.tray.root / f".work/d/1-{number:04x}.0/a{number}.png")
    (settings.tray.root / ".moodbox").touch()
    (settings.tray.root / ".work/d/lock").write_bytes(os.fsencode(settings.journal.root) + b"\0")
    with running(make_service(settings, once=False)):
        until(lambda: any("READY=1" in text for text in manager), "it is ready")
    before = manager[: next(i for i, text in enumerate(manager) if "READY=1" in text)]
    assert sum("EXTEND_TIMEOUT_USEC" in text and "recovering" in text for text in before) >= 3


# What hangs without harm


class Hanging:
    def step(self, now):
        return "`moodbox learn` does not end"

    def follow(self, seconds, now):
        pass


def test_what_hangs_beside_the_photos_is_told_once_and_stops_no_pings(tmp_path, manager, monkeypatch):
    monkeypatch.setenv("WATCHDOG_USEC", "30000")
    service = make_service(settings_for(tmp_path), once=False)
    service.upkeep = Upkeep(Hanging())
    with capture_logs() as logs, running(service):
        until(lambda: any("`moodbox learn` does not end" in text for text in manager), "STATUS says so")
        count = pings(manager)
        until(lambda: pings(manager) > count + 5, "pings go on")
    assert len([entry for entry in logs if "hangs" in entry["event"]]) == 1


def test_what_hangs_stops_nothing_else(tmp_path):
    class Counting(Hanging):
        count = 0

        def step(self, now):
            self.count += 1
            return super().step(now)

    chore, file = Counting(), tmp_path / "moodbox.prom"
    service = make_service(settings_for(tmp_path, metrics={"file": str(file), "seconds": 1.0}), once=False)
    service.upkeep = Upkeep(chore)
    service.upkeep.step(time.monotonic(), service._state, "the models do not answer")
    assert chore.count == 1
    with running(service):
        until(file.exists, "the metrics are written")


def test_a_look_at_the_models_that_does_not_end_is_told(tmp_path):
    heir = Succession(tmp_path, lambda _number: None, StandIn(), lambda: None)
    entered, leave = threading.Event(), threading.Event()
    heir.look = lambda: (entered.set(), leave.wait(60))
    heir.start()
    assert entered.wait(60)
    assert heir.hangs(time.monotonic()) == ""
    assert "does not answer" in heir.hangs(time.monotonic() + 1000)
    heir.stop()
    leave.set()


# Status


def drop_empty(inbox):
    """Drop an empty file that has been so for long: it comes by a rename, and the daemon never sees it young."""
    (inbox.parent / "empty.jpg").touch()
    os.utime(inbox.parent / "empty.jpg", (1e9, 1e9))
    os.rename(inbox.parent / "empty.jpg", inbox / "empty.jpg")


def test_the_status_line_has_rate_waiting_model_and_last_error(tmp_path, manager):
    settings = settings_for(tmp_path)
    with running(make_service(settings, once=False)):
        picture(settings.tray.root / "inbox/a.png")
        drop_empty(settings.tray.root / "inbox")
        until(lambda: any("2 photos/min" in text for text in manager), "the rate is told")
    told = next(text for text in reversed(manager) if "2 photos/min" in text)
    assert "model 7; 2 photos/min; 0 waiting, 0 in work; 1 sorted so far; last error 20" in told
    assert "the file is empty" in told


def test_the_rate_is_that_of_the_last_minute():
    meter = Meter()
    meter.claimed("b", 2, 100.0)
    meter.delivered([Line(event="sorted", batch="b", queued_ms=500.0)] * 2, 101.0)
    assert (meter.rate(101.0), meter.rate(160.9), meter.rate(161.0)) == (2, 2, 0)
    assert meter.latency.cumulated()[5] == ("2.5", 2)
    assert meter.latency.sum == 3.0
    meter.delivered([Line(event="sorted", batch="adopted", queued_ms=1.0)], 200.0)
    assert meter.latency.sum == 3.0, "of what a crash left nobody knows when it came"


def test_a_histogram_counts_what_is_at_most_a_bound():
    histogram = Histogram((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 9.0):
        histogram.observe(value)
    assert histogram.cumulated() == [("1.0", 2), ("2.0", 3), ("+Inf", 4)]


# Reload


def test_what_cannot_change_while_photos_are_in_work_keeps_its_value_and_is_named(tmp_path):
    old = settings_for(tmp_path)
    new = settings_for(tmp_path / "other", daemon={"batch_size": 9, "threads": 3, "name": "e"})
    served, changed, waits = merge(old, new)
    assert waits == ("daemon.name", "daemon.threads", "journal.root", "tray.root")
    assert changed == ["daemon.batch_size"]
    assert (served.daemon.batch_size, served.daemon.threads, served.daemon.name) == (9, 0, "d")
    assert served.tray.root == old.tray.root
    assert merge(served, old)[2] == (), "taken back: nothing waits any more"


def test_every_setting_that_waits_for_a_restart_exists():
    settings = load(None, (), {}).settings
    assert {f"{table}.{key}" for table, values in settings for key, _ in values} >= AT_START


def reloading(tmp_path, text, *, flags=()):
    """A service whose settings come from a file."""
    file = tmp_path / "settings.toml"
    file.write_text(text)
    options = {"tray": {"root": str(tmp_path / "tray")}, "journal": {"root": str(tmp_path / "log")}}
    loaded = load(file, flags, options)
    service = make_service(loaded.settings, once=False)
    service.upkeep = Upkeep(reloader=Reloader(loaded, lambda: load(file, flags, options)))
    return file, service


QUICK = '[tray]\nsettle_seconds = 0.0\n[daemon]\nname = "d"\nrescan_seconds = 0.2\n'


def test_a_reload_takes_effect_on_what_comes_next(tmp_path, manager):
    file, service = reloading(tmp_path, QUICK)
    inbox = service.settings.tray.root / "inbox"
    with capture_logs() as logs, running(service):
        picture(inbox / "a.png")
        until(lambda: (tmp_path / "tray/happy/a.png").exists(), "sorted by the old settings")
        file.write_text(QUICK.replace("[daemon]\n", 'ignore = ["*.gif"]\n[daemon]\nreview_below = 1.0\nthreads = 9\n'))
        service.upkeep.reloader.ask()
        until(lambda: any(e["event"] == "settings reloaded" for e in logs), "it is reloaded")
        picture(tmp_path / "c.png", mark=2).rename(inbox / "c.gif")
        picture(inbox / "b.png", mark=1)
        until(lambda: (tmp_path / "tray/review/b.png").exists(), "sorted by the new ones")
        assert (inbox / "c.gif").exists()
    [told] = [e for e in logs if e["event"] == "settings reloaded"]
    assert told["needs_restart"] == ["daemon.threads"]
    assert set(told["changed"]) == {"tray.ignore", "daemon.review_below"}
    catch_up(manager)
    at = next(i for i, text in enumerate(manager) if "RELOADING=1\nMONOTONIC_USEC=" in text)
    ready = next(text for text in manager[at:] if "READY=1" in text)
    assert "changed, needs a restart: daemon.threads" in ready


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[tray\n", "settings.toml: not valid TOML"),
        ("[tray]\nrot = 1\n", "tray.rot: no such setting"),
        ('[daemon]\n"a\\nb" = 1\n', r"daemon.a\nb: no such"),
        (None, "is gone"),
    ],
)
def test_a_broken_file_is_refused_by_name_and_the_old_settings_go_on(tmp_path, manager, text, named):
    file, service = reloading(tmp_path, QUICK)
    with capture_logs() as logs, running(service):
        file.unlink() if text is None else file.write_text(text)
        before = service.settings
        service.upkeep.reloader.ask()
        until(lambda: any("not reloaded" in e["event"] for e in logs), "it is refused")
        picture(service.settings.tray.root / "inbox/a.png")
        until(lambda: (tmp_path / "tray/happy/a.png").exists(), "it sorts on")
        assert service.settings is before
        until(lambda: any("could not be reloaded" in heard for heard in manager), "STATUS says so")
    assert named in printable(next(e["error"] for e in logs if "not reloaded" in e["event"]))
    told = [line for heard in manager for line in heard.splitlines() if "could not be reloaded" in line]
    assert all(line.startswith("STATUS=") and named in line for line in told)  # one each second in which a figure moves


def test_flags_and_environment_keep_their_precedence_at_a_reload(tmp_path, monkeypatch):
    monkeypatch.setenv("MOODBOX_DAEMON__MAX_ATTEMPTS", "5")
    file, service = reloading(tmp_path, QUICK, flags=("daemon.batch_size=8",))
    file.write_text(QUICK + "batch_size = 2\nmax_attempts = 2\naudit_fraction = 0.5\n")
    service.upkeep.reloader.ask()
    daemon = service.upkeep.reloader.take(service.settings).daemon
    assert (daemon.batch_size, daemon.max_attempts, daemon.audit_fraction) == (8, 5, 0.5)


# Metrics


def metrics(file: Path) -> dict[tuple[str, str], float]:
    """What the file holds: by name and the label that tells more than tray and daemon."""
    found = {}
    for family in text_string_to_metric_families(file.read_text()):
        for sample in family.samples:
            rest = {k: v for k, v in sample.labels.items() if k not in ("tray", "daemon")}
            found[sample.name, ",".join(rest.values())] = sample.value
    return found


def test_the_metrics_tell_what_happened_and_go_on_after_a_restart(tmp_path):
    file = tmp_path / "moodbox.prom"
    settings = settings_for(tmp_path, metrics={"file": str(file), "seconds": 1.0})
    learned = Journal(settings.journal.root, "d-learn", 1 << 20)
    learned.append([Line(event="corrected", label="sad", predicted="happy", source="happy/x", model=7)])
    learned.close()
    inbox = settings.tray.root / "inbox"
    with running(make_service(settings, once=False)):
        picture(inbox / "a.png")
        drop_empty(inbox)
        until(lambda: file.exists() and metrics(file).get(("moodbox_rejected_total", "empty")), "they are written")
        until(lambda: metrics(file)["moodbox_sorted_total", "happy"] == 1.0, "both are told")
        found = metrics(file)
    until(lambda: not [t for t in threading.enumerate() if t.name == "metrics"], "the last of its writes is over")
    assert found["moodbox_sorted_total", "sad"] == 0.0, "a class begins at 0, so that its first photo is a rate"
    assert found["moodbox_corrections_total", ""] == 1.0
    assert (found["moodbox_model", ""], found["moodbox_fault", ""]) == (7.0, 0.0)
    assert found["moodbox_latency_seconds_count", ""] == 2.0
    assert found["moodbox_batch_files_sum", ""] == 2.0
    assert abs(found["moodbox_last_error_timestamp_seconds", ""] - time.time()) < 60
    assert [p.name for p in tmp_path.glob("moodbox.prom*")] == ["moodbox.prom"], "no temporary file stays"
    file.unlink()
    with running(make_service(settings, once=False)):
        until(file.exists, "a new process writes them")
        again = metrics(file)
    assert again["moodbox_sorted_total", "happy"] == 1.0, "counters never go back"
    assert again["moodbox_latency_seconds_count", ""] == 0.0, "histograms begin anew"


def test_a_place_where_no_metrics_can_be_written_costs_one_warning(tmp_path):
    settings = settings_for(tmp_path, metrics={"file": str(tmp_path / "no/such/x.prom"), "seconds": 1.0})
    textfile = Textfile()
    state = State(settings, StandIn(), None, None, "")
    with capture_logs() as logs:
        for now in range(1, 4):
            textfile.step(float(2 * now), settings.metrics, lambda: Upkeep()._figures(state))
            textfile._thread.join()
    assert [entry["event"] for entry in logs] == ["the metrics cannot be written"]


def test_a_disk_that_does_not_answer_keeps_no_photo_waiting(tmp_path):
    """The write is held up at its seam, as a dead network disk would hold it."""
    settings = settings_for(tmp_path, metrics={"file": str(tmp_path / "x.prom"), "seconds": 1.0})
    opened, leave = threading.Event(), threading.Event()
    service = make_service(settings, once=False)
    textfile = service.upkeep._textfile
    textfile._write = lambda *_: (opened.set(), leave.wait(60))
    with running(service):
        until(opened.is_set, "the write hangs")
        picture(settings.tray.root / "inbox/a.png")
        until(lambda: (settings.tray.root / "happy/a.png").exists(), "it is sorted all the same")
        told = textfile.step(time.monotonic() + 100, settings.metrics, lambda: None)
        assert "does not answer" in told
        leave.set()


def test_no_metrics_library_is_loaded_where_no_file_is_set():
    code = "import sys, daemon.service; print('prometheus_client' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert ran.stdout == "False\n"


def test_the_file_must_be_one_that_node_exporter_reads(tmp_path):
    with pytest.raises(SettingsError, match=r"metrics\.file: node_exporter reads files whose names end in \.prom"):
        load(None, ("metrics.file=x.txt",))
    (tmp_path / "s.toml").write_text('[metrics]\nfile = "x.prom"\n')
    assert load(tmp_path / "s.toml").settings.metrics.file == tmp_path / "x.prom"


# Health


def test_the_health_check_tells_a_daemon_that_runs_from_one_that_is_stuck_or_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr("daemon.pulse.BEAT_SECONDS", 1e6)
    settings = settings_for(tmp_path)
    assert status.check(settings)[0] == "stopped"
    with running(make_service(settings, once=False)):
        lock = settings.tray.root / ".work/d/lock"
        picture(settings.tray.root / "inbox/a.png")
        until((settings.tray.root / "happy/a.png").exists, "it works, and its first sign of life, and last, is given")
        assert status.check(settings) == ("ok", "")
        begun = time.time()
        os.utime(lock, (begun - 61, begun - 61))
        health, text = status.check(settings)
        said = [f"no sign of life for {61 + late} s" in text for late in range(round(time.time() - begun) + 1)]
        assert (health, any(said)) == ("stuck", True)
        assert status.gather(settings).health == "stuck"
        assert any(line.startswith("stuck     d has given") for line in status.describe(status.gather(settings)))
    assert status.check(settings)[0] == "stopped"


@needs_root
def test_a_member_of_the_group_is_told_who_may_ask(tmp_path):
    """What is private stays so: that it runs can be seen, whether it is well cannot."""
    settings = settings_for(tmp_path)
    for path in [tmp_path, *tmp_path.parents][:-2]:
        path.chmod(0o755)
    with running(make_service(settings, once=False)):
        until(lambda: status.check(settings)[0] == "ok", "it is well")
        os.chown(settings.tray.root / ".work", 1, 1)
        log = settings.journal.root
        for path in (settings.tray.root, log, *log.iterdir()):
            os.chown(path, -1, NOBODY)
        health, text = as_user(NOBODY, lambda: status.check(settings))
    user = pwd.getpwuid(1).pw_name
    assert (health, text) == ("unknown", f"d runs; whether it is well, {user} and root alone may see: sudo -u {user} …")


def test_a_daemon_that_lives_shows_it(tmp_path, monkeypatch):
    monkeypatch.setattr("daemon.pulse.BEAT_SECONDS", 0.02)
    monkeypatch.setattr("daemon.pulse.EVERY", 0.01)
    settings = settings_for(tmp_path)
    with running(make_service(settings, once=False)):
        os.utime(settings.tray.root / ".work/d/lock", (1e9, 1e9))
        until(lambda: status.check(settings)[0] == "ok", "it touches its lock again")


def test_a_learner_that_runs_is_no_daemon(tmp_path):
    settings = settings_for(tmp_path)
    learner = Journal(settings.journal.root, "d-learn", 1 << 20)
    assert status.check(settings)[0] == "stopped"
    learner.close()


FIELDS = {
    "schema", "health", "health_text", "tray", "is_tray", "running", "model", "model_text", "waiting", "ignored",
    "in_review", "totals", "warnings", "retrained",
}  # fmt: skip


@pytest.mark.parametrize(
    ("watchdog", "idle", "busy"), [(None, 5.0, 1.0), (60.0, 5.0, 1.0), (6.0, 2.0, 1.0), (1.5, 0.5, 0.5)]
)
def test_an_idle_daemon_looks_up_seldom_but_often_enough_for_the_watchdog(watchdog, idle, busy, monkeypatch):
    monkeypatch.setattr(pulse.systemd, "watchdog_seconds", lambda: watchdog)
    assert (pulse.every(is_idle=True), pulse.every(is_idle=False)) == (idle, busy)


def test_the_fields_of_the_status_are_stable_and_documented(tmp_path):
    found = orjson.loads(orjson.dumps(status.as_json(status.gather(settings_for(tmp_path)))))
    assert set(found) == FIELDS
    page = (Path(__file__).parent.parent / "docs/operations.md").read_text(encoding="utf-8")
    table = page.split("## Is it well?")[1].split("\n## ")[0]
    named = {n.strip("` ") for row in table.splitlines() if row.startswith("| `") for n in row.split("|")[1].split(",")}
    assert named == set(found)


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_hang_up_ends_what_runs_in_a_terminal_and_reloads_what_does_not(tmp_path, is_terminal):
    """The real signal set-up of `moodbox run` in a process of its own."""
    code = """
import signal, sys
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests themselves may run under nohup
from daemon import run
from daemon.reload import Reloader
from daemon.upkeep import Upkeep
class Service:
    upkeep = Upkeep(None, Reloader(None, None))
    def stop(self): print("stop", flush=True)
    def wake(self): print("reload" if self.upkeep.reloader.is_asked else "nothing", flush=True)
service = Service()
if not run.has_terminal():
    run.heed_reload(service.upkeep.reloader)
run._heed_signals(service)
print("set", flush=True)
while True: signal.pause()
"""
    stdin = os.openpty()[1] if is_terminal else subprocess.DEVNULL
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"set\n"
            process.send_signal(signal.SIGHUP)
            assert process.stdout.readline() == (b"stop\n" if is_terminal else b"reload\n")
        finally:
            process.kill()
