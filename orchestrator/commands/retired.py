"""What people are told of retired files: which cells need them again, and what a launch let go at its end."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from orchestrator import provenance
from orchestrator.commands.output import counted
from orchestrator.commands.view import View
from orchestrator.core.records import Retired
from orchestrator.core.settings import Policy
from orchestrator.core.state import State
from orchestrator.core.sweep import Cell
from orchestrator.errors import InfrastructureError
from orchestrator.store.retention import retain

MAX_CELLS_NAMED = 3


def told(retired: Retired) -> str:
    """Returns a retirement in one line."""
    return f"{_of(retired)} under policy {retired.policy} at {retired.at} by {retired.by}: {retired.why}"


def _of(*retired: Retired) -> str:
    files = [file for record in retired for file in record.files]
    return f"{counted(len(files), 'file')} ({sum(file.size for file in files) / 2**30:.3g} GiB)"


def needing_retired(view: View, cells: Sequence[Cell]) -> dict[str, list[str]]:
    """Returns stage to ids of the cells that cannot run because files of its product were retired."""
    found: dict[str, list[str]] = {}
    for cell in cells:
        stages = view.cells[cell.cell].stages
        for digest, status in stages.items():
            inputs = view.sweep.nodes[digest].inputs if status.state is State.BLOCKED else ()
            for stage in dict.fromkeys(i.stage for i in inputs if stages[i.digest].retired):
                if cell.cell not in found.setdefault(stage, []):
                    found[stage].append(cell.cell)
    return found


def print_needing_retired(view: View, cells: Sequence[Cell]) -> None:
    """Prints which cells would have to make again what was retired, and the commands that ask for it."""
    sweep = f"{view.sweep.name}@{view.number}"
    for stage, ids in needing_retired(view, cells).items():
        few = len(ids) <= MAX_CELLS_NAMED
        print(f"\n{counted(len(ids), 'cell')} blocked: files of its input {stage} were retired", end="")
        print(f": {', '.join(ids)}" if few else "")
        found = [status.former for cell in ids for status in view.cells[cell].stages.values()]
        problems = {former.problem for former in found if former and former.problem}
        for problem in sorted(problems)[:MAX_CELLS_NAMED]:
            print(f"  the product of an earlier version cannot be used: {problem}")
        selector = shlex.quote(",".join(ids) if few else "state=blocked")
        print(f"to make {stage} again, and all that was made from it:")
        if not view.sealed:
            print("  sweep launch, as planned here, which seals these cells; then")
        print(f"  sweep discard {sweep} {selector} --stage {stage} --reason ...{view.hint}")
        print(f"  sweep launch {sweep}{view.hint}")


def finish_retention(view: View, policy: Policy) -> None:
    """Applies a launch's policy to all products of its revision, and finishes what a dead worker began."""
    if view.wishes.revision != view.number:
        return  # another revision was launched meanwhile: what it needs is for its own launch to say
    try:
        news = retain(
            view.ledger, view.sweep, policy, by=f"launch by {provenance.user()}", trusted=view.trusted
        )
    except (OSError, InfrastructureError) as error:
        print(f"retention: {error}; the next launch goes on with it")
        return
    if news:
        print(f"retired {_of(*news)} of {counted(len(news), 'product')} under policy {policy.retention}")
