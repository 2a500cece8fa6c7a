"""What a job runs on its first node: ``python -m orchestrator.launchers.slurm.job STORE SWEEP SUBMISSION``.

It reads its cells from the submission, works on them as any worker does, and leaves an exit report. If it was
stopped with work left, it requeues its own job, unless Slurm is already ending it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from multiprocessing import util
from pathlib import Path

from orchestrator import provenance
from orchestrator.core.failure import Cause
from orchestrator.core.sweep import preload
from orchestrator.entry import short_paths
from orchestrator.errors import InfrastructureError, SweepError
from orchestrator.execution.assignment import Assignment
from orchestrator.execution.keeper import keep_worker
from orchestrator.execution.main import STOP_SIGNALS, WorkerSummary, exit_of
from orchestrator.execution.main import run as run_worker
from orchestrator.jobs.nodes import NodeReports, failed_check
from orchestrator.jobs.records import (
    BROKEN_NODE,
    NO_MEMORY,
    RELEASED,
    TOO_SHORT,
    JobContext,
    JobExitReport,
    Submission,
    cause_of_code,
    meaning_of_code,
)
from orchestrator.jobs.submissions import Submissions, gone_of, request_of, settings_of
from orchestrator.launchers.base import Launch
from orchestrator.launchers.external import work_side_by_side
from orchestrator.launchers.local import LocalLauncher, available_cpus
from orchestrator.launchers.slurm.parsing import SINCE, previous_end, seconds_of
from orchestrator.launchers.slurm.query import TIMEOUT_S, slurm
from orchestrator.launchers.slurm.settings import cluster_profile, slurm_settings
from orchestrator.processes import leave_step
from orchestrator.store import code as snapshots
from orchestrator.store import layout
from orchestrator.store.ledger import Ledger, open_ledger
from orchestrator.trackers.notifier import Notifier

QUERY_S = 15.0

FEDERATED = 1 << 26
"""Lowest job id in a federation, whose ids are unique in all of its clusters (Federated Scheduling Guide)."""


class JobPlace:
    """The identity of this job, from Slurm's environment.

    Attributes:
        array: id of the array.
        index: index of the task in it.
        name: the task as Slurm's commands take it, ``12_3``.
        restart: how often Slurm has restarted the job.
        cluster: Slurm's name for the cluster, "" if it is not set.
        node: name of this node.
        start_at: when the job got its nodes, in seconds since 1970; None if it is not set.
        end_at: when the time limit is reached, likewise.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.array = environment.get("SLURM_ARRAY_JOB_ID", "")
        self.index = int(environment.get("SLURM_ARRAY_TASK_ID", "0"))
        # not SLURM_JOB_ID: that of the last task is the array's, and would address all tasks
        self.name = f"{self.array}_{self.index}"
        self.restart = int(environment.get("SLURM_RESTART_COUNT", "0"))
        self.cluster = environment.get("SLURM_CLUSTER_NAME", "")
        self.node = environment.get("SLURMD_NODENAME", "")
        self.start_at = float(environment.get("SLURM_JOB_START_TIME", "0")) or None
        self.end_at = float(environment.get("SLURM_JOB_END_TIME", "0")) or None


class SlurmJob:
    """One start of one task of a submission.

    Args:
        ledger: the store.
        sweep: its name.
        submission: the submission that the task belongs to.
        place: the task.
    """

    def __init__(self, ledger: Ledger, sweep: str, submission: Submission, place: JobPlace) -> None:
        self._ledger, self._sweep, self._submission, self._place = ledger, sweep, submission, place
        self._submissions = Submissions(ledger, sweep)
        self._request = request_of(ledger, sweep, submission.request)
        self._settings = settings = settings_of(self._request)
        self._slurm, self._cluster = slurm_settings(settings.launcher), cluster_profile(settings.cluster)
        self._start_s = time.monotonic()
        self._summary = WorkerSummary()

    def run(self) -> int:
        """Work on the task's cells, and return the exit code of the job.

        A job that was stopped with work left is requeued, since an end of its own would be final. Slurm ends
        a requeued start with SIGTERM. So SIGTERM is blocked, for this process and for scontrol, which
        inherits the mask. After the requeue this process waits for the signal, and only then exits.
        """
        # other jobs may work on these cells by now
        if (over := self._submissions.is_closed(self._submission.number, self._place.index)) is not None:
            log_line(f"this task was given up ({over.word} {over.detail}): it claims nothing")
            return 0
        with _scratch(self._place.name):
            code = BROKEN_NODE if (problem := failed_check(self._cluster.node_check)) else self._work()
        if problem:
            self._report_node(problem)
            self._summary.last_line = problem
            log_line(problem)
        # from here on the exit code is final, and the report explains it
        if code != RELEASED:
            self._report(code)
            # the last worker of a sweep is the last process that can send them
            Notifier(self._ledger.objects.url, self._sweep, self._settings.notify, log_line).finish()
            return code
        # blocked before scontrol starts, so that the signal cannot end it halfway
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        if self._requeue():
            signal.sigtimedwait({signal.SIGTERM}, TIMEOUT_S)
        return code

    def _report_node(self, problem: str) -> None:
        """Report that this node failed its check, so that others avoid it for a while."""
        nodes = NodeReports(self._ledger, self._settings.policy.quarantine_s)
        cluster = self._place.cluster or self._submission.cluster
        with contextlib.suppress(OSError, InfrastructureError):  # the job's own report says it too
            nodes.add(cluster, self._place.node, "check", problem, sweep=self._sweep)

    # Working

    def _work(self) -> int:
        """Work in this process, or in several side by side, and return the exit code."""
        order = self._order()
        if self._slurm.workers_per_job == 1:
            return run_worker(order, summary=self._summary)
        return self._work_side_by_side(order)

    def _order(self) -> Assignment:
        """Return the assignment of this job's worker."""
        submission = self._submission
        code = submission.code
        paths = snapshots.import_paths(self._ledger.objects, code) if code else ()
        revision = self._ledger.revision(self._sweep, submission.revision)
        return Assignment(
            store=self._ledger.objects.url,
            sweep=self._sweep,
            revision=submission.revision,
            cells=submission.tasks[self._place.index],
            settings=self._settings,
            num_threads=max(
                1, min(submission.resources.cpus, available_cpus()) // self._slurm.workers_per_job
            ),
            import_paths=paths or self._request.import_paths,
            code_digest=snapshots.version_of(code, revision.sweep, paths) if code else "",
            code=code,
            job=self._job(),
            request=submission.request,
            num_gpus=submission.resources.num_nodes * submission.resources.gpus_per_node,
        )

    def _job(self) -> JobContext:
        """Return the context of this job for its workers: its identity, its end, and jobs that are over."""
        place, hours = self._place, self._submission.resources.hours
        start_at, end_at = place.start_at, place.end_at
        if start_at is None or end_at is None:  # a Slurm that does not set the variables
            start_at, end_at = _times_of(place.name)
        end_at = end_at or time.time() + 3600 * hours
        limit_s = end_at - time.time()
        policy = self._settings.policy
        # half of a short job at most: otherwise it would save its last checkpoint before it computed anything
        signal_s = max(float(self._cluster.signal_s), self._submission.resources.signal_s)
        notice_s = min(signal_s, limit_s / 2)
        # enough time for a first checkpoint, but not so much that a short job could start nothing
        min_left_s = min(notice_s + policy.checkpoint_interval_s, limit_s / 2)
        return JobContext(
            cluster=place.cluster or self._submission.cluster,
            job=place.array,
            array_index=place.index,
            restart_count=place.restart,
            node=place.node,
            end_at=end_at,
            notice_s=notice_s,
            min_left_s=min_left_s,
            before=_before(place) if place.restart else None,
            gone=tuple(gone_of(self._submissions.read())),
            rungs=self._submission.resources.by_cause,
            start_at=start_at,
        )

    def _work_side_by_side(self, order: Assignment) -> int:
        """Run several workers, each with its share of the job's devices, and return the exit code."""
        workers = self._slurm.workers_per_job
        gpus = self._submission.resources.gpus_per_node // workers
        options = {
            "name": "local",
            "workers": workers,
            "cpus_per_worker": order.num_threads,
            "gpus_per_worker": gpus,
        }
        ended = work_side_by_side(
            LocalLauncher(options, len(order.cells or ())), partial(self._launch, order)
        )
        self._summary.num_claims = 0 if ended.refusal else 1
        self._summary.last_line = ended.refusal or f"{workers} workers ended"
        return ended.code

    def _launch(self, order: Assignment) -> Launch:
        """Return what the workers of this job share."""
        revision = self._ledger.revision(self._sweep, order.revision)
        logs = self._ledger.objects.workspace(layout.job_logs(self._sweep, self._submission.number))
        return Launch(
            store=order.store,
            sweep=order.sweep,
            revision=order.revision,
            request=self._submission.request,
            cells=order.cells,
            settings=order.settings,
            import_paths=order.import_paths,
            code_digest=order.code_digest,
            preload=tuple(preload(revision.sweep)),
            log_folder=str(logs / f"task-{self._place.index}"),
            job=order.job,
            code=order.code,
        )

    # Ending

    def _requeue(self) -> bool:
        """Requeue the job.

        Returns:
            False if Slurm refuses, or is ending the job already.
        """
        # before the requeue, since nothing after it is certain to run
        self._report(RELEASED, requeued=True)
        try:
            state = slurm(
                *("squeue", "-ah", "-j", self._place.name, "-O", "State:|,RestartCnt:|"), timeout_s=QUERY_S
            ).output.strip()
        except InfrastructureError:
            state = ""
        # any other state: the job is preempted or cancelled, or was restarted elsewhere because its node
        # seemed lost. Slurm decides then, and its answer to the next query counts
        if state != f"RUNNING|{self._place.restart}|":
            return False
        try:
            result = slurm("scontrol", "requeue", self._place.name, timeout_s=QUERY_S)
            problem = result.problem if result.code != 0 else ""
        except InfrastructureError as error:
            problem = error.what
        if problem:  # the report stays as it is: Slurm may have requeued the job all the same, or be about to
            log_line(
                f"the job may not be started anew: {problem}; then `sweep reconcile` submits its cells again"
            )
        return not problem

    def _is_of_the_submission(self) -> bool:
        """Return whether this job is the submission's, by its number and cluster.

        Somebody may have submitted the script by hand. That job has another number, or the same number on
        another cluster, and must not report for the submission.
        """
        place, given = self._place, self._submissions.job_of(self._submission.number)
        is_here = place.cluster.casefold() in ("", self._submission.cluster.casefold())
        is_federated = place.array.isdigit() and int(place.array) >= FEDERATED
        return given in (None, place.array) and (is_here or is_federated)

    def _report(self, code: int, *, requeued: bool = False) -> None:
        """Write the exit report of this start, unless the script was submitted by hand.

        Without a report, only Slurm's record of the end counts.
        """
        number = self._submission.number
        report = JobExitReport(
            code=code,
            cause=cause_of_code(code),
            why=meaning_of_code(code) or self._summary.last_line,
            claimed=self._summary.num_claims > 0 or code in (0, RELEASED, TOO_SHORT, NO_MEMORY),
            requeued=requeued,
            restart=self._place.restart,
            node=self._place.node,
            seconds=round(time.monotonic() - self._start_s, 1),
            at=provenance.now(),
        )
        with contextlib.suppress(OSError):
            if self._is_of_the_submission():
                self._submissions.report(number, self._place.index, self._place.restart, report)


def _times_of(job: str) -> tuple[float | None, float | None]:
    """Query Slurm when it started the job, and when it will end it.

    Returns:
        Both in seconds since 1970, by this machine's clock; None if Slurm does not answer.
    """
    try:
        used, _, left = slurm("squeue", "-ah", "-j", job, "-o", "%M|%L", timeout_s=QUERY_S).output.partition(
            "|"
        )
    except InfrastructureError:
        return None, None
    used_s, left_s, now = seconds_of(used.strip()), seconds_of(left.strip()), time.time()
    return (None if used_s is None else now - used_s), (None if left_s is None else now + left_s)


def _before(place: JobPlace) -> Cause | None:
    """Query accounting why the previous start of the job ended.

    Returns:
        None if accounting does not answer or has no earlier start.
    """
    try:
        result = slurm("sacct", "-nPXD", "-S", SINCE, "-j", place.name, "-o", "State", timeout_s=QUERY_S)
    except InfrastructureError:
        return None
    return previous_end(result.output.splitlines()) if result.code == 0 else None


@contextlib.contextmanager
def _scratch(job: str) -> Iterator[None]:
    """Provide a folder on the node for temporary files of this job, and delete it afterwards."""
    root = os.environ.pop("SWEEP_SCRATCH", "")
    if not root:
        yield
        return
    folder = Path(root) / f"sweep-{job}"
    with short_paths():
        util.get_temp_dir()  # it is deleted when this process ends, and the folder is gone by then
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["TMPDIR"] = str(folder)
    try:
        yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def log_line(line: str) -> None:
    """Write a line to the job's log."""
    with contextlib.suppress(OSError):
        print(f"{provenance.now()} job: {line}", flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job that Slurm's environment describes, and return its exit code."""
    store, sweep, number = sys.argv[1:] if argv is None else argv
    place = JobPlace(os.environ)
    # stages would take themselves for ranks of the step that runs this worker
    leave_step(os.environ)
    log_line(f"{sweep} submission {number} task {place.index}, start {place.restart}, on {place.node}")
    try:
        ledger = open_ledger(store)
        submission = Submissions(ledger, sweep).submission(int(number))
        if submission is None or place.index >= len(submission.tasks):
            raise InfrastructureError(
                f"submission {number} of {sweep} has no task {place.index}", where=store
            )
        return SlurmJob(ledger, sweep, submission, place).run()
    except (SweepError, OSError) as error:
        code, line = exit_of(error)
        log_line(line)
        return code
    finally:
        # a signal during the exit of Python would replace the exit code by a failure
        for late in STOP_SIGNALS:
            signal.signal(late, signal.SIG_IGN)


if __name__ == "__main__":
    # the worker runs in a fork; this process ends whatever the fork leaves behind
    keep_worker()
    sys.exit(main())
