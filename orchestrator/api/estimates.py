"""Costs of stages: by stage instance, by cell and in total. A shared instance counts once."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from orchestrator.api.state import SweepState
from orchestrator.core import schedule
from orchestrator.core.records import Request
from orchestrator.core.schedule import PlannedStage
from orchestrator.core.settings import RunSettings
from orchestrator.core.state import State, goes_without
from orchestrator.core.sweep import Cell
from orchestrator.costs import Estimate, Finished, Hardware, Measured, checked_estimate
from orchestrator.errors import SweepError, UserError
from orchestrator.launchers.base import Launcher, LaunchGpus, Submitter, hardware_for
from orchestrator.registry import importable, load, missing_extra
from orchestrator.stage import Config


def call(name: str, hook: Any, *args: Any, **kwargs: Any) -> Any:
    """Call a hook of a stage.

    A hook belongs to the user's code. An error in it is reported as the user's, not as a bug in Polysweep.

    Args:
        name: of the hook, for the error.
        hook: the function.
        args, kwargs: its arguments.

    Raises:
        UserError: the hook failed.
    """
    try:
        return hook(*args, **kwargs)
    except SweepError:
        raise
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and (
            absent := missing_extra(error, what=f"the hook {name}")
        ):
            raise absent from error
        raise UserError(f"the hook {name} failed: {type(error).__name__}: {error}") from error


ADDED = (
    "num_steps",
    "num_tokens",
    "model_flops",
    "hardware_flops",
    "gpu_hours",
    "generation_gpu_hours",
    "wall_hours",
    "disk_gib",
    "num_generations",
    "num_requests",
    "prompt_tokens",
    "completion_tokens",
)
"""Fields of an estimate that add up over stages."""


def estimates_of(
    view: SweepState,
    cells: Sequence[Cell],
    *,
    hardware: Hardware,
    retention: str,
    import_paths: Sequence[str] = (),
    unfinished_only: bool = False,
) -> dict[str, Estimate]:
    """Return the estimate of each stage that has a hook, by digest. The hook is called once for each digest.

    Args:
        view: states and measurements of the sweep.
        cells: whose stages are estimated.
        hardware: to estimate for.
        retention: the policy that decides which large files stay.
        import_paths: folders from which the user's hooks are imported.
        unfinished_only: whether to leave out stages that are done.

    Raises:
        UserError: an unfinished stage fits on no allowed number of devices, or a hook fails.
    """
    estimates: dict[str, Estimate] = {}
    misfits: dict[str, UserError] = {}
    instances, specs = view.instances, view.sweep.specs
    with importable(import_paths):
        hooks = {
            stage: (spec.estimate, load(spec.estimate, where=f"the estimate of stage {stage!r}"))
            for stage, spec in specs.items()
            if spec.estimate
        }
        measured = measured_in(view) if hooks else Measured()
        for cell in cells if hooks else ():
            config = Config(cell.config)
            for digest in view.chain(cell):
                instance, is_done = instances[digest], view.stages[digest].state is State.DONE
                if instance.stage not in hooks or digest in estimates or (is_done and unfinished_only):
                    continue
                inputs = (view.stages[taken.digest] for taken in instance.inputs)
                if goes_without(view.stages[digest], inputs):
                    continue  # it reuses an earlier version's product at little cost
                name, hook = hooks[instance.stage]
                given = {"label": instance.label, "hardware": hardware, "retention": retention}
                try:
                    estimates[digest] = checked_estimate(
                        name, call(name, hook, config, measured=measured, **given)
                    )
                except UserError as error:
                    # A stage that is done may have run on other, larger hardware.
                    if not is_done:
                        misfits.setdefault(cell.id, error)
    _refuse(misfits)
    return estimates


def _refuse(misfits: Mapping[str, UserError]) -> None:
    """Raise the error of the first cell that does not fit, with the number of other such cells."""
    if misfits:
        cell, error = next(iter(misfits.items()))
        others = f" and {len(misfits) - 1} more" if len(misfits) > 1 else ""
        where = "\n  ".join(filter(None, (f"cell {cell}{others}", error.where)))
        raise UserError(error.what, where=where, allowed=error.allowed, fix=error.fix)


def measured_in(view: SweepState) -> Measured:
    """Return what the finished stages of the sweep measured. It replaces guesses in estimates."""
    finished: dict[str, dict[str, Finished]] = {}
    for cell in view.sweep.cells:
        gates = (gate.digest for gate in view.gates.cells.get(cell.id, ()))
        for digest in (*gates, *cell.stage_digests):
            instance = view.instances[digest]
            if view.stages[digest].state is State.DONE and digest not in finished.get(instance.stage, ()):
                done = view.reader.evidence(digest).done
                if done is not None:
                    of_stage = finished.setdefault(instance.stage, {})
                    of_stage[digest] = Finished(cell.config, done.rows or (), done.seconds)
    return Measured({stage: list(found.values()) for stage, found in finished.items()})


def work_of(
    view: SweepState, cells: Sequence[Cell], estimates: Mapping[str, Estimate]
) -> dict[str, PlannedStage]:
    """Return the stages of some cells that are not done, with the time that each is expected to take.

    A stage without an estimate takes as long as finished instances of the same stage did, by their median.

    Args:
        view: the sweep state.
        cells: whose stages are wanted.
        estimates: digest of a stage to its estimate.
    """
    stages, instances = view.stages, view.instances
    seconds: dict[str, list[float]] = {}
    for digest, status in stages.items():
        if status.state is State.DONE and status.seconds is not None:
            seconds.setdefault(instances[digest].stage, []).append(status.seconds)
    measured_hours = {stage: statistics.median(found) / 3600 for stage, found in seconds.items()}
    # For the time it takes, a gate is an input: what it holds back starts after it.
    gates: dict[str, tuple[str, ...]] = {}
    for gate in (gate for cell in cells for gate in view.gates.cells.get(cell.id, ())):
        gates.update((digest, (*gates.get(digest, ()), gate.digest)) for digest in gate.stages)
    work: dict[str, PlannedStage] = {}
    for digest in dict.fromkeys(digest for cell in cells for digest in view.chain(cell)):
        if stages[digest].state is State.DONE:
            continue
        instance, estimate = instances[digest], estimates.get(digest)
        inputs = (*(taken.digest for taken in instance.inputs), *dict.fromkeys(gates.get(digest, ())))
        if estimate is not None:
            work[digest] = PlannedStage(
                estimate.wall_hours, estimate.num_gpus, inputs, estimate.most_gpus, estimate.efficiency
            )
        else:
            work[digest] = PlannedStage(measured_hours.get(instance.stage, 0.0), 0, inputs)
    return work


def worker_gpus(launcher: Launcher | Submitter, settings: RunSettings) -> float:
    """Return how many GPUs a worker of a launch holds, at most; 0 without GPUs."""
    hardware = hardware_for(launcher, settings)
    if hardware is None and (isinstance(launcher, Submitter) or launcher.gpus() is None):
        return 0.0
    if hardware is not None and hardware.device == "cpu":
        return 0.0
    most = (hardware or settings.hardware.assumed).max_gpus
    return float(settings.launcher.get("gpus_per_worker") or most)


def longest_first(view: SweepState, cells: Sequence[Cell], estimates: Mapping[str, Estimate]) -> list[Cell]:
    """Return cells in the order in which they should start: the longest remaining chain of stages first.

    Args:
        view: the sweep state.
        cells: to order.
        estimates: digest of a stage to its estimate.
    """
    chains = [view.chain(cell) for cell in cells]
    return [cells[index] for index in schedule.longest_first(chains, work_of(view, cells, estimates))]


def order_estimates(
    view: SweepState,
    cells: Sequence[Cell],
    request: Request,
    hardware: Hardware | None,
    import_paths: Sequence[str],
) -> dict[str, Estimate]:
    """Return estimates that order cells; none if they do not fit the hardware that a plan assumes.

    Args:
        view: the sweep state.
        cells: to estimate.
        request: a launch or rerun.
        hardware: that workers have; None for that which a plan assumes.
        import_paths: folders from which the user's hooks are imported.
    """
    if (settings := request.settings) is None:  # a request of a version that recorded none
        return {}
    try:
        return estimates_of(
            view,
            cells,
            hardware=hardware or settings.hardware.assumed,
            retention=settings.policy.retention,
            import_paths=import_paths,
            unfinished_only=True,
        )
    except UserError:
        if hardware is not None:
            raise
        return {}  # these cells run on other hardware than that which the settings name


class Molded(NamedTuple):
    """The own stages of a cell together: on the fewest GPUs that suffice, and on those that were chosen."""

    fewest: PlannedStage
    chosen: PlannedStage


def molded(
    view: SweepState, cells: Sequence[Cell], estimates: Mapping[str, Estimate], gpus: LaunchGpus
) -> dict[str, Molded]:
    """Choose each cell's number of GPUs so that the whole takes the least time; see `schedule.mold`.

    Args:
        view: the sweep state. A cell whose number is recorded in it keeps that.
        cells: that run, or wait to.
        estimates: digest of a stage to its estimate, with the fewest GPUs that suffice.
        gpus: among which those of each cell are chosen.

    Returns:
        Id of a cell to its GPUs and hours; cells without GPUs are left out.

    Raises:
        UserError: a cell needs more GPUs than there are.
    """
    work = work_of(view, cells, estimates)
    units = schedule.of_cells({cell.id: cell.stage_digests for cell in cells}, work)
    fewest = max((unit.num_gpus for unit in units.values()), default=0)
    if fewest > gpus.number:
        raise UserError(f"a cell needs {fewest} GPUs, and the launch may use {gpus.number}")
    most = gpus.per_node
    units = {key: one._replace(most_gpus=min(one.most_gpus or most, most)) for key, one in units.items()}
    found = schedule.mold(units, gpus.number, gpus_per_node=max(most, fewest), kept=view.chosen_gpus)
    names = [cell.id for cell in cells if cell.id in units and units[cell.id].num_gpus]
    return {name: Molded(units[name], found[name]) for name in names}


class Sized(NamedTuple):
    """Cells with the GPUs that they get.

    Attributes:
        estimates: digest of a stage to its estimate with these GPUs.
        chosen: id of a cell to its GPUs, where they were chosen.
        stages: the stages of these cells that get as many.
    """

    estimates: dict[str, Estimate]
    chosen: dict[str, int]
    stages: frozenset[str] = frozenset()


def sized(
    view: SweepState,
    cells: Sequence[Cell],
    request: Request,
    launcher: Launcher | Submitter,
    import_paths: Sequence[str],
) -> Sized:
    """Return estimates of cells, each with the GPUs that it gets: the fewest that suffice, or as chosen.

    Args:
        view: the sweep state.
        cells: that run, or wait to.
        request: a launch or rerun, whose settings say whether GPUs are chosen.
        launcher: of the request.
        import_paths: folders from which the user's hooks are imported.

    Raises:
        UserError: a cell does not fit, or the launcher's settings do not say how many GPUs there are.
    """
    settings = request.settings
    hardware = launcher.hardware() if settings is None else hardware_for(launcher, settings)
    estimates = order_estimates(view, cells, request, hardware, import_paths)
    gpus = launcher.gpus() if settings is not None and settings.hardware.moldable else None
    if settings is None or gpus is None:
        return Sized(estimates, {})
    chosen = {cell: one.chosen.num_gpus for cell, one in molded(view, cells, estimates, gpus).items()}
    waiting = schedule.num_waiting(work_of(view, cells, estimates), [cell.stage_digests for cell in cells])
    own = {key for key, one in estimates.items() if one.num_gpus and waiting[key] == 1}
    for number in sorted(set(chosen.values())):
        there = msgspec.structs.replace(hardware or settings.hardware.assumed, num_gpus=number)
        some = [cell for cell in cells if chosen.get(cell.id) == number]
        found = order_estimates(view, some, request, there, import_paths)
        for key in own & found.keys():
            fewest = estimates[key]
            stage = PlannedStage(fewest.wall_hours, fewest.num_gpus, efficiency=fewest.efficiency)
            hours = schedule.choices(stage, number)[-1].hours
            # A hook may ignore the number; one that obeys it may leave out what is lost between devices.
            if found[key].num_gpus == number:
                hours = max(hours, found[key].wall_hours)
            estimates[key] = msgspec.structs.replace(found[key], num_gpus=number, wall_hours=hours)
    return Sized(estimates, chosen, frozenset(own))


def ordered_ids(
    view: SweepState, request: Request, cells: Sequence[Cell], estimates: Mapping[str, Estimate]
) -> tuple[str, ...] | None:
    """Return the cells of a request in the order in which they should start.

    Args:
        view: the sweep state.
        request: a launch or rerun.
        cells: of the request.
        estimates: digest of a stage to its estimate.

    Returns:
        Their ids; None for all cells of the revision in the order of the sweep.
    """
    ordered = longest_first(view, cells, estimates)
    return request.cells if ordered == list(cells) else tuple(cell.id for cell in ordered)


def of_cell(
    cell: Cell, estimates: Mapping[str, Estimate], chain: Sequence[str] | None = None
) -> Estimate | None:
    """Return the estimate of a cell, the sum of its stages; None if none has an estimate.

    Args:
        cell: the cell.
        estimates: digest of a stage to its estimate.
        chain: its stages, if a job also runs those of gates; None for its own.
    """
    found = [estimates[digest] for digest in chain or cell.stage_digests if digest in estimates]
    return together(found) if found else None


def together(estimates: Iterable[Estimate]) -> Estimate:
    """Return the estimate of several stages that run one after another.

    Costs are added. Memory and GPUs are those of the stage that needs most. The peak of the disk is what all
    stages leave, plus the most that a single stage holds temporarily.
    """
    found = list(estimates)
    largest = max(found, key=lambda estimate: estimate.memory_gib, default=Estimate())
    sums: dict[str, Any] = {name: sum(getattr(estimate, name) for estimate in found) for name in ADDED}
    live_gib = max((e.peak_disk_gib - e.disk_gib for e in found), default=0.0)
    return Estimate(
        **sums,
        num_gpus=max((estimate.num_gpus for estimate in found), default=0),
        micro_batch=next((e.micro_batch for e in found if e.micro_batch is not None), None),
        micro_batch_tokens=next(
            (e.micro_batch_tokens for e in found if e.micro_batch_tokens is not None), None
        ),
        recomputes=next((e.recomputes for e in found if e.recomputes is not None), None),
        memory_gib=largest.memory_gib,
        memory_terms_gib=largest.memory_terms_gib,
        host_memory_gib=max((estimate.host_memory_gib for estimate in found), default=0.0),
        peak_disk_gib=sums["disk_gib"] + max(0.0, live_gib),
        useful_share=_mean_share(found, "useful_share"),
        checkpoint_share=_mean_share(found, "checkpoint_share"),
        lost_s=max((e.lost_s for e in found), default=0.0),
        stop_s=max((e.stop_s for e in found), default=0.0),
        assumptions=tuple(dict.fromkeys(note for e in found for note in e.assumptions)),
        measured=any(estimate.measured for estimate in found),
    )


def _mean_share(estimates: Sequence[Estimate], name: str) -> float:
    """Return a share of the time of several stages, weighted by their GPU hours, of those that have one."""
    shares = [(getattr(one, name), one.wall_hours * one.num_gpus) for one in estimates if getattr(one, name)]
    hours = sum(weight for _, weight in shares)
    return sum(share * weight for share, weight in shares) / hours if hours else 0.0
