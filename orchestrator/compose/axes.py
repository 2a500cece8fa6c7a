"""Axes: what a sweep file and Hydra's override grammar say of them. It knows no config."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from decimal import InvalidOperation
from typing import Any, NamedTuple

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Glob, Override, Quote, QuotedString, RangeSweep
from hydra.errors import HydraException

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
            return _filled(Axis(name, labels, is_map=True), where)
        case list():
            pass
        case _:
            raise UserError(
                f"axis {name!r} is {value!r}", where=where, allowed="a list, or label: {key: value, ...}"
            )
    return _filled(list_axis(name, value), where)


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


def parse_override(text: str, *, where: str = "") -> Override:
    """Parses one override of Hydra's grammar.

    Raises:
        UserError: it is none.
    """
    try:
        override = OverridesParser.create().parse_override(text)
        if not override.key_or_group:
            raise HydraException("it has no key")
        return override
    except HydraException as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"{text!r} is no override: {reason}", where=where, allowed="KEY=VALUE") from None


def values_of(override: Override, options: Sequence[str] = ()) -> list[Any]:
    """Lists the values of an override, one for a plain value.

    Args:
        override: parsed.
        options: what a ``glob(...)`` chooses from.

    Raises:
        UserError: an interval, an endless range or a glob that matches nothing.
    """
    value = override._value  # value() keeps the quotes of the values of a sweep
    text = str(override.input_line)
    try:
        match value:
            case ChoiceSweep():
                values = [plain(item) for item in value.list]
            case RangeSweep():
                if not value.step or not all(math.isfinite(x or 0) for x in (value.start, value.stop)):
                    raise UserError(f"{text!r} never ends")
                values = list(value.range())
            case Glob():
                values = list(value.filter(list(options)))
            case _ if override.is_sweep_override():
                raise UserError(f"{text!r} has no list of values", allowed="a,b or range(0,3)")
            case _:
                return [plain(value)]
    except (InvalidOperation, ValueError, HydraException) as error:
        raise UserError(f"{text!r} is no list of values: {error}") from None
    if not values:
        raise UserError(f"{text!r} has no value", allowed=nearest(text.partition("=")[2], options))
    return values


def plain(value: Any) -> Any:
    """Returns a parsed value without the grammar's marks of quotation."""
    match value:
        case QuotedString():
            return value.text
        case list():
            return [plain(item) for item in value]
        case dict():
            return {plain(key): plain(item) for key, item in value.items()}
        case _:
            return value


def grammar(value: Any) -> str:
    """Writes a value in Hydra's grammar; text is always quoted, so it stays text."""
    match value:
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case int() | float():
            return repr(value)
        case Mapping():
            items = (f"{_grammar_key(key)}:{grammar(item)}" for key, item in value.items())
            return "{" + ",".join(items) + "}"
        case list() | tuple():
            return "[" + ",".join(map(grammar, value)) + "]"
        case _:
            return QuotedString(str(value), Quote.single).with_quotes()


def cell_labels(axes: Sequence[Axis]) -> Iterator[dict[str, str]]:
    """Yields axis name to label for each point of the grid, the last axis fastest."""
    for labels in itertools.product(*(axis.labels for axis in axes)):
        yield {axis.name: label.text for axis, label in zip(axes, labels, strict=True)}


def _grammar_key(key: Any) -> str:
    text = str(key)
    return text if text.replace("_", "a").replace("-", "a").isalnum() and text.isascii() else grammar(text)


def _named_label(axis: str, label: Any, keys: Any, where: str) -> Label:
    if isinstance(label, bool) or label is None:
        raise UserError(
            f"axis {axis!r} has the label {label!r}",
            where=where,
            allowed="YAML reads no, yes, on, off and null as other than text",
            fix='put the label in quotes, such as "no"',
        )
    if not isinstance(keys, Mapping | None):
        raise UserError(
            f"{keys!r} of axis {axis!r}, label {label!r}", where=where, allowed="{key: value, ...}"
        )
    text = scalar_text(label)
    part = text if isinstance(label, str) else f"{axis}{text}"
    return Label(text, part, tuple(_setting(str(key), value) for key, value in (keys or {}).items()))


def _setting(key: str, value: Any) -> Setting:
    bare = key.lstrip("+")
    return Setting(bare, value, key[: len(key) - len(bare)])


def _filled(axis: Axis, where: str) -> Axis:
    if not axis.labels:
        raise UserError(f"axis {axis.name!r} is empty", where=where, fix="give it a value or take it out")
    return axis
