"""`moodbox-train explain`: what a model makes of a photo, in words and as a picture.

Invariant: a photo goes the way that it would go in the daemon: same decoder, same model file, same decision. A bad file
costs a line, and the others go on.
"""

import itertools
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance

from trainer import faces, images, photos, runs, sheet, thumbnails
from trainer.bundle import Bundle, Decision, decide
from trainer.errors import FailureError
from trainer.measuring import opened
from trainer.output import write
from trainer.progress import line, printable
from trainer.settings import Settings
from trainer.views import Eye, Judged, Predictor, Scores

CHANGES: tuple[tuple[str, Callable[[Image.Image], Image.Image]], ...] = (
    ("mirrored", lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)),
    ("in grey", lambda image: image.convert("L").convert("RGB")),
    ("brighter", lambda image: ImageEnhance.Brightness(image).enhance(1.25)),
    ("darker", lambda image: ImageEnhance.Brightness(image).enhance(0.75)),
    ("cropped to its middle", lambda image: image.resize(image.size, box=_middle(image))),
)
MOST_SCORES = 5
STEM_BYTES = 200  # of a file's name: the rest of 255 is for what is added


@dataclass(frozen=True)
class Explained:
    """A photo as the model saw it, and what it made of it.

    `changed` has, for each change, the decision and the score of the class that was answered without it.
    """

    picture: images.Picture
    judged: Judged
    decision: Decision
    changed: tuple[tuple[str, Decision, float], ...]


def explain(settings: Settings, files: Sequence[Path], number: int | None) -> None:
    """Print and draw what a bundle, the champion by default, makes of each file.

    Raises InputError and BundleError; FailureError, at the end, where files could not be used.
    """
    bundle = opened(settings, number)
    eye, predict, explainer = bundle.eye(), bundle.predictor(), thumbnails.explainer(bundle)
    bad = 0
    name = f"bundle {bundle.manifest.number}"
    with runs.opened(settings.trainer.runs / "explain", name, datetime.now(UTC), resume=False) as folder:
        for file in files:
            try:
                data = read(file, settings.tray.max_file_bytes)
                seen = look(bundle, eye, predict, data, settings.tray.max_pixels)
                shown = images.decode(data, size=sheet.SIDE, max_pixels=settings.tray.max_pixels)
            except (images.ImageError, OSError, ValueError) as error:
                why = (error.strerror if isinstance(error, OSError) else None) or error
                line(f"{printable(file)}: {printable(why)}")
                bad += 1
                continue
            write("\n".join(told(bundle, file, seen)))
            write(f"  drawn: {printable(draw(bundle, file, seen, shown, explainer, folder))}")
    if bad:
        raise FailureError(f"{bad} of {len(files)} files could not be used: see above")


def read(file: Path, most: int) -> bytes:
    """Return a file's bytes; a link that somebody names is followed. Raises OSError, ValueError."""
    os.stat(file)  # FileNotFoundError says more than "not a regular file"
    if file.is_dir():
        raise ValueError("a folder: name the photos in it")
    return photos.read_bytes(Path(os.path.realpath(file)), most)


def look(bundle: Bundle, eye: Eye, predict: Predictor, data: bytes, max_pixels: int) -> Explained:
    """Decode and predict a photo, as it is and changed. Raises ImageError."""
    picture = eye(data, max_pixels)
    judged = predict(picture)
    decision = decide(bundle.manifest, judged.scores.tolist())
    answered = bundle.manifest.class_names.index(decision.label)
    changed = []
    for name, change in CHANGES:
        after = predict(_changed(picture, change)).scores
        changed.append((name, decide(bundle.manifest, after.tolist()), float(after[answered])))
    return Explained(picture, judged, decision, tuple(changed))


def _changed(picture: images.Picture, change: Callable[[Image.Image], Image.Image]) -> images.Picture:
    """Return the picture as if its file were changed so."""
    detail = None if picture.detail is None else np.array(change(Image.fromarray(picture.detail)))
    return replace(picture, pixels=np.array(change(Image.fromarray(picture.pixels))), detail=detail)


def told(bundle: Bundle, file: Path, seen: Explained) -> list[str]:
    """Return what is printed about a photo."""
    changed = (
        f"{name} {score:.2f}{'' if after.label == seen.decision.label else f' (now {after.label})'}"
        for name, after, score in seen.changed
    )
    return [
        f"{printable(file)}: {seen.decision.label}",
        f"  scores: {scores_of(bundle, seen.judged.scores)}",
        *views_of(bundle, seen),
        f"  {seen.picture.format}, {seen.picture.width} x {seen.picture.height}; the model saw {_taken(bundle, seen)}",
        f"  score of {seen.decision.label} if it were {', '.join(changed)}",
    ]


def scores_of(bundle: Bundle, scores: Scores) -> str:
    """Return the highest scores, and the threshold where there is one."""
    threshold = bundle.manifest.threshold
    from_on = "" if threshold is None else f"; {bundle.manifest.class_names[1]} from {threshold:g} on"
    return _best(bundle, scores) + from_on


def views_of(bundle: Bundle, seen: Explained) -> list[str]:
    """Return what each view says, where the bundle looks at faces, too."""
    if bundle.manifest.faces is None:
        return []
    boxes = seen.judged.boxes
    if boxes is None:
        return [f"  faces: not looked for: the scene alone is {bundle.manifest.faces.sure:.0%} sure, or more"]
    count = f"{len(boxes) or 'no'} {'faces' if len(boxes) > 1 else 'face'} found"
    what = "taken for a face as a whole" if seen.judged.is_face else count
    said = (f"{name}: {_best(bundle, scores)}" for name, scores in seen.judged.views.items())
    return [f"  {what}; {'; '.join(said)}"]


def _best(bundle: Bundle, scores: Scores) -> str:
    best = np.argsort(-scores, kind="stable")[:MOST_SCORES]
    return ", ".join(f"{bundle.manifest.class_names[c]} {scores[c]:.2f}" for c in best)


def draw(
    bundle: Bundle, file: Path, seen: Explained, shown: images.Picture, explainer: thumbnails.Explainer, folder: Path
) -> Path:
    """Draw a sheet about the photo into `folder` and return its path."""
    answered = bundle.manifest.class_names.index(seen.decision.label)
    overlays, why = explainer([seen.picture.pixels], [answered])
    photo = thumbnails.boxed(sheet.upright(shown), seen.judged.boxes or (), shown.width)
    panels = (
        sheet.Panel(f"the photo: {shown.format}, {shown.width} x {shown.height}", photo),
        *_seen_panels(bundle, seen, overlays[0] if overlays else None, why or ""),
    )
    rows = [("unchanged", seen.decision.score, seen.decision.label)]
    rows += [(name, score, after.label) for name, after, score in seen.changed]
    title = f"{seen.decision.label}: {printable(file.name)}"
    path = free(folder, file)
    said = "\n".join([scores_of(bundle, seen.judged.scores), *(text.strip() for text in views_of(bundle, seen))])
    sheet.draw(path, title, said, panels, rows)
    return path


def _seen_panels(
    bundle: Bundle, seen: Explained, overlay: NDArray[np.uint8] | None, why: str
) -> tuple[sheet.Panel, sheet.Panel]:
    """Return what the model saw, and what spoke for its answer in it, where a scene was judged."""
    caption, rules = f"what the model saw: {_taken(bundle, seen)}", bundle.manifest.faces
    if rules is not None and seen.judged.is_face:
        crop = np.repeat(faces.whole(seen.picture, rules)[..., np.newaxis], 3, axis=2)
        return sheet.Panel(caption, crop), sheet.Panel("", None, "no Grad-CAM: no scene was judged")
    if overlay is None:
        return sheet.Panel(caption, seen.picture.pixels), sheet.Panel("", None, f"no Grad-CAM: {printable(why)}")
    spoke = sheet.Panel("Grad-CAM of the scene: red spoke for it", overlay)
    return sheet.Panel(caption, seen.picture.pixels), spoke


def _taken(bundle: Bundle, seen: Explained) -> str:
    """Return the size of the pixels that were judged."""
    rules = bundle.manifest.faces
    if rules is not None and seen.judged.is_face:
        return f"{rules.size} x {rules.size}, grey"
    return f"{bundle.manifest.input_size} x {bundle.manifest.input_size}"


def free(folder: Path, file: Path) -> Path:
    """Return a path for the sheet of `file` that no other file's sheet has."""
    stem = os.fsdecode(os.fsencode(file.stem)[:STEM_BYTES])
    names = itertools.chain([stem], (f"{stem}-{i}" for i in itertools.count(2)))
    paths = (folder / f"{name}.png" for name in names)
    return next(path for path in paths if not path.exists())


def _middle(image: Image.Image) -> tuple[float, float, float, float]:
    """Return the box that leaves a tenth out on each side."""
    width, height = image.size
    return (0.1 * width, 0.1 * height, 0.9 * width, 0.9 * height)
