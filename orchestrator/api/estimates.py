"""Adding up what stages would cost: by stage instance, by cell, and in total, each distinct stage once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from orchestrator.api.state import SweepState
from orchestrator.compose.schema import importable
from orchestrator.core.settings import HardwareSettings
from orchestrator.core.state import State, goes_without
from orchestrator.core.sweep import Cell
from orchestrator.costs import Estimate, Finished, Hardware, Measured, Need
from orchestrator.errors import SweepError, UserError
from orchestrator.registry import load
from orchestrator.stage import Config
from orchestrator.text import counted, one_line


def needs_of(
    view: SweepState, cells: Sequence[Cell], import_paths: Sequence[str] = ()
) -> dict[str, list[Need]]:
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


def refuse_blocked(view: SweepState, missing: Mapping[str, Sequence[Need]], fix: str) -> None:
    """Refuses to launch cells that could not run.

    Raises:
        UserError: there is one.
    """
    if not missing:
        return
    needs = distinct(missing)
    lines = [one_line(told(need), 160) for need in needs]
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


_ADDED = (
    "num_steps",
    "num_tokens",
    "model_flops",
    "hardware_flops",
    "gpu_hours",
    "generation_gpu_hours",
    "wall_hours",
    "disk_gib",
    "num_generations",
)


def estimates_of(
    view: SweepState,
    cells: Sequence[Cell],
    *,
    hardware: Hardware,
    retention: str,
    import_paths: Sequence[str] = (),
    unfinished_only: bool = False,
) -> dict[str, Estimate]:
    """Returns digest to estimate, of the stages that have a hook; each digest is asked once.

    Args:
        view: states and measurements.
        cells: whose stages.
        hardware: what to estimate for.
        retention: which large files stay, the policy's.
        import_paths: where hooks of the user's are importable.
        unfinished_only: leave out what is done.

    Raises:
        UserError: a stage that is not done fits no allowed number of devices, or a hook fails.
    """
    estimates: dict[str, Estimate] = {}
    misfits: dict[str, UserError] = {}
    nodes, specs = view.sweep.nodes, view.sweep.specs
    with importable(import_paths):
        hooks = {
            stage: (spec.estimate, load(spec.estimate, where=f"the estimate of stage {stage!r}"))
            for stage, spec in specs.items()
            if spec.estimate
        }
        measured = measured_in(view) if hooks else Measured()
        for cell in cells if hooks else ():
            config = Config(cell.config)
            for digest in cell.chain:
                node, is_done = nodes[digest], view.stages[digest].state is State.DONE
                if node.stage not in hooks or digest in estimates or (is_done and unfinished_only):
                    continue
                if goes_without(view.stages[digest], (view.stages[taken.digest] for taken in node.inputs)):
                    continue  # what would cost much is not there to be run
                name, hook = hooks[node.stage]
                given = {"label": node.label, "hardware": hardware, "retention": retention}
                try:
                    estimates[digest] = call(name, hook, config, measured=measured, **given)
                except UserError as error:
                    if not is_done:  # what ran somewhere may be too large for what is assumed here
                        misfits.setdefault(cell.cell, error)
    _refuse(misfits)
    return estimates


def _refuse(misfits: Mapping[str, UserError]) -> None:
    if misfits:
        cell, error = next(iter(misfits.items()))
        others = f" and {len(misfits) - 1} more" if len(misfits) > 1 else ""
        where = "\n  ".join(filter(None, (f"cell {cell}{others}", error.where)))
        raise UserError(error.what, where=where, allowed=error.allowed, fix=error.fix)


def measured_in(view: SweepState) -> Measured:
    """Collects what is done, of all cells of the sweep."""
    finished: dict[str, dict[str, Finished]] = {}
    for cell in view.sweep.cells:
        for digest in cell.chain:
            node = view.sweep.nodes[digest]
            if view.stages[digest].state is State.DONE and digest not in finished.get(node.stage, ()):
                done = view.snapshot.evidence(digest).done
                if done is not None:
                    of_stage = finished.setdefault(node.stage, {})
                    of_stage[digest] = Finished(cell.config, done.rows or (), done.seconds)
    return Measured({stage: list(found.values()) for stage, found in finished.items()})


def of_cell(cell: Cell, estimates: Mapping[str, Estimate]) -> Estimate | None:
    """Adds up a cell's stages; None when none of them says anything."""
    found = [estimates[digest] for digest in cell.chain if digest in estimates]
    return together(found) if found else None


def together(estimates: Iterable[Estimate]) -> Estimate:
    """Adds what adds; memory and GPUs are those of the stage that needs most."""
    found = list(estimates)
    largest = max(found, key=lambda estimate: estimate.memory_gib, default=Estimate())
    sums: dict[str, Any] = {name: sum(getattr(estimate, name) for estimate in found) for name in _ADDED}
    live_gib = max((e.peak_disk_gib - e.disk_gib for e in found), default=0.0)
    return Estimate(
        **sums,
        num_gpus=max((estimate.num_gpus for estimate in found), default=0),
        micro_batch=next((e.micro_batch for e in found if e.micro_batch is not None), None),
        memory_gib=largest.memory_gib,
        memory_terms_gib=largest.memory_terms_gib,
        host_memory_gib=max((estimate.host_memory_gib for estimate in found), default=0.0),
        peak_disk_gib=sums["disk_gib"] + max(0.0, live_gib),
        assumptions=tuple(dict.fromkeys(note for e in found for note in e.assumptions)),
        measured=any(estimate.measured for estimate in found),
    )


def in_total(
    cells: Sequence[Cell], estimates: Mapping[str, Estimate], settings: HardwareSettings
) -> dict[str, Any]:
    """Adds up all cells, a shared stage once.

    Wall time and the peak of the disk are for `cells_at_once`: the peak is what stays of all of them, and
    beside it what the most demanding ones hold while they are live.
    """
    digests = dict.fromkeys(digest for cell in cells for digest in cell.chain if digest in estimates)
    total = together(estimates[digest] for digest in digests)
    live_gib = [estimates[digest].peak_disk_gib - estimates[digest].disk_gib for digest in digests]
    longest = max((one.wall_hours for cell in cells if (one := of_cell(cell, estimates))), default=0.0)
    at_once = settings.cells_at_once
    return {
        **{name: getattr(total, name) for name in _ADDED},
        "wall_hours": max(longest, total.wall_hours / at_once),
        "peak_disk_gib": total.disk_gib + sum(sorted(live_gib, reverse=True)[:at_once]),
        "num_measured": sum(estimates[digest].measured for digest in digests),
        "assumptions": [
            *dict.fromkeys(note for digest in digests for note in estimates[digest].assumptions),
            f"{at_once} cells at once (hardware.cells_at_once), for wall time and the peak of the disk",
        ],
    }


def as_json(estimate: Estimate | None) -> dict[str, Any] | None:
    """Returns a cell's estimate for scripts."""
    return None if estimate is None else dict(msgspec.to_builtins(estimate))
