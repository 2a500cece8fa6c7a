"""Queries to Slurm: many jobs in one batch, and the configuration of a cluster.

Only `SlurmScheduler.cancel` changes anything. A command that fails or does not answer raises, and is never
taken for an answer. A job's number is unique only within its cluster. So each query first reads which cluster
answers here, and names the intended one with ``-M`` if it is another.
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

from orchestrator.errors import InfrastructureError, SchedulerUnavailable
from orchestrator.jobs.judgement import JobListing, JobObservation, is_own, same_controller
from orchestrator.jobs.records import Submission
from orchestrator.jobs.submissions import asker
from orchestrator.launchers.base import Limits
from orchestrator.launchers.slurm.parsing import SACCT, SINCE, SQUEUE, agreed, read_sacct, read_squeue

TIMEOUT_S = 30.0
SILENT_S = 60.0
"""How long a command that timed out is not run again, in seconds. Without this pause, each query would wait
for its own timeout while the controller hangs."""

_INPUT = re.compile(
    r"(SLURM|SLURMD|SBATCH|SRUN|SALLOC|SQUEUE|SACCT|SACCTMGR|SCANCEL|SINFO|SCONTROL|SSTAT|SPRIO|SSHARE)_"
)
"""Prefixes of the variables that Slurm's programs read as options."""

_KEPT = frozenset({"SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_JWT"})
"""Variables that locate the controller and authenticate to it."""

_silent_until_s: dict[str, float] = {}
"""By command: the monotonic time until which it is not run again."""


class CommandResult(NamedTuple):
    """The result of one of Slurm's commands.

    Attributes:
        code: its exit code.
        output: its standard output.
        error: its standard error.
    """

    code: int
    output: str
    error: str

    @property
    def problem(self) -> str:
        """The last line of standard error, or else the exit code."""
        lines = [line.strip() for line in self.error.splitlines() if line.strip()]
        return lines[-1] if lines else f"exit code {self.code}"


def environment(inherited: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment for Slurm's programs, without the variables that they read as options.

    These are filters and options such as ``SQUEUE_PARTITION`` or ``SLURM_CLUSTERS``; inside of a job, Slurm
    sets some itself. A filter that is not ours would make a listing incomplete, and missing jobs would look
    as if they had ended. Only the variables that locate the controller, and authenticate to it, stay.

    One is set: by default sacct shortens the tasks of an array, ``12_[0,2,...]``, and would hide the rest.

    Args:
        inherited: the variables to filter; None for those of this process.
    """
    return {
        name: value
        for name, value in (os.environ if inherited is None else inherited).items()
        if name in _KEPT or not _INPUT.match(name)
    } | {"SLURM_BITSTR_LEN": "0"}


def slurm(*words: str, text: str | None = None, timeout_s: float = TIMEOUT_S) -> CommandResult:
    """Run one of Slurm's commands, without a shell.

    Args:
        words: the command and its arguments.
        text: its standard input; None for an empty one.
        timeout_s: how long to wait for its end.

    Raises:
        InfrastructureError: there is no such command here, or it did not answer in time.
    """
    if time.monotonic() < _silent_until_s.get(words[0], 0.0):
        raise SchedulerUnavailable(f"{words[0]} did not answer a moment ago")
    try:
        done = subprocess.run(
            words,
            input=text,
            stdin=subprocess.DEVNULL if text is None else None,
            env=environment(),
            capture_output=True,
            encoding="utf-8",
            timeout=timeout_s,
            check=False,
            errors="replace",
        )
    except FileNotFoundError as error:
        raise InfrastructureError(
            f"there is no {words[0]} here", fix="run it on a login node of the cluster; sweep doctor"
        ) from error
    except OSError as error:
        raise InfrastructureError(f"{words[0]} cannot be run: {error}") from error
    except subprocess.TimeoutExpired as error:
        _silent_until_s[words[0]] = time.monotonic() + SILENT_S
        raise SchedulerUnavailable(f"{words[0]} did not answer within {timeout_s:.0f} s") from error
    return CommandResult(done.returncode, done.stdout, done.stderr)


def asked(*words: str) -> str:
    """Return the output of a command that must succeed.

    Raises:
        InfrastructureError: the command failed.
    """
    result = slurm(*words)
    if result.code != 0:
        raise SchedulerUnavailable(f"{words[0]} failed: {result.problem}")
    return result.output


DEFAULT_ARRAY_SIZE = 1001
"""Slurm's own default of MaxArraySize."""

MAX_IDS = 500
"""Most job ids in one command, because the length of a command line is limited."""

_NOTHING = "Invalid job id specified"
"""Error of squeue and scancel when none of the jobs exists any more."""


class Cluster(NamedTuple):
    """A cluster, by its controller's configuration, and how it is reached from here.

    Attributes:
        name: ClusterName.
        options: what each command needs to reach it: ``-M NAME`` for a cluster that is not the one here.
        max_tasks: the most tasks of one array.
        shows_everyone: whether users see each other's jobs, according to PrivateData.
        controller: its hosts with the port, separated by spaces.
    """

    name: str
    options: tuple[str, ...] = ()
    max_tasks: int = DEFAULT_ARRAY_SIZE
    shows_everyone: bool = True
    controller: str = ""


def cluster(name: str = "") -> Cluster:
    """Read a controller's configuration.

    Args:
        name: of the cluster; "" for the one here.

    Raises:
        InfrastructureError: it does not answer, or another cluster answers in its place.
    """
    here = _configuration(())
    if name.casefold() in ("", here.name.casefold()):
        return here
    try:
        # only for another cluster: -M needs the accounting database, which this one may lack
        there = _configuration(("-M", name))
    except InfrastructureError as error:
        raise InfrastructureError(
            f"cluster {name} is meant, this is {here.name}, and {name} is not reached from here: {error.what}"
        ) from error
    if there.name.casefold() != name.casefold():
        raise InfrastructureError(f"cluster {name} is meant, and {there.name} answers in its place")
    return there


def _configuration(options: tuple[str, ...]) -> Cluster:
    """Return the cluster that answers to these options."""
    text = asked("scontrol", *options, "show", "config")
    config = dict(re.findall(r"^([\w\[\]]+)\s*=\s*(.*?)\s*$", text, re.MULTILINE))
    if "ClusterName" not in config:
        raise InfrastructureError("scontrol does not say which cluster this is")
    size, port = config.get("MaxArraySize", ""), config.get("SlurmctldPort", "")
    hosts = [host for key, host in config.items() if key.startswith("SlurmctldHost[")]
    return Cluster(
        name=config["ClusterName"],
        options=options,
        # MaxArraySize bounds the indexes, which begin at 0
        max_tasks=max(1, int(size)) if size.isdigit() else DEFAULT_ARRAY_SIZE,
        # a missing setting counts as private, so that absence proves nothing
        shows_everyone="jobs" not in re.split(r"[,\s]+", config.get("PrivateData", "jobs").lower()),
        controller=" ".join(f"{host}:{port}" for host in hosts),
    )


def limits(name: str = "") -> Limits:
    """Return the limits of a cluster, from its controller.

    Raises:
        InfrastructureError: the controller does not answer.
    """
    found = cluster(name)
    return Limits(cluster=found.name, max_tasks=found.max_tasks, controller=found.controller)


def jobs(name: str, ids: Iterable[str]) -> JobListing:
    """Query a cluster's controller and accounting about arrays, at the same time; never raise.

    The controller has the present state of what lives, but forgets jobs that are over. Accounting remembers
    those, but lags behind. `agreed` combines the two answers.

    Args:
        name: of the cluster.
        ids: job ids.
    """
    wanted = sorted(set(ids), key=int)
    if not wanted:
        return JobListing(complete=True)
    with ThreadPoolExecutor(2) as pool:
        asking = pool.submit(_squeue, name, wanted), pool.submit(_sacct, name, wanted)
    problems: list[str] = []
    listed: _Listed | None = None
    accounts: dict[tuple[str, int], JobObservation] | None = None
    try:
        listed = asking[0].result()
    except InfrastructureError as error:
        problems.append(error.what)
    try:
        accounts = asking[1].result()
    except InfrastructureError as error:
        problems.append(error.what)
    if listed is None and accounts is None:
        return JobListing(problem=f"Slurm does not answer: {problems[0]}")
    if listed is None:
        return JobListing(agreed(None, accounts or {}), gap=f"accounting does not list it, and {problems[0]}")
    found, now, gap = listed
    account = "accounting has no record of it" if accounts is not None else f"no accounts: {problems[0]}"
    return JobListing(
        agreed(now, accounts or {}),
        complete=not gap,
        gap=gap,
        everyone=found.shows_everyone,
        scope=f"{account}, and the controller of cluster {found.name}",
        controller=found.controller,
    )


def _sacct(name: str, ids: Sequence[str]) -> dict[tuple[str, int], JobObservation]:
    """Return what accounting records of some jobs."""
    seen: dict[tuple[str, int], JobObservation] = {}
    for part in _parts(ids):
        words = ("sacct", "-nPXD", "-M", name, "-S", SINCE, "-j", ",".join(part), "-o", SACCT)
        seen.update(read_sacct(asked(*words).splitlines()))
    return seen


class _Listed(NamedTuple):
    """What a controller lists.

    Attributes:
        cluster: the cluster that answered.
        seen: its tasks, by job id and index.
        gap: why the listing may be incomplete, "" when it is complete.
    """

    cluster: Cluster
    seen: dict[tuple[str, int], JobObservation]
    gap: str


def _squeue(name: str, ids: Sequence[str]) -> _Listed:
    """Return what the controller lists of some jobs.

    Raises:
        InfrastructureError: squeue failed, or none of its lines can be parsed.
    """
    found, gap = cluster(name), ""
    seen: dict[tuple[str, int], JobObservation] = {}
    for part in _parts(ids):
        # -a: list jobs of hidden partitions too, and of partitions that this user may not use
        result = slurm("squeue", *found.options, "-ahr", "-t", "all", "-j", ",".join(part), "-O", SQUEUE)
        if result.code == 0:
            lines = _without_title(result.output, found)
            if strange := [line for line in lines if line.strip() and line.count("|") < SQUEUE.count("|")]:
                gap = f"squeue answers what is not understood here: {strange[0][:60]!r}"
            if gap and len(strange) == len([line for line in lines if line.strip()]):
                raise InfrastructureError(gap)
            seen.update(read_squeue(lines))  # some sites wrap squeue, and print lines of their own
        elif _NOTHING not in result.error:  # its answer when all of these jobs are over
            raise InfrastructureError(f"squeue failed: {result.problem}")
    return _Listed(found, seen, gap)


def _without_title(output: str, found: Cluster) -> list[str]:
    """Return the lines without the title that a command prints for a cluster named with ``-M``."""
    lines = output.splitlines()
    return lines[1:] if found.options and lines[:1] == [f"CLUSTER: {found.name}"] else lines


def find(submission: Submission) -> str | None:
    """Return the id of a submission's array, found by its job name; None if there is none.

    The controller is queried for the exact name first, and then for names that contain it. Accounting is
    queried last. It covers jobs that the controller has forgotten already.

    Raises:
        InfrastructureError: the controller does not answer, or would not list the job to this user.
    """
    found, name = cluster(submission.cluster), submission.name
    output = asked("squeue", *found.options, "-ah", "-t", "all", f"--name={name}", "-o", "%F")
    listed = [line.strip() for line in _without_title(output, found)]
    if not listed:  # some sites add a prefix or suffix to the names of jobs
        words = ("squeue", *found.options, "-ah", "-t", "all", "-u", str(asker().uid), "-o", "%F|%j")
        result = slurm(*words)  # squeue fails for users that the cluster does not have
        lines = _without_title(result.output, found) if result.code == 0 else []
        listed = [job.strip() for job, _, named in (line.partition("|") for line in lines) if name in named]
    if not listed:
        # a day earlier, because this is UTC and sacct takes local dates
        since = (datetime.fromisoformat(submission.at) - timedelta(days=1)).strftime("%Y-%m-%d")
        result = slurm("sacct", "-nPX", "-M", found.name, "-S", since, f"--name={name}", "-o", "JobID")
        listed = [line.partition("_")[0] for line in result.output.splitlines()] if result.code == 0 else []
    # if several jobs have the name, the first one counts
    ids = sorted({job for job in listed if job.isdigit()}, key=int)
    # in these two cases absence proves nothing, and a second submission could run the same cells twice
    if not ids and not same_controller(submission, found.controller):
        raise InfrastructureError(f"{found.controller} may be another cluster of the name {found.name}")
    if not ids and not found.shows_everyone and not is_own(submission, asker()):
        raise InfrastructureError(f"the scheduler shows {asker().name} no jobs of {submission.by}")
    return ids[0] if ids else None


def _parts(items: Sequence[str]) -> list[Sequence[str]]:
    """Split a sequence into parts that fit on a command line."""
    return [items[start : start + MAX_IDS] for start in range(0, len(items), MAX_IDS)]


class SlurmScheduler:
    """Queries about the jobs of one cluster, and their cancellation; a `Scheduler`.

    Args:
        cluster: Slurm's name for it.
    """

    def __init__(self, cluster: str) -> None:
        self._cluster = cluster

    def jobs(self, ids: Iterable[str]) -> JobListing:
        """Query the state of arrays; never raise."""
        return jobs(self._cluster, ids)

    def waiting(self, tasks: Sequence[str]) -> dict[str, str]:
        """Return why tasks wait, from the controller; accounting has only some of the reasons.

        Never raise.
        """
        reasons: dict[str, str] = {}
        try:
            found = cluster(self._cluster)
            for part in _parts(tasks):
                words = ("-ahr", "-t", "PENDING", "-j", ",".join(part), "-o", "%F_%K|%r|%S")
                result = slurm("squeue", *found.options, *words)
                for line in _without_title(result.output, found):
                    task, reason, start = (field.strip(" |") for field in f"{line}||".split("|", 2))
                    more = "" if start in ("", "N/A") else f", expected to start at {start}"
                    reasons[task] = reason + more
        except InfrastructureError:
            pass  # the reasons are for display only, so what was found so far suffices
        return reasons

    def cancel(self, submission: Submission, tasks: Sequence[str]) -> None:
        """Cancel tasks, each by its own name.

        The option ``--state=PENDING`` is not used: with it, scancel ends all tasks of an array of which one
        waits.

        Raises:
            InfrastructureError: scancel failed.
        """
        found = cluster(self._cluster)
        for part in _parts(tasks):
            result = slurm("scancel", *found.options, *part)
            # a task that has ended in the meantime needs no cancellation
            if result.code != 0 and _NOTHING not in result.error:
                raise InfrastructureError(f"scancel failed: {result.problem}")

    def release(self, tasks: Sequence[str]) -> None:
        """Release tasks that Slurm holds.

        Raises:
            InfrastructureError: scontrol failed.
        """
        result = slurm("scontrol", *cluster(self._cluster).options, "release", *tasks)
        if result.code != 0:
            raise InfrastructureError(f"scontrol release failed: {result.problem}")
