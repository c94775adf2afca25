"""The pipeline: one long-lived tf.data dataset, fed by a queue, from claimed paths to scores.

Invariant: every path that is submitted gets exactly one outcome, whatever its file holds; a file that cannot be decoded
is an outcome with an error and never costs its neighbours. Nothing is batched inside the graph: `batch()` would hold
small batches back until they are full.
"""

import json
import math
import queue
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import orjson
import tensorflow as tf
from numpy.typing import NDArray

from daemon.inspection import FileError, Limits, Outcome, Report, fingerprint, inspect
from trainer.images import Picture
from trainer.views import Eye, Predictor

JOIN_SECONDS = 5.0
CHUNK = 8  # files decoded by one Python call: large enough to hide its cost, small enough to spread over the cores


class Pipeline:
    """Decodes and predicts with one thread per core, each with a predictor of its own.

    `deliver(key, index, outcome)` is called from those threads, once for each path that was submitted.
    """

    def __init__(
        self,
        eye: Eye,
        make_predictor: Callable[[], Predictor],
        deliver: Callable[[str, int, Outcome], None],
        *,
        threads: int,
        limits: Limits,
    ) -> None:
        self._eye, self._threads, self._limits, self._deliver = eye, threads, limits, deliver
        self._queue: queue.SimpleQueue[tuple[bytes, list[bytes]] | None] = queue.SimpleQueue()
        self._busy: dict[int, tuple[float, bytes]] = {}
        self.failure: str | None = None
        self._iterator = iter(self._dataset())
        predictors = [make_predictor() for _ in range(threads)]
        self._workers = [threading.Thread(target=self._work, args=(p,), daemon=True) for p in predictors]
        for worker in self._workers:
            worker.start()

    def submit(self, key: str, paths: Sequence[bytes]) -> None:
        """Queue a batch, cut into chunks so that every core gets a share."""
        chunk = max(1, min(CHUNK, math.ceil(len(paths) / self._threads)))
        for start in range(0, len(paths), chunk):
            self._queue.put((orjson.dumps([key, start]), list(paths[start : start + chunk])))

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
            kinds = (tf.uint8, tf.uint8, tf.string)
            return key, paths, *tf.numpy_function(self._decode_chunk, [paths], kinds)

        signature = (tf.TensorSpec((), tf.string), tf.TensorSpec((None,), tf.string))
        dataset = tf.data.Dataset.from_generator(feed, output_signature=signature)
        # There is nothing for autograph to convert, and it would leave files in $TMPDIR.
        plain = tf.autograph.experimental.do_not_convert(decode)
        return dataset.map(plain, num_parallel_calls=self._threads, deterministic=False).prefetch(1)

    def _decode_chunk(self, paths: NDArray[Any]) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[Any]]:
        """Decode a chunk. An exception in here would lose the chunk: everything is caught and returned as data.

        Pictures come as uint8 (n, S, S, 3); their details, of all sizes, one after the other in one buffer.
        """
        pixels = np.zeros((len(paths), self._eye.size, self._eye.size, 3), np.uint8)
        details, reports = [np.empty(0, np.uint8)], []
        for index, path in enumerate(paths):
            shape = None
            with self._timed(path):
                try:
                    report, picture = inspect(path, self._eye, self._limits)
                    if picture is not None:
                        pixels[index] = picture.pixels
                        if picture.detail is not None:
                            shape = picture.detail.shape
                            details.append(picture.detail.ravel())
                except Exception as error:  # noqa: BLE001  # a defect of a decoder: this file's problem, nobody else's
                    told = FileError("corrupt", f"the decoder failed: {type(error).__name__}: {error!a}")
                    report = fingerprint(path, self._limits, told)
            reports.append(json.dumps([asdict(report), shape]).encode())  # orjson refuses a time after 2262
        return pixels, np.concatenate(details), np.array(reports, dtype=object)

    def _work(self, predict: Predictor) -> None:
        try:
            while (element := next(self._iterator, None)) is not None:
                key, start = orjson.loads(element[0].numpy())
                for offset, (path, picture, report) in enumerate(_pictures(element)):
                    self._deliver(key, start + offset, self._predict(predict, path, picture, report))
        except BaseException:  # noqa: BLE001  # a thread that dies silently would leave its files waiting for ever
            self.failure = traceback.format_exc()
            self._deliver("", 0, Outcome(Report()))  # wakes the service, which looks at `failure`

    def _predict(self, predict: Predictor, path: bytes, picture: Picture, report: Report) -> Outcome:
        if report.code is not None:
            return Outcome(report)
        begun = time.perf_counter()
        with self._timed(path):
            judged = predict(picture)
        views = {name: _floats(scores) for name, scores in judged.views.items()}
        return Outcome(report, _floats(judged.scores), _ms(begun), views, judged.boxes, judged.is_face)

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


def _pictures(element: Sequence[Any]) -> Iterator[tuple[bytes, Picture, Report]]:
    """Take a chunk apart again."""
    _, paths, pixels, details, reports = (part.numpy() for part in element)
    at = 0
    for path, small, raw in zip(paths, pixels, reports, strict=True):
        fields, shape = json.loads(raw)
        report, detail = Report(**fields), None
        if shape is not None:
            detail = details[at : at + math.prod(shape)].reshape(shape)
            at += detail.size
        yield path, Picture(small, report.width or 0, report.height or 0, report.format or "", detail), report


def _floats(scores: NDArray[np.float32]) -> tuple[float, ...]:
    return tuple(float(score) for score in scores)


def _ms(begun: float) -> float:
    return round((time.perf_counter() - begun) * 1000, 2)
