"""Recovery: what a daemon that died left in `.work/<owner>` is finished or adopted.

Invariant: a file with a durable line goes where the line says; a file without one is adopted into a batch of its own
and decided once. Nothing goes back to the inbox, where its name may be taken. Repeating a recovery is
safe, wherever it was interrupted.
"""

import contextlib
import dataclasses
import errno
import os
from collections.abc import Callable
from dataclasses import dataclass, field

from daemon import fs, owner
from daemon.batch import Batch, Claimed, new_name, split_folder
from daemon.delivery import carry_out
from daemon.journal import Journal, lines_of, segments
from daemon.owner import Owner
from daemon.spool import Spool


@dataclass
class Recovered:
    """What was found: moves that were finished, and batches of one file each that wait to be classified alone."""

    finished: int
    adopted: list[Batch]
    left_alone: dict[str, str] = field(default_factory=dict)


def recover(
    dead: Owner, spool: Spool, journal: Journal, own_journal: Journal, tick: Callable[[], object] = lambda: None
) -> Recovered:
    """Clean up after `dead`, whose lock we hold: `journal` is its journal, `own_journal` that of the adopting daemon.

    `tick` is called with each batch: whoever waits for the end hears that something happens.

    Raises OSError; all of it is still there for another owner then.
    """
    found = Recovered(0, [])
    _recover(dead, spool, journal, own_journal, found, tick)
    return found


def recover_others(
    work: int, own: Owner, spool: Spool, journal: Journal, segment_bytes: int, tick: Callable[[], object] = lambda: None
) -> Recovered:
    """Recover every owner in directory fd `work` whose daemon is gone.

    One that cannot be cleaned up after (its journal is not there, say) is left alone until the next time, with the
    reason: it is no reason to stop for all others. So is one whose lock was removed: it may be alive.
    """
    found = Recovered(0, [])
    for name in owner.others(work, own.name):
        try:
            if (dead := owner.take(work, name)) is not None:
                _recover_other(work, dead, own, spool, journal, segment_bytes, found, tick)
        except OSError as error:
            found.left_alone[name] = error.strerror or str(error)
    for name, _ in owner.unlocked(work, own.name):
        found.left_alone[name] = owner.UNLOCKED.format(name)
    return found


def _recover_other(
    work: int, dead: Owner, own: Owner, spool: Spool, own_journal: Journal, segment_bytes: int, found: Recovered,
    tick: Callable[[], object],
) -> None:  # fmt: skip
    try:
        dead = _at_home(dead, own)
        if _batch_folders(dead.folder):
            with contextlib.closing(_journal_of(dead, segment_bytes)) as theirs:
                _recover(dead, spool, theirs, own_journal, found, tick)
        if not dead.journal.is_another(own.journal):  # that one tells `learn` that another journal knows of photos here
            owner.remove(work, dead)
    finally:
        dead.release()


def _recover(
    dead: Owner, spool: Spool, journal: Journal, own_journal: Journal, found: Recovered, tick: Callable[[], object]
) -> None:
    folders = _batch_folders(dead.folder)
    lines = lines_of(dead.journal.path, dead.name, [split_folder(f)[0] for f in folders])
    for folder in folders:
        tick()
        name, attempt = split_folder(folder)
        files = fs.files_below(dead.folder, folder)
        known = [lines[name, file] for file in files if (name, file) in lines]
        carry_out(spool, journal, dead.folder, folder, known)
        found.finished += len(known)
        unknown = [file for file in files if (name, file) not in lines]
        is_alone = len(unknown) == 1 and journal is own_journal and all(batch != name for batch, _ in lines)
        if is_alone:  # in a directory of ours, and without ids that a line has used: it can stay
            found.adopted.append(Batch(name, attempt, (Claimed(f"{name}-0", unknown[0]),)))
            continue
        for file in unknown:
            batch = spool.adopt(dead.folder, folder, [file], new_name(own_journal.segment), attempt, {})
            found.adopted.append(batch)
        fs.remove_empty(dead.folder, folder)


def _at_home(dead: Owner, own: Owner) -> Owner:
    """Where the dead owner's journal is in the folder of our own, moved or not, say so."""
    moved = not dead.journal.path.is_dir() and segments(own.journal.path, dead.name)
    return dataclasses.replace(dead, journal=own.journal) if dead.journal.is_same(own.journal) or moved else dead


def _journal_of(dead: Owner, segment_bytes: int) -> Journal:
    if not dead.journal.is_there:
        text = f"the journal of {dead.name}, which left files in .work, is not in {dead.journal.path}: bring it back"
        raise OSError(errno.ENOENT, text)
    return Journal(dead.journal.path, dead.name, segment_bytes)


def _batch_folders(own: int) -> list[str]:
    return sorted(name for name in os.listdir(own) if _is_batch(name))


def _is_batch(name: str) -> bool:
    try:
        split_folder(name)
    except ValueError:
        return False
    return True
