"""What an actor runs: ``python -m orchestrator.launchers.ray.worker STORE SWEEP SUBMISSION SLOT RESTART``.

It works on the cells of its submission as any worker does. Its last line is JSON, for the driver: the
worker's last message and the number of its claims.

A worker also judges whether Ray's memory monitor ended its actor, and whether it was itself at fault. When a
node uses more memory than a threshold, the monitor kills actors, the newest first, until enough should be
free. Ray does not count what our actors start as theirs. So killing one frees nothing, and the monitor kills
all of them. The workers outlive their actors, and judge for themselves:

    worker   holds    largest   judgement
    A        60 GiB   60 GiB    at fault: its stage ends at once, as out of memory
    B         8 GiB   60 GiB    not at fault: it saves a checkpoint, and goes on elsewhere

Used and total memory are computed as in Ray 2.60 (src/ray/common/monitors/memory_monitor_utils.cc): for the
cgroup if it has a limit, without its file pages, or else for the machine.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import platform
import select
import signal
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from orchestrator.core.failure import Cause
from orchestrator.errors import InfrastructureError, SweepError
from orchestrator.execution.assignment import Assignment, Shortage
from orchestrator.execution.main import STOP_SIGNALS, WorkerSummary, exit_of
from orchestrator.execution.main import run as run_worker
from orchestrator.jobs.records import JobContext, Submission
from orchestrator.jobs.submissions import Submissions, gone_of, request_of, settings_of
from orchestrator.launchers.local import available_cpus
from orchestrator.launchers.ray.settings import grace_of, ray_settings
from orchestrator.processes import adopt_orphans, process_table
from orchestrator.store import code as snapshots
from orchestrator.store import layout
from orchestrator.store.ledger import Ledger, open_ledger

WORKER = b"orchestrator.launchers.ray.worker"
"""The module by which workers are found among the processes."""

VARIABLE, THRESHOLD = "RAY_memory_usage_threshold", 0.95
"""Ray's variable for the threshold, and its default."""

MARGIN = 0.02
"""Share of the memory that may have been freed since the monitor measured it."""

AT_FAULT = 0.8
"""A worker is at fault if it holds at least this share of what the largest one holds."""

RECENT_S = 15.0
"""How long the last worker at fault counts as the largest, in seconds, although its memory is free by now."""

GIB = 2**30


class Usage(NamedTuple):
    """Memory of a machine or a container, in bytes."""

    used: int
    total: int


class MemoryJudge:
    """The judgement of one worker, made once, when its actor is gone.

    Args:
        lifeline: the descriptor that reaches its end when the actor is gone.
        environment: of the worker, with the Ray variables of its node.
    """

    def __init__(self, lifeline: int, environment: Mapping[str, str]) -> None:
        self._lifeline = lifeline
        self._judged = False
        self._start_s = time.monotonic()
        self._shortage: Shortage | None = None
        self._threshold = _number(environment.get(VARIABLE), THRESHOLD)
        self._is_on = _number(environment.get("RAY_memory_monitor_refresh_ms"), 1.0) > 0

    def __call__(self) -> Shortage | None:
        """Return why this worker has to end; None unless its actor was ended for memory."""
        if not self._judged and self._is_on and select.select([self._lifeline], [], [], 0)[0]:
            self._judged = True
            with contextlib.suppress(OSError, ValueError):
                self._shortage = self._judge()
        return self._shortage

    def _judge(self) -> Shortage | None:
        """Return the judgement by the present use of memory."""
        usage = node_memory()
        if usage.used < (self._threshold - MARGIN) * usage.total:
            return None
        path = Path(tempfile.gettempdir()) / f"polysweep-memory-{os.getuid()}"
        faults = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            # one at a time, or the second largest would judge after the largest has ended
            fcntl.flock(faults, fcntl.LOCK_EX)
            trees = worker_memory()
            mine = trees.get(os.getpid(), 0)
            largest = max([*trees.values(), last_fault(faults, self._start_s)])
            is_at_fault = 0 < mine >= AT_FAULT * largest
            if is_at_fault:
                os.ftruncate(faults, 0)
                os.pwrite(faults, f"{time.monotonic()} {mine}".encode(), 0)
        finally:
            os.close(faults)
        used, total = usage.used / GIB, usage.total / GIB
        detail = (
            f"Ray's memory monitor ended its worker: {used:.1f} of {total:.1f} GiB were used on the node, "
            f"{mine / GIB:.1f} of them by this stage"
        )
        if is_at_fault:
            return Shortage(Cause.OOM_HOST, detail, at_once=True)
        return Shortage(Cause.PREEMPTED, f"{detail}, {largest / GIB:.1f} by another worker's", at_once=False)


def node_memory(root: Path = Path("/")) -> Usage:
    """Return how much memory is used, as Ray's monitor counts it.

    Args:
        root: of the file system.

    Raises:
        OSError, ValueError: it cannot be read.
    """
    lines = (root / "proc/meminfo").read_text(encoding="utf-8").splitlines()
    meminfo = {line.partition(":")[0]: int(line.split()[1]) * 1024 for line in lines}
    total = meminfo["MemTotal"]
    groups = root / "sys/fs/cgroup"
    # cgroup version 2 first, then version 1
    for limit, used, stat, prefix in (
        (groups / "memory.max", groups / "memory.current", groups / "memory.stat", ""),
        (
            groups / "memory/memory.limit_in_bytes",
            groups / "memory/memory.usage_in_bytes",
            groups / "memory/memory.stat",
            "total_",
        ),
    ):
        with contextlib.suppress(OSError, ValueError):  # no such cgroup, or "max" for no limit
            most = int(limit.read_text(encoding="utf-8"))
            if most < total:
                counts = dict(line.split() for line in stat.read_text(encoding="utf-8").splitlines())
                files = int(counts[f"{prefix}inactive_file"]) + int(counts[f"{prefix}active_file"])
                return Usage(int(used.read_text(encoding="utf-8")) - files, most)
    return Usage(total - meminfo["MemAvailable"], total)


def worker_memory() -> dict[int, int]:
    """Return the bytes that each of Ray's workers here holds with its descendants, by process id."""
    parents = {pid: entry.parent for pid, entry in process_table().items()}
    workers = {pid for pid in parents if _runs_worker(pid)}
    # forks of a worker have the same command line
    mains = {pid for pid in workers if parents[pid] not in workers}
    found = dict.fromkeys(mains, 0)
    for pid in parents:
        above = pid
        # bounded, because the processes were read one after another, and ids may be reused
        for _ in range(64):
            if above in mains:
                found[above] += _held(pid)
                break
            above = parents.get(above, 0)
    return found


def _runs_worker(pid: int) -> bool:
    """Return whether a process runs the worker's module."""
    with contextlib.suppress(OSError):
        return WORKER in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[:4]
    return False


def _held(pid: int) -> int:
    """Return the memory of a process that no file backs, in bytes."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
        return sum(
            int(line.split()[1]) * 1024 for line in lines if line.startswith(("RssAnon:", "RssShmem:"))
        )
    return 0


def last_fault(faults: int, start_s: float) -> int:
    """Return what the last worker at fault held, 0 if there was none recently.

    A fault from before the start of this worker belongs to an earlier round of the monitor. If it counted,
    the next attempt of the same stage would not be found at fault when it holds less than before.

    Args:
        faults: descriptor of the file with the time of the last fault, and the bytes held.
        start_s: start of this worker, by the machine's monotonic clock.
    """
    with contextlib.suppress(ValueError):
        at_s, held = os.pread(faults, 100, 0).split()
        if start_s <= float(at_s) and 0 <= time.monotonic() - float(at_s) < RECENT_S:
            return int(held)
    return 0


def _number(text: str | None, otherwise: float) -> float:
    """Return the number in a text, or else a default."""
    try:
        return float(text) if text else otherwise
    except ValueError:
        return otherwise


STDIN = 0
"""The pipe that ends when the actor is gone; see `orchestrator.launchers.ray.actor`."""

NUM_STARTS = 8
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
    own = ray_settings(settings.launcher)
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
        num_slots=NUM_STARTS,
        num_threads=max(1, min(submission.resources.cpus, available_cpus())),
        import_paths=paths,
        code_digest=snapshots.version_of(code, revision.sweep, paths) if code else "",
        code=code,
        max_idle_s=own.idle_s,
        request=submission.request,
        # Ray names GPUs to an actor that requested some, also those that a test bed only claims to have.
        env={"CUDA_VISIBLE_DEVICES": ""} if own.device == "cpu" else {},
        job=JobContext(
            cluster=submission.cluster,
            job=submissions.job_of(submission.number) or submission.name,
            restart_count=restart,
            node=platform.node(),
            gone=tuple(gone_of(submissions.read(), grace_s=grace_of(settings.policy, submission.resources))),
            rungs=submission.resources.by_cause,
        ),
        num_gpus=0 if own.device == "cpu" else submission.resources.gpus_per_node,
        device=submission.resources.accelerator,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run a worker, and return its exit code."""
    store, sweep, number, slot, restart = sys.argv[1:] if argv is None else argv
    # the worker redirects descriptor 1 to its log, but the driver reads the last line from here
    stdout, summary = os.dup(1), WorkerSummary()
    try:
        ledger = open_ledger(store)
        submission = Submissions(ledger, sweep).submission(int(number))
        if submission is None:
            raise InfrastructureError(f"submission {number} of {sweep} cannot be read", where=store)
        logs = ledger.objects.workspace(layout.job_logs(sweep, int(number)))
        order = order_of(ledger, sweep, submission, int(slot), int(restart))
        code = run_worker(
            order, logs / f"worker-{slot}.{restart}.log", summary, STDIN, MemoryJudge(STDIN, os.environ)
        )
        with contextlib.suppress(OSError):  # the worker's result counts, not its log
            ledger.objects.share(layout.job_logs(sweep, int(number)))
    except (SweepError, OSError) as error:
        code, summary.last_line = exit_of(error)
    finally:
        # a signal during the exit of Python would replace the exit code by a failure
        for late in STOP_SIGNALS:
            signal.signal(late, signal.SIG_IGN)
    with contextlib.suppress(OSError):
        os.write(
            stdout, f"{json.dumps({'said': summary.last_line, 'claims': summary.num_claims})}\n".encode()
        )
    return code


if __name__ == "__main__":
    adopt_orphans()
    sys.exit(main())
