"""The points of a grid, composed one after another into cells."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from orchestrator.compose.axes import ABSENT, Axis, Label, cut, texts_of
from orchestrator.compose.configs import Configs
from orchestrator.compose.interpolations import refuse_varying
from orchestrator.compose.overrides import Overrides
from orchestrator.core.grid import Grid
from orchestrator.core.sealed import Cell, SealedPhase, SealedSearch, StageInstance
from orchestrator.core.sweep import check_axis
from orchestrator.core.tree import MISSING, pick, scalar_text
from orchestrator.errors import UserError, nearest
from orchestrator.stage import StageSpec

Progress = Callable[[int, int], None]
"""Callback that takes the number of points composed so far, and the number of all points."""


class Made(NamedTuple):
    """The cells of a sweep, composed.

    Attributes:
        cells: all that it can have.
        stages: digest to stage instance.
        phases: with the ids of their cells.
        num_cells: the most cells that can exist.
        notes: remarks for the user.
        sum_text: how their number came about.
        search: whose later points follow from results.
    """

    cells: tuple[Cell, ...]
    stages: dict[str, StageInstance]
    phases: tuple[SealedPhase, ...]
    num_cells: int
    notes: list[str]
    sum_text: str
    search: SealedSearch | None = None


def _points(
    axes: Sequence[Axis], conditions: Any, touched: Sequence[str], max_cells: int, where: str
) -> list[tuple[Label, ...]]:
    """Return the points of the grid, after a check that they are not too many."""
    if conditions is None:
        _check_size(axes, max_cells, where)
        return list(itertools.product(*(axis.labels for axis in axes)))
    conditions.refuse_idle(axes, touched)
    points = list(itertools.islice(conditions.points(axes), max_cells + 1))
    if len(points) > max_cells:
        _check_size(axes, max_cells, where)
    return points


def made_of(
    grid: Grid,
    configs: Configs,
    overrides: Overrides,
    conditions: Any,
    columns: Mapping[str, str],
    specs: Mapping[str, StageSpec],
    max_cells: int,
    where: str,
    progress: Progress,
) -> Made:
    """Compose the points of a grid that its early selectors keep, and return its cells.

    Args:
        grid: without points.
        configs: composes them.
        overrides: with the axes of the grid.
        conditions: at which points they count; None for all.
        columns: column name to config key.
        specs: stage name to spec.
        max_cells: most points that there may be.
        where: the sweep file, for messages.
        progress: called before each point, and at the end.

    Raises:
        UserError: there are too many points, or one of them cannot be composed.
    """
    axes = list(overrides.axes.values())
    for axis in axes:
        check_axis(axis.name)
    # Before any loop over the points: a mistyped range may give billions of them.
    points = _points(axes, conditions, overrides.touched, max_cells, where)
    grid.check_labels(texts_of(axes, labels) for labels in points)
    _fill(grid, configs, axes, points, columns, specs, where, progress)
    cells, notes = grid.cells([len(axis.labels) for axis in axes], len(points))
    return Made(cells, grid.stages, (), len(cells), notes, grid.sum_text)


def _fill(
    grid: Grid,
    configs: Configs,
    axes: Sequence[Axis],
    points: Sequence[tuple[Label, ...]],
    columns: Mapping[str, str],
    specs: Mapping[str, StageSpec],
    where: str,
    progress: Progress,
) -> None:
    """Compose the points of the grid that its early selectors keep, and add them to the grid."""
    for number, labels in enumerate(points):
        progress(number, len(points))
        if not grid.admits(texts_of(axes, labels)):
            continue
        named = (
            f"{axis.name}={cut(label.text)}"
            for axis, label in zip(axes, labels, strict=True)
            if label is not ABSENT
        )
        place = " ".join(["cell", *named]) + f", {where}"
        config = configs.config(labels, where=place)
        refuse_varying(specs, configs.varying, where=place)
        shown = configs.shown(labels, config, where=place)
        texts = texts_of(axes, shown)
        _check_columns(columns, texts, config, where)
        grid.add(texts, ".".join(filter(None, (label.part for label in shown))), config)
    progress(len(points), len(points))


def _check_size(axes: Sequence[Axis], max_cells: int, where: str) -> None:
    num_points = math.prod(len(axis.labels) for axis in axes)
    if num_points > max_cells:
        product = " x ".join(f"{len(axis.labels):,}" for axis in axes)
        raise UserError(
            f"the grid has {product} = {num_points:,} points, more than max_cells: {max_cells:,}",
            where=where,
            fix=f"max_cells={num_points} if that is what you mean",
        )


def _check_columns(
    columns: Mapping[str, str], labels: Mapping[str, str], config: Mapping[str, Any], where: str
) -> None:
    for column, key in columns.items():
        value = pick(config, key)
        _check_column_name(column, key, value, labels, config, where)
        if isinstance(value, Mapping):
            raise UserError(
                f"the column {column!r} is of {key!r}, a section of the config and not a value",
                where=where,
                allowed=nearest(key, [f"{key}.{name}" for name in value]),
            )


def _check_column_name(
    column: str, key: str, value: Any, labels: Mapping[str, str], config: Mapping[str, Any], where: str
) -> None:
    """Refuse a column that shows another value than the axis or config key of the same name."""
    own = labels.get(column, pick(config, column))
    text = scalar_text(value)
    if own is MISSING or isinstance(own, Mapping) or value is MISSING or scalar_text(own) == text:
        return
    raise UserError(
        f"the column {column!r} shows {key}, which is {text}, but {column!r} itself is {scalar_text(own)}",
        where=where,
        fix="give the column another name",
    )
