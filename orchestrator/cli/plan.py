"""`sweep plan`: show the cells, their stages, and what a launch would do and why (read-only)."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence

from orchestrator.api.drift import cell_drift, code_drift, needing_retired_lines
from orchestrator.api.estimates import distinct, told
from orchestrator.api.planning import Plan, engine_of, hardware_of, planned
from orchestrator.api.state import (
    SweepState,
    split_store,
)
from orchestrator.cli.arguments import add_composing, again
from orchestrator.cli.costs_table import print_costs
from orchestrator.cli.output import (
    ComposeProgress,
    print_json,
    print_lines,
    print_table,
    print_warnings,
    shorten,
)
from orchestrator.core.plan import Action, Step
from orchestrator.core.state import NOT_STARTED, State
from orchestrator.core.sweep import Cell
from orchestrator.text import counted

MAX_GROUP_SHOWN = 8
"""Missing needs that are listed; ``--json`` lists all of them."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    add_composing(parser)
    parser.add_argument("--json", action="store_true", help="print JSON alone")
    parser.add_argument("--device", help="what cells are assumed to run on: a100, h200, ...")
    parser.add_argument(
        "--mfu", type=float, help="model FLOPs utilisation, in place of the guess by model size"
    )
    parser.add_argument("--max-gpus", type=int, metavar="N", help="that one cell may have")


def run(args: argparse.Namespace) -> int:
    """Print the plan."""
    view, composition = planned(args.sweep, args.overrides, args.name, progress=ComposeProgress())
    settings, import_paths = engine_of(view, composition, split_store(args.overrides)[1])
    cells = view.select(args.only)
    hardware = hardware_of(settings.hardware, device=args.device, mfu=args.mfu, max_gpus=args.max_gpus)
    plan = Plan(view, cells, settings, hardware, import_paths, prefetch=again("prefetch", args))
    if args.json:
        print_json(plan.as_json())
        return 0
    print(f"{view.title}: {view.sweep.description}")
    for note in composition.notes if composition else ():
        print(f"  note: {note}")
    print_warnings(view)
    print_lines(cell_drift(view), indent=2)
    print_lines(code_drift(view, cells, composition.import_paths if composition else ()), indent=2)
    _print(plan)
    return 0


def print_stages(view: SweepState, cells: Sequence[Cell], steps: dict[str, dict[str, Step]]) -> None:
    """Print, for each stage of the sweep, how many distinct instances a launch would run, reuse or leave.

    Args:
        view: the revision.
        cells: that were selected.
        steps: by cell and digest of a stage, what a launch would do.
    """
    actions: dict[str, Action] = {}
    for cell in cells:
        for digest, step in steps[cell.id].items():
            # A shared stage has the same step in each of its cells.
            actions[digest] = step.action
    counts: dict[str, Counter[Action]] = {stage: Counter() for stage in view.sweep.specs}
    for digest, action in actions.items():
        counts[view.sweep.stages[digest].stage][action] += 1
    print(
        f"{counted(len(cells), 'cell')}, {counted(len(actions), 'stage')}; a stage that cells share runs once"
    )
    rows = [(stage, *(count[action] or "-" for action in Action)) for stage, count in counts.items()]
    print_table(("stage", *Action), rows)


def _print(plan: Plan) -> None:
    """Print stages, costs, cells and missing needs of a plan."""
    view, cells = plan.view, plan.cells
    print_stages(view, cells, plan.steps)
    print_costs(cells, plan.estimates, plan.hardware)
    columns = [*view.sweep.cells[0].axes, "cell", "what would run"]
    print()
    print_table(columns, [[*cell.axes.values(), cell.id, _summary(plan, cell)] for cell in cells])
    print_lines(needing_retired_lines(view, cells))
    if plan.missing:
        missing = distinct(plan.missing)
        print(f"\n{counted(len(plan.missing), 'cell')} blocked:")
        for need in missing[:MAX_GROUP_SHOWN]:
            print(f"  {told(need)}")
        if len(missing) > MAX_GROUP_SHOWN:
            print(f"  and {len(missing) - MAX_GROUP_SHOWN} more")
        if any(need.fetch for need in missing):
            print(f"fetch it once, where there is a network: {plan.prefetch}")


def _summary(plan: Plan, cell: Cell) -> str:
    """Return what would run in a cell, and the first reason."""
    view, steps = plan.view, plan.steps[cell.id]
    status = view.cells[cell.id]
    if status.state in (State.QUEUED, State.UNKNOWN):
        return shorten(f"wait ({status.reason})", 100)
    if plan.state_of(cell) is State.BLOCKED and cell.id in plan.missing:
        return shorten(f"blocked by {', '.join(need.what for need in plan.missing[cell.id])}", 100)
    if all(step.action is Action.REUSE for step in steps.values()):
        return "nothing: done"
    parts = []
    for action in Action:
        names = [view.sweep.stages[digest].name for digest, step in steps.items() if step.action is action]
        if names and action is not Action.REUSE:
            parts.append(f"{action} {' '.join(names)}")
    # "Not started" is the reason of every first run and explains nothing.
    told = [s.reason for s in steps.values() if s.action is not Action.REUSE and s.reason != NOT_STARTED]
    return "; ".join(parts) + (f" ({shorten(told[0], 90)})" if told else "")
