"""The golden images of a bundle: pictures that are drawn here, and the scores that they must get wherever it is loaded.

Invariant: no photo is in a bundle. Whatever the bundle looks at is covered: pictures of the model's size and larger
ones and, where it looks at faces, a face in a picture and a picture that is a face as a whole.
"""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from trainer.views import Eye, Predictor

TOLERANCE = 0.01  # kernels of LiteRT differ between CPUs by float16 rounding: about 1e-3 in a probability
YELLOW, BLUE, BLACK, WHITE = (250, 210, 60), (60, 90, 170), (20, 20, 20), (255, 255, 255)
SKIN, SHADE, HAIR, EYE, LIP, TEETH = (
    (224, 172, 135), (184, 141, 111), (60, 40, 30), (70, 45, 30), (155, 60, 60), (245, 240, 235),
)  # fmt: skip
FINE = 4  # times larger is a portrait drawn, and then scaled down: soft edges, as in a photo

Colour = tuple[int, int, int]
Box = Callable[[float, float, float, float], tuple[int, int, int, int]]


def write(folder: Path, eye: Eye, predict: Predictor) -> None:
    """Draw the golden images into `folder`, and write down what the model says of them."""
    scores = {}
    for name, drawn in draw(eye.size, with_faces=eye.rules is not None).items():
        drawn.save(folder / name)
        scores[name] = [round(float(score), 6) for score in predict(eye(folder / name)).scores]
    expected = {"tolerance": TOLERANCE, "scores": scores}
    (folder / "expected.json").write_text(json.dumps(expected, indent=2, allow_nan=False) + "\n")


def draw(size: int, *, with_faces: bool = False) -> dict[str, Image.Image]:
    """Draw the images: three at model size, one that is larger and not square, to cover the resizing, and faces."""
    scenes = {
        "happy.png": _smiley(size, size, YELLOW, corners_up=True),
        "sad.png": _smiley(size, size, BLUE, corners_up=False),
        "gradient.png": _gradient(size),
        "large.png": _smiley(2 * size + 37, size + 101, WHITE, corners_up=True),
    }
    if not with_faces:
        return scenes
    portraits = {
        "portrait_happy.png": portrait(300, smiles=True),
        "portrait_sad.png": portrait(300, smiles=False),
        "face.png": portrait(300, smiles=True).resize((48, 48), Image.Resampling.BOX),
    }
    return scenes | portraits


def portrait(side: int, *, smiles: bool) -> Image.Image:
    """Draw head and shoulders of a person, `side` pixels square, that a face detector takes for one."""
    large = side * FINE
    image = Image.new("RGB", (large, large), (150, 170, 185))
    pen = ImageDraw.Draw(image)
    box = _scaled(large, large)

    def disc(x: float, y: float, wide: float, high: float, colour: Colour) -> None:
        pen.ellipse(box(x - wide, y - high, x + wide, y + high), colour)

    pen.rectangle(box(0.41, 0.7, 0.59, 1), SHADE)
    disc(0.5, 1.08, 0.42, 0.25, (70, 80, 120))
    disc(0.5, 0.4, 0.27, 0.33, HAIR)
    disc(0.5, 0.48, 0.22, 0.3, SKIN)
    for x in (0.41, 0.59):
        pen.arc(box(x - 0.055, 0.355, x + 0.055, 0.42), 200, 340, HAIR, large // 70)
        disc(x, 0.43, 0.045, 0.022, TEETH)
        disc(x, 0.43, 0.02, 0.021, EYE)
        disc(x, 0.43, 0.009, 0.01, BLACK)
    pen.polygon([round(v * large) for v in (0.5, 0.44, 0.47, 0.565, 0.53, 0.565)], SHADE)
    _mouth(pen, box, large, smiles=smiles)
    soft = image.filter(ImageFilter.GaussianBlur(FINE * side / 150))
    return soft.resize((side, side), Image.Resampling.LANCZOS)


def _mouth(pen: ImageDraw.ImageDraw, box: Box, large: int, *, smiles: bool) -> None:
    if smiles:
        pen.chord(box(0.41, 0.56, 0.59, 0.7), 10, 170, LIP)
        pen.chord(box(0.43, 0.585, 0.57, 0.665), 15, 165, TEETH)
    else:
        pen.arc(box(0.43, 0.63, 0.57, 0.73), 200, 340, LIP, large // 55)


def _scaled(width: int, height: int) -> Box:
    """Return a function that turns shares of a picture's sides into pixels."""
    return lambda left, top, right, bottom: (
        int(left * width), int(top * height), int(right * width), int(bottom * height),
    )  # fmt: skip


def _smiley(width: int, height: int, colour: Colour, *, corners_up: bool) -> Image.Image:
    face = Image.new("RGB", (width, height), (120, 160, 120))
    pen, box = ImageDraw.Draw(face), _scaled(width, height)
    pen.ellipse(box(0.1, 0.1, 0.9, 0.9), colour, BLACK, max(1, width // 60))
    pen.ellipse(box(0.3, 0.3, 0.4, 0.45), BLACK)
    pen.ellipse(box(0.6, 0.3, 0.7, 0.45), BLACK)
    mouth, angles = (box(0.3, 0.4, 0.7, 0.75), (20, 160)) if corners_up else (box(0.3, 0.6, 0.7, 0.95), (200, 340))
    pen.arc(mouth, *angles, fill=BLACK, width=max(1, width // 30))
    return face


def _gradient(size: int) -> Image.Image:
    ramp = np.linspace(0, 255, size).astype(np.uint8)
    return Image.fromarray(np.stack(np.broadcast_arrays(ramp, ramp[:, np.newaxis], ramp[::-1]), axis=-1))
