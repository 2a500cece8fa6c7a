"""Axes: what a sweep file and Hydra's override grammar say of them. It knows no config."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from decimal import InvalidOperation
from typing import Any, Final, NamedTuple

from antlr4 import CommonTokenStream, InputStream  # type: ignore[import-untyped]
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.overrides_visitor import HydraErrorListener, HydraOverrideVisitor
from hydra.core.override_parser.types import (
    ChoiceSweep,
    Glob,
    Override,
    Quote,
    QuotedString,
    RangeSweep,
    Sweep,
)
from hydra.errors import HydraException
from hydra.grammar.gen.OverrideLexer import OverrideLexer
from hydra.grammar.gen.OverrideParser import OverrideParser

from orchestrator.compose.reading import scalar
from orchestrator.core.tree import scalar_text
from orchestrator.errors import UserError, nearest

_FORM = "KEY=VALUE, and quotes around text with other characters: 'KEY=\"a b: c\"'"

MAX_VALUES: Final = 1_000_000
"""Values of one axis."""

_NO_WORD = frozenset({OverrideLexer.QUOTED_VALUE, OverrideLexer.INTERPOLATION, OverrideLexer.ESC})


class _Visitor(HydraOverrideVisitor):
    """Builds values from the parse tree; unquoted words are read as in YAML files."""

    def visitPrimitive(self, ctx: Any) -> Any:
        """Return the value of a word, a quoted text or an interpolation."""
        return _word(ctx) if _is_word(ctx) else super().visitPrimitive(ctx)

    def visitDictKey(self, ctx: Any) -> Any:
        """Return a key of a mapping."""
        return _word(ctx) if _is_word(ctx) else super().visitDictKey(ctx)


class _Parser(OverridesParser):
    """Hydra's parser with the visitor above."""

    def parse_rule(self, s: str, rule_name: str) -> Any:
        """Parse a text by a rule of the grammar, which begins with a key."""
        listener = HydraErrorListener()
        lexer = OverrideLexer(InputStream(s))
        parser = OverrideParser(CommonTokenStream(lexer))
        for recognizer in (lexer, parser):
            recognizer.removeErrorListeners()
            recognizer.addErrorListener(listener)
        override: Override = _Visitor(self.functions).visit(getattr(parser, rule_name)())
        override.input_line = s
        override.validate()
        return override


def cut(text: str) -> str:
    """Return a text for a message, its middle left out when it is long."""
    return text if len(text) <= 80 else f"{text[:40]} ... {text[-20:]}"


def _is_word(ctx: Any) -> bool:
    tokens = [child.symbol for child in ctx.getChildren()]
    return any(token.text.strip() for token in tokens) and _NO_WORD.isdisjoint(t.type for t in tokens)


def _word(ctx: Any) -> str | int | float | bool | None:
    return scalar("".join(child.symbol.text for child in ctx.getChildren()).strip())


def parse_override(text: str, *, where: str = "") -> Override:
    """Parses one override of Hydra's grammar.

    Raises:
        UserError: it is none.
    """
    try:
        override: Override = _Parser.create().parse_override(text)
        if not override.key_or_group:
            raise HydraException("it has no key")
        return override
    except HydraException as error:
        reason = " ".join(str(error).strip().splitlines()[:1]) or type(error).__name__
        raise UserError(f"{cut(text)!r} is no override: {cut(reason)}", where=where, allowed=_FORM) from None
    except RecursionError:
        raise UserError(f"{cut(text)!r} nests too deeply", where=where, allowed=_FORM) from None
    except UserError as error:  # of a number
        raise UserError(error.what, where=where or f"in {cut(text)!r}", fix=error.fix) from None


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
                _check_length(text, value)
                values = list(value.range())
            case Glob():
                values = list(value.filter(list(options)))
            case _ if override.is_sweep_override():
                raise UserError(f"{text!r} has no list of values", allowed="a,b or range(0,3)")
            case _:
                return [plain(value)]
    except (InvalidOperation, OverflowError, ValueError, HydraException) as error:
        raise UserError(f"{cut(text)!r} is no list of values: {error}") from None
    if not values:
        raise UserError(f"{text!r} has no value", allowed=nearest(text.partition("=")[2], options))
    return values


def _check_length(text: str, value: RangeSweep) -> None:
    num_values = (float(value.stop or 0) - float(value.start or 0)) / float(value.step)
    if num_values > MAX_VALUES:
        raise UserError(
            f"{cut(text)!r} has {num_values:,.0f} values", allowed=f"an axis has at most {MAX_VALUES:,}"
        )


def plain(value: Any) -> Any:
    """Returns a parsed value without the grammar's marks of quotation.

    Raises:
        UserError: a function that gives several values is one of several values, or in a list.
    """
    match value:
        case Sweep() | Glob():
            raise UserError(
                "a function such as range(0,3) stands among other values",
                allowed="KEY=range(0,3) alone, or all values: KEY=0,1,2",
            )
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


def _grammar_key(key: Any) -> str:
    text = str(key)
    return text if text.replace("_", "a").replace("-", "a").isalnum() and text.isascii() else grammar(text)


class KeyValue(NamedTuple):
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
    settings: tuple[KeyValue, ...]


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
        labels.append(Label(text, part, (KeyValue(name, value, prefix),)))
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


def _setting(key: str, value: Any) -> KeyValue:
    bare = key.lstrip("+")
    return KeyValue(bare, value, key[: len(key) - len(bare)])


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
