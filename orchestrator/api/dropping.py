"""Which cells to drop so that a plan fits its budget, for the least loss of the report's claims."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from orchestrator.api.estimates import estimates_of, gpus_held, held_seconds, of_cell
from orchestrator.api.launching import make_launcher
from orchestrator.api.planning import Plan
from orchestrator.api.waiting import later_of
from orchestrator.core.state import State
from orchestrator.costs import Estimate
from orchestrator.errors import SweepError
from orchestrator.jobs.records import spending
from orchestrator.jobs.submissions import WorkerRecords
from orchestrator.launchers.base import hardware_for
from orchestrator.registry import CLAIMS, load

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
