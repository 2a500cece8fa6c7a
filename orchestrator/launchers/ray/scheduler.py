"""What may be asked about drivers: of a cluster by its Jobs API, of an embedded Ray by processes here."""

from __future__ import annotations

import platform
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from orchestrator.core.failure import Cause
from orchestrator.errors import InfrastructureError, SweepError
from orchestrator.jobs.judgement import JobListing, JobObservation, Phase
from orchestrator.jobs.records import JobEnd
from orchestrator.launchers.jobs import EXITS
from orchestrator.launchers.ray import causes
from orchestrator.launchers.ray.api import Api, JobDetails, Stopped, Unanswered, Unreached
from orchestrator.processes import boot_id, pid_namespace
from orchestrator.provenance import without_secrets

EMBEDDED = "embedded"
"""How the name of a cluster begins that is a Ray of its driver's own."""


def this_machine() -> str:
    """Returns the name of a cluster that is embedded in a process of this machine."""
    return f"{EMBEDDED} {platform.node()} {boot_id()} {pid_namespace()}"


class RayScheduler:
    """Tells of the drivers of a cluster; a `Scheduler`.

    Args:
        cluster: the address of its dashboard, or what `this_machine` said.
    """

    def __init__(self, cluster: str) -> None:
        self._cluster = cluster

    def jobs(self, ids: Iterable[str]) -> JobListing:
        """Asks for each of some jobs by its name; never raises."""
        if self._cluster.startswith(EMBEDDED):
            return _embedded(self._cluster, ids)
        try:
            api = Api(self._cluster)
            found = {name: api.job(name) for name in dict.fromkeys(ids)}
        except SweepError as error:
            return JobListing(problem=error.what)
        seen = {(name, 0): seen_of(job) for name, job in found.items() if job is not None}
        return JobListing(seen, complete=True)

    def waiting(self, tasks: Sequence[str]) -> dict[str, str]:
        """Returns nothing: what a driver waits for is in its message already."""
        return {}

    def cancel(self, tasks: Sequence[str]) -> None:
        """Stops drivers that wait; one that is embedded never does.

        Raises:
            InfrastructureError: the cluster did not do it.
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


def seen_of(job: JobDetails) -> JobObservation:
    """Says what one job's details mean."""
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
            if code is None:  # of its supervisor: it did not come to an end of its own
                cause = causes.of_job(message, job.error_type or "")
                over = JobEnd(index=0, word=word, cause=cause, detail=_short(message) or "Ray says no more")
            else:  # Ray adds the log's end
                said = f"its driver ended with exit code {code}: {_short(message.rpartition(chr(10))[2])}"
                known = EXITS.get(code, (Cause.UNKNOWN, said))
                over = JobEnd(index=0, word=word, cause=known[0], detail=known[1])
        case _:
            return JobObservation(Phase.UNKNOWN, word)
    return JobObservation(Phase.OVER, word, over=over)


def _short(text: str) -> str:
    return without_secrets(" ".join(text.split()))[:300]


def _when(milliseconds: float | None) -> str:
    if milliseconds is None:
        return ""
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(milliseconds / 1000))


def _embedded(cluster: str, ids: Iterable[str]) -> JobListing:
    _, host, boot, namespace = f"{cluster}   ".split(" ")[:4]
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
    """Finds the processes of this machine that have a job's name among their arguments, as drivers have."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if name.encode() in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found
