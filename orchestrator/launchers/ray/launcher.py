"""The Ray launcher: it submits a driver, which is a job of the cluster, and returns."""

from __future__ import annotations

import importlib.metadata
import json
import math
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

from orchestrator.core.selector import Subject
from orchestrator.costs import DEVICES, Estimate, Hardware
from orchestrator.errors import InfrastructureError, UserError
from orchestrator.jobs.judgement import SubmissionState, same_controller
from orchestrator.jobs.records import JobEnd, Resources, Shortfalls, Submission
from orchestrator.launchers.base import LaunchGpus, Limits, SubmitOutcome, Verdict, overrides_of
from orchestrator.launchers.local import host_hardware
from orchestrator.launchers.ray import boot
from orchestrator.launchers.ray.api import (
    Api,
    Redirected,
    Unanswered,
    Unreached,
    Untrusted,
    checked_address,
    is_taken,
)
from orchestrator.launchers.ray.boot import ENVIRONMENT, start_of
from orchestrator.launchers.ray.scheduler import EMBEDDED, RayScheduler, this_machine
from orchestrator.launchers.ray.settings import (
    AUTO,
    GIB,
    LOCAL,
    ray_settings,
    resources_of,
)
from orchestrator.store.ledger import Ledger
from orchestrator.store.opening import open_objects

DRIVER = "orchestrator.launchers.ray.driver"
"""The module that the job runs."""

MAX_RESTARTS = 5
"""How often a driver that a signal ended is restarted within its job."""

ALL = 1_000_000
"""More cells than any sweep has, because a driver takes any number."""


LOOPBACK_SINCE = (2, 60)
"""The first version of Ray that was observed to keep all its ports on loopback under `ALONE`."""

ALONE = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_AUTH_MODE": "token"}
"""Variables of a Ray that no other machine joins; the first is read when `ray` is imported."""

# The job itself restarts a driver that was killed, because Ray would only mark the job as failed. Codes from
# 128 on mean that a signal ended the driver.
_LOOP = (
    'n=0; while :; do SWEEP_DRIVER_RESTART=$n "$@"; code=$?; '
    f"if [ $code -lt 128 ] || [ $n -ge {MAX_RESTARTS} ]; then exit $code; fi; n=$((n+1)); done"
)


class RayLauncher:
    """A launcher that submits one driver for all cells with the same request.

    Args:
        settings: the config's `launcher`.
        num_cells: number of cells.
        cluster: ignored; only launchers with a cluster profile use it.

    Raises:
        UserError: invalid settings.
    """

    name = "ray"
    file = "job.json"
    cells_per_job = ALL  # workers share the cells among themselves
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
        """The address of the cluster, or the process of this machine in which it is embedded."""
        if self._settings.address == LOCAL:
            return this_machine()
        return found_here() if self._settings.address == AUTO else checked_address(self._settings.address)

    @cached_property
    def _nodes(self) -> list[dict[str, float]]:
        """What each node of the cluster has; empty for a Ray that is yet to be started."""
        return [] if self._settings.address == LOCAL else Api(self._cluster).nodes()

    def hardware(self) -> Hardware | None:
        """Return what one cell may have: by the settings, or else by the cluster's largest node.

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
        # a type of GPU without known figures: nothing can be planned for it
        if device not in DEVICES:
            return None
        most = settings.gpus_per_node or max((int(node.get("GPU", 0)) for node in self._nodes), default=0)
        return Hardware(device=device, max_gpus=max(1, most), **DEVICES[device]._asdict())

    def gpus(self) -> LaunchGpus | None:
        """Return the GPUs that the launch may use at once: by the settings, or else those of the cluster.

        Raises:
            UserError: `launcher.max_gpus` is not set, and the cluster has no node with GPUs yet.
            InfrastructureError: the cluster does not answer.
        """
        hardware = self.hardware()
        if hardware is None or hardware.device == "cpu":
            return None
        number = self._settings.max_gpus or sum(int(node.get("GPU", 0)) for node in self._nodes)
        if not number:
            raise UserError(
                "hardware.moldable=true chooses GPUs for launcher.max_gpus, which is not set",
                where="the cluster has no GPUs yet",
                fix="launcher.max_gpus=64, if the sweep may use 64 GPUs at once",
            )
        return LaunchGpus(number, hardware.max_gpus)

    @cached_property
    def _device(self) -> str:
        """The nodes' type of GPU: ``cpu`` if there is none, "" if it is unknown here."""
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
        """Compare the cluster's Python, Ray and packages with those here, and check that it sees the store.

        Raises:
            UserError: they differ, or the cluster does not see the store.
            InfrastructureError: the cluster does not answer.
        """
        if self._settings.address != LOCAL:
            boot.check_environment(Api(self._cluster), self._settings, store, mark)

    def limits(self, *, dry_run: bool = False) -> Limits:
        """Check that the cluster answers; a job may have any number of cells.

        Raises:
            UserError: a Ray for this launch alone would listen on the network.
            InfrastructureError: the cluster does not answer.
        """
        if self._settings.address == LOCAL:
            check_version(importlib.metadata.version("ray"))
            return Limits(self._cluster, ALL)
        api = Api(self._cluster)
        api.version()
        return Limits(self._cluster, ALL, controller=api.address)

    def resources(
        self,
        cells: Sequence[tuple[Subject, Estimate | None, Shortfalls]],
        *,
        known: Sequence[Subject],
        chosen: Mapping[str, int],
    ) -> list[tuple[str, Resources]]:
        """Return what a worker of each cell requests; more memory than any node has is never requested.

        Raises:
            UserError: a selector in `launcher.resources` is wrong.
            InfrastructureError: the cluster does not answer.
        """
        asked = overrides_of(self._settings.resources, [subject.cell for subject, _, _ in cells], known)
        hardware = self.hardware()
        has_gpus = hardware is not None and hardware.device != "cpu"
        most_gib = math.inf
        if any(lacked.memory for _, _, lacked in cells):  # only then, because it asks the cluster
            most_gib = max((node.get("memory", 0.0) for node in self._nodes), default=0.0) / GIB or math.inf
        return [
            (
                subject.cell,
                resources_of(
                    estimate,
                    asked[subject.cell],
                    self._settings,
                    has_gpus=has_gpus,
                    chosen_gpus=chosen.get(subject.cell, 0),
                    num_oom=lacked.memory,
                    most_gib=most_gib,
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
        """Return none: a driver starts no worker on a node that is left out, also on later reports."""
        return ()

    def logs(self, sweep: str, number: int) -> str:
        """Return "": logs lie in the store."""
        return ""

    def text(self, submission: Submission, *, sweep: str, store: str, code: Path, logs: Path) -> str:
        """Return the request to the Jobs API, as JSON."""
        digest = submission.code.digest if submission.code else ""
        args = (store, sweep, str(submission.number), submission.name)
        argv = start_of(open_objects(store), digest, DRIVER, *args)
        python = sys.executable if self._settings.address == LOCAL else self._settings.python
        words = ["env", *(f"{key}={value}" for key, value in ENVIRONMENT.items()), python, *argv]
        request = {
            "submission_id": submission.name,
            "entrypoint": shlex.join(["sh", "-c", _LOOP, submission.name, *words]),
            "metadata": {"sweep": sweep, "submission": str(submission.number), "by": submission.by},
        }
        return json.dumps(request, indent=2)

    def submit(self, submission: Submission, text: str) -> SubmitOutcome:
        """Submit the driver under the submission's unique name, so that a lost reply does no harm."""
        if self._settings.address == LOCAL:
            return _start_here(submission, text)
        try:
            reply = Api(self._cluster).submit(json.loads(text))
        except Redirected as error:
            return SubmitOutcome(Verdict.REFUSED, message=f"{error.what}; {error.fix}")
        except Untrusted as error:  # it stays so until somebody acts
            return SubmitOutcome(Verdict.REFUSED, message=str(error))
        except Unreached as error:
            return SubmitOutcome(Verdict.UNREACHED, message=str(error))
        except Unanswered as error:
            return SubmitOutcome(Verdict.UNCLEAR, message=str(error))
        answer = " ".join(str(reply.data).split())[-300:]
        if is_taken(reply, submission.name):
            return SubmitOutcome(Verdict.ACCEPTED, job=submission.name)
        # after a server error, such as 502 from a proxy, the job may exist
        is_clear = 400 <= reply.status < 500
        return SubmitOutcome(
            Verdict.REFUSED if is_clear else Verdict.UNCLEAR, message=f"{reply.status} {answer}"
        )

    def find(self, submission: Submission) -> str | None:
        """Return the name of a submission's driver if the cluster has it, None otherwise.

        Raises:
            InfrastructureError: the cluster does not answer, or another one may answer in its place.
        """
        answer = RayScheduler(submission.cluster).jobs([submission.name])
        if answer.problem:
            raise InfrastructureError(answer.problem)
        seen = answer.seen.get((submission.name, 0))
        if seen is None and not same_controller(submission, answer.controller):
            raise InfrastructureError(f"{answer.controller} may be another cluster than {submission.cluster}")
        # an embedded driver is found by its process alone: one that is over may never have started
        lives = seen is not None and not (seen.over and submission.cluster.startswith(EMBEDDED))
        return submission.name if lives else None

    def explain(self, filed: SubmissionState, over: JobEnd, logs: Path) -> JobEnd:
        """Add nothing: a driver reports its end itself."""
        return over


def found_here() -> str:
    """Return the address of the dashboard of the cluster that this machine belongs to.

    Raises:
        UserError: there is none.
    """
    if address := os.environ.get("RAY_API_SERVER_ADDRESS"):
        return checked_address(address)
    from orchestrator.launchers.ray.actors import dashboard_here  # imports Ray, so only where it is needed

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
    """Raise unless a Ray for one launch can be kept to this machine.

    Raises:
        UserError: it is older than `LOOPBACK_SINCE`.
    """
    if tuple(int(part) for part in re.findall(r"\d+", version)[:2]) < LOOPBACK_SINCE:
        least = ".".join(map(str, LOOPBACK_SINCE))
        raise UserError(
            f"launcher.address=local needs Ray {least} or newer, this is {version}",
            where="an older one listens on all interfaces of the machine, and runs what anybody sends",
            fix=f"pip install 'ray[default]>={least}', or launcher=local, which needs no Ray",
        )


def _start_here(submission: Submission, text: str) -> SubmitOutcome:
    """Start the driver as a process of this machine, in its own session, with its own Ray.

    That Ray serves this launch alone: it listens on loopback, and requires a token that no other process has.
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
        # the driver outlives this command, and a Ctrl-C in its terminal
        start_new_session=True,
    )
    return SubmitOutcome(Verdict.ACCEPTED, job=submission.name)
