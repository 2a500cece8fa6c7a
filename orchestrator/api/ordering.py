"""The order in which cells start, and how long a plan takes on a cluster, from estimates and measurements."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from orchestrator.api.estimates import estimates_of
from orchestrator.api.state import SweepState
from orchestrator.core import schedule
from orchestrator.core.records import Request
from orchestrator.core.schedule import Makespan, Work
from orchestrator.core.state import State
from orchestrator.core.sweep import Cell
from orchestrator.costs import Estimate, Hardware
from orchestrator.errors import UserError


def work_of(view: SweepState, cells: Sequence[Cell], estimates: Mapping[str, Estimate]) -> dict[str, Work]:
    """Return the stages of some cells that are not done, with the time that each is expected to take.

    A stage without an estimate takes as long as finished instances of the same stage did, by their median.

    Args:
        view: the sweep state.
        cells: whose stages are wanted.
        estimates: digest of a stage to its estimate.
    """
    stages, nodes = view.stages, view.sweep.nodes
    seconds: dict[str, list[float]] = {}
    for digest, status in stages.items():
        if status.state is State.DONE and status.seconds is not None:
            seconds.setdefault(nodes[digest].stage, []).append(status.seconds)
    measured_hours = {stage: statistics.median(found) / 3600 for stage, found in seconds.items()}
    work: dict[str, Work] = {}
    for digest in dict.fromkeys(digest for cell in cells for digest in cell.chain):
        if stages[digest].state is State.DONE:
            continue
        node, estimate = nodes[digest], estimates.get(digest)
        inputs = tuple(taken.digest for taken in node.inputs)
        if estimate is not None:
            work[digest] = Work(estimate.wall_hours, estimate.num_gpus, inputs)
        else:
            work[digest] = Work(measured_hours.get(node.stage, 0.0), 0, inputs)
    return work


def longest_first(view: SweepState, cells: Sequence[Cell], estimates: Mapping[str, Estimate]) -> list[Cell]:
    """Return cells in the order in which they should start: the longest remaining chain of stages first.

    Args:
        view: the sweep state.
        cells: to order.
        estimates: digest of a stage to its estimate.
    """
    chains = [cell.chain for cell in cells]
    return [cells[index] for index in schedule.longest_first(chains, work_of(view, cells, estimates))]


def ordered_ids(
    view: SweepState, request: Request, hardware: Hardware | None, import_paths: Sequence[str]
) -> tuple[str, ...] | None:
    """Return the cells of a request in the order in which they should start.

    Args:
        view: the sweep state.
        request: a launch or rerun.
        hardware: that workers have; None for that which a plan assumes.
        import_paths: folders from which the user's hooks are imported.

    Returns:
        Their ids; None for all cells of the revision in the order of the sweep.
    """
    named = None if request.cells is None else set(request.cells)
    cells = [cell for cell in view.sweep.cells if named is None or cell.cell in named]
    ordered = longest_first(view, cells, order_estimates(view, cells, request, hardware, import_paths))
    return request.cells if ordered == cells else tuple(cell.cell for cell in ordered)


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
    settings = request.settings
    if settings is None:  # a request of a version that recorded none
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


def makespan_of(
    view: SweepState,
    cells: Sequence[Cell],
    estimates: Mapping[str, Estimate],
    num_gpus: int,
    *,
    gpus_per_node: int,
) -> Makespan:
    """Return how long what is not done takes on a cluster, the longest chain first.

    Args:
        view: the sweep state.
        cells: to run.
        estimates: digest of a stage to its estimate.
        num_gpus: of the cluster.
        gpus_per_node: of one node. A cell runs within one.

    Raises:
        UserError: a number is out of range, or a cell needs more GPUs than a node has.
    """
    where = f"--gpus {num_gpus} --gpus-per-node {gpus_per_node}"
    if num_gpus < 1 or gpus_per_node < 1:
        raise UserError("a cluster has at least one GPU", where=where)
    work = work_of(view, cells, estimates)
    most = max((stage.num_gpus for stage in work.values()), default=0)
    if most > min(num_gpus, gpus_per_node):
        raise UserError(
            f"a cell needs {most} GPUs in one node", where=where, fix=f"--gpus-per-node {most} or more"
        )
    units = schedule.of_cells({cell.cell: cell.chain for cell in cells}, work)
    return schedule.makespan(units, num_gpus, gpus_per_node=gpus_per_node)
