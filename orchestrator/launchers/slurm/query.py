"""Asking Slurm: one batched question about many jobs, its limits, its partitions. Changes nothing.

Every command has a time limit, and one that fails or does not answer is said to be so: that is never taken
for an answer.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from orchestrator.core.dispatch import Answer, Phase, Seen
from orchestrator.errors import InfrastructureError, UserError, nearest
from orchestrator.launchers.base import Limits
from orchestrator.launchers.slurm.settings import Partition
from orchestrator.launchers.slurm.words import SACCT, SQUEUE, indexes_of, read_sacct, read_squeue

TIMEOUT_S = 30.0
MAX_IDS = 500
"""Jobs in one question: a command line has its limits."""

_MAY_RETURN = frozenset({"PREEMPTED", "NODE_FAIL", "BOOT_FAIL"})
"""Ends after which Slurm may start a job anew before its accounting says so."""

_COLUMNS = ("JobState", "Reason", "StartTime", "NodeList", "Restarts", "RunTime", "ExitCode", "JobName")
"""Of ``scontrol show job``, in the order in which squeue is asked for the same."""

_NOTHING = "Invalid job id specified"


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
    """Asks about arrays, by job id: ``sacct``, else ``squeue``, else ``scontrol``; never raises.

    Where accounting tells an end after which Slurm may start a job anew, the controller is asked as well.
    """
    wanted = sorted(set(ids), key=int)
    if not wanted:
        return Answer()
    problems = []
    for ask, remembers in ((_sacct, True), (_squeue, False), (_scontrol, False)):
        try:
            seen = ask(wanted)
            return Answer(_confirmed(seen) if remembers else seen, remembers=remembers)
        except InfrastructureError as error:
            problems.append(error.what)
    return Answer(problem=f"Slurm does not answer: {problems[-1]}")


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
            seen.update(read_squeue(said.output.splitlines()))
        elif _NOTHING not in said.error:  # which it says when it knows none of them
            raise InfrastructureError(f"squeue failed: {said.problem}")
    return seen


def _scontrol(ids: Sequence[str]) -> dict[tuple[str, int], Seen]:
    seen: dict[tuple[str, int], Seen] = {}
    for job in ids:
        said = slurm("scontrol", "-o", "show", "job", job)
        if said.code != 0 and _NOTHING not in said.error:
            raise InfrastructureError(f"scontrol failed: {said.problem}")
        lines = []
        for line in said.output.splitlines():
            told = dict(re.findall(r"(\w+)=(\S*)", line))
            task = told.get("ArrayTaskId", "")
            rest = [told.get(name, "") for name in _COLUMNS]
            indexes = indexes_of(task.partition("%")[0]) if re.fullmatch(r"[\d,\-:]+(%\d+)?", task) else ()
            lines += ["|".join([told.get("ArrayJobId", job), str(index), *rest]) for index in indexes]
        seen.update(read_squeue(lines))
    return seen


def _confirmed(seen: dict[tuple[str, int], Seen]) -> dict[tuple[str, int], Seen]:
    """Asks the controller about ends that may be none; what it does not tell stays open."""
    doubtful = {task for task, each in seen.items() if each.over and each.word in _MAY_RETURN}
    if not doubtful:
        return seen
    try:
        now = _squeue(sorted({job for job, _ in doubtful}, key=int))
    except InfrastructureError:
        return {
            task: each._replace(phase=Phase.UNKNOWN, over=None) if task in doubtful else each
            for task, each in seen.items()
        }
    for task in doubtful:
        told, end = now.get(task), seen[task]
        if told is not None and told.phase in (Phase.QUEUED, Phase.RUNNING):
            before = end.over.cause if end.over else None
            restarts = max(told.restarts or 0, (end.restarts or 0) + (told.phase is Phase.QUEUED))
            seen[task] = told._replace(before=before, before_word=end.word, restarts=restarts)
    return seen


def find(name: str) -> str | None:
    """Finds an array by its job name: its id, or None when neither controller nor accounting knows it.

    Raises:
        InfrastructureError: the controller does not answer, so nothing is known.
    """
    listed = [
        line.strip() for line in asked("squeue", "-h", "-t", "all", f"--name={name}", "-o", "%F").splitlines()
    ]
    if not listed:
        said = slurm("sacct", "-nPX", "-S", "2000-01-01", f"--name={name}", "-o", "JobID")
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
    """What may be asked about jobs of this cluster; a `Scheduler`."""

    def jobs(self, ids: Iterable[str]) -> Answer:
        """Asks about arrays; never raises."""
        return jobs(ids)

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
        """Cancels pending tasks.

        Raises:
            InfrastructureError: scancel failed.
        """
        for part in _parts(tasks):
            said = slurm("scancel", "--state=PENDING", *part)
            if said.code != 0 and _NOTHING not in said.error:
                raise InfrastructureError(f"scancel failed: {said.problem}")
