"""A Ray cluster of several raylets in a network of its own (loopback alone), for test_backfill_ray.

`unshare --net python ray_nodes.py ROOT SHARD_FILES STORY…` prints what came of it, as JSON. It starts a real Ray,
kills them by SIGKILL, and runs `moodbox backfill` as a person would.
"""

import fcntl
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SIOCSIFFLAGS, IFF_UP = 0x8914, 1
DEADLINE = 200.0
COMMAND = [sys.executable, "-m", "daemon", "backfill"]


def loopback_up():
    with socket.socket() as asked:
        fcntl.ioctl(asked, SIOCSIFFLAGS, struct.pack("16sH14s", b"lo", IFF_UP, b""))


def wait_for(condition):
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


class Cluster:
    """A head without CPUs, so that nothing runs where nothing is killed."""

    def __init__(self, folder):
        os.environ.update(RAY_USAGE_STATS_ENABLED="0", RAY_TMPDIR=folder)
        from ray.cluster_utils import Cluster

        self._options = {"include_dashboard": False, "node_ip_address": "127.0.0.1"}
        self._cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **self._options})
        self.address = self._cluster.address

    def add(self):
        return self._cluster.add_node(num_cpus=1, node_ip_address="127.0.0.1")

    def kill(self, node):
        self._cluster.remove_node(node, allow_graceful=False)

    def close(self):
        self._cluster.shutdown()


def results(root):
    return [p for p in (root / "d/results").glob("*.jsonl") if not p.name.startswith(".")]


def start(root, cluster, *options):
    shape = ("--format", "jsonl", "--shard-files", sys.argv[2])
    command = [*COMMAND, "photos", "d", *shape, "--address", cluster.address, *options]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=root, stdout=pipe, stderr=pipe, text=True)


def end(process):
    said, errors = process.communicate(timeout=DEADLINE)
    return {"status": process.returncode, "stdout": said, "stderr": errors}


def nobody_works(root, cluster):
    """No machine has a CPU."""
    return [end(start(root, cluster, "--start-seconds", "2"))]


def a_node_dies(root, cluster):
    cluster.add()
    victim = cluster.add()
    process = start(root, cluster)
    wait_for(lambda: len(results(root)) >= 10)
    cluster.kill(victim)
    return [{"when": len(results(root))}, end(process)]


def the_driver_dies(root, cluster):
    cluster.add()
    cluster.add()
    process = start(root, cluster)
    wait_for(lambda: len(results(root)) >= 10)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    when = len(results(root))
    return [{"when": when}, end(start(root, cluster))]


def main():
    root = Path(sys.argv[1])
    loopback_up()
    with tempfile.TemporaryDirectory(prefix="mb-ray-", dir="/tmp") as folder:  # a socket's path has 107 bytes at most
        cluster = Cluster(folder)
        try:
            told = [globals()[story](root, cluster) for story in sys.argv[3:]]
        finally:
            cluster.close()
    print(json.dumps(told))


if __name__ == "__main__":
    main()
