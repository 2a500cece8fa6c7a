"""The sealed form of a sweep, and the decisions that choose among what it seals.

A sweep with phases seals every cell that it can ever have. A decision chooses which of them exist:

    phase tune     lr=0.1, lr=0.2, lr=0.3      all exist at once
    decision 1     lr=0.2 is the best
    phase confirm  seeds 0 to 4 of lr=0.2      exist from then on; those of 0.1 and 0.3 never do

Rungs cut one stage into parts. A decision after each part names the cells that go on; the others stop.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple

import msgspec

from orchestrator.core.tree import with_value
from orchestrator.formats import SINCE_2, Stored
from orchestrator.spec import StageSpec


class Select(Stored, frozen=True, kw_only=True):
    """How a decision ranks its candidates.

    Attributes:
        metric: column of the result rows.
        mode: whether its lowest or highest value is the best.
        top: number of candidates that are chosen.
        mean: axes whose cells are one candidate; its value is the mean of theirs.
        per: axes for each of whose values candidates are ranked apart.
        where: column to value; only rows that have them all count.
        stage: the stage whose rows count; "" for the last one of a cell that returns the metric.
    """

    metric: str
    mode: Literal["min", "max"]
    top: Annotated[int, msgspec.Meta(ge=1)] = 1
    mean: tuple[str, ...] = ()
    per: tuple[str, ...] = ()
    where: dict[str, str | int | float | bool] = {}
    stage: str = ""


class Rungs(Stored, frozen=True, kw_only=True):
    """A stage that is cut into parts, after each of which a decision names the cells that go on.

    Attributes:
        stage: name of the stage.
        at: the steps at which the parts end.
        keep: share of the cells that goes on after each part; at least one cell does.
        select: how they are ranked.
        parts: cell id to the digests of its parts, in order.
    """

    stage: str
    at: tuple[int, ...]
    keep: float
    select: Select
    parts: dict[str, tuple[str, ...]]


class Cut(NamedTuple):
    """A stage that is cut into parts.

    Attributes:
        stage: its name.
        key: config key of the step at which it ends.
        at: the steps at which its parts end.
    """

    stage: str
    key: str
    at: tuple[int, ...]

    def parts(self, reads: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
        """Return the label of each part, "" for the last one, and what it reads."""
        labels = [f"{a}:{b}" for a, b in zip((0, *self.at), self.at[:-1], strict=False)]
        path = tuple(self.key.split("."))
        return [
            (label, with_value(reads, path, end)) for label, end in zip((*labels, ""), self.at, strict=True)
        ]


class SealedPhase(Stored, frozen=True, kw_only=True):
    """One phase of a sweep, with all cells that it can have.

    Attributes:
        name: of the phase; "" for that of a sweep without `phases`.
        candidates: what can be chosen, by its labels, to the ids of its cells. Its order breaks ties.
        follows: candidate of the phase before to the ids of the cells that exist once it was chosen. The
            first phase has one entry, "", whose cells always exist.
        groups: candidate to its labels on the axes `select.per`.
        select: how candidates are chosen for the next phase; None for the last one.
        rungs: of one of its stages; None without.
    """

    name: str
    candidates: dict[str, tuple[str, ...]]
    follows: dict[str, tuple[str, ...]]
    groups: dict[str, str] = {}
    select: Select | None = None
    rungs: Rungs | None = None


class Input(Stored, frozen=True):
    """A product that a stage takes as input.

    Attributes:
        stage: name of the stage that makes it.
        label: of the stage instance, "" for a stage without `each`.
        digest: of the stage instance.
    """

    stage: str
    label: str
    digest: str


class StageInstance(Stored, frozen=True, kw_only=True):
    """One content-addressed stage instance, shared by all cells whose chain names its digest.

    Attributes:
        stage: name in the sweep file.
        label: the values of its `each` variables, "" without any.
        digest: SHA-256 of its identity in hexadecimal, see `orchestrator.core.identity.stage_digest`.
        reads: the slice of config that it reads, resolved, and its `each` variables at top level.
        inputs: the products that it takes, in order.
        later: number of parts of its stage that follow on it; 0 where no rungs cut the stage.
    """

    stage: str
    label: str = ""
    digest: str
    reads: dict[str, Any]
    inputs: tuple[Input, ...] = ()
    later: Annotated[int, SINCE_2] = 0

    @property
    def name(self) -> str:
        """The readable name: ``prepare[en]``, or just ``train``."""
        return f"{self.stage}[{self.label}]" if self.label else self.stage

    @property
    def before(self) -> StageInstance | None:
        """The part of its own stage on whose checkpoint it goes on; None for the first part."""
        found = next((taken for taken in self.inputs if taken.stage == self.stage), None)
        if found is None:
            return None
        return StageInstance(stage=found.stage, label=found.label, digest=found.digest, reads={})


class Cell(Stored, frozen=True, kw_only=True):
    """One point of the grid.

    Attributes:
        id: unique readable id, such as ``tiny-qwen3-a.math.en+sw-3f9c2a71``.
        axes: axis name to label, which is empty where the axis does not count.
        columns: the sweep's `columns`: name to value.
        config: the fully resolved tree.
        stage_digests: of its stages, inputs before the stages that take them.
        waits, stopped: why it goes no further for now, or for good; "" if its chain is whole. Never sealed,
            see `orchestrator.core.decisions.unfold`.
    """

    id: str = msgspec.field(name="cell")
    axes: dict[str, str]
    columns: dict[str, Any]
    config: dict[str, Any]
    stage_digests: tuple[str, ...] = msgspec.field(name="chain")
    waits: Annotated[str, SINCE_2] = ""
    stopped: Annotated[str, SINCE_2] = ""


Value = str | int | float
"""A value of a parameter of a search; the label of an option."""


class SearchParameter(Stored, frozen=True, kw_only=True):
    """A parameter of a search: a range of numbers, or some options.

    Attributes:
        name: the key that it sets, or the name of its options.
        options: labels; empty for a range.
        low, high: ends of the range, both included.
        step: distance of two values; None for all values between the ends.
        log: whether the range is searched evenly on its logarithm.
        is_int: whether its values are integers.
    """

    name: str
    options: tuple[str, ...] = ()
    low: int | float = 0
    high: int | float = 0
    step: int | float | None = None
    log: bool = False
    is_int: bool = False


class ConfigSlot(Stored, frozen=True, kw_only=True):
    """A place in a config that follows from the values of ranges.

    Attributes:
        path: keys and indexes that lead to it.
        parts: the parameter; for a text, pieces of text and names of parameters by turns.
        kind: the value itself, the value as a fractional number, or a text with it.
    """

    path: tuple[str | int, ...]
    parts: tuple[str, ...]
    kind: Literal["value", "float", "text"] = "value"


class CellTemplate(Stored, frozen=True, kw_only=True):
    """The config of all points that agree in their options.

    Attributes:
        labels: parameter with options to its label, "" where it does not count.
        ranges: parameters with a range that count.
        parts: parameter with options to its part of the cell's id.
        config: the resolved tree, with some value in each slot.
        slots: the places that follow from ranges.
    """

    labels: dict[str, str]
    ranges: tuple[str, ...]
    parts: dict[str, str]
    config: dict[str, Any]
    slots: tuple[ConfigSlot, ...] = ()


class SealedSearch(Stored, frozen=True, kw_only=True):
    """A search whose points follow from results.

    Attributes:
        sampler: that proposes points after the first round.
        seed: of all that is random.
        num_cells: points in all.
        batch: points of a round.
        select: metric and mode.
        space: in an order in which each parameter comes after those that it depends on.
        templates: one for each choice of options.
        columns: column to config key.
        start: the points of the first round.
        first: the ids of their cells.
    """

    sampler: str
    seed: int
    num_cells: int
    batch: int
    select: Select
    space: tuple[SearchParameter, ...]
    templates: tuple[CellTemplate, ...]
    columns: dict[str, str]
    start: tuple[dict[str, Value], ...]
    first: tuple[str, ...] = ()


class ComposedSweep(Stored, frozen=True, kw_only=True):
    """The content that a revision seals. Equal content has an equal digest and is one revision.

    Attributes:
        name: the sweep's name in the store.
        description: as in the sweep file.
        specs: stage name to spec, in the order of the sweep file.
        stages: digest to stage instance.
        cells: in the order of the grid.
        report: names of the reports written at the end of a launch.
        format: always 1, so that sweeps sealed by earlier versions stay equal to themselves.
        phases: in order; none for a sweep whose cells all exist from the start.
        search: whose later points follow from results; its cells here are those of the first round.
    """

    name: str
    description: str = ""
    specs: dict[str, StageSpec]
    stages: dict[str, StageInstance] = msgspec.field(name="nodes")
    cells: tuple[Cell, ...]
    report: tuple[str, ...] = ()
    format: int = 1
    phases: Annotated[tuple[SealedPhase, ...], SINCE_2] = ()
    search: Annotated[SealedSearch | None, SINCE_2] = None

    @property
    def has_decisions(self) -> bool:
        """Whether some of its cells, or parts of them, exist by decisions."""
        return bool(self.phases) or self.search is not None


class GateFacts(Stored, frozen=True, kw_only=True):
    """What a launch found out about itself. It is part of the identity of its gates.

    Attributes:
        code: digest of the checkout.
        packages: digest of the installed packages.
        device: type of the GPUs, ``cpu`` without any, "" if it is not known.
        num_gpus: number of GPUs that a cell may have.
        left_out: digest of a gate that does not count in this launch to the reason.
    """

    code: str
    packages: str = ""
    device: str = ""
    num_gpus: int = 0
    left_out: dict[str, str] = {}


class SeenCell(Stored, frozen=True, kw_only=True):
    """What a decision saw of one cell.

    Attributes:
        cell: its id.
        products: digest of each of its stages that was done to the generation of the product.
        value: the metric; None if the cell counts as the worst.
        why: the reason for that.
    """

    cell: str
    products: dict[str, int] = {}
    value: float | None = None
    why: str = ""


class Decision(Stored, frozen=True, kw_only=True):
    """`sweeps/<sweep>/decisions/<k>/<n>.json`: which cells go on. A pure function of the seal and `seen`.

    Attributes:
        nonce: identifies the writer.
        revision: number of the sealed revision.
        number: of the decision, from 1.
        phase: name of the phase.
        rung: number of the part of the stage after which it was made, from 1; 0 at the end of a phase.
        seen: the cells that it was made from, in the order of the grid.
        chosen: the candidates that go on, best first; for a rung the ids of cells.
        proposed: the points of the next round of a search.
        sampler: that proposed them, with its version.
        by, at: which process made it, and when.
    """

    nonce: str
    revision: int
    number: int
    phase: str = ""
    rung: int = 0
    seen: tuple[SeenCell, ...] = ()
    chosen: tuple[str, ...] = ()
    proposed: tuple[dict[str, Value], ...] = ()
    sampler: str = ""
    by: str = ""
    at: str = ""


class Undecided(NamedTuple):
    """A decision of a sweep with phases or a search that cannot be made yet.

    Attributes:
        number, title: of the decision; the title is for people.
        cells: ids of the cells from which it follows.
        reason: why it waits, for people.
        is_passing: whether that may end without a request of a user.
        waits_for: ids of the cells that have not ended.
    """

    number: int
    title: str
    cells: tuple[str, ...]
    reason: str
    is_passing: bool
    waits_for: tuple[str, ...] = ()


def most_cells(phase: SealedPhase, before: SealedPhase | None) -> int:
    """Return the most cells that a phase can have.

    Args:
        phase: the phase.
        before: the one before it; None for the first one.
    """
    if before is None or before.select is None:
        return len({cell for cells in phase.follows.values() for cell in cells})
    sizes: dict[str, list[int]] = {}
    for key, cells in phase.follows.items():
        sizes.setdefault(before.groups.get(key, ""), []).append(len(cells))
    return sum(sum(sorted(each, reverse=True)[: before.select.top]) for each in sizes.values())
