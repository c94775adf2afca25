"""What can be said about a dataset once it was scanned, in lines for a person and as a report for a program.

Invariant: pure: nothing is read or written here; the report holds every file that a shortened list leaves out.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from trainer.dataset import Dataset, Photo
from trainer.prepared import Origin
from trainer.suspects import Suspect

KINDS = {
    "contradiction": "in two classes",
    "broken": "without a picture in them",
    "unreadable": "that are not read",
    "bridge": "between two splits",
    "beside": "beside the class folders",
    "double": "that are exact copies",
}  # in the order in which they are shown
SUFFIXES = {
    ".jpg": "JPEG", ".jpeg": "JPEG", ".jpe": "JPEG", ".jfif": "JPEG", ".png": "PNG", ".gif": "GIF", ".bmp": "BMP",
    ".webp": "WEBP", ".tif": "TIFF", ".tiff": "TIFF", ".avif": "AVIF", ".heic": "HEIF", ".heif": "HEIF",
}  # fmt: skip
EVEN, LOPSIDED = 1.5, 10.0  # times as many photos in the largest class as in the smallest
BAD_LUCK = 3.0  # deviations from the share that was asked for; more is no accident


@dataclass(frozen=True)
class Findings:
    """A scanned dataset, what each photo's file was (by sha256), and the size in pixels that the network takes.

    `with_faces`: faces were looked for.
    """

    data: Dataset
    origins: Mapping[str, Origin]
    size: int
    with_faces: bool = False

    def lines(self) -> Iterator[str]:
        """Say what there is about sizes, formats, copies, splits and classes."""
        yield from self.size_lines()
        yield self.format_line()
        yield from self.face_lines()
        yield from self.copy_lines()
        yield from self.share_lines()
        yield from self.balance_lines()

    @property
    def quartiles(self) -> tuple[int, int, int]:
        """The quartiles of the shorter sides, in pixels."""
        low, middle, high = np.percentile([min(o.width, o.height) for o in self._origins()], [25, 50, 75])
        return int(low), int(middle), int(high)

    @property
    def scenes(self) -> tuple[Photo, ...]:
        """The photos that the scene's network judges: not those that are faces as a whole."""
        return tuple(p for p in self.data.photos if not self.origins[p.sha256].is_face)

    @property
    def small(self) -> list[str]:
        """The photos that are smaller than what the network takes, on their shorter side."""
        return [p.path for p in self.scenes if min(self.origins[p.sha256][:2]) < self.size]

    @property
    def misnamed(self) -> list[str]:
        """The photos whose names say another format than their bytes."""
        return [p.path for p in self.data.photos if _suffix(p) not in ("", self.origins[p.sha256].format)]

    def size_lines(self) -> Iterator[str]:
        """Say how large the photos are."""
        low, middle, high = self.quartiles
        yield f"sizes: half of the photos have a shorter side of {low} to {high} px, the middle one has {middle}"
        if self.small:
            share = len(self.small) / len(self.data.photos)
            yield (
                f"  {counted(len(self.small), 'photo')} ({share:.0%}) {_are(len(self.small))} smaller than "
                f"the {self.size} px that the network sees, and will be enlarged"
            )

    def format_line(self) -> str:
        """Say which formats there are."""
        found = Counter(origin.format for origin in self._origins())
        text = "formats: " + ", ".join(f"{count} {name}" for name, count in found.most_common())
        if count := len(self.misnamed):
            it = "it is" if count == 1 else "they are"
            text += f"; {counted(count, 'file')} named as another format than {it}: no harm, the bytes count"
        return text

    def face_lines(self) -> Iterator[str]:
        """Say in how many photos there are faces, where they were looked for."""
        if not self.with_faces:
            return
        scenes = [self.origins[photo.sha256] for photo in self.scenes]
        found = sum(origin.faces > 0 for origin in scenes)
        if scenes:
            yield f"faces: found in {found:,} of {counted(len(scenes), 'photo')} ({found / len(scenes):.0%})"
        if whole := len(self.data.photos) - len(scenes):
            yield f"faces as a whole: {counted(whole, 'small picture')}, which only the network for faces learns from"
            yield "  their labels are not judged here"

    def copy_lines(self) -> Iterator[str]:
        """Say what was found twice."""
        kinds = Counter(unused.kind for unused in self.data.unused)
        if count := kinds["double"]:
            yield f"exact copies: {counted(count, 'file')}, not used: one of each is enough"
        if groups := self.data.twins:
            count = sum(map(len, groups))
            number = counted(len(groups), "group")
            yield f"near duplicates: {counted(count, 'photo')} in {number}, used, each group within one split"
        if count := kinds["contradiction"]:
            yield f"contradictions: {counted(count, 'file')}, not used: the same photo, or nearly, is in two classes"
        if count := kinds["bridge"]:
            yield f"left out: {counted(count, 'photo')}, near duplicates of photos in different splits"

    def share_lines(self) -> Iterator[str]:
        """Say where the splits differ from what the settings ask for."""
        total = len(self.data.photos)
        for split, asked in (("validation", self.data.fractions.validation), ("test", self.data.fractions.test)):
            share = len(self.data.of(split)) / total
            if abs(share - asked) > BAD_LUCK * math.sqrt(asked * (1 - asked) / total):
                yield (
                    f"splits: {share:.0%} of the photos are for {split}, the settings ask for {asked:.0%}: a photo "
                    "stays in its split, only new ones follow the settings"
                )

    def balance_lines(self) -> Iterator[str]:
        """Say whether the classes are of one size."""
        totals = Counter(photo.label for photo in self.data.photos)
        sizes = sorted((totals[label], name) for label, name in enumerate(self.data.class_names))
        (fewest, small), (most, large) = sizes[0], sizes[-1]
        if len(sizes) == 1 or not fewest:
            return  # the error at the end says it
        ratio = most / fewest
        if ratio <= EVEN:
            yield "balance: fine"
        elif ratio <= LOPSIDED:
            yield f"balance: {large!r} has {ratio:.1f} times as many photos as {small!r}: fit weighs the classes alike"
        else:
            yield (
                f"balance: {large!r} has {ratio:.0f} times as many photos as {small!r}: weighing cannot make up "
                f"for that, add photos to {small!r}"
            )

    def report(self, suspects: Sequence[Suspect] | None) -> dict[str, Any]:
        """Return all of it for report.json; `suspects` index `data.photos`, None: labels were not judged."""
        data = self.data
        return {
            "schema": 1,
            "folder": str(data.root),
            "photos": len(data.photos),
            "counts": data.counts(),
            "fractions": {"validation": data.fractions.validation, "test": data.fractions.test},
            "shorter_side_quartiles": self.quartiles,
            "network_size": self.size,
            "smaller_than_network": self.small,
            "formats": Counter(origin.format for origin in self._origins()),
            "misnamed": self.misnamed,
            "faces": {p.path: self.origins[p.sha256].faces for p in self.data.photos} if self.with_faces else None,
            "near_duplicates": data.twins,
            "unused": [{"path": u.path, "kind": u.kind, "reason": u.reason, "of": u.of} for u in data.unused],
            "suspects": None if suspects is None else [self._suspect(suspect) for suspect in suspects],
            "notes": data.notes,
        }

    def _suspect(self, suspect: Suspect) -> dict[str, Any]:
        names = self.data.class_names
        path = self.data.photos[suspect.index].path
        return {
            "path": path,
            "given": names[suspect.given],
            "likely": names[suspect.likely],
            "probability": round(suspect.probability, 4),
        }

    def _origins(self) -> list[Origin]:
        return [self.origins[photo.sha256] for photo in self.data.photos]


def _suffix(photo: Photo) -> str:
    return SUFFIXES.get(PurePosixPath(photo.path).suffix.lower(), "")


def counted(count: int, what: str) -> str:
    """Return "1 file" or "2,000 files"."""
    return f"{count:,} {what}" if count == 1 else f"{count:,} {what}s"


def _are(count: int) -> str:
    return "is" if count == 1 else "are"
