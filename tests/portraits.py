"""Folders of drawn people for tests: class happy smiles, class sad does not, each before a wall of their own."""

from pathlib import Path

import numpy as np
from PIL import Image

from trainer import golden

SIDE = 240


def photo(number: int, *, smiles: bool, side: int = SIDE) -> Image.Image:
    """Draw person `number` before a wall of their own; the same arguments give the same pixels."""
    random = np.random.default_rng([number, smiles])
    wall = Image.fromarray(random.integers(0, 256, (5, 5, 3), np.uint8)).resize((side, side), Image.Resampling.BICUBIC)
    person = golden.portrait(int(random.integers(side // 2, 2 * side // 3)), smiles=smiles)
    tint = np.asarray(person, np.float32) * random.uniform(0.8, 1.1, 3) + random.integers(-8, 8, (*person.size, 3))
    left, top = random.integers(0, side - person.width, 2)
    wall.paste(Image.fromarray(np.clip(tint, 0, 255).astype(np.uint8)), (int(left), int(top)))
    return wall


def folder(root: Path, count: int, names: tuple[str, str] = ("happy", "sad"), side: int = SIDE) -> Path:
    """Draw `count` people of each class below `root/<class>/`."""
    for name, smiles in zip(names, (True, False), strict=True):
        (root / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            photo(number, smiles=smiles, side=side).save(root / name / f"{name}{number}.png")
    return root
