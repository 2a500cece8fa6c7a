"""Read parallel task data from real files: find the file of each language, and choose the ids of a split.

This module owns the choice of ids, which is the same in every language, and the errors about files. It
depends on no benchmark. Each task passes in the names of its files and a function that turns a file into
rows.
"""

from __future__ import annotations

import json
import logging
import random
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from orchestrator.errors import UserError
from orchestrator.tasks import dataset
from orchestrator.tasks.base import LANGUAGES, Item, Split, check_language


class Row(NamedTuple):
    """A row of a file.

    Attributes:
        item: the item, or None if the row cannot be used. Its id is then dropped in every language.
        id: the id of the item.
        problem: why the row cannot be used.
    """

    item: Item | None
    id: str
    problem: str = ""


Read = Callable[[Path, str], list[Row]]
"""A function from a file and its language to its rows."""


class Wanted(NamedTuple):
    """The selection of ids that `read` returns; for the fields see `Task.read`."""

    split: Split
    languages: tuple[str, ...]
    num_items: int | None
    num_validation: int | None
    seed: int


def languages_in(folder: Path, split: Split, names: Mapping[str, Sequence[str]]) -> list[str]:
    """Return the languages that a data set, or a folder of files, has for a split.

    Raises:
        UserError: there is no such folder, or its description is malformed.
    """
    if not dataset.is_dataset(folder):
        return list(locate(folder, names))
    found = dataset.load(folder).splits.get(_home(dataset.load(folder), split))
    return [language for language in LANGUAGES if found and language in found.languages]


def locate(folder: Path, names: Mapping[str, Sequence[str]]) -> dict[str, Path]:
    """Map each language to its file: the first existing one of its possible names.

    Raises:
        UserError: there is no such folder.
    """
    if not folder.is_dir():
        raise UserError(f"no folder {str(folder)!r} to read task data from")
    found = {}
    for language in LANGUAGES:
        paths = [folder / name for name in names[language]]
        if path := next((path for path in paths if path.is_file()), None):
            found[language] = path
    return found


def read(
    folder: Path, language: str, *, names: Mapping[str, Sequence[str]], reader: Read, wanted: Wanted
) -> list[Item]:
    """Return the items of a language whose ids belong to the split.

    Raises:
        UserError: a folder or language is missing, a row is malformed, or there are too few items.
    """
    if dataset.is_dataset(folder):
        return _read_dataset(folder, language, reader, wanted)
    paths = locate(folder, names)
    languages = tuple(dict.fromkeys((language, *wanted.languages)))
    for code in languages:
        if check_language(code) not in paths:
            raise UserError(
                f"no {wanted.split} data in the language {code!r}",
                where=f"in {folder}",
                allowed=f"there: {', '.join(paths) or 'no language'}",
                fix=f"wanted: {' or '.join(names[code])}",
            )
    # Every language is read, although only one is returned. An id that is unusable in one of them is
    # dropped in all, so that all languages get the same items.
    usable = {code: _usable(reader(paths[code], code), paths[code]) for code in languages}
    ids = set.intersection(*(set(items) for items in usable.values()))
    if not ids:
        raise UserError(
            f"no usable {wanted.split} item has the same id in all of: {', '.join(languages)}",
            where=", ".join(str(paths[code]) for code in languages),
            allowed=f"usable: {', '.join(f'{code} {len(items)}' for code, items in usable.items())}",
        )
    sets_aside = wanted.split is not Split.TEST
    chosen = _choose(sorted(ids, key=_natural), wanted, folder, sets_aside=sets_aside)
    return [usable[language][id_] for id_ in chosen]


def _home(info: dataset.DatasetInfo, split: Split) -> Split:
    """Return the split that holds the items: train for validation, if there is no validation split."""
    return Split.TRAIN if split is Split.VALIDATION and split not in info.splits else split


def _read_dataset(folder: Path, language: str, reader: Read, wanted: Wanted) -> list[Item]:
    """Return the items of a language from a data set, whose description lists the ids."""
    info = dataset.load(folder)
    home = _home(info, wanted.split)
    found = info.splits.get(home)
    if found is None or check_language(language) not in found.languages:
        raise UserError(
            f"no {wanted.split} data in the language {language!r}",
            where=f"in {folder}",
            allowed=f"there: {', '.join(found.languages) if found else 'no such split'}",
        )
    path = dataset.path_of(folder, home, language)
    if not path.is_file():
        raise UserError(f"{path} is missing", fix=f"sweep data check {folder}")
    chosen = _choose_in(info, found.ids, wanted, folder)
    usable = _usable(reader(path, language), path)
    if missing := [id_ for id_ in chosen if id_ not in usable]:
        raise UserError(
            f"{len(missing)} items of the data set cannot be read, such as {missing[0]!r}",
            where=str(path),
            fix=f"sweep data check {folder}",
        )
    return [usable[id_] for id_ in chosen]


def _choose_in(info: dataset.DatasetInfo, ids: Sequence[str], wanted: Wanted, folder: Path) -> list[str]:
    """Choose among the ids of a data set, which all its languages have.

    If the data set has a validation split, no training items are set aside.
    """
    has_own = Split.VALIDATION in info.splits
    if has_own and wanted.split is Split.VALIDATION:
        return _choose(ids, wanted._replace(num_items=wanted.num_validation), folder, sets_aside=False)
    if not has_own and wanted.split is not Split.TEST and wanted.num_validation is None:
        raise UserError(
            "how many items to set aside for validation is not said",
            where=f"{folder} has no validation split",
            fix="data.num_validation=NUMBER",
        )
    return _choose(ids, wanted, folder, sets_aside=not has_own and wanted.split is not Split.TEST)


_LOG = logging.getLogger(__name__)


def _usable(rows: Sequence[Row], path: Path) -> dict[str, Item]:
    """Map ids to the items of a file. Log how many rows are left out, and why."""
    items: dict[str, Item] = {}
    problems: dict[str, list[str]] = {}
    for row in rows:
        if row.item is None:
            problems.setdefault(_QUOTED.sub("...", row.problem), []).append(row.id)
            continue
        if row.id in items:
            raise UserError(f"the id {row.id!r} comes twice", where=str(path))
        items[row.id] = row.item
    for problem, ids in problems.items():
        _LOG.warning("%s: %d of %d rows left out, such as %s: %s", path, len(ids), len(rows), ids[0], problem)
    return items


_QUOTED = re.compile(r"'.*'|\".*\"", re.DOTALL)
"""The part of a problem's text that differs from row to row."""


def _choose(ids: Sequence[str], wanted: Wanted, folder: Path, *, sets_aside: bool) -> list[str]:
    # Validation takes the first ids of the seed's order and training the rest. The two are disjoint, even
    # if they are read by separate calls.
    """Return the ids of the wanted split, in their original order.

    Args:
        ids: the usable ids.
        wanted: the selection.
        folder: the folder, for errors.
        sets_aside: whether validation and training items come from the same ids.

    Raises:
        UserError: there are too few ids.
    """
    order = shuffled(ids, wanted.seed)
    num_aside = (wanted.num_validation or 0) if sets_aside else 0
    pool = order[num_aside:]
    if sets_aside and wanted.split is Split.VALIDATION:
        pool = order[:num_aside]
    num_items = len(pool) if wanted.num_items is None else wanted.num_items
    if num_items > len(pool) or num_aside > len(ids):
        aside = f" ({num_aside} set aside for validation)" if sets_aside else ""
        raise UserError(
            f"{num_items} {wanted.split} items asked for{aside}",
            where=f"in {folder}",
            allowed=f"{len(ids)} ids are usable in all of: {', '.join(wanted.languages)}",
        )
    taken = set(pool[:num_items])
    return [id_ for id_ in ids if id_ in taken]


def shuffled(ids: Sequence[str], seed: int) -> list[str]:
    """Return the ids in the order in which a seed chooses them."""
    return random.Random(f"ids {seed}").sample(ids, len(ids))


def _natural(id_: str) -> tuple[int, int, str]:
    """Return a sort key that orders numeric ids by value, and all others after them by name."""
    return (0, int(id_), "") if id_.isascii() and id_.isdecimal() and len(id_) < 19 else (1, 0, id_)


def text_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the number, from 1, and the NFC text of each line that is not blank.

    Raises:
        UserError: the file is not UTF-8.
    """
    text = _text(path)
    # splitlines would also split at line separators within texts, such as U+2028.
    for number, line in enumerate(text.split("\n" if "\n" in text else "\r"), start=1):
        line = line.removesuffix("\r")
        if line.strip():
            yield number, line


def json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the number, from 1, and the object of each line.

    Raises:
        UserError: a line is not a JSON object.
    """
    for number, line in text_lines(path):
        yield number, _object(_parse(line, f"{path}:{number}"), f"{path}:{number}")


def json_array(path: Path) -> list[dict[str, Any]]:
    """Return the objects of a file that holds one JSON array.

    Raises:
        UserError: the file holds anything else.
    """
    rows = _parse(_text(path), str(path))
    if not isinstance(rows, list):
        raise UserError("not a JSON array of rows", where=str(path))
    return [_object(row, f"{path}, row {number}") for number, row in enumerate(rows)]


def field(row: Mapping[str, Any], *keys: str, where: str) -> str:
    """Return the NFC text of the first of these keys that the row has.

    Raises:
        UserError: the row has none of the keys, or the value is not text.
    """
    value = next((row[key] for key in keys if key in row), None)
    if not isinstance(value, str):
        raise UserError(f"no text {' or '.join(map(repr, keys))} in a row", where=where)
    # JSON can encode half a surrogate pair, but no UTF-8 file could hold it later.
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise UserError("half a character: a surrogate without its other half", where=where)
    return unicodedata.normalize("NFC", value)


def _text(path: Path) -> str:
    try:
        return unicodedata.normalize("NFC", path.read_bytes().decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise UserError(f"not UTF-8 text: {error.reason} at byte {error.start}", where=str(path)) from None


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise UserError(f"not JSON: {error}", where=where) from None


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError("a row is not a JSON object", where=where)
    return value
