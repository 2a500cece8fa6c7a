"""The selector language: choose cells for a command, an exclusion or a stage's `skip`. Pure.

Words joined by spaces mean *and*, commas within a word mean *or*:

    model=tiny-a state=failed        both must hold
    mixture=en,en+sw                 either value
    seed!=0  task=m*                 not equal; a glob
    tiny-a.math.en-3f                a cell by its id, its beginning or a glob
    prompt="step by step",'a, b'     quotes keep spaces and commas
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
"""Placeholder for a comma in quotes until the word is split at its other commas."""

_NUMBER = re.compile(r"[+-]?((0|[1-9]\d*)\.?\d*|\.\d+)([eE][+-]?\d+)?")
"""The form of a number. Text with a leading zero, such as ``010``, is no number, as in sweep files."""

# No axis may have these names (`check_axis`). A column may be called state or cause, and then hides the key.
_OWN_KEYS = ("state", "cause", "cell")
# Sweeps of earlier versions may have an axis of this name, which then hides the key.
_LATER_KEYS = ("failure",)


class Subject(NamedTuple):
    """The facts about a cell that selectors are matched against.

    Attributes:
        axes: axis name to label.
        columns: the sweep's columns.
        config: the cell's config.
        cell: its id, "" before it has one.
        state: its state, None where states are not available.
        cause: the cause of its failure, None if there is none.
        failure: the fingerprints of its failed stages.
    """

    axes: Mapping[str, str]
    columns: Mapping[str, Any]
    config: Mapping[str, Any]
    cell: str = ""
    state: str | None = None
    cause: str | None = None
    failure: tuple[str, ...] = ()

    def value(self, key: str) -> Any:
        """Return the value of a key, or MISSING.

        The first of these that has the key counts: axes, columns, `state`, `cause` and `cell`, the config,
        and at last `failure`.
        """
        if key in self.axes:
            return self.axes[key]
        if key in self.columns:
            return self.columns[key]
        if key in _OWN_KEYS:
            return getattr(self, key)
        found = pick(self.config, key)
        return getattr(self, key) if key in _LATER_KEYS and found is MISSING else found

    def known(self) -> list[str]:
        """Return all keys for which `value` finds a value."""
        return [*self.axes, *self.columns, *_OWN_KEYS, *_LATER_KEYS, *dotted_keys(self.config)]


class _Pattern:
    """One alternative of a word: text, a number or a glob."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.number = _number(text)
        self.is_glob = any(sign in text for sign in "*?[")
        self._glob = re.compile(fnmatch.translate(text)) if self.is_glob else None

    def matches(self, value: Any) -> bool:
        if isinstance(value, list | tuple):
            # A list matches by any of its items, or as a whole in the form of a label: en+sw.
            return any(map(self.matches, value)) or self._matches_text("+".join(map(scalar_text, value)))
        text = scalar_text(value)
        if self._matches_text(text):
            return True
        return self.number is not None and self.number == _number(text)

    def _matches_text(self, text: str) -> bool:
        return text == self.text or (self._glob is not None and self._glob.match(text) is not None)


@dataclass(frozen=True)
class _Word:
    """One word: ``key=a,b``, ``key!=a``, or (with key None) ids of cells."""

    key: str | None
    negated: bool
    patterns: tuple[_Pattern, ...]

    def matches(self, subject: Subject) -> bool:
        if self.key is None:
            return any(pattern.matches(subject.cell) for pattern in self.patterns) or any(
                subject.cell.startswith(pattern.text) for pattern in self.patterns
            )
        value = subject.value(self.key)
        # A missing key matches no pattern, so its negation is true.
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
        """Parse a selector.

        Raises:
            UserError: it is empty, or a word is malformed.
        """
        words = tuple(_parse_word(word, text) for word in _split(text))
        if not words:
            raise UserError("the selector is empty", fix='for example "model=tiny-* state=failed"')
        return cls(text, words)

    @property
    def keys(self) -> frozenset[str]:
        """The keys that the selector uses; ``cell`` stands for words without a key."""
        return frozenset(word.key or "cell" for word in self._words)

    def matches(self, subject: Subject) -> bool:
        """Return whether all words match. A key that the cell lacks equals no value."""
        return all(word.matches(subject) for word in self._words)

    def check(
        self,
        subjects: Sequence[Subject],
        *,
        labels: Mapping[str, Collection[str]] | None = None,
        where: str = "",
        together: bool = False,
    ) -> None:
        """Refuse words that must be mistakes: unknown keys, unknown labels, ids of no or of several cells.

        Args:
            subjects: all cells that could match.
            labels: further labels of an axis, such as those that the command line removed from it.
            where: what to name in an error.
            together: whether to refuse words of one key that no cell has together, such as ``seed=0 seed=1``.

        Raises:
            UserError: with the nearest names.
        """
        try:
            for word in self._words:
                if word.key is None:
                    _check_ids(word, subjects, where)
                else:
                    _check_word(word.key, word, subjects, (labels or {}).get(word.key, ()), where)
        except UserError as error:
            error.fix = self._in_quotes(subjects, labels or {}) or error.fix
            raise
        for key in sorted(self.keys) if together else ():
            words = [word for word in self._words if word.key == key]
            # The command line may have removed the cells that are meant, so values that are named count too.
            texts = (pattern.text for word in words for pattern in word.patterns)
            named = [Subject({key: text}, {}, {}) for text in (*(labels or {}).get(key, ()), *texts)]
            could = (*subjects, *named)
            if len(words) > 1 and not any(all(w.matches(s) for w in words) for s in could):
                raise UserError(
                    f"no cell has all that {self.text!r} demands of {key}",
                    where=where,
                    allowed="all words of a selector must match; key=a,b means either value",
                )

    def _in_quotes(self, subjects: Sequence[Subject], labels: Mapping[str, Collection[str]]) -> str:
        """Return how to write a value with a space or comma that stands in the text without quotes, or ""."""
        for key in sorted(self.keys - {"cell"}):
            values = (subject.value(key) for subject in subjects)
            texts = {scalar_text(value) for value in values if isinstance(value, str)} | {
                *labels.get(key, ())
            }
            for text in sorted(texts, key=len, reverse=True):
                bare = rf"{re.escape(key)}!?=([^ ]*,)?{re.escape(text)}"
                if re.search(r"[ ,]", text) and "'" not in text and re.search(bare, self.text):
                    return f"\"{key}='{text}'\": quotes inside those of the shell keep its spaces and commas"
        return ""


_Item = TypeVar("_Item")


def any_of(selectors: Sequence[Selector], subject: Subject) -> bool:
    """Return whether a cell matches at least one selector. Without selectors every cell matches."""
    return not selectors or any(selector.matches(subject) for selector in selectors)


def select(texts: Sequence[str], items: Iterable[tuple[_Item, Subject]]) -> list[_Item]:
    """Return the items whose subject matches one of the selectors. Without selectors return all items.

    Args:
        texts: the selectors.
        items: pairs of an item and its subject.

    Raises:
        UserError: a selector is malformed or names something that does not exist.
    """
    pairs = list(items)
    selectors = [Selector.parse(text) for text in texts]
    subjects = [subject for _, subject in pairs]
    for selector in selectors:
        selector.check(subjects)
    return [item for item, subject in pairs if any_of(selectors, subject)]


def refuse_impossible(texts: Iterable[str], subjects: Sequence[Subject]) -> None:
    """Refuse selectors whose words no cell can match together, in whatever state the cells are.

    Args:
        texts: the selectors.
        subjects: all cells.

    Raises:
        UserError: there is one, such as ``seed=0 seed=1`` where ``seed=0,1`` was meant.
    """
    for text in texts:
        words = [word for word in Selector.parse(text)._words if word.key not in ("state", "cause")]
        if words and not any(all(word.matches(subject) for word in words) for subject in subjects):
            raise UserError(
                f"no cell matches {text!r}",
                allowed="all words of a selector must match; key=a,b means either value",
            )


def _split(text: str) -> list[str]:
    """Split at spaces outside quotes. Replace commas in quotes by `_KEPT_COMMA`."""
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
            # A quote may stand inside a word: prompt="a b" is one word of two pieces.
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
        # Only for suggestions; a hundred cells show nearly all keys, and a sweep may have many thousands.
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
    """Return all values that a key can have, or None if any value is possible."""
    if subjects and key in subjects[0].axes:
        return {*more, *(subject.axes[key] for subject in subjects)}
    if not subjects or key in subjects[0].columns:
        return None
    if key in _LATER_KEYS and all(pick(subject.config, key) is MISSING for subject in subjects):
        return {value for subject in subjects for value in getattr(subject, key)}
    if key not in ("state", "cause"):
        return None
    if not any(subject.state for subject in subjects):
        raise UserError(f"{key!r} is not known before a launch", where=where, allowed="axes and config keys")
    return [*State] if key == "state" else [*Cause, "null"]


def _number(text: str) -> float | None:
    return float(text) if _NUMBER.fullmatch(text) else None


class Selectors(NamedTuple):
    """The exclusions and inclusions of a sweep file, with all labels that its axes have in the file.

    Attributes:
        exclude: selectors of points to leave out.
        include: selectors of points to keep; empty keeps all.
        labels: axis name to its labels, also those that the command line removed from the axis.
    """

    exclude: tuple[Selector, ...]
    include: tuple[Selector, ...]
    labels: Mapping[str, frozenset[str]]

    @classmethod
    def parse(
        cls, exclude: Iterable[str], include: Iterable[str], labels: Mapping[str, frozenset[str]]
    ) -> Selectors:
        """Parse the texts of the selectors.

        Args:
            exclude: texts of selectors.
            include: texts of selectors.
            labels: axis name to its labels in the sweep file.

        Raises:
            UserError: a selector is malformed.
        """
        return cls(tuple(map(Selector.parse, exclude)), tuple(map(Selector.parse, include)), labels)
