"""`sweep plan` and `simulate`: what a launch would do, and how long it would take on a cluster."""

from __future__ import annotations

import argparse
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from orchestrator.api.estimates import of_cell
from orchestrator.api.launching import run_settings_of
from orchestrator.api.pace import HOUR_S, duration
from orchestrator.api.planning import Plan, cell_drift, hardware_of, in_total
from orchestrator.api.rehearsals import gate_lines
from orchestrator.api.requests import distinct, need_line, needing_retired_lines
from orchestrator.api.simulating import Simulated, SimulatedCluster
from orchestrator.api.state import SweepState
from orchestrator.api.waiting import later_line, later_of
from orchestrator.cli.budget import over_budget_lines, print_budget, print_gpus
from orchestrator.cli.output import (
    LongStep,
    print_json,
    print_lines,
    print_table,
)
from orchestrator.cli.progress import add_composing, again, composed, print_remarks
from orchestrator.compose.main import Composition
from orchestrator.core.plan import Action, Step
from orchestrator.core.settings import HardwareSettings, split_store
from orchestrator.core.state import NOT_STARTED, State
from orchestrator.core.sweep import Cell, gates_among
from orchestrator.costs import DEVICES, Estimate, together
from orchestrator.errors import UserError, counted, escaped, one_line
from orchestrator.launchers.base import LaunchGpus

MAX_NEEDS_SHOWN = 8
"""Missing needs that are listed; ``--json`` lists all of them."""


def configure_plan(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    _add_hardware(parser)
    parser.add_argument("--gpus", type=int, metavar="N", help="of a cluster: how long the whole takes there")
    parser.add_argument("--gpus-per-node", type=int, metavar="N", help="of the cluster; default 8")
    parser.add_argument("--budget", action="store_true", help="show the budget, and cells to drop to fit it")


def run_plan(args: argparse.Namespace) -> int:
    """Print the plan."""
    if args.gpus is None and args.gpus_per_node is not None:
        raise UserError("--gpus-per-node is of a cluster of --gpus, which is not given", fix="--gpus N")
    if args.budget and args.gpus is not None:
        raise UserError("--budget and --gpus are two questions", allowed="one of them")
    plan, composition = _plan(args)
    view = plan.view
    if args.budget:
        return print_budget(plan, as_json=args.json)
    per_node = 8 if args.gpus_per_node is None else args.gpus_per_node
    there = None if args.gpus is None else LaunchGpus(args.gpus, per_node)
    timed = None if there is None else plan.simulate(SimulatedCluster(*there, plan.hardware.moldable))
    if args.json:
        found = plan.as_json(there)
        print_json(found if timed is None else {**found, "makespan": timed.makespan._asdict()})
        return 0
    gpus = plan.gpus(there)
    print(f"{view.title}: {escaped(view.sweep.description)}")
    print_lines(cell_drift(view), indent=2)
    print_remarks(view, plan.cells, composition, composition.import_paths if composition else ())
    _print_plan(plan)
    print_gpus(gpus)
    if timed is not None:
        print(f"\n{_makespan_line(timed, per_node)}")
    return 0


def configure_simulate(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    _add_hardware(parser)
    parser.add_argument("--gpus", type=int, metavar="N", required=True, help="of the cluster")
    parser.add_argument("--gpus-per-node", type=int, metavar="N", default=8, help="default 8")
    parser.add_argument(
        "--estimate-error", type=float, metavar="S", default=0.0, help="0.3: estimates are wrong by 30 %%"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the errors and the failures")
    parser.add_argument("--moldable", action="store_true", help="cells may have more GPUs than they need")
    parser.add_argument(
        "--failures",
        metavar="TABLE",
        default="none",
        help="none, llama3, xN (N times that rate), or a JSON file",
    )
    parser.add_argument("--preempt-every", metavar="TIME", help="jobs are preempted after, such as 4h or 30m")
    parser.add_argument("--job-start", metavar="TIME", help="until the first stage of a job computes, as 30s")
    parser.add_argument("--grid-order", action="store_true", help="cells start in the order of the sweep")


def run_simulate(args: argparse.Namespace) -> int:
    """Print what comes of what is not done on a cluster. Start nothing."""
    plan, _ = _plan(args)
    cluster = SimulatedCluster(
        args.gpus,
        args.gpus_per_node,
        args.moldable or plan.hardware.moldable,
        args.estimate_error,
        args.seed,
        args.failures,
        None if args.preempt_every is None else _hours("--preempt-every", args.preempt_every),
        not args.grid_order,
        0.0 if args.job_start is None else _hours("--job-start", args.job_start),
    )
    found = plan.simulate(cluster)
    if args.json:
        sweep = {"sweep": plan.view.sweep.name, "revision": plan.view.number, "num_cells": len(plan.cells)}
        print_json({**sweep, "cluster": cluster._asdict(), **found.as_json()})
        return 0
    order = "in the order of the sweep" if args.grid_order else "with the longest cells first"
    print(f"{plan.view.title}: {_makespan_line(found, args.gpus_per_node, order)}")
    _print_outcome(found)
    return 0


def _hours(option: str, text: str) -> float:
    """Return a time such as ``4h``, ``30m`` or ``90s`` in hours.

    Raises:
        UserError: the text is no time.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([dhms])", text)
    hours = float(found[1]) * {"d": 24, "h": 1, "m": 1 / 60, "s": 1 / 3600}[found[2]] if found else 0.0
    if not hours:
        raise UserError(f"{option} {text}", allowed="a time such as 4h, 30m or 90s")
    return hours


def _print_outcome(found: Simulated) -> None:
    """Print what happened on the way, if anything did, and where the time of the GPUs went."""
    outcome, goodput = found.outcome, found.outcome.goodput
    states = Counter(str(status.state) for status in outcome.cells.values())
    cells = ", ".join(f"{counted(number, 'cell')} {state}" for state, number in states.most_common())
    ends = ", ".join(f"{number} {how}" for how, number in sorted(outcome.attempts.items()))
    print(f"  {cells}; attempts: {ends or 'none'}")
    if outcome.faults:
        faults = sorted(outcome.faults.items(), key=lambda fault: -fault[1])
        print(f"  faults: {', '.join(f'{number} {name}' for name, number in faults)}")
    if goodput is not None and goodput.total:
        parts = [(name, amount) for name, amount in goodput.parts.items() if amount > 1e-6 * goodput.total]
        shares = ", ".join(f"{name} {amount / goodput.total:.2%}" for name, amount in parts)
        print(f"  of {rounded(goodput.total / 3600)} GPU-hours held: {shares}")


def _add_hardware(parser: argparse.ArgumentParser) -> None:
    """Add the sweep, and the hardware that its estimates assume."""
    add_composing(parser)
    parser.add_argument("--json", action="store_true", help="print JSON alone")
    parser.add_argument("--device", help="what cells are assumed to run on: a100, h200, ...")
    parser.add_argument(
        "--mfu", type=float, help="model FLOPs utilisation, in place of the guess by model size"
    )
    parser.add_argument("--max-gpus", type=int, metavar="N", help="that one cell may have")


def _plan(args: argparse.Namespace) -> tuple[Plan, Composition | None]:
    """Return the plan, and what was composed; None for a revision from the store."""
    with LongStep("planning") as step:
        view, composition = composed(args, step)
        settings, import_paths = run_settings_of(view, composition, split_store(args.overrides)[1])
        hardware = hardware_of(settings.hardware, device=args.device, mfu=args.mfu, max_gpus=args.max_gpus)
        cells, prefetch = view.select(args.only), again("prefetch", args)
        return Plan(view, cells, settings, hardware, import_paths, prefetch=prefetch), composition


def _makespan_line(found: Simulated, gpus_per_node: int, order: str = "with the longest cells first") -> str:
    """Return how long a plan takes on a cluster, as a line of text."""
    makespan, missing = found.makespan, found.num_without_estimate
    unknown = f"; {counted(missing, 'stage')} without an estimate counted as no time" if missing else ""
    undone = sum(status.state is not State.DONE for status in found.outcome.cells.values())
    # The least possible time is that of all cells.
    bound = (
        f"{counted(undone, 'cell')} not done" if undone else f"{makespan.ratio:.3f} times the least possible"
    )
    return (
        f"{counted(makespan.num_gpus, 'GPU')}, {gpus_per_node} a node: {duration(makespan.hours * HOUR_S)}"
        f" {order}, {bound}{unknown}"
    )


def print_stages(view: SweepState, cells: Sequence[Cell], steps: dict[str, dict[str, Step]]) -> None:
    """Print, for each stage of the sweep, how many distinct instances a launch would run, reuse or leave.

    Args:
        view: the revision.
        cells: that were selected.
        steps: by cell and digest of a stage, what a launch would do.
    """
    # A shared stage has the same step in each of its cells.
    actions = {digest: step.action for cell in cells for digest, step in steps[cell.id].items()}
    gates = gates_among(view.sweep.specs)
    counts: dict[str, Counter[Action]] = {s: Counter() for s in view.sweep.specs if s not in gates}
    for digest, action in actions.items():
        counts[view.sweep.stages[digest].stage][action] += 1
    print(
        f"{counted(len(cells), 'cell')}, {counted(len(actions), 'stage')}; a stage that cells share runs once"
    )
    rows = [(stage, *(count[action] or "-" for action in Action)) for stage, count in counts.items()]
    print_table(("stage", *Action), rows)


def _print_plan(plan: Plan) -> None:
    """Print stages, costs, cells and missing needs of a plan."""
    view, cells = plan.view, plan.cells
    print_stages(view, cells, plan.steps)
    if (later := later_of(view)) is not None:
        print(later_line(later))
    print_lines(gate_lines(plan.gates))
    print_lines(over_budget_lines(plan))
    print_costs(cells, plan.estimates, plan.hardware)
    columns = [*view.sweep.cells[0].axes, "cell", "what would run"]
    print()
    print_table(
        columns,
        [[*(label or "-" for label in cell.axes.values()), cell.id, _summary(plan, cell)] for cell in cells],
    )
    print_lines(needing_retired_lines(view, cells))
    if plan.missing:
        missing = distinct(plan.missing)
        print(f"\n{counted(len(plan.missing), 'cell')} blocked:")
        for need in missing[:MAX_NEEDS_SHOWN]:
            print(f"  {need_line(need)}")
        if len(missing) > MAX_NEEDS_SHOWN:
            print(f"  and {len(missing) - MAX_NEEDS_SHOWN} more")
        if any(need.fetch for need in missing):
            print(f"fetch it once, where there is a network: {plan.prefetch}")


def _summary(plan: Plan, cell: Cell) -> str:
    """Return what would run in a cell, and the first reason."""
    view, steps = plan.view, plan.steps[cell.id]
    status = view.cells[cell.id]
    if status.state in (State.QUEUED, State.UNKNOWN):
        return one_line(f"wait ({status.reason})", 100)
    if plan.state_of(cell) is State.BLOCKED and cell.id in plan.missing:
        return one_line(f"blocked by {', '.join(need.what for need in plan.missing[cell.id])}", 100)
    if all(step.action is Action.REUSE for step in steps.values()):
        return "nothing: done"
    parts = []
    for action in Action:
        names = [view.sweep.stages[digest].name for digest, step in steps.items() if step.action is action]
        if names and action is not Action.REUSE:
            parts.append(f"{action} {' '.join(names)}")
    # "Not started" is the reason of every first run and explains nothing.
    reasons = [s.reason for s in steps.values() if s.action is not Action.REUSE and s.reason != NOT_STARTED]
    return "; ".join(parts) + (f" ({one_line(reasons[0], 90)})" if reasons else "")


MAX_GROUPS, MAX_NOTES = 40, 12
"""Lines of the table, and assumptions below it. ``--json`` holds all of them."""
COLUMNS = ("cells", "steps", "tokens", "FLOP", "GPU-hours", "GPUs", "micro-batch", "disk GiB", "GiB a GPU")


def print_costs(cells: Sequence[Cell], estimates: Mapping[str, Estimate], hardware: HardwareSettings) -> None:
    """Print a table of costs, grouped by the values of one axis, and the totals.

    Print nothing if no stage has an estimate.

    Args:
        cells: that were selected.
        estimates: digest of a stage to its estimate.
        hardware: what the estimates assume.
    """
    if not estimates:
        return
    totals = in_total(cells, estimates, hardware)
    if totals["num_requests"]:
        _print_requests(totals)
        return
    axis = _cost_axis(cells, estimates)
    groups: dict[str, list[Cell]] = {}
    for cell in cells:
        groups.setdefault(cell.axes[axis] if axis else "all", []).append(cell)
    shown = list(groups.items())[:MAX_GROUPS]
    print()
    print_table((axis or "", *COLUMNS), [(label, *_cost_row(group, estimates)) for label, group in shown])
    if len(groups) > len(shown):
        print(f"and {len(groups) - len(shown)} more values of {axis}")
    _print_totals(totals, hardware)


def _print_requests(totals: Mapping[str, Any]) -> None:
    """Print the totals of a sweep that requests replies of a model, and trains none."""
    print(
        f"in total: {counted(totals['num_requests'], 'request')}, {amount(totals['prompt_tokens'])} tokens of"
        f" prompts and {amount(totals['completion_tokens'])} tokens of replies"
    )
    _print_assumptions(totals["assumptions"][:-1])  # the last one is about wall time, which is unknown


def _cost_axis(cells: Sequence[Cell], estimates: Mapping[str, Estimate]) -> str | None:
    """Return the axis to group the table by: the first one whose value determines GPUs and micro-batch.

    Cells of one line then need the same hardware, and the line shows one number instead of a range. If no
    axis does that, the first axis is used.
    """
    # Only training decides the hardware. A cell that just evaluates fits everywhere.
    trained = [(cell, one) for cell in cells if (one := of_cell(cell, estimates)) and one.num_steps]
    axes = list(cells[0].axes)
    for axis in axes:
        fits: dict[str, set[tuple[Any, ...]]] = {}
        for cell, one in trained:
            fits.setdefault(cell.axes[axis], set()).add((one.num_gpus, one.micro_batch))
        if all(len(found) == 1 for found in fits.values()):
            return axis
    return axes[0] if axes else None


def _cost_row(cells: Sequence[Cell], estimates: Mapping[str, Estimate]) -> tuple[str, ...]:
    """Return one line of the table: sums over distinct stages, and ranges over cells."""
    # Cells of a group share stages. Each distinct stage is paid once.
    digests = dict.fromkeys(digest for cell in cells for digest in cell.stage_digests if digest in estimates)
    total = together(estimates[digest] for digest in digests)
    ones = [one for cell in cells if (one := of_cell(cell, estimates))]
    trained = [one for one in ones if one.num_steps] or ones
    return (
        str(len(cells)),
        _span(one.num_steps for one in trained),
        amount(total.num_tokens),
        amount(total.model_flops),
        rounded(total.gpu_hours),
        _span(one.num_gpus for one in trained),
        _span(one.micro_batch for one in trained if one.micro_batch),
        rounded(total.disk_gib),
        _memory(max(trained, key=lambda one: one.memory_gib, default=Estimate())),
    )


def _memory(estimate: Estimate) -> str:
    """Return the memory of a GPU in GiB, with its terms from the largest down."""
    terms = sorted(estimate.memory_terms_gib.items(), key=lambda term: -term[1])
    parts = " + ".join(f"{name} {gib:.2g}" for name, gib in terms if gib >= 0.005)
    return f"{estimate.memory_gib:.3g} = {parts}" if parts else f"{estimate.memory_gib:.3g}"


def _span(values: Iterable[int]) -> str:
    """Return the range of some numbers, such as ``1-8``; a single number if they are equal, ``-`` if none."""
    found = sorted(set(values))
    if not found:
        return "-"
    return str(found[0]) if len(found) == 1 else f"{found[0]:,}-{found[-1]:,}"


def _print_totals(totals: Mapping[str, Any], hardware: HardwareSettings) -> None:
    """Print the totals of all cells as sentences, and the assumptions behind them."""
    device = f"{hardware.device} ({DEVICES[hardware.device].memory_gib:g} GiB)"
    trained = (
        f"{amount(totals['num_tokens'])} tokens, {amount(totals['model_flops'])}FLOP"
        f" ({amount(totals['hardware_flops'])}FLOP with recomputation),"
        f" {rounded(totals['gpu_hours'])} GPU-hours of training and "
    )
    generated = f"{rounded(totals['generation_gpu_hours'])} of generating"
    answers = counted(totals["num_generations"], "answer")
    print(f"in total: {trained if totals['num_steps'] else ''}{generated} {answers}, estimated for {device}")
    print(
        f"  about {duration(totals['wall_hours'] * HOUR_S)};"
        f" disk {rounded(totals['disk_gib'])} GiB in the end,"
        f" {rounded(totals['peak_disk_gib'])} GiB at the peak"
    )
    if totals["lost_s"]:
        print(
            f"  {totals['checkpoint_share']:.1%} of the time waits for checkpoints;"
            f" a killed attempt may lose {duration(totals['lost_s'])}"
        )
    if totals["lost_s"] and totals["useful_share"]:
        print(f"  {totals['useful_share']:.0%} of the positions are useful")
    _print_assumptions(totals["assumptions"])


def _print_assumptions(notes: Sequence[str]) -> None:
    """Print the assumptions of an estimate, and how many more there are."""
    for note in notes[:MAX_NOTES]:
        print(f"  assumed: {note}" if "measured" not in note else f"  {note}")
    if len(notes) > MAX_NOTES:
        print(f"  and {len(notes) - MAX_NOTES} more assumptions, see --json")


def amount(number: float) -> str:
    """Return a number with three significant digits and an SI prefix, such as ``23.4 G``."""
    for size, prefix in ((1e18, " E"), (1e15, " P"), (1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if number >= size:
            return f"{number / size:.3g}{prefix}"
    return f"{number:g}"


def rounded(number: float) -> str:
    """Return a number of hours or GiB: two decimals below 10, none from there on."""
    return f"{number:,.0f}" if number >= 10 else f"{number:.2f}"
