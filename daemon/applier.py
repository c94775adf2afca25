"""The applier: photos of a backfill taken, batch by batch, from where they lie into a tray.

Invariant: the line first, durably, then the move or the link, which overwrites nothing; only bytes that were classified
are taken, and each photo once.
"""

import errno
import os
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from hashlib import blake2b
from typing import Literal

from daemon.batch import Claimed, new_name
from daemon.delivery import carry_out
from daemon.events import Line
from daemon.evidence import Evidence
from daemon.journal import Journal
from daemon.spool import REFUSED, Spool
from daemon.tray import mount_id

Way = Literal["move", "link"]


class Linker(Spool):
    """A spool that delivers a second name of a file, and leaves the first one where it is."""

    def _put(self, source: int, name: str, target: int, new_name: str, ident: str) -> None:  # noqa: ARG002  # a link never overwrites
        try:
            os.link(name, new_name, src_dir_fd=source, dst_dir_fd=target, follow_symlinks=False)
        except FileExistsError:
            names = ((name, source), (new_name, target))
            if not os.path.samestat(*(os.stat(n, dir_fd=fd, follow_symlinks=False) for n, fd in names)):
                raise


@dataclass
class Applier:
    """Takes photos from directory fd `photos` to the tray in directory fd `tray`."""

    spool: Spool
    journal: Journal
    photos: int
    tray: int
    evidence: Evidence
    source: str
    way: Way
    left: list[tuple[str, str]] = field(default_factory=list)
    done: int = 0
    is_open: bool = False  # whether lines may wait to be carried out
    _known: set[bytes] = field(default_factory=set)
    _mount: str = field(init=False)

    def __post_init__(self) -> None:
        self._mount = mount_id(self.photos)

    def recover(self, lines: Iterable[Line]) -> None:
        """Learn what has a line; carry out what is left of the newest batch: of all others, nothing can be."""
        newest, batch = dict[str, Line](), None
        for line in lines:
            if line.event == "stopped":  # all was carried out; what is not there now, a person moved
                newest = {}
                continue
            self._known.add(_key(line))
            if line.batch != batch:
                newest, batch = {}, line.batch
            was = newest.get(line.id or "", line)
            newest[line.id or ""] = was.model_copy(update={"destination": line.destination})
        self.is_open = bool(newest)
        self._carry_out([line for line in newest.values() if self._waits(line)])

    def finish(self) -> None:
        """Journal that all lines were carried out. Raises OSError."""
        self.is_open = False
        self.journal.append([Line(event="stopped")])

    def _waits(self, line: Line) -> bool:
        """Tell whether the photo of a line is still where it was, and not where the line says."""
        found = self.evidence.sha256(line.file or "")
        if found is None or found[1].hex() != line.sha256:
            return False
        with Evidence(self.tray) as there:
            delivered = there.stat(line.destination or "")
        return delivered is None or not os.path.samestat(found[0], delivered)

    def batch(self, rows: Sequence[Line]) -> None:
        """Take those of these photos that were not taken before. Raises OSError; all is carried out the next time."""
        placed = [row.model_copy(update={"source": f"{self.source}/{row.file}"}) for row in rows]
        wanted = [row for row in placed if _key(row) not in self._known and self._can_be_taken(row)]
        if not wanted:
            return
        name, reserved = new_name(self.journal.segment), set[str]()
        lines = [self._line(row, name, number, reserved) for number, row in enumerate(wanted)]
        self.spool.make_durable()
        self.is_open = True
        self.journal.append(lines)
        self._carry_out(lines)

    def _line(self, row: Line, batch: str, number: int, reserved: set[str]) -> Line:
        ident = f"{batch}-{number}"
        destination = self.spool.choose(row.destination or "", Claimed(ident, row.file or ""), reserved)
        return row.model_copy(update={"id": ident, "batch": batch, "destination": destination})

    def _carry_out(self, lines: list[Line]) -> None:
        """Move what has a line; one that the system refuses after all holds no other up. Raises OSError."""
        try:
            carry_out(self.spool, self.journal, self.photos, ".", lines)
            self.done += len(lines)
        except OSError as error:
            if error.errno not in REFUSED:
                raise
            if len(lines) > 1:
                for line in lines:
                    self._carry_out([line])
            else:
                reason = f"it has a line, and cannot be taken: {error.strerror}; mend that, and move it by hand"
                self.left.append((lines[0].file or "", reason))

    def _can_be_taken(self, row: Line) -> bool:
        reason = self._obstacle(row)
        if reason:
            self.left.append((row.file or "", reason))
        return not reason

    def _obstacle(self, row: Line) -> str:
        """Say why a photo stays where it is; nothing where it can be taken."""
        try:
            found = self.evidence.sha256(row.file or "")
            if found is None:
                return "it is not there any more"
            if found[1].hex() != row.sha256:
                return "its content is not what was classified"
            return self._refusal(row.file or "", found[0].st_uid)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EPERM):
                raise
            return f"it cannot be read: {error.strerror}"

    def _refusal(self, file: str, user: int) -> str:
        """Say what the kernel would refuse: once there is a line, there has to be a move."""
        folder, _, name = file.rpartition("/")
        parent, ask = self.evidence.folder(folder), partial(os.access, effective_ids=True)
        if mount_id(parent) != self._mount:
            return "it is on another mount"
        above = os.fstat(parent)
        if self.way == "move" and above.st_mode & stat.S_ISVTX and os.geteuid() not in (0, user, above.st_uid):
            return "it is another user's, and its folder is sticky"
        if self.way == "move":
            return "" if ask(".", os.W_OK | os.X_OK, dir_fd=parent) else "its folder cannot be written"
        may = os.geteuid() in (0, user) or ask(name, os.R_OK | os.W_OK, dir_fd=parent)  # fs.protected_hardlinks
        return "" if may else "another user's file cannot be linked"


def _key(line: Line) -> bytes:
    """Return what tells a photo from all others: where it lay, and its bytes, since names are used again."""
    return blake2b(os.fsencode(f"{line.source}\0{line.sha256}"), digest_size=12).digest()
