"""Decisions about a sweep with phases or rungs: which cells exist now, what is to be decided, and how. Pure.

Cells follow from the seal and the decisions, in this order:

    unfold(sweep, decisions)   the cells that exist, and the next question
    observe(question, ...)     what is known of the cells of the question; waits until all of them have ended
    answer(question, seen)     the candidates that go on

Whoever sees that all cells of a question have ended may record the answer. The answer depends on the products
that it lists and on nothing else, so all of them would record the same one.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from orchestrator.core.sealed import Decision, SealedPhase, SealedSearch, SeenCell, Select, Undecided
from orchestrator.core.state import State, SweepFacts
from orchestrator.core.sweep import Cell, ComposedSweep, StageInstance
from orchestrator.registry import load

Row = Mapping[str, Any]

_GROWN = "orchestrator.core.search:grown"


class SweepQuestion(NamedTuple):
    """A decision that was not made yet.

    Attributes:
        number: of the decision.
        phase: whose cells are ranked.
        rung: number of the part of the stage, from 1; 0 at the end of the phase.
        select: how they are ranked.
        keep: how many candidates go on, of each group.
        candidates: what can be chosen to its cells.
        groups: candidate to the group in which it is ranked; all in one group if it is empty.
        is_search: whether points follow, and not candidates.
    """

    number: int
    phase: SealedPhase
    rung: int
    select: Select
    keep: int
    candidates: Mapping[str, tuple[Cell, ...]]
    groups: Mapping[str, str] = {}
    is_search: bool = False

    @property
    def title(self) -> str:
        """What is decided, for people."""
        if self.is_search:
            return f"round {self.number + 1} of the search"
        name = f"phase {self.phase.name}" if self.phase.name else "the sweep"
        if self.rung and self.phase.rungs is not None:
            rungs = self.phase.rungs
            part = f"rung {self.rung} of {rungs.stage}, step {rungs.at[self.rung - 1]}"
            return f"{part} ({name})" if self.phase.name else part
        return name

    @property
    def rule(self) -> str:
        """How it is decided, for people."""
        by = f"{self.select.mode} {self.select.metric}"
        if self.is_search:
            return f"{by} of all rounds so far proposes up to {self.keep} more points"
        number = min(self.keep, len(self.candidates))
        return f"{by} chooses {number} of {len(self.candidates)}" + (" in groups" if self.groups else "")

    @property
    def cells(self) -> list[Cell]:
        """The cells that are looked at, in the order of the grid."""
        return [cell for cells in self.candidates.values() for cell in cells]

    def undecided(self, reason: str, is_passing: bool) -> Undecided:
        """Return that the decision waits, with the reason; see `Undecided`."""
        cells = tuple(cell.id for cell in self.cells)
        return Undecided(self.number, self.title, cells, reason, is_passing)


class Unfolded(NamedTuple):
    """A sweep as its decisions have left it.

    Attributes:
        sweep: with the cells that exist, the stages that they need, and those that they may need later.
        question: the next decision; None if there is none left.
        decisions: those that were made.
    """

    sweep: ComposedSweep
    question: SweepQuestion | None = None
    decisions: tuple[Decision, ...] = ()


def unfold(sweep: ComposedSweep, decisions: Sequence[Decision]) -> Unfolded:
    """Return a sweep as its decisions have left it.

    Args:
        sweep: as sealed.
        decisions: those that were made, in order; any after the last that the sweep has room for are ignored.
    """
    if sweep.search is not None:
        return _searched(sweep, sweep.search, decisions)
    if not sweep.phases:
        return Unfolded(sweep)
    course = _Course(sweep, decisions)
    question = course.follow()
    cells = tuple(course.shown[cell.id] for cell in sweep.cells if cell.id in course.shown)
    needed = {digest for cell in cells for digest in cell.stage_digests}
    needed |= {digest for cell in sweep.cells if cell.id in course.possible for digest in cell.stage_digests}
    stages = {digest: instance for digest, instance in sweep.stages.items() if digest in needed}
    unfolded = msgspec.structs.replace(sweep, cells=cells, stages=stages)
    return Unfolded(unfolded, question, tuple(decisions[: course.num_used]))


def _searched(sweep: ComposedSweep, search: SealedSearch, decisions: Sequence[Decision]) -> Unfolded:
    """Return a sweep with the cells of all rounds of its search so far."""
    # Loaded by name: few sweeps are searches.
    found = load(_GROWN)(sweep, search, [decision.proposed for decision in decisions])
    unfolded = Unfolded(found.sweep, None, tuple(decisions))
    # A round without points: the space has no more.
    if not found.rounds[-1] or sum(map(len, found.rounds)) >= search.num_cells:
        return unfolded
    by_id = {cell.id: cell for cell in found.sweep.cells}
    question = SweepQuestion(
        len(decisions) + 1,
        SealedPhase(name="", candidates={}, follows={}),
        0,
        search.select,
        search.batch,
        {cell: (by_id[cell],) for cell in found.rounds[-1]},
        is_search=True,
    )
    return unfolded._replace(question=question)


def decided(sweep: ComposedSweep) -> set[str]:
    """Return the ids of the cells that exist, or may come to exist, because of a decision."""
    if sweep.search is not None:
        return {cell.id for cell in sweep.cells}.difference(sweep.search.first)
    later = sweep.phases[1:]
    return {cell for phase in later for cells in phase.follows.values() for cell in cells}


class _Course:
    """The way of a sweep through its phases.

    Attributes:
        shown: id to cell, with the part of its chain that is known to run, of the cells that exist.
        possible: ids of cells whose whole chains may still run.
        num_used: decisions that were taken into account.
    """

    def __init__(self, sweep: ComposedSweep, decisions: Sequence[Decision]) -> None:
        self.shown: dict[str, Cell] = {}
        self.possible: set[str] = set()
        self.num_used = 0
        self._sweep, self._decisions = sweep, decisions
        self._cells = {cell.id: cell for cell in sweep.cells}

    def follow(self) -> SweepQuestion | None:
        """Go through the phases as far as the decisions lead, and return the next question."""
        chosen: tuple[str, ...] = ("",)
        for place, phase in enumerate(self._sweep.phases):
            ids = {cell for key in chosen for cell in phase.follows.get(key, ())}
            left = [cell.id for cell in self._sweep.cells if cell.id in ids]
            self.shown |= {cell: self._cells[cell] for cell in left}
            question, left = self._through_rungs(phase, left)
            if question is None and phase.select is not None:
                question = self._at_end(phase, phase.select, left)
            if question is not None and self.num_used == len(self._decisions):
                self.possible.update(left)
                for later in self._sweep.phases[place + 1 :]:
                    self.possible.update(cell for cells in later.follows.values() for cell in cells)
                return question
            if question is not None:
                chosen = self._take().chosen
        return None

    def _take(self) -> Decision:
        self.num_used += 1
        return self._decisions[self.num_used - 1]

    def _through_rungs(self, phase: SealedPhase, left: list[str]) -> tuple[SweepQuestion | None, list[str]]:
        """Return the next question about a rung, and the cells that are left. Cut the other chains."""
        if (rungs := phase.rungs) is None:
            return None, left
        for rung in range(1, len(rungs.at)):
            for cell in left:
                self.shown[cell] = self._cut(self._cells[cell], rungs.parts[cell][rung])
            keep = max(1, math.floor(len(left) * rungs.keep + 1e-9))
            question = SweepQuestion(
                self.num_used + 1,
                phase,
                rung,
                rungs.select,
                keep,
                {cell: (self.shown[cell],) for cell in left},
            )
            if self.num_used == len(self._decisions):
                for cell in left:
                    waits = f"waits for the decision at {question.title}"
                    self.shown[cell] = msgspec.structs.replace(self.shown[cell], waits=waits)
                return question, left
            chosen = self._take().chosen
            for cell in left:
                if cell not in chosen:
                    why = f"not among the best {keep} of {len(left)} at {question.title}"
                    self.shown[cell] = msgspec.structs.replace(self.shown[cell], stopped=why)
            left = [cell for cell in left if cell in chosen]
        self.shown |= {cell: self._cells[cell] for cell in left}
        return None, left

    def _cut(self, cell: Cell, part: str) -> Cell:
        """Return a cell with the stages that need nothing of a part of its stage."""
        dropped: set[str] = {part}
        kept = []
        for digest in cell.stage_digests:
            if digest in dropped or any(
                taken.digest in dropped for taken in self._sweep.stages[digest].inputs
            ):
                dropped.add(digest)
            else:
                kept.append(digest)
        return msgspec.structs.replace(cell, stage_digests=tuple(kept))

    def _at_end(self, phase: SealedPhase, select: Select, left: Collection[str]) -> SweepQuestion:
        candidates = {
            key: tuple(self.shown[cell] for cell in cells if cell in left)
            for key, cells in phase.candidates.items()
            if any(cell in left for cell in cells)
        }
        return SweepQuestion(self.num_used + 1, phase, 0, select, select.top, candidates, phase.groups)


_NOT_ENDED = frozenset({State.RUNNING, State.QUEUED, State.PENDING, State.RELEASED, State.LOST})


def observe(
    question: SweepQuestion, instances: Mapping[str, StageInstance], facts: SweepFacts
) -> tuple[SeenCell, ...] | Undecided:
    """Return what a decision sees of its cells, or why it waits.

    A cell has ended when its stages are done, or one of them has failed with its retries spent. Until all
    have ended, there is no answer. So the order in which they end cannot matter.

    Args:
        question: the question.
        instances: digest to stage instance.
        facts: of the sweep now.
    """
    if not question.cells:
        return question.undecided("no cell is left", False)
    seen: list[SeenCell] = []
    for cell in question.cells:
        statuses = {digest: facts.status_of(digest) for digest in cell.stage_digests}
        failed = next((d for d, status in statuses.items() if status.state is State.FAILED), None)
        left = next((d for d, status in statuses.items() if status.state is not State.DONE), None)
        if failed is None and left is not None:
            status, what = statuses[left], f"{cell.id} {instances[left].name}"
            if cell.id in facts.cancelled:
                return question.undecided(f"{cell.id} is cancelled", False)
            hold = facts.holds.of(cell.id, left)
            if hold is not None and hold.is_final:
                return question.undecided(f"{what} is held back", False)
            return question.undecided(f"{what} is {status.state}", status.state in _NOT_ENDED)
        done = {d: facts.evidence_of(d).done for d, status in statuses.items() if status.state is State.DONE}
        products = {digest: one.generation for digest, one in done.items() if one is not None}
        if failed is not None:
            why = f"{instances[failed].name} failed: {statuses[failed].reason}"
            seen.append(SeenCell(cell=cell.id, products=products, why=why))
            continue
        rows = [(instances[digest], one.rows) for digest, one in done.items() if one is not None]
        seen.append(valued(question, cell, products, rows))
    # A search learns from earlier rounds too.
    if all(each.value is None for each in seen) and not (question.is_search and question.number > 1):
        reasons = list(dict.fromkeys(each.why for each in seen))
        more = f", and {len(reasons) - 1} more reasons" if len(reasons) > 1 else ""
        return question.undecided(f"no cell has a value: {reasons[0]}{more}", False)
    return tuple(seen)


def valued(
    question: SweepQuestion,
    cell: Cell,
    products: Mapping[str, int],
    rows: Sequence[tuple[StageInstance, Sequence[Row]]],
) -> SeenCell:
    """Return what a decision sees of a cell whose stages are done.

    The value is the mean of the metric over the rows that count. They are those of the stage that the
    question names, else of the last stage of the cell that returned the metric.

    Args:
        question: the question.
        cell: the cell.
        products: digest to generation of its products.
        rows: its stage instances in the order of its chain, each with the rows of its product.
    """
    select, rungs = question.select, question.phase.rungs
    part = rungs.parts[cell.id][question.rung - 1] if rungs is not None and question.rung else ""
    values: list[float] = []
    for instance, each in rows:
        if (part and instance.digest != part) or (select.stage and instance.stage != select.stage):
            continue
        found = [row[select.metric] for row in each if select.metric in row and _counts(row, select.where)]
        values = [_as_float(value) for value in found if isinstance(value, int | float)] or values
    if not values:
        why = f"no row has {select.metric}"
        why += "".join(f" {name}={value}" for name, value in select.where.items())
        return SeenCell(cell=cell.id, products=dict(products), why=why)
    value = _mean(values)
    if not math.isfinite(value):
        return SeenCell(cell=cell.id, products=dict(products), why=f"{select.metric} is {value}")
    return SeenCell(cell=cell.id, products=dict(products), value=value)


def _as_float(value: int | float) -> float:
    try:
        return float(value)
    except OverflowError:  # an integer beyond all floats
        return math.inf


def _mean(values: Sequence[float]) -> float:
    """Return the mean; nan where infinities of both signs leave none."""
    try:
        return math.fsum(values) / len(values)
    except OverflowError:  # the sum is beyond all floats, the mean is not
        return math.fsum(value / len(values) for value in values)
    except ValueError:
        return math.nan


def _counts(row: Row, where: Mapping[str, str | int | float | bool]) -> bool:
    return all(name in row and str(row[name]) == str(value) for name, value in where.items())


def answer(question: SweepQuestion, seen: Iterable[SeenCell]) -> tuple[str, ...]:
    """Return the candidates that go on, best first within each group.

    A candidate of which a cell has no value comes after all others, and never goes on if it has no value at
    all. Of equal candidates, the one that comes first in the grid is better.

    Args:
        question: the question.
        seen: what `observe` returned.

    Returns:
        the candidates; none for a search, of which points follow.
    """
    if question.is_search:
        return ()
    values = {each.cell: each.value for each in seen}
    ranked: dict[str, list[tuple[bool, float, int, str]]] = {}
    for place, (key, cells) in enumerate(question.candidates.items()):
        known = [value for cell in cells if (value := values.get(cell.id)) is not None]
        if known:
            mean = _mean(known)
            signed = mean if question.select.mode == "min" else -mean
            group = question.groups.get(key, "")
            ranked.setdefault(group, []).append((len(known) < len(cells), signed, place, key))
    return tuple(key for each in ranked.values() for *_, key in sorted(each)[: question.keep])
