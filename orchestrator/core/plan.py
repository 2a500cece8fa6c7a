"""Decisions on stages: what a launch would do with each, and which one a worker may claim next. Pure."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from enum import StrEnum
from typing import NamedTuple

from orchestrator.core.evidence import NO_HOLDS, Budget, Holds
from orchestrator.core.failure import DETERMINISTIC
from orchestrator.core.gates import NO_GATES, GateRule, Gates
from orchestrator.core.records import Request
from orchestrator.core.settings import SpendingLimit
from orchestrator.core.state import STARTABLE, CellStatus, StageStatus, State
from orchestrator.core.sweep import Cell, StageInstance


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


def is_claimable(status: StageStatus, inputs: Iterable[StageStatus]) -> bool:
    """Return whether a stage may be claimed, if nothing holds it back: rule 3 for one stage.

    It must not be done, have no live attempt and have budget left. Its inputs must be done and have their
    files. A stage that starts from its earlier version's product needs no files of inputs.

    Args:
        status: the stage's own state.
        inputs: those of its inputs.
    """
    return status.state in STARTABLE and all(
        taken.state is State.DONE and (not taken.retired or bool(status.going_on)) for taken in inputs
    )


def next_stage(
    cells: Sequence[Cell],
    instances: Mapping[str, StageInstance],
    status_of: Callable[[str], StageStatus],
    *,
    cancelled: frozenset[str],
    holds: Holds = NO_HOLDS,
    gates: Gates = NO_GATES,
) -> Scan:
    """Return the first stage that may be claimed and is not held.

    Args:
        cells: in the order in which this worker tries them.
        instances: digest to stage instance, gates included.
        status_of: returns a stage's own state by digest; called once for each digest.
        cancelled: ids of cells to skip.
        holds: what is held back in the sweep.
        gates: of the launch.
    """
    return ReadyIndex(cells, instances, gates).next_stage(status_of, cancelled=cancelled, holds=holds)


class _Slot(NamedTuple):
    """Where a stage stands in the order.

    Attributes:
        place: smaller ones come first.
        cell: the first cell for which the stage may start; None if it is held in all of its cells.
        is_passing: whether one of these holds may end by itself.
    """

    place: int
    cell: Cell | None
    is_passing: bool


class ReadyIndex:
    """The stages that may be claimed, in the order in which workers try them.

    A search through ten thousand cells after each stage would read all their records again and again. The
    index keeps each state until `touch` marks that the records of the stage changed. A heap holds the stages
    that may have become claimable: those touched, and those that take a touched one::

        touch(base)      base and train are queued: the state of base is to be read again
        next_stage()     base is read: done. train: its own state is known, its inputs are done -> claimable

    A stage stays in the heap as long as it is claimable, and leaves it when it is found not to be.

    Attributes:
        cells: in the order in which workers try them.

    Args:
        cells: in that order.
        instances: digest to stage instance; it holds all inputs of the cells' stages, and gates.
        gates: of the launch. Those of a cell come before its own stages.
        chain: returns the stages of a cell that are searched; None for all of them, and its gates.
    """

    def __init__(
        self,
        cells: Sequence[Cell],
        instances: Mapping[str, StageInstance],
        gates: Gates = NO_GATES,
        *,
        chain: Callable[[Cell], Sequence[str]] | None = None,
    ) -> None:
        self.cells = tuple(cells)
        self._instances = instances
        self._chain = chain or gates.chain
        self._rule = GateRule(cells, gates)
        self._consumers = {digest: list(waiting) for digest, waiting in self._rule.waiting.items()}
        for digest in dict.fromkeys(digest for cell in cells for digest in self._chain(cell)):
            for taken in instances[digest].inputs:
                self._consumers.setdefault(taken.digest, []).append(digest)
        self._states: dict[str, StageStatus] = {}
        self._slots: dict[str, _Slot] = {}
        self._heap: list[tuple[int, str]] = []
        self._queued: set[str] = set()
        self._waiting: set[str] = set()  # stages that run, or are held for a while
        self._limits: tuple[frozenset[str], Holds] | None = None

    def touch(self, digests: Iterable[str] | None) -> None:
        """Mark stages whose records, budget or observed owner changed.

        Args:
            digests: of the stages; None for all.
        """
        if digests is None:
            self._states.clear()
            self._limits = None
            return
        for digest in digests:
            self._states.pop(digest, None)
            self._queue(digest)
            for consumer in (*self._consumers.get(digest, ()), *self._rule.after(digest)):
                self._queue(consumer)

    def leave_out(self, digest: str) -> None:
        """Drop all cells that need a stage."""
        self.cells = tuple(cell for cell in self.cells if digest not in self._chain(cell))
        self._limits = None

    def next_stage(
        self,
        status_of: Callable[[str], StageStatus],
        *,
        cancelled: frozenset[str],
        holds: Holds = NO_HOLDS,
    ) -> Scan:
        """Return the first stage that may be claimed and is not held.

        Args:
            status_of: returns a stage's own state by digest; called once for each touched stage, and only
                for stages that come before the one returned.
            cancelled: ids of cells to skip.
            holds: what is held back in the sweep.
        """
        self._arrange(cancelled, holds)
        while self._heap:
            digest = self._heap[0][1]
            cell = self._slots[digest].cell
            if self._is_ready(digest, status_of) and cell is not None:
                return Scan(Claimable(cell, self._instances[digest]), True)
            heapq.heappop(self._heap)
            self._queued.discard(digest)
        return Scan(None, bool(self._waiting))

    def count(
        self,
        status_of: Callable[[str], StageStatus],
        *,
        cancelled: frozenset[str],
        holds: Holds = NO_HOLDS,
    ) -> tuple[int, bool]:
        """Return the number of stages that may be claimed now, and whether there is a reason to wait.

        The second value is true if a stage is claimable, running, or held for a while: others may become
        claimable after it. See `next_stage` for the arguments.
        """
        self._arrange(cancelled, holds)
        self._heap = [entry for entry in self._heap if self._is_ready(entry[1], status_of)]
        heapq.heapify(self._heap)
        self._queued = {digest for _, digest in self._heap}
        return len(self._heap), bool(self._heap or self._waiting)

    def _queue(self, digest: str) -> None:
        if digest in self._slots and digest not in self._queued:
            self._queued.add(digest)
            heapq.heappush(self._heap, (self._slots[digest].place, digest))

    def _arrange(self, cancelled: frozenset[str], holds: Holds) -> None:
        """Order all stages again if cells were cancelled, held or freed. States that are known stay so."""
        if self._limits == (cancelled, holds):
            return
        self._limits = (cancelled, holds)
        self._slots, place = {}, 0
        for cell in self.cells:
            for digest in () if cell.id in cancelled else self._chain(cell):
                place += 1
                known = self._slots.get(digest)
                if known is not None and known.cell is not None:
                    continue
                hold = holds.of(cell.id, digest)
                is_passing = (hold is not None and not hold.is_final) or (
                    known is not None and known.is_passing
                )
                self._slots[digest] = _Slot(place, cell if hold is None else None, is_passing)
        self._heap = sorted((slot.place, digest) for digest, slot in self._slots.items())  # also a heap
        self._queued = set(self._slots)
        self._waiting.clear()

    def _is_ready(self, digest: str, status_of: Callable[[str], StageStatus]) -> bool:
        """Return whether a stage may be claimed for a cell, by states that are read where they are needed."""

        def known(digest: str) -> StageStatus:
            if digest not in self._states:
                self._states[digest] = status_of(digest)
            return self._states[digest]

        def is_wanted(digest: str) -> bool:
            # Cancelled cells have no slots. A hold that may end by itself leaves time for the gate.
            slot = self._slots.get(digest)
            return slot is not None and (slot.cell is not None or slot.is_passing)

        status, slot = known(digest), self._slots[digest]
        inputs = (known(taken.digest) for taken in self._instances[digest].inputs)
        may_start = is_claimable(status, inputs) and self._rule.hold(digest, known, is_wanted) is None
        if status.state is State.RUNNING or (may_start and slot.cell is None and slot.is_passing):
            self._waiting.add(digest)
        else:
            self._waiting.discard(digest)
        return may_start and slot.cell is not None


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
        launched, rerun: cell id to the number of the last launch and of the last rerun that named it.
        seen: number of a launch or rerun to the attempts that there were: digest to number. None for a rerun
            that does not list those of other cells.
        limit: what the sweep may spend, as its last launch or rerun set it.
    """

    cancelled: frozenset[str]
    after: Mapping[str, int]
    after_chance: Mapping[str, int]
    revision: int = 0
    asked: Mapping[str, int] = {}
    launched: Mapping[str, int] = {}
    rerun: Mapping[str, int] = {}
    seen: Mapping[int, Mapping[str, int] | None] = {}
    limit: SpendingLimit = SpendingLimit()

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
    asked: dict[str, dict[str, int]] = {"launch": {}, "rerun": {}}
    seen: dict[int, Mapping[str, int] | None] = {}
    revision, limit = 0, SpendingLimit()
    for request in requests:
        named = cells if request.cells is None else request.cells
        if request.verb in ("launch", "rerun"):
            revision = request.revision
            asked[request.verb].update(dict.fromkeys(named, request.number))
            is_partial = request.verb == "rerun" and request.failures is None
            seen[request.number] = None if is_partial else {**(request.failures or {}), **request.after}
            limit = request.settings.policy.budget if request.settings else limit
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
    launched, rerun = asked["launch"], asked["rerun"]
    last = {cell: max(launched.get(cell, 0), rerun.get(cell, 0)) for cell in {**launched, **rerun}}
    return RequestSummary(
        frozenset(cancelled), after, after_chance, revision, last, launched, rerun, seen, limit
    )


# A boundary never moves back: two commands may run at once, and the later one may have read less.
def _raise(boundaries: dict[str, int], to: Mapping[str, int]) -> None:
    for digest, number in to.items():
        boundaries[digest] = max(number, boundaries.get(digest, 0))


def code_of(request: Request) -> str:
    """Return the digest of the code that the workers of a request run, "" if it was not recorded."""
    return str(request.provenance.get("code", ""))


def codes_of(requests: Iterable[Request], asked: Mapping[str, int]) -> dict[str, str]:
    """Return the digest of the code that would run each cell: that of the last request that named it.

    Args:
        requests: of the sweep.
        asked: id of a cell to the number of that request.
    """
    codes = {request.number: code_of(request) for request in requests}
    return {cell: codes.get(number, "") for cell, number in asked.items()}
