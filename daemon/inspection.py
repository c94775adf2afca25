"""Inspection: one claimed file read once, hashed and decoded, with a report whatever it holds.

Invariant: only regular files are opened, links are never followed, and the bytes that are hashed are the bytes that are
decoded. What is wrong with a file is data here, not an exception.
"""

import contextlib
import hashlib
import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from daemon import fs
from trainer.images import ImageError, Picture

if TYPE_CHECKING:
    from trainer.views import Judged  # LiteRT: not for those who only look at files


@dataclass(frozen=True, slots=True)
class Report:
    """What decoding one file told. `code` is None where it went well, 'unreadable' where another try may help."""

    code: str | None = None
    error: str | None = None
    sha256: str | None = None
    bytes: int | None = None
    width: int | None = None
    height: int | None = None
    format: str | None = None
    decode_ms: float | None = None
    mtime_ns: int | None = None
    inode: int | None = None


Facts = dict[str, Any]  # fields of a report that are known already
Decode = Callable[[bytes, int], Picture]  # a file's bytes and the most pixels that it may have: trainer.views.Eye
VANISHED = Report(code="vanished", error="it was removed while it was being sorted")


@dataclass(frozen=True, slots=True)
class Outcome:
    """A file's report and, where it was decoded, its scores in the order of the classes: the answer's, each view's.

    `boxes` are the faces that were found: left, top, width and height in pixels of the upright picture; None where
    nobody looked for any. With `is_face` the picture as a whole was taken for one.
    """

    report: Report
    scores: tuple[float, ...] | None = None
    infer_ms: float | None = None
    views: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    boxes: tuple[tuple[int, int, int, int], ...] | None = None
    is_face: bool = False


@dataclass(frozen=True, slots=True)
class Limits:
    """What is too much for one file."""

    file_bytes: int
    pixels: int


class FileError(Exception):
    """A file that is not read: `code` for programs, the text for people."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code


def inspect(path: bytes, eye: Decode, limits: Limits) -> tuple[Report, Picture | None]:
    """Read one claimed file once; return its report and, where it is one, the picture as the model takes it."""
    begun, facts = time.perf_counter(), Facts()
    try:
        return examine(lambda: read(path, limits, facts), eye, limits, facts)
    except FileNotFoundError:
        return VANISHED, None
    except OSError as error:
        return unreadable(error, facts, _ms(begun)), None


def examine(reading: Callable[[], bytes], eye: Decode, limits: Limits, facts: Facts) -> tuple[Report, Picture | None]:
    """Decode what `reading` gives, from wherever; `facts` are those that it notes. Raises OSError as it does."""
    begun = time.perf_counter()
    try:
        picture = eye(reading(), limits.pixels)
    except (FileError, ImageError) as error:
        return Report(code=error.code, error=str(error), decode_ms=_ms(begun), **facts), None
    facts.update(width=picture.width, height=picture.height, format=picture.format)
    return Report(decode_ms=_ms(begun), **facts), picture


def read(path: bytes, limits: Limits, facts: Facts) -> bytes:
    """Return the bytes of a regular file, and note its identity and hash in `facts`; nothing else is ever opened."""
    kind = fs.kind(os.lstat(path).st_mode)
    if kind != "file":
        raise FileError(kind, f"a {kind} is no photo: it was not opened")
    with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        st = os.fstat(file.fileno())
        facts.update(bytes=st.st_size, mtime_ns=st.st_mtime_ns, inode=st.st_ino)
        check_size(st.st_size, limits)
        # A byte more shows that it grows; not the limit: Python allocates it all.
        return noted(file.read(st.st_size + 1), facts)


def check_size(size: int, limits: Limits) -> None:
    """Raise FileError for a file that is too large: it is not even hashed, which could take hours."""
    if size > limits.file_bytes:
        limit = f"tray.max_file_bytes is {limits.file_bytes:,}"
        raise FileError("too_large", f"{size:,} bytes are too many: {limit}")


def noted(data: bytes, facts: Facts) -> bytes:
    """Note the hash and the number of the bytes that are decoded."""
    facts.update(sha256=hashlib.sha256(data).hexdigest(), bytes=len(data))
    return data


def unreadable(error: OSError, facts: Facts, decode_ms: float | None = None) -> Report:
    """Return the report of a file that the system refuses to read."""
    return Report(code="unreadable", error=f"cannot be read: {error.strerror}", decode_ms=decode_ms, **facts)


def decoder_failed(error: Exception) -> FileError:
    """Say that a decoder has a defect: the file's problem, nobody else's."""
    return FileError("corrupt", f"the decoder failed: {type(error).__name__}: {error!a}")


def judged(report: Report, answer: "Judged", infer_ms: float | None = None) -> Outcome:
    """Return the outcome for a picture that was decoded, and judged."""
    views = {name: _floats(scores) for name, scores in answer.views.items()}
    return Outcome(report, _floats(answer.scores), infer_ms, views, answer.boxes, answer.is_face)


def _floats(scores: Iterable[Any]) -> tuple[float, ...]:
    return tuple(float(score) for score in scores)


def fingerprint(path: bytes, limits: Limits, error: FileError) -> Report:
    """Return the report of a file that must not be decoded (again), with its hash."""
    facts = Facts()
    with contextlib.suppress(FileError, OSError):  # what could be found out is in `facts`
        read(path, limits, facts)
    return Report(code=error.code, error=str(error), **facts)


def _ms(begun: float) -> float:
    return round((time.perf_counter() - begun) * 1000, 2)
