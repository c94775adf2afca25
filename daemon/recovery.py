"""Recovery: what a daemon that died left in `.work/<owner>` is finished or adopted.

Invariant: a file with a durable line goes where the line says; a file without one is adopted into a batch of its own
and decided once. Nothing goes back to the inbox, where its name may be taken. Repeating a recovery, at any point, is safe.
"""

import errno
import os
from dataclasses import dataclass

from daemon import fs, owner
from daemon.delivery import carry_out
from daemon.journal import Journal, lines_of
from daemon.owner import Owner
from daemon.spool import Batch, Spool, new_name, split_folder


@dataclass(frozen=True)
class Recovered:
    """What was found: moves that were finished, and batches of one file each that wait to be classified alone."""

    finished: int
    adopted: list[Batch]


def recover(dead: Owner, spool: Spool, journal: Journal, own_journal: Journal) -> Recovered:
    """Clean up after `dead`, whose lock we hold: `journal` is its journal, `own_journal` that of the adopting daemon.

    Raises OSError; what was not reached then is still there for the next time.
    """
    folders = _batch_folders(dead.folder)
    lines = lines_of(dead.journal, dead.name, [split_folder(f)[0] for f in folders])
    finished, adopted = 0, list[Batch]()
    for folder in folders:
        name, attempt = split_folder(folder)
        files = fs.files_below(dead.folder, folder)
        known = [lines[name, file] for file in files if (name, file) in lines]
        carry_out(spool, journal, dead.folder, folder, known)
        finished += len(known)
        for file in files:
            if (name, file) not in lines:
                adopted.append(spool.adopt(dead.folder, folder, [file], new_name(own_journal.segment), attempt, {}))
        fs.remove_empty(dead.folder, folder)
    return Recovered(finished, adopted)


def recover_others(work: int, own: Owner, spool: Spool, journal: Journal, segment_bytes: int) -> Recovered:
    """Recover every owner in directory fd `work` whose daemon is gone. Raises OSError."""
    finished, adopted = 0, list[Batch]()
    for name in owner.others(work, own.name):
        dead = owner.take(work, name)
        if dead is None:
            continue
        try:
            theirs = _journal_of(dead, segment_bytes)
            recovered = recover(dead, spool, theirs, journal)
            theirs.close()
        except OSError:
            dead.release()
            raise
        owner.remove(work, dead)
        finished, adopted = finished + recovered.finished, adopted + recovered.adopted
    return Recovered(finished, adopted)


def _journal_of(dead: Owner, segment_bytes: int) -> Journal:
    if not dead.journal.is_dir():
        text = f"the journal of {dead.name}, which left files in .work, is not in {dead.journal}: bring it back"
        raise OSError(errno.ENOENT, text)
    return Journal(dead.journal, dead.name, segment_bytes)


def _batch_folders(own: int) -> list[str]:
    return sorted(name for name in os.listdir(own) if _is_batch(name))


def _is_batch(name: str) -> bool:
    try:
        split_folder(name)
    except ValueError:
        return False
    return True
