"""Searches: the space of a sweep's parameters, points in it, and the cells that follow from points. Pure.

A search seals its space, and a template for each choice of its options. A point becomes a cell without any
config file::

    space        lr: 1e-05 to 0.1, optimizer: sgd or adam
    template     optimizer=adam: {lr: <lr>, name: "run-<lr>", optimizer: {betas: [0.9, 0.99]}}
    point        lr=0.00213, optimizer=adam
    cell         {lr: 0.00213, name: "run-0.00213", optimizer: {betas: [0.9, 0.99]}}
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from orchestrator.core.grid import Chains
from orchestrator.core.identity import cell_ids, digest_of
from orchestrator.core.sealed import (
    Cell,
    CellTemplate,
    ComposedSweep,
    ConfigSlot,
    Decision,
    SealedSearch,
    SearchParameter,
    SeenCell,
    Value,
)
from orchestrator.core.selector import Subject
from orchestrator.core.tree import pick, scalar_text

Point = Mapping[str, Value]
"""Parameter to its value, of an option its label. A parameter that does not count is left out."""

NUM_DIGITS = 6
"""Significant digits of a proposed value, so that the label of a cell is exactly what ran."""


class Trial(NamedTuple):
    """A point with its result.

    Attributes:
        point: the point.
        value: the metric; None for a cell that failed or has no finite value.
    """

    point: Point
    value: float | None


def key_of(point: Point) -> tuple[tuple[str, str], ...]:
    """Return a form of a point that is equal for equal points."""
    return tuple(sorted((name, scalar_text(value)) for name, value in point.items()))


def rounded(parameter: SearchParameter, value: float) -> int | float:
    """Return a value of a range as it is proposed: within the range, with few digits or on its steps.

    Args:
        parameter: a range.
        value: any number.
    """
    low, high = parameter.low, parameter.high
    if parameter.step is not None:
        steps = math.floor((high - low) / parameter.step + 1e-9)
        value = low + min(max(round((value - low) / parameter.step), 0), steps) * parameter.step
        value = float(f"{value:.12g}")
    elif not parameter.is_int:
        value = float(f"{value:.{NUM_DIGITS}g}")
    if parameter.is_int:
        return int(min(max(round(value), low), high))
    return float(min(max(value, low), high))


def is_in(search: SealedSearch, point: Point) -> bool:
    """Return whether a point is one that the search may propose."""
    template = template_of(search, point)
    if template is None:
        return False
    counting = {name for name, label in template.labels.items() if label} | {*template.ranges}
    return point.keys() == counting and all(
        isinstance(value := point[each.name], int | float)
        and each.low <= value <= each.high  # not of infinity, nor of an integer that no float can hold
        and rounded(each, value) == value
        for each in search.space
        if each.name in template.ranges
    )


def is_round(search: SealedSearch | None, points: Sequence[Point]) -> bool:
    """Return whether points may be those of a round; of a sweep without search there are none."""
    if search is None:
        return not points
    return len(points) <= search.batch and all(is_in(search, point) for point in points)


def template_of(search: SealedSearch, point: Point) -> CellTemplate | None:
    """Return the template of a point, None for options that do not go together."""
    for template in search.templates:
        if all(str(point.get(name, "")) == label for name, label in template.labels.items()):
            return template
    return None


def counts(search: SealedSearch, parameter: SearchParameter, chosen: Point) -> bool:
    """Return whether a parameter counts beside the options that were chosen so far.

    Args:
        search: the search.
        parameter: the next one, in the order of the space.
        chosen: values of the parameters before it.
    """
    for template in search.templates:
        before = (each.name for each in search.space[: search.space.index(parameter)] if each.options)
        if all(str(chosen.get(name, "")) == template.labels[name] for name in before):
            if parameter.options:
                return bool(template.labels[parameter.name])
            return parameter.name in template.ranges
    return False


def drawn(search: SealedSearch, known: Iterable[Point], number: int) -> list[Point]:
    """Return random points, none twice. A range with `log` is drawn from evenly on its logarithm.

    Each depends on the seed and its place alone, so a longer search begins with the points of a shorter one.

    Args:
        search: the search.
        known: points of earlier rounds, which come first.
        number: of points; fewer if the space has no more.
    """
    seen = {key_of(point) for point in known}
    place = len(seen)
    points: list[Point] = []
    while len(points) < number:
        # A finite space may be used up: then many draws in a row find nothing new.
        for attempt in range(NUM_DRAWS):
            point = _draw(search, f"{place}.{attempt}")
            if key_of(point) not in seen:
                break
        else:
            break
        seen.add(key_of(point))
        points.append(point)
        place += 1
    return points


NUM_DRAWS = 1000
"""Draws without a new point after which a space counts as used up."""


def _draw(search: SealedSearch, place: str) -> Point:
    point: dict[str, Value] = {}
    for parameter in search.space:
        if not counts(search, parameter, point):
            continue
        # A counter-based generator: no state, and the same numbers in any process and version of Python.
        digest = hashlib.sha256(f"{search.seed}.{place}.{parameter.name}".encode()).digest()
        share = int.from_bytes(digest[:6]) / 2**48
        if parameter.options:
            point[parameter.name] = parameter.options[int(share * len(parameter.options))]
            continue
        low, high = parameter.low, parameter.high
        if parameter.step is not None or (parameter.is_int and not parameter.log):
            step = parameter.step or 1
            value = low + step * int(share * (math.floor((high - low) / step + 1e-9) + 1))
        elif parameter.log:
            # Integers get the share of the logarithm that rounds to them.
            edge = 0.5 if parameter.is_int else 0.0
            value = math.exp(math.log(low - edge) + share * math.log((high + edge) / (low - edge)))
        else:
            value = low + share * (high - low)
        point[parameter.name] = rounded(parameter, value)
    return point


def filled(template: CellTemplate, point: Point) -> dict[str, Any]:
    """Return the config of a point."""
    tree: dict[str, Any] = dict(template.config)
    for slot in template.slots:
        tree = _placed(tree, slot.path, _value(slot, point))
    return tree


def _value(slot: ConfigSlot, point: Point) -> Any:
    if slot.kind == "text":
        # Texts and names of parameters take turns.
        return "".join(
            scalar_text(point[part]) if place % 2 else part for place, part in enumerate(slot.parts)
        )
    value = point[slot.parts[0]]
    return float(value) if slot.kind == "float" else value


def _placed(tree: Any, path: Sequence[str | int], value: Any) -> Any:
    """Return a copy of a tree with another value at a path. What lies beside the path is shared."""
    if not path:
        return value
    copy = list(tree) if isinstance(tree, list | tuple) else dict(tree)
    copy[path[0]] = _placed(copy[path[0]], path[1:], value)  # type: ignore[index]
    return copy


def labels_of(search: SealedSearch, template: CellTemplate, point: Point) -> tuple[dict[str, str], str]:
    """Return the labels of a point by parameter, "" where one does not count, and the name of its cell."""
    labels, parts = {}, []
    for parameter in search.space:
        name, value = parameter.name, point.get(parameter.name)
        labels[name] = "" if value is None else scalar_text(value)
        if value is not None:
            last = name.replace("/", ".").rpartition(".")[2]
            parts.append(template.parts.get(name) or f"{last}{labels[name]}")
    return labels, ".".join(parts)


class Grown(NamedTuple):
    """A sweep with the cells of all points of its search so far.

    Attributes:
        sweep: with these cells.
        rounds: the id of the cell of each point, round by round.
    """

    sweep: ComposedSweep
    rounds: list[tuple[str, ...]]


def grown(sweep: ComposedSweep, search: SealedSearch, rounds: Sequence[Sequence[Point]]) -> Grown:
    """Return a sweep with the cells that follow from points. Points with equal chains are one cell.

    Args:
        sweep: as sealed.
        search: its search.
        rounds: the points of each round after the first.
    """
    # Kept with the seal, since each decision adds only a few points to those before it.
    known: dict[Any, _Made] = sweep.__dict__.setdefault("_points", {})
    chains: Chains = sweep.__dict__.setdefault("_chains", Chains(sweep.specs))
    cells = {cell.stage_digests: cell for cell in sweep.cells}
    ids = {cell.id for cell in sweep.cells}
    found: list[tuple[str, ...]] = []
    for points in (search.start, *rounds):
        mine = []
        for point in points:
            key = key_of(point)
            if key not in known:
                known[key] = _made(search, chains, point)
            chain, name, subject = known[key]
            if chain not in cells:
                cells[chain] = _cell(chain, name, subject, ids)
                ids.add(cells[chain].id)
            mine.append(cells[chain].id)
        found.append(tuple(mine))
    digests = {digest for chain in cells for digest in chain}
    stages = sweep.stages | {digest: each for digest, each in chains.stages.items() if digest in digests}
    made = msgspec.structs.replace(sweep, cells=tuple(cells.values()), stages=stages)
    made.__dict__.update(_points=known, _chains=chains)
    return Grown(made, found)


def trials_of(
    sweep: ComposedSweep, search: SealedSearch, decisions: Sequence[Decision], seen: Sequence[SeenCell]
) -> list[Trial]:
    """Return all that a search has tried, in the order of its rounds.

    Args:
        sweep: as sealed.
        search: its search.
        decisions: those that were made.
        seen: what the next one sees.
    """
    rounds: list[Sequence[Point]] = [search.start, *(decision.proposed for decision in decisions)]
    cells = grown(sweep, search, rounds[1:]).rounds
    values = {each.cell: each.value for part in (*(d.seen for d in decisions), seen) for each in part}
    return [
        Trial(point, values[cell])
        for points, ids in zip(rounds, cells, strict=True)
        for point, cell in zip(points, ids, strict=True)
    ]


class _Made(NamedTuple):
    chain: tuple[str, ...]
    name: str
    subject: Subject


def _made(search: SealedSearch, chains: Chains, point: Point) -> _Made:
    template = template_of(search, point)
    assert template is not None
    config = filled(template, point)
    labels, name = labels_of(search, template, point)
    columns = {column: pick(config, key) for column, key in search.columns.items()}
    subject = Subject(labels, columns, config)
    return _Made(chains.chain(subject), name, subject)


def _cell(chain: tuple[str, ...], name: str, subject: Subject, taken: Collection[str]) -> Cell:
    (cell_id,) = cell_ids([name], [chain])
    if cell_id in taken:
        cell_id = f"{cell_id.rpartition('-')[0]}-{digest_of(list(chain))[:16]}"
    return Cell(
        id=cell_id,
        axes=dict(subject.axes),
        columns=dict(subject.columns),
        config=dict(subject.config),
        stage_digests=chain,
    )


def slots_of(
    configs: Sequence[Mapping[str, Any]], points: Sequence[Point]
) -> Iterator[ConfigSlot | tuple[str | int, ...]]:
    """Yield the places of a config that follow from the values of ranges.

    Args:
        configs: of some points that agree in all options.
        points: the points.

    Yields:
        a slot, or the path of a place that follows from them in some other way.
    """
    yield from _slots(list(configs), points, ())


def _slots(
    values: Sequence[Any], points: Sequence[Point], path: tuple[str | int, ...]
) -> Iterator[ConfigSlot | tuple[str | int, ...]]:
    first = values[0]
    if all(isinstance(value, Mapping) and value.keys() == first.keys() for value in values):
        for name in first:
            yield from _slots([value[name] for value in values], points, (*path, name))
    elif all(isinstance(value, list | tuple) and len(value) == len(first) for value in values):
        for place in range(len(first)):
            yield from _slots([value[place] for value in values], points, (*path, place))
    elif any(type(value) is not type(first) or value != first for value in values):
        yield _slot(values, points, path) or path


def _slot(values: Sequence[Any], points: Sequence[Point], path: tuple[str | int, ...]) -> ConfigSlot | None:
    names = [name for name, value in points[0].items() if not isinstance(value, str)]
    for name in names:
        series = [point[name] for point in points]
        if all(not isinstance(v, str | bool) and v == s for v, s in zip(values, series, strict=True)):
            kinds = {type(value) for value in values}
            same = kinds == {type(value) for value in series}
            if same or kinds == {float}:
                return ConfigSlot(path=path, parts=(name,), kind="value" if same else "float")
    if all(isinstance(value, str) for value in values):
        texts = {name: [scalar_text(point[name]) for point in points] for name in names}
        parts = _parts(values, texts)
        return ConfigSlot(path=path, parts=tuple(parts), kind="text") if parts is not None else None
    return None


def _parts(values: Sequence[str], texts: Mapping[str, Sequence[str]]) -> list[str] | None:
    """Return the text and the names of parameters, by turns, that give all values; None if there are none."""
    # A text that varies and fits into all values at once is no accident, so none is ever taken back.
    order = sorted(texts, key=lambda name: -len(texts[name][0]))
    at = [0] * len(values)
    parts = [""]
    while any(place < len(value) for place, value in zip(at, values, strict=True)):
        for name in order:
            here = zip(values, texts[name], at, strict=True)
            if len(set(texts[name])) > 1 and all(
                value.startswith(text, place) for value, text, place in here
            ):
                at = [place + len(text) for place, text in zip(at, texts[name], strict=True)]
                parts += [name, ""]
                break
        else:
            heads = {value[place : place + 1] for place, value in zip(at, values, strict=True)}
            if len(heads) != 1:
                return None
            at = [place + 1 for place in at]
            parts[-1] += heads.pop()
    return parts
