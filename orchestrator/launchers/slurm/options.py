"""The options of sbatch for a submission: ours, changed by `cluster.sbatch`. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from orchestrator.errors import UserError
from orchestrator.jobs.records import Resources, Submission
from orchestrator.launchers.slurm.settings import ClusterProfile

Value = str | int | float | bool | None

OURS: Mapping[str, str] = {
    "array": "launcher.cells_per_job, launcher.max_running",
    "job-name": "jobs are found by it",
    "output": "cluster.logs",
    "error": "cluster.logs",
    "chdir": "the folder of the launch",
    "parsable": "sbatch's answer is read",
    "wait": "sweep launch --wait",
    "test-only": "sweep launch --dry-run",
    "wrap": "jobs run workers",
    "uid": "jobs are the user's own",
    "gid": "jobs are the user's own",
    "help": "sbatch would submit nothing",
    "usage": "sbatch would submit nothing",
    "version": "sbatch would submit nothing",
}
"""Options that a profile may not set, and what to use instead."""

VALUES: Mapping[str, str] = {"time": "cluster.hours", "signal": "cluster.signal_s"}
"""Options that a profile may drop but not set, and the settings that hold their value."""

_SHORT: Mapping[str, str] = {
    "A": "account",
    "B": "extra-node-info",
    "C": "constraint",
    "D": "chdir",
    "F": "nodefile",
    "G": "gpus",
    "H": "hold",
    "J": "job-name",
    "L": "licenses",
    "M": "clusters",
    "N": "nodes",
    "O": "overcommit",
    "Q": "quiet",
    "S": "core-spec",
    "V": "version",
    "W": "wait",
    "a": "array",
    "b": "begin",
    "c": "cpus-per-task",
    "d": "dependency",
    "e": "error",
    "h": "help",
    "i": "input",
    "k": "no-kill",
    "m": "distribution",
    "n": "ntasks",
    "o": "output",
    "p": "partition",
    "q": "qos",
    "s": "oversubscribe",
    "t": "time",
    "u": "usage",
    "v": "verbose",
    "w": "nodelist",
    "x": "exclude",
    "workdir": "chdir",
    "cluster": "clusters",
}
"""Other spellings of sbatch's options, from its manual page."""

_ALTERNATIVES = (
    {"mem", "mem-per-cpu", "mem-per-gpu"},
    {"gres", "gpus", "gpus-per-node", "gpus-per-task", "gpus-per-socket"},
    {"cpus-per-task", "cpus-per-gpu"},
    {"ntasks", "ntasks-per-node", "ntasks-per-core", "ntasks-per-socket", "ntasks-per-gpu"},
    {"requeue", "no-requeue"},
    {"exclusive", "oversubscribe"},
)
"""Groups of options of which one replaces another."""

_OTHERS = (
    "acctg-freq batch bb bbf burst-buffer comment consolidate-segments container container-id "
    "contiguous cores-per-socket cpu-freq deadline delay-boot export export-file extra get-user-env "
    "gpu-bind gpu-freq gres-flags hint ignore-pbs kill-on-invalid-dep mail-type mail-user mcs-label "
    "mem-bind mincpus network nice no-bell ntasks-per-node open-mode power prefer priority profile "
    "propagate qos reboot reservation resv-ports segment sockets-per-node spread-job stepmgr switches "
    "thread-spec threads-per-core tmp tres-bind tres-per-task use-min-nodes wait-all-nodes wckey x11"
)
_KNOWN = sorted({*OURS, *VALUES, *_SHORT.values(), *_OTHERS.split()}.union(*_ALTERNATIVES))
"""The options of sbatch, from its manual page."""
_GPU = re.compile(r"(^|[,:/])\s*(gpu|shard|mps)\b", re.IGNORECASE)


def long_name(option: str) -> str:
    """Return the canonical spelling of an option: ``cpus_per_task`` and ``-c`` become ``cpus-per-task``.

    sbatch takes the beginning of a name for the name, so that ``job`` would set the name of our jobs.

    Raises:
        UserError: several options begin so.
    """
    bare = option.strip().lstrip("-")
    name = _SHORT.get(bare, bare.replace("_", "-"))
    if name in _KNOWN or len(name) < 2:
        return name
    meant = [known for known in _KNOWN if known.startswith(name)]
    if len(meant) > 1:
        raise UserError(
            f"cluster.sbatch.{option} is the beginning of several options",
            where=f"it may be {' or '.join(meant)}",
            allowed="the whole name of one option",
            fix=f"cluster.sbatch.{meant[0]}=...",
        )
    return meant[0] if meant else name


def users(cluster: ClusterProfile) -> dict[str, Value]:
    """Return `cluster.sbatch` by canonical names; None and false drop an option.

    Raises:
        UserError: an option is reserved or given twice, its value has control characters, or it names several
            clusters.
    """
    found: dict[str, Value] = {}
    for given, value in cluster.sbatch.items():
        name = long_name(given)
        if name in OURS or (name in VALUES and value is not None and value is not False):
            raise UserError(
                f"cluster.sbatch.{given} is ours to set",
                where=f"in its place: {OURS.get(name) or VALUES[name]}",
                allowed="any option but " + ", ".join(sorted([*OURS, *VALUES])),
            )
        if name in found:
            raise UserError(f"cluster.sbatch names --{name} twice", allowed="one spelling of it")
        if not re.fullmatch(r"[A-Za-z][A-Za-z0-9-]*", name):
            raise UserError(f"cluster.sbatch.{given} is no name of an option")
        if isinstance(value, str) and not (value.strip() and value.isprintable()):
            raise UserError(
                f"cluster.sbatch.{given} is {value!r}",
                allowed="text of one line; null drops an option of ours",
            )
        found[name] = value
    if isinstance(named := found.get("clusters"), str) and re.search(r"[,\s]", named):
        raise UserError(
            f"cluster.sbatch.clusters names several clusters: {named!r}",
            allowed="one: a job's number counts only on the cluster that gave it",
        )
    return found


def cluster_name(cluster: ClusterProfile) -> str:
    """Return the cluster that the profile submits to, "" for the cluster of this machine."""
    named = users(cluster).get("clusters")
    return named if isinstance(named, str) else ""


def options(submission: Submission, cluster: ClusterProfile, *, output: str) -> dict[str, Value]:
    """Return all options of sbatch for a submission, without the dropped ones.

    The user's options replace ours, and so does an alternative: ``gpus-per-node`` in the profile removes our
    ``gres``. Two lists are merged instead: further generic resources and excluded nodes are added to ours.

    Args:
        submission: what to submit.
        cluster: the profile.
        output: the pattern of the jobs' logs, with Slurm's own characters escaped.
    """
    ours, user = _ours(submission, cluster, output), users(cluster)
    gres = user.get("gres")
    if isinstance(gres, str) and "gres" in ours and not _GPU.search(gres):
        user["gres"] = f"{ours['gres']},{gres}"  # it requests something else, so our request for GPUs stays
    if isinstance(more := user.get("exclude"), str) and ours.get("exclude"):
        user["exclude"] = f"{ours['exclude']},{more}"
    for group in _ALTERNATIVES:
        # an option that is merely dropped replaces nothing
        if any(user.get(name) is not None and user.get(name) is not False for name in group):
            # otherwise sbatch would receive two options that may contradict each other
            ours = {name: value for name, value in ours.items() if name not in group}
    for name, value in user.items():
        if name.startswith("tres-per-"):  # may ask for GPUs and CPUs
            replaced = {"gres", "gpus-per-node"} if _GPU.search(str(value)) else set()
            replaced |= {"cpus-per-task"} if "cpu" in str(value) else set()
            ours = {name: value for name, value in ours.items() if name not in replaced}
    merged = {**ours, **user}
    return {name: value for name, value in merged.items() if value is not None and value is not False}


def _ours(submission: Submission, cluster: ClusterProfile, output: str) -> dict[str, Value]:
    """Return our own options, before the profile's `sbatch` changes them."""
    asked, last = submission.resources, len(submission.tasks) - 1
    throttle = f"%{submission.max_running}" if submission.max_running else ""
    named: dict[str, Value] = {
        "array": f"0-{last}{throttle}",
        "signal": f"USR1@{round(max(cluster.signal_s, asked.signal_s))}",
        "output": output,
        # a restarted task continues its log
        "open-mode": "append",
        "chdir": submission.folder,
        # a preempted job, or one near its time limit, continues under the same number
        "requeue": True,
        "time": minutes(asked.hours),
        "nodes": asked.num_nodes,
        "ntasks-per-node": 1,
        "cpus-per-task": asked.cpus,
        "mem": f"{round(asked.memory_gib * 1024)}M" if asked.memory_gib is not None else None,
        "partition": asked.partition or None,
        "account": cluster.account,
        "qos": cluster.qos,
        "constraint": cluster.constraint,
        "reservation": cluster.reservation,
        "exclude": ",".join(submission.exclude) or None,
        "dependency": _after(submission),
        "exclusive": cluster.exclusive or None,
    }
    if asked.gpus_per_node and cluster.gpu_option == "gres":
        named["gres"] = f"gpu:{_gpus(asked, cluster)}"
    elif asked.gpus_per_node:
        named["gpus-per-node"] = _gpus(asked, cluster)
    return named


def _after(submission: Submission) -> str | None:
    """Return the value of sbatch's ``--dependency``, such as ``after:12_0+9:12_1+9``, in whole minutes."""
    wait = minutes(submission.after_s / 3600)
    return "after:" + ":".join(f"{task}+{wait}" for task in submission.after) if submission.after else None


def _gpus(asked: Resources, cluster: ClusterProfile) -> str:
    """Return the number of GPUs for sbatch, such as ``4``, or ``a100:4`` if the profile names a type."""
    return f"{cluster.gpu_type}:{asked.gpus_per_node}" if cluster.gpu_type else str(asked.gpus_per_node)


def minutes(hours: float) -> int:
    """Return the value of sbatch's ``--time``: whole minutes, at least one."""
    return max(1, math.ceil(hours * 60))


_IGNORED = re.compile(r"(?P<program>SBATCH|SLURM|SALLOC)_(?P<option>[A-Z_]+)")
_BY_VARIABLE: Mapping[str, str] = {
    "ACCOUNT": "account",
    "PARTITION": "partition",
    "QOS": "qos",
    "RESERVATION": "reservation",
    "CONSTRAINT": "constraint",
    "EXCLUSIVE": "exclusive",
    "CLUSTERS": "clusters",
    "TIMELIMIT": "time",
    "GRES": "gres",
    "GPUS": "gpus",
    "GPUS_PER_NODE": "gpus-per-node",
    "GPUS_PER_TASK": "gpus-per-task",
    "MEM_PER_NODE": "mem",
    "MEM_PER_CPU": "mem-per-cpu",
    "MEM_PER_GPU": "mem-per-gpu",
    "CPUS_PER_GPU": "cpus-per-gpu",
    "EXPORT": "export",
    "HINT": "hint",
    "NO_REQUEUE": "no-requeue",
    "WCKEY": "wckey",
    "CORE_SPEC": "core-spec",
    "NETWORK": "network",
    "LICENSES": "licenses",
    "ARRAY_INX": "array",
    "REQ_SWITCH": "switches",
    "DEBUG": "",  # no property of a job, so no note
    "IGNORE_PBS": "ignore-pbs",
}
"""Environment variables that sbatch reads, without their prefix, and the options that they stand for."""

_SETTINGS: Mapping[str, str] = {
    "account": "cluster.account={}",
    "qos": "cluster.qos={}",
    "reservation": "cluster.reservation={}",
    "constraint": "cluster.constraint={}",
    "exclusive": "cluster.exclusive=true",
    "partition": "cluster.partitions={{{}: null}}",
    "time": "cluster.hours, launcher.resources",
}
"""Our settings for options of sbatch, as templates for the value."""

_SWITCHES = frozenset(
    {"exclusive", "no-kill", "no-requeue", "requeue", "overcommit", "spread-job", "use-min-nodes"}
)
"""Options that take no value, or need none."""

_FACTS = frozenset(
    {"SLURM_GPUS", "SLURM_GPUS_PER_NODE", "SLURM_GPUS_PER_TASK", "SLURM_CPUS_PER_GPU", "SLURM_HINT"}
)
"""Variables that describe a job, rather than request something for one."""


def ignored_variables(environment: Mapping[str, str], cluster: ClusterProfile) -> tuple[str, ...]:
    """Return a note on each environment variable that sbatch would read as an option, and that we remove.

    Args:
        environment: of this process.
        cluster: the profile; what it sets already needs no note.
    """
    given, notes = {**users(cluster), **_profile(cluster)}, []
    for variable, value in sorted(environment.items()):
        match = _IGNORED.fullmatch(variable)
        option = _BY_VARIABLE.get(match["option"], "") if match else ""
        if match and match["option"] not in _BY_VARIABLE and match["program"] == "SBATCH":
            # any other SBATCH_ variable stands for the option of the same name
            option = match["option"].lower().replace("_", "-")
        # a job's description of itself, not a user's option
        in_job = "SLURM_JOB_ID" in environment and variable.startswith("SLURM_")
        if not option or not value or in_job or variable in _FACTS or given.get(option) not in (None, False):
            continue
        ours = {**OURS, **VALUES}.get(option)
        setting = "say " + _SETTINGS.get(option, f"+cluster.sbatch.{option}={{}}").format(
            "true" if option in _SWITCHES else value
        )
        notes.append(f"{variable}={value} in the environment is ignored: {ours or setting}")
    return tuple(dict.fromkeys(notes))


def unexpanded(cluster: ClusterProfile) -> tuple[str, ...]:
    """Return a note on each value of `cluster.environment` in which a shell would expand a variable."""
    return tuple(
        f"cluster.environment.{name} has {match[0]}, which arrives as it is: "
        f"what the shell must expand goes into cluster.setup"
        for name, value in cluster.environment.items()
        if isinstance(value, str) and (match := re.search(r"\$\{?[A-Za-z_]\w*\}?", value))
    )


def _profile(cluster: ClusterProfile) -> dict[str, Value]:
    """Return the options that the profile sets through its own keys."""
    named: dict[str, Value] = {
        name: value
        for name in ("account", "qos", "reservation", "constraint", "exclusive")
        if (value := getattr(cluster, name))
    }
    return {**named, "partition": ",".join(cluster.partitions)} if cluster.partitions else named
