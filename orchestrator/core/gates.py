"""The gates of a launch: which stages rehearse for others before these may start. Pure.

A gate is a stage like others, claimed, run and recorded as they are. But it is part of no cell's chain, and
enters no digest of the stages that wait for it. What it stands for is known at a launch only: the code, the
packages and the hardware are part of its own digest. So other code has it run again, and retrains nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from msgspec.structs import replace

from orchestrator.core.evidence import Hold, Holds
from orchestrator.core.identity import canonical, hashed_of, reads_of, stage_digest, target_of
from orchestrator.core.records import Request
from orchestrator.core.state import STARTABLE, StageStatus, State
from orchestrator.core.sweep import Cell, ComposedSweep, GateFacts, Input, StageInstance, gates_among


class Gate(NamedTuple):
    """A gate of a cell.

    Attributes:
        digest: of the gate, a stage instance.
        stages: digests of the cell's stages that may start only when the gate is done.
    """

    digest: str
    stages: tuple[str, ...]


class Gates(NamedTuple):
    """The gates of launches. They are stage instances like others, but part of no cell's chain.

    Attributes:
        instances: digest to stage instance.
        chains: digest of a gate to the stages that are needed for it, inputs first and itself last.
        cells: id of a cell to its gates.
        are_first: whether stages with gates wait while any gate of the launch runs. Otherwise cells whose
            gate ends early take all workers, and longer cells start late. A job of a scheduler starts in its
            turn and waits for its own gate alone.
    """

    instances: Mapping[str, StageInstance] = {}
    chains: Mapping[str, tuple[str, ...]] = {}
    cells: Mapping[str, tuple[Gate, ...]] = {}
    are_first: bool = False

    def chain(self, cell: Cell) -> tuple[str, ...]:
        """Return the digests of all stages that a cell needs: those for its gates, then its own."""
        before = (digest for gate in self.cells.get(cell.id, ()) for digest in self.chains[gate.digest])
        return (*before, *cell.stage_digests)


NO_GATES = Gates()


def gates_of(sweep: ComposedSweep, facts: GateFacts | None, named: Collection[str] | None = None) -> Gates:
    """Return the gates of a launch, a function of the sealed sweep and of what the launch recorded.

    A gate has one instance for each class: the cells that agree on all that it reads. It takes the inputs of
    all cells of the class. So it sees all rows on which these cells will train::

        cell en       prepare[en]                train     class of both: the gate takes prepare[en] and
        cell en+es    prepare[en] prepare[es]    train     prepare[es], and reads code, packages and GPUs

    Args:
        sweep: the sealed sweep.
        facts: as recorded; None for a launch without gates.
        named: ids of the cells of the launch; None for all.
    """
    if facts is None:
        return NO_GATES
    instances, chains = dict[str, StageInstance](), dict[str, tuple[str, ...]]()
    cells: dict[str, list[Gate]] = {}
    wanted = [cell for cell in sweep.cells if named is None or cell.id in named]
    for name in gates_among(sweep.specs):
        for group in _classes(sweep, name, wanted):
            instance = group.instance(sweep, name, facts)
            if instance.digest in facts.left_out:
                continue
            instances[instance.digest] = instance
            chains[instance.digest] = _with_inputs(instance, sweep.stages)
            for cell, stages in group.cells:
                cells.setdefault(cell.id, []).append(Gate(instance.digest, stages))
    return Gates(instances, chains, {cell: tuple(found) for cell, found in cells.items()})


def gates_of_requests(
    sweep: ComposedSweep, number: int, requests: Iterable[Request], asked: Mapping[str, int]
) -> Gates:
    """Return the gates of each cell under the launch or rerun that named it last.

    Args:
        sweep: the sealed sweep.
        number: of its revision. Requests for other revisions had other cells.
        requests: of the sweep.
        asked: id of a cell to the number of that request.
    """
    instances, chains = dict[str, StageInstance](), dict[str, tuple[str, ...]]()
    cells: dict[str, tuple[Gate, ...]] = {}
    for request in requests if gates_among(sweep.specs) else ():
        if request.gates is None or request.revision != number:
            continue
        of_launch = gates_of(sweep, request.gates, request.cells)
        cells |= {cell: each for cell, each in of_launch.cells.items() if asked[cell] == request.number}
        instances |= of_launch.instances
        chains |= of_launch.chains
    return Gates(instances, chains, cells)


def with_gates(sweep: ComposedSweep, gates: Gates) -> ComposedSweep:
    """Return a sweep with its gates among its stages. The chains of its cells are as they were."""
    return replace(sweep, stages={**sweep.stages, **gates.instances}) if gates.instances else sweep


MAX_SHARE = 0.02
"""Most time of a gate under ``policy.rehearse: auto``, as a share of what the waiting stages take; ours.

In public traces, jobs that fail hold 8 to 39 % of the GPU time. So a gate at this price pays if it prevents a
quarter of the least of that.
"""


def too_dear(gates: Gates, hours: Mapping[str, float], is_done: Callable[[str], bool]) -> dict[str, str]:
    """Return the gates that would cost more than they may save, by estimate, each with the reason.

    Args:
        gates: that a launch would have.
        hours: digest of a stage to the hours that it holds a device. Without those of a gate, or of all that
            waits for it, the gate stays.
        is_done: returns whether a stage is done.
    """
    waiting: dict[str, set[str]] = {}
    for gate in (gate for of_cell in gates.cells.values() for gate in of_cell):
        waiting.setdefault(gate.digest, set()).update(d for d in gate.stages if not is_done(d))
    found: dict[str, str] = {}
    for digest, stages in waiting.items():
        if stages and digest in hours and hours.keys() >= stages:
            worth = sum(hours[stage] for stage in stages)
            if hours[digest] > MAX_SHARE * worth:
                spent, saved = 3600 * hours[digest], 3600 * worth
                found[digest] = f"it would take {spent:.0f} s for stages of {saved:.0f} s"
    return found


def is_given_up(gate: str, gates: Gates, holds: Holds) -> bool:
    """Return whether all cells for which a gate stands are held for good, so that it need not go on.

    Args:
        gate: its digest.
        gates: of the launch.
        holds: what is held back in the sweep.
    """
    cells = [cell for cell, found in gates.cells.items() if any(each.digest == gate for each in found)]
    held = (holds.cells.get(cell) for cell in cells)
    return bool(cells) and all(hold is not None and hold.is_final for hold in held)


LATE, LATE_S = 1.25, 60.0
"""How much longer than estimated a scheduler's jobs wait for gates: the factor, and seconds more; ours."""


class GateJobs(NamedTuple):
    """Jobs of a scheduler that run gates, and jobs that would only wait for these.

    Attributes:
        first: ids of the cells whose jobs run gates.
        later: ids of the cells whose jobs start later, so that they hold no GPUs meanwhile.
        seconds: how much later than the former.
    """

    first: frozenset[str] = frozenset()
    later: frozenset[str] = frozenset()
    seconds: float = 0.0

    def tasks(self, jobs: Iterable[tuple[str, Sequence[Collection[str]]]]) -> tuple[str, ...]:
        """Return the tasks that run gates, such as ``12_0``, given each job's id and its tasks' cells."""
        return tuple(
            f"{job}_{index}"
            for job, tasks in jobs
            for index, cells in enumerate(tasks)
            if self.first.intersection(cells)
        )


def gate_jobs(
    cells: Iterable[Cell], gates: Gates, stages: Mapping[str, StageStatus], hours: Mapping[str, float]
) -> GateJobs:
    """Return which cells' jobs run the gates of a launch, and which jobs start later.

    The first cell of each class runs its gate, and goes on with its own stages. Jobs of other cells would
    hold their GPUs and wait. If it is not known how long a gate takes, they do.

    Args:
        cells: that get a job, in the order in which they start.
        gates: of the launch.
        stages: digest of a stage to its own state.
        hours: digest of a stage to its estimated hours.
    """
    first, later, begun = set[str](), set[str](), set[str]()
    for cell in cells:
        waits = {g.digest for g in gates.cells.get(cell.id, ()) if stages[g.digest].state in STARTABLE}
        if waits - begun:
            first.add(cell.id)
            begun |= waits
        elif waits:
            later.add(cell.id)
    if not later or not begun <= hours.keys():
        return GateJobs()
    longest_s = 3600 * max(hours[digest] for digest in begun)
    return GateJobs(frozenset(first), frozenset(later), LATE * longest_s + LATE_S)


def stands_for(gate: StageInstance, other: StageInstance) -> bool:
    """Return whether a gate that is done makes another one needless: the same class, and all its inputs."""
    return (
        gate.digest != other.digest
        and (gate.stage, gate.reads) == (other.stage, other.reads)
        and set(other.inputs) <= set(gate.inputs)
    )


class _Class:
    """The cells of a launch for which one instance of a gate stands.

    Args:
        reads: what the gate reads of the config of each of them.

    Attributes:
        cells: each with the digests of the stages that the gate holds back in it.
        inputs: the products that the gate takes, by stage and label.
    """

    def __init__(self, reads: dict[str, Any]) -> None:
        self.cells: list[tuple[Cell, tuple[str, ...]]] = []
        self.inputs: dict[tuple[str, str], Input] = {}
        self._reads = reads

    def add(self, cell: Cell, stages: tuple[str, ...], inputs: Mapping[tuple[str, str], Input]) -> bool:
        """Add a cell, unless it takes another product of a name that the class takes already."""
        if any(self.inputs.get(name, taken) != taken for name, taken in inputs.items()):
            return False
        self.cells.append((cell, stages))
        self.inputs.update(inputs)
        return True

    def instance(self, sweep: ComposedSweep, name: str, facts: GateFacts) -> StageInstance:
        """Return the gate's instance. Its label names the axes on which the class agrees."""
        spec, axes = sweep.specs[name], self.cells[0][0].axes
        labels = [
            label
            for axis, label in axes.items()
            if all(cell.axes[axis] == label for cell, _ in self.cells)
            and any(cell.axes[axis] != label for cell in sweep.cells)
        ]
        places = {stage: place for place, stage in enumerate(spec.after)}
        inputs = sorted(self.inputs.values(), key=lambda taken: (places[taken.stage], taken.label))
        launch = {
            "code": facts.code,
            "packages": facts.packages,
            "device": facts.device,
            "num_gpus": facts.num_gpus,
        }
        hashed = {**hashed_of(spec, self._reads), "launch": launch}
        return StageInstance(
            stage=name,
            label=".".join(filter(None, labels)),
            digest=stage_digest(target_of(spec), spec.version, hashed, inputs),
            reads={**self._reads, "launch": launch},
            inputs=tuple(inputs),
        )


def _classes(sweep: ComposedSweep, name: str, cells: Iterable[Cell]) -> Iterator[_Class]:
    """Yield the classes of a gate, in the order of the sweep."""
    spec, found = sweep.specs[name], dict[str, list[_Class]]()
    for cell in cells:
        chain = [sweep.stages[digest] for digest in cell.stage_digests]
        stages = tuple(each.digest for each in chain if name in sweep.specs[each.stage].gated_by)
        if not stages:
            continue
        inputs = {
            (each.stage, each.label): Input(each.stage, each.label, each.digest)
            for each in chain
            if each.stage in spec.after
        }
        reads = reads_of(spec, cell.config)
        alike = found.setdefault(canonical(hashed_of(spec, reads)), [])
        if not any(group.add(cell, stages, inputs) for group in alike):
            alike.append(_Class(reads))
            alike[-1].add(cell, stages, inputs)
    yield from (group for alike in found.values() for group in alike)


def _with_inputs(instance: StageInstance, stages: Mapping[str, StageInstance]) -> tuple[str, ...]:
    """Return the digests of all that a stage is made from, inputs first, and its own."""
    chain = (d for taken in instance.inputs for d in _with_inputs(stages[taken.digest], stages))
    return (*dict.fromkeys(chain), instance.digest)


class GateRule:
    """Which stages wait for their gates, and which gates are needed.

    Args:
        cells: whose stages are wanted.
        gates: of the launch.

    Attributes:
        waiting: digest of a stage to the stages whose readiness follows from its state, beside those that
            take its product.
    """

    def __init__(self, cells: Iterable[Cell], gates: Gates) -> None:
        self._gates = gates
        self._gated: dict[str, list[tuple[Cell, Gate]]] = {}
        self._stages: dict[str, dict[str, None]] = {}
        self.waiting: dict[str, dict[str, None]] = {}
        for cell in cells if gates.cells else ():
            for gate in gates.cells.get(cell.id, ()):
                for digest in gate.stages:
                    self._gated.setdefault(digest, []).append((cell, gate))
                    self._stages.setdefault(gate.digest, {})[digest] = None
                    self.waiting.setdefault(digest, {})[gate.digest] = None
                    for needed in gates.chains[gate.digest]:
                        self.waiting.setdefault(needed, {})[digest] = None

    def after(self, digest: str) -> Iterable[str]:
        """Return the stages that wait while a gate runs, whatever their own gates are."""
        return self._gated if self._gates.are_first and digest in self._gates.instances else ()

    def holds(self, status_of: Callable[[str], StageStatus]) -> dict[str, Hold]:
        """Return the holds of all stages by digest; see `hold` for the argument."""
        digests = (*self._gated, *self._stages)
        return {each: hold for each in digests if (hold := self.hold(each, status_of)) is not None}

    def hold(
        self, digest: str, status_of: Callable[[str], StageStatus], is_wanted: Callable[[str], bool] = bool
    ) -> Hold | None:
        """Return the hold of a stage by its gates in all cells, or of a gate for which no stage waits.

        Args:
            digest: of the stage.
            status_of: returns a stage's own state by digest.
            is_wanted: returns whether a stage could start for a cell once its gate is done; by default yes.
        """
        if stages := self._stages.get(digest):
            is_needed = any(is_wanted(stage) and status_of(stage).state in STARTABLE for stage in stages)
            return None if is_needed else Hold("no stage waits for it")
        of_cells: dict[str, Hold | None] = {}
        for cell, gate in self._gated.get(digest, ()):
            of_cells[cell.id] = max(of_cells.get(cell.id), self._of_cell(cell, gate, status_of), key=_weight)
        found = min(of_cells.values(), key=_weight, default=None)
        for other in self._gates.instances if of_cells and found is None and self._gates.are_first else ():
            if status_of(other).state is State.RUNNING:
                return Hold("waits for a gate of other cells, which runs", is_final=False)
        return found

    def _of_cell(self, cell: Cell, gate: Gate, status_of: Callable[[str], StageStatus]) -> Hold | None:
        """Return what a gate means for the stages of a cell; None if they may start."""
        name, status = self._gates.instances[gate.digest].name, status_of(gate.digest)
        if status.state is State.DONE:
            return None
        if status.state in (State.FAILED, State.UNKNOWN):
            return Hold(f"its gate {name} is {status.state}: {status.reason}", cause=status.cause)
        for digest in self._gates.chains[gate.digest][:-1]:
            taken = status_of(digest)
            if taken.state in (State.FAILED, State.UNKNOWN) or taken.retired:
                # The gate cannot run. A cell that takes nothing of this input is not held up for it.
                if digest not in cell.stage_digests or taken.retired:
                    return None
                return Hold(f"its gate {name} lacks an input: {taken.reason}", cause=taken.cause)
        return Hold(f"waits for its gate {name}: {status.reason}", is_final=False)


def _weight(hold: Hold | None) -> int:
    return 0 if hold is None else 2 if hold.is_final else 1
