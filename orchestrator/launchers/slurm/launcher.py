"""The Slurm launcher: it submits cells as job arrays and returns.

From then on, the state of the jobs is read from the store and from Slurm.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec

from orchestrator.core.failure import Cause
from orchestrator.core.selector import Subject
from orchestrator.costs import Estimate, Hardware
from orchestrator.errors import InfrastructureError, UserError, nearest
from orchestrator.jobs.judgement import SubmissionState
from orchestrator.jobs.nodes import NodeReports
from orchestrator.jobs.records import JobEnd, Resources, Shortfalls, Submission
from orchestrator.launchers.base import LaunchGpus, Limits, SubmitOutcome, overrides_of
from orchestrator.launchers.slurm import query
from orchestrator.launchers.slurm.options import cluster_name, ignored_variables, unexpanded
from orchestrator.launchers.slurm.parsing import seconds_of
from orchestrator.launchers.slurm.query import asked
from orchestrator.launchers.slurm.script import SETUP_MARK, script, submit
from orchestrator.launchers.slurm.settings import (
    Partition,
    ResourceOverride,
    cluster_profile,
    resources_of,
    slurm_settings,
)
from orchestrator.provenance import age_s
from orchestrator.store.ledger import Ledger

_KILLED = re.compile(r"(exit code 137|signal 9)$")
"""How the detail of an end by SIGKILL closes; as Slurm and a shell report it."""

MIN_FAST_FAILS = 2
"""Early ends that it takes at least to exclude a node; one may be chance."""


def bad_nodes(filed: Sequence[SubmissionState], recent: Collection[int], *, fast_s: float) -> tuple[str, ...]:
    """Return nodes on which jobs ended early without claiming anything, or were killed, too often for chance.

    A job that was killed for its memory, or cancelled, has another cause than ``unknown``. A node is excluded
    after at least `MIN_FAST_FAILS` such ends, if they outnumber its good ends.

    Args:
        filed: all submissions.
        recent: numbers of the submissions whose ends count; older ones have expired.
        fast_s: ends within this many seconds are early.
    """
    good: Counter[str] = Counter()
    bad: Counter[str] = Counter()
    for each in filed:
        if each.submission.number not in recent:
            continue
        for over in each.over.values():
            is_fast = over.seconds is not None and over.seconds <= fast_s
            is_killed = over.cause is Cause.UNKNOWN and _KILLED.search(over.detail) is not None
            if over.node and is_fast and over.cause and (over.idle or is_killed):
                bad[over.node] += 1
            elif over.node and over.cause is None:
                good[over.node] += 1
    return tuple(sorted(node for node, n in bad.items() if n >= MIN_FAST_FAILS and n > good[node]))


_OOM_WORDS = ("exceeded memory limit", "oom-kill", "oom_kill", "Out Of Memory", "OUT_OF_MEMORY")
"""Phrases by which Slurm and the kernel report exhausted host memory."""

_TAIL_BYTES = 4096

_NO_CAUSE = re.compile(
    r"(srun|slurmstepd)\S*: (error: )?(\S+: tasks? [\d,-]+: Exited with exit code"
    r"|Terminating StepId|Terminating job step|Job step aborted|\*\*\* (STEP|JOB)|First task exited"
    r"|Force Terminated)"
    r"|[\d-]+T[\d:]+Z (worker \d+: |job: \S+ submission \d+ task \d+, start)"
)
"""Log lines that report the end of a job but not its cause, and the progress lines of our own jobs."""

_PREFIX = re.compile(r"^((srun|slurmstepd)\S*: (error|fatal): |\S*/slurm_script: (?=line))")
"""What Slurm's programs and bash put before a message; removed before the message is shown."""


def explained(filed: SubmissionState, over: JobEnd, log: Path) -> JobEnd:
    """Complete the end of a job from the job's log.

    Slurm's state names the cause only partly. Without cgroups, a job killed for its memory is FAILED or
    CANCELLED. A line of `cluster.setup` that failed is named in the log. A job that failed before its worker
    could report leaves its reason only in the log. That reason is the last line that is more than Slurm's
    notice of the end.

    Args:
        filed: the submission of the job.
        over: the end, as far as it is known.
        log: the log of the job's task.

    Returns:
        The same end where the log adds nothing.
    """
    if over.word not in ("FAILED", "CANCELLED"):
        return over
    try:
        # only the end: the log of a long job may have gigabytes
        with log.open("rb") as stream:
            stream.seek(max(0, stream.seek(0, 2) - _TAIL_BYTES))
            lines = stream.read().decode(errors="replace").splitlines()
    except OSError:
        return over
    if over.cause is Cause.CONFIG:
        messages = [line for line in lines if line.startswith(SETUP_MARK)]
        return msgspec.structs.replace(over, detail=messages[-1].partition(": ")[2]) if messages else over
    if over.cause not in (Cause.UNKNOWN, Cause.CANCELLED):
        return over
    if any(word in line for word in _OOM_WORDS for line in lines):
        detail = "it used more host memory than it had asked for"
        return msgspec.structs.replace(over, cause=Cause.OOM_HOST, detail=detail)
    # the worker's own report of this start explains more than any line of the log
    report = filed.reports.get(over.index)
    if over.word != "FAILED" or (report is not None and report.restart == over.restarts and report.why):
        return over
    messages = [line.strip() for line in lines if line.strip() and not _NO_CAUSE.match(line)]
    if not messages:
        return over
    return msgspec.structs.replace(over, detail=f"{_PREFIX.sub('', messages[-1])[:300]}: {over.detail}")


def partitions(names: Mapping[str, Partition | None], cluster: str = "") -> dict[str, Partition]:
    """Fill in what the profile leaves open about partitions, from ``sinfo``: what their smallest nodes have.

    Args:
        names: name to what it has; None to query Slurm.
        cluster: Slurm's name for the cluster; "" for the one here.

    Raises:
        UserError: Slurm has no partition of that name.
        InfrastructureError: Slurm does not answer.
    """
    if all(given is not None for given in names.values()):
        return {name: given for name, given in names.items() if given is not None}
    found: dict[str, list[list[str]]] = {}
    options = query.cluster(cluster).options if cluster else ()
    # -a: list hidden partitions too, which the profile may name
    for line in asked("sinfo", *options, "-ah", "-o", "%R|%G|%c|%m|%l").splitlines():
        name, *rest = line.strip().split("|")
        if len(rest) == 4:
            found.setdefault(name, []).append(rest)
    filled = {}
    for name, given in names.items():
        if given is not None:
            filled[name] = given
        elif name not in found:
            raise UserError(
                f"Slurm knows no partition {name!r}", where="cluster.partitions", allowed=nearest(name, found)
            )
        else:
            # one row for each kind of node; a job may land on any, so the smallest counts
            rows = found[name]
            filled[name] = Partition(
                gpus_per_node=min(_gpus(row[0]) for row in rows),
                cpus_per_node=min(_number(row[1]) for row in rows),
                memory_gib=min(_number(row[2]) for row in rows) / 1024,
                max_hours=_hours(rows[0][3]),
            )
    return filled


def _number(text: str) -> int:
    """Return the number at the start of a text, without the ``+`` of sinfo's ranges; 0 for none."""
    match = re.match(r"\d+", text)
    return int(match[0]) if match else 0


def _gpus(gres: str) -> int:
    """Return how many GPUs a node has by its generic resources, such as ``gpu:a100:4(S:0-1)``."""
    return sum(int(n) for n in re.findall(r"gpu(?::[^:,()]+)*:(\d+)", gres))


def _hours(limit: str) -> float | None:
    """Return the hours of a time limit as sinfo prints it; None for no limit."""
    seconds = seconds_of(limit)
    return None if seconds is None else seconds / 3600


FAST_S = 600.0
"""Threshold for early ends, in seconds. Jobs that end earlier without a claim count against their node."""


class SlurmLauncher:
    """A launcher that submits job arrays, in which each job works on its own cells.

    Args:
        settings: the config's `launcher`.
        num_cells: number of cells.
        cluster: the config's `cluster`.

    Raises:
        UserError: the settings or the profile are invalid.
    """

    name = "slurm"
    attached = False
    file = "job.sh"  # `sbatch job.sh` by hand has the same effect

    def __init__(
        self, settings: Mapping[str, Any], num_cells: int, cluster: Mapping[str, Any] | None = None
    ) -> None:
        self._settings = slurm_settings(settings)
        self._cluster = cluster_profile(cluster or {})
        self.cells_per_job = self._settings.cells_per_job
        self.max_running = self._settings.max_running
        self.max_jobs = self._settings.max_jobs
        self.settle_s = self._cluster.settle_s
        self._name = cluster_name(self._cluster)

    def hardware(self) -> Hardware | None:
        """Return what one cell may have according to the profile."""
        return self._cluster.hardware

    def gpus(self) -> LaunchGpus | None:
        """Return the GPUs that the launch may use at once, and those of a node of the profile.

        Raises:
            UserError: `launcher.max_gpus` is not set.
        """
        if self._cluster.device == "cpu" or not self._cluster.gpus_per_node:
            return None
        if self._settings.max_gpus is None:
            raise UserError(
                "hardware.moldable=true chooses GPUs for launcher.max_gpus, which is not set",
                fix="launcher.max_gpus=64, if the sweep may use 64 GPUs at once",
            )
        return LaunchGpus(self._settings.max_gpus, self._cluster.gpus_per_node)

    def meet(self, store: str, mark: bytes) -> None:
        """Do nothing: login and compute nodes share folders, and each job checks the store itself."""

    def limits(self, *, dry_run: bool = False) -> Limits:
        """Query the controller. A dry run uses Slurm's defaults if the controller does not answer.

        Raises:
            InfrastructureError: the controller does not answer.
        """
        notes = (*ignored_variables(os.environ, self._cluster), *unexpanded(self._cluster))
        try:
            return query.limits(self._name)._replace(notes=notes)
        except InfrastructureError as error:
            if not dry_run:
                raise
            default = query.DEFAULT_ARRAY_SIZE
            guess = f"{error.what}: arrays are cut at Slurm's default, {default} tasks"
            return Limits(self._name, default, notes=(guess, *notes))

    @cached_property
    def _partitions(self) -> dict[str, Partition]:
        return partitions(self._cluster.partitions, self._name)

    def resources(
        self,
        cells: Sequence[tuple[Subject, Estimate | None, Shortfalls]],
        *,
        known: Sequence[Subject],
        chosen: Mapping[str, int],
    ) -> list[tuple[str, Resources]]:
        """Return what the job of each cell requests.

        Raises:
            UserError: a cell fits no partition, or a selector in `launcher.resources` is wrong.
            InfrastructureError: Slurm does not list its partitions.
        """
        asked = overrides_of(self._settings.resources, [subject.cell for subject, _, _ in cells], known)
        return [
            (
                subject.cell,
                resources_of(
                    estimate,
                    ResourceOverride(**asked[subject.cell]),
                    self._settings,
                    self._cluster,
                    self._partitions,
                    num_oom=lacked.memory,
                    num_late=lacked.hours,
                    cell=subject.cell,
                    chosen_gpus=chosen.get(subject.cell, 0),
                ),
            )
            for subject, estimate, lacked in cells
        ]

    def excluded(
        self,
        filed: Sequence[SubmissionState],
        ledger: Ledger,
        cluster: str,
        *,
        quarantine_s: float,
        is_dry: bool,
    ) -> tuple[str, ...]:
        """Return nodes that are left out, and those on which jobs kept failing early.

        The latter are excluded until `launcher.bad_node_hours` have passed.
        """
        reported = NodeReports(ledger, quarantine_s, is_reader=is_dry).left_out()
        out = {node for place, node in reported if place.casefold() == cluster.casefold()}
        # an administrator may have repaired the node since, so the evidence expires
        limit_s = 3600 * self._settings.bad_node_hours
        recent = {f.submission.number for f in filed if age_s(f.submission.at) <= limit_s}
        return tuple(sorted(out.union(bad_nodes(filed, recent, fast_s=FAST_S))))

    def text(self, submission: Submission, *, sweep: str, store: str, code: Path, logs: Path) -> str:
        """Return the batch script."""
        return script(submission, self._cluster, store=store, sweep=sweep, code=code, logs=logs)

    def logs(self, sweep: str, number: int) -> str:
        """Return the folder that the profile names for the logs of a submission's jobs, "" for the store."""
        return f"{self._cluster.logs}/{sweep}-{number:06d}" if self._cluster.logs is not None else ""

    def submit(self, submission: Submission, text: str) -> SubmitOutcome:
        """Submit the script with sbatch."""
        return submit(text, submission)

    def find(self, submission: Submission) -> str | None:
        """Return the id of a submission's job, found by the job's name; None if there is none.

        Raises:
            InfrastructureError: the controller does not answer, or hides the job from this user.
        """
        return query.find(submission)

    def explain(self, filed: SubmissionState, over: JobEnd, logs: Path) -> JobEnd:
        """Complete the end of a job from the job's log."""
        return explained(filed, over, logs / f"{over.index}.log")
