"""Asking Slurm: one batched question about many jobs, its limits, its partitions. Changes nothing.

Every command has a time limit, and one that fails or does not answer is said to be so: that is never taken
for an answer.
"""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from typing import NamedTuple

from orchestrator.core.dispatch import Answer, Seen
from orchestrator.errors import InfrastructureError, UserError, nearest
from orchestrator.launchers.base import Limits
from orchestrator.launchers.slurm.settings import Partition
from orchestrator.launchers.slurm.words import SACCT, SQUEUE, agreed, read_sacct, read_squeue

TIMEOUT_S = 30.0
SILENT_S = 60.0
"""A command that did not answer in time is not asked again so soon."""

MAX_IDS = 500
"""Jobs in one question: a command line has its limits."""

_NOTHING = "Invalid job id specified"
_silent_until_s: dict[str, float] = {}


class Said(NamedTuple):
    """How a command of Slurm's ended."""

    code: int
    output: str
    error: str

    @property
    def problem(self) -> str:
        """Its last words on standard error, on one line."""
        lines = [line.strip() for line in self.error.splitlines() if line.strip()]
        return lines[-1] if lines else f"exit code {self.code}"


def environment() -> dict[str, str]:
    """Returns ours without what a job that we may be in says of itself: sbatch would take it for options."""
    ours = ("SLURM_CONF", "SLURM_CLUSTERS", "SLURM_CONF_SERVER")
    return {
        name: value
        for name, value in os.environ.items()
        if name in ours or not name.startswith(("SLURM_", "SLURMD_", "SBATCH_", "SRUN_"))
    }


def slurm(*words: str, text: str | None = None, timeout_s: float = TIMEOUT_S) -> Said:
    """Runs a command of Slurm's.

    Raises:
        InfrastructureError: there is no such command here, or it did not answer in time.
    """
    if time.monotonic() < _silent_until_s.get(words[0], 0.0):
        raise InfrastructureError(f"{words[0]} did not answer a moment ago")
    try:
        done = subprocess.run(
            words,
            input=text,
            stdin=subprocess.DEVNULL if text is None else None,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
            errors="replace",
        )
    except FileNotFoundError as error:
        raise InfrastructureError(
            f"there is no {words[0]} here", fix="run it on a login node of the cluster; sweep doctor"
        ) from error
    except subprocess.TimeoutExpired as error:
        _silent_until_s[words[0]] = time.monotonic() + SILENT_S
        raise InfrastructureError(f"{words[0]} did not answer within {timeout_s:.0f} s") from error
    return Said(done.returncode, done.stdout, done.stderr)


def asked(*words: str) -> str:
    """Runs a command whose output is needed.

    Raises:
        InfrastructureError: it did not succeed.
    """
    said = slurm(*words)
    if said.code != 0:
        raise InfrastructureError(f"{words[0]} failed: {said.problem}")
    return said.output


def limits() -> Limits:
    """Reads the controller's configuration.

    Raises:
        InfrastructureError: it does not answer.
    """
    config = dict(re.findall(r"^(\w+)\s*=\s*(.*?)\s*$", asked("scontrol", "show", "config"), re.MULTILINE))
    size = config.get("MaxArraySize", "")
    return Limits(
        cluster=config.get("ClusterName", "slurm"),
        max_tasks=max(1, int(size)) if size.isdigit() else 1001,  # indexes run from 0 to one below it
    )


def jobs(ids: Iterable[str]) -> Answer:
    """Asks the controller and accounting about arrays, by job id, at the same time; never raises.

    The controller knows what lives, and forgets what is over; accounting remembers, but lags behind.
    """
    wanted = sorted(set(ids), key=int)
    if not wanted:
        return Answer(complete=True)
    with ThreadPoolExecutor(2) as pool:
        asking = [pool.submit(ask, wanted) for ask in (_squeue, _sacct)]
    told: list[dict[tuple[str, int], Seen] | None] = []
    problems = []
    for each in asking:
        try:
            told.append(each.result())
        except InfrastructureError as error:
            told.append(None)
            problems.append(error.what)
    now, accounts = told
    if now is None and accounts is None:
        return Answer(problem=f"Slurm does not answer: {problems[0]}")
    gap = "" if now is not None else f"accounting does not list it, and {problems[0]}"
    return Answer(agreed(now, accounts or {}), complete=now is not None, gap=gap)


def _sacct(ids: Sequence[str]) -> dict[tuple[str, int], Seen]:
    seen: dict[tuple[str, int], Seen] = {}
    for part in _parts(ids):
        # without a start time only jobs since midnight are told
        words = ("sacct", "-nPXD", "-S", "2000-01-01", "-j", ",".join(part), "-o", SACCT)
        seen.update(read_sacct(asked(*words).splitlines()))
    return seen


def _squeue(ids: Sequence[str]) -> dict[tuple[str, int], Seen]:
    seen: dict[tuple[str, int], Seen] = {}
    for part in _parts(ids):
        said = slurm("squeue", "-hr", "-t", "all", "-j", ",".join(part), "-O", SQUEUE)
        if said.code == 0:
            lines = said.output.splitlines()
            if strange := [line for line in lines if line.strip() and line.count("|") != SQUEUE.count("|")]:
                raise InfrastructureError(f"squeue answers what is not understood here: {strange[0][:60]!r}")
            seen.update(read_squeue(lines))
        elif _NOTHING not in said.error:  # which it says when it knows none of them
            raise InfrastructureError(f"squeue failed: {said.problem}")
    return seen


def find(name: str, submitted_at: str) -> str | None:
    """Finds an array by its job name: its id, or None when neither controller nor accounting knows it.

    Args:
        name: which no other job has.
        submitted_at: when that was tried, in ISO 8601; accounting is asked from the day before on.

    Raises:
        InfrastructureError: the controller does not answer, so nothing is known.
    """
    listed = [
        line.strip() for line in asked("squeue", "-h", "-t", "all", f"--name={name}", "-o", "%F").splitlines()
    ]
    if not listed:
        since = (datetime.fromisoformat(submitted_at) - timedelta(days=1)).strftime("%Y-%m-%d")
        said = slurm("sacct", "-nPX", "-S", since, f"--name={name}", "-o", "JobID")
        listed = [line.partition("_")[0] for line in said.output.splitlines()] if said.code == 0 else []
    found = sorted({job for job in listed if job.isdigit()}, key=int)
    return found[0] if found else None


def partitions(names: Mapping[str, Partition | None]) -> dict[str, Partition]:
    """Fills in what the profile does not say of a partition from ``sinfo``: of its smallest node.

    Raises:
        UserError: Slurm does not know a partition.
        InfrastructureError: it does not answer.
    """
    if all(told is not None for told in names.values()):
        return {name: told for name, told in names.items() if told is not None}
    found: dict[str, list[list[str]]] = {}
    for line in asked("sinfo", "-h", "-o", "%R|%G|%c|%m|%l").splitlines():
        name, *rest = line.strip().split("|")
        found.setdefault(name, []).append(rest)
    filled = {}
    for name, told in names.items():
        if told is not None:
            filled[name] = told
        elif name not in found:
            raise UserError(
                f"Slurm knows no partition {name!r}", where="cluster.partitions", allowed=nearest(name, found)
            )
        else:
            rows = found[name]
            filled[name] = Partition(
                gpus_per_node=min(_gpus(row[0]) for row in rows),
                cpus_per_node=min(_number(row[1]) for row in rows),
                memory_gib=min(_number(row[2]) for row in rows) / 1024,
                max_hours=_hours(rows[0][3]),
            )
    return filled


def _number(text: str) -> int:
    match = re.match(r"\d+", text)
    return int(match[0]) if match else 0


def _gpus(gres: str) -> int:
    return sum(int(n) for n in re.findall(r"gpu(?::[^:,()]+)*:(\d+)", gres))


def _hours(limit: str) -> float | None:
    days, _, clock = limit.rpartition("-")
    if not re.fullmatch(r"[\d:]+", clock) or (days and not days.isdigit()):
        return None  # infinite
    parts = [int(part) for part in clock.split(":")]
    parts = [0] * (3 - len(parts)) + parts if len(parts) > 1 else [0, parts[0], 0]
    return int(days or 0) * 24 + parts[0] + parts[1] / 60 + parts[2] / 3600


def _parts(items: Sequence[str]) -> list[Sequence[str]]:
    return [items[start : start + MAX_IDS] for start in range(0, len(items), MAX_IDS)]


class SlurmScheduler:
    """What may be asked about jobs of a cluster; a `Scheduler`.

    Args:
        cluster: Slurm's name for it.
    """

    def __init__(self, cluster: str) -> None:
        self._cluster = cluster

    def jobs(self, ids: Iterable[str]) -> Answer:
        """Asks about arrays; never raises. Of jobs that are unknown here another cluster may know."""
        wanted = set(ids)
        answer = jobs(wanted)
        if not answer.complete or wanted <= {job for job, _ in answer.seen}:
            return answer
        try:
            here = limits().cluster
        except InfrastructureError:
            return answer._replace(complete=False, gap="the controller does not answer")
        if here != self._cluster:
            return Answer(problem=f"they are jobs of cluster {self._cluster}, and this is {here}")
        return answer

    def waiting(self, tasks: Sequence[str]) -> dict[str, str]:
        """Returns the controller's reasons: accounting knows only some of them."""
        found: dict[str, str] = {}
        for part in _parts(tasks):
            try:
                said = slurm("squeue", "-hr", "-t", "PENDING", "-j", ",".join(part), "-o", "%F_%K|%r|%S")
            except InfrastructureError:
                return found
            for line in said.output.splitlines():
                task, reason, start = (field.strip() for field in f"{line}||".split("|", 2))
                start = start.strip("|")
                found[task] = reason + ("" if start in ("", "N/A") else f", expected to start at {start}")
        return found

    def cancel(self, tasks: Sequence[str]) -> None:
        """Cancels tasks; with ``--state=PENDING`` scancel would end all of an array of which one waits.

        Raises:
            InfrastructureError: scancel failed.
        """
        for part in _parts(tasks):
            said = slurm("scancel", *part)
            if said.code != 0 and _NOTHING not in said.error:
                raise InfrastructureError(f"scancel failed: {said.problem}")
