"""Rows: one photo to one row of a backfill's result, in the journal's words; the rows of a shard to one file.

Invariant: the daemon's decoder, the daemon's model, the daemon's rule. A row has no times and no ids, so that the same
photos give the same bytes, whoever computes them and however often.
"""

import contextlib
import io
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from daemon.batch import Batch, Claimed
from daemon.delivery import Decider, Review, decision
from daemon.events import Line, as_fields, encode, parse, take_name
from daemon.inspection import Decode, FileError, Limits, Outcome, Report, decoder_failed, judged
from daemon.storage import Storage
from trainer.images import ImageError, Picture

if TYPE_CHECKING:
    import pyarrow as pa

    from trainer.views import Judged

NOBODY = Batch("", 0, ())
OWN = ("id", "batch", "source", "destination", "queued_ms", "decode_ms", "infer_ms", "attempt")  # of a daemon's lines
VIEWS = ("scene", "faces")


class Judge:
    """Judges the photos of one storage with one model, in one thread; `watched` is open while a decoder is at work."""

    def __init__(
        self, source: Storage, decider: Decider, eye: Decode, predict: Callable[[Picture], "Judged"], limits: Limits,
        watched: Callable[[], contextlib.AbstractContextManager[object]] = contextlib.nullcontext,
    ) -> None:  # fmt: skip
        self._source, self._decider, self._eye, self._predict = source, decider, eye, predict
        self._limits, self._watched = limits, watched

    def row(self, file: str) -> Line:
        """Return what the daemon would journal of a file. Raises OSError where the storage is at fault."""
        report, picture = self._source.inspect(file, self._decode, self._limits)
        outcome = Outcome(report) if picture is None else self._judged(report, picture)
        line = decision(Claimed("", file), NOBODY, outcome, self._decider, Review())
        return line.model_copy(update=dict.fromkeys(OWN))

    def _decode(self, data: bytes, max_pixels: int) -> Picture:
        with self._watched():
            try:
                return self._eye(data, max_pixels)
            except (FileError, ImageError):
                raise
            except Exception as error:
                raise decoder_failed(error) from error

    def _judged(self, report: Report, picture: Picture) -> Outcome:
        with self._watched():
            return judged(report, self._predict(picture))


def read(data: bytes, form: str) -> list[Line]:
    """Return the rows of a result, as they were made. Raises ValueError for what is no such file."""
    if form == "jsonl":
        found = list(map(parse, data.splitlines()))
    else:
        from pyarrow import lib, parquet  # noqa: PLC0415

        try:
            found = [_line(fields) for fields in parquet.read_table(io.BytesIO(data)).to_pylist()]
        except (lib.ArrowException, TypeError, KeyError) as error:
            raise ValueError(str(error)) from None
    if None in found:
        raise ValueError("a row of it cannot be read")
    return [line for line in found if line is not None]


def _line(fields: dict[str, Any]) -> Line:
    known = {name: value for name, value in fields.items() if value is not None}
    known["schema_"] = known.pop("schema")
    known["views"] = {view: scores for view, scores in (known.get("views") or {}).items() if scores is not None} or None
    take_name(known, "file")
    return Line(**known)


def as_jsonl(rows: Sequence[Line]) -> bytes:
    """Return the rows as the journal writes lines."""
    return b"".join(map(encode, rows))


def as_parquet(rows: Sequence[Line], classes: Sequence[str]) -> bytes:
    """Return the rows as a Parquet file, a column for each field of a line."""
    import pyarrow as pa  # noqa: PLC0415  # comes with Ray
    from pyarrow import parquet  # noqa: PLC0415

    columns = schema(classes)
    table = pa.Table.from_pylist([_flat(as_fields(row)) for row in rows], columns)
    sink = io.BytesIO()
    parquet.write_table(table, sink, compression="zstd")
    return sink.getvalue()


def schema(classes: Sequence[str]) -> "pa.Schema":
    """Return the columns. `scores` is a struct with a field for each class: `scores.happy` in DuckDB, a dict in pandas.

    All shards of a backfill have the same ones, since they have the same model.
    """
    import pyarrow as pa  # noqa: PLC0415

    text, whole, real = pa.string(), pa.int64(), pa.float64()
    scores = pa.struct([(name, real) for name in classes])
    faces = pa.struct([("count", whole), ("boxes", pa.list_(pa.list_(whole))), ("whole", pa.bool_())])
    return pa.schema([
        ("schema", whole), ("event", text), ("file", text), ("file_b64", text), ("label", text), ("score", real),
        ("scores", scores), ("threshold", real), ("views", pa.struct([(view, scores) for view in VIEWS])),
        ("faces", faces), ("model", whole), ("bytes", whole), ("width", whole), ("height", whole), ("format", text),
        ("sha256", text), ("error_code", text), ("error", text),
    ])  # fmt: skip


def _flat(fields: Mapping[str, Any]) -> dict[str, Any]:
    faces = fields.get("faces")
    return {**fields, "faces": faces and {"count": faces.count, "boxes": faces.boxes, "whole": faces.whole}}
