"""API calls as text: parse them with a scanner, compare them exactly, and write them (study section 3).

Real calls are not valid Python. For example, ``attendees='['John', 'Jane']'`` has quotes inside the same
quotes. Therefore this module never evaluates a call. In other languages, models write full-width delimiters
(``（``, ``，``, ``：``), typographic quotes and invisible marks, which the scanner accepts as well. It keeps
every character of a value. This module owns the grammar of a call; `values` compares values.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from typing import NamedTuple

import msgspec

from orchestrator.tasks.numbers import UNSEEN
from orchestrator.tasks.values import CLOSERS, same_value

LABEL = "API-Request:"
"""The label that a request begins with."""

_S = rf"[\s{UNSEEN}]"
# Delimiters in ASCII and in the forms that Chinese and Japanese texts use.
_OPEN, _CLOSE, _BRACKET, _UNBRACKET = "[(（﹙]", "[)）﹚]", "[\\[［【]", "[\\]］】]"
_COMMAS, _EQUAL = "[,，﹐､、]", "[=＝﹦]"
_LABEL = re.compile(rf"API[-‐‑－]{_S}*Request{_S}*[:：﹕]")


class Call(msgspec.Struct, frozen=True):
    """A call.

    Attributes:
        name: the name of the API.
        args: map from key to value. Values are text without their outer quotes.
    """

    name: str
    args: dict[str, str]


def parse_call(text: str) -> Call | None:
    """Return the first call of a generated text, or None if there is none that can be parsed.

    A call with positional arguments and one that is cut off do not count. No text makes this function
    raise.
    """
    found = find_call(text)
    return found.call if found else None


def calls_match(predicted: Call | None, gold: Call | None) -> bool:
    """Return whether two calls have the same name, keys and values. The order of keys is free."""
    if predicted is None or gold is None or _nfc(predicted.name) != _nfc(gold.name):
        return False
    given, wanted = _normal(predicted.args), _normal(gold.args)
    return given.keys() == wanted.keys() and all(same_value(given[key], wanted[key]) for key in wanted)


def serialise(call: Call) -> str:
    """Return a call in the form of the gold answers, with escapes only where they are needed."""
    arguments = ", ".join(f"{key}='{_escaped(value)}'" for key, value in call.args.items())
    return f"{LABEL} [{call.name}({arguments})]"


class FoundCall(NamedTuple):
    """A call and the position of its end in the text."""

    call: Call
    end: int


def find_call(text: str) -> FoundCall | None:
    """Return the first call of a generated text and the position of its end; see `parse_call`."""
    start = _start(text)
    if start is None:
        return None
    brackets = re.search(_BRACKET, start[0]) is not None
    # The strict pass treats `)]` before a quote as part of a value, as in x='[f('a')]'. Calls that end in
    # such a way by mistake are found only by the second pass.
    for is_strict in (True, False):
        found = _Scanner(text, has_bracket=brackets, is_strict=is_strict).arguments(start.end())
        if found is not None:
            args = {_nfc(key): _nfc(value) for key, value in found[0].items()}
            return FoundCall(Call(_nfc(start["name"]), args), found[1])
    return None


def _nfc(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def _normal(args: Mapping[str, str]) -> dict[str, str]:
    return {_nfc(key): _nfc(value) for key, value in args.items()}


_THOUGHT = re.compile(r"\s*<think>.*?</think>", re.DOTALL)
_THINKS = re.compile(r"\s*<think>")


def _after_thought(text: str) -> int:
    """Return the end of what a reasoning model thinks before its answer, which is no request."""
    thought = _THOUGHT.match(text)
    return thought.end() if thought else 0


def has_label(text: str) -> bool:
    """Return whether a text contains the label of a request, outside of a thought."""
    begin = _after_thought(text)
    return not (begin == 0 and _THINKS.match(text)) and _LABEL.search(text, begin) is not None


_WORD = r"[^\W\d][\w.-]*"
_CODE = rf"[\s`{UNSEEN}]"
# Gold calls have the form ``[Name(``. After the label, a model may also omit the bracket, or put the call
# into quotes or a code fence.
_BRACKETED = re.compile(rf"{_BRACKET}{_CODE}*(?P<name>{_WORD}){_S}*{_OPEN}")
_LABELLED = re.compile(
    rf"(?:{_S}|[`*'\"‘’“”])*(?:(?<=```)[a-z]{{1,12}}\s{_S}*)?(?:{_BRACKET}{_CODE}*)?(?P<name>{_WORD}){_S}*{_OPEN}"
)


def _start(text: str) -> re.Match[str] | None:
    """Return the start of the first call: after the first label, else the first ``[Name(``."""
    begin = _after_thought(text)
    label = _LABEL.search(text, begin)
    if label is None:
        return _BRACKETED.search(text, begin)
    after = label.end()
    # The model may write words between the label and the call, but only on the same line.
    line = text.find("\n", after)
    return _LABELLED.match(text, after) or _BRACKETED.search(text, after, len(text) if line < 0 else line)


_SPACE = re.compile(rf"{_S}*")
# A comma or a closing parenthesis may belong to a value. The patterns below therefore include what follows:
# a comma separates arguments only before ``key=``, and a call ends only before its bracket, the next call,
# or the end of the line.
_NAME = rf"[^\W\d][\w.-]*{_S}*{_EQUAL}(?!=)"
_KEY = re.compile(rf"{_S}*(?P<key>[^\W\d][\w.-]*){_S}*{_EQUAL}(?!=){_S}*")
_COMMA = re.compile(rf"{_S}*{_COMMAS}(?={_S}*{_NAME})")
_TRAILING = rf"{_S}*{_COMMAS}(?={_S}*{_CLOSE})"
_CLOSED = re.compile(rf"{_CLOSE}{_CODE}*(?:{_COMMAS}{_S}*)?{_UNBRACKET}")
_QUOTES = "'\"’”‘“"
_WRAPPER = rf"[{_QUOTES}](?=[ \t`*.;]*(?:\n|\Z))"  # a quote around the whole call, which ends no value
_IN_A_VALUE = re.compile(rf"[ \t]*(?:(?!{_WRAPPER})[{_QUOTES}]|{_CLOSE}|{_COMMAS}{_S}*{_NAME})")
_NEXT = rf"{_CLOSE}(?:{_S}*(?:{_COMMAS}|[;；])|[ \t{UNSEEN}]*\r?\n){_S}*{_WORD}{_S}*{_OPEN}"
_ANOTHER = re.compile(_NEXT)
_BARE_END = re.compile(rf"{_CLOSE}(?=[ \t`*.,;{UNSEEN}\]］】]*(?:\r?\n|\Z|->|\#|<[|｜/]))")
_OPENS = frozenset("[{(,:=［｛（【，：＝")
_BEGIN, _FINISH = frozenset("[{(［｛（【"), frozenset(")]}］｝）】")
_QUOTE_ENDS = re.compile(rf"{_S}*[,:)\]}}，：）］｝】]")
_ESCAPABLE = frozenset("\\'\"’”＇＂")


_CLOSES = frozenset(")）﹚")
_ENDS = frozenset(",，﹐､、)）﹚")
_BLANK = " \t\n\r\f\v\u00a0\u3000" + UNSEEN


_TRAILED = re.compile(rf"(?:{_TRAILING})?{_S}*")


class _Value(NamedTuple):
    """A value and what follows it.

    Attributes:
        text: the value.
        at: the position after the comma, if another argument follows.
        end: the end of the call, if this was the last argument.
    """

    text: str
    at: int
    end: int | None


class _Scanner:
    """A scanner for the arguments of one call.

    A quote or a parenthesis may belong to a value, so it closes the value only if a valid continuation
    follows. That is another ``key=``, or the end of the call. For example::

        f(x='it's', y=2)    the quote in "it's" is followed by "s": part of the value
        f(x='a', b', y=2)   the quote after "a" is followed by ", b'", which is no key: part of the value
    """

    def __init__(self, text: str, *, has_bracket: bool, is_strict: bool) -> None:
        self.text = text
        self.has_bracket = has_bracket
        self.is_strict = is_strict

    def arguments(self, at: int) -> tuple[dict[str, str], int] | None:
        """Return the arguments and the position of the call's end, or None if there is no whole call."""
        args: dict[str, str] = {}
        closing = _SPACE.match(self.text, at)
        end = self._end(closing.end() if closing else at)
        while end is None:
            key = _KEY.match(self.text, at)
            if key is None or key["key"] in args:
                return None
            quote = self.text[key.end() : key.end() + 1]
            value = self._quoted(key.end()) if quote in CLOSERS else None
            if value is None and quote not in CLOSERS.keys() - {"’", "”"}:  # ’90s: an apostrophe, not a quote
                value = self._bare(key.end())
            if value is None:
                return None
            args[key["key"]], at, end = value
        return args, end

    def _end(self, at: int) -> int | None:
        """Return the position of the call's end if the parenthesis at `at` closes the call."""
        if self.text[at : at + 1] not in _CLOSES:
            return None
        if another := _ANOTHER.match(self.text, at):  # several calls: only the first counts
            line = self.text.find("\n", another.end())
            return len(self.text) if line < 0 else line
        # Without a bracket around the call, only the end of the line proves that the call is complete.
        if not self.has_bracket:
            bare = _BARE_END.match(self.text, at)
            return bare.end() if bare else None
        closed = _CLOSED.match(self.text, at)
        if closed is None or (self.is_strict and _IN_A_VALUE.match(self.text, closed.end())):
            return None
        return closed.end()

    def _after(self, at: int) -> tuple[int, int | None] | None:
        """Return where to continue if a value may end at `at`, and the call's end if it was the last."""
        if comma := _COMMA.match(self.text, at):
            return comma.end(), None
        space = _TRAILED.match(self.text, at)
        end = self._end(space.end() if space else at)
        return None if end is None else (end, end)

    def _quoted(self, start: int) -> _Value | None:
        """Return the value whose opening quote is at `start`, or None if it is never closed."""
        text, at = self.text, start + 1
        # Only a quote with a valid continuation closes the value; all others are part of it.
        closers = CLOSERS[text[start]]
        characters: list[str] = []
        while at < len(text):
            character = text[at]
            if character == "\\" and text[at + 1 : at + 2] in _ESCAPABLE:
                at += 1
                character = text[at]
            elif character in closers and (after := self._after(at + 1)):
                value = "".join(characters)
                return _Value(value.strip(" \u00a0\u202f") if text[start] == "«" else value, *after)
            characters.append(character)
            at += 1
        return None

    def _bare(self, start: int) -> _Value | None:
        # Commas and parentheses inside brackets, or inside quotes within brackets, do not end a value.
        """Return the value without quotes that begins at `start`, or None if it never ends."""
        text, depth, quote, before = self.text, 0, "", "="
        for at in range(start, len(text)):
            character = text[at]
            if quote:
                if character in quote and before != "\\" and _QUOTE_ENDS.match(text, at + 1):
                    quote = ""
            elif character in CLOSERS and depth and before in _OPENS:
                quote = CLOSERS[character] if character not in "'\"" else character
            elif character in _BEGIN:
                depth += 1
            elif depth and character in _FINISH:
                depth -= 1
            elif not depth and character in _ENDS and (after := self._after(at)):
                return _Value(text[start:at].strip(_BLANK), *after)
            if character not in _BLANK:
                before = character
        return None


_BACKSLASH = re.compile(r"\\(?=[\\'\"’”＇＂]|\Z)")
_CLOSING_QUOTE = re.compile(
    rf"['’](?={_S}*{_COMMAS}{_S}*{_NAME}|(?:{_TRAILING})?{_S}*(?:{_CLOSED.pattern}|{_NEXT}))"
)


def _escaped(value: str) -> str:
    """Return a value with a backslash before each character that would otherwise end it or escape."""
    return _CLOSING_QUOTE.sub(r"\\\g<0>", _BACKSLASH.sub(r"\\\\", value))
