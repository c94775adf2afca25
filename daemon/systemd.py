"""sd_notify: tells systemd READY, STATUS, WATCHDOG and STOPPING; silently nothing where no service manager listens.

The protocol is a datagram to the socket that NOTIFY_SOCKET names (sd_notify(3)); the PyPI packages for it are either
unmaintained or bind to libsystemd.
"""

import contextlib
import os
import socket
import threading
import time
from collections.abc import Iterator

MORE_SECONDS = 30  # asked for at a time
ASK_SECONDS = 5.0
URGENT, URGENT_SECONDS = {"READY", "RELOADING"}, 1.0  # what was dropped of these would never come again
LOAD_SECONDS = 600.0  # a model that is not loaded by then will never be: the manager may end it


def notify(**state: str | int) -> bool:
    """Send each keyword as NAME=value, as in READY=1; tell whether it was taken. Where nobody listens it is lost."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return False
    message = "\n".join(f"{name}={value}" for name, value in state.items())
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        sender.settimeout(URGENT_SECONDS if URGENT & state.keys() else 0.0)
        try:
            sender.sendto(message.encode(), "\0" + address[1:] if address[0] == "@" else address)
        except OSError:  # nobody listens any more, or its queue is full
            return False
    return True


def watchdog_seconds() -> float | None:
    """Return how often systemd expects WATCHDOG=1 from this process, None where it does not."""
    pid, micros = os.environ.get("WATCHDOG_PID"), os.environ.get("WATCHDOG_USEC", "")
    if not micros.isdigit() or (pid and pid != str(os.getpid())):
        return None
    return int(micros) / 1e6


def more_time(status: str) -> None:
    """Ask for more time to start. With a ping: a daemon that replaced itself is watched while it loads."""
    notify(EXTEND_TIMEOUT_USEC=MORE_SECONDS * 1_000_000, WATCHDOG=1, STATUS=status)


@contextlib.contextmanager
def loading(status: str, seconds: float = LOAD_SECONDS) -> Iterator[None]:
    """Ask for more time, from a thread of its own, while the caller imports and loads; for `seconds` at most."""
    done, give_up = threading.Event(), time.monotonic() + seconds
    every = min(ASK_SECONDS, (watchdog_seconds() or ASK_SECONDS) / 3)

    def ask() -> None:
        while time.monotonic() < give_up:
            more_time(status)
            if done.wait(every):
                return

    thread = threading.Thread(target=ask, name="more time", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
