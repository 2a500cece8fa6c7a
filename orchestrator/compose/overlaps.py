"""Labels that say what ran: axes that set one key are refused, and each label is compared with its cell.

A config group's axis may be refined by an axis of a key in it, ``trainer: [tiny, paper]`` by
``trainer.lr: [0.1, 0.2]``: the key is set last, and its label is the value that ran. Two axes that both name
a key would leave one of them with a label that is false.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from orchestrator.compose.axes import Axis, Label, leaf_keys
from orchestrator.compose.interpolations import has_interpolation, is_related
from orchestrator.core.tree import MISSING, pick, scalar_text
from orchestrator.errors import UserError


class _Overlap(NamedTuple):
    """Two axes, by position, and a key that each of them names, of which one lies in the other."""

    first: int
    first_key: str
    second: int
    second_key: str


class Overlaps:
    """The keys that more than one axis names.

    Args:
        axes: of the sweep.
        is_group: whether a key is a config group; a group's own keys are not named by choosing it.
        where: the sweep file.
    """

    def __init__(self, axes: Sequence[Axis], is_group: Callable[[str], bool], *, where: str) -> None:
        self._axes, self._where, self._is_group = axes, where, is_group
        keys = [{key for label in axis.labels for key in self._named(label)} for axis in axes]
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

        Args:
            labels: one of each axis.

        Raises:
            UserError: both axes are named, with the key.
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
    """Return the label of an axis whose name is a key, as the cell has it: an interpolation becomes a value.

    Args:
        label: with one setting, of a key and not of a config group.
        config: the cell's, resolved and typed.
        where: the cell and the sweep file.

    Raises:
        UserError: the config has another value than the label says.
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
    """Tell whether a config has what a label says; a section may hold more, a schema makes 1.0 of 1."""
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
