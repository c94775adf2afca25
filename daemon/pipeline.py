"""The pipeline: one long-lived tf.data dataset, fed by a queue, from claimed paths to scores.

Invariant: every path that is submitted gets exactly one outcome, whatever its file holds; a file that cannot be decoded
is an outcome with an error and never costs its neighbours. What was submitted while a model served is decoded and
judged by that model, also after a swap. Nothing is batched inside the graph: `batch()` would hold small batches back
until they are full.
"""

import math
import queue
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import orjson
import tensorflow as tf
from numpy.typing import NDArray

from daemon.inspection import Limits, Outcome, Report, decoder_failed, fingerprint, inspect, judged
from daemon.predictors import Make, Predictors
from trainer.images import Picture
from trainer.views import Eye, Predictor

JOIN_SECONDS = 5.0
CHUNK = 8  # files decoded by one Python call: large enough to hide its cost, small enough to spread over the cores


@dataclass
class _Model:
    """A model that serves, or did when `chunks` were submitted that are not answered yet."""

    eye: Eye
    predictors: Predictors
    chunks: int = 0


class Pipeline:
    """Decodes and predicts with one thread per core, each with a predictor of its own.

    `deliver(key, index, outcome)` is called from those threads, once for each path that was submitted.
    """

    def __init__(
        self,
        eye: Eye,
        make_predictor: Make,
        deliver: Callable[[str, int, Outcome], None],
        *,
        threads: int,
        limits: Limits,
    ) -> None:
        self._threads, self._deliver = threads, deliver
        self.limits = limits  # may be replaced at any time: each file is held to those of the moment
        self._queue: queue.SimpleQueue[tuple[bytes, list[bytes]] | None] = queue.SimpleQueue()
        self._busy: dict[int, tuple[float, bytes]] = {}
        self._decoded: dict[bytes, list[tuple[Report, Picture | None]]] = {}  # by chunk, until it is judged
        self.failure: str | None = None
        self._iterator = iter(self._dataset())
        self._lock = threading.Lock()
        self._current = 0
        self._models = {0: _Model(eye, Predictors.made(make_predictor, threads))}  # by the order in which they came
        self._workers = [threading.Thread(target=self._work, args=(n,), daemon=True) for n in range(threads)]
        for worker in self._workers:
            worker.start()

    def submit(self, key: str, paths: Sequence[bytes]) -> None:
        """Queue a batch, cut into chunks so that every core gets a share."""
        chunk = max(1, min(CHUNK, math.ceil(len(paths) / self._threads)))
        starts = range(0, len(paths), chunk)
        with self._lock:
            self._models[self._current].chunks += len(starts)
        for start in starts:
            self._queue.put((orjson.dumps([key, start, self._current]), list(paths[start : start + chunk])))

    def swap(self, eye: Eye, predictors: Predictors) -> None:
        """Use another model, with predictors for as many threads, for what is submitted from now on; waits for nothing.

        Called by the thread that submits. The old model is let go when the last of its chunks is answered.
        """
        with self._lock:
            self._current += 1
            self._models[self._current] = _Model(eye, predictors)
            self._let_go()

    def _let_go(self) -> None:
        self._models = {n: model for n, model in self._models.items() if model.chunks or n == self._current}

    def slowest(self, now: float) -> tuple[float, bytes]:
        """Return how many seconds the longest running decode or prediction has taken, and its path."""
        return max(((now - begun, path) for begun, path in list(self._busy.values())), default=(0.0, b""))

    def close(self) -> None:
        """Finish what was submitted and end the threads."""
        self._queue.put(None)
        deadline = time.monotonic() + JOIN_SECONDS
        for worker in self._workers:
            worker.join(timeout=max(0.0, deadline - time.monotonic()))

    def _dataset(self) -> tf.data.Dataset:
        def feed() -> Iterator[tuple[bytes, list[bytes]]]:
            yield from iter(self._queue.get, None)

        def decode(key: Any, paths: Any) -> tuple[Any, ...]:
            return key, paths, tf.numpy_function(self._decode_chunk, [key, paths], tf.uint8)

        signature = (tf.TensorSpec((), tf.string), tf.TensorSpec((None,), tf.string))
        dataset = tf.data.Dataset.from_generator(feed, output_signature=signature)
        # There is nothing for autograph to convert, and it would leave files in $TMPDIR.
        plain = tf.autograph.experimental.do_not_convert(decode)
        return dataset.map(plain, num_parallel_calls=self._threads, deterministic=False).prefetch(1)

    def _decode_chunk(self, key: bytes, paths: NDArray[Any]) -> NDArray[np.uint8]:
        """Decode a chunk to uint8 (n, S, S, 3). An exception in here would lose it: all is caught, and becomes data.

        What is no tensor waits in `_decoded`: details of all sizes would have to be copied twice to pass the graph.
        """
        eye = self._models[orjson.loads(key)[2]].eye
        pixels = np.zeros((len(paths), eye.size, eye.size, 3), np.uint8)
        found: list[tuple[Report, Picture | None]] = []
        for index, path in enumerate(paths):
            report, picture = self._inspect(path, eye)
            if picture is not None:
                pixels[index] = picture.pixels
            found.append((report, picture))
        self._decoded[key] = found
        return pixels

    def _inspect(self, path: bytes, eye: Eye) -> tuple[Report, Picture | None]:
        with self._timed(path):
            try:
                return inspect(path, eye, self.limits)
            except Exception as error:  # noqa: BLE001  # a defect of a decoder: this file's problem, nobody else's
                return fingerprint(path, self.limits, decoder_failed(error)), None

    def _work(self, thread: int) -> None:
        try:
            while (element := next(self._iterator, None)) is not None:
                self._judge(thread, element)
        except BaseException:  # noqa: BLE001  # a thread that dies silently would leave its files waiting for ever
            self.failure = traceback.format_exc()
            self._deliver("", 0, Outcome(Report()))  # wakes the service, which looks at `failure`

    def _judge(self, thread: int, element: Sequence[Any]) -> None:
        """Answer a chunk. No predictor outlives it in a variable of a thread that waits for the next."""
        raw, paths, pixels = (part.numpy() for part in element)
        key, start, number = orjson.loads(raw)
        model = self._models[number]
        predict = model.predictors.alone if self._is_alone() else model.predictors.each[thread]
        for offset, (path, small, (report, picture)) in enumerate(
            zip(paths, pixels, self._decoded.pop(raw), strict=True)
        ):
            whole = None if picture is None else replace(picture, pixels=small)
            self._deliver(key, start + offset, self._predict(predict, path, whole, report))
        with self._lock:
            model.chunks -= 1
            self._let_go()

    def _is_alone(self) -> bool:
        """Tell whether the caller's chunk is all there is: it counts until it is answered, so no two are alone."""
        with self._lock:
            return sum(model.chunks for model in self._models.values()) == 1

    def _predict(self, predict: Predictor, path: bytes, picture: Picture | None, report: Report) -> Outcome:
        if picture is None:
            return Outcome(report)
        begun = time.perf_counter()
        with self._timed(path):
            answer = predict(picture)
        return judged(report, answer, _ms(begun))

    def _timed(self, path: bytes) -> "_Timed":
        return _Timed(self._busy, path)


class _Timed:
    """Notes what a thread is busy with, since when (monotonic seconds)."""

    def __init__(self, busy: dict[int, tuple[float, bytes]], path: bytes) -> None:
        self._busy, self._path = busy, path

    def __enter__(self) -> None:
        self._busy[threading.get_ident()] = (time.monotonic(), self._path)

    def __exit__(self, *_: object) -> None:
        self._busy.pop(threading.get_ident(), None)


def _ms(begun: float) -> float:
    return round((time.perf_counter() - begun) * 1000, 2)
