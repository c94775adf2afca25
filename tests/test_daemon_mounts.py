"""Mounts: what the kernel's table says of the file system that a path is on."""

import os

import pytest

from daemon.mounts import Mount, _mount_of, mount_of

MOUNTS = rb"""22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
30 22 0:40 / /mnt/a\040b rw - nfs4 server:/x rw,vers=4.2,local_lock=none
31 22 0:41 / /net rw shared:2 master:1 - autofs systemd-1 rw
32 31 0:42 / /net rw shared:3 - cifs //server/x rw
33 22 0:43 / /home/x rw - fuse.sshfs x rw
34 22 0:44 / /mnt/""" + "tête\u00a0\u2028".encode() + rb""" rw - nfs server:/y rw,nolock,local_lock=all
35 22 0:45 / /plain rw - xfs /dev/sdb rw
36 22 0:46 / /lustre rw,noatime - lustre mgs:/fs rw,flock
37 22 0:47 / /lustre/local rw - lustre mgs:/fs rw,localflock
"""  # fmt: skip


@pytest.mark.parametrize(
    ("path", "kind", "locks_hold"),
    [
        ("/", "ext4", True), ("/mnt", "ext4", True), ("/mnt/a b", "nfs4", True), ("/mnt/a b/tray", "nfs4", True),
        ("/mnt/a bc", "ext4", True), ("/net/tray", "cifs", False), ("/home/x/tray", "fuse.sshfs", False),
        ("/mnt/tête\u00a0\u2028/tray", "nfs", False), ("/plain/tray", "xfs", True), ("/plainly", "ext4", True),
        ("/lustre/tray", "lustre", True), ("/lustre/local/tray", "lustre", False),
    ],
)  # fmt: skip
def test_the_nearest_and_topmost_mount_tells_of_the_file_system(path, kind, locks_hold):
    found = _mount_of(os.fsencode(path), MOUNTS)
    assert (found.kind, found.locks_hold) == (kind, locks_hold)
    assert found.is_shared == (kind not in ("ext4", "xfs"))


def test_a_local_folder_is_seen_by_this_machine_alone(tmp_path):
    assert not mount_of(str(tmp_path)).is_shared
    assert mount_of(str(tmp_path)).locks_hold
    assert _mount_of(b"/x", b"") == Mount()
