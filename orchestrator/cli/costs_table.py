"""How a plan shows its costs to people: a line for each group of cells, and the totals in words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from orchestrator.api.estimates import in_total, of_cell, together
from orchestrator.cli.output import print_table
from orchestrator.core.settings import HardwareSettings
from orchestrator.core.sweep import Cell
from orchestrator.costs import DEVICES, Estimate
from orchestrator.text import counted

MAX_GROUPS, MAX_NOTES = 40, 12
COLUMNS = ("cells", "steps", "tokens", "FLOP", "GPU-hours", "GPUs", "micro-batch", "disk GiB", "GiB a GPU")


def print_costs(cells: Sequence[Cell], estimates: Mapping[str, Estimate], hardware: HardwareSettings) -> None:
    """Prints a table by the values of one axis, and the totals; nothing where no stage says what it costs."""
    if not estimates:
        return
    axis = _axis(cells, estimates)
    groups: dict[str, list[Cell]] = {}
    for cell in cells:
        groups.setdefault(cell.axes[axis] if axis else "all", []).append(cell)
    shown = list(groups.items())[:MAX_GROUPS]
    print()
    print_table((axis or "", *COLUMNS), [(label, *_row(group, estimates)) for label, group in shown])
    if len(groups) > len(shown):
        print(f"and {len(groups) - len(shown)} more values of {axis}")
    _print_totals(in_total(cells, estimates, hardware), hardware)


def _axis(cells: Sequence[Cell], estimates: Mapping[str, Estimate]) -> str | None:
    """Returns the first axis whose value decides GPUs and memory, or else the first of all."""
    trained = [(cell, one) for cell in cells if (one := of_cell(cell, estimates)) and one.num_steps]
    axes = list(cells[0].axes)
    for axis in axes:
        fits: dict[str, set[tuple[Any, ...]]] = {}
        for cell, one in trained:
            fits.setdefault(cell.axes[axis], set()).add((one.num_gpus, one.micro_batch))
        if all(len(found) == 1 for found in fits.values()):
            return axis
    return axes[0] if axes else None


def _row(cells: Sequence[Cell], estimates: Mapping[str, Estimate]) -> tuple[str, ...]:
    digests = dict.fromkeys(digest for cell in cells for digest in cell.chain if digest in estimates)
    total = together(estimates[digest] for digest in digests)
    ones = [one for cell in cells if (one := of_cell(cell, estimates))]
    trained = [one for one in ones if one.num_steps] or ones
    return (
        str(len(cells)),
        _span(one.num_steps for one in trained),
        amount(total.num_tokens),
        amount(total.model_flops),
        hours(total.gpu_hours),
        _span(one.num_gpus for one in trained),
        _span(one.micro_batch for one in trained if one.micro_batch),
        gib(total.disk_gib),
        _memory(max(trained, key=lambda one: one.memory_gib, default=Estimate())),
    )


def _memory(estimate: Estimate) -> str:
    terms = sorted(estimate.memory_terms_gib.items(), key=lambda term: -term[1])
    parts = " + ".join(f"{name} {gib:.2g}" for name, gib in terms if gib >= 0.005)
    return f"{estimate.memory_gib:.3g} = {parts}" if parts else f"{estimate.memory_gib:.3g}"


def _span(values: Iterable[int]) -> str:
    found = sorted(set(values))
    if not found:
        return "-"
    return str(found[0]) if len(found) == 1 else f"{found[0]:,}-{found[-1]:,}"


def _print_totals(totals: Mapping[str, Any], hardware: HardwareSettings) -> None:
    device = f"{hardware.device} ({DEVICES[hardware.device].memory_gib:g} GiB)"
    trained = (
        f"{amount(totals['num_tokens'])} tokens, {amount(totals['model_flops'])}FLOP"
        f" ({amount(totals['hardware_flops'])}FLOP with recomputation),"
        f" {hours(totals['gpu_hours'])} GPU-hours of training and "
    )
    generated = f"{hours(totals['generation_gpu_hours'])} of generating"
    answers = counted(totals["num_generations"], "answer")
    print(f"in total: {trained if totals['num_steps'] else ''}{generated} {answers}, on {device}")
    print(
        f"  about {duration(totals['wall_hours'])}; disk {gib(totals['disk_gib'])} GiB in the end,"
        f" {gib(totals['peak_disk_gib'])} GiB at the peak"
    )
    notes = totals["assumptions"]
    for note in notes[:MAX_NOTES]:
        print(f"  assumed: {note}" if "measured" not in note else f"  {note}")
    if len(notes) > MAX_NOTES:
        print(f"  and {len(notes) - MAX_NOTES} more assumptions, see --json")


def amount(number: float) -> str:
    """Returns a number with three digits and a prefix: ``23.4 G``."""
    for size, prefix in ((1e18, " E"), (1e15, " P"), (1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if number >= size:
            return f"{number / size:.3g}{prefix}"
    return f"{number:g}"


def hours(number: float) -> str:
    """Returns hours with as many digits as are worth reading."""
    return f"{number:,.0f}" if number >= 10 else f"{number:.2f}"


def duration(number: float) -> str:
    """Returns hours as hours, or minutes where there are few."""
    return f"{number:,.1f} hours" if number >= 1 else f"{60 * number:.0f} minutes"


def gib(number: float) -> str:
    """Returns GiB with as many digits as are worth reading."""
    return f"{number:,.0f}" if number >= 10 else f"{number:.2f}"
