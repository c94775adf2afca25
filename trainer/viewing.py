"""Which views a training takes: those that the settings name, else what the photos themselves say.

Invariant: the same photos give the same answer; looking costs seconds, however many photos there are.
"""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from trainer import faces, images
from trainer.dataset import class_folders
from trainer.manifest import FaceRules
from trainer.photos import Rules, read_bytes, walk
from trainer.progress import line
from trainer.quiet import native_stderr
from trainer.settings import Settings

SAMPLE = 200  # photos that are looked at
MOST = 0.5  # the share of photos from which on faces are worth a view of their own
SIZE = 32  # pixels of a scene that nobody looks at


def settled(settings: Settings) -> Settings:
    """Return the settings with the views that training takes. Raises DatasetError."""
    if settings.trainer.views:
        return settings
    with native_stderr():  # LiteRT names its delegate, once per process
        share = share_with_faces(settings)
    chosen = ("scene", "faces") if share >= MOST else ("scene",)
    what = "faces are looked at, too" if share >= MOST else "only whole pictures are looked at"
    line(f"faces: found in {share:.0%} of a sample of the photos, so {what} (trainer.views)")
    return _with_views(settings, chosen)


def scenes_alone(settings: Settings) -> Settings:
    """Return the settings with one view."""
    return _with_views(settings, ("scene",))


def _with_views(settings: Settings, chosen: tuple[str, ...]) -> Settings:
    return settings.model_copy(update={"trainer": settings.trainer.model_copy(update={"views": chosen})})


def share_with_faces(settings: Settings) -> float:
    """Return the share of SAMPLE photos, evenly from all, in which there are faces; 0 where none can be read."""
    rules = Rules(settings.tray.ignore, settings.tray.max_file_bytes)
    root = settings.dataset.root
    paths = [root / path for name in class_folders(root, rules)[0] for path in walk(root, name, rules)]
    chosen = paths[:: max(1, -(-len(paths) // SAMPLE))]
    cores = len(os.sched_getaffinity(0))
    parts = [chosen[i::cores] for i in range(cores)]
    with ThreadPoolExecutor(cores) as pool:
        found = [has for part in pool.map(lambda p: list(_looked(p, rules, settings.tray.max_pixels)), parts)
                 for has in part]  # fmt: skip
    return sum(found) / len(found) if found else 0.0


def _looked(paths: Sequence[Path], rules: Rules, max_pixels: int) -> Iterator[bool]:
    """Yield whether there is a face, of each picture that can be read; small ones are searched here, too."""
    asked = FaceRules()
    finder = faces.Finder(faces.shipped_detector(), asked)
    for path in paths:
        try:
            data = read_bytes(path, rules.max_file_bytes)
            picture = images.decode(data, size=SIZE, detail=asked.detail, max_pixels=max_pixels)
        except (images.ImageError, OSError, ValueError):
            continue
        yield bool(finder.search(picture))
