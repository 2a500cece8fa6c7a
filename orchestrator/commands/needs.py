"""What the cells of a plan need and this machine lacks: collected from the `needs` hooks of their stages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.commands.output import counted, shorten
from orchestrator.commands.view import View
from orchestrator.compose.schema import importable
from orchestrator.core.state import State
from orchestrator.core.sweep import Cell
from orchestrator.costs import Need
from orchestrator.errors import SweepError, UserError
from orchestrator.registry import load
from orchestrator.stage import Config


def needs_of(view: View, cells: Sequence[Cell], import_paths: Sequence[str] = ()) -> dict[str, list[Need]]:
    """Returns, by the id of a cell that is not done, all that it needs, with what is missing named.

    Raises:
        UserError: a hook cannot be loaded, or fails.
    """
    needs: dict[str, list[Need]] = {}
    with importable(import_paths):
        hooks = {
            stage: (spec.needs, load(spec.needs, where=f"the needs of stage {stage!r}"))
            for stage, spec in view.sweep.specs.items()
            if spec.needs
        }
        for cell in cells if hooks else ():
            status = view.cells[cell.cell]
            open_stages = {
                view.sweep.nodes[digest].stage
                for digest, stage in status.stages.items()
                if stage.state is not State.DONE
            }
            asked = dict(hooks[stage] for stage in hooks if stage in open_stages)
            found = [need for name, hook in asked.items() for need in call(name, hook, Config(cell.config))]
            if found:
                needs[cell.cell] = _distinct(found)
    return needs


def missing_of(needs: Mapping[str, Sequence[Need]]) -> dict[str, list[Need]]:
    """Returns, by cell, the needs that are not met."""
    missing = {cell: [need for need in found if need.problem] for cell, found in needs.items()}
    return {cell: found for cell, found in missing.items() if found}


def told(need: Need) -> str:
    """Returns a missing need in one line."""
    return f"{need.what}: {need.problem}" + ("" if need.fetch or not need.advice else f"; {need.advice}")


def distinct(needs: Mapping[str, Sequence[Need]]) -> list[Need]:
    """Returns each need once, whoever has it."""
    return _distinct([need for found in needs.values() for need in found])


def refuse_blocked(view: View, missing: Mapping[str, Sequence[Need]], fix: str) -> None:
    """Refuses to launch cells that could not run.

    Raises:
        UserError: there is one.
    """
    if not missing:
        return
    needs = distinct(missing)
    lines = [shorten(told(need), 160) for need in needs]
    mend = fix if any(need.fetch or need.advice for need in needs) else "mend this"
    more = f" and {len(lines) - 6} more" if len(lines) > 6 else ""
    raise UserError(
        f"{counted(len(missing), 'cell')} of {view.sweep.name} cannot run here yet; nothing was launched",
        where="\n  ".join(lines[:6]) + more,
        fix=f"{mend}, or launch the other cells with --only",
    )


def call(name: str, hook: Any, *args: Any, **kwargs: Any) -> Any:
    """Calls a hook; what it does wrong is the fault of who named it in the sweep.

    Raises:
        UserError: the hook's own, or one that names what it raised.
    """
    try:
        return hook(*args, **kwargs)
    except SweepError:
        raise
    except Exception as error:
        raise UserError(f"the hook {name} failed: {type(error).__name__}: {error}") from error


def _distinct(needs: Sequence[Need]) -> list[Need]:
    return list(
        {(need.what, need.fetch, str(sorted(need.arguments.items()))): need for need in needs}.values()
    )
