"""The Ray launcher: cells to a driver, which is a job of the cluster's. It submits and returns."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import secrets
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from orchestrator.core.selector import Subject, select
from orchestrator.costs import DEVICES, Estimate, Hardware
from orchestrator.errors import InfrastructureError, UserError
from orchestrator.jobs.judgement import SubmissionState
from orchestrator.jobs.records import JobEnd, Resources, Submission
from orchestrator.launchers.base import Limits, SubmitOutcome, Verdict
from orchestrator.launchers.jobs import stepped
from orchestrator.launchers.local import host_hardware
from orchestrator.launchers.ray import environment_check
from orchestrator.launchers.ray.api import Api, Redirected, Unanswered, Unreached, checked_address, is_taken
from orchestrator.launchers.ray.boot import start_of
from orchestrator.launchers.ray.scheduler import EMBEDDED, RayScheduler, this_machine
from orchestrator.launchers.ray.settings import AUTO, LOCAL, RaySettings, WorkerOverride, ray_settings
from orchestrator.store.objects import open_objects

DRIVER = "orchestrator.launchers.ray.driver"
MAX_RESTARTS = 5
"""How often a driver that a signal ended is started anew in its job."""

ALL = 1_000_000

LOOPBACK_SINCE = (2, 60)
"""The first version of Ray that was seen to keep all its ports on loopback under `ALONE`."""

ALONE = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_AUTH_MODE": "token"}
"""Variables of a Ray that no other machine joins; the first is read when `ray` is imported."""

# Started anew by its own job when it is killed: Ray itself would call the job failed.
_LOOP = (
    'n=0; while :; do SWEEP_DRIVER_RESTART=$n "$@"; code=$?; '
    f"if [ $code -lt 128 ] || [ $n -ge {MAX_RESTARTS} ]; then exit $code; fi; n=$((n+1)); done"
)


class RayLauncher:
    """Submits a driver for the cells that ask for the same.

    Args:
        settings: `launcher` in the config.
        num_cells: how many there are.
        cluster: for launchers that have a profile.

    Raises:
        UserError: settings that make no sense.
    """

    name = "ray"
    file = "job.json"
    cells_per_job = ALL  # workers share them out among themselves
    max_running: int | None = None
    max_jobs: int | None = None

    def __init__(
        self, settings: Mapping[str, Any], num_cells: int, cluster: Mapping[str, Any] | None = None
    ) -> None:
        self._settings = ray_settings(settings)
        self.settle_s = self._settings.settle_s
        self.attached = not self._settings.is_remote

    @cached_property
    def _cluster(self) -> str:
        """Where the cluster is reached, or which process of this machine it is embedded in."""
        if self._settings.address == LOCAL:
            return this_machine()
        return found_here() if self._settings.address == AUTO else checked_address(self._settings.address)

    @cached_property
    def _nodes(self) -> list[dict[str, float]]:
        """What each node of the cluster has; of one that is yet to be started nothing is known."""
        return [] if self._settings.address == LOCAL else Api(self._cluster).nodes()

    def hardware(self) -> Hardware | None:
        """Says what one cell may have: by the settings, or else of the cluster's largest node.

        Raises:
            InfrastructureError: the cluster does not answer.
        """
        settings = self._settings
        if settings.address == LOCAL and settings.device in (None, "cpu"):
            return host_hardware()
        device = settings.device or self._device
        if device == "cpu":
            memory = max((node.get("memory", 0.0) for node in self._nodes), default=0.0)
            return (
                Hardware(device="cpu", memory_gib=memory / 2**30, peak_tflops=0.05, max_gpus=1)
                if memory
                else None
            )
        if device not in DEVICES:
            return None
        known = DEVICES[device]
        most = settings.gpus_per_node or max((int(node.get("GPU", 0)) for node in self._nodes), default=0)
        return Hardware(
            device=device, memory_gib=known.memory_gib, peak_tflops=known.peak_tflops, max_gpus=max(1, most)
        )

    @cached_property
    def _device(self) -> str:
        """What the nodes call their GPUs, ``cpu`` where there is none, "" for one that is not known here."""
        if not any(node.get("GPU") for node in self._nodes):
            return "cpu"
        kinds = {
            key.partition(":")[2].lower()
            for node in self._nodes
            for key in node
            if key.startswith("accelerator_type:")
        }
        return next((device for device in DEVICES if device in kinds), "")

    def meet(self, store: str, mark: bytes) -> None:
        """Compares the cluster's Python, Ray and packages with those here, and looks for the store there.

        Raises:
            UserError: they differ, or it cannot be seen.
            InfrastructureError: the cluster does not answer.
        """
        if self._settings.address != LOCAL:
            environment_check.check(Api(self._cluster), self._settings, store, mark)

    def limits(self, *, dry_run: bool = False) -> Limits:
        """Ask whether the cluster is there; a job may have any number of cells.

        Raises:
            UserError: a Ray of this launch's own would listen to the network.
            InfrastructureError: it does not answer.
        """
        if self._settings.address == LOCAL:
            check_version(importlib.metadata.version("ray"))
        else:
            Api(self._cluster).version()
        return Limits(self._cluster, ALL)

    def resources(
        self, cells: Sequence[tuple[Subject, Estimate | None, int]], *, known: Sequence[Subject]
    ) -> list[tuple[str, Resources]]:
        """Says what a worker of each cell asks for.

        Raises:
            UserError: a selector in `launcher.resources` is wrong.
            InfrastructureError: the cluster does not answer.
        """
        asked: dict[str, list[WorkerOverride]] = {subject.cell: [] for subject, _, _ in cells}
        for wanted in self._settings.resources:
            only = [wanted.only] if wanted.only else []
            for name in asked.keys() & set(select(only, [(subject.cell, subject) for subject in known])):
                asked[name].append(wanted)
        hardware = self.hardware()
        has_gpus = hardware is not None and hardware.device != "cpu"
        return [
            (
                subject.cell,
                resources_of(estimate, asked[subject.cell], self._settings, has_gpus=has_gpus),
            )
            for subject, estimate, _ in cells
        ]

    def excluded(self, filed: Sequence[SubmissionState]) -> tuple[str, ...]:
        """Names none: a driver leaves out bad nodes itself."""
        return ()

    def logs(self, sweep: str, number: int) -> str:
        """Returns "": logs lie in the store."""
        return ""

    def text(self, submission: Submission, *, sweep: str, store: str, code: Path, logs: Path) -> str:
        """Returns what the Jobs API is given, as JSON."""
        digest = submission.code.digest if submission.code else ""
        args = (store, sweep, str(submission.number), submission.name)
        start = start_of(open_objects(store), digest, DRIVER, *args)
        python = sys.executable if self._settings.address == LOCAL else self._settings.python
        words = ["env", *(f"{key}={value}" for key, value in start.environment.items()), python, *start.argv]
        request = {
            "submission_id": submission.name,
            "entrypoint": shlex.join(["sh", "-c", _LOOP, submission.name, *words]),
            "metadata": {"sweep": sweep, "submission": str(submission.number), "by": submission.by},
        }
        return json.dumps(request, indent=2)

    def submit(self, submission: Submission, text: str) -> SubmitOutcome:
        """Gives the driver to the cluster, under the submission's name: a lost reply does no harm."""
        if self._settings.address == LOCAL:
            return _start_here(submission, text)
        try:
            reply = Api(self._cluster).submit(json.loads(text))
        except Redirected as error:
            return SubmitOutcome(Verdict.REFUSED, said=f"{error.what}; {error.fix}")
        except Unreached as error:
            return SubmitOutcome(Verdict.UNREACHED, said=str(error))
        except Unanswered as error:
            return SubmitOutcome(Verdict.UNCLEAR, said=str(error))
        said = " ".join(str(reply.data).split())[-300:]
        if is_taken(reply, submission.name):
            return SubmitOutcome(Verdict.ACCEPTED, job=submission.name)
        is_clear = 400 <= reply.status < 500
        return SubmitOutcome(Verdict.REFUSED if is_clear else Verdict.UNCLEAR, said=f"{reply.status} {said}")

    def find(self, submission: Submission) -> str | None:
        """Looks for a driver by its name.

        Raises:
            InfrastructureError: the cluster does not answer.
        """
        answer = RayScheduler(submission.cluster).jobs([submission.name])
        if answer.problem:
            raise InfrastructureError(answer.problem)
        seen = answer.seen.get((submission.name, 0))
        lives = seen is not None and not (seen.over and submission.cluster.startswith(EMBEDDED))
        return submission.name if lives else None

    def explain(self, filed: SubmissionState, over: JobEnd, logs: Path) -> JobEnd:
        """Adds nothing: a driver reports its end itself."""
        return over


def resources_of(
    estimate: Estimate | None,
    asked: Sequence[WorkerOverride],
    settings: RaySettings,
    *,
    has_gpus: bool,
) -> Resources:
    """Returns what a worker asks for.

    Args:
        estimate: of the cell's unfinished stages together; None when none of them says what it costs.
        asked: what the settings say for the cell; a later one outranks an earlier one.
        settings: of the launcher.
        has_gpus: whether the nodes have any.
    """
    told: dict[str, Any] = {}
    custom: dict[str, float] = {}
    for one in asked:
        told |= {
            name: value
            for name in ("gpus", "cpus", "memory_gib", "accelerator")
            if (value := getattr(one, name)) is not None
        }
        custom |= one.custom
    gpus = told.get("gpus", estimate.num_gpus if estimate and has_gpus else 0)
    memory_gib = told.get("memory_gib")
    if memory_gib is None and estimate is not None and estimate.host_memory_gib:
        memory_gib = stepped(estimate.host_memory_gib)
    memory_gib = settings.memory_gib if memory_gib is None else memory_gib
    return Resources(
        gpus_per_node=int(gpus) if gpus == int(gpus) else gpus,
        cpus=told.get("cpus") or (settings.cpus_per_gpu * max(1, int(gpus)) if gpus else settings.cpus),
        memory_gib=memory_gib,
        accelerator=told.get("accelerator", ""),
        custom=tuple(sorted(custom.items())),
    )


def found_here() -> str:
    """Returns the address of the dashboard of the cluster that this machine is a node of.

    Raises:
        UserError: there is none.
    """
    if told := os.environ.get("RAY_API_SERVER_ADDRESS"):
        return checked_address(told)
    from orchestrator.launchers.ray.actors import dashboard_here  # imports Ray, and is needed only here

    try:
        return dashboard_here().rstrip("/")
    except Exception as error:
        raise UserError(
            "there is no Ray cluster on this machine",
            where=" ".join(str(error).split())[:200],
            allowed="launcher.address=http://HOST:8265 for one elsewhere, or local for one of its own",
            fix="launcher.address=local",
        ) from error


def check_version(version: str) -> None:
    """Refuse a Ray of one's own that cannot be kept to this machine.

    Raises:
        UserError: it is of an earlier version than `LOOPBACK_SINCE`.
    """
    if tuple(int(part) for part in re.findall(r"\d+", version)[:2]) < LOOPBACK_SINCE:
        least = ".".join(map(str, LOOPBACK_SINCE))
        raise UserError(
            f"launcher.address=local needs Ray {least} or newer, this is {version}",
            where="an older one listens on all interfaces of the machine, and runs what anybody sends",
            fix=f"pip install 'ray[default]>={least}', or launcher=local, which needs no Ray",
        )


def _start_here(submission: Submission, text: str) -> SubmitOutcome:
    """Start the driver as a process of this machine, in a session of its own, with a Ray of its own.

    That Ray is for this launch alone: it listens on loopback, and asks for a token that nobody else has.
    """
    folder = submission.folder if Path(submission.folder).is_dir() else None
    words = shlex.split(json.loads(text)["entrypoint"])
    subprocess.Popen(
        words,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=folder,
        env={**os.environ, **ALONE, "RAY_AUTH_TOKEN": secrets.token_hex(32)},
        start_new_session=True,
    )
    return SubmitOutcome(Verdict.ACCEPTED, job=submission.name)
