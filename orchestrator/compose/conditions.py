"""The key `when` of a sweep file: which axes, and which of their values, count at which points of the grid.

A condition is a selector over the labels of other axes::

    axes: {optimizer: [sgd, adam], momentum: [0, 0.9], model: [small, large]}
    when:
      momentum: optimizer=sgd            # the axis
      momentum=0.9: model=large          # one of its values

Where no value of an axis counts, the axis sets nothing, and its label is the empty text.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

from orchestrator.compose.axes import ABSENT, Axis, Label
from orchestrator.core.selector import Selector, Subject
from orchestrator.errors import UserError, nearest


class _Condition(NamedTuple):
    """One entry of `when`.

    Attributes:
        key: as written.
        axis: the axis that it is about.
        values: selects the labels that it is about.
        on: selects the points at which they count.
    """

    key: str
    axis: str
    values: Selector
    on: Selector


class Conditions:
    """The conditions of a sweep's axes.

    Args:
        when: an axis, or ``axis=value``, to a selector over other axes.
        axes: those of the sweep file.
        where: the sweep file, for messages.

    Raises:
        UserError: a condition names an unknown axis or value, conditions depend on one another in a circle,
            or a value counts nowhere.
    """

    def __init__(self, when: Mapping[str, str], axes: Mapping[str, Axis], *, where: str) -> None:
        self._where = where
        self._by_axis: dict[str, list[_Condition]] = {}
        for key, text in when.items():
            condition = self._parsed(key, text, axes)
            self._by_axis.setdefault(condition.axis, []).append(condition)
        self._refuse_circles()
        for name in self._by_axis:
            self._refuse_useless(name, axes)

    @property
    def names(self) -> Collection[str]:
        """The axes that do not count everywhere."""
        return self._by_axis.keys()

    def points(self, axes: Sequence[Axis]) -> Iterator[tuple[Label, ...]]:
        """Yield the points of the grid: a label of each axis, `ABSENT` where an axis does not count.

        Points come in the order of the grid if each axis comes after those that it depends on.

        Args:
            axes: of the sweep, after the command line changed them.

        Raises:
            UserError: a condition is on an axis that the command line removed.
        """
        order = self.ordered({axis.name: axis for axis in axes})
        places = {axis.name: place for place, axis in enumerate(axes)}

        def extended(chosen: dict[str, Label]) -> Iterator[dict[str, Label]]:
            if len(chosen) == len(order):
                yield chosen
                return
            axis = order[len(chosen)]
            for label in self._counting(axis, {name: label.text for name, label in chosen.items()}):
                yield from extended({**chosen, axis.name: label})

        for chosen in extended({}):
            yield tuple(chosen[name] for name in places)

    def ordered(self, axes: Mapping[str, Axis]) -> list[Axis]:
        """Return the axes, each after those on which it depends, otherwise in their order.

        Args:
            axes: by name, after the command line changed them.

        Raises:
            UserError: a condition is on an axis that the command line removed.
        """
        for name in axes:
            if gone := self._on(name) - axes.keys():
                raise UserError(
                    f"the axis {name!r} depends on {min(gone)!r}, which ~{min(gone)} takes away",
                    where=self._where,
                    fix=f"~{name} too, or one value: {min(gone)}=VALUE",
                )
        order: list[Axis] = []
        left = dict(axes)
        while left:
            name = next(name for name in left if not self._on(name) & left.keys())
            order.append(left.pop(name))
        return order

    def refuse_idle(self, axes: Sequence[Axis], touched: Collection[str]) -> None:
        """Refuse values of the command line that would change nothing.

        Args:
            axes: of the sweep, after the command line changed them.
            touched: names of the axes that it changed.

        Raises:
            UserError: such an axis counts nowhere.
        """
        for axis in axes:
            if axis.name in touched and axis.name in self._by_axis:
                needed = self._needed(axis.name, {each.name: each for each in axes})
                if not any(point[-1] is not ABSENT for point in self.points(needed)):
                    raise UserError(
                        f"the values of {axis.name!r} would change nothing: it counts nowhere in this grid",
                        where=self._where,
                        allowed="; ".join(
                            f"{each.key} when {each.on.text}" for each in self._by_axis[axis.name]
                        ),
                    )

    def _parsed(self, key: str, text: str, axes: Mapping[str, Axis]) -> _Condition:
        where = f"when {key!r}, {self._where}"
        name = key.partition("=")[0].strip()
        on = Selector.parse(text)
        if "cell" in on.keys:
            raise UserError(
                f"{text!r} names no axis and value", where=where, allowed="AXIS=VALUE, AXIS!=VALUE"
            )
        for each in sorted({name, *on.keys}):
            if each not in axes:
                raise UserError(f"{each!r} is no axis", where=where, allowed=nearest(each, axes))
        if name in on.keys:
            raise UserError(f"the axis {name!r} depends on itself", where=where)
        if any(not label.text for label in axes[name].labels):
            raise UserError(
                f"the axis {name!r} has the empty label, which stands for no value here", where=where
            )
        values = Selector.parse(key if "=" in key else f"{name}=*")
        if values.keys != {name}:
            raise UserError(
                f"when {key!r} is about several axes", where=self._where, allowed="AXIS, AXIS=VALUE"
            )
        for selector in (values, on):
            selector.check(_samples([axes[each] for each in selector.keys]), where=where)
        return _Condition(key, name, values, on)

    def _counting(self, axis: Axis, texts: Mapping[str, str]) -> Sequence[Label]:
        """Return the labels of an axis that count beside the labels of the axes before it."""
        conditions = self._by_axis.get(axis.name)
        if not conditions:
            return axis.labels
        point = Subject(texts, {}, {})
        failing = [condition.values for condition in conditions if not condition.on.matches(point)]
        found = [
            label
            for label in axis.labels
            if not any(values.matches(_subject(axis, label)) for values in failing)
        ]
        return found or [ABSENT]

    def _on(self, name: str) -> frozenset[str]:
        """Return the axes on which an axis depends directly."""
        return frozenset().union(*(condition.on.keys for condition in self._by_axis.get(name, ())))

    def _needed(self, name: str, axes: Mapping[str, Axis]) -> list[Axis]:
        """Return an axis with all on which it depends; the axis itself is the last."""
        found, todo = dict[str, None](), list(self._on(name))
        while todo:
            if (other := todo.pop()) not in found:
                found[other] = None
                todo += self._on(other)
        return [*(axes[other] for other in found if other in axes), axes[name]]

    def _refuse_circles(self) -> None:
        left = set(self._by_axis)
        while ready := [name for name in left if not self._on(name) & left]:
            left.difference_update(ready)
        if left:
            raise UserError(
                f"axes depend on one another in a circle: {', '.join(sorted(left))}", where=self._where
            )

    def _refuse_useless(self, name: str, axes: Mapping[str, Axis]) -> None:
        """Refuse an axis with a value that counts nowhere in the grid of the sweep file."""
        left = {label.text for label in axes[name].labels}
        for point in self.points(self._needed(name, axes)):
            left.discard(point[-1].text)
            if not left:
                return
        keys = [each.key for each in self._by_axis[name]]
        raise UserError(
            f"the value {min(left)} of the axis {name!r} counts nowhere",
            where=f"when {', '.join(map(repr, keys))}, {self._where}",
            allowed="each value counts at one point of the grid or more",
        )


def _samples(axes: Sequence[Axis]) -> list[Subject]:
    """Return subjects that have together each label of some axes."""
    return [
        Subject({axis.name: axis.labels[min(n, len(axis.labels) - 1)].text for axis in axes}, {}, {})
        for n in range(max(len(axis.labels) for axis in axes))
    ]


def _subject(axis: Axis, label: Label) -> Subject:
    return Subject({axis.name: label.text}, {}, {})
