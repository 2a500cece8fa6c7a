"""What each verb prints with ``--json``, as types. The schemas in ``schema/json`` are made from them.

The comment behind a field is its description. A named tuple stands for an object with its fields. A later
version may add fields to any object, and removes or renames none. A number that is not finite is null.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NotRequired, TypedDict

from orchestrator.api.cell_outputs import (
    BudgetLimit,
    CancelOutput,
    CellsDiff,
    DecisionFacts,
    DiscardOutput,
    FailuresOutput,
    LaterFacts,
    LaunchOutput,
    RevisionsDiff,
    ShowOutput,
    SpentOutput,
    StatusOutput,
    WhyOutput,
)
from orchestrator.api.planning import CellGpus
from orchestrator.api.rehearsals import PlannedGate
from orchestrator.api.simulating import SimulatedCluster
from orchestrator.core.plan import Action
from orchestrator.core.schedule import Makespan
from orchestrator.core.settings import HardwareSettings
from orchestrator.core.state import Goal, State
from orchestrator.costs import Estimate
from orchestrator.store.retention import UnusedCode


class ErrorOutput(TypedDict):
    """What a verb prints with ``--json`` when it fails before it has printed anything."""

    error: ErrorFacts  #: what went wrong.


class ErrorFacts(TypedDict):
    """An error."""

    what: str  #: what is wrong, with the value.
    where: str  #: the file, line or key; "" if there is none.
    allowed: str  #: what would have been right, or the nearest names.
    fix: str  #: what to type next.
    exit_code: int  #: of the command.


class ListedSweep(TypedDict):
    """A sweep that exists as a file or in the store."""

    sweep: str  #: its name.
    num_cells: int | None  #: null if its file has an error, or the number is only known once it is composed.
    revision: int | None  #: that was launched last; null if it was never launched here.
    description: str  #: of the sweep, or the error of its file.
    path: str  #: of its file; "" if there is none.


class PlanTotals(TypedDict):
    """The costs of all cells, each shared stage once. See `Estimate` for what the numbers mean."""

    num_steps: int
    num_tokens: int
    model_flops: float
    hardware_flops: float
    gpu_hours: float
    generation_gpu_hours: float
    wall_hours: float  #: with `hardware.cells_at_once` cells in parallel.
    disk_gib: float
    peak_disk_gib: float
    num_generations: int
    num_requests: int
    prompt_tokens: int
    completion_tokens: int
    useful_share: float
    checkpoint_share: float
    lost_s: float
    stop_s: float
    num_measured: int  #: stages of which speed and memory come from cells that have run.
    assumptions: Sequence[str]  #: what was assumed or measured, for people.


class PlannedStageOutput(TypedDict):
    """What a launch would do with a stage of a cell."""

    stage: str  #: such as ``train``, or ``prepare[en]``.
    digest: str  #: its identity; cells may share it.
    state: State  #: now.
    action: Action  #: of the launch.
    reason: str  #: for the action.


class PlannedCell(TypedDict):
    """What a launch would do with a cell."""

    cell: str  #: its id.
    axes: Mapping[str, str]  #: axis to label.
    columns: Mapping[str, Any]  #: the sweep's `columns` of the cell.
    state: State  #: now; blocked if it lacks a need.
    blocked: Sequence[str]  #: needs that are missing.
    estimate: Estimate | None  #: what it costs; null if no stage can estimate it.
    stages: Sequence[PlannedStageOutput]  #: of the cell.
    gpus: NotRequired[CellGpus]  #: that a launch would choose; absent unless `hardware.moldable` is set.


class PlanOutput(TypedDict):
    """`sweep plan`: what a launch would do."""

    sweep: str  #: its name.
    revision: int  #: that was planned; 0 if it is not in the store yet.
    num_cells: int  #: that were selected.
    hardware: HardwareSettings  #: that the estimates assume.
    retention: str  #: the policy that would apply.
    totals: PlanTotals | None  #: costs of all cells; null if no stage can estimate them.
    prefetch: str | None  #: the command that fetches what is missing; null if nothing is.
    gates: Sequence[PlannedGate]  #: rehearsals that a launch would have.
    later: LaterFacts | None  #: what may follow from open decisions, in no number here; null without.
    cells: Sequence[PlannedCell]  #: that were selected.
    makespan: NotRequired[Makespan]  #: with ``--gpus``: how long all takes on that cluster.


class DroppedCell(TypedDict):
    """A cell to drop so that a plan fits its budget."""

    cell: str  #: its id.
    gpu_hours: float  #: that it would save.
    claims: int  #: rows and comparisons of the report that need it.


class BudgetOutput(TypedDict):
    """`sweep plan --budget`: whether a plan fits its budget. Amounts are GPU-hours."""

    sweep: str  #: its name.
    budget: BudgetLimit  #: the limit.
    has_ended: bool  #: whether `until` is past.
    holds_gpus: bool  #: whether workers of a launch would hold GPUs.
    spent_gpu_hours: float  #: so far.
    needed_gpu_hours: float  #: by the estimates.
    fits: bool  #: whether both together are within the limit.
    fits_without: bool  #: whether they are without the cells in `drop`.
    rule: str  #: by which these are chosen.
    claims: int  #: rows and comparisons of the report.
    claims_lost: int  #: of these, without the cells in `drop`.
    drop: Sequence[DroppedCell]  #: cells to drop.
    later: LaterFacts | None  #: what may follow from open decisions, in no number here; null without.


class SimulatedGoodput(TypedDict):
    """Where the held time of a simulated cluster went."""

    share: float  #: of the held time that was useful.
    held_gpu_hours: float  #: that workers held.
    utilisation: float  #: held share of the cluster's time.
    gpu_hours: Mapping[str, float]  #: category to amount.


class SimulateOutput(TypedDict):
    """`sweep simulate`: what comes of what is not done on a cluster."""

    sweep: str  #: its name.
    revision: int  #: that was planned; 0 if it is not in the store yet.
    num_cells: int  #: that were selected.
    cluster: SimulatedCluster  #: that was simulated.
    makespan: Makespan  #: how long it takes.
    cells: Mapping[str, int]  #: state to number of cells at the end.
    attempts: Mapping[str, int]  #: end to number of attempts.
    num_remedied: int  #: attempts that started with a remedy.
    num_nodes_left_out: int  #: nodes that were quarantined.
    num_without_estimate: int  #: stages that counted as no time.
    faults: Mapping[str, int]  #: name to number.
    gate_gpu_hours: float  #: of rehearsals.
    away_gpu_hours: float  #: of nodes that were out of use or quarantined, before the end.
    goodput: SimulatedGoodput | None  #: null without GPUs.
    budget: BudgetLimit | None  #: null without one.
    waste: Mapping[str, float]  #: why time was lost to GPU-hours.


class LogOutput(TypedDict):
    """`sweep logs`: the end of the log of an attempt."""

    sweep: str  #: its name.
    revision: int  #: that was read.
    cell: str  #: its id.
    stage: str  #: such as ``train``, or ``prepare[en]``.
    attempt: int  #: its number.
    path: str  #: of the whole log.
    text: str  #: the last 16 MiB of it at most.
    skipped_bytes: NotRequired[int]  #: before the text; absent if the text is whole.


class JobLog(TypedDict):
    """`sweep logs --job`: the log of the last job of a cell."""

    cell: str  #: its id.
    job: str  #: the scheduler's name for it.
    path: str  #: where the log is.
    text: str  #: its end.


class WaitOutput(TypedDict):
    """`sweep wait`: what the wait found."""

    sweep: str  #: its name.
    revision: int  #: that was read.
    until: Goal  #: the goal.
    result: str  #: ``reached``, ``impossible`` or ``timeout``.
    counts: Mapping[str, int]  #: state to number of cells.
    seconds: float  #: how long it waited.
    decision: DecisionFacts | None  #: the next one; null if none is left, or single cells were named.


class EventLine(TypedDict):
    """`sweep events`: an object a line. docs/scripts.md lists the fields of each event."""

    id: str  #: the key of the record.
    event: str  #: request, submission, claim, product, end, void, retired or job_end.
    at: str  #: time in the record, UTC; "" if it has none.
    sweep: NotRequired[str]
    number: NotRequired[int]
    verb: NotRequired[str]
    revision: NotRequired[int]
    cells: NotRequired[Sequence[str] | None]
    by: NotRequired[str]
    reason: NotRequired[str]
    request: NotRequired[int]
    launcher: NotRequired[str]
    cluster: NotRequired[str]
    num_jobs: NotRequired[int]
    stage: NotRequired[str]
    digest: NotRequired[str]
    attempt: NotRequired[int]
    cell: NotRequired[str]
    host: NotRequired[str]
    job: NotRequired[str]
    generation: NotRequired[int]
    supersedes: NotRequired[int | None]
    num_files: NotRequired[int]
    num_rows: NotRequired[int]
    seconds: NotRequired[float | None]
    outcome: NotRequired[str]
    cause: NotRequired[str | None]
    why: NotRequired[str]
    message: NotRequired[str]
    kind: NotRequired[str]
    policy: NotRequired[str]
    submission: NotRequired[int]
    index: NotRequired[int]
    word: NotRequired[str]
    detail: NotRequired[str]
    node: NotRequired[str]


class CollectedRow(TypedDict, total=False):
    """`sweep collect`: one result row of a finished stage.

    The axes, the sweep's `columns` and what the stage returned are further fields.
    """

    cell: str  #: its id.
    sweep: str  #: its name.
    revision: int  #: its number.
    stage: str  #: that returned the row.
    attempts: int  #: of the cell.
    seconds: float  #: wall time of the stage.
    code: str  #: version of the code that made the product.


class RankedGroup(TypedDict):
    """`sweep best`: cells that differ only in what the mean is taken over."""

    rank: int  #: from 1.
    metric: str  #: its column.
    n: int  #: number of cells.
    mean: float  #: arithmetic mean.
    sd: float | None  #: sample standard deviation (n - 1); null for a single cell.
    low: float  #: smallest value.
    high: float  #: largest value.
    axes: Mapping[str, Any]  #: the common axes and values.
    cells: Sequence[str]  #: ids.


class SyncedMirror(TypedDict):
    """`sweep sync`: what was sent to one mirror."""

    to: str  #: the mirror.
    cells: int  #: number of cells of which something was sent.
    points: int  #: number of metric points sent.
    results: int  #: number of result rows sent.
    cells_lost: int  #: number of cells that it can no longer take.
    problem: str  #: why it does not have all; "" if it does.


class UnusedStage(TypedDict):
    """A stage that no revision in use names."""

    stage: str  #: such as ``train``, or ``prepare[en]``.
    digest: str  #: its identity.
    done: bool  #: whether it has a product.
    num_files: int  #: number of its files.
    num_bytes: int  #: their size.


class CleanOutput(TypedDict):
    """`sweep clean`: what is deleted, or would be."""

    store: str  #: its address.
    deleted: bool  #: whether it is deleted.
    num_bytes: int  #: of the stages.
    stages: Sequence[UnusedStage]  #: that no revision in use names.
    code: Sequence[UnusedCode]  #: snapshots that no launch in use names.


class NodeEvidence(TypedDict):
    """A report about a node."""

    kind: str  #: of the report.
    cause: str | None  #: of the failure; null without one.
    sweep: str  #: for which the work was; "" if unknown.
    attempt: str  #: that failed; "" without one.
    why: str  #: for people.
    by: str  #: who reported it.
    at: str  #: when, UTC.


class NodeFacts(TypedDict):
    """`sweep nodes`: a node about which something was reported."""

    node: str  #: its name.
    cluster: str  #: to which it belongs.
    left_out: bool  #: whether it gets no work now.
    left_s: float  #: for how many more seconds.
    reports: Sequence[NodeEvidence]  #: the evidence.


class DoctorCheck(TypedDict):
    """`sweep doctor`: the result of one check."""

    name: str  #: what was checked.
    ok: bool | None  #: whether it is as it should be; null if it is absent and not needed everywhere.
    detail: str  #: what was found.


OUTPUTS: Mapping[str, Mapping[str, Any]] = {
    "list": {"": Sequence[ListedSweep]},
    "plan": {"": PlanOutput, "--budget": BudgetOutput},
    "simulate": {"": SimulateOutput},
    "launch": {"": LaunchOutput},
    "rerun": {"": LaunchOutput},
    "cancel": {"": CancelOutput},
    "discard": {"": DiscardOutput},
    "status": {"": StatusOutput, "--spent": SpentOutput},
    "failures": {"": FailuresOutput},
    "why": {"": WhyOutput},
    "show": {"": ShowOutput},
    "diff": {"SWEEP CELL CELL": CellsDiff, "SWEEP@1 SWEEP@2": RevisionsDiff},
    "logs": {"": LogOutput, "--job": JobLog},
    "wait": {"": WaitOutput},
    "events": {"": EventLine},
    "collect": {"": Sequence[CollectedRow]},
    "report": {"": "orchestrator.reports.general:Numbers", "of the study": Mapping[str, Any]},
    "bundle": {"": "orchestrator.bundles.making:BundleFacts"},
    "verify": {"": "orchestrator.bundles.verifying:Verification"},
    "query": {"": Sequence[Mapping[str, Any]]},
    "sync": {"": Sequence[SyncedMirror]},
    "best": {"": Sequence[RankedGroup]},
    "data": {"check": "orchestrator.tasks.checking:CheckReport"},
    "clean": {"": CleanOutput},
    "decisions": {"": Sequence[DecisionFacts]},
    "nodes": {"": Sequence[NodeFacts]},
    "doctor": {"": Sequence[DoctorCheck]},
}
"""Verb to the types that it prints with ``--json``, by option or argument. A text names a type."""
