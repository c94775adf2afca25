"""The job: a backfill's shards on Ray Data. The only module that imports Ray, and no other command imports it.

Invariant: Ray may repeat a shard whenever a process or a machine dies, since its result is the same. One that dies
again and again is given up, and the others go on. The driver is told of each shard by one small row.
"""

import contextlib
import functools
import logging
import signal
import socket
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import ray
import ray.data
import ray.exceptions
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from daemon.logs import failed
from daemon.station import Done, Job, RefusalError, Station
from trainer import ending

ROUNDS = 3  # in which what Ray gave up is begun again
MOST_TRIES = 3  # of a shard whose process dies
OBJECT_STORE = 200_000_000  # bytes: the model, and a few rows
SPARE_SECONDS = 600.0
LOOK_AT = "look at `ray status`, and at the logs in /tmp/ray on its machines"
RAY_ERRORS = (ray.exceptions.RayError, RuntimeError, ValueError, OSError)


class JobError(Exception):
    """The job cannot be done; the message says why and what to do."""


@dataclass(frozen=True)
class Cluster:
    """Where to work: at `address`, or (None) on this machine alone, with `workers` processes at most."""

    address: str | None
    workers: int | None
    start_seconds: float


@contextlib.contextmanager
def connected(where: Cluster) -> Iterator[None]:
    """Connect to a cluster, or start one on the loopback interface, and end it. Raises JobError."""
    with contextlib.ExitStack() as opened:
        place = f"at {where.address}" if where.address else "can be started on this machine"
        try:
            _knock(where)
            options = {} if where.address else _alone(where, opened)
            with _given_up(where.start_seconds, f"no Ray cluster {place} within {where.start_seconds:g} s"):
                ray.init(where.address or "local", log_to_driver=True, logging_level=logging.ERROR, **options)
        except RAY_ERRORS as error:
            raise JobError(f"no Ray cluster {place}: {_reason(error)}") from None
        opened.callback(ray.shutdown)
        yield


def _knock(where: Cluster) -> None:
    """Raise OSError where nobody listens at the address: Ray would try for minutes."""
    host, _, port = (where.address or "").rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), where.start_seconds).close()


@contextlib.contextmanager
def _given_up(seconds: float, text: str) -> Iterator[None]:
    """End the process where the block takes longer: Ray waits in native code, which no exception reaches."""
    timer = threading.Timer(seconds, lambda: ending.at_once(failed(f"{text}: {LOOK_AT}", 1)))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _alone(where: Cluster, opened: contextlib.ExitStack) -> dict[str, Any]:
    # In /tmp: the path of a socket has 107 bytes at most.
    folder = tempfile.TemporaryDirectory(prefix="moodbox-ray-", dir="/tmp", ignore_cleanup_errors=True)
    return {
        "num_cpus": where.workers, "include_dashboard": False, "object_store_memory": OBJECT_STORE,
        "_node_ip_address": "127.0.0.1", "_temp_dir": opened.enter_context(folder),
    }  # fmt: skip


def run(job: Job, numbers: Sequence[int], where: Cluster) -> Iterator[Done]:
    """Sort these shards, and yield what became of each. Raises JobError."""
    reference = ray.put(job)
    _wait_until_ready(reference, where)
    for name in ("ray", "ray.data"):  # what is wrong with a shard is told by us, in a line
        logging.getLogger(name).setLevel(logging.CRITICAL)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    context.execution_no_progress_timeout_s = job.manifest.shard_files * job.decode_seconds + SPARE_SECONDS
    left, error = dict.fromkeys(numbers), None
    for _ in range(ROUNDS):
        try:
            for done in _round(reference, list(left), where):
                left.pop(done.shard, None)
                yield done
        except RAY_ERRORS as failure:  # now and then Ray gives up what a machine that died had begun: begin it again
            error = failure
        if not left:
            return
    if error is not None:
        raise JobError(f"the cluster failed: {_reason(error)}; {LOOK_AT}")


def _round(reference: Any, numbers: Sequence[int], where: Cluster) -> Iterator[Done]:
    """Have Ray sort these shards; yield what became of each. Raises what Ray raises."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    tries = ray.remote(_Tries).options(num_cpus=0, scheduling_strategy=here).remote()
    # Tasks, not actors: one that dies is begun again on any machine; and a process keeps the model that it loads.
    told = ray.data.from_items([{"shard": n} for n in numbers], override_num_blocks=len(numbers)).map_batches(
        _sort, batch_size=None, batch_format="numpy", num_cpus=1, concurrency=where.workers,
        fn_kwargs={"reference": reference, "tries": tries},
    )  # fmt: skip
    for row in told.iter_rows():
        yield Done(**row)


def _wait_until_ready(reference: Any, where: Cluster) -> None:
    """Have one worker load the model. Raises JobError where none does in time, or none can."""
    asked = (
        ray.remote(_refusal).options(num_cpus=1, max_retries=0).remote([reference])
    )  # in a list: else Ray fetches it at once
    ready, _ = ray.wait([asked], timeout=where.start_seconds)
    if not ready:
        cpus = ray.cluster_resources().get("CPU", 0)
        text = f"no worker was ready within {where.start_seconds:g} s on {cpus:g} CPUs (--start-seconds)"
        raise JobError(f"{text}: {LOOK_AT}")
    try:
        refused = ray.get(asked)
    except RAY_ERRORS as error:
        raise JobError(f"no worker can start: {_reason(error)}; is moodbox[ray] installed there?") from None
    if refused:
        raise JobError(refused)


def _refusal(references: Sequence[Any]) -> str:
    """Return why this machine can do nothing; empty where it can."""
    try:
        _station(references[0])
    except RefusalError as error:
        return str(error)
    return ""


class _Tries:
    """Counts how often each shard was begun, and knows where it was then; on the driver's machine, which must live."""

    def __init__(self) -> None:
        self._begun, self._at = Counter[int](), dict[int, str]()

    def begin(self, shard: int) -> tuple[int, str]:
        self._begun[shard] += 1
        return self._begun[shard], self._at.get(shard, "one of its files")

    def note(self, shard: int, file: str) -> None:
        self._at[shard] = file


def _sort(batch: Mapping[str, Any], reference: Any, tries: Any) -> dict[str, list[Any]]:
    done = [_done(int(number), reference, tries) for number in batch["shard"]]
    return {field.name: [getattr(one, field.name) for one in done] for field in fields(Done)}


def _done(shard: int, reference: Any, tries: Any) -> Done:
    """Sort a shard, which Ray repeats for ever where its process dies: not so we."""
    count, file = ray.get(tries.begin.remote(shard))
    try:
        station = _station(reference)
    except RefusalError as error:
        return Done(shard, refusal=str(error))
    if count > MOST_TRIES:
        limit = f"daemon.decode_seconds is {station.job.decode_seconds:g}"
        return Done(shard, problem=f"{file}: its worker died {MOST_TRIES} times ({limit})")
    if count == 1:
        return station.sort(shard)
    return station.sort(shard, lambda file: ray.get(tries.note.remote(shard, file)))


@functools.lru_cache(maxsize=1)
def _station(reference: Any) -> Station:
    job: Job = ray.get(reference)
    return Station(job, functools.partial(_ended_after, job.decode_seconds))


@contextlib.contextmanager
def _ended_after(seconds: float) -> Iterator[None]:
    """Have the kernel end this process where the block takes longer: no Python runs in a decoder that hangs."""
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _reason(error: Exception) -> str:
    """Return what is worth saying: a Ray error's last line is the reason, what stands before it is a traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
