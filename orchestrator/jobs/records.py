"""The records of what was given to a scheduler, and what is known of the jobs that came of it.

A *submission* is one array of a scheduler; each of its *tasks* is a job that works on a few cells. The intent
is created before the scheduler is asked and the job's id after it, so that a job whose id was lost is found
again by its name. What a scheduler said of a job that is over is kept as a *closing*: schedulers forget.
"""

from __future__ import annotations

from typing import Annotated

from orchestrator.core.failure import Cause
from orchestrator.core.records import Code, Record
from orchestrator.formats import SINCE_2, Stored


class Resources(Stored, frozen=True, kw_only=True):
    """What one job asks for.

    Attributes:
        num_nodes: nodes of the job.
        gpus_per_node: GPUs on each of them; Ray also takes a fraction of one.
        cpus: CPUs on each of them.
        memory_gib: host memory on each of them; None for the scheduler's own default.
        hours: wall time.
        partition: "" for the scheduler's default.
        accelerator: the type of the GPUs in Ray's words, such as ``H100``; "" for any.
        custom: Ray's custom resources, by name.
    """

    num_nodes: int = 1
    gpus_per_node: int | float = 0
    cpus: int = 1
    memory_gib: float | None = None
    hours: float = 1.0
    partition: str = ""
    accelerator: str = ""
    custom: tuple[tuple[str, float], ...] = ()


class Submission(Record, frozen=True, kw_only=True):
    """`sweeps/<sweep>/submissions/<n>.json`: the intent to give cells to a scheduler.

    Attributes:
        request: the launch or rerun that asked, whose settings and cells count.
        launcher: a key of `orchestrator.registry.LAUNCHERS`.
        cluster: the scheduler's name for itself, or where it is reached.
        name: of the job, unique for the store and the number: what it is found by.
        tasks: the cells of each task, by index from 0.
        max_running: how many tasks may run at once; None for all.
        exclude: nodes that must not be used.
        code: the snapshot that its workers import.
        folder: the working folder of its workers.
        logs: folder of the jobs' own logs, "" for the one in the store.
        by: who submitted it, as ``name@host``.
        uid: that user's number, None where it was not recorded.
        controller: where the scheduler is reached, as words of which any is the same one; "" where not known.
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
    uid: Annotated[int | None, SINCE_2] = None
    controller: Annotated[str, SINCE_2] = ""


class Accepted(Record, frozen=True, kw_only=True):
    """`sweeps/<sweep>/submissions/<n>/job.json`: the scheduler took it, under this id."""

    nonce: str
    job: str
    at: str = ""


class JobEnd(Stored, frozen=True, kw_only=True):
    """A task that will not run any more, and how that is known.

    Attributes:
        index: of the task.
        word: the scheduler's own, such as ``NODE_FAIL``; ``REFUSED`` or ``LIMIT`` when it never was a job.
        cause: what it counts as; None when nothing went wrong.
        detail: for people.
        node: where it ran, "" when it did not.
        restarts: how often the scheduler had started it anew.
        seconds: wall time of its last start.
        idle: whether it ended without having claimed anything, which speaks against its node.
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
        slot: its number; None for all that a former start of the driver had started.
        restart: of the driver that had started it.
        cause: what its end counts as.
        why: for people.
    """

    slot: int | None
    restart: int
    cause: Cause
    why: str


class DriverStatus(Record, frozen=True, kw_only=True):
    """`sweeps/<sweep>/submissions/<n>/driver.json`: what a job that starts workers itself sees now.

    Attributes:
        restart: how often the driver was started anew.
        beat: counts up while it lives.
        text: what its workers do, and what they wait for, for people.
        lost: the workers that are gone, by which their attempts need no wait.
    """

    restart: int
    beat: int
    text: str = ""
    lost: tuple[LostSlot, ...] = ()
    at: str = ""


class JobEndBatch(Record, frozen=True, kw_only=True):
    """`sweeps/<sweep>/submissions/<n>/closings/<k>.json`: tasks found over; the first word stands."""

    nonce: str
    number: int
    over: tuple[JobEnd, ...]
    at: str = ""


class JobExitReport(Record, frozen=True, kw_only=True):
    """`sweeps/<sweep>/submissions/<n>/reports/<index>.<restart>.json`: a job's own last words.

    Attributes:
        code: exit code of its worker.
        cause: of its end, None when nothing went wrong.
        why: what the worker said last.
        claimed: whether it claimed anything.
        requeued: whether it asked the scheduler to start it anew.
        restart: how often the scheduler had started it anew.
        node: where it ran.
        seconds: since its start.
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
