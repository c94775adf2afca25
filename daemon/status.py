"""Status: what serves, what waits, what went wrong; from the journal's tail and the folders, at once.

Invariant: reading it changes nothing, needs no daemon and no TensorFlow, and takes as long after a million photos as
after one.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from daemon.events import Totals
from daemon.journal import is_locked, owners, segments, tail_totals
from daemon.logs import printable
from daemon.tray import INBOX, MARKER
from daemon.watcher import ignored_names
from trainer import bundle
from trainer.bundle import BundleError
from trainer.settings import Settings

COUNT_LIMIT = 100_000


@dataclass(frozen=True)
class Status:
    """Everything that `moodbox status` shows."""

    tray: str
    is_tray: bool
    running: list[str]
    model: int | None
    model_text: str
    waiting: int
    ignored: int
    totals: dict[str, Any]


def gather(settings: Settings) -> Status:
    """Look at everything once."""
    root = settings.journal.root
    names = owners(root)
    totals = sum((tail_totals(root, name) for name in names), Totals())
    running = [name for name in names if is_locked(segments(root, name)[-1][1])]
    serving = sum((tail_totals(root, name) for name in running), Totals()).model
    model, text = _model(settings, serving)
    tray = settings.tray.root
    waiting, ignored = _count(os.fspath(tray / INBOX), ignored_names(settings.tray.ignore))
    is_tray = (tray / MARKER).exists()
    return Status(str(tray), is_tray, running, model, text, waiting, ignored, totals.as_dict())


def as_json(status: Status) -> dict[str, Any]:
    """Return what `status --json` prints; names that are not UTF-8 are escaped."""
    return {**asdict(status), "tray": printable(status.tray), "running": [printable(n) for n in status.running]}


def describe(status: Status) -> Iterator[str]:
    """Yield the lines for people."""
    totals = Totals.from_dict(status.totals)
    yield f"daemon    {printable(', '.join(status.running)) + ' running' if status.running else 'not running'}"
    yield f"model     {status.model_text}"
    yield f"tray      {printable(status.tray)}{'' if status.is_tray else ' (no tray yet: `moodbox run` makes it)'}"
    ignored = f"; {status.ignored:,} ignored (tray.ignore)" if status.ignored else ""
    yield f"waiting   {status.waiting:,}{' or more' if status.waiting >= COUNT_LIMIT else ''} in the inbox{ignored}"
    for file, reason in totals.blocked.items() if status.running else ():
        yield f"          {printable(file)}: {printable(reason)} (`moodbox doctor` knows a cure)"
    by_label = ", ".join(f"{printable(label)} {n:,}" for label, n in sorted(totals.sorted.items()))
    yield f"sorted    {sum(totals.sorted.values()):,}{f' ({by_label})' if by_label else ''}"
    if totals.events["review"]:
        yield f"review    {totals.events['review']:,}"
    by_code = ", ".join(f"{code} {n:,}" for code, n in sorted(totals.rejected.items()))
    yield f"rejected  {sum(totals.rejected.values()):,}{f' ({by_code})' if by_code else ''}"
    if totals.events["restored"]:
        yield f"undone    {totals.events['restored']:,}"
    if totals.rescued:
        yield f"rescued   {totals.rescued:,} that no event told of: the rescan found them"
    if totals.last:
        yield f"last      {totals.last}"
    if error := totals.last_error:
        file = f"{printable(error['file'])}: " if error["file"] else ""
        yield f"problem   {error['ts']} {file}{printable(error['error'])}"


def _model(settings: Settings, serving: int | None) -> tuple[int | None, str]:
    """Describe the bundle that serves; where no daemon runs, the one that will."""
    models = settings.models.root
    try:
        champion = bundle.champion(models)
        number = serving or champion
        if number is None:
            return None, "none yet: the one that ships is installed by the first `moodbox run`"
        manifest = bundle.read_manifest(models, number)
    except BundleError as error:
        return None, f"cannot be used: {error}"
    later = f"; model {champion} from the next start on" if champion not in (None, number) else ""
    return number, f"{number} ({manifest.architecture}; {', '.join(manifest.class_names)}){later}"


def _count(inbox: str, ignored: re.Pattern[str]) -> tuple[int, int]:
    """Count the files that wait, up to a limit, and what is ignored; what cannot be read is not counted."""
    count, skipped, folders = 0, 0, [inbox]
    while folders and count < COUNT_LIMIT:
        try:
            with os.scandir(folders.pop()) as entries:
                for entry in entries:
                    if ignored.match(entry.name.casefold()):
                        skipped += 1
                    elif entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
                    else:
                        count += 1
        except OSError:
            continue
    return min(count, COUNT_LIMIT), skipped
