"""What runs on a simulated cluster: jobs and their attempts, and what is counted of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from orchestrator.core.goodput import Goodput, Holder
from orchestrator.core.records import Owner
from orchestrator.core.state import CellStatus
from orchestrator.core.sweep import Cell
from orchestrator.execution.history import WorkerHistory


@dataclass(eq=False)
class SimulatedJob:
    """A worker with GPUs of one node, and the attempt that it runs now.

    Attributes:
        owner: its identity.
        node: where it runs; -1 for a job without GPUs.
        num_gpus: that it holds.
        cells: with the stages that it may claim.
        start_s: when it started.
        attempt: that it runs; None between two.
        history: how its attempts failed.
    """

    owner: Owner
    node: int
    num_gpus: int
    cells: Sequence[Cell]
    start_s: float
    attempt: RunningAttempt | None = None
    history: WorkerHistory = field(default_factory=lambda: WorkerHistory(in_job=True))


class HowFar(NamedTuple):
    """How far an attempt came; see `Ran`."""

    was_running: bool
    made_progress: bool


@dataclass(eq=False)
class RunningAttempt:
    """An attempt that runs.

    Attributes:
        digest: of its stage.
        number: of the attempt.
        start_s: when it was claimed.
        wait_s: until it computes: for the start of its job or process, and for the last checkpoint.
        is_first: whether these seconds belong to a first start, and not to one after a failure.
        resumed_s: seconds of work in the checkpoint that it resumed from.
        is_over: whether it ended; its planned end then means nothing.
    """

    digest: str
    number: int
    start_s: float
    wait_s: float
    is_first: bool
    resumed_s: float
    is_over: bool = False


@dataclass
class Tally:
    """What is counted while a sweep runs."""

    end_s: float = 0.0
    num_jobs: int = 0
    gate_gpu_s: float = 0.0
    attempts: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    holders: list[Holder] = field(default_factory=list)


class Outcome(NamedTuple):
    """What came of a sweep.

    Attributes:
        hours: from the first start to the last end.
        cells: id of a cell to its state.
        attempts: number of attempts by how they ended: succeeded, failed, released or lost.
        num_remedied: how many of them started with a remedy.
        num_left_out: how often a node was left out, since attempts failed on it at once.
        faults: number of faults by their names.
        goodput: where the held time of the GPUs went; None if no stage needs one.
        gate_gpu_hours: what gates took that were passed. It is no loss, and makes no result.
    """

    hours: float
    cells: dict[str, CellStatus]
    attempts: dict[str, int]
    num_remedied: int
    num_left_out: int
    faults: dict[str, int]
    goodput: Goodput | None
    gate_gpu_hours: float = 0.0
