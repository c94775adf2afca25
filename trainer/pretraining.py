"""Makes the weights of the face network that ship with the package: `python -m trainer.pretraining --help`.

Invariant: it learns from the pictures of one folder alone, all of them, and writes down which those were, so that no
later training takes one of them for a photo that was never seen.
"""

import argparse
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np

from trainer import durable, face_network, face_training, heads, prepared, progress, replay, train
from trainer.callbacks import EpochOrder
from trainer.dataset import Photo, open_dataset
from trainer.face_training import FaceExamples
from trainer.manifest import FaceRules
from trainer.settings import Settings, load

EPOCHS, PEAK, WEIGHT_DECAY, AVERAGED = 60, 3e-3, 5e-3, 0.998  # the last: of the moving average of the weights
SIZE = 64  # pixels of the scenes, which nobody looks at


def main(argv: list[str] | None = None) -> int:
    """Train, measure, and write the file; return the exit status."""
    asked = _parser().parse_args(argv)
    train.make_repeatable(0)
    with tempfile.TemporaryDirectory(dir=asked.out.parent) as scratch:
        shown, photos = faces_of(asked.data, Path(scratch))
        network = fit(shown)
        known = replay.prefixes([photo.sha256 for photo in photos])
        durable.replace(asked.out, face_network.packed(network, shown.class_names, known))
        if asked.validation is not None:
            report(network, faces_of(asked.validation, Path(scratch))[0])
    return 0


def _parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m trainer.pretraining", description=__doc__)
    top.add_argument("--data", type=Path, required=True, metavar="DIR", help="class folders of pictures with faces")
    top.add_argument("--validation", type=Path, metavar="DIR", help="class folders to measure on at the end")
    top.add_argument("--out", type=Path, required=True, metavar="FILE", help="where the weights go")
    return top


def faces_of(folder: Path, scratch: Path) -> tuple[FaceExamples, list[Photo]]:
    """Return the faces in all pictures of a folder, whichever split a training would put them into."""
    settings: Settings = load(options={"dataset": {"root": str(folder)}, "trainer": {"runs": str(scratch)}}).settings
    cache = prepared.Cache(scratch / "prepared", SIZE, settings.tray.max_pixels, FaceRules())
    data = open_dataset(settings, cache.add, record=False)
    photos = data.in_order()
    shown = face_training.examples(cache, photos, data.class_names, scratch / folder.name, FaceRules())
    return replace(shown, crops=np.array(shown.crops)), photos


def fit(shown: FaceExamples) -> keras.Model:
    """Train from scratch; return the network with the moving average of its weights."""
    classes, rows = len(shown.class_names), np.arange(len(shown.owners))
    network = face_network.build(FaceRules().size, classes)
    batches = shown.batches(rows, face_training.BATCH, seed=0)
    steps = EPOCHS * len(batches)
    rate = keras.optimizers.schedules.CosineDecay(
        PEAK / 30, steps - steps // 10, 0.0, warmup_target=PEAK, warmup_steps=steps // 10
    )
    optimizer = keras.optimizers.AdamW(
        rate, weight_decay=WEIGHT_DECAY, clipnorm=1.0, use_ema=True, ema_momentum=AVERAGED
    )
    heads.compile_for(network, classes, optimizer, label_smoothing=0.1)
    network.fit(batches, epochs=EPOCHS, shuffle=False, verbose=0, callbacks=[EpochOrder(batches), _Said()])
    optimizer.finalize_variable_values(network.trainable_variables)
    settle_statistics(network, shown)
    return network


def settle_statistics(network: keras.Model, shown: FaceExamples) -> None:
    """Have batch normalisation measure crops that nobody changed, by the averaged weights, as they come in serving."""
    clean = np.random.default_rng(0).permutation(len(shown.owners))
    batches = shown.batches(clean, face_training.BATCH)
    for index in range(len(batches)):
        network(batches[index][0], training=True)


class _Said(keras.callbacks.Callback):  # type: ignore[misc]  # Keras has no types
    """A line for each epoch."""

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Say how well it goes."""
        progress.line(f"epoch {epoch + 1}/{EPOCHS}  loss {logs['loss']:.3f}  accuracy {logs['accuracy']:.3f}")


def report(network: keras.Model, shown: FaceExamples) -> None:
    """Print how many pictures that it never saw it gets right."""
    photos = np.arange(len(shown.labels))
    scores = face_training.by_photo(network, shown, photos)
    seen = ~np.isnan(scores[:, 0])
    right = int((scores[seen].argmax(axis=1) == shown.labels[seen]).sum())
    sys.stdout.write(f"right on {right} of {int(seen.sum())} pictures that it never saw: {right / seen.sum():.1%}\n")


if __name__ == "__main__":
    sys.exit(main())
