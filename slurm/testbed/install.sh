#!/usr/bin/env bash
# install.sh -- the Debian packages that up.sh needs; nothing to do where they are there. No service is started: the test bed runs its
# own daemons, and system-wide ones would only be in the way. Exit 3: not root, or apt failed.
set -euo pipefail
HERE=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=lib.sh
. "$HERE/lib.sh"

mapfile -t packages < <(missing_packages yes)
[ ${#packages[@]} -gt 0 ] || exit 0
command -v apt-get >/dev/null || { echo "install.sh: no apt-get here; needed: ${packages[*]}" >&2; exit 3; }
[ "$(id -u)" -eq 0 ] || { echo "install.sh: needs root: apt-get install ${packages[*]}" >&2; exit 3; }

# Maintainer scripts ask this file whether they may start a service; 101 is "no". One that is there already is put back.
POLICY=/usr/sbin/policy-rc.d
[ ! -e $POLICY ] || mv $POLICY $POLICY.before-sweep
trap 'rm -f $POLICY; [ ! -e $POLICY.before-sweep ] || mv $POLICY.before-sweep $POLICY' EXIT
printf '#!/bin/sh\nexit 101\n' >$POLICY
chmod 755 $POLICY

export DEBIAN_FRONTEND=noninteractive
LOG=$(mktemp)
echo "installing ${packages[*]}"
apt-get update -qq >"$LOG" 2>&1 || true # without a mirror's answer, what is known already may do
if ! apt-get install -y -qq --no-install-recommends "${packages[@]}" >>"$LOG" 2>&1; then
  tail -n 15 "$LOG" >&2
  echo "install.sh: apt-get install ${packages[*]} failed; all it said is in $LOG" >&2
  exit 3
fi
rm -f "$LOG"
