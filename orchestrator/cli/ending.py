"""What is printed while cells run and when they have ended: progress, failures, reports."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from orchestrator.api.reports import GENERAL, NUMBERS, write_sweep_reports
from orchestrator.api.state import SweepState
from orchestrator.cli.output import to_stderr
from orchestrator.core.state import FINAL, State
from orchestrator.core.sweep import Cell
from orchestrator.errors import UserError
from orchestrator.text import counted

MOST_PATHS, MAIN_PATHS = 6, 3
"""Up to how many files are all listed, and else how many."""


def write_reports(view: SweepState) -> None:
    """Writes the sweep's reports at the end of a launch; one that fails costs no result."""
    if not view.sweep.report:
        return
    reports, errors = write_sweep_reports(view, view.sweep.report, None, notify=to_stderr)
    for written in reports:
        for path in written:
            if path.suffix == ".md" and path.parent.joinpath(NUMBERS) not in written:
                print(f"\n{path.read_text(encoding='utf-8').rstrip()}")  # a report of a page or two
        if written:
            print()
            print_written(written, as_json=False)
    for error in errors:
        print(f"error: {error}", file=sys.stderr)


def print_written(written: Sequence[Path], as_json: bool) -> None:
    """Prints where the files are, or what the numbers are.

    Raises:
        UserError: JSON is asked for and no report has any.
    """
    if not as_json:
        shown = written if len(written) <= MOST_PATHS else written[:MAIN_PATHS]
        for path in shown:
            print(path)
        if len(shown) < len(written):
            print(f"and {counted(len(written) - len(shown), 'more file')} in {shown[0].parent}")
        return
    numbers = [path for path in written if path.name == NUMBERS]
    if not numbers:
        raise UserError(f"none of the sweep's reports writes {NUMBERS}", fix=f"--report {GENERAL}")
    sys.stdout.write(numbers[0].read_text(encoding="utf-8").rstrip() + "\n")


MAX_JOBS_SHOWN = 5


class _Numbers(NamedTuple):
    """What the progress shows; stages are distinct ones."""

    stages_over: int
    num_stages: int
    text: str


def _numbers(view: SweepState, cells: list[Cell]) -> _Numbers:
    states: dict[str, State] = {}
    for cell in cells:
        for digest, status in view.cells[cell.cell].stages.items():
            states[digest] = status.state
    counts = Counter(view.cells[cell.cell].state for cell in cells)
    text = (
        f"cells: {counts[State.DONE]} of {len(cells)} done, {counts[State.FAILED]} failed; "
        f"{sum(state is State.RUNNING for state in states.values())} running"
    )
    if counts[State.QUEUED]:
        text += f", {counts[State.QUEUED]} queued"
    return _Numbers(sum(state in FINAL for state in states.values()), len(states), text)


def print_progress(view: SweepState, cells: list[Cell], last: str) -> str:
    """Prints where cells stand when that has changed; returns what was printed last."""
    done, total, text = _numbers(view, cells)
    if text != last:
        print(f"{done}/{total} stages; {text}", flush=True)
    return text


def print_failures(view: SweepState, cells: list[Cell]) -> None:
    """Prints the failed stages grouped by cause, each once, with the command that shows its log."""
    groups: dict[str, dict[str, tuple[Cell, int]]] = {}
    by_job: dict[str, list[Cell]] = {}
    for cell in cells:
        whole = view.cells[cell.cell]
        if whole.state is State.FAILED and all(s.state is not State.FAILED for s in whole.stages.values()):
            by_job.setdefault(str(whole.cause), []).append(cell)
        for digest, status in view.cells[cell.cell].stages.items():
            if status.state is State.FAILED:
                group = groups.setdefault(str(status.cause), {})
                first, number = group.get(digest, (cell, 0))
                group[digest] = (first, number + 1)
    for cause, group in sorted(groups.items()):
        print(f"\nfailed by {cause}: {counted(len(group), 'stage')}")
        for digest, (cell, number) in group.items():
            node = view.sweep.nodes[digest]
            shared = f" (and {counted(number - 1, 'other cell')} that share it)" if number > 1 else ""
            print(f"  {cell.cell} {node.name}{shared}: {view.stages[digest].reason}")
            print(f"    sweep logs {view.sweep.name} {cell.cell} --stage {node.name}{view.hint}")
    for cause, lost in sorted(by_job.items()):
        print(f"\njobs failed by {cause}: {counted(len(lost), 'cell')}")
        for cell in lost[:MAX_JOBS_SHOWN]:
            print(f"  {cell.cell}: {view.cells[cell.cell].reason}")
        if len(lost) > MAX_JOBS_SHOWN:
            print(f"  and {len(lost) - MAX_JOBS_SHOWN} more")
        print(f"    sweep logs {view.sweep.name} {lost[0].cell} --job{view.hint}")
    if groups or by_job:
        print(f"\nwhen mended: sweep rerun {view.sweep.name}{view.hint}")
