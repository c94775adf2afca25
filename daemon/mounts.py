"""Mounts: what the file system that a path is on promises where several machines use it.

Invariant: a type of network file system that is not known to lock for all machines counts as one that does not.
"""

import os
import re
from dataclasses import dataclass

NETWORK = frozenset({
    "nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "ceph", "afs", "glusterfs", "lustre", "beegfs", "gfs2", "ocfs2",
    "virtiofs", "vboxsf", "prl_fs",
})  # fmt: skip
# flock() there holds on all machines, if no option says otherwise: nfs(5), mount.lustre(8), the ceph client's docs.
CLUSTER_LOCKS = frozenset(
    {"nfs", "nfs4", "ceph", "fuse.ceph", "glusterfs", "fuse.glusterfs", "lustre", "gfs2", "ocfs2"}
)
LOCAL_LOCKS = frozenset({"nolock", "local_lock=all", "local_lock=flock", "localflock", "noflock", "localflocks"})


@dataclass(frozen=True)
class Mount:
    """A mounted file system: its type, as in "ext4", and the options of the mount and of the file system."""

    kind: str = ""
    options: frozenset[str] = frozenset()

    @property
    def is_shared(self) -> bool:
        """Whether other machines may write there, too: inotify does not see what they do."""
        return self.kind in NETWORK or self.kind.startswith("fuse.")

    @property
    def locks_hold(self) -> bool:
        """Whether a lock that one machine holds keeps all others out."""
        return not self.is_shared or (self.kind in CLUSTER_LOCKS and not self.options & LOCAL_LOCKS)


def mount_of_fd(fd: int) -> Mount:
    """Return the mount that an open directory is on."""
    return mount_of(os.readlink(f"/proc/self/fd/{fd}"))


def mount_of(path: str) -> Mount:
    """Return the mount that `path` is on; an empty one where the kernel does not say."""
    with open("/proc/self/mountinfo", "rb") as file:
        return _mount_of(os.fsencode(os.path.realpath(path)), file.read())


def _mount_of(path: bytes, mountinfo: bytes) -> Mount:
    """Find the mount in the text of a mountinfo file: proc_pid_mountinfo(5)."""
    mounts = [line.split(b" ") for line in mountinfo.split(b"\n") if line]
    # Of several mounts on one point (autofs, then NFS) the last one covers the others.
    best = max((m for m in reversed(mounts) if _is_below(path, _unescape(m[4]))), key=lambda m: len(m[4]), default=None)
    if best is None:
        return Mount()
    kind, _, *options = best[best.index(b"-") + 1 :]
    return Mount(kind.decode(), frozenset(b",".join([best[5], *options]).decode(errors="replace").split(",")))


def _is_below(path: bytes, mount: bytes) -> bool:
    return path == mount or path.startswith(mount.rstrip(b"/") + b"/")


def _unescape(text: bytes) -> bytes:
    return re.sub(rb"\\([0-7]{3})", lambda m: bytes((int(m[1], 8),)), text)
