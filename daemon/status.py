"""Status: what serves, what waits, what went wrong; from the journal's tail and the folders, at once.

Invariant: reading it changes nothing, needs no daemon and no TensorFlow, and takes as long after a million photos as
after one.
"""

import os
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from daemon import drift
from daemon.journal import is_open, owners, tail_totals
from daemon.logs import printable, refusal
from daemon.owner import LOCK
from daemon.totals import Totals
from daemon.tray import INBOX, MARKER, REVIEW, WORK
from daemon.watcher import ignored_names
from trainer import bundle, decisions
from trainer.bundle import BundleError
from trainer.settings import Settings

COUNT_LIMIT = 100_000
SILENT_SECONDS = 60.0  # a daemon touches its lock every ten seconds
SCHEMA = 1  # of `status --json`: fields may be added, none is taken away or changed


@dataclass(frozen=True)
class Status:
    """Everything that `moodbox status` shows."""

    health: str
    health_text: str
    tray: str
    is_tray: bool
    running: list[str]
    model: int | None
    model_text: str
    waiting: int
    ignored: int
    in_review: int
    totals: dict[str, Any]
    warnings: list[str]
    retrained: str = ""


def gather(settings: Settings) -> Status:
    """Look at everything once."""
    root = settings.journal.root
    names = owners(root)
    totals = sum((tail_totals(root, name) for name in names), Totals())
    running = [name for name in names if is_open(root, name)]
    model, text = _model(settings, sum((tail_totals(root, name) for name in running), Totals()))
    tray = settings.tray.root
    ignore = ignored_names(settings.tray.ignore)
    waiting, ignored = _count(os.fspath(tray / INBOX), ignore)
    in_review, _ = _count(os.fspath(tray / REVIEW), ignore)
    is_tray = (tray / MARKER).exists()
    warned = _warnings(settings, model, totals)
    health, why = _health(settings, running)
    return Status(
        health,
        why,
        str(tray),
        is_tray,
        running,
        model,
        text,
        waiting,
        ignored,
        in_review,
        totals.as_dict(),
        warned,
        _retrained(settings),
    )


def check(settings: Settings) -> tuple[str, str]:
    """Return the health alone: what a health check asks every few seconds. Nothing but locks is looked at."""
    root = settings.journal.root
    names = [name for name in owners(root) if name.startswith(settings.daemon.owner)]
    return _health(settings, [name for name in names if is_open(root, name)])


def as_json(status: Status) -> dict[str, Any]:
    """Return what `status --json` prints; names that are not UTF-8 are escaped."""
    return {
        "schema": SCHEMA,
        **asdict(status),
        "tray": printable(status.tray),
        "running": [printable(n) for n in status.running],
    }


def describe(status: Status) -> Iterator[str]:  # noqa: C901  # a line for each thing, one after the other
    """Yield the lines for people."""
    totals = Totals.from_dict(status.totals)
    yield f"daemon    {printable(', '.join(status.running)) + ' running' if status.running else 'not running'}"
    if status.health == "stuck":
        yield f"stuck     {printable(status.health_text)}"
    yield f"model     {status.model_text}"
    yield f"tray      {printable(status.tray)}{'' if status.is_tray else ' (no tray yet: `moodbox run` makes it)'}"
    ignored = f"; {status.ignored:,} ignored (tray.ignore)" if status.ignored else ""
    yield f"waiting   {status.waiting:,}{' or more' if status.waiting >= COUNT_LIMIT else ''} in the inbox{ignored}"
    for file, reason in totals.blocked.items() if status.running else ():
        yield f"          {printable(file)}: {printable(reason)} (`moodbox doctor` knows a cure)"
    by_label = ", ".join(f"{printable(label)} {n:,}" for label, n in sorted(totals.sorted.items()))
    yield f"sorted    {sum(totals.sorted.values()):,}{f' ({by_label})' if by_label else ''}"
    if totals.events["review"]:
        yield f"review    {status.in_review:,} to be looked at, of {totals.events['review']:,} that were sent there"
    by_code = ", ".join(f"{code} {n:,}" for code, n in sorted(totals.rejected.items()))
    yield f"rejected  {sum(totals.rejected.values()):,}{f' ({by_code})' if by_code else ''}"
    for number, line in enumerate(drift.described(totals.rates)):
        yield f"{'' if number else 'corrected':<9} {line}"
    if totals.events["restored"]:
        yield f"undone    {totals.events['restored']:,}"
    if totals.rescued:
        yield f"rescued   {totals.rescued:,} that no event told of: the rescan found them"
    if totals.last:
        yield f"last      {totals.last}"
    if error := totals.last_error:
        file = f"{printable(error['file'])}: " if error["file"] else ""
        yield f"problem   {error['ts']} {file}{printable(error['error'])}"
    if status.retrained:
        yield f"retrained {printable(status.retrained)}"
    for warning in status.warnings:
        yield f"look      {printable(warning)}"


def _health(settings: Settings, running: list[str]) -> tuple[str, str]:
    """Return "ok", "stuck", "stopped" or "unknown", of the daemons named as in the settings; and why.

    A daemon that waits for a full disk is well: a restart would not help it.
    """
    wanted = settings.daemon.owner
    ours = [name for name in running if re.fullmatch(rf"{re.escape(wanted)}(-[0-9]+)?", name)]
    if not ours:
        return "stopped", f"no daemon named {wanted} runs, or it still starts"
    for name in ours:
        try:
            silent = time.time() - (settings.tray.root / WORK / name / LOCK).stat().st_mtime
        except PermissionError:  # a member of its group
            user = _owner(settings.tray.root / WORK)
            return "unknown", f"{name} runs; whether it is well, {user} and root alone may see: sudo -u {user} …"
        except OSError as error:
            return "unknown", f"{name} runs; how it is cannot be seen: {refusal(error)}: ask of its tray (--tray)"
        if silent > SILENT_SECONDS:
            return "stuck", f"{name} has given no sign of life for {silent:.0f} s: restart it"
    return "ok", ""


def _owner(work: Path) -> str:
    """Return whose `.work` this is, which everybody who may look into the tray may know."""
    try:
        return work.owner()
    except (OSError, KeyError):
        return "its user"


def _warnings(settings: Settings, model: int | None, totals: Totals) -> list[str]:
    """Say where the last week was unlike what the model was measured on."""
    try:
        metrics = {} if model is None else bundle.read_manifest(settings.models.root, model).metrics
    except BundleError:
        return []
    return list(drift.warnings(totals.rates, metrics, datetime.now(UTC).date()))


def _retrained(settings: Settings) -> str:
    """Say what was decided last about who is champion; nothing where nothing was."""
    try:
        lines = decisions.read(settings.models.root)
    except BundleError as error:
        return str(error)
    if not lines:
        return ""
    last = lines[-1]
    pin = ", which stays until the next promotion" if decisions.pinned(lines) else ""
    chosen = f"bundle {last.get('champion')}{pin}"
    return f"{str(last.get('ts'))[:16]} {last['event']}: {last.get('reason') or chosen}"


def _model(settings: Settings, running: Totals) -> tuple[int | None, str]:
    """Describe the bundle that serves, and what is with a champion that is another; where no daemon runs, that one."""
    models, serving = settings.models.root, running.model
    try:
        number = serving or bundle.champion(models)
        if number is None:
            return None, "none yet: the one that ships is installed by the first `moodbox run`"
        manifest = bundle.read_manifest(models, number)
    except BundleError as error:
        return serving, f"{f'{serving} serves; ' if serving else ''}cannot be used: {error}"
    later = _successor(models, serving, running.refused) if serving else ""
    return number, f"{number} ({manifest.architecture}; {', '.join(manifest.class_names)}){later}"


def _successor(models: Path, serving: int, refused: Mapping[str, Any] | None) -> str:
    try:
        champion = bundle.champion(models)
    except BundleError:
        champion = None
    if champion == serving:
        return ""
    if refused and refused["model"] == champion:
        return f"; {'champion' if champion is None else f'model {champion}'} refused: {printable(refused['error'])}"
    return f"; model {champion} is being loaded" if champion is not None else ""


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
