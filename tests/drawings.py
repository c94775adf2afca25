"""Folders of drawn photos for tests: each class has a colour of its own, each photo a noise of its own."""

from pathlib import Path

import numpy as np
from PIL import Image

COLOURS = {"happy": (230, 190, 60), "sad": (60, 80, 160), "calm": (60, 160, 80)}


def photo(label: str, number: int, size: tuple[int, int] = (48, 40)) -> Image.Image:
    """Draw photo `number` of a class; the same arguments give the same pixels."""
    noise = np.random.default_rng([number, *label.encode()]).integers(-40, 40, (size[1], size[0], 3))
    return Image.fromarray(np.clip(noise + COLOURS.get(label, (128, 128, 128)), 0, 255).astype(np.uint8))


def folder(root: Path, labels: tuple[str, ...] = ("happy", "sad"), count: int = 40) -> Path:
    """Draw `count` photos of each class below `root/<class>/`, JPEG and PNG by turns."""
    for label in labels:
        (root / label).mkdir(parents=True)
        for number in range(count):
            suffix = ("jpg", "png")[number % 2]
            photo(label, number).save(root / label / f"{label}{number}.{suffix}")
    return root
