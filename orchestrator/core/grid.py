"""The grid of a sweep: select its points, build their chains, merge equal cells, and name them. Pure.

A *point* is one combination of axis values. Selectors remove points; points with equal chains become one
cell, since they would compute the same thing. The result is reported as a sum:

    3 x 2 - 1 excluded - 1 merged = 4
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from orchestrator.core.commandspec import check_filled, placeholders
from orchestrator.core.identity import (
    canonical,
    cell_ids,
    hashed_of,
    reads_of,
    slice_of,
    stage_digest,
    target_of,
    uses_of,
)
from orchestrator.core.sealed import Cut
from orchestrator.core.selector import Selector, Selectors, Subject, any_of
from orchestrator.core.sweep import Cell, Input, StageInstance, gates_among
from orchestrator.core.tree import (
    MISSING,
    dotted_keys,
    each_values,
    pick,
    refuse_non_finite,
    scalar_text,
)
from orchestrator.errors import UserError, nearest
from orchestrator.spec import StageSpec

_NUM_NAMED = 3
"""Number of merged cells that a note lists by name."""


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
        cut: the stage that is cut into parts; None for none.

    Attributes:
        sum_text: the number of cells and how it came about, set by `cells`.
        merged: the labels of each point that was merged, and of the one that it equals, set by `cells`.
    """

    def __init__(
        self,
        selectors: Selectors,
        columns: Mapping[str, str],
        specs: Mapping[str, StageSpec],
        *,
        where: str = "",
        cut: Cut | None = None,
    ) -> None:
        self._selectors, self._columns, self._where = selectors, columns, where
        self._chains = Chains(specs, where=where, cut=cut)
        self._points: list[_Point] = []
        self._num_excluded = 0
        # Selectors for points that are not composed yet, and for composed points: (exclude, include) each.
        self._early: tuple[list[Selector], list[Selector]] = ([], [])
        self._late = ([*selectors.exclude], [*selectors.include])
        self.sum_text = ""
        self.merged: list[tuple[Mapping[str, str], Mapping[str, str]]] = []

    @property
    def stages(self) -> dict[str, StageInstance]:
        """Digest to stage instance, of all cells."""
        return self._chains.stages

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
            selector.check(subjects, labels=labels, where=self._where, together=True)
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

    def cells(self, lengths: Sequence[int], num_points: int) -> tuple[tuple[Cell, ...], list[str]]:
        """Return the cells in the order of the grid, and notes on which points were merged.

        Args:
            lengths: the number of values of each axis.
            num_points: the number of points, fewer than their product where axes do not count everywhere.

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
        self.merged = [(point.subject.axes, first.subject.axes) for point, first in merged]
        self.sum_text = self._sum(lengths, num_points, len(merged), len(firsts))
        if not firsts:
            raise UserError("no cell is left after the exclusions", where=self._where, allowed=self.sum_text)
        ids = cell_ids([point.name for point in firsts.values()], list(firsts))
        cells = tuple(
            Cell(
                id=cell,
                axes=dict(point.subject.axes),
                columns=dict(point.subject.columns),
                config=dict(point.subject.config),
                stage_digests=chain,
            )
            for cell, (chain, point) in zip(ids, firsts.items(), strict=True)
        )
        return cells, _notes(merged)

    def _selected(self) -> list[_Point]:
        """Return the points that all selectors keep. Check the late selectors and each `skip` first."""
        subjects = [point.subject for point in self._points]
        exclude, include = self._late
        for selector in (*exclude, *include, *self._chains.skips.values()):
            selector.check(subjects, labels=self._selectors.labels, where=self._where, together=True)
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

    def _sum(self, lengths: Sequence[int], num_points: int, num_merged: int, num_cells: int) -> str:
        product = " x ".join(map(str, lengths)) or "1"
        missing = math.prod(lengths) - num_points
        product += f" - {missing} by `when`" if missing else ""
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


class Chains:
    """Builder of the chains of a sweep's cells, which keeps each stage instance once.

    The digest of a stage instance covers its target, its version, the config it reads and the digests of its
    inputs. Two cells that agree on all of these share the instance, so it runs once:

        cell 1: model=a, seed=0    tokenizer 3f.. -> train 8c.. -> evaluate 51..
        cell 2: model=a, seed=1    tokenizer 3f.. -> train e0.. -> evaluate 9d..

    Here ``tokenizer`` does not read ``seed``. Both chains therefore name the same instance, ``3f..``.

    Args:
        specs: stage name to spec, in the order of the sweep file.
        where: the sweep file, for messages.
        cut: the stage that is cut into parts; None for none.

    Attributes:
        specs: stage name to spec.
        stages: digest to stage instance, of all chains built so far.
        skips: stage name to the selector of the cells that skip the stage.

    Raises:
        UserError: the `after` keys form a cycle, or a stage both reads and uses a key.
    """

    def __init__(self, specs: Mapping[str, StageSpec], *, where: str = "", cut: Cut | None = None) -> None:
        self.specs, self.stages = specs, dict[str, StageInstance]()
        self._cut = cut
        self._earlier: dict[str, tuple[str, ...]] = {}  # digest of a last part to those of the others
        self._where = where
        self._order = _topological(specs, where)
        self._gates = frozenset(gates_among(specs))
        self.skips = {name: Selector.parse(spec.skip) for name, spec in specs.items() if spec.skip}
        # Neutral keys that no config had yet. Each chain removes those it finds; see `check_neutral`.
        self._neutral = {(name, key) for name, spec in specs.items() for key in spec.neutral}
        self._asked = {name: placeholders(spec) for name, spec in specs.items()}
        for name, spec in specs.items():
            if both := set(spec.reads) & set(spec.uses):
                raise UserError(f"stage {name!r} both reads and uses {min(both)!r}", where=where)

    def chain(self, subject: Subject) -> tuple[str, ...]:
        """Return the digests of a cell's stages, inputs first, and add new instances to `stages`.

        Args:
            subject: the cell's axes, columns and config.

        Raises:
            UserError: a key is unknown, a value cannot be hashed, or the cell skips all stages.
        """
        refuse_non_finite(subject.config, where=_named(subject))
        mine: dict[str, list[StageInstance]] = {}
        for name in self._order:
            skip = self.skips.get(name)
            if name in self._gates:
                # What a gate is for is known at a launch. Here only its keys are checked.
                reads = self._slices(name, subject.config)[0]
                canonical(hashed_of(self.specs[name], reads), where=f"stage {name!r}, {_named(subject)}")
            elif skip is None or not skip.matches(subject):
                mine[name] = self._instances(name, subject, mine)
        last = dict.fromkeys(instance.digest for instances in mine.values() for instance in instances)
        chain = tuple(digest for each in last for digest in (*self._earlier.get(each, ()), each))
        if not chain:
            raise UserError("every stage of a cell is skipped", where=_named(subject), fix="exclude the cell")
        return chain

    def _instances(
        self, name: str, subject: Subject, mine: Mapping[str, list[StageInstance]]
    ) -> list[StageInstance]:
        spec = self.specs[name]
        reads, uses, lists = self._slices(name, subject.config)
        where = f"stage {name!r}, {_named(subject)}"
        instances = []
        for values in itertools.product(*lists):
            given = dict(zip(spec.each, values, strict=True))
            label = ".".join(map(scalar_text, values))
            inputs = self._inputs(name, label, mine)
            parts = self._cut.parts(reads) if self._cut and self._cut.stage == name else [(label, reads)]
            earlier: list[str] = []
            for place, (label, mine_only) in enumerate(parts):
                taken = inputs if not earlier else (*inputs, Input(name, parts[place - 1][0], earlier[-1]))
                what = {**hashed_of(spec, mine_only), **given}
                digest = stage_digest(target_of(spec), spec.version, what, taken, where=where)
                instance = self.stages.setdefault(
                    digest,
                    StageInstance(
                        stage=name,
                        label=label,
                        digest=digest,
                        reads={**mine_only, **given},
                        inputs=taken,
                        later=len(parts) - place - 1,
                    ),
                )
                earlier.append(digest)
            if len(parts) > 1:
                self._earlier[digest] = tuple(earlier[:-1])
            # Equal digests mean equal work: two names for it would leave open which stage owns the product.
            if instance.stage != name:
                raise UserError(f"stages {instance.stage!r} and {name!r} are one and the same", where=where)
            if self._asked[name]:
                known = [".".join(filter(None, ("inputs", item.stage, item.label))) for item in inputs]
                slices = {"config": instance.reads, "uses": uses}
                check_filled(name, self._asked[name], slices, known, where=where)
            instances.append(instance)
        return instances

    def _slices(
        self, name: str, config: Mapping[str, Any]
    ) -> tuple[dict[str, Any], dict[str, Any], list[Sequence[Any]]]:
        """Return what a stage reads and uses of a config, and the values of its `each`."""
        spec = self.specs[name]
        try:
            reads = reads_of(spec, config)
            # resolved here so that errors appear now, not in a worker
            uses = uses_of(spec, config) if spec.uses else {}
            slice_of(config, spec.alike, what="the stage names in `alike`")
            lists = [each_values(config, key) for key in spec.each.values()]
        except UserError as error:
            what = error.what.replace("the stage", f"stage {name!r}", 1)
            raise UserError(what, where=self._where, allowed=error.allowed, fix=error.fix) from None
        self._neutral -= {(name, key) for key in spec.neutral if pick(reads, key) is not MISSING}
        return reads, uses, lists

    def _inputs(self, name: str, label: str, mine: Mapping[str, list[StageInstance]]) -> tuple[Input, ...]:
        spec = self.specs[name]
        return tuple(
            Input(instance.stage, instance.label, instance.digest)
            for other in spec.after
            for instance in mine.get(other, ())
            # Stages with the same `each` pair up label by label: evaluate[en] takes prepare[en] alone.
            # Any other stage takes all instances of its inputs.
            if not (spec.each and spec.each == self.specs[other].each) or instance.label == label
        )

    def check_neutral(self, config: Mapping[str, Any]) -> None:
        """Refuse a `neutral` key that no cell has. Call this once all chains are built.

        A misspelt neutral key would otherwise have no effect, and nobody would notice.

        Args:
            config: the config of any cell, for suggestions of the right name.

        Raises:
            UserError: a stage of the user's names such a key; the message names both.
        """
        ran = {instance.stage for instance in self.stages.values()}
        for name, key in sorted(self._neutral):
            is_own = self.specs[name].name is None  # a built-in stage also serves configs without the key
            if is_own and name in ran:
                raise UserError(
                    f"stages.{name}.neutral names the unknown key {key!r}",
                    where=self._where,
                    allowed=nearest(key, dotted_keys(config)),
                )


def _topological(specs: Mapping[str, StageSpec], where: str) -> list[str]:
    """Return the stage names ordered so that inputs come first, otherwise in the order of the file."""
    order: list[str] = []
    left = list(specs)
    while left:
        ready = next((name for name in left if all(other in order for other in specs[name].after)), None)
        if ready is None:
            raise UserError(f"stages come after one another in a circle: {', '.join(left)}", where=where)
        order.append(ready)
        left.remove(ready)
    return order


def _named(subject: Subject) -> str:
    return " ".join(["cell", *(f"{axis}={label}" for axis, label in subject.axes.items())])
