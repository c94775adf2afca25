"""An errand: files moved at a person's word, beside the daemon, by an owner of its own with a journal of its own.

Invariant: it works in the name of the tray's user or not at all; SIGINT and SIGTERM end it between two batches.
"""

import contextlib
import os
import signal
from collections.abc import Callable, Iterator, Sequence

from daemon import fs, owner, tray
from daemon.journal import Journal
from daemon.journal_folder import identified
from daemon.owner import Owner
from daemon.spool import Spool
from daemon.tray import WORK
from trainer.settings import Settings

BATCH = 64  # files between two looks at whether to stop


@contextlib.contextmanager
def errand(
    settings: Settings, folder: int, name: str, classes: Sequence[str] = (), make_spool: type[Spool] = Spool
) -> Iterator[tuple[Spool, Journal, Owner]]:
    """Become the owner `name` of the tray in directory fd `folder`; give all back at the end.

    What is then left in its directory, the daemon takes from there. Raises TrayError, OwnerError or OSError.
    """
    with contextlib.ExitStack() as opened:
        if not fs.exists(folder, WORK):  # no daemon was here yet
            tray.check_folders(folder, ())
        work = fs.open_folder(folder, (WORK,))
        opened.callback(os.close, work)
        tray.require_own(work)
        tray.check_folders(folder, classes)
        own = owner.acquire(work, name, identified(settings.journal.root))
        opened.callback(own.release)
        opened.callback(owner.remove, work, own)
        journal = Journal(settings.journal.root, own.name, settings.journal.segment_bytes)
        opened.callback(journal.close)
        yield make_spool(folder, own.folder), journal, own


@contextlib.contextmanager
def heeding_signals() -> Iterator[Callable[[], int]]:
    """Give a function that tells which of SIGINT and SIGTERM came, 0 for none."""
    came = list[int]()
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, lambda number, _: came.append(number)) for number in numbers}
    try:
        yield lambda: next(iter(came), 0)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
