"""Why Slurm refuses a job or keeps it waiting: for now, for good, or without naming a cause. Pure.

Sources: the table of reasons in Slurm's src/common/job_state_reason.c and slurm_errno.c (22.05 to 25.05), the
manual page "Resource Limits", and what `sbatch` printed on real clusters.
"""

from __future__ import annotations

import re

UNCLEAR = re.compile(
    r"timed out|Zero Bytes were transmitted|Transport endpoint|Broken pipe|Connection reset"
    r"|Unexpected message received|Communication connection failure|Protocol|Authentication"
    r"|Slurm backup controller in standby",
    re.IGNORECASE,
)
"""Errors of sbatch after which the controller may have accepted the job or not."""

UNREACHED = re.compile(
    r"Unable to contact slurm controller|connect failure|Connection refused|No route to host", re.IGNORECASE
)
"""Errors of sbatch after which nothing can have reached the controller."""

_FEWER_JOBS = re.compile(
    r"(QOS|Assoc)\w*Submit\w*|MaxSubmitJobs\w*|(QOS|Assoc)(Max|Grp)Jobs\w*|MaxJobsPer\w*|MaxJobCount"
    r"|QOSJobLimit|AssociationJobLimit|temporarily unable to accept",
    re.IGNORECASE,
)
"""Limits on the number of jobs. They pass when other jobs end, so they are no reason to change the
request."""

_LATER = re.compile(r"Required (partition|node) not available", re.IGNORECASE)
"""A partition or a node that is drained, inactive or reserved, usually for maintenance."""

_POLICY = re.compile(r"violates accounting/QOS policy", re.IGNORECASE)
"""The general message for a violated limit; a specific reason may stand beside it."""


_HOURS = "ask for fewer hours: cluster.max_hours, or launcher.resources=[{hours: H}]"
_MEMORY = "ask for less memory: cluster.memory_gib, or launcher.resources=[{memory_gib: M}]"
_GPUS = "ask for fewer GPUs: launcher.resources=[{gpus: N}]"
_CPUS = "ask for fewer CPUs: cluster.cpus, cluster.cpus_per_gpu, or launcher.resources=[{cpus: N}]"
_NODES = "ask for fewer nodes: launcher.resources=[{nodes: N}]"
_LESS = "ask for less: launcher.resources, or another cluster.qos or cluster.partitions"
_MORE = "the QOS wants at least so much of a job: launcher.resources, or another cluster.qos"
_ACCESS = (
    "another cluster.account, cluster.qos or cluster.partitions; `sacctmgr show assoc user=$USER` lists yours"
)

_FAILED_START = r"(launch|user env retrieval)[ _]failed[ _]requeued[ _]held"

MAX_RELEASED = 3
"""Starts of a job after which one that its node failed to start is no longer released; our choice."""

_ADVICE: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), advice)
    for pattern, advice in (
        (r"(QOS|Assoc)MaxWallDurationPerJobLimit|(Partition|QOS|Association)TimeLimit", _HOURS),
        (r"(QOS|Assoc)Max(Cpu|CPU)\w*MinutesPerJob\w*", f"{_HOURS}; or fewer CPUs"),
        (r"(QOS|Assoc)Max\w+MinutesPerJob\w*", f"{_HOURS}; or less of what it counts"),
        (r"(QOS|Assoc)Max(Memory|Mem)Per(Job|Node)\w*|MaxMemPerLimit|MaxMemPerCPU", _MEMORY),
        (r"(QOS|Assoc)MaxGRESPer(Job|Node)\w*", _GPUS),
        (r"(QOS|Assoc)Max(Cpu|CPU)Per(Job|Node)\w*|MaxCPUsPerNode", _CPUS),
        (r"(QOS|Assoc)MaxNodePerJob\w*|Partition(Node|Max)(Limit|Nodes)", _NODES),
        (r"PartitionMinNodes|QOSMin\w+", _MORE),
        # after the specific limits above, which have better advice
        (r"(QOS|Assoc)Max\w+Per(Job|Node)(Limit)?", _LESS),
        (r"(QOS|Association)ResourceLimit", _LESS),
        (r"InvalidAccount|InvalidQOS|AccountNotAllowed|QOSNotAllowed", _ACCESS),
        (
            r"PartitionConfig",
            "the partition has no such nodes, or none for you: launcher.resources, cluster.partitions",
        ),
        (r"BadConstraints", "cluster.constraint, cluster.gpu_type and cluster.sbatch name what no node has"),
        (r"ReservationDeleted", "another cluster.reservation, or none"),
        (r"DependencyNeverSatisfied", "cluster.sbatch.dependency waits for what cannot happen any more"),
        (
            _FAILED_START,
            "a node failed to start it, and Slurm holds it: `scontrol release`, or sweep cancel",
        ),
        (
            r"JobHoldMaxRequeue",
            "it was started anew too often: `scontrol release` it, or sweep cancel and launch",
        ),
    )
)
"""Reasons of waiting jobs that never pass by themselves, and what to change. The first match counts."""

_AT_ONCE = re.compile(r"(QOS|Assoc)(Max|Grp)\w+(PerUser|PerAccount|Limit|Minutes|Mem|GRES|Node|Cpu)\w*")
"""Limits on what runs at the same time.

For a waiting job such a limit passes when other jobs end. sbatch names it only when one job alone exceeds it,
so a refusal with it is final."""


def never(reason: str) -> str:
    """Return what to change if a waiting job with this reason can never start, "" if it may still start.

    Args:
        reason: Slurm's reason, such as ``QOSMaxWallDurationPerJobLimit``; text after a comma is ignored.
    """
    word = reason.partition(",")[0].strip("() ")
    return next((advice for pattern, advice in _ADVICE if pattern.fullmatch(word)), "")


def may_release(reason: str, restarts: int | None) -> bool:
    """Return whether a job is held only because a node failed to start it, at most `MAX_RELEASED` times.

    Slurm holds such a job for ever, also where its controller was lost for a moment.

    Args:
        reason: Slurm's reason.
        restarts: how often the job was started anew; None if it is not known.
    """
    return bool(re.match(_FAILED_START, reason.strip("() "))) and (restarts or 0) <= MAX_RELEASED


def is_limit(message: str) -> bool:
    """Return whether sbatch's refusal, by its message, may pass: with fewer jobs, or later."""
    if _FEWER_JOBS.search(message) or _LATER.search(message):
        return True
    # the general message alone may mean that other jobs use up the limit now
    return bool(_POLICY.search(message)) and not refusal_advice(message)


def refusal_advice(message: str) -> str:
    """Return what to change if sbatch refused a job for good, by the reason in its message; "" otherwise."""
    # a message may hold several words, and the reason may be any of them
    for word in re.findall(r"\w+", message):
        # not final, see `is_limit`
        if _FEWER_JOBS.fullmatch(word):
            return ""
        if advice := never(word):
            return advice
        if _AT_ONCE.fullmatch(word):
            return _LESS
    for pattern, advice in _TEXTS:
        if pattern.search(message):
            return advice
    return ""


_TEXTS: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern, re.IGNORECASE), advice)
    for pattern, advice in (
        (r"Requested time limit is invalid", _HOURS),
        (r"Memory (specification|required by task)", f"{_MEMORY}; or cluster.sbatch.mem: null"),
        (r"CPU count per node can not be satisfied", _CPUS),
        (r"Node count specification invalid|More processors requested than permitted", _NODES),
        (r"invalid (account|qos|partition)|account/partition combination|Invalid qos", _ACCESS),
        (r"Access/permission denied|not permitted to use this partition", _ACCESS),
        (
            r"partition configuration not available",
            "the partition takes no such job now: launcher.resources, cluster.partitions",
        ),
        (
            r"Invalid (feature|generic resource|gres)",
            "cluster.constraint, cluster.gpu_type, cluster.gpu_option",
        ),
        (
            r"Requested node configuration is not available",
            "no node has so much, or such GPUs: launcher.resources, cluster.gpu_type",
        ),
        (r"reservation", "cluster.reservation"),
        (r"Trackable RESource|GRES option", "cluster.gpu_option, cluster.gpu_type, cluster.sbatch"),
        (r"node name", "cluster.sbatch: nodelist and exclude"),
        (r"dependency problem", "cluster.sbatch.dependency"),
        (
            r"(license|wckey|Burst Buffer|switch|--[\w-]+) (specification|request)",
            "the option of that name in cluster.sbatch",
        ),
        (r"(unrecognized|invalid|unknown) option", "cluster.sbatch: null or false drops an option"),
    )
)
"""Messages of sbatch that name no reason from Slurm's table, and what to change."""
