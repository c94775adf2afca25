"""A burst of files: watchdog loses events, the scan does not, and memory stays flat."""

import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from PIL import Image

FILES = 10_000
GROWTH_MB = 40
DEADLINE = 120.0


def peak_mb(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) // 1024


def until(condition, what: str) -> None:
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end, f"waited in vain: {what}"
        time.sleep(0.05)  # polling with a deadline


def test_a_burst_is_sorted_whole_with_flat_memory(tmp_path):
    inbox, happy = tmp_path / "tray/inbox", tmp_path / "tray/happy"
    inbox.mkdir(parents=True)
    (tmp_path / "tray/.moodbox").touch()
    picture = io.BytesIO()
    Image.new("RGB", (8, 8), (230, 230, 0)).save(picture, "PNG")
    script = Path(__file__).with_name("stand_in.py")
    with subprocess.Popen([sys.executable, str(script), str(tmp_path), ""]) as daemon:
        try:
            (inbox / "first.png").write_bytes(picture.getvalue())
            until((happy / "first.png").exists, "the daemon works")
            for number in range(FILES // 10):
                (inbox / f"warm{number}.png").write_bytes(picture.getvalue())
            until(lambda: not os.listdir(inbox), "a tenth is sorted")
            before = peak_mb(daemon.pid)
            for number in range(FILES):
                (inbox / f"{number}.png").write_bytes(picture.getvalue() + str(number).encode())
            until(lambda: not os.listdir(inbox), "the inbox is empty")
            assert peak_mb(daemon.pid) - before < GROWTH_MB
        finally:
            daemon.send_signal(signal.SIGTERM)
    assert len(os.listdir(happy)) == FILES + FILES // 10 + 1
