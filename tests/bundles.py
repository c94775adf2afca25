"""Tiny bundles for tests, made without TensorFlow: the class is the colour channel that is brightest on the whole.

TINY_2 and TINY_3 are model.tflite files (zlib, base64) of: mean over 32 x 32 pixels, times 0.04, softmax over the first
two or three channels; float16 weights, float32 in and out. Class 0 is red, class 1 green, class 2 blue. The 0.04 (how
steep it is) and the 32 can be patched, so that models differ.
"""

import base64
import io
import json
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from trainer import bundle
from trainer.images import PREPROCESSING_VERSION, Picture

SIZE, STEEP = 32, 0.04
COLOURS = ((200, 60, 40), (60, 200, 40), (60, 40, 200))

TINY_2 = (
    "eNp9VL9vUlEUPpRXpOWlJfqCoCQyaFITgwViJ3+RWhMSaE1tGjck8Jq8RB4EHqZu/gXGyTg4Ojg4dGAgTg7GGIfGoYOjY006OqjRXr9z33nw"
    "6OAjH/e+w/m+8+MebpaItu5WSxblKEtpsihJJmxxMrAn2Hy8BoYRog/AN4MoSv7Dawu4AsBMe0qpedmfAVY31rfXNu9XNtbrtbWt8p3yVpkO"
    "4DMnPhmgZ7cGTbtV7/bsptN3Om69P+h2Oz1P52HqXOJ6P9FtO269N3A9p23XH9s9ZlECdhP5GcAR9l+AT8B7YMS5Ac8BT3SeHSvF60Pmaf2F"
    "cawksKQrjGlbTDiQpu9R9g96ZWjujYP9d+1f7UvcjxnxZU4xXyzkl4l+SyzOcadbWGk0mzvdUpFOK9/O8Qr5wjX2DZ63f5TaA4bACLgpvhzv"
    "wmXfh9dtscclP45/CP8jYBH7WrWymVvtuOiTZ7fy2sfS7IVxFVzjgtj5vJNwsoB0xK+l3XBckrq+Ai+BeyGdc6KTEJ2sn94crzkK5mXSS6Kn"
    "tyLSI15ngc+ow9ejeFK0uZbhX6UCn6jkwCvcVbiGRKgGPOcDDeb+FA1DNEnsRPPjeZ+XHpryWzTUz3Cu/JwCXuHlOnAos7UL3JYYL445N4ok"
    "5WzZP81Vw84xKi0bw+s9oZA+r/sneDGpYQQ7a9QaXm3wqDTFmVHTnFnhHMnM1eyGG47Dda2c4BjCyalwnKKvL5yPwrHEV+4A/f5gileY4hGl"
    "9N1yViYt6GAqxLcm5zJzEV9voJeS3K/qC8Lji8FxW07T7k9qZ+20Zv9fO5h5Q3/8993QfzoXmlO2VYHlMQdnjHwyvmbmh9xfPN+mnjv/n2GO"
    "7wxaMpHPosyVKeco/Yr9A/myyY8="
)
TINY_3 = (
    "eNp9VD1oU1EUPvlpTJNHGjTERAtmcKggMT+YSdBQKwSSVmoonYwheYUH9iUkL1I3J2cncXCSDh0cOjh0cOikIiIODo6OFTpJBwft9Tv3nZe8"
    "ZOgNX+59553vu+ece95dJKLmvXo5RTlapAylKEkGbFEKY02wudgF3geIvgBHYaIQuYPnLnAdgJn2lVIxWV8AltdWN1bWH9TWVluNlWb1brVZ"
    "pe/wmRefLDAwu6OO2W31B2bHGlo9uzUc9fu9gaPjMHQsUb2e6G5bdmswsh1r22w9MQfMojjsKcRnACdYfwM+AYfAAccGvAAc0Xl+qhTPjwA3"
    "58R4rySwpDOMaFtEOJCmXyH292oV1tyHm28Kh+mPP7keQfFlTilfKuYLRL9lL45xq1+stDudrX65RDHl2nm/Yr54k329sftXqT3gLbAPVMT3"
    "PHDlmuvjnzfkfVTi5DiOwDsGFrBu1GvrueWejXo5ZjevfVKanRhnw7kmxM7nngy4Nc0E3Jy225ZNkt8P4BVw36dzSXTiorPohjfPc468vpnU"
    "lOjZ7YDUiuc54DPycPUomhRtzuXdP6U8n5DEwDPclT+HuC8HjMueBnP/iEZYNEnsRLFx38ekhoa8C/nq6Y+VxzngNR5u8XchPbYD3JE9Xp5y"
    "bBRIyhmzf4azhp33qHVNNLHzlHz6vN/XGV5EcjiAnTUabacxelye4gTVNGdOOMfSew2zbc/uU5nhhIWTU/59SpoTEnwQTkp85S7Qz5tTvOIU"
    "jyit75iL0mleBdM+fmpyLsGr+NuDXlpiv6EvCocvCMvuWh1zODkX1s5o9tnaXs+H9c993vF92zlfn7KtDhTGHJwx4sm6mtkTuce4vw3dd+6X"
    "YYzvDloyEM+C9JUh5yj1ivwHch/JRQ=="
)


def tflite(classes: int = 2, steep: float = STEEP, size: int = SIZE) -> bytes:
    model = zlib.decompress(base64.b64decode(TINY_2 if classes == 2 else TINY_3))
    for batch in (1, -1):
        was, now = (np.array([batch, side, side, 3], np.int32).tobytes() for side in (SIZE, size))
        model = model.replace(was, now)
    return model.replace(np.float16(STEEP).tobytes(), np.float16(steep).tobytes())


def scores(colour: tuple[int, int, int], classes: int = 2, steep: float = STEEP) -> list[float]:
    powers = [math.exp(steep * channel) for channel in colour[:classes]]
    return [power / sum(powers) for power in powers]


def png(colour: tuple[int, int, int], size: int = SIZE) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((size, size, 3), colour, np.uint8)).save(file, "PNG")
    return file.getvalue()


def shown(pixels: Any) -> Picture:
    """Return pixels as a decoded picture that is all scene."""
    return Picture(pixels, 1000, 1000, "PNG", pixels)


def stage(folder: Path, classes: int = 2, steep: float = STEEP, size: int = SIZE) -> Path:
    """Write the files of a bundle, without its manifest, as an export does."""
    (folder / "golden").mkdir(parents=True)
    (folder / "model.tflite").write_bytes(tflite(classes, steep, size))
    (folder / "model.keras").write_bytes(b"stands for a keras file")
    expected = {f"{i}.png": scores(colour, classes, steep) for i, colour in enumerate(COLOURS[:classes])}
    for name, colour in zip(expected, COLOURS, strict=False):
        (folder / "golden" / name).write_bytes(png(colour, SIZE * 2))
    (folder / "golden" / "expected.json").write_text(json.dumps({"tolerance": 0.01, "scores": expected}))
    return folder


def draft(classes: int = 2, **fields: Any) -> bundle.Manifest:
    names = ("happy", "sad") if classes == 2 else ("blue", "green", "red")[:classes]
    defaults: dict[str, Any] = {
        "number": 1,
        "class_names": names,
        "input_size": SIZE,
        "preprocessing_version": PREPROCESSING_VERSION,
        "threshold": 0.5 if classes == 2 else None,
        "architecture": "tiny",
        "metrics": {"accuracy": 1.0},
        "dataset": bundle.DatasetSummary(hash="0" * 64, counts={"train": dict.fromkeys(names, 3)}),
        "seed": 0,
        "versions": {"moodbox": "0.1.0"},
        "created": "2026-01-02T03:04:05+00:00",
        "files": {},
    }
    return bundle.Manifest(**(defaults | fields))


def publish(models: Path, folder: Path, classes: int = 2, steep: float = STEEP, **fields: Any) -> int:
    """Stage in `folder` and publish; not yet the champion."""
    staged = stage(folder, classes, steep, fields.get("input_size", SIZE))
    return bundle.publish(models, staged, draft(classes, **fields))
