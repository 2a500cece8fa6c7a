"""What a launch would do with each stage, and which stage a worker may claim next. Pure."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from enum import StrEnum
from typing import NamedTuple

from orchestrator.core.failure import DETERMINISTIC
from orchestrator.core.records import Request
from orchestrator.core.state import Budget, CellStatus, StageStatus, State
from orchestrator.core.sweep import Cell, StageInstance


class Action(StrEnum):
    """What a launch would do with a stage."""

    RUN = "run"
    RESUME = "resume"
    REUSE = "reuse"
    WAIT = "wait"
    LEAVE = "leave"


class Step(NamedTuple):
    """One line of a plan."""

    action: Action
    reason: str


_STARTABLE = frozenset({State.PENDING, State.RELEASED, State.LOST})


def decide(cell: Cell, status: CellStatus) -> dict[str, Step]:
    """Tells by digest what a launch would do with the stages of a cell, with the reason.

    A launch lifts a cancel and gives a fresh budget to causes that chance may cure; failures of config,
    data and code are left to `rerun`.
    """
    steps: dict[str, Step] = {}
    for digest in cell.chain:
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
    node: StageInstance


class Scan(NamedTuple):
    """What a worker sees: something to claim, or whether it is worth waiting for others."""

    claimable: Claimable | None
    waiting: bool


def next_stage(
    cells: Sequence[Cell],
    nodes: Mapping[str, StageInstance],
    status_of: Callable[[str], StageStatus],
    *,
    cancelled: frozenset[str],
) -> Scan:
    """Finds the first claimable stage: not done, inputs done and whole, no live attempt, budget not spent.

    Args:
        cells: in the order in which this worker goes through them.
        nodes: digest to stage instance.
        status_of: gives a stage's own state by digest; asked once a digest.
        cancelled: ids of cells to pass over.
    """
    for found in _look(cells, nodes, status_of, cancelled):
        if isinstance(found, Claimable):
            return Scan(found, True)
        return Scan(None, found)
    return Scan(None, False)


def num_claimable(
    cells: Sequence[Cell],
    nodes: Mapping[str, StageInstance],
    status_of: Callable[[str], StageStatus],
    *,
    cancelled: frozenset[str],
) -> tuple[int, bool]:
    """Counts the stages that could be claimed now, and says whether others may become so later.

    The arguments are those of `next_stage`.
    """
    found = list(_look(cells, nodes, status_of, cancelled))
    digests = {each.node.digest for each in found if isinstance(each, Claimable)}
    return len(digests), bool(digests) or any(each is True for each in found)


def _look(
    cells: Sequence[Cell],
    nodes: Mapping[str, StageInstance],
    status_of: Callable[[str], StageStatus],
    cancelled: frozenset[str],
) -> Iterator[Claimable | bool]:
    """Yields what may be claimed, and at the end whether a stage is running."""
    seen: dict[str, StageStatus] = {}
    waiting = False
    for cell in cells:
        if cell.cell in cancelled:
            continue
        for digest in cell.chain:
            if digest not in seen:
                seen[digest] = status_of(digest)
            status, inputs = seen[digest], [seen[taken.digest] for taken in nodes[digest].inputs]
            is_there = all(i.state is State.DONE and (not i.retired or status.going_on) for i in inputs)
            if status.state is State.RUNNING:
                waiting = True
            elif status.state in _STARTABLE and is_there:
                yield Claimable(cell, nodes[digest])
    yield waiting


class RequestSummary(NamedTuple):
    """The requests, folded.

    Attributes:
        cancelled: cells whose last word was a cancel.
        after: digest to the attempt up to which no failure counts (a rerun was asked).
        after_chance: the same for a launch, after which only deterministic failures count.
        revision: of the last launch or rerun; 0 when there was none.
        asked: cell to the number of the last launch or rerun that named it.
    """

    cancelled: frozenset[str]
    after: Mapping[str, int]
    after_chance: Mapping[str, int]
    revision: int = 0
    asked: Mapping[str, int] = {}

    def budget(self, digest: str, retries: Mapping[str, int]) -> Budget:
        """Returns what a stage's failures are counted against."""
        return Budget(retries, self.after.get(digest, 0), self.after_chance.get(digest, 0))


def summarize_requests(requests: Iterable[Request], cells: Collection[str]) -> RequestSummary:
    """Folds requests, oldest first; equal requests change nothing the second time.

    Args:
        requests: of one sweep, in the order of their numbers.
        cells: the ids that a request without a list of cells speaks of.
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
                _raise(after, request.after)
    return RequestSummary(frozenset(cancelled), after, after_chance, revision, asked)


def _raise(boundaries: dict[str, int], to: Mapping[str, int]) -> None:
    for digest, number in to.items():
        boundaries[digest] = max(number, boundaries.get(digest, 0))
