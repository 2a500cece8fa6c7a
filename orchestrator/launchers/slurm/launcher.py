"""The Slurm launcher: cells to job arrays. It submits and returns; the store and Slurm tell the rest."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from orchestrator.core.dispatch import Filed
from orchestrator.core.jobs import Over, Resources, Submission
from orchestrator.core.nodes import bad_nodes
from orchestrator.core.selector import Subject, select
from orchestrator.costs import Estimate, Hardware
from orchestrator.errors import InfrastructureError
from orchestrator.launchers.base import Limits, Outcome
from orchestrator.launchers.slurm import query
from orchestrator.launchers.slurm.joblog import explained
from orchestrator.launchers.slurm.options import cluster_name, unexpanded, unheeded
from orchestrator.launchers.slurm.partitions import partitions
from orchestrator.launchers.slurm.resources import resources_of
from orchestrator.launchers.slurm.script import script
from orchestrator.launchers.slurm.settings import Asked, Partition, cluster_profile, slurm_settings
from orchestrator.launchers.slurm.submit import submit

FAST_S = 600.0
"""A job that ends within so many seconds without claiming anything speaks against its node."""


class SlurmLauncher:
    """Submits arrays of jobs, each of which works on its cells.

    Args:
        settings: `launcher` in the config.
        num_cells: how many there are.
        cluster: `cluster` in the config.

    Raises:
        UserError: settings or a profile that make no sense.
    """

    name = "slurm"
    attached = False
    file = "job.sh"  # `sbatch` of it by hand does the same

    def __init__(
        self, settings: Mapping[str, Any], num_cells: int, cluster: Mapping[str, Any] | None = None
    ) -> None:
        self._settings, self._cluster = slurm_settings(settings), cluster_profile(cluster or {})
        self.cells_per_job = self._settings.cells_per_job
        self.max_running, self.max_jobs = self._settings.max_running, self._settings.max_jobs
        self.settle_s = self._cluster.settle_s
        self._name = cluster_name(self._cluster)

    def hardware(self) -> Hardware | None:
        """Says what one cell may have by the profile."""
        return self._cluster.hardware

    def meet(self, store: str, mark: bytes) -> None:
        """Asks nothing: a login node and its nodes share their folders, and each job looks for itself."""

    def limits(self, *, dry_run: bool = False) -> Limits:
        """Ask the controller; a dry run goes by Slurm's defaults where it does not answer.

        Raises:
            InfrastructureError: it does not answer.
        """
        notes = (*unheeded(os.environ, self._cluster), *unexpanded(self._cluster))
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
        self, cells: Sequence[tuple[Subject, Estimate | None, int]], *, known: Sequence[Subject]
    ) -> list[tuple[str, Resources]]:
        """Says what each cell's job asks for.

        Raises:
            UserError: a cell fits no partition, or a selector in `launcher.resources` is wrong.
            InfrastructureError: Slurm does not tell of its partitions.
        """
        asked = {subject.cell: Asked() for subject, _, _ in cells}
        for wanted in self._settings.resources:
            only = [wanted.only] if wanted.only else []
            named = select(only, [(subject.cell, subject) for subject in known])
            for name in asked.keys() & set(named):
                told = {k: v for k in Asked.__struct_fields__ if (v := getattr(wanted, k)) is not None}
                before = {k: getattr(asked[name], k) for k in Asked.__struct_fields__}
                asked[name] = Asked(**{**before, **told})
        return [
            (
                subject.cell,
                resources_of(
                    estimate,
                    asked[subject.cell],
                    self._settings,
                    self._cluster,
                    self._partitions,
                    num_oom=num_oom,
                    cell=subject.cell,
                ),
            )
            for subject, estimate, num_oom in cells
        ]

    def excluded(self, filed: Sequence[Filed]) -> tuple[str, ...]:
        """Names nodes on which jobs kept failing fast, until that has expired."""
        oldest_s = time.time() - 3600 * self._settings.bad_node_hours
        recent = {f.submission.number for f in filed if _seconds(f.submission.at) >= oldest_s}
        return bad_nodes(filed, recent, fast_s=FAST_S)

    def text(self, submission: Submission, *, sweep: str, store: str, code: Path, logs: Path) -> str:
        """Returns the batch script."""
        return script(submission, self._cluster, store=store, sweep=sweep, code=code, logs=logs)

    def logs(self, sweep: str, number: int) -> str:
        """Returns the folder for the logs of a submission's jobs where the profile says, "" for the store."""
        return f"{self._cluster.logs}/{sweep}-{number:06d}" if self._cluster.logs is not None else ""

    def submit(self, submission: Submission, text: str) -> Outcome:
        """Gives the script to sbatch."""
        return submit(text, submission)

    def find(self, submission: Submission) -> str | None:
        """Looks for a job by its name.

        Raises:
            InfrastructureError: the controller does not answer, or would not list the job to this user.
        """
        return query.find(submission)

    def explain(self, filed: Filed, over: Over, logs: Path) -> Over:
        """Add what the job's log says of its end."""
        return explained(filed, over, logs / f"{over.index}.log")


def _seconds(at: str) -> float:
    try:
        return datetime.fromisoformat(at).timestamp()
    except ValueError:
        return 0.0
