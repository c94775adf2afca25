# shellcheck shell=bash
# A version of Moodbox: an environment of its own in $OPT, made beside the one that serves; read by install.sh.
# "unfinished" is in it from its first moment until its fingerprint is; "proven" once a service was READY with it; "expected",
# while it is tried, names the services that it has to serve. Any other folder in $OPT is somebody else's.

readonly NEEDED_MB=3000

find_python() {
  local found
  for found in ${PYTHON:-python3.13 python3.12 python3.11 python3}; do
    found=$(PATH=/usr/local/bin:/usr/bin:/bin command -v "$found") || continue
    # The service's user has to be able to run it: an interpreter below /root, say, it cannot even see.
    if setpriv --reuid=65534 --regid=65534 --clear-groups -- "$found" -Ic 'import sys, venv, ensurepip
sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; then
      PYTHON=$found
      return
    fi
  done
  die "${PYTHON:+$PYTHON: }no Python 3.11 to 3.13 with venv that every user may run (Debian: apt install python3-venv; else --python FILE)"
}

find_wheel() { # sets WHEEL
  local wheels
  if [ -n "$WHEELS" ]; then
    [ -d "$WHEELS" ] || die "--wheels $WHEELS: there is no such folder"
    WHEELS=$(readlink -f "$WHEELS")
    wheels=("$WHEELS"/moodbox-*.whl)
    [ -e "${wheels[0]}" ] || die "--wheels $WHEELS: no moodbox-*.whl in it: \`make wheels\` makes it"
    [ ${#wheels[@]} = 1 ] || die "--wheels $WHEELS: there are several versions of Moodbox in it: leave one"
  else
    [ -e "$HERE/../pyproject.toml" ] || die "run this in a checkout of Moodbox, or name a folder of wheels: --wheels DIR"
    build_wheel
    wheels=("$SCRATCH"/moodbox-*.whl)
  fi
  WHEEL=${wheels[0]}
}

# Built in a copy: root leaves nothing in somebody's checkout. A fixed date makes the same wheel of the same sources.
build_wheel() {
  SCRATCH=$(mktemp -d)
  mkdir "$SCRATCH/source"
  (cd "$HERE/.." && cp -r daemon trainer pyproject.toml README.md LICENSE NOTICE "$SCRATCH/source")
  "$PYTHON" -m venv "$SCRATCH/venv"
  SOURCE_DATE_EPOCH=946684800 "$SCRATCH/venv/bin/pip" --disable-pip-version-check --quiet wheel --no-deps \
    --wheel-dir "$SCRATCH" "$SCRATCH/source" || die "the wheel could not be built (without a network: --wheels DIR)"
}

# What a version is made of: the same again is not installed twice.
fingerprint() {
  { "$PYTHON" -VV; sha256sum <"$WHEEL"; cat "$(constraints)"; cd "$HERE"; sha256sum -- *.service *.timer moodbox.{sysusers,tmpfiles}; } |
    sha256sum | cut -d' ' -f1
}
constraints() { echo "$HERE/../constraints.txt"; }
version() { local name; name=$(basename "$WHEEL"); name=${name#moodbox-}; echo "${name%%-*}"; }

# Sets NEW: the version with this fingerprint, where there is one (BEFORE, if it is that), else makes it.
get_version() { # get_version BEFORE
  local wanted
  wanted=$(fingerprint)
  for NEW in "$1" "$OPT"/*; do
    ! is_version "$NEW" || [ "$(cat "$NEW/fingerprint")" != "$wanted" ] || { say "$(basename "$NEW") is installed already"; return; }
  done
  check_space
  NEW=$(next_folder)
  say "installing $(basename "$NEW") in $OPT, with $PYTHON"
  [ -n "$DRY_RUN" ] || make_version "$NEW"
}
is_version() { [ -d "$1" ] && [ ! -L "$1" ] && [ -e "$1/fingerprint" ] && [ ! -e "$1/unfinished" ]; }

next_folder() {
  local n=1
  while [ -e "$OPT/$(version)-$n" ]; do n=$((n + 1)); done
  echo "$OPT/$(version)-$n"
}

remove_unfinished() {
  local mark
  for mark in "$OPT"/*/unfinished; do
    [ -e "$mark" ] || continue
    say "removing $(basename "$(dirname "$mark")"), which an interruption left half-installed"
    run rm -rf "$(dirname "$mark")"
  done
}

# The version to go back to: the one that serves, else of those that ever did the last.
last_proven() { # last_proven NEW BEFORE
  if [ "$2" != "$1" ] && [ -e "$2/proven" ]; then echo "$2"; return; fi
  [ -d "$OPT" ] || return 0
  find "$OPT" -mindepth 2 -maxdepth 2 -name proven -printf '%T@ %h\n' | sort -rn | cut -d' ' -f2- |
    while read -r folder; do [ "$folder" = "$1" ] || ! is_version "$folder" || echo "$folder"; done | sed -n 1p
}

prove() { # prove VERSION
  [ -z "$1" ] || [ -n "$DRY_RUN" ] || [ -e "$1/proven" ] || ! serves "$1" || touch "$1/proven"
}
serves() { # serves VERSION: whether a service that is READY runs it
  local unit
  for unit in $(running); do
    ! systemctl --quiet is-active "$unit" || ! grep -qsF "$1/" "/proc/$(systemctl show --value -p MainPID "$unit")/cmdline" || return 0
  done
  return 1
}

check_space() {
  local there=$OPT free
  [ -d "$there" ] || there=/opt
  [ -d "$there" ] || there=/
  free=$(df --output=avail -BM "$there" | tail -1 | tr -dc 0-9)
  [ "$free" -ge "$NEEDED_MB" ] || die "$there has $free MB free, and $NEEDED_MB MB are needed"
}

make_version() {
  local pip=("$1/bin/pip" --disable-pip-version-check --quiet install --no-compile --constraint "$(constraints)")
  MADE=$1
  mkdir -p "$1"
  touch "$1/unfinished"
  "$PYTHON" -m venv "$1"
  if [ -n "$WHEELS" ]; then
    PIP_CONFIG_FILE=/dev/null PIP_FIND_LINKS='' "${pip[@]}" --no-index --find-links "$WHEELS" "$WHEEL"
  else
    "${pip[@]}" "$WHEEL"
  fi || die "pip could not install it: see above"
  "$1/bin/python" -m compileall -q -j 0 "$1/lib" >/dev/null || true # tests of libraries hold files that are no Python on purpose
  "$1/bin/moodbox" --version >/dev/null || die "what was installed does not run: see above"
  mkdir "$1/deploy"
  cp "$HERE"/*.service "$HERE"/*.timer "$HERE"/moodbox.{sysusers,tmpfiles} "$HERE/settings.toml" "$1/deploy"
  cp "$HERE/../settings.toml" "$HERE/../docs/operations.md" "$1"
  sync -f "$1"
  fingerprint >"$1/fingerprint.new"
  mv "$1/fingerprint.new" "$1/fingerprint"
  rm "$1/unfinished"
}

# The last one that served stays, to go back to; what a retraining still runs from stays, too.
remove_old() { # remove_old NEW BACK
  local folder
  for folder in "$OPT"/*; do
    case $folder in "$1" | "$2") continue ;; esac
    is_version "$folder" || continue
    grep -qsF "$folder/" /proc/[0-9]*/maps && continue
    say "removing $(basename "$folder")"
    run rm -rf "$folder"
  done
}
