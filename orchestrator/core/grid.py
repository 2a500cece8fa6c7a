"""The grid of a sweep: select its points, build their chains, merge equal cells, and name them. Pure.

A *point* is one combination of axis values. Selectors remove points; points with equal chains become one
cell, since they would compute the same thing. The result is reported as a sum:

    3 x 2 - 1 excluded - 1 merged = 4
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from orchestrator.core.cell import Chains
from orchestrator.core.identity import cell_ids
from orchestrator.core.selector import Selector, Subject, any_of
from orchestrator.core.sweep import Cell, StageInstance
from orchestrator.core.tree import MISSING, dotted_keys, pick
from orchestrator.errors import UserError, nearest
from orchestrator.stage import StageSpec

_NUM_NAMED = 3
"""Number of merged cells that a note lists by name."""


class Selectors(NamedTuple):
    """The exclusions and inclusions of a sweep file, with all labels that its axes have in the file.

    Attributes:
        exclude: selectors of points to leave out.
        include: selectors of points to keep; empty keeps all.
        labels: axis name to its labels, also those that the command line removed from the axis.
    """

    exclude: tuple[Selector, ...]
    include: tuple[Selector, ...]
    labels: Mapping[str, frozenset[str]]

    @classmethod
    def parse(
        cls, exclude: Iterable[str], include: Iterable[str], labels: Mapping[str, frozenset[str]]
    ) -> Selectors:
        """Parse the texts of the selectors.

        Args:
            exclude: texts of selectors.
            include: texts of selectors.
            labels: axis name to its labels in the sweep file.

        Raises:
            UserError: a selector is malformed.
        """
        return cls(tuple(map(Selector.parse, exclude)), tuple(map(Selector.parse, include)), labels)


class _Point(NamedTuple):
    name: str
    subject: Subject


class Grid:
    """Collector of a grid's points, which turns them into cells.

    Args:
        selectors: which points to leave out.
        columns: column name to config key.
        specs: stage name to spec.
        where: the sweep file, for messages.

    Attributes:
        sum_text: the number of cells and how it came about, set by `cells`.
    """

    def __init__(
        self,
        selectors: Selectors,
        columns: Mapping[str, str],
        specs: Mapping[str, StageSpec],
        *,
        where: str = "",
    ) -> None:
        self._selectors, self._columns, self._where = selectors, columns, where
        self._chains = Chains(specs, where=where)
        self._points: list[_Point] = []
        self._num_excluded = 0
        # Selectors for points that are not composed yet, and for composed points: (exclude, include) each.
        self._early: tuple[list[Selector], list[Selector]] = ([], [])
        self._late = ([*selectors.exclude], [*selectors.include])
        self.sum_text = ""

    @property
    def nodes(self) -> dict[str, StageInstance]:
        """Digest to stage instance, of all cells."""
        return self._chains.nodes

    def check_labels(self, cells: Iterable[Mapping[str, str]]) -> None:
        """Separate the selectors that need only axis labels, and check these against all points.

        Such selectors decide before a point is composed. This saves time, and a point that cannot be composed
        can be excluded. Includes decide early only if all of them need labels alone. A point stays if it
        matches any include, so a late one could still keep it.

            exclude: model=big seed=1        decided early: both are axes
            exclude: training.steps=10       decided late: the key exists only in a composed config

        Args:
            cells: axis name to label, of each point of the grid.

        Raises:
            UserError: a selector names an unknown label.
        """
        # Without columns and config, a selector can match by axis labels alone.
        subjects = [Subject(labels, {}, {}) for labels in cells]
        names = frozenset(subjects[0].axes) if subjects else frozenset()
        exclude, include, labels = self._selectors
        early = [selector for selector in exclude if selector.keys <= names]
        early_include = list(include) if all(selector.keys <= names for selector in include) else []
        for selector in (*early, *early_include):
            selector.check(subjects, labels=labels, where=self._where)
        self._early = early, early_include
        self._late = (
            [selector for selector in exclude if selector not in early],
            [] if early_include else list(include),
        )

    def admits(self, axes: Mapping[str, str]) -> bool:
        """Return whether the early selectors keep a point. Count the point as excluded if not.

        Args:
            axes: axis name to label, of a point that need not be composed.
        """
        admitted = _admits(*self._early, Subject(axes, {}, {}))
        self._num_excluded += not admitted
        return admitted

    def add(self, axes: dict[str, str], name: str, config: dict[str, Any]) -> None:
        """Add a composed point.

        Args:
            axes: axis name to label.
            name: the joined labels, for the id of the cell.
            config: the resolved tree.

        Raises:
            UserError: a column names an unknown config key.
        """
        columns = {column: self._column(key, config) for column, key in self._columns.items()}
        self._points.append(_Point(name, Subject(axes, columns, config)))

    def cells(self, lengths: Sequence[int]) -> tuple[tuple[Cell, ...], list[str]]:
        """Return the cells in the order of the grid, and notes on which points were merged.

        Args:
            lengths: the number of values of each axis.

        Raises:
            UserError: no cell is left, or a selector or stage names something that does not exist.
        """
        points = self._selected()
        firsts: dict[tuple[str, ...], _Point] = {}
        merged: list[tuple[_Point, _Point]] = []
        for point in points:
            # Equal chains mean equal results, even where configs differ: no stage reads the keys that differ.
            first = firsts.setdefault(self._chains.chain(point.subject), point)
            if first is not point:
                merged.append((point, first))
        if points:
            self._chains.check_neutral(points[0].subject.config)
        self.sum_text = self._sum(lengths, len(merged), len(firsts))
        if not firsts:
            raise UserError("no cell is left after the exclusions", where=self._where, allowed=self.sum_text)
        ids = cell_ids([point.name for point in firsts.values()], list(firsts))
        cells = tuple(
            Cell(
                cell=cell,
                axes=dict(point.subject.axes),
                columns=dict(point.subject.columns),
                config=dict(point.subject.config),
                chain=chain,
            )
            for cell, (chain, point) in zip(ids, firsts.items(), strict=True)
        )
        return cells, _notes(merged)

    def _selected(self) -> list[_Point]:
        """Return the points that all selectors keep. Check the late selectors and each `skip` first."""
        subjects = [point.subject for point in self._points]
        exclude, include = self._late
        for selector in (*exclude, *include, *self._chains.skips.values()):
            selector.check(subjects, labels=self._selectors.labels, where=self._where)
        points = [point for point in self._points if _admits(exclude, include, point.subject)]
        self._num_excluded += len(self._points) - len(points)
        return points

    def _column(self, key: str, config: Mapping[str, Any]) -> Any:
        value = pick(config, key)
        if value is MISSING:
            raise UserError(
                f"a column is of the unknown config key {key!r}",
                where=self._where,
                allowed=nearest(key, dotted_keys(config)),
            )
        return value

    def _sum(self, lengths: Sequence[int], num_merged: int, num_cells: int) -> str:
        product = " x ".join(map(str, lengths)) or "1"
        merged = f" - {num_merged} merged" if num_merged else ""
        return f"{product} - {self._num_excluded} excluded{merged} = {num_cells}"


def _admits(exclude: Sequence[Selector], include: Sequence[Selector], subject: Subject) -> bool:
    return any_of(include, subject) and not any(selector.matches(subject) for selector in exclude)


def _notes(merged: Sequence[tuple[_Point, _Point]]) -> list[str]:
    if not merged:
        return []
    named = [
        f"{point.name} = {first.name}" if point.name != first.name else f"a second {point.name}"
        for point, first in merged[:_NUM_NAMED]
    ]
    more = f" and {len(merged) - len(named)} more" if len(merged) > len(named) else ""
    are = "1 cell is" if len(merged) == 1 else f"{len(merged)} cells are"
    return [f"{are} merged with an identical one: {', '.join(named)}{more}"]
