#!/usr/bin/env bash
# up.sh [--install] [DIR] -- a real Slurm with several nodes on this one host, from Debian's packages: munge, MariaDB, slurmdbd, slurmctld
# and a slurmd per node, on loopback only, without systemd, as root. All it has and all it leaves is in DIR (a new folder in /tmp if not
# given), but for names of nodes in /etc/hosts and a claim of ports in /run/lock; down.sh takes it all away.
#
# Call it again with the same DIR to start again what is dead, and to wake what was stopped (SIGSTOP): jobs, accounting and settings are
# kept. Several test beds may run at once. Exit 3: packages are missing or it is not root; 1: a daemon did not come up.
#
# Knobs, read from the environment as TESTBED_NODES=2 etc. when DIR is new, and kept in DIR/etc/knobs:
declare -A knob=(
  [NODES]=4           # at most 80, named node1, node2, ...
  [CPUS]=32           # of each node; more than this machine has is fine
  [MEMORY_MB]=256000  # of each node
  [GPUS]=8            # of each node; fake, see gres.conf
  [MAX_ARRAY_SIZE]=101 # an array's indices are below it (Slurm's default: 1001)
  [MIN_JOB_AGE]=30    # s that slurmctld remembers a finished job (300)
  [KILL_WAIT]=5       # s from SIGTERM to SIGKILL at a time limit (30)
  [SLURMD_TIMEOUT]=10 # s of silence after which a node is down and its jobs are NODE_FAIL (300)
  [MESSAGE_TIMEOUT]=5 # s until a command gives up on a daemon that does not answer (10)
  [REQUEUE_DELAY]=15  # s that a requeued job waits (120)
  [CLUSTER]=testbed   # its name, in lower case
  [FIRST_JOB_ID]=1    # the number of its first job
  [PRIVATE_DATA]=none # what users are not shown of one another: none, jobs, ...
  [JOIN]=             # the folder of another test bed, whose munge and slurmdbd this one shares: `sbatch -M NAME` works both ways
  [ACCOUNTING]=yes    # none: no slurmdbd and no MariaDB; sacct fails and there is no QOS
)
set -euo pipefail
HERE=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=lib.sh
. "$HERE/lib.sh"

START=${EPOCHREALTIME/./}
# "[ 1.23 s] text", from microseconds and without bc
say() { printf '[%5.2f s] %s\n' "$(((${EPOCHREALTIME/./} - START) / 10000))e-2" "$*"; }
die() {
  echo "up.sh: $*" >&2
  tail -n 5 "$DIR"/log/*.log >&2 || true
  exit 1
}
# Tries a command every 0.1 s for so many seconds.
within() {
  local end=$((SECONDS + $1))
  shift
  until "$@" >/dev/null 2>&1; do
    [ $SECONDS -lt $end ] || return 1
    sleep 0.1
  done
}

# --- arguments and what this machine must have ---
INSTALL=
[ "${1:-}" != --install ] || { INSTALL=1; shift; }
[ "$(id -u)" -eq 0 ] || { echo "up.sh: the Slurm test bed needs root: slurmd changes users and /etc/hosts names the nodes" >&2; exit 3; }
DIR=${1:-$(mktemp -d /tmp/sweep-slurm.XXXXXX)}
mkdir -p "$DIR"
DIR=$(cd "$DIR" && pwd -P)
[ ${#DIR} -le 60 ] || { echo "up.sh: $DIR is too long a path: sockets below it may have 107 characters" >&2; exit 1; }
export SLURM_CONF=$DIR/etc/slurm.conf

if [ -s "$DIR/etc/knobs" ]; then
  while IFS='=' read -r name value; do knob[$name]=$value; done <"$DIR/etc/knobs"
else
  for name in "${!knob[@]}"; do
    given=TESTBED_$name
    knob[$name]=${!given:-${knob[$name]}}
  done
fi
NODES=${knob[NODES]}
[ "$NODES" -le 80 ] || { echo "up.sh: at most 80 nodes" >&2; exit 1; }
[ -z "$INSTALL" ] || "$HERE/install.sh"
mapfile -t missing < <(missing_packages "${knob[ACCOUNTING]}")
if [ ${#missing[@]} -gt 0 ]; then
  rmdir "$DIR" 2>/dev/null || true
  echo "up.sh: Slurm is not installed: apt-get install --no-install-recommends ${missing[*]} (or: $HERE/install.sh)" >&2
  exit 3
fi

# --- folders, the munge key, fake GPUs, ports ---
umask 022
mkdir -p "$DIR"/{etc,run,log,state,spool,dev,mysql}
for name in "${!knob[@]}"; do echo "$name=${knob[$name]}"; done >"$DIR/etc/knobs"
[ -s "$DIR/etc/munge.key" ] || (umask 077; head -c 128 /dev/urandom >"$DIR/etc/munge.key")
for ((i = 0; i < knob[GPUS]; i++)); do ln -sfn /dev/null "$DIR/dev/nvidia$i"; done

# A test bed owns 200 ports below those that clients are given (from 32768). A block is free if nobody listens in it and no other test
# bed has claimed it: one that is just starting listens nowhere yet.
claim_ports() {
  local first port owner
  declare -A busy=()
  while read -r port; do
    busy[$((0x$port / 200 * 200))]=1
  done < <(awk '$4 == "0A" { sub(/.*:/, "", $2); print $2 }' /proc/net/tcp /proc/net/tcp6 2>/dev/null)
  for ((first = 20000; first < 32600; first += 200)); do
    [ -z "${busy[$first]:-}" ] || continue
    owner=$(cat "$HOST_WIDE/$first" 2>/dev/null) || owner=
    [ "$(cat "$owner/etc/port" 2>/dev/null)" != "$first" ] || continue
    echo "$first" >"$DIR/etc/port"
    echo "$DIR" >"$HOST_WIDE/$first"
    return
  done
  echo "up.sh: no free block of ports" >&2
  return 1
}
# torch reads MASTER_ADDR from the names of nodes, so they must resolve. Each test bed adds lines of its own. Where the file cannot be
# written all else works.
name_nodes() {
  local i
  grep -qs "# sweep-slurm $DIR\$" /etc/hosts || [ ! -w /etc/hosts ] ||
    for ((i = 1; i <= NODES; i++)); do echo "127.0.0.1 node$i # sweep-slurm $DIR"; done >>/etc/hosts
}
mkdir -p $HOST_WIDE
(
  flock 9
  # /run forgets at a reboot, and then another test bed may have taken our ports
  PORT=$(cat "$DIR/etc/port" 2>/dev/null) && [ "$(cat "$HOST_WIDE/$PORT" 2>/dev/null)" = "$DIR" ] || claim_ports
  name_nodes
) 9>$HOST_WIDE/lock
PORT=$(cat "$DIR/etc/port")
# Of a test bed that another one has joined: its munge and its slurmdbd are that one's.
JOINED=${knob[JOIN]:-$DIR}
MUNGE=$JOINED/run/munge.sock
PORT_DBD=$(cat "$JOINED/etc/port")

# --- configuration ---
fill() {
  local name host script
  host=$(hostname -s)
  script="s|@DIR@|$DIR|g;s|@HOST@|$host|g;s|@PORT@|$PORT|g;s|@PORT_DBD@|$((PORT_DBD + 1))|g;s|@PORT_SQL@|$((PORT + 2))|g"
  script+=";s|@MUNGE@|$MUNGE|g;s|@LAST_GPU@|$((knob[GPUS] - 1))|g"
  for name in "${!knob[@]}"; do script+=";s|@$name@|${knob[$name]}|g"; done
  sed "$script" "$HERE/templates/$1.in" >"$DIR/etc/$1"
}
fill slurm.conf
fill cgroup.conf
for ((i = 1; i <= NODES; i++)); do
  echo "NodeName=node$i NodeHostname=$(hostname -s) NodeAddr=127.0.0.1 Port=$((PORT + 10 + i))"
done >"$DIR/etc/nodes.conf"
if [ "${knob[GPUS]}" -gt 0 ]; then
  fill gres.conf
else
  : >"$DIR/etc/gres.conf"
  sed -i 's/ Gres=[^ ]*//' "$SLURM_CONF"
fi
if [ "${knob[ACCOUNTING]}" = none ]; then
  echo "AccountingStorageType=accounting_storage/none" >"$DIR/etc/accounting.conf"
else
  fill accounting.conf
fi
if [ "${knob[ACCOUNTING]}" != none ] && [ -z "${knob[JOIN]}" ]; then
  (umask 077; fill slurmdbd.conf) # slurmdbd refuses a file that others can read
  chmod 600 "$DIR/etc/slurmdbd.conf"
fi
: >"$DIR/etc/plugstack.conf"
echo "export SLURM_CONF=$SLURM_CONF" >"$DIR/env"

# --- daemons ---
# ensure NAME SECONDS CHECK... -- the daemon runs and the check succeeds. Who sent a TERM just before finds it still on its way out, so a
# daemon that does not answer is looked at twice.
ensure() {
  local name=$1 seconds=$2
  shift 2
  runs "$name" || "start_$name"
  within 10 "$@" && return
  runs "$name" || "start_$name"
  within "$seconds" "$@" || die "$name does not answer"
}
# Wakes a daemon that somebody stopped; fails when it is dead.
runs() { local pid; pid=$(pid_of "$1") && kill -CONT "$pid"; }

start_munged() {
  rm -f "$DIR/run/munge.sock"
  munged --force --num-threads=4 --key-file="$DIR/etc/munge.key" --socket="$DIR/run/munge.sock" --pid-file="$DIR/run/munged.pid" \
    --log-file="$DIR/log/munged.log" --seed-file="$DIR/run/munged.seed" 2>>"$DIR/log/start.log" || die munged
}
start_mariadb() {
  [ -d "$DIR/mysql/mysql" ] ||
    mariadb-install-db --no-defaults --user=root --datadir="$DIR/mysql" --auth-root-authentication-method=normal --skip-test-db \
      >>"$DIR/log/start.log" 2>&1 || die mariadb-install-db
  # Small, and without what makes a database outlive a power cut: it need only outlive its processes.
  (setsid mariadbd --no-defaults --user=root --datadir="$DIR/mysql" --socket="$DIR/run/mysql.sock" --pid-file="$DIR/run/mariadb.pid" \
    --bind-address=127.0.0.1 --port=$((PORT + 2)) --skip-log-bin --skip-name-resolve --performance-schema=0 \
    --innodb-buffer-pool-size=64M --innodb-log-file-size=32M --innodb-lock-wait-timeout=900 \
    --innodb-flush-log-at-trx-commit=0 --innodb-doublewrite=0 </dev/null >>"$DIR/log/mariadb.log" 2>&1 &
    echo $! >"$DIR/run/mariadb.pid") # it writes the same when it is ready; till then it must not be started twice
}
start_slurmdbd() { slurmdbd >>"$DIR/log/start.log" 2>&1 || die slurmdbd; }
start_slurmctld() { slurmctld >>"$DIR/log/start.log" 2>&1 || die slurmctld; }
start_slurmd() { slurmd -N "$1" >>"$DIR/log/start.log" 2>&1 || die "slurmd of $1"; }

sql() { mariadb --no-defaults -uroot -S "$DIR/run/mysql.sock" "$@"; }
# Limits need an association of the user's, one to which the QOS belongs; what is there is left as tests may have changed it.
associations() { sacctmgr -nP show assoc cluster=${knob[CLUSTER]} account=lab user=root format=user >"$DIR/run/associations"; }
associate() {
  [ -n "${knob[JOIN]}" ] || sacctmgr -i add qos limited set MaxSubmitJobsPerUser=10
  sacctmgr -i <<END
add cluster ${knob[CLUSTER]}
add account lab cluster=${knob[CLUSTER]}
add user root account=lab cluster=${knob[CLUSTER]} qos=normal,limited defaultqos=normal
modify user root where cluster=${knob[CLUSTER]} set defaultaccount=lab
END
}

if [ -z "${knob[JOIN]}" ]; then ensure munged 10 munge -n --socket "$MUNGE"; fi
if [ "${knob[ACCOUNTING]}" != none ] && [ -z "${knob[JOIN]}" ]; then
  ensure mariadb 40 sql -e "create database if not exists slurm_acct; create user if not exists slurm@'127.0.0.1' identified by 'slurm';
    grant all on slurm_acct.* to slurm@'127.0.0.1'"
  say "MariaDB is up"
fi
if [ "${knob[ACCOUNTING]}" != none ]; then
  if [ -z "${knob[JOIN]}" ]; then ensure slurmdbd 40 associations; else associations; fi
  [ -s "$DIR/run/associations" ] || associate >>"$DIR/log/start.log" 2>&1 || die "sacctmgr refused"
  say "slurmdbd is up"
fi
ensure slurmctld 30 scontrol ping
say "slurmctld is up"
for ((i = 1; i <= NODES; i++)); do
  mkdir -p "$DIR/spool/node$i"
  runs "slurmd.node$i" || start_slurmd "node$i"
done
# Nodes that were set down or drained by hand do not come back by themselves. After a start of slurmctld it takes 4 s till all are known.
all_nodes_up() {
  local off
  [ "$(sinfo -hN -p normal -o %T | grep -cE '^(idle|mixed|allocated|completing)$')" -lt "$NODES" ] || return 0
  off=$(sinfo -hN -p normal -t down,drain,fail -o %N | paste -sd,)
  [ -z "$off" ] || scontrol update nodename="$off" state=resume
  return 1
}
within 30 all_nodes_up || { sinfo -Nl >&2; die "not all nodes are up"; }
say "$NODES nodes are up, ports from $PORT"
echo "source $DIR/env"
