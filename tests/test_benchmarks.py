"""The benchmarks of speed still run: one part of them, as `make bench` would."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_a_part_is_measured_through_the_real_daemon_and_earlier_results_stay_beside_it(tmp_path):
    earlier = {"latencies": {"mv": {"p50": 40, "p99": 60, "worst": 61}}, "taken": {"latency": "Monday, there"}}
    (tmp_path / "results.json").write_text(json.dumps(earlier))
    command = [sys.executable, "-m", "benchmarks.speed", "--quick", "--only", "scale", "--results", tmp_path]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = [line.split("|")[1:-1] for line in done.stdout.splitlines() if line.startswith(("| 1,000", "| 10,000"))]
    assert [row[0].strip() for row in rows] == ["1,000", "10,000"]
    assert all(float(cell.replace(",", "")) > 0 for row in rows for cell in row[1:])
    assert (tmp_path / "RESULTS.md").read_text().startswith(done.stdout.rstrip())
    assert "- Monday, there: latency" in done.stdout
    assert "| mv | 40 | 60 | 61 |" in done.stdout
    assert (tmp_path / "RESULTS.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((tmp_path / "results.json").read_bytes())["scales"][1]["files"] == 10_000


def test_a_part_that_does_not_exist_is_named(tmp_path):
    command = [sys.executable, "-m", "benchmarks.speed", "--only", "speed"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "'speed'" in done.stderr
