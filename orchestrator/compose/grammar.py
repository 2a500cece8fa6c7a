"""Hydra's override grammar: parsed with the rules of `scalars` for unquoted words, and written back quoted.

Hydra parses each override again when it composes. What it is given is therefore written by `grammar`, so that
it reads the values that were read here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from decimal import InvalidOperation
from typing import Any, Final

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

from orchestrator.compose.scalars import scalar
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
