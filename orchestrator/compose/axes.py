"""Axes of a sweep, parsed from sweep files and from Hydra's override grammar, without any config."""

from __future__ import annotations

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
"""Maximum number of values of one axis."""

# Tokens that make a value more than an unquoted word: quotes, interpolations, escaped characters.
_NO_WORD = frozenset({OverrideLexer.QUOTED_VALUE, OverrideLexer.INTERPOLATION, OverrideLexer.ESC})


class _Visitor(HydraOverrideVisitor):
    """Builder of values from the parse tree, which reads unquoted words as YAML files do."""

    def visitPrimitive(self, ctx: Any) -> Any:
        """Return the value of a word, a quoted text or an interpolation."""
        return _word(ctx) if _is_word(ctx) else super().visitPrimitive(ctx)

    def visitDictKey(self, ctx: Any) -> Any:
        """Return a key of a mapping."""
        return _word(ctx) if _is_word(ctx) else super().visitDictKey(ctx)


class _Parser(OverridesParser):
    """Hydra's parser with the visitor above."""

    def parse_rule(self, s: str, rule_name: str) -> Any:
        """Parse a text, which begins with a key, by a rule of the grammar."""
        # Hydra's own method, except for the visitor: Hydra offers no argument for it.
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
    """Return a text for a message, with the middle left out if the text is long."""
    return text if len(text) <= 80 else f"{text[:40]} ... {text[-20:]}"


def _is_word(ctx: Any) -> bool:
    tokens = [child.symbol for child in ctx.getChildren()]
    return any(token.text.strip() for token in tokens) and _NO_WORD.isdisjoint(t.type for t in tokens)


def _word(ctx: Any) -> str | int | float | bool | None:
    return scalar("".join(child.symbol.text for child in ctx.getChildren()).strip())


def parse_override(text: str, *, where: str = "") -> Override:
    """Parse one override of Hydra's grammar.

    Args:
        text: such as ``model=tiny`` or ``seed=range(0,3)``.
        where: the file, for messages; "" for the command line.

    Raises:
        UserError: the text is no override.
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
    except UserError as error:  # a number that is too large
        raise UserError(error.what, where=where or f"in {cut(text)!r}", fix=error.fix) from None


def values_of(override: Override, options: Sequence[str] = ()) -> list[Any]:
    """Return the values of an override; a plain value is a list of one.

    Args:
        override: parsed.
        options: the options from which a ``glob(...)`` chooses.

    Raises:
        UserError: an interval, an endless range, a range that is too long, or a glob that matches nothing.
    """
    value = override._value  # the public value() keeps quotes in the values of a sweep
    text = str(override.input_line)
    try:
        match value:
            case ChoiceSweep():
                values = [plain(item) for item in value.list]
            case RangeSweep():
                if not value.step or not all(math.isfinite(x or 0) for x in (value.start, value.stop)):
                    raise UserError(f"{text!r} never ends", allowed="a step that is not 0, and finite bounds")
                # Check the length before the range is expanded: range(0,1e12) would fill the memory.
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
        is_glob = isinstance(value, Glob)
        allowed = nearest(text.partition("=")[2], options) if is_glob else "range(start,stop,step)"
        raise UserError(f"{text!r} has no value", allowed=allowed)
    return values


def _check_length(text: str, value: RangeSweep) -> None:
    num_values = (float(value.stop or 0) - float(value.start or 0)) / float(value.step)
    if num_values > MAX_VALUES:
        raise UserError(
            f"{cut(text)!r} has {num_values:,.0f} values", allowed=f"an axis has at most {MAX_VALUES:,}"
        )


def plain(value: Any) -> Any:
    """Return a parsed value without the parser's types for quoted text.

    Args:
        value: from an `Override`.

    Raises:
        UserError: a function with several values stands among other values or in a list.
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
    """Return a value in Hydra's grammar. Text is always quoted, so that it stays text."""
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
    """A key and the value that it is set to.

    Attributes:
        key: a config group or a dotted key.
        value: a plain value.
        prefix: Hydra's ``+`` (add) or ``++`` (add or replace), "" to replace.
    """

    key: str
    value: Any
    prefix: str = ""

    @property
    def text(self) -> str:
        """The setting in Hydra's grammar."""
        return f"{self.prefix}{self.key}={grammar(self.value)}"


class Label(NamedTuple):
    """One value of an axis.

    Attributes:
        text: its name.
        part: its part of a cell's id.
        settings: what it sets.
    """

    text: str
    part: str
    settings: tuple[KeyValue, ...]


class Axis(NamedTuple):
    """An axis and its values.

    Attributes:
        name: of the axis.
        labels: its values.
        is_map: whether the values have names of their own. Otherwise the name of the axis is the key it sets.
    """

    name: str
    labels: tuple[Label, ...]
    is_map: bool


def axis_of(name: str, value: Any, *, where: str) -> Axis:
    """Return an axis of a sweep file.

    Args:
        name: of the axis.
        value: a list, a text in Hydra's grammar, or label to {key: value}.
        where: the file, for messages.

    Raises:
        UserError: the value has none of these forms, is empty, or lists a value twice.
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
    """Return an axis whose name is the key that it sets.

    Args:
        name: the key.
        values: of the key.
        prefix: Hydra's ``+`` or ``++``.
    """
    labels = []
    for value in values:
        text = scalar_text(value)
        # In an id, "seed0" is clearer than "0". Text and lists of text are clear without their key.
        speaks = isinstance(value, str | list)
        part = text if speaks else f"{name.replace('/', '.').rpartition('.')[2]}{text}"
        labels.append(Label(text, part, (KeyValue(name, value, prefix),)))
    return Axis(name, tuple(labels), is_map=False)


def narrowed(axis: Axis, values: Sequence[Any]) -> Axis:
    """Return an axis of the file, reduced to the values of the command line.

    An axis with named values keeps what they set. Any other axis takes the new values as they are.

    Args:
        axis: of the sweep file.
        values: from the command line.

    Raises:
        UserError: a value is not among the names of the axis's values.
    """
    if not axis.is_map:
        return list_axis(axis.name, values)
    by_text = {label.text: label for label in axis.labels}
    for text in map(scalar_text, values):
        if text not in by_text:
            raise UserError(f"axis {axis.name!r} has no {text!r}", allowed=nearest(text, by_text))
    return axis._replace(labels=tuple(by_text[scalar_text(value)] for value in values))


def leaf_keys(key: str, value: Any) -> Iterator[str]:
    """Yield the dotted keys that a value sets. For a section, yield the keys inside it."""
    if isinstance(value, Mapping) and value:
        for name, item in value.items():
            yield from leaf_keys(f"{key}.{name}", item)
    else:
        yield key


ABSENT: Final = Label("", "", ())
"""The label of an axis at points where it does not count."""


def texts_of(axes: Sequence[Axis], labels: Sequence[Label]) -> dict[str, str]:
    """Return axis name to label of one point."""
    return {axis.name: label.text for axis, label in zip(axes, labels, strict=True)}


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
    """Return the axis unchanged if it has values and each of them is given once.

    Args:
        axis: to check.
        where: the file or override, for messages.

    Raises:
        UserError: it is empty, two labels have the same text, or two values of a key are equal.
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
    """Return a form of a value that is equal for ``1`` and ``1.0``, but not for ``1`` and ``true``."""
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
