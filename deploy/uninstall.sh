# shellcheck shell=bash
# What install.sh made is removed, and nothing that only looks like it; read by install.sh.

LEFT=''

uninstall() {
  if [ -n "$TRAY" ]; then uninstall_tray; else uninstall_all; fi
  [ -z "$LEFT" ] || die "not all is removed, see above: mend what it says and run this again"
}

uninstall_all() {
  local names
  mapfile -t names < <(trays)
  stop_units moodbox.service 'moodbox@*.service' moodbox-retrain.{service,timer} 'moodbox-retrain@*.'{service,timer} 'moodbox-failed@*.service'
  say "removing the program and its units"
  remove_program
  run rm -f "$CONF"/systemd/system/moodbox{,@,-retrain,-retrain@,-failed@}.service{,.new} \
    "$CONF"/systemd/system/moodbox-retrain{,@}.timer{,.new} "$CONF"/{sysusers.d,tmpfiles.d}/moodbox.conf{,.new}
  remove_files_of '' "${names[@]}"
  run rm -f "$BIN/moodbox" "$BIN/moodbox-train"
  remove_empty "$CONF"/systemd/system "$CONF"/systemd "$CONF"/{sysusers.d,tmpfiles.d}
  run systemctl daemon-reload
  if [ -n "$PURGE" ]; then
    purge "${names[@]}"
  else
    say "photos, journal and models stay in $STATE, settings in $ETC, and the user moodbox, whose they are (--purge removes them)"
  fi
}

uninstall_tray() {
  [ "$(grep -sxF "$TRAY" "$ETC/trays")" ] || grep -qs "\"$STATE-$TRAY/" "$ETC/$TRAY.toml" || die "--tray $TRAY: there is no such tray"
  stop_units "moodbox@$TRAY.service" "moodbox-retrain@$TRAY."{service,timer} "moodbox-failed@moodbox-retrain@$TRAY.service"
  remove_files_of "$TRAY"
  forget "$ETC/trays" "$TRAY"
  forget "$OPT/enabled" "moodbox@$TRAY.service"
  run systemctl daemon-reload
  [ -n "$PURGE" ] || { say "its photos, journal and models stay in $STATE-$TRAY, its settings in $ETC/$TRAY.toml (--purge removes them)"; return; }
  remove "$STATE-$TRAY"
  run rm -rf "$ETC/$TRAY.toml" /etc/systemd/system/moodbox{,-retrain}@"$TRAY".{service,timer}.d
  [ -n "$LEFT" ] || say "the tray $TRAY is removed"
}

stop_units() { # stop_units PATTERN…
  local units
  mapfile -t units < <({ systemctl list-units --all --plain --no-legend "$@"; systemctl list-unit-files --no-legend "$@"; } |
    cut -d' ' -f1 | grep -v '@\.' | sort -u)
  [ ${#units[@]} -gt 0 ] || return 0
  say "stopping ${units[*]}"
  run systemctl stop "${units[@]}"
  run systemctl --quiet disable "${units[@]}"
  run systemctl reset-failed "${units[@]}" 2>/dev/null || true # what is not loaded did not fail
  run rm -f "${units[@]/#//var/lib/systemd/timers/stamp-}"
}

# Folders that are not versions of Moodbox are somebody else's.
remove_program() {
  local folder
  for folder in "$OPT"/*; do
    if is_version "$folder" || [ -e "$folder/unfinished" ]; then run rm -rf "$folder"; fi
  done
  run rm -f "$OPT/current" "$OPT/current.new" "$OPT/enabled"
  remove_empty "$OPT"
}

remove_files_of() { # remove_files_of TRAY…
  local tray folder
  for tray in "$@"; do
    [ -z "$tray" ] || run rm -f "$CONF/tmpfiles.d/moodbox-$tray.conf"{,.new}
    for folder in "$CONF/systemd/system/moodbox"{,-retrain}"${tray:+@$tray}.service.d"; do
      run rm -f "$folder/disk.conf"{,.new}
      remove_empty "$folder"
    done
  done
}

remove_empty() {
  local folder
  for folder; do
    [ ! -d "$folder" ] || run rmdir --ignore-fail-on-non-empty "$folder"
  done
}

forget() { # forget FILE LINE
  [ ! -e "$1" ] || run sed -i "/^$2\$/d" "$1"
}

# All that can be removed is, whatever cannot: a disk that is mounted there is emptied, and its mount point stays.
remove() { # remove FOLDER
  run rm -rf "$1" 2>/dev/null && return
  if [ -z "$(find "$1" ! -type d -print -quit)" ]; then
    say "$1 is emptied, and stays: a disk is mounted there ($(findmnt --raw --noheadings --output TARGET | grep -E "^$1(/|\$)" | paste -sd' '))"
  else
    LEFT=1
    rm -rf "$1" 2>&1 | head -n 5 >&2 || true
  fi
}

purge() { # purge TRAY…
  local name
  say "removing photos, journal, models and settings"
  for name; do remove "$STATE-$name"; done
  remove "$STATE"
  run rm -rf "$ETC" /etc/tmpfiles.d/moodbox-tray.conf /etc/systemd/system/moodbox{,@,@*,-retrain,-retrain@*}.{service,timer}.d
  ! getent passwd moodbox >/dev/null || run userdel moodbox || LEFT=1
  ! getent group moodbox >/dev/null || run groupdel moodbox || LEFT=1
  [ -n "$LEFT" ] || say "all is removed"
}
