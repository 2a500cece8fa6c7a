"""A row of API-Bank as texts to translate, and the row that translations of these texts make. Pure.

A model translates single texts and never sees the structure of a row: speaker labels, JSON, keys and calls
stay here. In a text, whatever must come back unchanged is a placeholder such as ``[[2]]``::

    User: Book a table at 19:30 for Dr. Lee, I feel dizzy.
    API-Request: [Search(doctor='Dr. Lee', symptom='dizzy')]

    text "1": Book a table at [[1]] for [[2]], I feel [[3]].     [[1]] is 19:30, [[2]] is Dr. Lee
    text "2": dizzy                                              [[3]] is the translation of text "2"

So a value is the same in the user's turn, in earlier calls, in results and in the gold. `kept`
chooses what comes back unchanged.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from orchestrator.tasks import api_calling
from orchestrator.tasks.calls import LABEL, Call, find_call, serialise
from orchestrator.translation.kept import (
    PLACEHOLDER,
    STRING,
    is_kept,
    pattern_of,
    strings_of,
    unquoted,
    values_of,
    without_numbers,
)

PROSE, VALUE = "prose", "value"


class Text(NamedTuple):
    """A text to translate.

    Attributes:
        key: identifies it within the row: ``"1"``, ``"2"``, ...
        text: the English text, with placeholders.
        kind: `PROSE` for turns, results and descriptions, `VALUE` for an argument of a call.
    """

    key: str
    text: str
    kind: str


Translations = Mapping[str, str]
"""Map from the key of a text to its translation, with the placeholders of the text."""

Write = Callable[[Mapping[str, str]], str]
"""A function from translations without placeholders to a part of the row."""

FIELDS = ("instruction", "input", "output")


class Template(NamedTuple):
    """A row with the texts taken out.

    Attributes:
        texts: in the order of the row.
        kept: placeholder to the text that it stands for, which stays as it is.
        values: placeholder to the key of the text whose translation it stands for.
        parts: field of a line to the functions that write its parts.
    """

    texts: tuple[Text, ...]
    kept: Mapping[str, str]
    values: Mapping[str, str]
    parts: Mapping[str, tuple[Write, ...]]

    def expand(self, translations: Translations) -> dict[str, str]:
        """Return the translations with each placeholder replaced by what it stands for."""
        plain = {key: self._filled(text, {}) for key, text in translations.items()}
        found = {placeholder: plain.get(key, "") for placeholder, key in self.values.items()}
        return {key: self._filled(text, found) for key, text in translations.items()}

    def _filled(self, text: str, values: Mapping[str, str]) -> str:
        def meaning(match: re.Match[str]) -> str:
            return self.kept.get(match[0], values.get(match[0], match[0]))

        return PLACEHOLDER.sub(meaning, text)

    def line(self, id_: str, translations: Translations) -> dict[str, str]:
        """Return the line of a data set that these translations make. Every text must have one."""
        plain = self.expand(translations)
        return {"id": id_} | {field: "".join(write(plain) for write in self.parts[field]) for field in FIELDS}

    @property
    def originals(self) -> dict[str, str]:
        """The English texts by key, as if they were translations."""
        return {text.key: text.text for text in self.texts}


def template_of(line: Mapping[str, str]) -> Template:
    """Return a line of a data set as a template.

    Every part of the line that cannot be read, such as a call that does not parse, stays as it is.
    """
    return _template(*(line[field] for field in FIELDS))


@functools.lru_cache(maxsize=4096)
def _template(*fields: str) -> Template:
    """Return the template of a row. It is cached, because every language and every stage needs it again."""
    line = dict(zip(FIELDS, fields, strict=True))
    builder = _Builder(line)
    parts = {
        "instruction": tuple(builder.lines(line["instruction"], has_turns=False)),
        "input": tuple(builder.lines(line["input"], has_turns=True)),
        "output": tuple(builder.call(line["output"])),
    }
    return Template(tuple(builder.texts), builder.kept, builder.values, parts)


_TURN = re.compile(r"(?P<label>\s*(?:User|AI)\s*:\s*)(?P<text>.*?)(?P<rest>\s*(?:TIME:.*)?)", re.DOTALL)
_TRANSLATED_KEY = "description"


class _Builder:
    """Collects the texts, placeholders and parts of one row.

    Attributes:
        texts: found so far.
        kept, values: as in `Template`.
    """

    def __init__(self, line: Mapping[str, str]) -> None:
        self.texts: list[Text] = []
        self.kept: dict[str, str] = {}
        self.values: dict[str, str] = {}
        self._line = line
        self._placeholders: dict[str, str] = {}
        self._keys: dict[tuple[str, str], str] = {}
        self._pattern = pattern_of(self._known_values())

    def _known_values(self) -> list[str]:
        """Return the values of the row's calls and results, each of which is kept or one of the texts."""
        found = []
        for key, value, description in values_of(self._line):
            if not value.strip():
                continue
            if not api_calling.shape(value):
                self._know(key, value, description)
            else:
                inner = [text for _, text in strings_of(value)]
                # A list of names is kept as a whole, so that the dialogue may hold it word for word.
                if all(is_kept(key, text, description) for text in inner):
                    self._keep(value)
                for text in inner:
                    self._know(key, text, description)
                    found.append(text)
            found.append(value)
        return [value for value in found if value in self._placeholders]

    def _know(self, key: str, value: str, description: str) -> None:
        if is_kept(key, value, description):
            self._keep(value)
        else:
            self._value(value)

    def _number(self, text: str) -> str:
        """Return the placeholder of a text, a new one if it has none yet."""
        return self._placeholders.setdefault(text, f"[[{len(self._placeholders) + 1}]]")

    def _keep(self, text: str) -> str:
        placeholder = self._number(text)
        if placeholder not in self.values:
            self.kept[placeholder] = text
        return placeholder

    def _value(self, text: str) -> str:
        placeholder = self._number(text)
        if placeholder not in self.kept and placeholder not in self.values:
            self.values[placeholder] = self._key(without_numbers(text, self._keep), VALUE)
        return placeholder

    def _key(self, text: str, kind: str) -> str:
        """Return the key of a text. Equal texts have one key, so that they are translated alike."""
        if (text, kind) not in self._keys:
            self._keys[text, kind] = str(len(self.texts) + 1)
            self.texts.append(Text(self._keys[text, kind], text, kind))
        return self._keys[text, kind]

    def _prose(self, text: str, write: Callable[[str], str] = lambda text: text) -> Write:
        """Return the writer of a free text, which becomes one of the texts if it has words."""

        def placeholder(match: re.Match[str]) -> str:
            found = self._placeholders.get(match[0])
            return found if found in self.values else self._keep(match[0])

        marked = self._pattern.sub(placeholder, text)
        if not any(map(str.isalpha, PLACEHOLDER.sub("", marked))):
            return _literal(text, write, self, marked)
        key = self._key(marked, PROSE)
        return lambda plain: write(plain[key])

    def lines(self, text: str, *, has_turns: bool) -> Iterator[Write]:
        """Yield the writers of the lines of a field: API descriptions, and for a dialogue its turns."""
        for number, line in enumerate(text.split("\n")):
            if number:
                yield _constant("\n")
            turn = _TURN.fullmatch(line)
            if line.lstrip().startswith("{"):
                yield from self._api(line)
            elif has_turns and line.lstrip().startswith(LABEL):
                yield from self.call(line)
            elif has_turns and turn and turn["text"]:
                yield _constant(turn["label"])
                yield self._prose(turn["text"])
                yield _constant(turn["rest"])
            else:
                yield _constant(line)

    def _api(self, line: str) -> Iterator[Write]:
        """Yield the writer of a JSON object that describes an API."""
        try:
            tree = json.loads(line)
        except (json.JSONDecodeError, RecursionError):
            yield _constant(line)
            return
        writers: dict[int, Write] = {}
        marked = self._described(tree, writers)

        def write(plain: Mapping[str, str]) -> str:
            return json.dumps(_resolved(marked, writers, plain), ensure_ascii=False)

        yield write

    def _described(self, tree: Any, writers: dict[int, Write]) -> Any:
        """Return a tree in which each description is a `_Slot`."""
        if isinstance(tree, dict):
            return {
                key: self._slot(value, writers)
                if key == _TRANSLATED_KEY and isinstance(value, str)
                else self._described(value, writers)
                for key, value in tree.items()
            }
        return [self._described(item, writers) for item in tree] if isinstance(tree, list) else tree

    def _slot(self, text: str, writers: dict[int, Write]) -> _Slot:
        writers[len(writers)] = self._prose(text)
        return _Slot(len(writers) - 1)

    def call(self, text: str) -> Iterator[Write]:
        """Yield the writers of a call and of the result after it."""
        found = find_call(text)
        if found is None:
            yield _constant(text)
            return
        original, rest, name = text[: found.end], text[found.end :], found.call.name
        writers = {key: self._argument(value) for key, value in found.call.args.items()}

        def write(plain: Mapping[str, str]) -> str:
            args = {key: writer(plain) for key, writer in writers.items()}
            # A call without a changed value keeps its own form: quotes, spaces and order.
            return original if args == found.call.args else serialise(Call(name, args))

        yield write
        yield from self._result(rest)

    def _argument(self, value: str) -> Write:
        if api_calling.shape(value):
            return _joined(list(self._quoted(value, self._part)))
        return self._part(value)

    def _part(self, value: str, write: Callable[[str], str] = lambda text: text) -> Write:
        placeholder = self._placeholders.get(value, "")
        key = self.values.get(placeholder)
        return (lambda plain: write(plain[key])) if key else _constant(write(value))

    def _quoted(self, text: str, part: Callable[[str, Callable[[str], str]], Write]) -> Iterator[Write]:
        """Yield the writers of a text with Python strings in it: of what is around them, and of each."""
        at = 0
        for match in STRING.finditer(text):
            value = unquoted(match[0])
            is_key = text[match.end() :].lstrip().startswith(":")
            if value is None or is_key or not value.strip():
                continue
            yield _constant(text[at : match.start()])
            # An unchanged string keeps its own quotes.
            yield part(value, lambda new, old=value, form=match[0]: form if new == old else repr(new))  # type: ignore[misc]
            at = match.end()
        yield _constant(text[at:])

    def _result(self, text: str) -> Iterator[Write]:
        """Yield the writers of what an earlier call returned: its strings are known values or prose."""

        def part(value: str, write: Callable[[str], str]) -> Write:
            return self._part(value, write) if value in self._placeholders else self._prose(value, write)

        if text.startswith("->"):
            yield from self._quoted(text, part)
        else:
            yield _constant(text)


class _Slot(NamedTuple):
    """The place of a text in a JSON tree, by the number of its writer."""

    number: int


def _resolved(tree: Any, writers: Mapping[int, Write], plain: Mapping[str, str]) -> Any:
    if isinstance(tree, _Slot):
        return writers[tree.number](plain)
    if isinstance(tree, dict):
        return {key: _resolved(value, writers, plain) for key, value in tree.items()}
    return [_resolved(item, writers, plain) for item in tree] if isinstance(tree, list) else tree


def _constant(text: str) -> Write:
    return lambda plain: text


def _joined(writers: Sequence[Write]) -> Write:
    return lambda plain: "".join(writer(plain) for writer in writers)


def _literal(text: str, write: Callable[[str], str], builder: _Builder, marked: str) -> Write:
    """Return the writer of a text without words: constant, unless it holds a value that is translated."""
    pieces = re.split(f"({PLACEHOLDER.pattern})", marked)
    keys = {piece: builder.values[piece] for piece in pieces if piece in builder.values}
    kept = dict(builder.kept)

    def fill(plain: Mapping[str, str]) -> str:
        return write("".join(plain[keys[p]] if p in keys else kept.get(p, p) for p in pieces))

    return fill if keys else _constant(write(text))
