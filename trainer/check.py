"""The command `check`: looks through a dataset and says what a colleague would, and with `--fix` moves things aside.

Invariant: without `--fix` nothing is written into the dataset's folder but the record of the split, with it nothing is
deleted. What the scan found is printed before TensorFlow is loaded, and no list on the terminal is longer than LONGEST:
all of it is in report.json.
"""

import dataclasses
import json
import shlex
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType

from rich.console import Console
from rich.table import Table
from rich.text import Text

from trainer import contact_sheet, durable, prepared, quiet, set_aside, viewing
from trainer.contact_sheet import Tile
from trainer.dataset import Dataset, class_folders, open_dataset
from trainer.errors import FailureError
from trainer.findings import KINDS, Findings, counted
from trainer.manifest import FaceRules
from trainer.output import LONGEST, write
from trainer.photos import Rules
from trainer.prepared import Origin
from trainer.progress import line, printable
from trainer.set_aside import Move
from trainer.settings import Settings
from trainer.suspects import FOLDS, Suspect

OWN_SIZES = {"efficientnet_lite0": 224, "tutorial_cnn": 256}  # of the architectures that need no TensorFlow to tell
SURE = 0.9  # the probability of another class from which on --fix moves a photo; of these, about two of three are wrong
OF_A_KIND = 8  # lines about files that are not used for the same kind of reason
MANY = 0.25  # of all labels; so many are not a few slips
MOST_MOVED = 0.1  # of a class's photos, as suspects, at once


def check(settings: Settings, *, fix: bool) -> None:
    """Report on the photos of a dataset; with `fix`, move what looks wrong aside. Raises DatasetError, OSError."""
    root = settings.dataset.root
    class_folders(root, Rules(settings.tray.ignore, settings.tray.max_file_bytes))
    origins: dict[str, Origin] = {}
    size = network_size(settings)
    rules = FaceRules() if "faces" in viewing.settled(settings).trainer.views else None
    cache = prepared.shared(settings, size, rules)
    found = Findings(open_dataset(settings, remembering(cache, origins)), origins, size, with_faces=rules is not None)
    folder = set_aside.new_folder(settings.trainer.runs / "check", datetime.now(UTC))
    show(found)
    pictures = draw_copies(found.data, folder, settings.tray.max_pixels)
    save(found, None, folder)
    suspects = judged(settings, found, cache)
    if suspects is not None:
        pictures += show_suspects(found.data, suspects, folder, settings.tray.max_pixels)
        save(found, suspects, folder)
    for picture in pictures:
        write(f"look at: {picture}")
    write(f"all of it: {folder / 'report.json'}")
    moves = to_move(found.data, suspects or [])
    if fix:
        move(root, moves)
    found.data.require_enough()
    if not fix:
        advise(root, moves)


def network_size(settings: Settings) -> int:
    """Return the size in pixels that photos are prepared at. Raises ArchitectureError."""
    named = settings.trainer.architecture
    own = OWN_SIZES.get(named.lower())
    if own is not None:
        return settings.trainer.image_size or own
    size: int = _judging().network_size(settings.trainer)
    return size


def remembering(
    cache: prepared.Cache, origins: dict[str, Origin]
) -> Callable[[str, bytes], prepared.Prepared | prepared.Fresh]:
    """Return a `Prepare` that fills the cache, and notes what each photo's file was."""

    def prepare(sha256: str, data: bytes) -> prepared.Prepared | prepared.Fresh:
        made = cache.add(sha256, data)
        origins[sha256] = made.origin or cache.looked_at(data)
        return made

    return prepare


def show(found: Findings) -> None:
    """Print what the scan found."""
    data, counts = found.data, found.data.counts()
    table = Table("class", title=f"{len(data.photos)} photos can be used", title_justify="left")
    for heading in (*counts, "all"):
        table.add_column(heading, justify="right")
    for name in data.class_names:
        each = [counts[split][name] for split in counts]
        table.add_row(Text(printable(name)), *map(str, (*each, sum(each))))
    Console().print(table)
    for text in found.lines():
        write(text)
    for kind, what in KINDS.items():
        unused = [u for u in data.unused if u.kind == kind]
        show_list([f"not used: {printable(u.path)}: {printable(u.reason)}" for u in unused], OF_A_KIND, f" {what}")


def show_list(lines: Sequence[str], most: int = LONGEST, what: str = "") -> None:
    """Print the first lines, and how many more there are."""
    for text in lines[:most]:
        write(text)
    if len(lines) > most:
        write(f"… and {len(lines) - most:,} more{what}: report.json")


def save(found: Findings, suspects: Sequence[Suspect] | None, folder: Path) -> None:
    """Write report.json."""
    text = json.dumps(found.report(suspects), indent=1)  # ASCII: names that are not UTF-8 come back as they were
    durable.replace(folder / "report.json", text.encode() + b"\n")


def draw_copies(data: Dataset, folder: Path, max_pixels: int) -> list[Path]:
    """Draw near duplicates and contradictions, a pair of each."""
    split = {photo.path: photo.split for photo in data.photos}
    pairs = [(group[0], group[1], f"{len(group)} alike, {split[group[0]]}") for group in data.twins]
    drawn = _draw(data, folder / "twins.png", "near duplicates, used", pairs, max_pixels)
    torn = {tuple(sorted((u.path, other))) for u in data.unused if u.kind == "contradiction" for other in u.of[:1]}
    clashes = [(one, other, "which is right?") for one, other in sorted(torn)]
    return drawn + _draw(data, folder / "contradictions.png", "in two classes, not used", clashes, max_pixels)


def _draw(data: Dataset, path: Path, title: str, pairs: Sequence[tuple[str, str, str]], max_pixels: int) -> list[Path]:
    if not pairs:
        return []
    tiles = [Tile(((data.root / a, a), (data.root / b, b)), caption) for a, b, caption in pairs[: contact_sheet.MOST]]
    contact_sheet.draw(path, _titled(title, len(pairs), "pairs"), tiles, max_pixels)
    return [path]


def _titled(title: str, count: int, what: str) -> str:
    return f"{title}: " + (
        f"the first {contact_sheet.MOST} of {count} {what}" if count > contact_sheet.MOST else f"{count} {what}"
    )


def judged(settings: Settings, found: Findings, cache: prepared.Cache) -> list[Suspect] | None:
    """Return the suspected labels; None where there are too few photos to judge any. Raises ArchitectureError."""
    scenes = dataclasses.replace(found.data, photos=found.scenes)
    totals = Counter(photo.label for photo in scenes.photos)
    if sum(count >= FOLDS for count in totals.values()) < 2:  # noqa: PLR2004
        write(f"labels: not judged, which needs two classes of {FOLDS} photos and more")
        return None
    sys.stdout.flush()  # what the scan found is to be read meanwhile
    place = {photo.path: index for index, photo in enumerate(found.data.photos)}
    suspects: list[Suspect] = _judging().suspected(settings, scenes, cache)
    return [dataclasses.replace(s, index=place[scenes.photos[s.index].path]) for s in suspects]


def _judging() -> ModuleType:
    """Load TensorFlow, which takes seconds and says things that are no errors, and what judges with it."""
    line("loading TensorFlow")
    with quiet.importing():
        from trainer import judging  # noqa: PLC0415
    return judging


def show_suspects(data: Dataset, suspects: Sequence[Suspect], folder: Path, max_pixels: int) -> list[Path]:
    """Print and draw the suspected labels."""
    if not suspects:
        write("labels: none looks wrong")
        return []
    share = len(suspects) / len(data.photos)
    amount = f"{len(suspects):,} of {len(data.photos):,} look wrong ({share:.0%})"
    write(f"labels: {amount} to a classifier that had not seen them; the surest first:")
    if share > MANY:
        write("  so many: either the classes are hard to tell from a picture, or their labels are mixed up")
    said = [
        (data.photos[s.index].path, f"{data.class_names[s.given]} → {data.class_names[s.likely]}", s) for s in suspects
    ]
    show_list([f"  {printable(path)}: {printable(change)}, {s.probability:.2f}" for path, change, s in said])
    tiles = [Tile(((data.root / path, path),), f"{change}, {s.probability:.2f}") for path, change, s in said]
    title = _titled("labels that look wrong, the surest first", len(tiles), "photos")
    contact_sheet.draw(folder / "suspects.png", title, tiles, max_pixels)
    return [folder / "suspects.png"]


def to_move(data: Dataset, suspects: Sequence[Suspect]) -> list[Move]:
    """Return what `--fix` moves: broken files, contradictions, and the surest suspects with their exact copies."""
    moves = [Move(u.path, u.reason) for u in data.unused if u.kind in ("broken", "contradiction")]
    left = {label: int(MOST_MOVED * count) for label, count in Counter(p.label for p in data.photos).items()}
    doubtful = {}
    for suspect in suspects:
        if suspect.probability >= SURE and left[suspect.given] > 0:
            left[suspect.given] -= 1
            reason = f"labelled {data.class_names[suspect.given]}, looks {data.class_names[suspect.likely]}"
            doubtful[data.photos[suspect.index].path] = f"{reason} ({suspect.probability:.2f})"
    moves += [Move(path, reason) for path, reason in doubtful.items()]
    copies = (u for u in data.unused if u.kind == "double" and u.of[0] in doubtful)
    return moves + [Move(u.path, doubtful[u.of[0]]) for u in copies]


def advise(root: Path, moves: Sequence[Move]) -> None:
    """Say what to do next."""
    command = f"moodbox-train fit --data {shlex.quote(printable(root))}"
    if not moves:
        write(f"next: {command}")
        return
    write(f"next: put right what you see there (the folder of a photo is its label), then {command}")
    write(
        f"  or let `check --fix` move {counted(len(moves), 'file')} aside, deleting none: broken ones, contradictions,"
    )
    write(f"  and the labels that look wrong by {SURE:.0%} and more, at most {MOST_MOVED:.0%} of a class at once")


def move(root: Path, moves: Sequence[Move]) -> None:
    """Move files aside, and say how they come back. Raises FailureError where there is no place for them."""
    if not moves:
        write("nothing to move aside")
        return
    try:
        done = set_aside.move(root, moves, datetime.now(UTC))
    except OSError as error:
        raise FailureError(
            f"nothing was moved: a folder beside {printable(root)} cannot be made ({error.strerror}): make its parent "
            "writable, or copy the dataset"
        ) from None
    if not done.moved:
        example = done.stayed[0]
        raise FailureError(
            f"nothing could be moved to {printable(done.folder)}: {printable(example.path)}: {example.reason}"
        )
    show_list([f"stays: {printable(m.path)}: {m.reason}" for m in done.stayed])
    write(f"moved {counted(done.moved, 'file')} to {printable(done.folder)}")
    write(f"  {set_aside.LIST} there says which, from where, and why")
    write(f"to bring all of them back: {done.back(root)}")
    write("next: look through them, put back what is right, and run `check` again: it now judges by better labels")
