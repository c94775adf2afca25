#!/bin/bash
# tests/systemd.sh FOLDER [COMMAND…]   boots this machine's own systemd in throw-away namespaces, for tests
#
# Root is an overlay of / in memory: units, users and files may be installed there at will, and nothing of it reaches
# the host. FOLDER is at /mnt, read-only; there is no network. With COMMAND: runs it in there and exits with its status.
# Without: prints the process id of systemd (nsenter -t PID -a …) and stays until its standard input ends.
# Needs root, systemd 252 and a cgroup2 mount; exits with 77 where something is missing.
set -euo pipefail
FOLDER=$(readlink -f "$1")
shift
CGROUPS=$(findmnt -nt cgroup2 -o TARGET | head -1)
missing() { echo "needs $1" >&2; exit 77; }
[ "$(id -u)" = 0 ] || missing root
[ -x /lib/systemd/systemd ] || missing systemd
[ -n "$CGROUPS" ] || missing "a cgroup2 mount"
NAME=moodbox-test-$$ GROUP=$CGROUPS/moodbox-test-$$ INIT='' SYSTEMD=''
TOP=$(mktemp -d)

clean_up() {
  trap - EXIT INT TERM
  if [ -n "$SYSTEMD" ] && kill -s RTMIN+4 "$SYSTEMD" 2>/dev/null; then # poweroff.target; SIGTERM would re-execute it
    for _ in $(seq 100); do kill -0 "$SYSTEMD" 2>/dev/null || break; sleep .1; done
  fi
  echo 1 >"$GROUP/cgroup.kill" || true # whatever is left
  [ -z "$INIT" ] || wait "$INIT" 2>/dev/null || true
  for _ in $(seq 50); do
    find "$GROUP" -depth -type d -exec rmdir {} + 2>/dev/null || true
    [ -d "$GROUP" ] || break
    sleep .1
  done
  rm -f "$TOP.init"
  rmdir "$TOP"
}
trap clean_up EXIT
trap 'exit 130' INT TERM
mkdir "$GROUP" || missing "a cgroup2 mount that can be written"

cat >"$TOP.init" <<'INIT'
set -euo pipefail
top=$1 folder=$2 root=$1/root
mount -t tmpfs -o mode=755,size=8g "$3" "$top"
mkdir "$top/upper" "$top/moved" "$root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$top/upper,workdir=$top/moved" "$root"
mount -t proc -o nosuid,nodev,noexec proc "$root/proc"
mount --bind "$root/proc/sys" "$root/proc/sys"
mount -o remount,bind,ro "$root/proc/sys"
mount -t sysfs -o ro,nosuid,nodev,noexec sysfs "$root/sys"
mount -t cgroup2 -o nosuid,nodev,noexec cgroup2 "$root/sys/fs/cgroup"
mount -t tmpfs -o mode=755,nosuid,nodev tmpfs "$root/run"
mount -t tmpfs -o mode=1777,nosuid,nodev tmpfs "$root/tmp"
mount -t tmpfs -o mode=755,nosuid tmpfs "$root/dev"
mknod -m 666 "$root/dev/null" c 1 3
mknod -m 666 "$root/dev/zero" c 1 5
mknod -m 666 "$root/dev/full" c 1 7
mknod -m 666 "$root/dev/random" c 1 8
mknod -m 666 "$root/dev/urandom" c 1 9
mkdir "$root/dev/pts" "$root/dev/shm"
ln -s pts/ptmx "$root/dev/ptmx"
ln -s /proc/self/fd "$root/dev/fd"
mount -t devpts -o newinstance,ptmxmode=0666,mode=620,gid=5 devpts "$root/dev/pts"
mount -t tmpfs -o mode=1777,nosuid,nodev tmpfs "$root/dev/shm"
mount --bind "$folder" "$root/mnt"
mount -o remount,bind,ro "$root/mnt"
# Nothing of the host's is started: the journal, users and temporary files are all that is needed.
rm -rf "$root"/etc/systemd/system/*
: >"$root/etc/fstab"
find "$root"/lib/systemd/system/{sysinit,local-fs,multi-user,timers}.target.wants -type l \
  ! -name 'systemd-journald.service' ! -name 'systemd-journal-flush.service' \
  ! -name 'systemd-sysusers.service' ! -name 'systemd-tmpfiles-setup.service' -delete
rm -f "$root/lib/systemd/system/sockets.target.wants/systemd-"{journald-audit,udevd-control,udevd-kernel,initctl}.socket
cd "$root"
mkdir .old
pivot_root . .old
umount -l /.old
rmdir /.old
mount --make-rshared / # as on a real boot
exec env -i container=other PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 \
  /lib/systemd/systemd --system --unit=multi-user.target --show-status=no
INIT

(
  echo "$BASHPID" >"$GROUP/cgroup.procs"
  exec setpriv --pdeathsig KILL unshare --pid --fork --kill-child --mount --propagation private --uts --ipc --net \
    --cgroup -- /bin/bash "$TOP.init" "$TOP" "$FOLDER" "$NAME"
) </dev/null >&2 &
INIT=$!
for _ in $(seq 600); do
  kill -0 "$INIT" 2>/dev/null || { wait "$INIT" || true; INIT=''; missing "what the lines above say: systemd did not boot"; }
  child=$(tr -d ' ' <"/proc/$INIT/task/$INIT/children")
  if [ -n "$child" ] && [ "$(cat "/proc/$child/comm")" = systemd ] && [ -S "/proc/$child/root/run/systemd/private" ]; then
    SYSTEMD=$child
    break
  fi
  sleep .05
done
[ -n "$SYSTEMD" ] || missing "a systemd that boots within 30 seconds"
inside() { nsenter -t "$SYSTEMD" -a env -C / PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "$@"; }
inside systemctl is-system-running --wait >/dev/null || inside systemctl --failed --no-pager >&2
if [ $# -gt 0 ]; then
  inside "$@"
else
  echo "$SYSTEMD"
  cat >/dev/null # until the one who started this closes the pipe, or dies
fi
