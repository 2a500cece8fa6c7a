"""The order in which stages start, and the time that a plan takes on a number of GPUs. Pure functions.

Stages start longest chain first. The chain of a stage is the stage and the longest path of stages that wait
for it (its *upward rank* in the list scheduling of Graham 1969 and of HEFT, Topcuoglu et al. 2002). A long
chain that starts late ends alone, with all other GPUs idle::

    2 GPUs; chains of 1, 1, 1, 1 and 4 hours
    in grid order     GPU 0: 1 1 4        6 hours      GPU 1: 1 1
    longest first     GPU 0: 4            4 hours      GPU 1: 1 1 1 1

A chain that no GPU is free for does not hold back shorter ones behind it.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from statistics import NormalDist
from typing import NamedTuple

EFFICIENCY_PER_DOUBLING = 0.9
"""Share of the speed that is kept each time a stage gets twice as many GPUs; a guess until it is measured."""
USUAL_ERROR = 0.3
"""Standard deviation of the logarithm of true over estimated hours, for which GPUs are chosen; our choice."""
NUM_SAMPLES, MANY_STAGES = 8, 2_000
"""How often a plan is simulated with wrong estimates; never if it has more stages than the latter."""
NEARLY_LONGEST = 0.97
"""Share of the longest chain from which on the stages of a chain get more GPUs too; our choice, for speed."""
MIN_GAIN = 0.05
"""Share of the time that more GPUs must save. Estimates are wrong by more than a smaller gain; our choice."""


class PlannedStage(NamedTuple):
    """A stage that is to run.

    Attributes:
        hours: how long it runs.
        num_gpus: GPUs that it holds meanwhile, all in one node; 0 for a stage that needs none.
        inputs: keys of the stages that must be done before.
        most_gpus: the most GPUs that it can use; 0 if there is no limit.
        efficiency: measured share of the speed that it keeps for each doubling of its GPUs; 0 if unknown.
    """

    hours: float
    num_gpus: int
    inputs: tuple[str, ...] = ()
    most_gpus: int = 0
    efficiency: float = 0.0


class Makespan(NamedTuple):
    """How long a plan takes from its first start to its last end, in hours.

    Attributes:
        hours: the whole time.
        lower_bound_hours: no order is faster: the larger of GPU-hours / GPUs and the longest chain. With
            moldable stages, each stage counts at its best number of GPUs.
        rigid_lower_bound_hours: the same, with each stage at the fewest GPUs on which it fits.
        ratio: hours / lower_bound_hours; 1 if there is nothing to do.
        num_gpus: of the whole cluster.
    """

    hours: float
    lower_bound_hours: float
    rigid_lower_bound_hours: float
    ratio: float
    num_gpus: int


def of_cells(cells: Mapping[str, Sequence[str]], work: Mapping[str, PlannedStage]) -> dict[str, PlannedStage]:
    """Return the work of cells: stages that cells share, and each cell's own stages as one.

    A worker holds its GPUs from the first stage of a cell to the last. So a cell's own stages count with the
    GPUs of the one that needs most, one after another. A stage that cells share runs on behalf of any of
    them, so it never gets more GPUs than it needs.

    Args:
        cells: id of a cell to its stages, inputs before those that take them.
        work: the stages that are not done, by key.
    """
    waiting = num_waiting(work, cells.values())
    found: dict[str, PlannedStage] = {}
    for cell, chain in cells.items():
        todo = [key for key in chain if key in work]
        own = [key for key in todo if waiting[key] == 1]
        found.update(
            (key, work[key]._replace(most_gpus=work[key].num_gpus)) for key in todo if waiting[key] > 1
        )
        if own:
            shared = {taken for key in own for taken in work[key].inputs if waiting[taken] > 1}
            hours = sum(work[key].hours for key in own)
            num_gpus = max(work[key].num_gpus for key in own)
            limit = min((work[key].most_gpus for key in own if work[key].most_gpus), default=0)
            longest = max((work[key] for key in own), key=lambda stage: (stage.num_gpus > 0, stage.hours))
            found[cell] = PlannedStage(
                hours, num_gpus, tuple(sorted(shared)), limit and max(num_gpus, limit), longest.efficiency
            )
    return found


def chain_hours(work: Mapping[str, PlannedStage]) -> dict[str, float]:
    """Return the length of the longest chain that begins with each stage, in hours.

    Args:
        work: the stages by key. Inputs that are not among them are done.
    """
    consumers = _consumers(work)
    chains: dict[str, float] = {}
    for key in reversed(_in_order(work, consumers)):
        chains[key] = work[key].hours + max((chains[consumer] for consumer in consumers[key]), default=0.0)
    return chains


def num_waiting(work: Mapping[str, PlannedStage], cells: Iterable[Sequence[str]]) -> Counter[str]:
    """Return how many cells, given by their stages, wait for each stage that is not done."""
    return Counter(key for chain in cells for key in chain if key in work)


def longest_first(cells: Sequence[Sequence[str]], work: Mapping[str, PlannedStage]) -> list[int]:
    """Return the indices of cells in the order in which they should start.

    The longest remaining chain comes first. Of chains of equal length, the one whose first open stage more
    cells wait for comes first, and then the earlier cell.

    Args:
        cells: for each cell its stages, inputs before those that take them.
        work: the stages that are not done, by key. A stage without an estimate has 0 hours.
    """
    chains, waiting = chain_hours(work), num_waiting(work, cells)

    def rank(index: int) -> tuple[float, int, int]:
        todo = [key for key in cells[index] if key in work]
        return (
            -max((chains[key] for key in todo), default=0.0),
            -max((waiting[key] for key in todo[:1]), default=0),
            index,
        )

    return sorted(range(len(cells)), key=rank)


def lower_bound_hours(work: Mapping[str, PlannedStage], num_gpus: int) -> float:
    """Return the larger of GPU-hours / GPUs and the longest chain: no schedule is shorter."""
    return max(_gpu_hours(work) / num_gpus, max(chain_hours(work).values(), default=0.0))


def _gpu_hours(work: Mapping[str, PlannedStage]) -> float:
    return sum(stage.hours * stage.num_gpus for stage in work.values())


def moldable_lower_bound_hours(
    work: Mapping[str, PlannedStage],
    num_gpus: int,
    *,
    gpus_per_node: int,
    efficiency: float = EFFICIENCY_PER_DOUBLING,
) -> float:
    """Return a lower bound for stages that may have more GPUs: area at the fewest, chains at the fastest."""
    fastest = {key: choices(stage, gpus_per_node, efficiency)[-1] for key, stage in work.items()}
    return max(_gpu_hours(work) / num_gpus, max(chain_hours(fastest).values(), default=0.0))


def choices(
    stage: PlannedStage, gpus_per_node: int, efficiency: float = EFFICIENCY_PER_DOUBLING
) -> list[PlannedStage]:
    """Return the stage at its number of GPUs and at each doubling of it that fits in a node.

    A measured efficiency of the stage replaces the given one.
    """
    found, efficiency = [stage], stage.efficiency or efficiency
    most = min(gpus_per_node, stage.most_gpus or gpus_per_node)
    while stage.num_gpus and found[-1].num_gpus * 2 <= most:
        last = found[-1]
        found.append(last._replace(num_gpus=last.num_gpus * 2, hours=last.hours / (2 * efficiency)))
    return found


def mold(
    work: Mapping[str, PlannedStage],
    num_gpus: int,
    *,
    gpus_per_node: int,
    efficiency: float = EFFICIENCY_PER_DOUBLING,
    kept: Mapping[str, int] = {},
) -> dict[str, PlannedStage]:
    """Choose each stage's number of GPUs so that the whole takes the least time, by wrong estimates too.

    More GPUs make a stage faster but waste some of them. So only stages on the longest chains get more: their
    numbers are doubled, step by step, until the waste alone takes longer than the best plan. Of all plans on
    the way, the one with the least mean time is taken, over some ways in which estimates may be wrong. By
    exact estimates, a plan would be taken that the first long cell which takes longer spoils. Our choice,
    after Turek et al. 1992.

    Args:
        work: the stages, each at the fewest GPUs on which it fits.
        num_gpus: of the whole cluster.
        gpus_per_node: of one node; a stage runs within one.
        efficiency: see `EFFICIENCY_PER_DOUBLING`.
        kept: GPUs of stages whose number was chosen before and stays.
    """
    start, most = dict(work), min(gpus_per_node, num_gpus)
    for key in kept.keys() & work.keys():
        stage = choices(work[key], min(kept[key], most), efficiency)[-1]
        start[key] = stage._replace(most_gpus=stage.num_gpus)
    errors = _errors(work)

    def mean_hours(chosen: Mapping[str, PlannedStage]) -> float:
        order, total = chain_hours(chosen), 0.0
        for factors in errors:
            runs = {key: one._replace(hours=one.hours * factors[key]) for key, one in chosen.items()}
            total += makespan_hours(runs, num_gpus, gpus_per_node=gpus_per_node, order=order)
        return total / len(errors)

    rigid_hours = best_hours = mean_hours(start)
    best = chosen = start
    while wider := _doubled(chosen, most, efficiency):
        chosen = {**chosen, **wider}
        if _gpu_hours(chosen) / num_gpus >= best_hours:
            break
        hours = mean_hours(chosen)
        if hours < best_hours:
            best, best_hours = chosen, hours
    return best if best_hours <= rigid_hours * (1 - MIN_GAIN) else start


def _doubled(work: Mapping[str, PlannedStage], most: int, efficiency: float) -> dict[str, PlannedStage]:
    """Return the stages of the longest chains, and of those nearly as long, with twice as many GPUs."""
    chains, consumers = chain_hours(work), _consumers(work)
    before = dict.fromkeys(work, 0.0)
    for key in _in_order(work, consumers):
        for consumer in consumers[key]:
            before[consumer] = max(before[consumer], before[key] + work[key].hours)
    least_hours = NEARLY_LONGEST * max(chains.values(), default=0.0)
    longest = [key for key in work if least_hours and before[key] + chains[key] >= least_hours]
    return {key: more[1] for key in longest if len(more := choices(work[key], most, efficiency)) > 1}


def _errors(keys: Iterable[str]) -> list[dict[str, float]]:
    """Return factors by which estimates may be wrong, one for each stage, several times; first none is wrong.

    They are spread evenly over a log-normal distribution by multiples of irrational numbers, and so the same
    for all launches. A quasi-random sequence, see Roberts 2018 on R2.
    """
    names = list(keys)
    normal, found = NormalDist(0, USUAL_ERROR), [dict.fromkeys(names, 1.0)]
    for sample in range(NUM_SAMPLES if len(names) <= MANY_STAGES else 0):
        shares = (
            ((i + 1) * 0.7548776662466927 + (sample + 1) * 0.5698402909980532) % 1 for i in range(len(names))
        )
        factors = (math.exp(normal.inv_cdf(min(max(share, 1e-9), 1 - 1e-9))) for share in shares)
        found.append(dict(zip(names, factors, strict=True)))
    return found


def makespan_hours(
    work: Mapping[str, PlannedStage],
    num_gpus: int,
    *,
    gpus_per_node: int = 8,
    order: Mapping[str, float] | None = None,
) -> float:
    """Return when the last stage ends, if each starts as soon as its inputs are done and GPUs are free.

    Args:
        work: the stages by key.
        num_gpus: of the whole cluster.
        gpus_per_node: of one node; the last node may have fewer.
        order: the priority of each stage, the largest first; by default its chain's length.

    Raises:
        ValueError: a stage needs more GPUs than a node has.
    """
    order = chain_hours(work) if order is None else order
    # More nodes than stages are never in use.
    nodes = FreeGpus(min(num_gpus, gpus_per_node * len(work)), gpus_per_node)
    consumers, missing = _consumers(work), {key: sum(i in work for i in work[key].inputs) for key in work}
    # A heap for each number of GPUs: a stage that does not fit does not hold back smaller ones.
    ready: dict[int, list[tuple[float, int, str]]] = defaultdict(list)
    position = {key: number for number, key in enumerate(work)}
    for key, stage in work.items():
        if stage.num_gpus > nodes.largest:
            raise ValueError(f"a stage needs {stage.num_gpus} GPUs, and a node has {nodes.largest}")
        if not missing[key]:
            heapq.heappush(ready[stage.num_gpus], (-order[key], position[key], key))
    ends: list[tuple[float, int, str, int]] = []
    now = 0.0
    while True:
        # A stage that takes no time is over before others start: of the cells that it makes ready at this
        # moment, the longest must come first.
        while ends and ends[0][0] <= now:
            _, _, key, node = heapq.heappop(ends)
            nodes.free(node, work[key].num_gpus)
            for consumer in consumers[key]:
                missing[consumer] -= 1
                if not missing[consumer]:
                    heapq.heappush(
                        ready[work[consumer].num_gpus], (-order[consumer], position[consumer], consumer)
                    )
        if (best := _first_that_fits(ready, nodes)) is not None:
            _, place, key = heapq.heappop(ready[best])
            heapq.heappush(ends, (now + work[key].hours, place, key, nodes.take(best)))
        elif ends:
            now = ends[0][0]
        else:
            return now


class FreeGpus:
    """The free GPUs of each node. A stage goes to the node with the fewest that suffice (best fit)."""

    def __init__(self, num_gpus: int, per_node: int) -> None:
        full, rest = divmod(num_gpus, per_node)
        self._free = [per_node] * full + ([rest] if rest else [])
        self.largest = max(self._free, default=0)
        # Nodes by their number of free GPUs: a cluster of a thousand nodes is searched in a few steps.
        self._by_free: list[set[int]] = [set() for _ in range(self.largest + 1)]
        for node, free in enumerate(self._free):
            self._by_free[free].add(node)

    def fits(self, num_gpus: int) -> bool:
        """Return whether some node has as many free GPUs."""
        return not num_gpus or any(self._by_free[num_gpus:])

    def take(self, num_gpus: int) -> int:
        """Take GPUs of one node, and return the node; -1 for a stage that needs none."""
        if not num_gpus:
            return -1
        node = min(next(nodes for nodes in self._by_free[num_gpus:] if nodes))
        self._change(node, -num_gpus)
        return node

    def free(self, node: int, num_gpus: int) -> None:
        """Give GPUs of a node back."""
        if node >= 0:
            self._change(node, num_gpus)

    def take_out(self, node: int) -> int:
        """Take all free GPUs of a node, so that nothing starts there; return their number."""
        number = self._free[node]
        self._change(node, -number)
        return number

    def _change(self, node: int, by: int) -> None:
        self._by_free[self._free[node]].discard(node)
        self._free[node] += by
        self._by_free[self._free[node]].add(node)


def _first_that_fits(ready: Mapping[int, list[tuple[float, int, str]]], nodes: FreeGpus) -> int | None:
    """Return the number of GPUs of the first ready stage for which GPUs are free; None if there is none."""
    if ready.get(0):
        return 0
    fitting = [(heap[0], num_gpus) for num_gpus, heap in ready.items() if heap and nodes.fits(num_gpus)]
    return min(fitting)[1] if fitting else None


def _consumers(work: Mapping[str, PlannedStage]) -> dict[str, list[str]]:
    """Return, for each stage, the stages that take its product."""
    consumers: dict[str, list[str]] = {key: [] for key in work}
    for key, stage in work.items():
        for taken in stage.inputs:
            if taken in consumers:
                consumers[taken].append(key)
    return consumers


def _in_order(work: Mapping[str, PlannedStage], consumers: Mapping[str, Sequence[str]]) -> list[str]:
    """Return the keys with inputs before those that take them.

    Raises:
        ValueError: stages wait for each other in a circle.
    """
    missing = {key: sum(taken in work for taken in stage.inputs) for key, stage in work.items()}
    found = [key for key, number in missing.items() if not number]
    for key in found:
        for consumer in consumers[key]:
            missing[consumer] -= 1
            if not missing[consumer]:
                found.append(consumer)
    if len(found) < len(work):
        raise ValueError("stages wait for each other in a circle")
    return found


def wrong_by(hours: float, error: float, normal: float) -> float:
    """Return a duration that its estimate misses: estimate x exp(error x N(0, 1)).

    Args:
        hours: the estimate.
        error: the standard deviation of the logarithm; 0.3 is an estimate that is wrong by 30 %.
        normal: a value drawn from the standard normal distribution.
    """
    return hours * math.exp(error * normal)
