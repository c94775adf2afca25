"""What Moodbox is measured against: `python -m benchmarks.speed.contestants NAME MODELS INBOX OUT COUNT`.

`first`: the script that a user writes first: watchdog's callback, cv2.imread, `predict` of one, shutil.move.
`batches`: the same with `predict` of 32 at a time.
`limit`: what cannot be beaten by much: on each core a process that reads, decodes (libjpeg-turbo, at the DCT scale
that is enough), runs the bundle's LiteRT networks and renames; no daemon, no hash, no journal, no fsync.
"""

import multiprocessing
import os
import queue
import shutil
import sys
from collections.abc import Callable, Sequence
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from daemon import systemd
from trainer import bundle
from trainer.bundle import Bundle
from trainer.images import Picture

BATCH = 32
Move = Callable[[Sequence[str], NDArray[Any]], None]


def by_keras(loaded: Bundle, inbox: Path, out: Path, count: int, *, batch: int) -> None:
    """Move `count` photos as they arrive, `batch` at a time."""
    import keras  # noqa: PLC0415  # seconds: the limit needs none of it
    from watchdog.events import FileSystemEvent, FileSystemEventHandler  # noqa: PLC0415
    from watchdog.observers import Observer  # noqa: PLC0415

    import trainer.model  # noqa: F401, PLC0415  # registers the layers of the bundle's network

    model = keras.models.load_model(loaded.path / "model.keras")
    size, names = loaded.manifest.input_size, loaded.manifest.class_names
    done: queue.SimpleQueue[int] = queue.SimpleQueue()
    waiting: list[str] = []

    def sort(paths: list[str]) -> None:
        images = [cv2.cvtColor(cv2.imread(path), cv2.COLOR_BGR2RGB) for path in paths]
        pixels = np.stack([cv2.resize(image, (size, size)) for image in images]).astype(np.float32)
        scores = model.predict(pixels, verbose=0)
        for path, score in zip(paths, scores, strict=True):
            label = names[int(score.argmax() if score.size > 1 else score[0] > 0)]
            shutil.move(path, out / label / Path(path).name)
        done.put(len(paths))

    class Sorter(FileSystemEventHandler):
        def on_created(self, event: FileSystemEvent) -> None:
            waiting.append(os.fsdecode(event.src_path))
            if len(waiting) >= batch:
                sort(waiting[:])
                waiting.clear()

    for name in names:
        (out / name).mkdir(parents=True)
    model.predict(np.zeros((batch, size, size, 3), np.float32), verbose=0)
    observer = Observer()
    observer.schedule(Sorter(), os.fspath(inbox))
    observer.start()
    systemd.notify(READY=1)
    left = count - count % batch
    while left > 0:
        left -= done.get()
    os._exit(0)


def limit(models: Path, inbox: Path, out: Path) -> None:
    """Move what is in the inbox, with one process for each core."""
    context = multiprocessing.get_context("spawn")
    cores = len(os.sched_getaffinity(0))
    ready = context.Barrier(cores + 1)
    names = sorted(os.listdir(inbox))
    workers = [context.Process(target=_work, args=(models, inbox, out, names[n::cores], ready)) for n in range(cores)]
    for worker in workers:
        worker.start()
    ready.wait()
    systemd.notify(READY=1)
    ready.wait()
    for worker in workers:
        worker.join()


def _work(models: Path, inbox: Path, out: Path, names: Sequence[str], ready: Barrier) -> None:
    loaded = bundle.load(models)
    predict, classes = loaded.predictor(), loaded.manifest.class_names
    size, rules = loaded.manifest.input_size, loaded.manifest.faces
    predict.warm(size)
    cv2.setNumThreads(1)
    for name in classes:
        (out / name).mkdir(parents=True, exist_ok=True)
    ready.wait()
    ready.wait()
    for name in names:
        scores = predict(_picture((inbox / name).read_bytes(), size, rules.detail if rules else size)).scores
        os.rename(inbox / name, out / classes[int(np.argmax(scores))] / name)


def _picture(data: bytes, size: int, detail: int) -> Picture:
    """Decode at the smallest scale that leaves `detail` pixels on the longer side, and `size` on both."""
    height, width = _jpeg_size(data)
    enough = [s for s in (8, 4, 2) if max(width, height) // s >= detail and min(width, height) // s >= size]
    flags = {8: cv2.IMREAD_REDUCED_COLOR_8, 4: cv2.IMREAD_REDUCED_COLOR_4, 2: cv2.IMREAD_REDUCED_COLOR_2}
    flag = flags[enough[0]] if enough else cv2.IMREAD_COLOR
    whole = cv2.imdecode(np.frombuffer(data, np.uint8), flag)
    rgb = cv2.cvtColor(whole, cv2.COLOR_BGR2RGB)
    shrink = detail / max(rgb.shape[:2])
    large = cv2.resize(rgb, None, fx=shrink, fy=shrink, interpolation=cv2.INTER_AREA) if shrink < 1 else rgb
    small = cv2.resize(rgb, (size, size), interpolation=cv2.INTER_AREA)
    return Picture(np.asarray(small, np.uint8), width, height, "JPEG", np.asarray(large, np.uint8))


def _jpeg_size(data: bytes) -> tuple[int, int]:
    """Return (height, width) from the frame header of a baseline or progressive JPEG."""
    at = 2
    while data[at + 1] not in (0xC0, 0xC1, 0xC2):
        at += 2 + int.from_bytes(data[at + 2 : at + 4])
    return int.from_bytes(data[at + 5 : at + 7]), int.from_bytes(data[at + 7 : at + 9])


def main() -> None:
    name, models, inbox, out, count = sys.argv[1:]
    places = Path(inbox), Path(out)
    if name == "limit":
        limit(Path(models), *places)
    else:
        batch = {"first": 1, "batches": BATCH}[name]
        by_keras(bundle.load(Path(models)), *places, int(count), batch=batch)


if __name__ == "__main__":
    main()
