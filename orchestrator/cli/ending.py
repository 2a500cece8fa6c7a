"""Output while cells run and after they have ended: progress, failures and reports."""

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
"""Up to `MOST_PATHS` files are all listed. Of more files, only the first `MAIN_PATHS` are."""


def write_reports(view: SweepState) -> None:
    """Write the sweep's reports at the end of a launch. A report that fails is printed as an error.

    The results are in the store already, so the exit code of the launch does not depend on its reports.
    """
    if not view.sweep.report:
        return
    reports, errors = write_sweep_reports(view, view.sweep.report, None, notify=to_stderr)
    for written in reports:
        for path in written:
            if path.suffix == ".md" and path.parent.joinpath(NUMBERS) not in written:
                # Without report.json, the Markdown is the whole report: a page or two.
                print(f"\n{path.read_text(encoding='utf-8').rstrip()}")
        if written:
            print()
            print_written(written, as_json=False)
    for error in errors:
        print(f"error: {error}", file=sys.stderr)


def print_written(written: Sequence[Path], as_json: bool) -> None:
    """Print the paths of the written files, or the content of ``report.json``.

    Args:
        written: the files of all reports.
        as_json: whether to print ``report.json`` instead of paths.

    Raises:
        UserError: JSON is requested and no report wrote any.
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
"""Failed jobs listed for each cause."""


class _Numbers(NamedTuple):
    """The progress of a launch, counted in distinct stages. A stage that cells share counts once.

    Attributes:
        stages_over: stages in a final state.
        num_stages: all stages of the cells.
        text: how many cells are done, failed, running and queued.
    """

    stages_over: int
    num_stages: int
    text: str


def _numbers(view: SweepState, cells: list[Cell]) -> _Numbers:
    """Count the stages and cells of a launch by state."""
    states: dict[str, State] = {}
    for cell in cells:
        for digest, status in view.cells[cell.id].stages.items():
            states[digest] = status.state
    counts = Counter(view.cells[cell.id].state for cell in cells)
    text = (
        f"cells: {counts[State.DONE]} of {len(cells)} done, {counts[State.FAILED]} failed; "
        f"{sum(state is State.RUNNING for state in states.values())} running"
    )
    if counts[State.QUEUED]:
        text += f", {counts[State.QUEUED]} queued"
    return _Numbers(sum(state in FINAL for state in states.values()), len(states), text)


def print_progress(view: SweepState, cells: list[Cell], last: str) -> str:
    """Print the progress if it has changed since `last`; return the new text, for the next call."""
    done, total, text = _numbers(view, cells)
    if text != last:
        print(f"{done}/{total} stages; {text}", flush=True)
    return text


def print_failures(view: SweepState, cells: list[Cell]) -> None:
    """Print the failures grouped by cause, each with the command that shows its log.

    A failed stage that several cells share is printed once. Cells whose job failed before any stage did are
    printed separately, because their log is that of the job.
    """
    groups: dict[str, dict[str, tuple[Cell, int]]] = {}
    by_job: dict[str, list[Cell]] = {}
    for cell in cells:
        # A failed cell without a failed stage: the scheduler's job died before it could claim a stage.
        whole = view.cells[cell.id]
        if whole.state is State.FAILED and all(s.state is not State.FAILED for s in whole.stages.values()):
            by_job.setdefault(str(whole.cause), []).append(cell)
        for digest, status in view.cells[cell.id].stages.items():
            if status.state is State.FAILED:
                group = groups.setdefault(str(status.cause), {})
                # The first cell of a shared stage names it; the others are only counted.
                first, number = group.get(digest, (cell, 0))
                group[digest] = (first, number + 1)
    for cause, group in sorted(groups.items()):
        print(f"\nfailed by {cause}: {counted(len(group), 'stage')}")
        for digest, (cell, number) in group.items():
            node = view.sweep.stages[digest]
            shared = f" (and {counted(number - 1, 'other cell')} that share it)" if number > 1 else ""
            print(f"  {cell.id} {node.name}{shared}: {view.stages[digest].reason}")
            print(f"    sweep logs {view.sweep.name} {cell.id} --stage {node.name}{view.hint}")
    for cause, lost in sorted(by_job.items()):
        print(f"\njobs failed by {cause}: {counted(len(lost), 'cell')}")
        for cell in lost[:MAX_JOBS_SHOWN]:
            print(f"  {cell.id}: {view.cells[cell.id].reason}")
        if len(lost) > MAX_JOBS_SHOWN:
            print(f"  and {len(lost) - MAX_JOBS_SHOWN} more")
        print(f"    sweep logs {view.sweep.name} {lost[0].id} --job{view.hint}")
    if groups or by_job:
        print(f"\nwhen mended: sweep rerun {view.sweep.name}{view.hint}")
