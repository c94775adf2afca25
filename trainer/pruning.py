"""Old bundles are removed, refused ones first; the champion, the one to go back to and the first one always stay.

Invariant: a numbered folder is whole or gone: it gets a hidden name in one rename before its files are deleted, and
what a kill left of that is swept by the next prune.
"""

import contextlib
import os
import shutil
import uuid
from pathlib import Path

from trainer import bundle, decisions, durable

GONE = ".pruned-"


def superfluous(models: Path, keep: int) -> list[int]:
    """Return all but `keep` bundles: the newest one, then the newest that were not refused, then the newest.

    The champion and its parent stay, and the first one, which may be the one that ships.
    """
    found, serving, lines = bundle.numbers(models), bundle.champion(models), decisions.read(models)
    refused = decisions.refused(lines)
    wanted = sorted(found, key=lambda number: (number == found[-1], number not in refused, number), reverse=True)
    kept = {*wanted[:keep], *found[:1], serving, decisions.unfinished(models, lines)}
    with contextlib.suppress(bundle.BundleError):
        kept.add(bundle.read_manifest(models, serving).parent if serving else None)
    return [number for number in found if number not in kept and not (models / str(number)).is_symlink()]


def prune(models: Path, keep: int) -> list[int]:
    """Remove what is superfluous, and return its numbers. Raises BundleError, OSError."""
    gone = superfluous(models, keep)
    for number in gone:
        os.rename(models / str(number), models / f"{GONE}{number}-{uuid.uuid4().hex}")
    if gone:
        durable.sync_directory(models)
    for left in models.glob(f"{GONE}*"):
        shutil.rmtree(left)
    return gone
