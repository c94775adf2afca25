"""The doctor's checks of the tray: its folders, who may do what in them, and what waits in the inbox.

Invariant: nothing in the tray is changed: folders that are missing are named, not made.
"""

import contextlib
import errno
import os
import pwd
import stat
from collections.abc import Iterator, Sequence

from daemon import fs, owner, tray
from daemon.evidence import Evidence
from daemon.finding import Finding, fail, ok, warn
from daemon.journal import owners
from daemon.logs import printable
from daemon.tray import INBOX, REJECTED, REVIEW, UNDONE, WORK, TrayError
from daemon.watcher import Scanner
from trainer.settings import Settings

NAMED = 5
LOOK = 100_000  # files of the inbox
OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
OTHERS = stat.S_IRWXG | stat.S_IRWXO
OWN = (INBOX, REVIEW, REJECTED, UNDONE)


def check_tray(settings: Settings, classes: Sequence[str]) -> Iterator[Finding]:
    """Yield what is wrong with the tray. Raises OSError where this user may not look."""
    root = settings.tray.root
    if not root.exists() and not owners(settings.journal.root):
        yield warn("tray", f"{printable(root)} is not there yet: `moodbox run` makes it")
        return
    try:
        folder = tray.open_tray(root)
    except TrayError as error:
        yield fail("tray", printable(error))
        return
    try:
        yield ok("tray", printable(root))
        yield from _check_folders(folder, classes)
        yield from _check_modes(folder, classes)
        yield from _check_owners(folder)
        if fs.exists(folder, INBOX):
            yield from _check_inbox(folder, settings)
    finally:
        os.close(folder)


def _check_folders(folder: int, classes: Sequence[str]) -> Iterator[Finding]:
    missing = [name for name in (*OWN, WORK, *classes) if not fs.exists(folder, name)]
    if missing:
        yield warn("folders", f"{printable(', '.join(missing))} missing: made by the next start")
    there = [name for name in (*OWN, *classes) if name not in missing]
    refused = [name for name in there if not _may_write(folder, name)]
    for name in refused:
        cure = f"give this user rwx there (chown, chmod g+rwx or setfacl -m u:{_user(os.geteuid())}:rwx)"
        yield fail("folders", f"nothing can be moved into {printable(name)}: {cure}")
    if refused or set(missing) & {*OWN, WORK}:
        return
    try:
        tray.check_folders(folder, [name for name in classes if name not in missing])
    except TrayError as error:
        yield fail("folders", printable(error))
    except OSError as error:
        yield fail("folders", printable(error.strerror))
    else:
        yield ok("folders", f"{len(there)} folders on one mount, and this user may write in each")


def _may_write(folder: int, name: str) -> bool:
    try:
        child = fs.open_folder(folder, (name,))
    except fs.FolderBlockedError as error:
        return error.errno != errno.EACCES  # a link or a file: told by tray.check_folders
    try:
        return os.access(".", os.W_OK | os.X_OK, dir_fd=child, effective_ids=True)
    finally:
        os.close(child)


def _check_modes(folder: int, classes: Sequence[str]) -> Iterator[Finding]:
    found = []
    if os.fstat(folder).st_mode & OTHERS_WRITE:
        found.append(fail("modes", "others may write in the tray itself, and swap its folders: chmod go-w on it"))
    with Evidence(folder) as evidence:
        work = evidence.stat(WORK)
        if work is not None and work.st_mode & OTHERS:
            found.append(fail("modes", f"others may enter {WORK}: chmod 700 on it"))
        if work is not None and work.st_uid != os.geteuid():
            who, owner = _user(os.geteuid()), _user(work.st_uid)
            found.append(warn("user", f"this is {who}, the tray is {owner}'s: ask as that user (sudo -u {owner} …)"))
        for name in (INBOX, *classes):
            st = evidence.stat(name)
            if st is not None and st.st_mode & stat.S_ISVTX:
                found.append(_sticky(name, st))
    yield from found or [ok("modes", f"{WORK} is private, nobody else may write in the tray itself, nothing is sticky")]


def _sticky(name: str, st: os.stat_result) -> Finding:
    if os.geteuid() in (0, st.st_uid):
        return warn("modes", f"{printable(name)} is sticky: people cannot move files of others there: chmod -t on it")
    return fail("modes", f"{printable(name)} is sticky: files of others cannot be moved out: chmod -t on it")


def _check_owners(folder: int) -> Iterator[Finding]:
    with contextlib.ExitStack() as opened:
        try:
            work = fs.open_folder(folder, (WORK,))
        except (FileNotFoundError, fs.FolderBlockedError):  # told by the checks above
            return
        opened.callback(os.close, work)
        for name, files in owner.unlocked(work):
            yield fail("work", printable(f"{owner.UNLOCKED.format(name)} (files in it: {len(files):,})"))


def _check_inbox(folder: int, settings: Settings) -> Iterator[Finding]:
    scanner = Scanner(settings.tray.ignore)
    blocked, count = dict[str, str](), 0
    with Evidence(folder) as evidence:
        for sighting in scanner.scan(folder, LOOK, lambda _: False):
            count += 1
            if reason := _obstacle(evidence, sighting.file, sighting.kind):
                blocked[sighting.file] = reason
    scanner.forget()
    blocked |= scanner.blocked
    for file in sorted(blocked)[:NAMED]:
        yield fail("inbox", f"{printable(file)}: {blocked[file]}")
    if blocked:
        more = f"{len(blocked) - NAMED:,} more; " if len(blocked) > NAMED else ""
        rights = f"chmod -R g+rwX (where it is sticky, chmod -t), or setfacl -R -m u:{_user(os.geteuid())}:rwX"
        yield fail("inbox", f"{more}the cure: {rights} on the inbox")
    else:
        yield ok("inbox", f"{count:,} wait{' (no more were looked at)' if count == LOOK else ''}, all can be taken")
    yield _acl_hint(folder, has_blocked=bool(blocked))


def _obstacle(evidence: Evidence, file: str, kind: str) -> str | None:
    """Return why a file in the inbox cannot be taken."""
    above, _, name = f"{INBOX}/{file}".rpartition("/")
    parent = evidence.folder(above)
    if kind == "file" and not os.access(name, os.R_OK, dir_fd=parent, effective_ids=True):
        return "this user may not read it"
    if not os.access(".", os.W_OK | os.X_OK, dir_fd=parent, effective_ids=True):
        return "this user may not move it: its folder is not writable"
    st, mine = os.fstat(parent), (0, os.fstat(parent).st_uid)
    if st.st_mode & stat.S_ISVTX and os.geteuid() not in mine:
        here = evidence.stat(f"{above}/{name}")
        if here is not None and here.st_uid != os.geteuid():
            return "this user may not move it: its folder is sticky"
    return None


def _acl_hint(folder: int, *, has_blocked: bool) -> Finding:
    hint = f"setfacl -d -m u:{_user(os.geteuid())}:rwX on the inbox lets the daemon read whatever is dropped"
    try:
        inbox = fs.open_folder(folder, (INBOX,))
        try:
            os.getxattr(inbox, "system.posix_acl_default")
        finally:
            os.close(inbox)
    except OSError:
        return (warn if has_blocked else ok)("acl", f"the inbox has no default ACL; {hint}")
    return ok("acl", "the inbox has a default ACL")


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
