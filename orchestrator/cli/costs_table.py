"""The cost table of `sweep plan`: one line for each group of cells, and the totals as sentences."""

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


def _row(cells: Sequence[Cell], estimates: Mapping[str, Estimate]) -> tuple[str, ...]:
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
        hours(total.gpu_hours),
        _span(one.num_gpus for one in trained),
        _span(one.micro_batch for one in trained if one.micro_batch),
        gib(total.disk_gib),
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
    """Return a number with three significant digits and an SI prefix, such as ``23.4 G``."""
    for size, prefix in ((1e18, " E"), (1e15, " P"), (1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if number >= size:
            return f"{number / size:.3g}{prefix}"
    return f"{number:g}"


def hours(number: float) -> str:
    """Return a number of hours: two decimals below 10, none from there on."""
    return f"{number:,.0f}" if number >= 10 else f"{number:.2f}"


def duration(number: float) -> str:
    """Return a number of hours as text, in minutes if it is below one hour."""
    return f"{number:,.1f} hours" if number >= 1 else f"{60 * number:.0f} minutes"


def gib(number: float) -> str:
    """Return a number of GiB: two decimals below 10, none from there on."""
    return f"{number:,.0f}" if number >= 10 else f"{number:.2f}"
