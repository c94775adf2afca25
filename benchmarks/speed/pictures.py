"""The photos that are measured on: drawn here, so that everybody has the same ones."""

import io
import os
from pathlib import Path

import numpy as np
from PIL import Image

from trainer import golden

KINDS = {"640x480": (640, 480), "12 MP": (4000, 3000), "face 256": (256, 256)}
DRAWN = 12  # different ones of each kind; the rest are these, each with bytes of its own


def drawn(kind: str) -> list[bytes]:
    """Return JPEG files of one kind: a person before a wall whose texture costs the decoder what a photo's does."""
    wide, high = KINDS[kind]
    return [_photo(wide, high, number) for number in range(DRAWN)]


def _photo(wide: int, high: int, number: int) -> bytes:
    random = np.random.default_rng(number)
    coarse = Image.fromarray(random.integers(70, 180, (high // 40, wide // 40, 3), np.uint8))
    wall = np.asarray(coarse.resize((wide, high), Image.Resampling.BICUBIC)).astype(np.float32)
    photo = Image.fromarray(np.clip(wall + random.normal(0, 4, (high, wide, 1)), 0, 255).astype(np.uint8))
    side = min(wide, high) if wide == high else round(high * random.uniform(0.4, 0.9))
    portrait = golden.portrait(min(side, 480), smiles=number % 2 == 0).resize((side, side))
    photo.paste(portrait, (int(random.integers(0, wide - side + 1)), high - side))
    file = io.BytesIO()
    photo.save(file, "JPEG", quality=88)
    return file.getvalue()


def drop(folder: Path, files: list[bytes], count: int) -> None:
    """Write `count` files, no two of which have the same bytes: a comment at their end differs."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        data = files[number % len(files)]
        (folder / f"photo-{number:06}.jpg").write_bytes(data + f"{number}".encode())
    os.sync()  # what was written before is not for the programs that are measured to make durable
