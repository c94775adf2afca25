"""What looking at faces costs: the whole decision with both views against the scene alone, CPU per photo.

`python benchmarks/views.py` measures the model that ships on drawn 640x480 photos with one face each; `--photos DIR`
takes real ones, whose scenes it is sure of now and then. All is measured in turn, photo by photo, so that a busy
machine slows everything alike.
"""

import argparse
import io
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from trainer import bundle, golden, litert
from trainer.bundle import Bundle
from trainer.faces import Finder
from trainer.images import Picture
from trainer.views import Eye, FaceReader, Predictor

DRAWN, ROUNDS, MOST = 24, 5, 200
ALWAYS = 2.0  # no scene is so sure

Part = Callable[[int], object]


def main() -> None:
    top = argparse.ArgumentParser(description=__doc__)
    top.add_argument("--photos", type=Path, metavar="DIR", help=f"JPEG files to measure on, {MOST} at most")
    asked = top.parse_args()
    with tempfile.TemporaryDirectory() as models:
        bundle.install_shipped(Path(models))
        loaded = bundle.load(Path(models))
    files = [path.read_bytes() for path in sorted(asked.photos.rglob("*.jp*g"))[:MOST]] if asked.photos else drawn()
    if not files:
        raise SystemExit(f"{asked.photos}: no JPEG files there")
    show(files, *measure(loaded, files))


def drawn() -> list[bytes]:
    """Draw photos with a face somewhere, before a wall that is no smooth area for the decoder."""
    random, made = np.random.default_rng(0), []
    for number in range(DRAWN):
        wall = Image.fromarray(random.integers(90, 160, (480, 640, 3), np.uint8))
        photo = wall.resize((640, 480), box=(0, 0, 64, 48))
        portrait = golden.portrait(150 + 10 * number, smiles=number % 2 == 0)
        photo.paste(portrait, (int(random.integers(0, 640 - portrait.width)), int(random.integers(0, 100))))
        file = io.BytesIO()
        photo.save(file, "JPEG", quality=88)
        made.append(file.getvalue())
    return made


def parts_of(loaded: Bundle, files: list[bytes]) -> tuple[dict[str, Part], list[Picture], Finder]:
    rules, classes = loaded.manifest.faces, len(loaded.manifest.class_names)
    if rules is None:
        raise SystemExit("this model looks at scenes alone: there is nothing to compare")
    eye, small_eye, both = loaded.eye(), Eye(loaded.manifest.input_size), loaded.predictor()
    network = litert.Predictor(loaded.model, loaded.manifest.input_size, classes)
    face = litert.Predictor(loaded.face_model, rules.size, classes, channels=1)
    scene, find = Predictor(network), Finder(loaded.detector, rules)
    looking = FaceReader(Finder(loaded.detector, rules.model_copy(update={"sure": ALWAYS})), face)
    always = Predictor(network, looking)
    seen = [eye(data) for data in files]
    found = [find(picture) for picture in seen]
    parts: dict[str, Part] = {
        "scene alone": lambda i: scene(small_eye(files[i])),
        "both views": lambda i: both(eye(files[i])),
        "both views, faces always": lambda i: always(eye(files[i])),
        "  decode for the scene": lambda i: small_eye(files[i]),
        "  decode for both views": lambda i: eye(files[i]),
        "  judge the scene": lambda i: network(seen[i].pixels),
        "  find faces, cut them out": lambda i: find(seen[i]),
        "  read the faces": lambda i: looking(found[i]) if len(found[i].crops) else None,
    }
    return parts, seen, find


def measure(loaded: Bundle, files: list[bytes]) -> tuple[dict[str, list[float]], float, float]:
    """Return CPU seconds of each part for each photo and round, faces in a photo, the share of sure scenes."""
    parts, seen, find = parts_of(loaded, files)
    for call in parts.values():
        call(0)
    taken: dict[str, list[float]] = {name: [] for name in parts}
    for _ in range(ROUNDS):
        for index in range(len(files)):
            for name, call in parts.items():
                begun = time.process_time()
                call(index)
                taken[name].append(time.process_time() - begun)
    judge = loaded.predictor()
    sure = [judge(picture).boxes is None for picture in seen]
    return taken, statistics.mean(len(find(picture).crops) for picture in seen), statistics.mean(sure)


def show(files: list[bytes], taken: dict[str, list[float]], found: float, sure: float) -> None:
    print(f"{len(files)} photos, {found:.1f} faces in each, {sure:.0%} of the scenes sure alone; {ROUNDS} rounds")
    print("CPU per photo, one thread, mean")
    means = {name: statistics.mean(seconds) for name, seconds in taken.items()}
    for name, mean in means.items():
        print(f"{name:28} {1e3 * mean:6.2f} ms  {mean / means['scene alone']:5.2f}")


if __name__ == "__main__":
    main()
