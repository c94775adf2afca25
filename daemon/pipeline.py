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
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
import tensorflow as tf
from numpy.typing import NDArray

from daemon.inspection import Limits, Outcome, Report, decoder_failed, fingerprint, inspect, judged
from daemon.predictors import Make, Predictors
from trainer import memory
from trainer.views import Eye, Predictor

JOIN_SECONDS = 5.0
CHUNK = 8  # files of one Python call: large enough to hide its cost, small enough to spread over the cores


@dataclass
class _Model:
    """A model that serves, or did when `chunks` were submitted that are not answered yet."""

    eye: Eye
    predictors: Predictors
    chunks: int = 0


class Pipeline:
    """Decodes and predicts in `threads` chunks at a time, each with a predictor of its own.

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
        self.failure: str | None = None
        self._chunks = self._dataset().as_numpy_iterator()
        memory.keep_buffers()  # again: the generator has just undone it
        self._lock = threading.Lock()
        self._current = 0
        self._models = {0: _Model(eye, Predictors.made(make_predictor, threads))}  # by the order in which they came
        self._lanes = list(range(threads))  # that are free: each is a predictor that nobody uses
        self._worker = threading.Thread(target=self._run, daemon=True)
        self._worker.start()

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
        """Finish what was submitted and end the thread."""
        self._queue.put(None)
        self._worker.join(timeout=JOIN_SECONDS)

    def _dataset(self) -> tf.data.Dataset:
        def feed() -> Iterator[tuple[bytes, list[bytes]]]:
            yield from iter(self._queue.get, None)

        def answer(key: Any, paths: Any) -> Any:
            return tf.numpy_function(self._answer, [key, paths], tf.int64)

        signature = (tf.TensorSpec((), tf.string), tf.TensorSpec((None,), tf.string))
        dataset = tf.data.Dataset.from_generator(feed, output_signature=signature)
        # There is nothing for autograph to convert, and it would leave files in $TMPDIR.
        plain = tf.autograph.experimental.do_not_convert(answer)
        return dataset.map(plain, num_parallel_calls=self._threads, deterministic=False)

    def _run(self) -> None:
        """Pull chunks through the dataset until it is closed."""
        try:
            for _ in self._chunks:
                pass
        except BaseException:  # noqa: BLE001  # a thread that dies silently would leave its files waiting for ever
            self.failure = traceback.format_exc()
            self._deliver("", 0, Outcome(Report()))  # wakes the service, which looks at `failure`

    def _answer(self, raw: bytes, paths: NDArray[Any]) -> np.int64:
        """Answer a chunk; return how many files it had. TensorFlow calls it in `threads` threads at most."""
        key, start, number = orjson.loads(raw)
        model, lane = self._models[number], self._lanes.pop()
        predict = model.predictors.alone if self._is_alone() else model.predictors.each[lane]
        for offset, path in enumerate(paths):
            self._deliver(key, start + offset, self._outcome(path, model.eye, predict))
        self._lanes.append(lane)
        with self._lock:
            model.chunks -= 1
            self._let_go()
        return np.int64(len(paths))

    def _outcome(self, path: bytes, eye: Eye, predict: Predictor) -> Outcome:
        """Decode and predict at once, while the pixels are hot; nothing of a picture outlives it."""
        with self._timed(path):
            try:
                report, picture = inspect(path, eye, self.limits)
            except Exception as error:  # noqa: BLE001  # a defect of a decoder: this file's problem, nobody else's
                report, picture = fingerprint(path, self.limits, decoder_failed(error)), None
        if picture is None:
            return Outcome(report)
        begun = time.perf_counter()
        with self._timed(path):
            answer = predict(picture)
        return judged(report, answer, _ms(begun))

    def _is_alone(self) -> bool:
        """Tell whether the caller's chunk is all there is: it counts until it is answered, so no two are alone."""
        with self._lock:
            return sum(model.chunks for model in self._models.values()) == 1

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
