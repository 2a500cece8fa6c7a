"""Axes: what a sweep file and Hydra's override grammar say of them. It knows no config."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from orchestrator.compose.grammar import grammar, parse_override, values_of
from orchestrator.core.tree import scalar_text
from orchestrator.errors import UserError, nearest


class Setting(NamedTuple):
    """One key (a config group or a dotted key) and the value it gets; `prefix` is Hydra's ``+`` or ``++``."""

    key: str
    value: Any
    prefix: str = ""

    @property
    def text(self) -> str:
        """The setting in Hydra's grammar."""
        return f"{self.prefix}{self.key}={grammar(self.value)}"


class Label(NamedTuple):
    """One value of an axis: its name, its part of a cell's id, and what it sets."""

    text: str
    part: str
    settings: tuple[Setting, ...]


class Axis(NamedTuple):
    """An axis and its values; `is_map` when they have names of their own."""

    name: str
    labels: tuple[Label, ...]
    is_map: bool


def axis_of(name: str, value: Any, *, where: str) -> Axis:
    """Reads an axis of a sweep file: a list, a text in Hydra's grammar, or label to {key: value}.

    Raises:
        UserError: it is none of these, or empty.
    """
    match value:
        case str():
            value = values_of(parse_override(f"{name}={value}", where=where))
        case Mapping():
            labels = tuple(_named_label(name, label, keys, where) for label, keys in value.items())
            return checked(Axis(name, labels, is_map=True), where=where)
        case list():
            pass
        case _:
            raise UserError(
                f"axis {name!r} is {scalar_text(value)}",
                where=where,
                allowed="a list, or label: {key: value, ...}",
            )
    return checked(list_axis(name, value), where=where)


def list_axis(name: str, values: Iterable[Any], *, prefix: str = "") -> Axis:
    """Returns an axis whose name is the key that it sets."""
    labels = []
    for value in values:
        text = scalar_text(value)
        # "seed0" says more than "0" in an id; text and lists of it speak for themselves
        speaks = isinstance(value, str | list)
        part = text if speaks else f"{name.replace('/', '.').rpartition('.')[2]}{text}"
        labels.append(Label(text, part, (Setting(name, value, prefix),)))
    return Axis(name, tuple(labels), is_map=False)


def narrowed(axis: Axis, values: Sequence[Any]) -> Axis:
    """Returns an axis of the file with the values given on the command line.

    Raises:
        UserError: a value is no label of an axis whose labels are named.
    """
    if not axis.is_map:
        return list_axis(axis.name, values)
    by_text = {label.text: label for label in axis.labels}
    for text in map(scalar_text, values):
        if text not in by_text:
            raise UserError(f"axis {axis.name!r} has no {text!r}", allowed=nearest(text, by_text))
    return axis._replace(labels=tuple(by_text[scalar_text(value)] for value in values))


def leaf_keys(key: str, value: Any) -> Iterator[str]:
    """Yield the dotted keys that a value sets: those of a section one by one."""
    if isinstance(value, Mapping) and value:
        for name, item in value.items():
            yield from leaf_keys(f"{key}.{name}", item)
    else:
        yield key


def cell_labels(axes: Sequence[Axis]) -> Iterator[dict[str, str]]:
    """Yields axis name to label for each point of the grid, the last axis fastest."""
    for labels in itertools.product(*(axis.labels for axis in axes)):
        yield {axis.name: label.text for axis, label in zip(axes, labels, strict=True)}


def _named_label(axis: str, label: Any, keys: Any, where: str) -> Label:
    if isinstance(label, bool) or label is None:
        raise UserError(
            f"axis {axis!r} has the label {label!r}",
            where=where,
            allowed="a label is text, which true, false, null and ~ are in quotes alone",
        )
    if not isinstance(keys, Mapping | None):
        raise UserError(
            f"label {scalar_text(label)!r} of axis {axis!r} is {scalar_text(keys)!r}, not what it sets",
            where=where,
            allowed=f"{scalar_text(label)}: {{key: value, ...}}; or a list of values: {axis}: [...]",
        )
    text = scalar_text(label)
    part = text if isinstance(label, str) else f"{axis}{text}"
    return Label(text, part, tuple(_setting(str(key), value) for key, value in (keys or {}).items()))


def _setting(key: str, value: Any) -> Setting:
    bare = key.lstrip("+")
    return Setting(bare, value, key[: len(key) - len(bare)])


def checked(axis: Axis, *, where: str = "") -> Axis:
    """Return an axis that has values, each of them once.

    Raises:
        UserError: it is empty, two labels read the same, or two values of a key are equal.
    """
    if not axis.labels:
        raise UserError(f"axis {axis.name!r} is empty", where=where, fix="give it a value or take it out")
    seen: dict[str, str] = {}
    for label in axis.labels:
        names = {f"label {label.text}"}
        if not axis.is_map:
            names.add(f"value {_comparable(label.settings[0].value)!r}")
        for name in names:
            if name in seen:
                both = f"{seen[name]} twice" if seen[name] == label.text else f"{seen[name]} and {label.text}"
                raise UserError(
                    f"axis {axis.name!r} has {both}, which is one value",
                    where=where,
                    fix="leave one of them out",
                )
            seen[name] = label.text
    return axis


def _comparable(value: Any) -> Any:
    """Return a form that is equal for numbers that are, ``1`` and ``1.0``, but not for ``1`` and ``true``."""
    match value:
        case bool() | str() | None:
            return value
        case int() | float():
            return (
                ("number", value)
                if isinstance(value, float) and not value.is_integer()
                else ("number", int(value))
            )
        case Mapping():
            return sorted((str(name), repr(_comparable(item))) for name, item in value.items())
        case list() | tuple():
            return [_comparable(item) for item in value]
        case _:
            return str(value)
