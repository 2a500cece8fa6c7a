"""What to give up: cells that a budget has no room for, and products that no longer count.

Cells are dropped for the least loss of the report's claims. A discard voids the products of a stage, and all
that was made from them.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from orchestrator import provenance
from orchestrator.api.estimates import estimates_of, gpus_held, held_seconds, of_cell
from orchestrator.api.launching import make_launcher
from orchestrator.api.planning import Plan
from orchestrator.api.requests import build_request
from orchestrator.api.state import SweepState
from orchestrator.api.waiting import later_of
from orchestrator.core.records import Void
from orchestrator.core.state import State
from orchestrator.core.sweep import Cell, StageInstance
from orchestrator.costs import Estimate
from orchestrator.errors import InfrastructureError, SweepError
from orchestrator.jobs.records import spending
from orchestrator.jobs.submissions import WorkerRecords
from orchestrator.launchers.base import hardware_for
from orchestrator.registry import CLAIMS, load
from orchestrator.store.access import new_nonce
from orchestrator.store.decisions import readable_revisions
from orchestrator.store.evidence import EvidenceReader
from orchestrator.store.ledger import Ledger

RULE = (
    "cells that are not done are dropped in the order of the report's rows and comparisons lost for each "
    "GPU-hour saved, the fewest first; one that need not be dropped after all is kept"
)
"""The rule, for people."""


class Droppable(NamedTuple):
    """A cell that could be dropped.

    Attributes:
        cell: its id.
        saved_s: GPU-seconds of its unfinished stages that no other cell needs.
        claims: rows and comparisons of the report that need it.
    """

    cell: str
    saved_s: float
    claims: int


def to_drop(candidates: Sequence[Droppable], excess_s: float) -> list[Droppable]:
    """Return the cells to drop, those of the least loss first; all of them if even that does not suffice.

    Greedy by claims for each saved second; of equals, the one that saves more, then the first in the grid.
    Afterwards cells are kept again, the most valuable first, as long as the others save enough::

        to save 10:   a saves 4, 1 claim   b saves 4, 2 claims   c saves 9, 9 claims
        greedy        a, b, c              a and c suffice: b is kept

    Args:
        candidates: in the order of the grid.
        excess_s: GPU-seconds to save.
    """
    if excess_s <= 0:
        return []
    useful = [each for each in candidates if each.saved_s > 0]
    dropped: list[Droppable] = []
    saved_s = 0.0
    for each in sorted(useful, key=lambda one: (one.claims / one.saved_s, -one.saved_s)):
        if saved_s >= excess_s:
            break
        dropped.append(each)
        saved_s += each.saved_s
    for each in sorted(dropped, key=lambda one: -one.claims):
        if saved_s - each.saved_s >= excess_s:
            dropped.remove(each)
            saved_s -= each.saved_s
    return dropped


def budget_json(plan: Plan) -> dict[str, Any]:
    """Return whether a plan fits its budget, and what to drop if not. Amounts are in GPU-hours.

    Args:
        plan: of the sweep; its settings hold the budget.
    """
    view, limit = plan.view, plan.settings.policy.budget
    seconds, holds_gpus = _needed(plan)
    spent_s = spending(WorkerRecords(view.ledger, view.sweep.name).read(), (), checkpoint_s=0.0).gpu_seconds
    total_s = spent_s + sum(seconds.values())
    limit_s = None if limit.gpu_hours is None else 3600 * limit.gpu_hours
    claims = _claims(plan)
    uses = Counter(digest for cell in plan.cells for digest in cell.stage_digests if digest in seconds)
    candidates = [
        Droppable(
            cell.id,
            sum(seconds[d] for d in cell.stage_digests if d in seconds and uses[d] == 1),
            claims[cell.id],
        )
        for cell in plan.cells
        if view.cells[cell.id].state is not State.DONE
    ]
    dropped = to_drop(candidates, total_s - limit_s) if limit_s is not None else []
    left_s = total_s - sum(each.saved_s for each in dropped)
    return {
        "sweep": view.sweep.name,
        "budget": {"gpu_hours": limit.gpu_hours, "until": limit.until},
        "has_ended": limit.has_ended(time.time()),
        "holds_gpus": holds_gpus,
        "spent_gpu_hours": spent_s / 3600,
        "needed_gpu_hours": (total_s - spent_s) / 3600,
        "fits": limit_s is None or total_s <= limit_s,
        "fits_without": limit_s is None or left_s <= limit_s,
        "rule": RULE,
        "claims": sum(claims.values()),
        "claims_lost": sum(each.claims for each in dropped),
        "drop": [
            {"cell": each.cell, "gpu_hours": each.saved_s / 3600, "claims": each.claims} for each in dropped
        ],
        "later": later_of(view),
    }


def _needed(plan: Plan) -> tuple[dict[str, float], bool]:
    """Return the GPU-seconds of each stage that is not done, and whether workers of the launch hold GPUs.

    Where they hold none, or a cluster cannot be asked, they are those of the hardware that is planned for.
    """
    view, settings = plan.view, plan.settings
    cells = [cell for cell in plan.cells if view.cells[cell.id].state is not State.DONE]
    estimates: Mapping[str, Estimate] = plan.estimates
    held, holds_gpus = dict[str, float](), True
    with contextlib.suppress(SweepError):
        launcher = make_launcher(settings, len(plan.cells))
        if (hardware := hardware_for(launcher, settings)) is not None and hardware.device != "cpu":
            estimates = estimates_of(
                view,
                cells,
                hardware=hardware,
                retention=settings.policy.retention,
                import_paths=plan.import_paths,
                unfinished_only=True,
            )
        held = gpus_held(view, cells, estimates, launcher, settings)
        holds_gpus = any(held.values()) or not cells
    if not any(held.values()):
        needs = {cell.id: of_cell(cell, estimates, view.chain(cell)) for cell in cells}
        held = {cell: float(need.num_gpus if need else 0) for cell, need in needs.items()}
    return held_seconds(view, cells, estimates, held), holds_gpus


def _claims(plan: Plan) -> Mapping[str, int]:
    """Return what each cell is worth to the report: by the report's own rule, else one for each."""
    configs = {cell.id: cell.config for cell in plan.cells}
    for target in CLAIMS.values():
        if (found := load(target)(configs)) is not None:
            return dict(found)
    return dict.fromkeys(configs, 1)


class Discarded(NamedTuple):
    """The result of a discard.

    Attributes:
        stages: the stages that were named, and those made from them in any sweep of the store.
        voided: digests of those whose product counted before.
        num_unfinished: named stages without a product, of which attempts had left something.
        request: number of the request; None if there was nothing to discard.
    """

    stages: Sequence[StageInstance] = ()
    voided: Collection[str] = ()
    num_unfinished: int = 0
    request: int | None = None


def discard_stage(view: SweepState, cells: Sequence[Cell], stage: str, reason: str) -> Discarded:
    """Void the products of a stage, and those made from them in any sweep of the store.

    If none of the cells has a product, what unfinished attempts left behind is discarded instead. The next
    attempt then starts from nothing.

    Args:
        view: a revision that was launched.
        cells: of the revision.
        stage: its name.
        reason: the user's words.

    Raises:
        InfrastructureError: records cannot be read.
    """
    stages = {
        digest: view.stages[digest]
        for cell in cells
        for digest in (*(gate.digest for gate in view.gates.cells.get(cell.id, ())), *cell.stage_digests)
        if view.instances[digest].stage == stage
    }
    named = {digest for digest, status in stages.items() if status.state is State.DONE}
    # Without products, discard what unfinished attempts left: checkpoints, a work folder, or an output that
    # would be read again.
    if not named:
        named = {d for d, status in stages.items() if status.attempts and status.state is not State.RUNNING}
    if not named:
        return Discarded()
    gates = [instance for digest, instance in view.gates.instances.items() if digest in named]
    instances, after = [*gates, *_made_from(view.ledger, named, view.problems)], {}
    voided = set()
    for instance in instances:
        # Attempts up to now no longer count against the retry budgets.
        after[instance.digest] = max(view.ledger.numbers(instance), default=0)
        if _void(view, instance, reason, named):
            voided.add(instance.digest)
    # The voids come first. If this process dies between the two, discarding again completes it.
    request = build_request(view, "discard", cells, after=after, reason=reason)
    number = view.ledger.add_request(view.sweep.name, request).number
    num_unfinished = sum(stages[digest].state is not State.DONE for digest in named)
    return Discarded(instances, voided, num_unfinished, number)


def _made_from(ledger: Ledger, named: set[str], problems: list[str]) -> list[StageInstance]:
    """Return the named stages and all that use them as inputs, directly or not, in any sealed revision.

    Args:
        ledger: the store.
        named: digests of the stages to discard.
        problems: receives a line for each revision that cannot be read.
    """
    found: dict[str, StageInstance] = {}
    for sweep in ledger.sweeps():
        # What a damaged one takes from the named stages does not count either: its inputs are void.
        for sealed in readable_revisions(ledger, sweep, problems):
            revision = sealed.sweep
            # Within a cell, the inputs of a stage precede it in `chain`, so that one pass finds all that
            # follow.
            affected = set(named)
            for cell in revision.cells:
                for digest in cell.stage_digests:
                    instance = revision.stages[digest]
                    if digest in affected or any(taken.digest in affected for taken in instance.inputs):
                        affected.add(digest)
                        found[digest] = instance
    return list(found.values())


def _void(view: SweepState, instance: StageInstance, reason: str, named: set[str]) -> bool:
    """Void the current product of a stage, or the one that a running attempt is about to make.

    An attempt that runs now still uses the code before the fix. Its generation is voided in advance, so that
    its product never counts.

    Args:
        view: the revision.
        instance: the stage.
        reason: the user's words.
        named: digests that the user selected; the others are made from them.

    Returns:
        Whether a product that counted was voided.

    Raises:
        InfrastructureError: the records of the stage cannot be read.
    """
    # Not its files: a product is voided whether they are whole or not, and one may be retired at this moment.
    evidence = EvidenceReader(view.ledger, [instance], check_files=False).evidence(instance.digest)
    if evidence.unreadable:  # skipping it would void what was made from it, and let it count
        raise InfrastructureError(
            f"{instance.name} {instance.digest[:8]} was not discarded: {evidence.unreadable}",
            fix="discard again; what was discarded already stays so",
        )
    running = bool(evidence.attempts) and evidence.attempts[-1].end is None
    # Attempts at an earlier generation were discarded before, perhaps by another user at this moment.
    claims = [attempt.claim for attempt in evidence.attempts]
    begun = any(claim is None or claim.generation == evidence.generation for claim in claims)
    left = begun and (running or instance.digest in named)
    if evidence.done is None and not left and not evidence.damaged:
        return False
    void = Void(
        nonce=new_nonce(),
        generation=evidence.generation,
        kind="discarded",
        reason=reason if instance.digest in named else f"it was made from what was discarded: {reason}",
        by=provenance.user(),
        at=provenance.now(),
    )
    return view.ledger.void(instance, void) and evidence.done is not None
