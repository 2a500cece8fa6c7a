"""What a job runs on its first node: ``python -m orchestrator.launchers.slurm.job STORE SWEEP SUBMISSION``.

It finds its cells in the submission, works on them as any worker does, and leaves a report. A worker that was
asked to stop with work left has its job started anew, unless Slurm is already ending it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType

from orchestrator import provenance
from orchestrator.core.failure import Cause
from orchestrator.errors import InfrastructureError, SweepError
from orchestrator.execution.assignment import Assignment, JobContext
from orchestrator.execution.keeper import keep_worker
from orchestrator.execution.loop import BROKEN_NODE, NO_MEMORY, REFUSED, RELEASED, TOO_SHORT
from orchestrator.execution.main import STOP_SIGNALS, WorkerSummary, preload
from orchestrator.execution.main import run as run_worker
from orchestrator.jobs.records import JobExitReport, Submission
from orchestrator.jobs.submissions import Submissions
from orchestrator.launchers.base import Launch
from orchestrator.launchers.jobs import cause_of_code, gone_of, meaning_of_code, request_of, settings_of
from orchestrator.launchers.local import LocalLauncher, available_cpus
from orchestrator.launchers.slurm.parsing import SINCE, previous_end, seconds_of
from orchestrator.launchers.slurm.query import TIMEOUT_S, slurm
from orchestrator.launchers.slurm.settings import cluster_profile, slurm_settings
from orchestrator.processes import leave_step
from orchestrator.store import code as snapshots
from orchestrator.store import layout
from orchestrator.store.ledger import Ledger, open_ledger

QUERY_S = 15.0
CHECK_S = 120.0
POLL_S = 0.2

FEDERATED = 1 << 26
"""Job ids of a federation begin here, and are unique in it: Slurm's Federated Scheduling Guide."""


class JobPlace:
    """Which job this is, by Slurm's environment."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.array = environment.get("SLURM_ARRAY_JOB_ID", "")
        self.index = int(environment.get("SLURM_ARRAY_TASK_ID", "0"))
        # SLURM_JOB_ID of the last task is the array's: asked by that, Slurm means all of them
        self.name = f"{self.array}_{self.index}"
        self.restart = int(environment.get("SLURM_RESTART_COUNT", "0"))
        self.cluster = environment.get("SLURM_CLUSTER_NAME", "")
        self.node = environment.get("SLURMD_NODENAME", "")
        self.end_at = float(environment.get("SLURM_JOB_END_TIME", "0")) or None


class SlurmJob:
    """One start of one task.

    Args:
        ledger: the store.
        sweep: its name.
        submission: that the task belongs to.
        place: which task.
    """

    def __init__(self, ledger: Ledger, sweep: str, submission: Submission, place: JobPlace) -> None:
        self._ledger, self._sweep, self._submission, self._place = ledger, sweep, submission, place
        self._submissions = Submissions(ledger, sweep)
        self._request = request_of(ledger, sweep, submission.request)
        self._settings = settings = settings_of(self._request)
        self._slurm, self._cluster = slurm_settings(settings.launcher), cluster_profile(settings.cluster)
        self._start_s = time.monotonic()
        self._diary = WorkerSummary()

    def run(self) -> int:
        """Works on the task's cells; returns the exit code of the job."""
        if (over := self._submissions.is_closed(self._submission.number, self._place.index)) is not None:
            log_line(f"this task was given up ({over.word} {over.detail}): it claims nothing")
            return 0
        with _scratch(self._place.name):
            code = BROKEN_NODE if (problem := self._broken_node()) else self._work()
        if problem:
            self._diary.said = problem
            log_line(problem)
        if code != RELEASED:
            self._report(code)
            return code
        # ours from now on, and scontrol's, which inherits it: Slurm ends this start of the job by a SIGTERM
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        if self._requeue():
            signal.sigtimedwait({signal.SIGTERM}, TIMEOUT_S)
        return code

    def _broken_node(self) -> str:
        check = self._cluster.node_check
        if check is None:
            return ""
        try:
            done = subprocess.run(
                ["bash", "-c", check],
                capture_output=True,
                text=True,
                timeout=CHECK_S,
                check=False,
                errors="replace",
            )
        except subprocess.TimeoutExpired:
            return f"the node's check took longer than {CHECK_S:.0f} s: {check}"
        if done.returncode == 0:
            return ""
        last = (done.stderr or done.stdout).strip().splitlines()[-1:]
        return f"the node's check failed: {check}: {last[0] if last else f'exit code {done.returncode}'}"

    # Working

    def _work(self) -> int:
        order = self._order()
        if self._slurm.workers_per_job == 1:
            return run_worker(order, diary=self._diary)
        return self._work_side_by_side(order)

    def _order(self) -> Assignment:
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
        )

    def _job(self) -> JobContext:
        place, hours = self._place, self._submission.resources.hours
        end_at = place.end_at or _end_at(place.name) or time.time() + 3600 * hours
        limit_s = end_at - time.time()
        policy = self._settings.policy
        notice_s = min(float(self._cluster.signal_s), limit_s / 2)
        # time for a first checkpoint, but never so much that a short job could do nothing at all
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
        )

    def _work_side_by_side(self, order: Assignment) -> int:
        """Runs several workers, each with its part of the job's devices."""
        workers = self._slurm.workers_per_job
        gpus = self._submission.resources.gpus_per_node // workers
        options = {
            "name": "local",
            "workers": workers,
            "cpus_per_worker": order.num_threads,
            "gpus_per_worker": gpus,
        }
        pool = LocalLauncher(options, len(order.cells or ()))
        stops: list[int] = []

        def stop(number: int, frame: FrameType | None) -> None:
            if number != signal.SIGUSR1:  # the workers know the job's end themselves
                stops.append(number)
                pool.stop()

        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            signal.signal(number, stop)
        revision = self._ledger.revision(self._sweep, order.revision)
        pool.start(
            Launch(
                store=order.store,
                sweep=order.sweep,
                revision=order.revision,
                request=self._submission.request,
                cells=order.cells,
                settings=order.settings,
                import_paths=order.import_paths,
                code_digest=order.code_digest,
                preload=tuple(preload(revision.sweep)),
                log_folder=str(
                    self._ledger.objects.workspace(layout.job_logs(self._sweep, self._submission.number))
                    / f"task-{self._place.index}"
                ),
                job=order.job,
                code=order.code,
            )
        )
        while pool.poll() > 0:
            time.sleep(POLL_S)
        self._diary.num_claims = 0 if pool.refusal() else 1
        self._diary.said = pool.refusal() or f"{workers} workers ended"
        return REFUSED if pool.refusal() else pool.released or (RELEASED if stops else 0)

    # Ending

    def _requeue(self) -> bool:
        """Has Slurm start the job anew; False when it will not, or is ending the job already."""
        self._report(RELEASED, requeued=True)
        try:
            told = slurm(
                *("squeue", "-ah", "-j", self._place.name, "-O", "State:|,RestartCnt:|"), timeout_s=QUERY_S
            ).output.strip()
        except InfrastructureError:
            told = ""
        # else it is preempted or cancelled, or was started anew elsewhere, its node seeming lost: Slurm
        # decides, and whoever asks it will know
        if told != f"RUNNING|{self._place.restart}|":
            return False
        try:
            said = slurm("scontrol", "requeue", self._place.name, timeout_s=QUERY_S)
            problem = said.problem if said.code != 0 else ""
        except InfrastructureError as error:
            problem = error.what
        if problem:  # no last word: Slurm may have done it, or be about to, all the same
            log_line(
                f"the job may not be started anew: {problem}; then `sweep reconcile` submits its cells again"
            )
        return not problem

    def _is_of_the_submission(self) -> bool:
        """Return whether the number of this job is the submission's: numbers count with their cluster."""
        place, given = self._place, self._submissions.job_of(self._submission.number)
        is_here = place.cluster.casefold() in ("", self._submission.cluster.casefold())
        is_federated = place.array.isdigit() and int(place.array) >= FEDERATED
        return given in (None, place.array) and (is_here or is_federated)

    def _report(self, code: int, *, requeued: bool = False) -> None:
        """Leaves the last words, without which Slurm's must do; a script submitted by hand has none."""
        number = self._submission.number
        report = JobExitReport(
            code=code,
            cause=cause_of_code(code),
            why=meaning_of_code(code) or self._diary.said,
            claimed=self._diary.num_claims > 0 or code in (0, RELEASED, TOO_SHORT, NO_MEMORY),
            requeued=requeued,
            restart=self._place.restart,
            node=self._place.node,
            seconds=round(time.monotonic() - self._start_s, 1),
            at=provenance.now(),
        )
        with contextlib.suppress(OSError):
            if self._is_of_the_submission():
                self._submissions.report(number, self._place.index, self._place.restart, report)


def _end_at(job: str) -> float | None:
    """Asks Slurm when it will end the job: seconds since 1970, by this machine's clock."""
    try:
        left = slurm("squeue", "-ah", "-j", job, "-o", "%L", timeout_s=QUERY_S).output.strip()
    except InfrastructureError:
        return None
    seconds = seconds_of(left)
    return None if seconds is None else time.time() + seconds


def _before(place: JobPlace) -> Cause | None:
    """Asks accounting why the former start of the job ended; None when it does not know."""
    try:
        said = slurm("sacct", "-nPXD", "-S", SINCE, "-j", place.name, "-o", "State", timeout_s=QUERY_S)
    except InfrastructureError:
        return None
    return previous_end(said.output.splitlines()) if said.code == 0 else None


@contextlib.contextmanager
def _scratch(job: str) -> Iterator[None]:
    """Gives temporary files a folder of the job's own on the node, and empties it afterwards."""
    root = os.environ.pop("SWEEP_SCRATCH", "")
    if not root:
        yield
        return
    folder = Path(root) / f"sweep-{job}"
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["TMPDIR"] = str(folder)
    try:
        yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def log_line(line: str) -> None:
    """Writes to the job's log."""
    with contextlib.suppress(OSError):
        print(f"{provenance.now()} job: {line}", flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the job that Slurm's environment describes; returns its exit code."""
    store, sweep, number = sys.argv[1:] if argv is None else argv
    place = JobPlace(os.environ)
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
    except SweepError as error:
        log_line(f"error: {error}")
        return error.exit_code
    except OSError as error:
        log_line(f"error: the store does not answer: {error}")
        return InfrastructureError.exit_code
    finally:
        for late in STOP_SIGNALS:  # one that comes while Python ends would end it as if it had failed
            signal.signal(late, signal.SIG_IGN)


if __name__ == "__main__":
    keep_worker()
    sys.exit(main())
