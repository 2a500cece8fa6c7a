# What up.sh, down.sh and install.sh share. Sourced, never run.
# shellcheck shell=bash

# Debian keeps the daemons in sbin, which a user's PATH may lack.
export PATH=$PATH:/usr/sbin:/sbin

# One lock and one list of port blocks for all test beds of this host.
# shellcheck disable=SC2034
HOST_WIDE=/run/lock/sweep-slurm

# Is the process ours? Every daemon and every job step carries our SLURM_CONF in its environment. Names prove nothing (other test beds
# have the same ones), nor does a pid file (pids are used again). A zombie has no environment: it is not ours, so it counts as dead.
ours() { grep -qszxF "SLURM_CONF=$SLURM_CONF" "/proc/$1/environ"; }

# The pid of one of our daemons (munged, mariadb, slurmdbd, slurmctld, slurmd.node1, ...); fails when it is dead.
pid_of() {
  local pid
  pid=$(cat "$DIR/run/$1.pid" 2>/dev/null) && [ -n "$pid" ] && ours "$pid" && echo "$pid"
}

# Prints the Debian packages that are missing. "$1": yes with accounting, none without.
missing_packages() {
  local pair pairs=(slurmctld:slurmctld slurmd:slurmd sbatch:slurm-client munged:munge)
  [ "$1" = none ] || pairs+=(slurmdbd:slurmdbd mariadbd:mariadb-server)
  for pair in "${pairs[@]}"; do
    command -v "${pair%:*}" >/dev/null || echo "${pair#*:}"
  done
}
