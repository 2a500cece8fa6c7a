"""Queries about drivers: to a cluster by its Jobs API, or to this machine for an embedded Ray."""

from __future__ import annotations

import platform
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from orchestrator.core.failure import Cause
from orchestrator.errors import InfrastructureError, SweepError
from orchestrator.jobs.judgement import JobListing, JobObservation, Phase, same_controller
from orchestrator.jobs.records import EXITS, JobEnd, Submission
from orchestrator.launchers.ray import lost_workers
from orchestrator.launchers.ray.api import Api, JobDetails, Stopped, Unanswered, Unreached
from orchestrator.provenance import boot_id, pid_namespace, without_secrets

EMBEDDED = "embedded"
"""Start of a cluster's name that stands for a driver with a Ray of its own."""


def this_machine() -> str:
    """Return the name of a cluster that is embedded in a process of this machine."""
    return f"{EMBEDDED} {platform.node()} {boot_id()} {pid_namespace()}"


class RayScheduler:
    """Queries about the drivers of a cluster, and their cancellation; a `Scheduler`.

    Args:
        cluster: the address of its dashboard, or the result of `this_machine`.
    """

    def __init__(self, cluster: str) -> None:
        self._cluster = cluster

    def jobs(self, ids: Iterable[str]) -> JobListing:
        """Query each job by its name; never raise."""
        if self._cluster.startswith(EMBEDDED):
            return _embedded(self._cluster, ids)
        try:
            api = Api(self._cluster)
            found = {name: api.job(name) for name in dict.fromkeys(ids)}
        except SweepError as error:
            return JobListing(problem=error.what)
        # a driver is a submission's only task, so its index is 0
        seen = {(name, 0): seen_of(job) for name, job in found.items() if job is not None}
        # RAY_API_SERVER_ADDRESS may lead to another cluster, where the absence of a job shows nothing
        return JobListing(seen, complete=True, controller=api.address)

    def waiting(self, tasks: Sequence[str]) -> dict[str, str]:
        """Return nothing: the driver's status contains what its workers wait for."""
        return {}

    def release(self, tasks: Sequence[str]) -> None:
        """Do nothing: Ray holds no job."""

    def cancel(self, submission: Submission, tasks: Sequence[str]) -> None:
        """Stop drivers that wait; an embedded one never waits.

        Raises:
            InfrastructureError: the cluster did not stop them.
        """
        for task in tasks:
            name = task.rpartition("_")[0]
            try:
                api, path = Api(self._cluster), f"/api/jobs/{name}/stop"
                reply = api.send("POST", path)
            except (Unreached, Unanswered) as error:
                raise InfrastructureError(f"the Ray cluster does not answer: {error}") from error
            if reply.status != 404:
                api.expected(reply, path, Stopped)
            elif not same_controller(submission, api.address):
                raise InfrastructureError(
                    f"{name} is not known at {api.address}, which may be another cluster than {self._cluster}"
                )
            # 404 of the cluster itself: there is no such job any more


def seen_of(job: JobDetails) -> JobObservation:
    """Return what the details of one job mean."""
    word, message, code = job.status or "no status", (job.message or "").strip(), job.driver_exit_code
    match word:
        case "PENDING":
            return JobObservation(Phase.QUEUED, word, reason=_short(message))
        case "RUNNING":
            return JobObservation(Phase.RUNNING, word, start=_when(job.start_time))
        case "SUCCEEDED":
            over = JobEnd(index=0, word=word, detail=EXITS[0][1])
        case "STOPPED":
            over = JobEnd(
                index=0, word=word, cause=Cause.CANCELLED, detail="stopped by its user or an administrator"
            )
        case "FAILED":
            if code is None:  # no exit code: the driver's supervisor was lost, or never started
                cause = lost_workers.cause_of_job(message, job.error_type or "")
                over = JobEnd(index=0, word=word, cause=cause, detail=_short(message) or "Ray says no more")
            else:  # Ray appends the end of the log, so the last line is the driver's own
                detail = f"its driver ended with exit code {code}: {_short(message.rpartition(chr(10))[2])}"
                known = EXITS.get(code, (Cause.UNKNOWN, detail))
                over = JobEnd(index=0, word=word, cause=known[0], detail=known[1])
        case _:
            return JobObservation(Phase.UNKNOWN, word)
    return JobObservation(Phase.OVER, word, over=over)


def _short(text: str) -> str:
    """Shorten a text for a record, without credentials."""
    return without_secrets(" ".join(text.split()))[:300]


def _when(milliseconds: float | None) -> str:
    """Format a time of Ray's for people, in this machine's time zone."""
    if milliseconds is None:
        return ""
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(milliseconds / 1000))


def _embedded(cluster: str, ids: Iterable[str]) -> JobListing:
    """Return the state of drivers with a Ray of their own, by the processes of this machine."""
    _, host, boot, namespace = f"{cluster}   ".split(" ")[:4]
    # absence proves something only where this process would see the driver
    if host != platform.node() or (boot == boot_id() and namespace != pid_namespace()):
        return JobListing(
            problem=f"its Ray is embedded in a process of {host}, which cannot be seen from here"
        )
    why = "the driver's process is gone" if boot == boot_id() else "the machine was started anew"
    over = JobEnd(index=0, word="GONE", cause=Cause.NODE_LOST, detail=why)
    gone, runs = JobObservation(Phase.OVER, "GONE", over=over), JobObservation(Phase.RUNNING, "RUNNING")
    return JobListing(
        {(name, 0): runs if boot == boot_id() and _processes(name) else gone for name in ids}, complete=True
    )


def _processes(name: str) -> list[int]:
    """Return the processes of this machine with a job's name among their arguments, as drivers have it."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if name.encode() in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found
