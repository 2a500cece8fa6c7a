"""The GPUs of a plan: whether it fits its budget, what to drop if not, and cells with more than suffice."""

from __future__ import annotations

from collections.abc import Mapping

from orchestrator.api.dropping import budget_json
from orchestrator.api.planning import CellGpus, Plan
from orchestrator.api.waiting import later_line
from orchestrator.cli.output import print_json, print_table
from orchestrator.errors import counted


def print_budget(plan: Plan, *, as_json: bool) -> int:
    """Print the forecast beside the budget, and the cells to drop; return the exit code.

    Args:
        plan: of the sweep.
        as_json: print JSON alone.
    """
    found = budget_json(plan)
    if as_json:
        print_json(found)
        return 0
    limit = found["budget"]["gpu_hours"]
    spent, needed = found["spent_gpu_hours"], found["needed_gpu_hours"]
    print(f"{plan.view.title}: {spent:.4g} GPU-hours are spent, {needed:.4g} are needed by the estimates")
    if found["later"] is not None:
        print(later_line(found["later"]))
    if not found["holds_gpus"]:
        print(
            f"for {plan.hardware.max_gpus} x {plan.hardware.device}: workers of this launch hold no GPUs,"
            " so that it spends none of its budget"
        )
    if limit is None:
        print("no budget of GPU-hours: policy.budget.gpu_hours=N sets one")
    elif found["fits"]:
        print(f"policy.budget.gpu_hours={limit:.4g} suffices: {limit - spent - needed:.4g} are left")
    else:
        dropped = found["drop"]
        lost = f"{found['claims_lost']:,} of {found['claims']:,} rows and comparisons of the report"
        print(f"policy.budget.gpu_hours={limit:.4g}: {spent + needed - limit:.4g} GPU-hours too much")
        fits = "it fits" if found["fits_without"] else "it still does not fit"
        print(f"without {counted(len(dropped), 'cell')} {fits}; lost: {lost}")
        rows = [(each["cell"], f"{each['gpu_hours']:.3f}", each["claims"]) for each in dropped]
        print_table(("cell to drop", "GPU-hours saved", "claims lost"), rows)
        print(f"rule: {found['rule']}")
    if (until := found["budget"]["until"]) is not None:
        print(
            f"policy.budget.until={until} {'is past: nothing starts' if found['has_ended'] else 'is to come'}"
        )
    return 0


def over_budget_lines(plan: Plan) -> list[str]:
    """Return lines on a budget that has ended, or that the estimates exceed.

    Args:
        plan: of the sweep.
    """
    limit = plan.settings.policy.budget
    if not limit.is_set:
        return []
    found = budget_json(plan)
    lines = [f"policy.budget.until={limit.until} is past: nothing starts"] if found["has_ended"] else []
    if found["holds_gpus"] and not found["fits"]:
        total = found["spent_gpu_hours"] + found["needed_gpu_hours"]
        lines.append(
            f"over policy.budget.gpu_hours={limit.gpu_hours:.4g}: {total:.4g} are spent, or needed by the"
            " estimates; --budget names cells to drop"
        )
    return lines


MAX_SHOWN = 40
"""Most cells with more GPUs than suffice that are listed."""


def print_gpus(gpus: Mapping[str, CellGpus]) -> None:
    """Print which cells would get more GPUs than they need, and why.

    Args:
        gpus: id of a cell to its GPUs; empty if none are chosen.
    """
    more = {name: one for name, one in gpus.items() if one.number > one.fewest}
    if gpus:
        print(f"\n{counted(len(more), 'cell')} of {len(gpus)} would get more GPUs than suffice")
    if more:
        rows = [(name, one.number, one.fewest, one.reason) for name, one in [*more.items()][:MAX_SHOWN]]
        print_table(("cell", "GPUs", "suffice", "why"), rows)
    if len(more) > MAX_SHOWN:
        print(f"and {len(more) - MAX_SHOWN} more")
