"""docs/operations.md and deploy/alerts.yml: what is documented is what runs, and nothing is left out."""

import ast
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import orjson
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

import pictures
from daemon.events import Line
from daemon.journal import Journal
from test_moodbox import DEADLINE, clean, command, moodbox, until

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs/operations.md").read_text(encoding="utf-8")
KINDS = {"symlink", "fifo", "socket", "device"}  # what daemon.fs.kind calls what is no file


def sources() -> list[ast.AST]:
    import daemon
    import trainer

    folders = [Path(package.__file__).parent for package in (daemon, trainer) if package.__file__]
    return [
        node for folder in folders for path in folder.glob("*.py") for node in ast.walk(ast.parse(path.read_text()))
    ]


def section(title: str) -> str:
    return PAGE.split(f"## {title}")[1].split("\n## ")[0]


def first_column(text: str) -> set[str]:
    rows = [row.split("|")[1] for row in text.splitlines() if row.startswith("| `")]
    return {name for cell in rows for name in re.findall(r"`([^`]+)`", cell)}


def test_each_error_code_in_the_code_is_in_the_table_and_no_other():
    codes = set(KINDS)
    for node in sources():
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            if node.func.id in ("FileError", "ImageError") and isinstance(node.args[0], ast.Constant):
                codes.add(node.args[0].value)
            elif node.func.id == "Report":
                codes |= {k.value.value for k in node.keywords if k.arg == "code" and isinstance(k.value, ast.Constant)}
        elif isinstance(node, ast.Dict):
            codes |= {
                value.value
                for key, value in zip(node.keys, node.values, strict=True)
                if isinstance(key, ast.Constant) and key.value == "error_code" and isinstance(value, ast.Constant)
            }
    codes -= {"unreadable"}  # is tried again, and never journalled
    table = section("What each error means, and what to do").split("What the daemon logs")[0]
    assert "no_score" in codes and "vanished" in codes and "crashes" in codes
    assert first_column(table.split("| error_code")[1]) == codes


def test_each_warning_and_error_that_the_daemon_logs_is_in_the_table_and_no_other():
    logged = set()
    for node in sources():
        if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name in ("warning", "error", "tell") and isinstance(node.args[0].value, str):
                logged.add(node.args[0].value)
    assert first_column(section("What each error means, and what to do").split("| event")[1]) == logged


@pytest.fixture
def log(tmp_path):
    """A journal with something of everything."""
    journal = Journal(tmp_path / "log", "d", 1 << 20)
    journal.append([Line(event="started", model=1)])
    for number in range(200):
        label = ("happy", "sad")[number % 2]
        journal.append([
            Line(event="sorted", id=f"a-{number}", batch="a", file=f"{number}.jpg", destination=f"{label}/{number}.jpg",
                 label=label, score=0.9, model=1, decode_ms=float(number), infer_ms=2.0),
        ])  # fmt: skip
    journal.append([Line(event="redirected", id="a-1", batch="a", file="1.jpg", destination="sad/1-2.jpg")])
    journal.append([Line(event="rejected", id="b-0", file="c.jpg", error_code="empty", error="the file is empty")])
    journal.append([Line(event="corrected", label="sad", predicted="happy", source="happy/0.jpg")])
    journal.close()
    return tmp_path


def blocks(language: str) -> list[str]:
    found = re.findall(rf"```{language}\n(.*?)```", section("Reading the journal"), re.DOTALL)
    assert found
    return found


@pytest.mark.skipif(shutil.which("jq") is None, reason="jq is not installed")
def test_the_examples_with_jq_run_as_documented(log):
    [block] = blocks("sh")
    rejected, counts, slowest = (
        subprocess.run(["sh", "-c", line], cwd=log, capture_output=True, text=True, check=True).stdout
        for line in block.strip().splitlines()
    )
    assert rejected == "c.jpg\tempty\tthe file is empty\n"
    assert orjson.loads(counts) == {"happy": 100, "sad": 100}
    assert slowest.splitlines()[0] == '["199.jpg",199,2]' and len(slowest.splitlines()) == 10


def test_the_examples_in_python_run_as_documented(log):
    with_pandas, with_duckdb = (
        subprocess.run([sys.executable, "-c", block], cwd=log, capture_output=True, text=True, check=False)
        for block in blocks("python")
    )
    assert with_pandas.returncode == 0, with_pandas.stderr
    assert re.search(r"happy\s+100\.0\s+0\.9", with_pandas.stdout)
    assert with_duckdb.returncode == 0, with_duckdb.stderr
    assert "sad/1-2.jpg" in with_duckdb.stdout and "sad/1.jpg" not in with_duckdb.stdout
    assert re.search(r"happy\s*│\s*sad\s*│\s*1", with_duckdb.stdout)


def alerts() -> list[dict]:
    found = yaml.safe_load((ROOT / "deploy/alerts.yml").read_text(encoding="utf-8"))
    return [rule for group in found["groups"] for rule in group["rules"]]


def test_the_alert_rules_are_rules():
    assert {rule["alert"] for rule in alerts()} >= {"MoodboxSilent", "MoodboxNotSorting", "MoodboxNothingMoves"}
    for rule in alerts():
        assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert set(rule["annotations"]) == {"summary", "description"}
        assert rule["expr"].count("(") == rule["expr"].count(")")
        assert re.fullmatch(r"\d+[mh]", rule.get("for", "1m"))


@pytest.mark.tf
def test_a_real_daemon_as_a_service_manager_and_prometheus_see_it(tmp_path):
    (tmp_path / "settings.toml").write_text('[metrics]\nfile = "moodbox.prom"\nseconds = 1\n')
    heard: list[str] = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(DEADLINE)

        def until_told(what: str) -> str:
            while what not in (text := manager.recv(65_536).decode()):
                heard.append(text)
            heard.append(text)
            return text

        environment = clean() | {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "3000000"}
        with subprocess.Popen(
            command("run"), cwd=tmp_path, env=environment, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        ) as daemon:
            try:
                until_told("READY=1")
                assert any("EXTEND_TIMEOUT_USEC=30000000" in text for text in heard), "TensorFlow takes its time"
                pictures.write_picture(tmp_path / "tray/inbox/a.jpg")
                (tmp_path / "tray/inbox/empty.jpg").touch()
                assert "model 1; 2 photos/min" in until_told("2 photos/min")
                until(lambda: moodbox(tmp_path, "status", "--check").returncode == 0)
                until_told("WATCHDOG=1")
                (tmp_path / "settings.toml").write_text('[metrics]\nfile = "moodbox.prom"\n[daemon]\nthreads = 1\n')
                daemon.send_signal(signal.SIGHUP)
                assert "changed, needs a restart: daemon.threads" in until_told("READY=1")
                file = tmp_path / "moodbox.prom"
                until(lambda: file.exists() and 'code="empty"' in file.read_text())
                written = {
                    sample.name for f in text_string_to_metric_families(file.read_text()) for sample in f.samples
                }
                check_metrics(written)
                daemon.send_signal(signal.SIGSTOP)
                drain(manager)
                manager.settimeout(3.0)  # the watchdog's time
                with pytest.raises(TimeoutError):
                    manager.recv(65_536)
                daemon.send_signal(signal.SIGCONT)
            finally:
                daemon.send_signal(signal.SIGTERM)
                _, errors = daemon.communicate(timeout=DEADLINE)
    assert daemon.returncode == 0, errors
    [reloaded] = [orjson.loads(line) for line in errors.splitlines() if "settings reloaded" in line]
    assert reloaded["needs_restart"] == ["daemon.threads"]
    done = moodbox(tmp_path, "status", "--check")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "no daemon named" in done.stderr


def drain(manager: socket.socket) -> None:
    """Take what was sent before the stop."""
    manager.settimeout(0.2)
    end = time.monotonic() + DEADLINE
    while time.monotonic() < end:
        try:
            manager.recv(65_536)
        except TimeoutError:
            return


def check_metrics(written: set[str]) -> None:
    """Each metric that an alert or the page names is one that the daemon writes, and none is left out."""
    in_rules = {name for rule in alerts() for name in re.findall(r"moodbox_\w+", rule["expr"])}
    assert in_rules <= written
    documented = first_column(section("Metrics"))
    assert documented == {re.sub(r"_(bucket|sum|count)$", "", name) for name in written}
