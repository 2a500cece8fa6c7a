"""What an actor runs: ``python -m orchestrator.launchers.ray.worker STORE SWEEP SUBMISSION SLOT RESTART``.

It works on the cells of its submission as any worker does. Its last line is JSON, for the driver: the
worker's last message and the number of its claims.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import signal
import sys
from collections.abc import Sequence

from orchestrator.errors import InfrastructureError, SweepError
from orchestrator.execution.assignment import Assignment, JobContext
from orchestrator.execution.main import STOP_SIGNALS, WorkerSummary
from orchestrator.execution.main import run as run_worker
from orchestrator.jobs.records import Submission
from orchestrator.jobs.submissions import Submissions
from orchestrator.launchers.jobs import gone_of, request_of, settings_of
from orchestrator.launchers.local import available_cpus
from orchestrator.launchers.ray.memory import Monitor
from orchestrator.launchers.ray.settings import ray_settings
from orchestrator.processes import adopt_orphans
from orchestrator.store import code as snapshots
from orchestrator.store import layout
from orchestrator.store.ledger import Ledger, open_ledger

STDIN = 0
"""The pipe that ends when the actor is gone; see `orchestrator.launchers.ray.actor`."""

SHARES = 8
"""Number of places among the cells at which workers begin, so that they rarely race for one stage."""


def order_of(ledger: Ledger, sweep: str, submission: Submission, slot: int, restart: int) -> Assignment:
    """Return the assignment of one worker of a submission.

    Args:
        ledger: the store.
        sweep: its name.
        submission: whose cells the worker gets.
        slot: the worker's number.
        restart: how often its driver was restarted.

    Raises:
        InfrastructureError: a record that the assignment needs cannot be read.
    """
    request = request_of(ledger, sweep, submission.request)
    settings, code = settings_of(request), submission.code
    submissions = Submissions(ledger, sweep)
    paths = snapshots.import_paths(ledger.objects, code) if code else request.import_paths
    revision = ledger.revision(sweep, submission.revision)
    return Assignment(
        store=ledger.objects.url,
        sweep=sweep,
        revision=submission.revision,
        cells=submission.tasks[0],
        settings=settings,
        slot=slot,
        num_slots=SHARES,
        num_threads=max(1, min(submission.resources.cpus, available_cpus())),
        import_paths=paths,
        code_digest=snapshots.version_of(code, revision.sweep, paths) if code else "",
        code=code,
        max_idle_s=ray_settings(settings.launcher).idle_s,
        job=JobContext(
            cluster=submission.cluster,
            job=submissions.job_of(submission.number) or submission.name,
            restart_count=restart,
            node=platform.node(),
            gone=tuple(gone_of(submissions.read(), grace_s=settings.policy.grace_s)),
        ),
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run a worker, and return its exit code."""
    store, sweep, number, slot, restart = sys.argv[1:] if argv is None else argv
    # the worker redirects descriptor 1 to its log, but the driver reads the last line from here
    stdout, diary = os.dup(1), WorkerSummary()
    try:
        ledger = open_ledger(store)
        submission = Submissions(ledger, sweep).submission(int(number))
        if submission is None:
            raise InfrastructureError(f"submission {number} of {sweep} cannot be read", where=store)
        logs = ledger.objects.workspace(layout.job_logs(sweep, int(number)))
        order = order_of(ledger, sweep, submission, int(slot), int(restart))
        code = run_worker(
            order, logs / f"worker-{slot}.{restart}.log", diary, STDIN, Monitor(STDIN, os.environ)
        )
        with contextlib.suppress(OSError):  # the worker's result counts, not its log
            ledger.objects.upload(layout.job_logs(sweep, int(number)))
    except SweepError as error:
        code, diary.said = error.exit_code, f"error: {error}"
    except OSError as error:
        code, diary.said = InfrastructureError.exit_code, f"error: the store does not answer: {error}"
    finally:
        # a signal during the exit of Python would replace the exit code by a failure
        for late in STOP_SIGNALS:
            signal.signal(late, signal.SIG_IGN)
    with contextlib.suppress(OSError):
        os.write(stdout, f"{json.dumps({'said': diary.said, 'claims': diary.num_claims})}\n".encode())
    return code


if __name__ == "__main__":
    adopt_orphans()
    sys.exit(main())
