"""TensorBoard: what a run shows there beyond Keras's own callback, and the command that serves it.

Invariant: TensorFlow is imported only where something is written, so that the command answers at once; and TensorBoard
itself runs without it (75 MB instead of 680, and it does not need it).
"""

import contextlib
import os
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.errors import FailureError, InputError
from trainer.progress import printable
from trainer.settings import Settings

LISTED = ".tensorboard"  # in the folder of runs: a link to each run's events
HOST = "127.0.0.1"
PROJECTED = 5000  # photos: the browser holds them all
NO_TENSORFLOW = "tensorboard.compat.notf"  # TensorBoard looks for this name, and does without TensorFlow if it is there

Writer = Any
Values = Mapping[str, bool | int | float | str]


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[Any]:
    """Yield `tf.summary`, which writes to events in `folder`; all is on disk afterwards."""
    import tensorflow as tf  # noqa: PLC0415  the command does without

    writer = tf.summary.create_file_writer(str(folder))
    with writer.as_default():
        yield tf.summary
    writer.close()


def text(logdir: Path, settings: Settings) -> None:
    """Write the settings as a table: "Text"."""
    tables = settings.model_dump(mode="json")
    flat = flattened({"trainer": tables.pop("trainer"), **tables})  # what it is about comes first
    rows = "\n".join(f"| {name} | {_cell(value)} |" for name, value in flat.items())
    with writing(logdir) as summary:
        summary.text("settings", f"| setting | value |\n| --- | --- |\n{rows}", step=0)


def flattened(tables: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Return nested tables as {"table.key": value}."""
    flat: dict[str, Any] = {}
    for name, value in tables.items():
        flat |= flattened(value, f"{above}{name}.") if isinstance(value, dict) else {f"{above}{name}": value}
    return flat


def hparams(logdir: Path, values: Values, figures: Mapping[str, float]) -> None:
    """Write what was set and what came of it: a row of "HParams", to be compared with other runs.

    The figures, such as {"accuracy": 0.9}, also become scalars "test/accuracy".
    """
    from tensorboard.plugins.hparams import api  # noqa: PLC0415  needs TensorFlow

    metrics = [api.Metric(f"test/{name}", display_name=name) for name in figures]
    with writing(logdir) as summary:
        api.hparams_config([api.HParam(name) for name in values], metrics)
        api.hparams(dict(values))
        for name, value in figures.items():
            summary.scalar(f"test/{name}", value, step=0)


def show_batch(
    logdir: Path,
    photos: NDArray[np.float32],
    labels: Sequence[int] | NDArray[np.integer[Any]],
    class_names: Sequence[str],
    augmented: NDArray[np.float32] | None = None,
) -> None:
    """Write a few training photos, (N, S, S, 3) in [0, 255], above their augmented versions: "Images"."""
    from trainer import pictures  # noqa: PLC0415  matplotlib's font

    captions = [class_names[label] for label in labels]
    title = "training photos" if augmented is None else "training photos, each above its augmented version"
    with writing(logdir) as summary:
        summary.image(title, pictures.grid(photos, captions, augmented)[np.newaxis], step=0)


def graph(writer: Writer, model: Any) -> None:
    """Write the network, of one input, as TensorFlow runs it: "Graphs"."""
    import tensorflow as tf  # noqa: PLC0415

    photos = tf.TensorSpec([None, *model.input_shape[1:]], tf.float32)
    traced = tf.function(lambda x: model(x, training=False), autograph=False).get_concrete_function(photos)
    with writer.as_default():
        tf.summary.graph(traced.graph)


def pr_curve(summary: Any, name: str, positive: NDArray[np.bool_], scores: NDArray[np.float32], step: int) -> None:
    """Write precision and recall over 201 thresholds, for scores (N,) in [0, 1]: "PR Curves"."""
    from tensorboard.plugins.pr_curve import summary as plugin  # noqa: PLC0415  needs TensorFlow

    _write(summary, plugin.pb(name, positive, scores), step)


def histogram(summary: Any, name: str, values: NDArray[np.floating[Any]], step: int) -> None:
    """Write a histogram of numbers of any shape, of those that are finite: "Histograms".

    As `tf.summary.histogram`, whose forty operations for each of a hundred weights take as long as a small epoch.
    """
    from tensorboard.plugins.histogram import summary_v2 as plugin  # noqa: PLC0415  needs TensorFlow

    _write(summary, plugin.histogram_pb(name, values[np.isfinite(values)]), step)


def _write(summary: Any, made: Any, step: int) -> None:
    """Write what a plug-in made of numbers: its one value, as a protocol buffer."""
    from tensorboard.util import tensor_util  # noqa: PLC0415

    (value,) = made.value
    summary.write(value.tag, tensor_util.make_ndarray(value.tensor), step, metadata=value.metadata)


def projected(count: int) -> NDArray[np.int_]:
    """Return which of so many photos are shown: at most PROJECTED, evenly taken."""
    return np.unique(np.linspace(0, count - 1, min(count, PROJECTED)).astype(int))


def projector(
    logdir: Path,
    features: NDArray[np.floating[Any]],
    labels: NDArray[np.integer[Any]],
    class_names: Sequence[str],
    thumbnails: NDArray[np.uint8],
) -> None:
    """Write photos as points in space: features (N, F), class indices (N,), pictures uint8 (N, h, w, 3): "Projector".

    Give it what `projected` chooses: the browser holds them all.
    """
    from tensorboard.plugins import projector as plugin  # noqa: PLC0415  needs TensorFlow

    from trainer import pictures  # noqa: PLC0415

    logdir.mkdir(parents=True, exist_ok=True)
    np.savetxt(logdir / "features.tsv", features.astype(np.float32), fmt="%.5g", delimiter="\t")
    names = "".join(f"{printable(class_names[label])}\n" for label in labels)
    (logdir / "labels.tsv").write_text(names, encoding="utf-8")
    pictures.sprite(thumbnails).save(logdir / "sprite.png")
    config = plugin.ProjectorConfig()
    shown = config.embeddings.add(tensor_name="test photos", tensor_path="features.tsv", metadata_path="labels.tsv")
    shown.sprite.image_path = "sprite.png"
    shown.sprite.single_image_dim.extend([thumbnails.shape[2], thumbnails.shape[1]])
    plugin.visualize_embeddings(str(logdir), config)
    with writing(logdir) as summary:  # a folder without events is no run, and would not be looked at
        summary.scalar("projector/photos", len(features), step=0)


def listed(workdir: Path) -> None:
    """Link a run's events into `runs/.tensorboard/`, where the command looks.

    TensorBoard walks through all of its folder every five seconds, and a million prepared photos lie beside the runs.
    """
    link = workdir.parent / LISTED / workdir.name
    with contextlib.suppress(OSError):  # there already; or a file system without links: `serve` does without
        link.parent.mkdir(exist_ok=True)
        link.symlink_to(Path("..", workdir.name, "tensorboard"))


def serve(settings: Settings, port: int) -> None:
    """Run TensorBoard on all runs until Ctrl-C, for this machine alone.

    Raises InputError where there are no runs, FailureError where the port cannot be had.
    """
    runs = settings.trainer.runs
    found = sorted(folder.parent for folder in runs.glob("[!.]*/tensorboard"))
    if not found:
        raise InputError(f"{printable(runs)}: no runs to show yet: `moodbox-train fit --data DIR` makes one")
    for workdir in found:
        listed(workdir)
    complete = all((runs / LISTED / workdir.name).exists() for workdir in found)
    _require_free(port)
    sys.modules[NO_TENSORFLOW] = ModuleType(NO_TENSORFLOW)
    from tensorboard import default, program  # noqa: PLC0415  half a second

    board = program.TensorBoard(default.get_plugins())
    folder = runs / LISTED if complete else runs
    board.configure(logdir=os.fspath(folder), host=HOST, port=port)
    with contextlib.suppress(KeyboardInterrupt):  # how it is meant to end
        if board.main():
            raise FailureError(f"TensorBoard could not start on port {port}: try another --port")


def _require_free(port: int) -> None:
    try:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((HOST, port))
    except OverflowError:
        raise InputError(f"--port {port}: choose one from 1024 to 65535") from None
    except OSError as error:
        raise FailureError(f"port {port} cannot be used ({error.strerror}): try another --port") from None


def _cell(value: Any) -> str:
    shown = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return f"`{shown}`".replace("|", "\\|") if shown else ""
