"""Why Slurm refuses a job or keeps it waiting: for now, for good, or without saying which. Pure.

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
"""What sbatch says when it cannot know whether the controller took the job."""

UNREACHED = re.compile(
    r"Unable to contact slurm controller|connect failure|Connection refused|No route to host", re.IGNORECASE
)
"""What sbatch says when nothing can have reached the controller."""

_FEWER_JOBS = re.compile(
    r"(QOS|Assoc)\w*Submit\w*|MaxSubmitJobs\w*|(QOS|Assoc)(Max|Grp)Jobs\w*|MaxJobsPer\w*|MaxJobCount"
    r"|QOSJobLimit|AssociationJobLimit|temporarily unable to accept",
    re.IGNORECASE,
)
_LATER = re.compile(r"Required partition not available", re.IGNORECASE)
"""A partition that is being drained, or is set inactive: for maintenance, as a rule."""

_POLICY = re.compile(r"violates accounting/QOS policy", re.IGNORECASE)

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
            r"(launch|user env retrieval)[ _]failed[ _]requeued[ _]held",
            "a node failed to start it, and Slurm holds it: `scontrol release`, or sweep cancel",
        ),
        (
            r"JobHoldMaxRequeue",
            "it was started anew too often: `scontrol release` it, or sweep cancel and launch",
        ),
    )
)
_AT_ONCE = re.compile(r"(QOS|Assoc)(Max|Grp)\w+(PerUser|PerAccount|Limit|Minutes|Mem|GRES|Node|Cpu)\w*")
"""Limits on what runs together: sbatch names them only when one job alone is more than they allow."""


def never(reason: str) -> str:
    """Return what to change when a waiting job with this reason can never start, "" when it may.

    Args:
        reason: Slurm's word, such as ``QOSMaxWallDurationPerJobLimit``; its text after a comma is ignored.
    """
    word = reason.partition(",")[0].strip("() ")
    return next((advice for pattern, advice in _ADVICE if pattern.fullmatch(word)), "")


def is_limit(said: str) -> bool:
    """Return whether sbatch refused for now: fewer jobs than a limit allows, or later, may do."""
    if _FEWER_JOBS.search(said) or _LATER.search(said):
        return True
    return bool(_POLICY.search(said)) and not refusal_advice(said)


def refusal_advice(said: str) -> str:
    """Return what to change when sbatch refused a job for good, by the reason that it names; "" for none."""
    for word in re.findall(r"\w+", said):
        if _FEWER_JOBS.fullmatch(word):
            return ""
        if advice := never(word):
            return advice
        if _AT_ONCE.fullmatch(word):
            return _LESS
    for pattern, advice in _TEXTS:
        if pattern.search(said):
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
        (
            r"Invalid (feature|generic resource|gres)",
            "cluster.constraint, cluster.gpu_type, cluster.gpu_option",
        ),
        (
            r"Requested node configuration is not available",
            "no node has so much, or such GPUs: launcher.resources, cluster.gpu_type",
        ),
        (r"reservation", "cluster.reservation"),
        (r"(unrecognized|invalid|unknown) option", "cluster.sbatch: null or false drops an option"),
    )
)
