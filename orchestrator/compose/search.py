"""The key `search` of a sweep file: its space as axes, its first cells, and the templates of all later ones.

The first round is composed as the points of a grid are. For the later ones a template is sealed for each
choice of options: the config composed for a few values of the ranges shows which of its places follow from
them, and how. So whoever decides needs neither Hydra nor the user's files. What cannot be sealed in this
way, such as a schema that computes with a range, is refused here.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Final, Literal, NamedTuple

import msgspec

from orchestrator.compose.axes import ABSENT, Axis, Label, axis_of, list_axis, parse_override, plain
from orchestrator.compose.main import ComposedCells, Progress, fill_grid
from orchestrator.compose.overrides import Overrides
from orchestrator.core.grid import Grid
from orchestrator.core.sealed import CellTemplate, ConfigSlot, SealedSearch, SearchParameter, Select
from orchestrator.core.search import Point, drawn, filled, rounded, slots_of
from orchestrator.core.selector import Selector, Selectors
from orchestrator.core.sweep import SweepFile
from orchestrator.core.tree import convert
from orchestrator.errors import UserError, counted
from orchestrator.registry import require
from orchestrator.spec import StageSpec

MAX_TEMPLATES: Final = 1000
"""Maximum number of choices of options of a search whose points follow from results."""

_NUM_PROBES = 3
"""Points inside the ranges for which each choice of options is composed, besides their ends."""


class SearchFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The key ``search`` of a sweep file. Its words are Optuna's.

    Attributes:
        space: parameter to ``{low, high, step, log}``, or to its options as on an axis.
        num_cells: number of points in all.
        metric: column of the result rows.
        mode: whether its lowest or highest value is the best.
        sampler: ``tpe`` learns from the results of earlier rounds; ``random`` draws all points at once.
        batch: number of points of a round.
        seed: of all that is random.
        where: column to value; only rows that have them all count.
        stage: the stage whose rows count; "" for the last one of a cell that returns the metric.
    """

    space: dict[str, Any]
    num_cells: Annotated[int, msgspec.Meta(ge=1)]
    metric: str
    mode: Literal["min", "max"]
    sampler: Literal["tpe", "random"] = "tpe"
    batch: Annotated[int, msgspec.Meta(ge=1)] = 8
    seed: int = 0
    where: dict[str, str | int | float | bool] = {}
    stage: str = ""


class _Range(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    low: int | float
    high: int | float
    step: int | float | None = None
    log: bool = False


class Space(NamedTuple):
    """A search as it is written.

    Attributes:
        file: the key of the sweep file.
        axes: a parameter with options has its labels; one with a range has one label, of its lower end.
        ranges: the parameters with ranges.
        words: of the command line, without those about the search.
    """

    file: SearchFile
    axes: dict[str, Axis]
    ranges: dict[str, SearchParameter]
    words: list[str]


def space_of(file: SweepFile, words: Sequence[str], *, where: str) -> Space:
    """Return the space of a sweep file's search.

    Args:
        file: the sweep file, with `search`.
        words: of the command line; those such as ``search.seed=2`` change the search.
        where: the sweep file, for messages.

    Raises:
        UserError: the space is empty, a parameter is malformed, or the file has keys that do not go with it.
    """
    mine = {f"search.{name}": name for name in SearchFile.__struct_fields__ if name != "space"}
    given = {mine[key]: word for word in words if (key := word.partition("=")[0]) in mine}
    changed = {name: plain(parse_override(word)._value) for name, word in given.items()}
    search = convert({**(file.search or {}), **changed}, SearchFile, where=where, key="search")
    for key, value in (
        ("axes", file.axes),
        ("exclude", file.exclude),
        ("include", file.include),
        ("phases", file.phases),
        ("rungs", file.rungs),
    ):
        if value:
            raise UserError(
                f"the sweep has both `{key}` and `search`", where=where, allowed="search.space alone"
            )
    if not search.space:
        raise UserError("search.space is empty", where=where, fix="space: {KEY: {low: 0.1, high: 1.0}}")
    if single := [key for key in file.when if "=" in key]:
        raise UserError(
            f"when {single[0]!r} is about one value",
            where=where,
            allowed="whole parameters, in a sweep with `search`",
        )
    axes, ranges = dict[str, Axis](), dict[str, SearchParameter]()
    for name, value in search.space.items():
        if isinstance(value, Mapping) and {"low", "high"} <= value.keys():
            ranges[name] = _range(name, value, where)
            axes[name] = list_axis(name, [ranges[name].low])
        else:
            axes[name] = axis_of(name, value, where=f"search.space, {where}")
    for key, text in file.when.items():
        if on := ranges.keys() & Selector.parse(text).keys:
            raise UserError(
                f"when {key!r} is on the range {min(on)!r}", where=where, allowed="parameters with options"
            )
    return Space(search, axes, ranges, [word for word in words if word not in given.values()])


MAX_BOUND = 1e300
"""Largest size of a bound: the width of a range must be a float."""


def _range(name: str, value: Mapping[str, Any], where: str) -> SearchParameter:
    key = f"search.space.{name}"
    found = convert(dict(value), _Range, where=where, key=key)
    low, high, step = found.low, found.high, found.step
    if max(abs(low), abs(high)) > MAX_BOUND:
        raise UserError(f"{key} is too wide", where=where, allowed=f"low and high within ±{MAX_BOUND:g}")
    is_int = isinstance(low, int) and isinstance(high, int) and not isinstance(step, float)
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise UserError(f"{key} is from {low} to {high}", where=where, allowed="low below high")
    if found.log and (low <= 0 or step is not None):
        raise UserError(f"{key} has log: true", where=where, allowed="low above 0, and no step")
    if step is not None and not 0 < step <= high - low:
        raise UserError(f"{key}.step is {step}", where=where, allowed=f"above 0, at most {high - low}")
    if not is_int:
        low, high = float(low), float(high)
    return SearchParameter(name=name, low=low, high=high, step=step, log=found.log, is_int=is_int)


def compose_search(
    file: SweepFile,
    space: Space,
    overrides: Overrides,
    conditions: Any,
    configs: Any,
    specs: Mapping[str, StageSpec],
    where: str,
    max_cells: int,
    progress: Progress,
) -> ComposedCells:
    """Return the first cells of a search, or all, if none follows from results.

    Args:
        file: the sweep file.
        space: the search as it is written.
        overrides: with the axes of the space, as the command line left them.
        conditions: a `orchestrator.compose.conditions.Conditions` of the space; None without.
        configs: composes the config of a point.
        specs: stage name to spec.
        where: the sweep file, for messages.
        max_cells: most cells that there may be.
        progress: called before each point, and at the end.

    Raises:
        UserError: the space is too small, Optuna is not installed, or a config cannot be sealed.
    """
    plan = _planned(file, space, overrides.axes, conditions, where)
    if plan.search.num_cells > max_cells:
        raise UserError(
            f"search.num_cells is {plan.search.num_cells}, more than max_cells: {max_cells}", where=where
        )
    if file.app is not None:
        # A number of its own in each config would not follow from the ranges.
        configs.numbers = itertools.repeat(0)
    overrides.axes = {axis.name: axis for axis in plan.axes}
    grid = Grid(Selectors((), (), {}), file.columns, specs, where=where)
    made = fill_grid(grid, configs, overrides, plan, file.columns, specs, max_cells, where, progress)
    search, first = plan.search, tuple(cell.id for cell in made.cells)
    if len(search.start) < search.num_cells:
        search = _sealed(plan, configs, where)
        rounds = math.ceil(search.num_cells / search.batch)
        text = f"a search: {counted(search.num_cells, 'cell')} in {rounds} rounds, the first of {len(first)}"
        search = msgspec.structs.replace(search, first=first)
        return ComposedCells(made.cells, made.stages, (), search.num_cells, [*made.notes, text], text, search)
    return made._replace(sum_text=f"{counted(len(search.start), 'point')} of the space")


class _Plan(NamedTuple):
    """A search before its cells are composed. It stands for the conditions of a grid of its first points.

    Attributes:
        axes: of the space, each after those on which it depends.
        search: without configs in its templates.
        start: the labels of its first points.
    """

    axes: list[Axis]
    search: SealedSearch
    start: list[tuple[Label, ...]]

    def refuse_idle(self, axes: Sequence[Axis], touched: Sequence[str]) -> None:
        """Refuse nothing: what counts nowhere is found with the templates."""

    def points(self, axes: Sequence[Axis]) -> Iterator[tuple[Label, ...]]:
        """Yield the labels of the first points."""
        yield from self.start


def _planned(file: SweepFile, space: Space, axes: Mapping[str, Axis], conditions: Any, where: str) -> _Plan:
    """Return a search with its first points."""
    found = space.file
    if found.sampler == "tpe":
        require("search", what="search.sampler=tpe")
    if added := [name for name in axes if name not in space.axes]:
        raise UserError(f"{added[0]!r} is not in the space of the search", allowed="values of its parameters")
    ordered = conditions.ordered(axes) if conditions is not None else list(axes.values())
    ranges = {name: each for name, each in space.ranges.items() if axes.get(name) == space.axes[name]}
    parameters = tuple(
        ranges.get(axis.name)
        or SearchParameter(name=axis.name, options=tuple(label.text for label in axis.labels))
        for axis in ordered
    )
    choices = itertools.islice(
        conditions.points(ordered)
        if conditions is not None
        else itertools.product(*(axis.labels for axis in ordered)),
        MAX_TEMPLATES + 1,
    )
    templates = tuple(_outline(ordered, ranges, labels) for labels in choices)
    if len(templates) > MAX_TEMPLATES:
        raise UserError(
            f"search.space has more than {MAX_TEMPLATES:,} choices of options",
            where=where,
            fix="ranges of integers",
        )
    search = SealedSearch(
        sampler=found.sampler,
        seed=found.seed,
        num_cells=found.num_cells,
        batch=found.batch,
        select=Select(metric=found.metric, mode=found.mode, where=found.where, stage=found.stage),
        space=parameters,
        templates=templates,
        columns=file.columns,
        start=(),
    )
    _check_size(search, where)
    number = found.num_cells if found.sampler == "random" else min(found.batch, found.num_cells)
    start = tuple(dict(point) for point in drawn(search, [], number))
    search = msgspec.structs.replace(search, start=start)
    return _Plan(ordered, search, [_labels(ordered, search, point) for point in start])


def _outline(
    axes: Sequence[Axis], ranges: Mapping[str, SearchParameter], labels: Sequence[Label]
) -> CellTemplate:
    chosen = {axis.name: label for axis, label in zip(axes, labels, strict=True)}
    options = {name: label for name, label in chosen.items() if name not in ranges}
    return CellTemplate(
        labels={name: label.text for name, label in options.items()},
        ranges=tuple(name for name in chosen if name in ranges and chosen[name] is not ABSENT),
        parts={name: label.part for name, label in options.items() if label.part},
        config={},
    )


def _check_size(search: SealedSearch, where: str) -> None:
    sizes = {each.name: _num_values(each) for each in search.space}
    size = sum(math.prod(sizes[name] for name in template.ranges) for template in search.templates)
    if size < search.num_cells:
        raise UserError(
            f"search.num_cells is {search.num_cells}, and the space has {int(size)} points",
            where=where,
            allowed=f"at most {int(size)}; or all of them, as `axes`",
        )


def _num_values(parameter: SearchParameter) -> float:
    if parameter.step is None and not parameter.is_int:
        return math.inf
    return math.floor((parameter.high - parameter.low) / (parameter.step or 1) + 1e-9) + 1


def _labels(axes: Sequence[Axis], search: SealedSearch, point: Point) -> tuple[Label, ...]:
    """Return the labels of a point, as those of a grid's point."""
    by_name = {each.name: each for each in search.space}
    found = []
    for axis in axes:
        if axis.name not in point:
            found.append(ABSENT)
        elif by_name[axis.name].options:
            found.append(next(label for label in axis.labels if label.text == point[axis.name]))
        else:
            found.append(list_axis(axis.name, [point[axis.name]]).labels[0])
    return tuple(found)


def _sealed(plan: _Plan, configs: Any, where: str) -> SealedSearch:
    """Return a search with its templates."""
    search = plan.search
    templates = tuple(_template(plan, outline, configs, where) for outline in search.templates)
    search = msgspec.structs.replace(search, templates=templates)
    for point, labels in zip(search.start, plan.start, strict=True):
        template = next(each for each in templates if each.labels == _options(search, point))
        if filled(template, point) != configs.config(labels, where=where):
            raise UserError("the config of a cell follows from its ranges by chance alone", where=where)
    return search


def _options(search: SealedSearch, point: Point) -> dict[str, str]:
    return {each.name: str(point.get(each.name, "")) for each in search.space if each.options}


def _template(plan: _Plan, outline: CellTemplate, configs: Any, where: str) -> CellTemplate:
    by_name = {each.name: each for each in plan.search.space}
    options: dict[str, Any] = {name: label for name, label in outline.labels.items() if label}
    points: list[Point] = [
        {**options, **values} for values in _probes([by_name[name] for name in outline.ranges])
    ]
    named = " ".join(f"{name}={label}" for name, label in options.items())
    place = f"cell {named}, {where}" if named else where
    trees = [configs.config(_labels(plan.axes, plan.search, point), where=place) for point in points]
    slots: list[ConfigSlot] = []
    for slot in slots_of(trees, points):
        if not isinstance(slot, ConfigSlot):
            raise UserError(
                f"{'.'.join(map(str, slot))} follows from a range in a way that cannot be sealed",
                where=place,
                allowed="the value itself, or a text with it",
                fix="options in place of the range; or compute it in the stage",
            )
        slots.append(slot)
    return msgspec.structs.replace(outline, config=trees[0], slots=tuple(slots))


def _probes(ranges: Sequence[SearchParameter]) -> list[dict[str, int | float]]:
    """Return values of ranges at their ends and inside, such that no two ranges agree in all of them."""
    if not ranges:
        return [{}]
    lows = {each.name: rounded(each, each.low) for each in ranges}
    highs = {each.name: rounded(each, each.high) for each in ranges}
    probes: list[dict[str, int | float]] = []
    for attempt in range(100):
        sources = [random.Random(f"{attempt}.{place}") for place in range(_NUM_PROBES + len(ranges))]
        probes = [
            {each.name: rounded(each, source.uniform(each.low, each.high)) for each in ranges}
            for source in sources
        ]
        if len({tuple(probe[each.name] for probe in probes) for each in ranges}) == len(ranges):
            break
    return [*probes, lows, highs]
