"""Checks that labels state what ran: no two axes set one key, and each label agrees with the cell's config.

If two axes set one key, the later one would win, and the label of the other would be false:

    axes: {lr: [0.1], recipe: {small: {lr: 0.5}}}     the cell "lr=0.1 recipe=small" would run with 0.5

An axis of a config group may be refined by an axis of a key in the group, such as ``trainer: [tiny, paper]``
by ``trainer.lr: [0.1, 0.2]``. The key is set after the group, so both labels are true.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from orchestrator.compose.axes import Axis, Label, leaf_keys
from orchestrator.compose.interpolations import has_interpolation, is_related
from orchestrator.core.tree import MISSING, pick, scalar_text
from orchestrator.errors import UserError


class _Overlap(NamedTuple):
    """A key that two axes both set.

    Attributes:
        first: position of an axis.
        first_key: the key that it sets.
        second: position of a later axis.
        second_key: the key that it sets: the same key, or one in or above it.
    """

    first: int
    first_key: str
    second: int
    second_key: str


class Overlaps:
    """The keys that several axes set.

    Args:
        axes: of the sweep.
        is_group: returns whether a key is a config group. A choice of an option does not set the group's
            keys.
        where: the sweep file.
    """

    def __init__(self, axes: Sequence[Axis], is_group: Callable[[str], bool], *, where: str) -> None:
        self._axes, self._where, self._is_group = axes, where, is_group
        keys = [{key for label in axis.labels for key in self._named(label)} for axis in axes]
        # Found once, over all labels. Each point then only tests whether its own labels collide.
        self._found = [
            _Overlap(i, one, j, other)
            for j in range(len(axes))
            for i in range(j)
            for one in sorted(keys[i])
            for other in sorted(keys[j])
            if self._is_same(one, other)
        ]

    def check(self, labels: Sequence[Label]) -> None:
        """Refuse a point whose labels set a key twice.

        Only points are refused, not pairs of axes, so that exclusions can remove the points that collide.

        Args:
            labels: one of each axis.

        Raises:
            UserError: two labels set one key. The message names both axes and the key.
        """
        for i, one, j, other in self._found:
            if one in self._named(labels[i]) and other in self._named(labels[j]):
                first, second = (
                    f"{self._axes[n].name!r}"
                    + (f" (value {labels[n].text!r})" if self._axes[n].is_map else "")
                    for n in (i, j)
                )
                raise UserError(
                    f"the axes {first} and {second} both set {max(one, other, key=len)!r}",
                    where=self._where,
                    allowed="one of the two labels would be false",
                    fix="let one axis alone set it, or exclude the cells where both do",
                )

    def _named(self, label: Label) -> set[str]:
        return {key for setting in label.settings for key in self._keys(setting.key, setting.value)}

    def _keys(self, key: str, value: Any) -> Iterable[str]:
        return [key] if self._is_group(key) else leaf_keys(key, value)

    def _is_same(self, one: str, other: str) -> bool:
        if self._is_group(one) or self._is_group(other):
            return one == other
        return is_related(tuple(one.split(".")), tuple(other.split(".")))


def agreed(label: Label, config: Mapping[str, Any], *, where: str) -> Label:
    """Return the label of an axis whose name is a key, with an interpolation replaced by the cell's value.

    Args:
        label: with one setting, of a key that is no config group.
        config: of the cell, resolved and converted.
        where: the cell and the sweep file.

    Raises:
        UserError: the config has another value than the label states.
    """
    (setting,) = label.settings
    value = pick(config, setting.key)
    if has_interpolation(setting.value):
        text = scalar_text(value)
        return label._replace(text=text, part=text)
    if value is not MISSING and not _agree(setting.value, value):
        raise UserError(
            f"the label of {setting.key} is {label.text}, but the cell has {scalar_text(value)}",
            where=where,
            allowed="something sets it after the axis: the schema, or a fingerprint",
        )
    return label


def _agree(said: Any, value: Any) -> bool:
    """Return whether a config's value is the one on a label.

    A section may have further keys, and ``1`` equals ``1.0``, since a schema may convert it.
    """
    match said:
        case Mapping():
            return isinstance(value, Mapping) and all(
                name in value and _agree(item, value[name]) for name, item in said.items()
            )
        case list() | tuple():
            return (
                isinstance(value, list | tuple) and len(said) == len(value) and all(map(_agree, said, value))
            )
        case _:
            return bool(said == value or (said != said and value != value))  # NaN is refused elsewhere
