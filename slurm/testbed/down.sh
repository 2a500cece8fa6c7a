#!/usr/bin/env bash
# down.sh DIR [--purge] -- ends the daemons of the test bed in DIR and what its jobs left running; nothing else is touched. Without
# --purge, up.sh DIR brings it back with its jobs and accounting; with it, DIR and the claim of ports are removed.
set -euo pipefail
HERE=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=lib.sh
. "$HERE/lib.sh"

DIR=$(cd "${1:?down.sh DIR [--purge]}" 2>/dev/null && pwd -P) && [ -e "$DIR/etc/knobs" ] || { echo "no test bed in $1"; exit 0; }
export SLURM_CONF=$DIR/etc/slurm.conf

stop() {
  local pid
  if pid=$(pid_of "$1"); then
    kill -TERM "$pid" && kill -CONT "$pid" || true # CONT: a stopped process would never see the TERM
    for ((i = 0; i < 100; i++)); do ours "$pid" || break; sleep 0.1; done
    ! ours "$pid" || kill -KILL "$pid" || true
  fi
  rm -f "$DIR/run/$1.pid"
}

# Steps outlive their slurmd by design. A step of ours and all below it: jobs may clear their environment, so the tree decides.
kill_tree() {
  local child
  kill -STOP "$1" 2>/dev/null || return 0 # nobody sees a child die and goes on
  # shellcheck disable=SC2013 # they are words of one line
  for child in $(cat "/proc/$1/task/"*/children 2>/dev/null); do kill_tree "$child"; done
  kill -KILL "$1" 2>/dev/null || true
}
kill_jobs() {
  local process pid
  for process in /proc/[0-9]*; do
    pid=${process#/proc/}
    ours "$pid" || continue
    if [ "$(cat "$process/comm" 2>/dev/null)" = slurmstepd ]; then
      kill_tree "$pid"
    elif grep -qsz '^SLURM_JOB_ID=' "$process/environ"; then # left its step's tree as daemons do
      kill -KILL "$pid" 2>/dev/null || true
    fi
  done
}

stop slurmctld # first: it would start jobs again elsewhere
for file in "$DIR"/run/slurmd.*.pid; do
  [ ! -e "$file" ] || stop "$(basename "$file" .pid)" &
done
wait
kill_jobs
stop slurmdbd
stop mariadb
stop munged

unname_nodes() { # written in place: in containers the file is a mount and cannot be replaced
  local rest
  grep -qs "# sweep-slurm $DIR\$" /etc/hosts && [ -w /etc/hosts ] || return 0
  rest=$(awk -v tag="# sweep-slurm $DIR" 'substr($0, length($0) - length(tag) + 1) != tag' /etc/hosts)
  printf '%s\n' "$rest" >/etc/hosts
}
mkdir -p $HOST_WIDE
(
  flock 9
  unname_nodes
  [ "${2:-}" != --purge ] || { rm -f "$HOST_WIDE/$(cat "$DIR/etc/port")"; rm -rf "$DIR"; }
) 9>$HOST_WIDE/lock
echo "the test bed in $DIR is down"
