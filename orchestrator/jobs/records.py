"""Records of submissions to schedulers and of the ends of the resulting jobs, and the exit codes of workers.

A *submission* is one array of a scheduler. Each of its *tasks* is a job that works on a few cells. The intent
is recorded before the scheduler is called, and the job's id afterwards. If the process dies in between, the
job is found again by its unique name. The end of a job is recorded as a *closing*, because schedulers forget.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from typing import Annotated, NamedTuple

from orchestrator.core.evidence import Spending
from orchestrator.core.failure import Cause
from orchestrator.core.records import Code, Owner, Record
from orchestrator.formats import SINCE_2, Stored


class Resources(Stored, frozen=True, kw_only=True):
    """The resources of one job.

    Attributes:
        num_nodes: Number of machines.
        gpus_per_node: GPUs on each machine; Ray also accepts a fraction.
        cpus: CPUs on each machine.
        memory_gib: Host memory on each machine in GiB; None for the scheduler's default.
        hours: Limit on wall time, in hours.
        partition: Partition of the scheduler; "" for its default.
        accelerator: Type of the GPUs as Ray names it, such as ``H100``; "" for any.
        custom: Ray's custom resources by name.
        signal_s: Seconds before the limit at which stages have to begin to save, as estimated; 0 for those of
            the cluster's profile.
        chosen_gpus: GPUs that were chosen for each cell, which it keeps; 0 if none were. See
            `hardware.moldable`.
        rungs: Causes of earlier ends of which this request is a remedy, or would be doubled for: each with
            the rung, 0 for none, and the number of rungs. Doublings beyond cost retries.
    """

    num_nodes: int = 1
    gpus_per_node: int | float = 0
    cpus: int = 1
    memory_gib: float | None = None
    hours: float = 1.0
    partition: str = ""
    accelerator: str = ""
    custom: tuple[tuple[str, float], ...] = ()
    signal_s: Annotated[float, SINCE_2] = 0.0
    chosen_gpus: Annotated[int, SINCE_2] = 0
    rungs: Annotated[tuple[tuple[Cause, int, int], ...], SINCE_2] = ()

    @property
    def by_cause(self) -> dict[Cause, tuple[int, int]]:
        """Cause to the rung of its remedy, and the number of rungs."""
        return {cause: (rung, of) for cause, rung, of in self.rungs}

    def rung_of(self, cause: Cause | None) -> tuple[int, int]:
        """Return the rung of the remedy for a cause, and the number of rungs; (0, 0) without one."""
        return next(((rung, of) for name, rung, of in self.rungs if name is cause), (0, 0))


NUM_DOUBLINGS = 1
"""How often a job's memory or time is doubled before a failure counts against the retries of its cause."""


class Shortfalls(NamedTuple):
    """How often a cell needed more than its jobs had asked for: host memory, hours."""

    memory: int = 0
    hours: int = 0


class Submission(Record, frozen=True, kw_only=True):
    """`sweeps/<sweep>/submissions/<n>.json`: the intent to submit cells to a scheduler.

    Attributes:
        nonce: Random value of the write.
        number: Number of the submission, from 1.
        revision: Revision of the sweep.
        request: Number of the launch or rerun behind it, whose settings and cells apply.
        launcher: Key of `orchestrator.registry.LAUNCHERS`.
        cluster: Name or address of the scheduler.
        name: Name of the job, unique for the store and the number, by which a lost job is found.
        tasks: Cell ids of each task, by index from 0.
        resources: Resources of each task.
        max_running: How many tasks may run at once; None for all.
        exclude: Machines that must not be used.
        code: Code snapshot that its workers import.
        folder: Working folder of its workers.
        logs: Folder of the jobs' own logs, "" for the one in the store.
        by: User who submitted it, as ``name@host``.
        at: Time of the intent.
        uid: Number of that user; None in older records.
        controller: Addresses of the scheduler's controllers, separated by spaces; "" when unknown. One common
            address identifies the scheduler.
        after: Tasks of other jobs, such as ``12_0``, that run gates. No task of this one starts before all of
            these have run for `after_s` or ended: it would wait with its GPUs.
        after_s: That time in seconds.
    """

    nonce: str
    number: int
    revision: int
    request: int
    launcher: str
    cluster: str
    name: str
    tasks: tuple[tuple[str, ...], ...]
    resources: Resources
    max_running: int | None = None
    exclude: tuple[str, ...] = ()
    code: Code | None = None
    folder: str = ""
    logs: str = ""
    by: str = ""
    at: str = ""
    # Left out in a store of format 1, whose readers reject unknown fields.
    uid: Annotated[int | None, SINCE_2] = None
    controller: Annotated[str, SINCE_2] = ""
    after: Annotated[tuple[str, ...], SINCE_2] = ()
    after_s: Annotated[float, SINCE_2] = 0.0


class Accepted(Record, frozen=True, kw_only=True):
    """`sweeps/<sweep>/submissions/<n>/job.json`: the scheduler accepted the submission, under this id.

    Attributes:
        nonce: Random value of the write.
        job: The scheduler's id.
        at: Time of the record.
    """

    nonce: str
    job: str
    at: str = ""


class JobEnd(Stored, frozen=True, kw_only=True):
    """A task that will not run any more, with the evidence.

    Attributes:
        index: Index of the task.
        word: The scheduler's word, such as ``NODE_FAIL``; ``REFUSED`` or ``LIMIT`` when it never became a
            job.
        cause: Failure cause that counts against a budget; None when nothing went wrong.
        detail: Explanation for people.
        node: Machine on which it ran, "" when it did not run.
        restarts: How often the scheduler had restarted it.
        seconds: Wall time of its last start, in seconds.
        idle: Whether it ended without claiming anything, which suggests a bad machine.
    """

    index: int
    word: str
    cause: Cause | None = None
    detail: str = ""
    node: str = ""
    restarts: int = 0
    seconds: float | None = None
    idle: bool = False


class LostSlot(Stored, frozen=True, kw_only=True):
    """A worker that a driver had started and that is gone.

    Attributes:
        slot: Number of the worker; None for all workers of an earlier start of the driver.
        restart: Restart count of the driver that had started it.
        cause: Failure cause that its end counts as.
        why: Explanation for people.
    """

    slot: int | None
    restart: int
    cause: Cause
    why: str


class DriverStatus(Record, frozen=True, kw_only=True):
    """`sweeps/<sweep>/submissions/<n>/driver.json`: the current view of a job that starts workers itself.

    Attributes:
        restart: How often the driver was restarted.
        beat: Counter that increases while the driver lives.
        text: Activity of its workers, or what they wait for, for people.
        lost: Workers that are gone. Their attempts are over without waiting for a lease.
        at: Time of the record.
    """

    restart: int
    beat: int
    text: str = ""
    lost: tuple[LostSlot, ...] = ()
    at: str = ""


class JobEndBatch(Record, frozen=True, kw_only=True):
    """`sweeps/<sweep>/submissions/<n>/closings/<k>.json`: tasks found over. The first end of a task counts.

    Attributes:
        nonce: Random value of the write.
        number: Number of the batch, from 1.
        over: The ends.
        at: Time of the record.
    """

    nonce: str
    number: int
    over: tuple[JobEnd, ...]
    at: str = ""


class JobExitReport(Record, frozen=True, kw_only=True):
    """`sweeps/<sweep>/submissions/<n>/reports/<index>.<restart>.json`: a job's own report about its exit.

    Attributes:
        code: Exit code of its worker.
        cause: Failure cause; None when nothing went wrong.
        why: The worker's last message.
        claimed: Whether it claimed anything.
        requeued: Whether it requested a restart from the scheduler.
        restart: How often the scheduler had restarted it.
        node: Machine on which it ran.
        seconds: Wall time since its start, in seconds.
        at: Time of the record.
    """

    code: int
    cause: Cause | None = None
    why: str = ""
    claimed: bool = True
    requeued: bool = False
    restart: int = 0
    node: str = ""
    seconds: float = 0.0
    at: str = ""


class WorkerRecord(Record, frozen=True, kw_only=True):
    """`sweeps/<sweep>/workers/<nonce>.json`: the time for which a worker has held its GPUs.

    The worker replaces it at each heartbeat, also while it is idle. What it held counts up to the last one.

    Attributes:
        nonce: Random value that names the worker.
        owner: Identity of the worker, which its claims name.
        revision: Revision of the sweep.
        num_gpus: GPUs that it holds; 0 without GPUs. Ray also gives fractions.
        device: Kind of the GPUs, "" if it is not known.
        seconds: For which it has held them, by its own monotonic clock.
        start_s: The part of these before it looked for its first stage.
        runs: Key of the attempt that it runs, "" between stages.
        until_saved: Of its last attempts, the seconds from the claim to the first checkpoint or the product.
        has_ended: Whether it has ended, so that nothing is added any more.
        began_at: Time of its start.
        at: Time of the record.
    """

    nonce: str
    owner: Owner
    revision: int
    num_gpus: float = 0.0
    device: str = ""
    seconds: float = 0.0
    start_s: float = 0.0
    runs: str = ""
    until_saved: tuple[float, ...] = ()
    has_ended: bool = False
    began_at: str = ""
    at: str = ""

    @property
    def is_running(self) -> bool:
        """Whether it runs a stage, as far as the record shows."""
        return self.runs != "" and not self.has_ended


def spending(
    workers: Iterable[WorkerRecord], running: Iterable[WorkerRecord], *, checkpoint_s: float
) -> Spending:
    """Return what the workers of a sweep have spent. Pure.

    Args:
        workers: All workers of the sweep.
        running: Those of them that run a stage now.
        checkpoint_s: Seconds to a checkpoint, as long as none was measured.
    """
    known = list(workers)
    measured = [seconds for worker in known for seconds in worker.until_saved]
    return Spending(
        gpu_seconds=sum(worker.num_gpus * worker.seconds for worker in known),
        running_gpus=sum(worker.num_gpus for worker in running),
        checkpoint_s=statistics.median(measured) if measured else checkpoint_s,
        worker_gpus=max((worker.num_gpus for worker in known), default=1.0),
    )


BEAT_S = 20.0
"""Longest interval between two status records of a driver, in seconds."""


class LostWorker(Stored, frozen=True, kw_only=True):
    """Evidence that a start of a scheduler's job is over, so that nobody waits for its leases to expire.

    It covers this start and all earlier ones: every attempt of the job up to `restart_count`.

    Attributes:
        cluster, job, array_index: identify the scheduler's job.
        slot: the worker of the job; None for all its workers.
        restart_count: the last start of the job that is over.
        cause: what the worker's unfinished attempt counts as.
        evidence: the reason, for people.
    """

    cluster: str
    job: str
    array_index: int = 0
    slot: int | None = None
    restart_count: int
    cause: Cause
    evidence: str


class JobContext(Stored, frozen=True, kw_only=True):
    """The scheduler's job that a worker runs in.

    Attributes:
        cluster, job, array_index, restart_count: the job's identity, see `orchestrator.core.records.Owner`.
        node: the scheduler's name of this machine.
        end_at: the job's time limit, in seconds since 1970 on this machine's clock; None if unknown.
        notice_s: seconds before `end_at` at which stages are requested to write their last checkpoint.
        min_left_s: the worker starts no stage with fewer seconds left.
        before: why the job's previous start ended; None if unknown, or if this is the first start.
        gone: earlier jobs of its cells that are over.
        start_at: when the job got its nodes, as `end_at`; None if unknown.
        rungs: cause to the rung of its remedy in the job's resources, and the number of rungs.
    """

    cluster: str
    job: str
    array_index: int = 0
    restart_count: int = 0
    node: str = ""
    end_at: float | None = None
    notice_s: float = 0.0
    min_left_s: float = 0.0
    before: Cause | None = None
    gone: tuple[LostWorker, ...] = ()
    start_at: Annotated[float | None, SINCE_2] = None
    rungs: Annotated[dict[Cause, tuple[int, int]], SINCE_2] = {}


REFUSED = 4
"""Exit code of a worker that must not claim: the store is unusable, or two attempts failed at their start."""


BROKEN_NODE, OTHER_CODE, DAMAGED = UNABLE = (5, 6, 7)
"""Exit codes of a worker that must not claim: because of its node, of its code, of a damaged record."""


RELEASED, TOO_SHORT, NO_MEMORY = 75, 76, 77
"""Exit codes of a scheduler's job that ended with work left.

After `RELEASED` another job may go on (75 is EX_TEMPFAIL of sysexits.h). After `TOO_SHORT`, without a
checkpoint, another job would get no further. After `NO_MEMORY` another job needs more host memory.
"""

SETUP_FAILED = 78
"""Exit code of a job in which a line of `cluster.setup` failed: EX_CONFIG of sysexits.h."""
NODES_LOST = 79
"""Exit code of a driver that gave up because its workers' nodes kept going."""


EXITS: Mapping[int, tuple[Cause | None, str]] = {
    0: (None, "its worker ended as it should"),
    RELEASED: (None, "its worker gave its work back"),
    TOO_SHORT: (Cause.TIMEOUT, "no checkpoint was finished within its time limit: ask for more hours"),
    NO_MEMORY: (Cause.OOM_HOST, "a stage ran out of host memory: its next job asks for twice as much"),
    REFUSED: (Cause.BAD_NODE, "its worker refused to work"),
    BROKEN_NODE: (Cause.BAD_NODE, "its node did not pass the check"),
    OTHER_CODE: (Cause.CODE, "its worker found other code than that at launch"),
    DAMAGED: (Cause.STORAGE, "a record that its worker needs is damaged"),
    # the exit code of InfrastructureError, which a worker raises when the store does not answer
    3: (Cause.STORAGE, "its worker could not use the store"),
    NODES_LOST: (Cause.NODE_LOST, "the nodes of its workers were lost"),
    SETUP_FAILED: (Cause.CONFIG, "a line of cluster.setup failed"),
}
"""Exit codes of a worker, which its job passes on: the cause that each counts as, and its meaning."""


def cause_of_code(code: int) -> Cause | None:
    """Return the cause that a worker's exit code counts as; None for a good end."""
    return EXITS[code][0] if code in EXITS else Cause.UNKNOWN


def meaning_of_code(code: int) -> str:
    """Return the meaning of an exit code where it explains more than the worker's last line, else ""."""
    return EXITS[code][1] if code in (TOO_SHORT, NO_MEMORY) else ""
