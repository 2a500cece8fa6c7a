"""Costs of stages: by stage instance, by cell and in total. A shared instance counts once."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from orchestrator.api.state import SweepState
from orchestrator.core import schedule
from orchestrator.core.records import Request
from orchestrator.core.schedule import PlannedStage
from orchestrator.core.settings import RunSettings
from orchestrator.core.state import State, goes_without
from orchestrator.core.sweep import Cell
from orchestrator.costs import Estimate, Finished, Hardware, Measured, checked_estimate, together
from orchestrator.errors import SweepError, UserError
from orchestrator.jobs.records import Shortfalls
from orchestrator.launchers.base import Launcher, LaunchGpus, Submitter, hardware_for
from orchestrator.registry import importable, load, missing_extra
from orchestrator.spec import Config


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
    except (Exception, SystemExit) as error:
        if isinstance(error, ModuleNotFoundError) and (
            absent := missing_extra(error, what=f"the hook {name}")
        ):
            raise absent from error
        raise UserError(f"the hook {name} failed: {type(error).__name__}: {error}") from error


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
        # A gate is estimated by a cell for most of whose stages it stands: a class may have untrained models.
        gated = {cell.id: sum(len(g.stages) for g in view.gates.cells.get(cell.id, ())) for cell in cells}
        for cell in sorted(cells, key=lambda cell: -gated[cell.id]) if hooks else ():
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
                key, facts = (digest, cell.id), (given, measured)
                try:
                    # A plan needs most of them twice: which gates there are depends on their hours.
                    if key not in view.estimated or view.estimated[key][0] != facts:
                        found = call(name, hook, config, measured=measured, **given)
                        view.estimated[key] = (facts, checked_estimate(name, found))
                    estimates[digest] = view.estimated[key][1]
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


def gpus_held(
    view: SweepState,
    cells: Sequence[Cell],
    estimates: Mapping[str, Estimate],
    launcher: Launcher | Submitter,
    settings: RunSettings,
) -> dict[str, float]:
    """Return the GPUs that a worker of each cell would hold, by the cell's id; 0 for those without GPUs.

    A worker holds its GPUs whatever the stage needs: a job those that it requests for its cells, a local
    worker `launcher.gpus_per_worker`, unless the workers of the machine share all GPUs.

    Args:
        view: the sweep state.
        cells: that are planned.
        estimates: digest of a stage to its estimate.
        launcher: of the launch.
        settings: of the launch.

    Raises:
        UserError: a cell fits on nothing that a scheduler has.
        InfrastructureError: a scheduler that is needed does not answer.
    """
    needs = {cell.id: of_cell(cell, estimates, view.chain(cell)) for cell in cells}
    if isinstance(launcher, Submitter):
        if (hardware := launcher.hardware()) is None or hardware.device == "cpu":
            needs = dict.fromkeys(needs)  # as in a submission, where jobs have no GPUs by an estimate then
        known = [view.subject(cell) for cell in view.sweep.cells]
        asked = [(view.subject(cell), needs[cell.id], Shortfalls(0, 0)) for cell in cells]
        side = settings.launcher.get("workers_per_job") or 1
        found = launcher.resources(asked, known=known, chosen={})
        return {cell: each.num_nodes * each.gpus_per_node / side for cell, each in found}
    if launcher.gpus() is None:
        return dict.fromkeys(needs, 0.0)
    least = float(settings.launcher.get("gpus_per_worker", 1))
    if not settings.hardware.moldable:
        return dict.fromkeys(needs, least)
    return {cell: float(need.num_gpus if need is not None else least) for cell, need in needs.items()}


def held_seconds(
    view: SweepState,
    cells: Sequence[Cell],
    estimates: Mapping[str, Estimate],
    held: Mapping[str, float],
) -> dict[str, float]:
    """Return the GPU-seconds of each stage that is not done; a shared stage is the first cell's.

    Args:
        view, cells, estimates: as for `work_of`.
        held: id of a cell to the GPUs that its worker holds.
    """
    work, found = work_of(view, cells, estimates), dict[str, float]()
    for cell in cells:
        for digest in view.chain(cell):
            if digest in work:
                found.setdefault(digest, 3600 * work[digest].hours * held[cell.id])
    return found


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
        request: a launch or rerun. GPUs are chosen if `hardware.moldable` is set in its settings.
        launcher: of the request.
        import_paths: folders from which the user's hooks are imported.

    Raises:
        UserError: a cell does not fit, or the launcher's settings lack the number of GPUs.
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
