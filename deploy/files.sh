# shellcheck shell=bash
# What a version has outside of $OPT: units, user, folders, settings, commands; read by install.sh. All of it is written
# beside its place first (FILE.new) and renamed when all is there: a full disk changes nothing, and cuts no unit in the middle.

readonly TRAY_NAME='[a-z0-9][a-z0-9_]*'
STAGED=()

stage() { # stage FILE: from stdin
  if [ -n "$DRY_RUN" ]; then echo "would write: $1"; cat >/dev/null; return; fi
  STAGED+=("$1")
  cat >"$1.new"
  chmod 644 "$1.new"
}

stage_files() { # stage_files VERSION
  local from=$1/deploy unit tray
  [ -z "$DRY_RUN" ] || from=$HERE
  run mkdir -p "$CONF"/{systemd/system,sysusers.d,tmpfiles.d} "$BIN" "$ETC"
  for unit in "$from"/*.service "$from"/*.timer; do stage "$CONF/systemd/system/$(basename "$unit")" <"$unit"; done
  stage "$CONF/sysusers.d/moodbox.conf" <"$from/moodbox.sysusers"
  stage "$CONF/tmpfiles.d/moodbox.conf" <"$from/moodbox.tmpfiles"
  [ -e "$ETC/settings.toml" ] || stage "$ETC/settings.toml" <"$from/settings.toml"
  stage_guards ''
  for tray in $(trays); do stage_tray "$from" "$tray"; done
  if [ -n "$TRAY" ]; then stage "$ETC/trays" < <(echo "# What install.sh --tray made; --tray NAME --uninstall removes one."; trays); fi
  [ ${#STAGED[@]} = 0 ] || sync "${STAGED[@]/%/.new}"
}

stage_tray() { # stage_tray FROM TRAY
  stage "$CONF/tmpfiles.d/moodbox-$2.conf" < <(sed "s#$STATE\b#$STATE-$2#" "$1/moodbox.tmpfiles")
  [ -e "$ETC/$2.toml" ] ||
    stage "$ETC/$2.toml" < <(sed -e "s#$STATE\b#$STATE-$2#" -e "s#\(reload\|status\) moodbox#&@$2#g" "$1/settings.toml")
  stage_guards "$2"
}

put_files() {
  local file tray
  for file in "${STAGED[@]}"; do mv "$file.new" "$file"; done
  STAGED=()
  run ln -sfn "$OPT/current/bin/moodbox" "$OPT/current/bin/moodbox-train" "$BIN"
  run systemd-sysusers "$CONF/sysusers.d/moodbox.conf"
  run systemd-tmpfiles --create "$CONF/tmpfiles.d/moodbox.conf"
  for tray in $(trays); do run systemd-tmpfiles --create "$CONF/tmpfiles.d/moodbox-$tray.conf"; done
  run systemctl daemon-reload
}

# Names of the trays that --tray made, and of the one that is asked for. Other files in $ETC are somebody else's.
trays() {
  { grep -sxE "$TRAY_NAME" "$ETC/trays"; echo "$TRAY"; } | grep . | sort -u || true
}

# ---- a disk of its own at a tray's folder
# Without the disk a new tray would be made below the mount point, and what is dropped there is hidden when it comes back.
# RequiresMountsFor= alone knows only what is in fstab; and what failed for want of a disk is not started when it comes.

guard_of() { echo "$CONF/systemd/system/moodbox${1:+@$1}.service.d/disk.conf"; } # guard_of TRAY
mount_unit() { systemd-escape --path --suffix=mount "$STATE${1:+-$1}"; }

stage_guards() { # stage_guards TRAY
  local folder=$STATE${1:+-$1} retrain=$CONF/systemd/system/moodbox-retrain${1:+@$1}.service.d/disk.conf disk lines
  mountpoint --quiet "$folder" || return 0
  disk=$(mount_unit "$1")
  lines=("# Made by install.sh: $folder is a disk of its own." "[Unit]" "BindsTo=$disk" "After=$disk")
  run mkdir -p "$(dirname "$(guard_of "$1")")" "$(dirname "$retrain")"
  stage "$retrain" < <(printf '%s\n' "${lines[@]}")
  stage "$(guard_of "$1")" < <(printf '%s\n' "${lines[@]}" "# It starts with the disk." "[Install]" "WantedBy=$disk")
}

check_disks() {
  local tray folder disk guard
  for tray in '' $(trays); do
    folder=$STATE${tray:+-$tray} disk=$(mount_unit "$tray") guard=$(guard_of "$tray")
    mountpoint --quiet "$folder" && continue
    [ ! -e "$guard" ] || die "$folder: its disk is not mounted: mount it and run this again (where there is none any more: rm $guard)"
    [ "$(systemctl show --value -p LoadState "$disk")" != loaded ] ||
      die "$folder: its disk is not mounted, though $disk names one: systemctl start '$disk', and run this again"
  done
}
