"""Decisions on stages: what a launch would do with each, and which one a worker may claim next. Pure."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import NamedTuple

from orchestrator.core.evidence import NO_HOLDS, Budget, Holds
from orchestrator.core.failure import DETERMINISTIC
from orchestrator.core.records import Done, Request
from orchestrator.core.settings import Retention
from orchestrator.core.state import NO_GATES, STARTABLE, CellStatus, Gates, StageStatus, State, gate_holds
from orchestrator.core.sweep import Cell, StageInstance
from orchestrator.manifest import File


class Action(StrEnum):
    """What a launch would do with a stage."""

    RUN = "run"
    RESUME = "resume"
    REUSE = "reuse"
    WAIT = "wait"
    LEAVE = "leave"


class Step(NamedTuple):
    """The planned action for one stage, and its reason."""

    action: Action
    reason: str


def decide(cell: Cell, status: CellStatus) -> dict[str, Step]:
    """Return what a launch would do with each stage of a cell, by digest, with the reason.

    A launch revokes a cancel and gives a fresh budget to causes that may not recur. Failures of config, data
    and code would recur, so they are left to `sweep rerun`.

    Args:
        cell: the cell.
        status: its state and those of its stages.
    """
    steps: dict[str, Step] = {}
    for digest in cell.stage_digests:
        stage = status.stages[digest]
        match stage.state:
            case State.DONE:
                steps[digest] = Step(Action.REUSE, "its product exists")
            case State.RUNNING | State.QUEUED | State.UNKNOWN:
                steps[digest] = Step(Action.WAIT, stage.reason)
            case State.FAILED if stage.cause in DETERMINISTIC:
                steps[digest] = Step(Action.LEAVE, f"{stage.reason}; mend it, then `sweep rerun`")
            case State.FAILED:
                steps[digest] = Step(Action.RUN, f"a fresh budget: {stage.reason}")
            case State.BLOCKED:
                steps[digest] = Step(Action.LEAVE, stage.reason)
            case State.RELEASED | State.LOST:
                steps[digest] = Step(Action.RESUME, stage.reason)
            case _:
                steps[digest] = Step(Action.RUN, stage.reason)
    return steps


class Claimable(NamedTuple):
    """A stage that may be claimed now, and the cell on whose behalf."""

    cell: Cell
    instance: StageInstance


class Scan(NamedTuple):
    """The result of a worker's search: a stage to claim, or whether to wait.

    Attributes:
        claimable: a stage that may be claimed now, or None.
        waiting: whether a stage is claimable, running, or held for a while, so that more stages may become
            claimable.
    """

    claimable: Claimable | None
    waiting: bool


def next_stage(
    cells: Sequence[Cell],
    instances: Mapping[str, StageInstance],
    status_of: Callable[[str], StageStatus],
    *,
    cancelled: frozenset[str],
    holds: Holds = NO_HOLDS,
    gates: Gates = NO_GATES,
) -> Scan:
    """Return the first stage that may be claimed.

    A stage is claimable if it is not done, has no live attempt, has budget left and is not held. Its inputs
    must be done and have their files. A stage that starts from its earlier version's product needs no files
    of inputs.

    Args:
        cells: in the order in which this worker tries them.
        instances: digest to stage instance.
        status_of: returns a stage's own state by digest; called once for each digest.
        cancelled: ids of cells to skip.
        holds: what is held back in the sweep.
        gates: of the launch; they come first. `holds` keeps stages from starting before them.
    """
    for found in _look(cells, instances, status_of, cancelled, holds, gates):
        if isinstance(found, Claimable):
            return Scan(found, True)
        return Scan(None, found)
    return Scan(None, False)


class Scanner:
    """Repeated searches of a worker for a stage to claim.

    Cells that were done at an earlier search are tried last. They lie at the front once the longest cells
    have run, and reading their records again costs time, in a bucket requests. A product that was voided
    since is noticed when nothing else is left to claim.

    Attributes:
        cells: in the order in which the worker tries them.
        gates: of the launch.

    Args:
        cells: in that order.
        instances: digest to stage instance, gates included.
        gates: of the launch.
    """

    def __init__(
        self, cells: Sequence[Cell], instances: Mapping[str, StageInstance], gates: Gates = NO_GATES
    ) -> None:
        self.cells = cells
        self._instances = instances
        self.gates = gates
        self._done: set[str] = set()

    def next_stage(
        self,
        status_of: Callable[[str], StageStatus],
        *,
        cancelled: frozenset[str],
        holds: Holds = NO_HOLDS,
    ) -> Scan:
        """Return the next stage that may be claimed; see the function of this name for the arguments."""
        found: dict[str, StageStatus] = {}

        def remembered(digest: str) -> StageStatus:
            found[digest] = found[digest] if digest in found else status_of(digest)
            return found[digest]

        rest = [cell for cell in self.cells if cell.id not in self._done]
        for cells in (rest, self.cells):
            scan = next_stage(
                cells, self._instances, remembered, cancelled=cancelled, holds=holds, gates=self.gates
            )
            if scan.claimable is not None or len(rest) == len(self.cells):
                break
        done = {digest for digest, status in found.items() if status.state is State.DONE}
        self._done.update(cell.id for cell in rest if done.issuperset(cell.stage_digests))
        return scan

    def wants(self, digest: str, cancelled: Collection[str]) -> bool:
        """Return whether a cell that is not cancelled needs a stage."""
        return any(digest in self._needed(cell) for cell in self.cells if cell.id not in cancelled)

    def drop(self, digest: str) -> None:
        """Look no more at the cells that need a stage."""
        self.cells = tuple(cell for cell in self.cells if digest not in self._needed(cell))

    def digests(self) -> set[str]:
        """Return the digests of all stages that are looked at."""
        return {digest for cell in self.cells for digest in self._needed(cell)}

    def _needed(self, cell: Cell) -> tuple[str, ...]:
        return (*self.gates.before(cell.id), *cell.stage_digests)


def num_claimable(
    cells: Sequence[Cell],
    instances: Mapping[str, StageInstance],
    status_of: Callable[[str], StageStatus],
    *,
    cancelled: frozenset[str],
    holds: Holds = NO_HOLDS,
    gates: Gates = NO_GATES,
) -> tuple[int, bool]:
    """Return the number of stages that may be claimed now, and whether there is a reason to wait.

    The second value is true if a stage is claimable, running, or held for a while: others may become
    claimable after it.

    Args:
        cells: in the order in which a worker tries them.
        instances: digest to stage instance.
        status_of: returns a stage's own state by digest; called once for each digest.
        cancelled: ids of cells to skip.
        holds: what is held back in the sweep.
        gates: of the launch.
    """
    found = list(_look(cells, instances, status_of, cancelled, holds, gates))
    digests = {each.instance.digest for each in found if isinstance(each, Claimable)}
    return len(digests), bool(digests) or any(each is True for each in found)


def _look(
    cells: Sequence[Cell],
    instances: Mapping[str, StageInstance],
    status_of: Callable[[str], StageStatus],
    cancelled: frozenset[str],
    holds: Holds,
    gates: Gates,
) -> Iterator[Claimable | bool]:
    """Yield each claimable stage, and at the end whether to wait for one that runs or is held for a while."""
    seen: dict[str, StageStatus] = {}
    waiting = False

    def known(digest: str) -> StageStatus:
        # Reading a state costs file or network access, and cells share stages.
        if digest not in seen:
            seen[digest] = status_of(digest)
        return seen[digest]

    wanted = [cell for cell in cells if cell.id not in cancelled]
    gated = gate_holds(wanted, gates, instances, known)
    for cell in wanted:
        for digest in (*gates.before(cell.id), *cell.stage_digests):
            status, inputs = known(digest), [known(taken.digest) for taken in instances[digest].inputs]
            is_there = all(i.state is State.DONE and (not i.retired or status.going_on) for i in inputs)
            if status.state is State.RUNNING:
                waiting = True
            elif status.state in STARTABLE and is_there:
                if (hold := holds.of(cell.id, digest) or gated.get(digest)) is None:
                    yield Claimable(cell, instances[digest])
                elif not hold.is_final:
                    waiting = True
    yield waiting


class RequestSummary(NamedTuple):
    """The combined effect of all requests for a sweep.

    Attributes:
        cancelled: ids of cells whose latest launch, rerun or cancel was a cancel.
        after: digest to attempt number. Failures up to this attempt no longer count, after a rerun or
            discard.
        after_chance: digest to attempt number. Up to this attempt only deterministic failures count, after a
            launch.
        revision: of the last launch or rerun; 0 if there was none.
        asked: cell id to the number of the last launch or rerun that named the cell.
    """

    cancelled: frozenset[str]
    after: Mapping[str, int]
    after_chance: Mapping[str, int]
    revision: int = 0
    asked: Mapping[str, int] = {}

    def budget(self, digest: str, retries: Mapping[str, int]) -> Budget:
        """Return the budget against which a stage's failures count.

        Args:
            digest: of the stage.
            retries: cause to the number of retries, from the policy.
        """
        return Budget(retries, self.after.get(digest, 0), self.after_chance.get(digest, 0))


def summarize_requests(requests: Iterable[Request], cells: Collection[str]) -> RequestSummary:
    """Return the combined effect of requests. Repeating a request changes nothing (it is idempotent).

    Example: attempts 1 and 2 of a stage failed, and the budget of their cause is spent.

        launch {stage: 2}    attempts 1 and 2 count only if their cause is deterministic
        rerun {stage: 2}     attempts 1 and 2 do not count at all

    Args:
        requests: of one sweep, in the order of their numbers.
        cells: the ids of all cells, for requests without a list of cells.
    """
    cancelled: set[str] = set()
    after: dict[str, int] = {}
    after_chance: dict[str, int] = {}
    asked: dict[str, int] = {}
    revision = 0
    for request in requests:
        named = cells if request.cells is None else request.cells
        if request.verb in ("launch", "rerun"):
            revision = request.revision
            asked.update(dict.fromkeys(named, request.number))
        match request.verb:
            case "cancel":
                cancelled.update(named)
            case "launch":
                cancelled.difference_update(named)
                _raise(after_chance, request.after)
            case "rerun":
                cancelled.difference_update(named)
                _raise(after, request.after)
            case "discard":
                # A discard revokes no cancel: a cell stays cancelled until its next launch or rerun.
                _raise(after, request.after)
    return RequestSummary(frozenset(cancelled), after, after_chance, revision, asked)


# A boundary never moves back: two commands may run at once, and the later one may have read less.
def _raise(boundaries: dict[str, int], to: Mapping[str, int]) -> None:
    for digest, number in to.items():
        boundaries[digest] = max(number, boundaries.get(digest, 0))


def removable_files(product: Done, consumers: Collection[Done], policy: Retention) -> tuple[File, ...]:
    """Return the files of a product that no stage made from it needs any more.

    Each consumer lists in its `Done` record which of the product's files are worth keeping, per policy. A
    file is removable only if every consumer has listed its choice and none of them keeps the file:

        product of train:   model.safetensors, optimizer.pt, log.txt
        evaluate keeps:     model.*
        report keeps:       log.txt
        removable:          optimizer.pt

    A consumer without a choice for this policy keeps everything. So does one that was made from another
    generation of the product, because it may have to run again. Without consumers nothing is removable.

    Args:
        product: the product whose files are considered.
        consumers: the `Done` records of all stages that consume it.
        policy: the retention policy in force.
    """
    if policy == "all" or not consumers:
        return ()
    kept: set[str] = set()
    for consumer in consumers:
        patterns = consumer.retire.get(product.stage, {}).get(policy)
        if patterns is None or consumer.inputs.get(product.digest) != product.generation:
            return ()
        # In these patterns "*" also matches "/", on every platform.
        kept.update(file.path for file in product.files if any(fnmatchcase(file.path, p) for p in patterns))
    return tuple(file for file in product.files if file.path not in kept)
