#!/bin/bash
# Installs Moodbox as a systemd service, upgrades it, or removes it; docs/operations.md says what it makes.
# It may be run again at any time: what is as it should be stays, what was left half-done is done anew.
set -euo pipefail
umask 022

readonly OPT=/opt/moodbox ETC=/etc/moodbox STATE=/var/lib/moodbox CONF=/usr/local/lib BIN=/usr/local/bin
HERE=$(dirname "$(readlink -f "$0")")
readonly HERE
# shellcheck source=SCRIPTDIR/version.sh
. "$HERE/version.sh"
# shellcheck source=SCRIPTDIR/files.sh
. "$HERE/files.sh"
# shellcheck source=SCRIPTDIR/uninstall.sh
. "$HERE/uninstall.sh"
DRY_RUN='' ACTION=install PURGE='' WHEELS='' PYTHON='' TRAY='' SCRATCH='' MADE='' STANDS=''
UNITS=() FAILED=()

usage() {
  cat <<END
usage: deploy/install.sh [--wheels DIR] [--python FILE] [--tray NAME] [--dry-run]
       deploy/install.sh [--tray NAME] --uninstall [--purge] [--dry-run]

  --wheels DIR   install from the wheels in DIR, without a network ("make wheels" fills .venv/wheels)
  --python FILE  the interpreter to use (3.11 to 3.13); else the newest of these that is found
  --tray NAME    one more tray: $ETC/NAME.toml, $STATE-NAME, moodbox@NAME.service
  --uninstall    remove the service and the program; photos, journal, models and settings stay;
                 with --tray NAME: remove this tray's service alone
  --purge        with --uninstall: remove these, too, and the user (with --tray NAME: this tray's)
  --dry-run      say what would be done, and do nothing
END
}

say() { echo "moodbox: $*"; }
die() { echo "install.sh: $*" >&2; exit 1; }
run() { if [ -n "$DRY_RUN" ]; then echo "would run: $*"; else "$@"; fi; }

main() {
  parse "$@"
  [ "$(id -u)" = 0 ] || die "only root can do this: sudo deploy/install.sh"
  [ -d /run/systemd/system ] || die "systemd does not run here: run \`moodbox run\` by other means, or see deploy/Containerfile"
  exec 9>/run/moodbox-install.lock
  flock --nonblock 9 || die "another install.sh is at work"
  trap clean_up EXIT
  trap 'exit 130' INT TERM HUP
  "$ACTION"
}

parse() {
  while [ $# -gt 0 ]; do
    case $1 in
      --wheels | --python | --tray) [ -n "${2:-}" ] || { usage >&2; exit 2; } ;;&
      --wheels) WHEELS=$2; shift ;;
      --python) PYTHON=$2; shift ;;
      --tray) TRAY=$2; shift ;;
      --uninstall) ACTION=uninstall ;;
      --purge) PURGE=1 ;;
      --dry-run) DRY_RUN=1 ;;
      -h | --help) usage; exit 0 ;;
      *) echo "install.sh: $1: no such option" >&2; usage >&2; exit 2 ;;
    esac
    shift
  done
  [ -z "$PURGE" ] || [ "$ACTION" = uninstall ] || die "--purge goes with --uninstall"
  [[ -z $TRAY || ( $TRAY =~ ^$TRAY_NAME$ && $TRAY != settings ) ]] ||
    die "--tray $TRAY: a name is made of a-z, 0-9 and _"
}

# A version that was not finished is of no use to anybody; what else was left half-done is said, and done by the next run.
clean_up() {
  local status=$?
  [ -z "$SCRATCH" ] || rm -rf "$SCRATCH"
  [ -z "$MADE" ] || [ ! -e "$MADE/unfinished" ] || rm -rf "$MADE"
  [ ${#STAGED[@]} = 0 ] || rm -f "${STAGED[@]/%/.new}"
  [ "$status" = 0 ] || [ -z "$STANDS" ] || echo "install.sh: $STANDS" >&2
}
serving() { if [ -n "$(current)" ]; then echo "$(basename "$(current)") goes on"; else echo "there was no version before"; fi; }
current() { readlink "$OPT/current" || true; }

# ---- install and upgrade

install() {
  local before new back expected broken trial=1
  before=$(current)
  find_python
  check_disks
  [ -e "$before/expected" ] || prove "$before"
  remove_unfinished
  find_wheel
  STANDS="not installed; $(serving)"
  get_version "$before" # sets NEW
  new=$NEW
  back=$(last_proven "$new" "$before")
  expected=$(expect "$before")
  if [ "$new" = "$before" ] && [ -e "$new/proven" ] && [ ! -e "$new/expected" ]; then trial=''; fi
  [ -z "$trial" ] || [ -n "$DRY_RUN" ] || echo "$expected" >"$new/expected"
  place "$new"
  STANDS="$(basename "$new") is in place and was not yet seen to serve: run this again, and it is, or goes back"
  enable_new
  mapfile -t -O ${#UNITS[@]} UNITS < <(if [ -n "$trial" ]; then running; else running | unready; fi)
  restart
  broken=$(printf '%s\n' "${FAILED[@]}" | grep -xF -e "$expected" || true)
  if [ -n "$broken" ] && [ -n "$back" ] && [ -n "$trial" ]; then go_back "$new" "$back"; fi
  [ -n "$broken" ] || prove "$new"
  STANDS=''
  report "$new" "$back" "$broken"
}

# One rename: there is no moment without a version. The files of a version are written before it, and renamed after it.
place() { # place VERSION
  stage_files "$1"
  STANDS="$(basename "$1") was being put in place: run this again"
  [ "$(current)" = "$1" ] || {
    run ln -sfn "$1" "$OPT/current.new"
    run mv -T "$OPT/current.new" "$OPT/current"
  }
  put_files
}

# The units that a version has to serve, or it is no good: those that are READY now or start for the first time, and those
# that were so before an upgrade that was interrupted. One that was in trouble before says nothing about a version.
expect() { # expect BEFORE
  local unit
  for unit in $(running); do
    if systemctl --quiet is-active "$unit" || starts_first "$unit" || was_expected "$unit" "$1"; then echo "$unit"; fi
  done
}
starts_first() { # starts_first UNIT
  [ "$(systemctl show --value -p NRestarts "$1")" = 0 ] && [ "$(systemctl show --value -p SubState "$1")" != auto-restart ]
}
was_expected() { # was_expected UNIT BEFORE
  [ -n "$2" ] || return 1
  if [ -e "$2/expected" ]; then grep -qxF "$1" "$2/expected"; else [ ! -e "$2/proven" ]; fi
}

# Once: what an administrator disables or stops later stays so.
enable_new() {
  local tray unit
  for tray in '' $(trays); do
    unit=moodbox${tray:+@$tray}.service
    if ! grep -qsxF "$unit" "$OPT/enabled"; then
      run systemctl --quiet enable "$unit" "moodbox-retrain${tray:+@$tray}.timer"
      run systemctl start "moodbox-retrain${tray:+@$tray}.timer"
      run systemctl start --no-block "$unit"
      [ -n "$DRY_RUN" ] || echo "$unit" >>"$OPT/enabled"
      UNITS+=("$unit")
    elif [ -e "$(guard_of "$tray")" ] && systemctl --quiet is-enabled "$unit"; then
      run systemctl --quiet enable "$unit" # with the disk, too
    fi
  done
}

running() {
  systemctl list-units --plain --no-legend --state=active,activating,reloading,deactivating 'moodbox.service' 'moodbox@*.service' |
    cut -d' ' -f1
}
unready() { # of the units that are read
  local unit
  while read -r unit; do
    systemctl --quiet is-active "$unit" || echo "$unit"
  done
}

# Sets FAILED. In the background, so that a signal is heard while it waits.
restart() {
  mapfile -t UNITS < <(printf '%s\n' "${UNITS[@]}" | grep . | sort -u)
  FAILED=()
  [ ${#UNITS[@]} -gt 0 ] || return 0
  say "waiting until ${UNITS[*]} is ready; what is dropped meanwhile waits in the inbox"
  run systemctl restart "${UNITS[@]}" 2>/dev/null 9>&- &
  wait $! || true
  [ -n "$DRY_RUN" ] || mapfile -t FAILED < <(printf '%s\n' "${UNITS[@]}" | unready)
}

go_back() { # go_back FROM TO
  local to
  to=$(basename "$2")
  give_reasons
  mv "$1/expected" "$2/expected"
  place "$2"
  STANDS="going back to $to was interrupted: run this again"
  mapfile -t UNITS < <(running)
  restart
  give_reasons
  rm -rf "$2/expected" "$1"
  STANDS=''
  serves "$2" || die "$(basename "$1") did not become ready; $to is in place again, but does not become ready either: see above"
  die "$(basename "$1") did not become ready; $to serves again${FAILED[*]:+, but ${FAILED[*]} does not become ready with it}"
}

give_reasons() {
  local unit
  for unit in "${FAILED[@]}"; do
    say "$unit is not ready; its last words:" >&2
    journalctl --quiet --no-pager --lines 5 --output cat -u "$unit" >&2 || true
  done
}

report() { # report NEW BACK BROKEN
  local name
  name=$(basename "$1")
  give_reasons
  [ -z "$3" ] || die "$name does not become ready$([ -n "$2" ] || echo ", and there is no version that ever served to go back to"): mend what it says and run this again"
  remove_old "$1" "$2"
  [ -n "$DRY_RUN" ] || rm -f "$1/expected"
  farewell
  [ -n "$DRY_RUN" ] || [ -e "$1/proven" ] ||
    say "no service has become ready with $name yet${2:+: $(basename "$2") stays, to go back to}"
  [ ${#FAILED[@]} = 0 ] || die "$name is in place, but ${FAILED[*]} does not become ready: mend what it says and run this again"
}

farewell() {
  local unit
  [ -n "$DRY_RUN" ] || for unit in moodbox.service $(trays | sed 's/.*/moodbox@&.service/'); do
    say "$unit is $(systemctl is-active "$unit" || true)"
  done
  say "photos: $STATE${TRAY:+-$TRAY}/tray/inbox; who may drop them: gpasswd --add NAME moodbox; settings: $ETC/${TRAY:-settings}.toml"
}

main "$@"
