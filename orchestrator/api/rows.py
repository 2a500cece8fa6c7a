"""The result rows of a sweep as a table, and as an array over its axes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from orchestrator.core.sweep import Cell
from orchestrator.errors import UserError, counted
from orchestrator.registry import require
from orchestrator.store.table import Rows, arrow_table, typed, widened

if TYPE_CHECKING:
    import xarray

_ENGINE = frozenset({"cell", "sweep", "revision", "stage", "attempts", "seconds", "code"})


class ResultRows:
    """The result rows of a sweep.

    Everything that an Arrow table offers works here too, such as `to_pandas`, `to_pylist` and `column_names`;
    `table` is that table.

    Attributes:
        table: the rows as a `pyarrow.Table`.
    """

    def __init__(self, rows: Rows, cells: Sequence[Cell]) -> None:
        self.table = arrow_table(rows)
        self._rows, self._cells = rows, cells

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name in ("table", "_rows", "_cells"):
            raise AttributeError(name)
        return getattr(self.table, name)

    def __getitem__(self, key: Any) -> Any:
        return self.table[key]

    def __len__(self) -> int:
        return len(self.table)

    def __eq__(self, other: object) -> bool:
        return bool(self.table == (other.table if isinstance(other, ResultRows) else other))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return repr(self.table)

    def __arrow_c_stream__(self, requested_schema: Any = None) -> Any:
        """Return the rows by Arrow's protocol, so that `pyarrow.table(rows)` and others read them."""
        return self.table.__arrow_c_stream__(requested_schema)

    def to_xarray(
        self, *values: str, keys: Sequence[str] = (), missing: Literal["raise", "nan"] = "raise"
    ) -> xarray.Dataset:
        """Return numeric columns as arrays whose dimensions are the sweep's axes.

        Rows of a cell's stages are joined first, as by ``sweep collect --wide``.

        Args:
            values: columns; by default all numbers that the stages returned.
            keys: columns that become dimensions too, such as ``language``, where a cell has several rows.
            missing: ``nan`` fills in NaN for points of the grid without a row; otherwise these are refused.

        Raises:
            UserError: a point of the grid has no value or several, a column is wrong, or there is no xarray.
        """
        require("report", what="an array")
        import xarray

        rows = widened(self._rows) if self._rows else []
        axes = {
            axis: list(
                dict.fromkeys(typed(cell, axis, cell.axes[axis]) for cell in self._cells if axis in cell.axes)
            )
            for axis in dict.fromkeys(axis for cell in self._cells for axis in cell.axes)
        }
        names = list(values) or _numeric(rows, {*axes, *keys, *_ENGINE})
        columns = list(dict.fromkeys(name for row in rows for name in row))
        for name in (*names, *keys):
            if name not in columns:
                raise UserError(f"no column {name!r}", allowed=", ".join(columns) or "none: no cell is done")
        rows = [row for row in rows if all(name in row for name in keys)]
        labels = {**axes, **{key: list(dict.fromkeys(row[key] for row in rows)) for key in keys}}
        points = _points(rows, labels, self._cells, axes)
        expected = math.prod(map(len, labels.values()))
        for name in names if missing != "nan" else ():
            there = sum(row.get(name) is not None for row in points.values())
            if there < expected:
                raise UserError(
                    f"the grid has {counted(expected, 'point')}, and {there} of them have {name!r}",
                    allowed="a value for each combination of " + ", ".join(labels),
                    fix='to_xarray(missing="nan"), or the rows of selected cells that are done',
                )
        return xarray.Dataset(
            {name: (tuple(labels), _filled(points, labels, name)) for name in names},
            coords=dict(labels),
        )


def _numeric(rows: Rows, other: set[str]) -> list[str]:
    """Return the columns that hold numbers alone."""
    found = []
    for name in dict.fromkeys(name for row in rows for name in row if name not in other):
        each = [row[name] for row in rows if row.get(name) is not None]
        if each and all(isinstance(value, int | float) and not isinstance(value, bool) for value in each):
            found.append(name)
    return found


def _points(
    rows: Rows, labels: Mapping[str, Sequence[Any]], cells: Sequence[Cell], axes: Mapping[str, Sequence[Any]]
) -> dict[tuple[int, ...], Mapping[str, Any]]:
    """Return the rows by their place in the grid.

    Raises:
        UserError: two rows have one place.
    """
    # The place of a cell is that of its labels, whatever its rows call them.
    at = {
        cell.id: {axis: typed(cell, axis, cell.axes[axis]) for axis in axes if axis in cell.axes}
        for cell in cells
    }
    places = {
        name: {_exact(value): number for number, value in enumerate(each)} for name, each in labels.items()
    }
    found: dict[tuple[int, ...], Mapping[str, Any]] = {}
    for row in rows:
        here = {**{name: row[name] for name in labels if name not in axes}, **at[row["cell"]]}
        if len(here) < len(labels):
            continue  # an axis that this cell does not have
        place = tuple(places[name][_exact(here[name])] for name in labels)
        if place in found:
            differ = [name for name in row if name not in _ENGINE and row[name] != found[place].get(name)]
            raise UserError(
                f"cell {row['cell']} has several rows",
                allowed="one for each point of the grid",
                fix=f"keys=[...]: a column that tells them apart, such as {', '.join(differ[:5]) or 'none'}",
            )
        found[place] = row
    return found


def _exact(value: Any) -> tuple[type, Any]:
    return type(value), value  # True equals 1


def _filled(
    points: Mapping[tuple[int, ...], Mapping[str, Any]], labels: Mapping[str, Sequence[Any]], name: str
) -> Any:
    import numpy

    shape = tuple(map(len, labels.values()))
    array = numpy.full(shape, numpy.nan)
    for place, row in points.items():
        value = row.get(name)
        if value is not None and not isinstance(value, int | float):
            raise UserError(f"column {name!r} is no number", where=f"cell {row['cell']}")
        array[place] = numpy.nan if value is None else value
    return array
