"""Compares face detectors on a folder of your photos: what they find, what they cost, what they weigh.

    python benchmarks/face_detectors.py FOLDER [--models DIR] [--yunet FILE]

It measures what is installed: BlazeFace networks (*.tflite, from DIR or from the package), and, where OpenCV is, its
YuNet with the model FILE and its Haar cascade. Every detector sees the same pixels, those that the product looks for
faces in, photo by photo, in turn, with one thread; decoding does not count. Whether what was found is a face, only a
look at the photos tells: a high share is no merit by itself.
"""

import argparse
import importlib
import importlib.metadata
import importlib.resources
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.resources.abc import Traversable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.detector import Detector
from trainer.images import ImageError, decode
from trainer.litert import ModelFormatError

THRESHOLDS = (0.5, 0.6, 0.7, 0.8)
DETAIL = 640  # the longer side of what is looked at, pixels: the product's default
CASCADE = "haarcascade_frontalface_default.xml"

Pixels = NDArray[np.uint8]  # (H, W, 3), RGB
Find = Callable[[Pixels], Sequence[float]]  # the score of each face that is at least THRESHOLDS[0] sure


@dataclass(frozen=True, slots=True)
class Candidate:
    """A detector, the bytes it adds to an installation, and, photo by photo, its scores and its CPU time in ms."""

    name: str
    size: int
    find: Find
    scored: bool = True
    found: list[Sequence[float]] = field(default_factory=list)
    spent: list[float] = field(default_factory=list)


class LeftOutError(Exception):
    """A detector that cannot be measured here; the message says why."""


def main() -> None:
    given = _arguments()
    candidates, left_out = _candidates(given.models, given.yunet)
    for reason in left_out:
        print(f"left out: {reason}")
    if not candidates:
        sys.exit("nothing to measure")
    skipped = _measure(candidates, given.folder)
    if not candidates[0].found:
        sys.exit(f"no photo can be read in {given.folder}")
    print(f"{len(candidates[0].found)} photos, {skipped} other files skipped\n")
    print("\n".join(_table(candidates)))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Compare face detectors on a folder of photos.")
    parser.add_argument("folder", type=Path, help="photos, also in folders below it")
    parser.add_argument("--models", type=Path, help="a folder of BlazeFace networks (*.tflite); default: the package's")
    parser.add_argument("--yunet", type=Path, help="a YuNet model file (*.onnx), for OpenCV")
    given = parser.parse_args()
    for folder in (given.folder, given.models):
        if folder and not folder.is_dir():
            parser.error(f"{folder} is no folder")
    return given


def _candidates(models: Path | None, yunet: Path | None) -> tuple[list[Candidate], list[str]]:
    """Return what can be measured, and a line about each that cannot."""
    folder = models or importlib.resources.files("trainer.pretrained")
    networks = sorted((file for file in folder.iterdir() if file.name.endswith(".tflite")), key=lambda file: file.name)
    candidates, left_out = [], [] if networks else [f"BlazeFace (no *.tflite in {models or 'the package'})"]
    builds: list[Callable[[], Candidate]] = [partial(_blazeface, file) for file in networks]
    builds += [partial(_yunet, yunet), _haar]
    for build in builds:
        try:
            candidates.append(build())
        except LeftOutError as reason:
            left_out.append(str(reason))
    return candidates, left_out


def _blazeface(file: Traversable) -> Candidate:
    name = file.name.removesuffix(".tflite")
    try:
        model = file.read_bytes()
        detector = Detector(model)
    except (OSError, ModelFormatError) as error:
        raise LeftOutError(f"{name} ({error})") from None
    return Candidate(name, len(model), lambda pixels: [face.score for face in detector(pixels, THRESHOLDS[0])])


def _opencv(name: str, part: str) -> ModuleType:
    try:
        cv2 = importlib.import_module("cv2")
    except ImportError as error:
        raise LeftOutError(f"{name} (OpenCV cannot be imported: {error})") from None
    if not hasattr(cv2, part):
        raise LeftOutError(f"{name} (OpenCV {cv2.__version__} has no {part})")
    cv2.setNumThreads(1)
    return cv2


def _yunet(model: Path | None) -> Candidate:
    if model is None:
        raise LeftOutError("YuNet (no --yunet FILE)")
    cv2 = _opencv("YuNet", "FaceDetectorYN")
    try:
        size = model.stat().st_size
        detector: Any = cv2.FaceDetectorYN.create(os.fspath(model), "", (320, 320), THRESHOLDS[0])
    except (OSError, cv2.error) as error:
        raise LeftOutError(f"YuNet ({' '.join(str(error).split())[:200]})") from None

    def find(pixels: Pixels) -> Sequence[float]:
        detector.setInputSize((pixels.shape[1], pixels.shape[0]))
        _, faces = detector.detect(np.ascontiguousarray(pixels[:, :, ::-1]))
        return [] if faces is None else faces[:, -1].tolist()

    return Candidate("YuNet", size + _installed("cv2"), find)


def _haar() -> Candidate:
    cv2 = _opencv("Haar", "CascadeClassifier")
    cascade: Any = cv2.CascadeClassifier(os.path.join(cv2.data.haarcascades, CASCADE))
    if cascade.empty():
        raise LeftOutError(f"Haar (OpenCV {cv2.__version__} brings no {CASCADE})")

    def find(pixels: Pixels) -> Sequence[float]:
        grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
        return [1.0] * len(cascade.detectMultiScale(grey, 1.1, 5, minSize=(30, 30)))

    return Candidate("Haar", _installed("cv2"), find, scored=False)


def _installed(module: str) -> int:
    """Return the bytes of the package that a module came with; 0 where no package says that it did."""
    packages = set(importlib.metadata.packages_distributions().get(module, ()))
    files = (file for package in packages for file in importlib.metadata.files(package) or ())
    return sum(file.size or 0 for file in files)


def _measure(candidates: Sequence[Candidate], folder: Path) -> int:
    """Run every candidate on every photo, each time another one first; return how many files are no photos."""
    skipped = 0
    for turn, file in enumerate(sorted(file for file in folder.rglob("*") if file.is_file())):
        try:
            pixels = decode(file, size=224, detail=DETAIL).detail
        except (ImageError, OSError):
            skipped += 1
            continue
        assert pixels is not None  # it was asked for
        first = turn % len(candidates)
        for candidate in (*candidates[first:], *candidates[:first]):
            start = time.process_time()
            candidate.found.append(candidate.find(pixels))
            candidate.spent.append((time.process_time() - start) * 1000)
    return skipped


def _table(candidates: Sequence[Candidate]) -> Iterator[str]:
    wide = max(len(name) for name in ("detector", *(candidate.name for candidate in candidates)))
    shares = "".join(f"{f'>= {least}':>9}" for least in THRESHOLDS)
    yield f"{'detector':{wide}}{'MB':>8}{'CPU ms':>8}{shares}{'faces':>8}"
    for each in candidates:
        cells = [f"{each.size / 1e6:8.2f}", f"{statistics.median(each.spent):8.1f}"]
        cells += [f"{_share(each, least):9.1%}" for least in THRESHOLDS] if each.scored else _unscored(each)
        yield f"{each.name:{wide}}{''.join(cells)}{statistics.fmean(map(len, each.found)):8.2f}"
    yield "\nMB: added to the product (network, OpenCV); CPU ms: median of the photos; >=: photos with a face that sure"
    yield f"(Haar has no scores); faces: mean of the photos, from {THRESHOLDS[0]} on"


def _share(candidate: Candidate, least: float) -> float:
    return statistics.fmean(any(score >= least for score in scores) for scores in candidate.found)


def _unscored(candidate: Candidate) -> list[str]:
    return [f"{_share(candidate, 0.0):9.1%}", *(f"{'-':>9}" for _ in THRESHOLDS[1:])]


if __name__ == "__main__":
    main()
