"""The selector language: which cells a verb, an exclusion or a `skip` speaks of. Pure.

Words joined by spaces are *and*, commas within a word *or*: ``model=tiny-a state=failed``,
``mixture=en,en+sw``, ``seed!=0``, ``task=m*``. A word without ``=`` names cells by id, prefix or glob.
Quotes keep spaces and commas: ``prompt="step by step",'a, b'``.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from orchestrator.core.failure import Cause
from orchestrator.core.state import State
from orchestrator.core.tree import MISSING, Missing, dotted_keys, pick, scalar_text
from orchestrator.errors import UserError, nearest

_WORD = re.compile(r"(?P<key>[^=!,\s]+)(?P<op>!?=)(?P<values>.*)", re.DOTALL)
_PIECE = re.compile(r"""(?P<space>\s+)|'(?P<single>[^']*)'|"(?P<double>[^"]*)"|(?P<bare>[^\s'"]+)""")
_KEPT_COMMA = "\0"
"""Stands for a comma in quotes until a word is split at the others."""

_NUMBER = re.compile(r"[+-]?((0|[1-9]\d*)\.?\d*|\.\d+)([eE][+-]?\d+)?")
"""With a leading zero, such as ``010``, it is text, as in sweep files."""

_OWN_KEYS = ("state", "cause", "cell")


class Subject(NamedTuple):
    """What a selector is matched against.

    Attributes:
        axes: axis name to label.
        columns: the sweep's columns.
        config: the cell's config.
        cell: its id, "" before it has one.
        state: its state, None where states are not known.
        cause: the cause of its failure, None without one.
    """

    axes: Mapping[str, str]
    columns: Mapping[str, Any]
    config: Mapping[str, Any]
    cell: str = ""
    state: str | None = None
    cause: str | None = None

    def value(self, key: str) -> Any:
        """Returns what a key stands for: axis, column, `state`, `cause`, `cell`, config; else MISSING."""
        if key in self.axes:
            return self.axes[key]
        if key in self.columns:
            return self.columns[key]
        if key in _OWN_KEYS:
            return getattr(self, key)
        return pick(self.config, key)

    def known(self) -> list[str]:
        """Lists all that `value` knows."""
        return [*self.axes, *self.columns, *_OWN_KEYS, *dotted_keys(self.config)]


class _Pattern:
    """One alternative of a word: text, a number or a glob."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.number = _number(text)
        self.is_glob = any(sign in text for sign in "*?[")
        self._glob = re.compile(fnmatch.translate(text)) if self.is_glob else None

    def matches(self, value: Any) -> bool:
        if isinstance(value, list | tuple):
            return any(map(self.matches, value)) or self._matches_text("+".join(map(scalar_text, value)))
        text = scalar_text(value)
        if self._matches_text(text):
            return True
        return self.number is not None and self.number == _number(text)

    def _matches_text(self, text: str) -> bool:
        return text == self.text or (self._glob is not None and self._glob.match(text) is not None)


@dataclass(frozen=True)
class _Word:
    """``key=a,b``, ``key!=a``, or (with key None) ids of cells."""

    key: str | None
    negated: bool
    patterns: tuple[_Pattern, ...]

    def matches(self, subject: Subject) -> bool:
        if self.key is None:
            return any(pattern.matches(subject.cell) for pattern in self.patterns) or any(
                subject.cell.startswith(pattern.text) for pattern in self.patterns
            )
        value = subject.value(self.key)
        return self.negated != (
            not isinstance(value, Missing) and any(pattern.matches(value) for pattern in self.patterns)
        )


@dataclass(frozen=True)
class Selector:
    """A parsed selector.

    Attributes:
        text: as the user wrote it.
    """

    text: str
    _words: tuple[_Word, ...]

    @classmethod
    def parse(cls, text: str) -> Selector:
        """Parses a selector.

        Raises:
            UserError: it is empty, or a word is malformed.
        """
        words = tuple(_parse_word(word, text) for word in _split(text))
        if not words:
            raise UserError("the selector is empty", fix='for example "model=tiny-* state=failed"')
        return cls(text, words)

    @property
    def keys(self) -> frozenset[str]:
        """The keys that it asks for; ``cell`` stands for bare words."""
        return frozenset(word.key or "cell" for word in self._words)

    def matches(self, subject: Subject) -> bool:
        """Tells whether all words match; a key that this cell lacks matches nothing."""
        return all(word.matches(subject) for word in self._words)

    def check(
        self,
        subjects: Sequence[Subject],
        *,
        labels: Mapping[str, Collection[str]] | None = None,
        where: str = "",
    ) -> None:
        """Refuses what cannot be meant: unknown keys, unknown labels, ids of no cell or of several.

        Args:
            subjects: all cells that it could match.
            labels: more labels an axis may have, for example those that the command line narrowed away.
            where: what to name in an error.

        Raises:
            UserError: with the nearest names.
        """
        for word in self._words:
            if word.key is None:
                _check_ids(word, subjects, where)
            else:
                _check_word(word.key, word, subjects, (labels or {}).get(word.key, ()), where)


_Item = TypeVar("_Item")


def any_of(selectors: Sequence[Selector], subject: Subject) -> bool:
    """Tells whether a cell matches one of several selectors; without any, every cell does."""
    return not selectors or any(selector.matches(subject) for selector in selectors)


def select(texts: Sequence[str], items: Iterable[tuple[_Item, Subject]]) -> list[_Item]:
    """Returns the items whose subject matches one of the selectors (all items without any).

    Raises:
        UserError: a selector is malformed or names what does not exist.
    """
    pairs = list(items)
    selectors = [Selector.parse(text) for text in texts]
    subjects = [subject for _, subject in pairs]
    for selector in selectors:
        selector.check(subjects)
    return [item for item, subject in pairs if any_of(selectors, subject)]


def refuse_impossible(texts: Iterable[str], subjects: Sequence[Subject]) -> None:
    """Refuse selectors whose words no cell can match together, whatever its state is now.

    Raises:
        UserError: one is such, as ``seed=0 seed=1``, where ``seed=0,1`` is meant.
    """
    for text in texts:
        words = [word for word in Selector.parse(text)._words if word.key not in ("state", "cause")]
        if words and not any(all(word.matches(subject) for word in words) for subject in subjects):
            raise UserError(
                f"no cell matches {text!r}",
                allowed="all words of a selector must match; key=a,b means either value",
            )


def _split(text: str) -> list[str]:
    """Splits at spaces, but for those in quotes; commas in quotes become `_KEPT_COMMA`."""
    words: list[str | None] = [None]
    position = 0
    while position < len(text):
        piece = _PIECE.match(text, position)
        if piece is None:
            raise UserError(f"a quote is not closed in the selector {text!r}")
        position = piece.end()
        if piece["space"]:
            words.append(None)
        else:
            quoted = piece["single"] if piece["single"] is not None else piece["double"]
            part = piece["bare"] if quoted is None else quoted.replace(",", _KEPT_COMMA)
            words[-1] = (words[-1] or "") + part
    return [word for word in words if word is not None]


def _patterns(values: str) -> tuple[_Pattern, ...]:
    return tuple(_Pattern(value.replace(_KEPT_COMMA, ",")) for value in values.split(","))


def _parse_word(word: str, text: str) -> _Word:
    match = _WORD.fullmatch(word)
    if match:
        return _Word(match["key"], match["op"] == "!=", _patterns(match["values"]))
    if "=" in word or "!" in word or not all(word.split(",")):
        word = word.replace(_KEPT_COMMA, ",")
        raise UserError(
            f"{word!r} is no word of a selector",
            where=f"in {text!r}" if word != text else "",
            allowed="key=value, key=a,b, key!=value, key=glob*, or the id of a cell",
        )
    return _Word(None, False, _patterns(word))


def _check_ids(word: _Word, subjects: Sequence[Subject], where: str) -> None:
    ids = [subject.cell for subject in subjects]
    if not any(ids):
        raise UserError(
            f"{word.patterns[0].text!r} names a cell by its id, which is not known here",
            where=where,
            allowed="key=value",
        )
    for pattern in word.patterns:
        named = [cell for cell in ids if pattern.matches(cell)]
        started = [cell for cell in ids if cell.startswith(pattern.text)]
        if not named and not started:
            raise UserError(f"no cell {pattern.text!r}", where=where, allowed=nearest(pattern.text, ids))
        if not named and len(started) > 1:
            raise UserError(
                f"{pattern.text!r} is the beginning of {len(started)} cells",
                where=where,
                allowed=", ".join(started[:3]) + (", ..." if len(started) > 3 else ""),
                fix=f"'{pattern.text}*' means them all",
            )


def _check_word(
    key: str, word: _Word, subjects: Sequence[Subject], more: Collection[str], where: str
) -> None:
    values = [value for subject in subjects if (value := subject.value(key)) is not MISSING]
    if subjects and not values:
        known = {name for subject in subjects[:100] for name in subject.known()}
        raise UserError(f"unknown key {key!r} in a selector", where=where, allowed=nearest(key, known))
    if any(isinstance(value, Mapping) for value in values):
        inner = {name for value in values if isinstance(value, Mapping) for name in value}
        raise UserError(
            f"{key!r} is a section of the config, not a value",
            where=where,
            allowed=nearest(key, [f"{key}.{name}" for name in inner]),
        )
    known_labels = _labels(key, subjects, more, where)
    if known_labels is None:
        return
    for pattern in word.patterns:
        if not pattern.is_glob and not any(pattern.matches(label) for label in known_labels):
            raise UserError(
                f"unknown {key} {pattern.text!r} in a selector",
                where=where,
                allowed=nearest(pattern.text, known_labels),
            )


def _labels(
    key: str, subjects: Sequence[Subject], more: Collection[str], where: str
) -> Collection[str] | None:
    """Returns all values that a key can have, or None where any value is possible."""
    if subjects and key in subjects[0].axes:
        return {*more, *(subject.axes[key] for subject in subjects)}
    if not subjects or key not in ("state", "cause") or key in subjects[0].columns:
        return None
    if not any(subject.state for subject in subjects):
        raise UserError(f"{key!r} is not known before a launch", where=where, allowed="axes and config keys")
    return [*State] if key == "state" else [*Cause, "null"]


def _number(text: str) -> float | None:
    return float(text) if _NUMBER.fullmatch(text) else None
