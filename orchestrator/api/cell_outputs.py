"""What verbs print with ``--json`` about states of cells: `status`, `failures`, `why`, `show` and `diff`.

See `orchestrator.api.outputs`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NotRequired, TypedDict

from orchestrator.api.failures import FailureGroup
from orchestrator.api.notices import Undelivered
from orchestrator.core.evidence import Attempt
from orchestrator.core.failure import Cause
from orchestrator.core.records import Retired
from orchestrator.core.state import State
from orchestrator.jobs.judgement import Phase


class BudgetLimit(TypedDict):
    """A budget."""

    gpu_hours: float | None  #: the most that may be spent; null without a limit.
    until: str | None  #: time after which nothing starts; null without one.
    spent_gpu_hours: NotRequired[float]  #: by the workers of the sweep.


class SeenFacts(TypedDict):
    """What a decision saw of a cell."""

    cell: str  #: its id.
    value: float | None  #: the metric; null if the cell counts as the worst.
    why: str  #: the reason for that; "" with a value.
    products: Mapping[str, int]  #: digest of each of its stages that was done to the generation.


class DecisionFacts(TypedDict):
    """`sweep decisions`: a decision, or the next one, which was not made yet."""

    number: int  #: from 1.
    title: str  #: what is decided.
    state: str  #: ``made``, ``waits`` or ``blocked``.
    metric: str  #: by which cells are ranked.
    mode: str  #: ``min`` or ``max``.
    rule: str  #: how it is decided, for people.
    chosen: Sequence[str]  #: candidates that go on, best first; for a rung ids of cells; of a search points.
    sampler: str  #: which proposed the points of a search, with its version; "" for others.
    seen: Sequence[SeenFacts]  #: the evidence, in the order of the grid.
    why: str  #: the reason why it is not made, or cannot be compared; "" otherwise.
    waits_for: Sequence[str]  #: ids of the cells that have not ended; none once it is made.
    of: int  #: number of the cells that it looks at.
    since: str  #: when it became the next one, UTC; "" if it is made, or nothing was launched.
    by: str  #: who made it.
    at: str  #: when, UTC.
    differences: Sequence[str]  #: with ``--verify``: what does not follow from the store.


class LaterFacts(TypedDict):
    """What may follow from open decisions, and so is not counted yet."""

    after: str  #: what is decided next.
    num_cells: int  #: cells that may come to exist, at most.
    num_longer: int  #: cells of which later parts may run, at most.


class StageStateOutput(TypedDict):
    """The state of a stage of a cell."""

    stage: str  #: such as ``train``, or ``prepare[en]``.
    digest: str  #: its identity; cells may share it.
    state: State  #: now.
    cause: Cause | None  #: of its failure; null if it has not failed.
    attempts: int  #: number of attempts.
    seconds: float | None  #: wall time of the last attempt; null before its end.
    reason: str  #: for the state.
    remedy: NotRequired[str]  #: with which the last attempt started; absent without one.


class CellStateOutput(TypedDict):
    """The state of a cell."""

    cell: str  #: its id.
    axes: Mapping[str, str]  #: axis to label.
    state: State  #: now.
    cause: Cause | None  #: of its failure; null if it has not failed.
    reason: str  #: for the state.
    attempts: int  #: of its stages.
    retries: int  #: how often its stages were started again.
    chosen_gpus: NotRequired[int]  #: absent unless `hardware.moldable` is set.
    stages: Sequence[StageStateOutput]  #: in order.


class StatusOutput(TypedDict):
    """`sweep status`: where each cell stands."""

    sweep: str  #: its name.
    revision: int  #: that was read; 0 if it is not in the store yet.
    counts: Mapping[str, int]  #: state to number of cells; states without cells are left out.
    as_of: float  #: when the store was read, in Unix seconds.
    code: Mapping[str, int]  #: version of the code to number of products that it made.
    problems: Sequence[str]  #: records that could not be read.
    undelivered: Sequence[Undelivered]  #: notices that were not delivered.
    decision: DecisionFacts | None  #: the next one; null if none is left.
    cells: Sequence[CellStateOutput]  #: that were selected.


class LaunchedJobs(TypedDict):
    """A submission to a scheduler. A task of it is a job."""

    submission: int  #: its number.
    job: str  #: the scheduler's id of all its tasks; "" if it has not accepted them.
    cells: Sequence[Sequence[str]]  #: ids of the cells of each task.
    script: NotRequired[str]  #: with ``--dry-run``: what the scheduler would get.


class LaunchOutput(TypedDict):
    """`sweep launch` and `rerun`: what was recorded and started, and how it stands."""

    sweep: str  #: its name.
    revision: int  #: that was launched.
    verb: str  #: launch or rerun.
    request: int | None  #: number of the recorded request; null if nothing was recorded.
    launcher: str  #: its name.
    cells: Sequence[str]  #: ids of the cells that are meant.
    jobs: Sequence[LaunchedJobs]  #: that were submitted for it; none without a scheduler.
    process: int | None  #: id of the background process of ``--detach``; null without one.
    log: str  #: file with all that this process prints; "" without one.
    counts: Mapping[str, int]  #: state to number of these cells, when the verb ended.
    decision: DecisionFacts | None  #: the next one; null if none is left.
    exit_code: int  #: of the command.


class CancelOutput(TypedDict):
    """`sweep cancel`: what was cancelled."""

    sweep: str  #: its name.
    revision: int  #: whose cells are meant.
    request: int | None  #: number of the recorded request; null if there was nothing to cancel.
    cells: Sequence[str]  #: ids of the cells that were cancelled.
    num_running: int  #: how many of them run, and stop within seconds.
    kept: Sequence[str]  #: ids of cells that go on, because the current revision has them too.
    notes: Sequence[str]  #: on their jobs, for people.


class DiscardedStage(TypedDict):
    """A stage that was discarded, or was made from one."""

    stage: str  #: such as ``train``, or ``prepare[en]``.
    digest: str  #: its identity.
    voided: bool  #: whether it had a product that counted.


class DiscardOutput(TypedDict):
    """`sweep discard`: what counts no more."""

    sweep: str  #: its name.
    revision: int  #: whose cells were selected.
    request: int | None  #: number of the recorded request; null if there was nothing to discard.
    cells: Sequence[str]  #: ids of the cells that were selected.
    stages: Sequence[DiscardedStage]  #: in all sweeps of the store.
    num_shared: int  #: other cells of this sweep that used them, and will be made again too.
    problems: Sequence[str]  #: records that could not be read.


class SpentTime(TypedDict):
    """The held time of some workers, in seconds, and where it went."""

    unit: str  #: ``gpu_seconds`` or ``worker_seconds``.
    total: float  #: all of it.
    parts: Mapping[str, float]  #: category to amount.
    by_stage: Mapping[str, Mapping[str, float]]  #: stage to its parts; what belongs to no stage is under "".
    lost_by: Mapping[str, float]  #: why time was lost to amount.
    num_workers: int  #: number of workers.
    devices: Sequence[str]  #: kinds of the GPUs.
    useful: float  #: amount of work that counts.
    shares: Mapping[str, float]  #: category to share of the total.


class SpentOutput(TypedDict):
    """`sweep status --spent`: what the sweep has cost."""

    sweep: str  #: its name.
    revision: int  #: that was read.
    spent: Sequence[SpentTime]  #: by workers with GPUs, and by others.
    budget: BudgetLimit  #: of the last launch.


class FailuresOutput(TypedDict):
    """`sweep failures`: failures that look alike, as groups."""

    sweep: str  #: its name.
    revision: int  #: that was read.
    failures: Sequence[FailureGroup]  #: the group with the most cells first.


class StageEvidence(TypedDict):
    """The evidence for the state of a stage."""

    stage: str  #: such as ``train``, or ``prepare[en]``.
    digest: str  #: its identity; cells may share it.
    state: State  #: now.
    reason: str  #: for the state.
    evidence: Sequence[str]  #: lines for people.
    retired: Sequence[Retired]  #: records of files that were deleted by policy.
    attempts: Sequence[Attempt]  #: their records, oldest first.


class JobEvidence(TypedDict):
    """A scheduler's job that held the cell."""

    job: str  #: its name; "" if it has none yet.
    phase: Phase  #: now.
    reason: str  #: for the phase.
    evidence: Sequence[str]  #: lines for people.


class RequestFacts(TypedDict):
    """A launch, rerun, cancel or discard that concerns the cell."""

    number: int  #: of the request.
    verb: str  #: of the request.
    by: str  #: who made it.
    at: str  #: when, UTC.
    reason: str  #: that was given; "" without one.


class WhyOutput(TypedDict):
    """`sweep why`: the evidence behind a cell's state."""

    sweep: str  #: its name.
    revision: int  #: that was read.
    cell: str  #: its id.
    state: State  #: now.
    reason: str  #: for the state.
    next: str  #: the command that runs again what failed; "" if nothing did.
    decision: DecisionFacts | None  #: the next one, if it looks at this cell; else null.
    stages: Sequence[StageEvidence]  #: in order.
    jobs: Sequence[JobEvidence]  #: that ever held the cell, oldest first.
    requests: Sequence[RequestFacts]  #: that concern it.


class ShownStage(TypedDict):
    """A stage of a cell, with its files."""

    stage: str  #: such as ``train``, or ``prepare[en]``.
    digest: str  #: its identity; cells may share it.
    state: State  #: now.
    folder: str | None  #: where the files are; null before its first attempt.
    files: Sequence[str]  #: of the product, relative to the folder.
    retired: Sequence[Retired]  #: records of files that were deleted by policy.
    reads: Mapping[str, Any]  #: the part of the config that the stage reads.
    metrics: Mapping[str, Any]  #: that were logged last.
    inputs: Sequence[str]  #: stages whose products it takes.


class ShowOutput(TypedDict):
    """`sweep show`: a cell's resolved config, digests and files."""

    sweep: str  #: its name.
    revision: int  #: that was read.
    cell: str  #: its id.
    axes: Mapping[str, str]  #: axis to label.
    columns: Mapping[str, Any]  #: the sweep's `columns` of the cell.
    config: Mapping[str, Any]  #: resolved.
    stages: Sequence[ShownStage]  #: in order.


class StageDifference(TypedDict):
    """Whether a stage is the same in two cells."""

    stage: str  #: its name.
    same: bool  #: whether the digests are equal.
    reason: str  #: why they are not.


class CellsDiff(TypedDict):
    """`sweep diff SWEEP CELL CELL`: which fields make two cells differ."""

    sweep: str  #: its name.
    revision: int  #: that was read.
    cells: tuple[str, str]  #: their ids.
    config: Mapping[str, tuple[Any, Any]]  #: dotted key to its two values; null stands for an absent one.
    stages: Sequence[StageDifference]  #: of both.


class NamedRevision(TypedDict):
    """A revision."""

    sweep: str  #: its name.
    revision: int  #: its number.


class ChangedCell(TypedDict):
    """A cell whose config differs between two revisions."""

    old: str  #: id in the first.
    new: str  #: id in the second.
    config: Mapping[str, tuple[Any, Any]]  #: dotted key to its two values.
    stages: Sequence[StageDifference]  #: of both.


class RevisionsDiff(TypedDict):
    """`sweep diff SWEEP@1 SWEEP@2`: which fields make two revisions differ."""

    sweep: str  #: of the first.
    revision: int  #: of the first.
    second: NamedRevision  #: the second.
    same: int  #: number of cells that are in both.
    changed: Sequence[ChangedCell]  #: cells with equal axes and another config.
    only_first: Sequence[str]  #: ids.
    only_second: Sequence[str]  #: ids.
