"""Read parallel task data from real files: find the file of each language, and choose the ids of a split.

This module owns the choice of ids, which is the same in every language, the errors about files, and
`FileTask`, what tasks with files have in common. It depends on no benchmark.
"""

from __future__ import annotations

import logging
import random
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from orchestrator.errors import UserError
from orchestrator.tasks import dataset
from orchestrator.tasks.base import LANGUAGES, Difference, Item, Line, Split, check_language, check_split
from orchestrator.tasks.sources import Place, Raw, Source, SourceTable, is_array, places, stream, where_of


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
        everywhere = f" in all of: {', '.join(wanted.languages)}" if wanted.languages else ""
        raise UserError(
            f"{num_items} {wanted.split} items asked for{aside}",
            where=f"in {folder}",
            allowed=f"{len(ids)} ids are usable{everywhere}",
        )
    taken = set(pool[:num_items])
    return [id_ for id_ in ids if id_ in taken]


def shuffled(ids: Sequence[str], seed: int) -> list[str]:
    """Return the ids in the order in which a seed chooses them."""
    return random.Random(f"ids {seed}").sample(ids, len(ids))


def _natural(id_: str) -> tuple[int, int, str]:
    """Return a sort key that orders numeric ids by value, and all others after them by name."""
    return (0, int(id_), "") if id_.isascii() and id_.isdecimal() and len(id_) < 19 else (1, 0, id_)


class FileTask(ABC):
    """What tasks with files have in common, see `orchestrator.tasks.base.Task`.

    A further task needs `name`, `line_of`, `item_of` and `is_correct`, and `generate` if it has generated
    items. It overrides whatever else differs.

    Attributes:
        form: the form of its files, for the record of where a data set comes from.
        names: map from language to the names that its files may have, the preferred one first.
        published: names of published files that imply a split.
    """

    name: str
    in_tiny_models = False
    description = "A line holds the fields that the task's module reads.\n"
    releases: Mapping[str, tuple[int | None, int]] = {}
    reasons: Mapping[str, str] = {}
    form = "rows"
    names: Mapping[str, Sequence[str]] = {code: (f"{code}.jsonl", f"{code}.json") for code in LANGUAGES}
    published: Mapping[str, Split] = {}

    def generate(self, split: str, language: str, num_items: int, seed: int = 0) -> list[Item]:
        """Refuse, since the task has no generated items."""
        raise UserError(f"{self.name} has no generated items", fix=f"sweep data describe {self.name}")

    def languages_in(self, folder: Path, split: str) -> list[str]:
        """Return the languages that a folder holds; see `Task.languages_in`."""
        return languages_in(folder, check_split(split), self.file_names(check_split(split)))

    def file_names(self, split: Split) -> dict[str, list[str]]:
        """Map each language to the names that its file of a split may have."""
        home = Split.TEST if split is Split.TEST else Split.TRAIN
        return {
            language: [name for name in names if self.published.get(name, home) is home]
            for language, names in self.names.items()
        }

    def read(
        self,
        folder: Path,
        split: str,
        language: str,
        *,
        languages: Sequence[str] = (),
        num_items: int | None = None,
        num_validation: int | None = 0,
        seed: int = 0,
    ) -> list[Item]:
        """Read the items of one language from a folder; see `Task.read`."""
        wanted = Wanted(check_split(split), tuple(languages), num_items, num_validation, seed)
        return read(folder, language, names=self.file_names(wanted.split), reader=self.rows, wanted=wanted)

    def stop(self, text: str) -> str:
        """Return the whole text; see `Task.stop`."""
        return text

    @abstractmethod
    def line_of(self, row: Mapping[str, Any], *, id_: str, language: str, where: str) -> dict[str, str]:
        """Return a row as a line of a data set; see `Task.line_of`."""

    @abstractmethod
    def item_of(self, line: Line, language: str) -> Item:
        """Return a line of a data set as an item; see `Task.item_of`."""

    def problem_of(self, line: Line) -> str:
        """Return why a line cannot be used, or ""; see `Task.problem_of`."""
        return ""

    def id_of(self, row: Mapping[str, Any], place: str) -> str:
        """Return the id of a row, or its place if it has none."""
        return str(row.get("id", place))

    def lines(self, path: Path, language: str) -> Iterator[dict[str, str]]:
        """Yield the rows of a file as lines of a data set; see `Task.lines`."""
        if path.suffix == ".json" and not is_array(path):
            raise UserError("not a JSON array of rows", where=str(path))
        for number, row in stream(path):
            id_, where = self.id_of(row, str(number)), where_of(path, number)
            yield self.line_of(row, id_=id_, language=language, where=where)

    def rows(self, path: Path, language: str) -> list[Row]:
        """Return the rows of a file. Rows that cannot be used carry the reason."""
        found = ((line, self.problem_of(line)) for line in self.lines(path, language))
        return [Row(None if why else self.item_of(line, language), line["id"], why) for line, why in found]

    def source(self, path: Path) -> Source | None:
        """Return a file or folder as a source, recognised by its name; see `Task.source`."""
        if path.is_dir():
            found = list(places(path, self.names, self.published))
        else:
            named = (code for code, names in self.names.items() if path.name in names)
            found = [Place(path, self.published.get(path.name), next(named, "en"))]
            found = found if path.suffix in (".json", ".jsonl", ".tsv") else []
        return self.source_of(found, path.name) if found else None

    def source_of(self, found: Sequence[Place], name: str) -> Source:
        """Return files with known splits and languages as a source."""

        def raws() -> Iterator[Raw]:
            for place in found:
                yield from self.raws(place)

        return Source(self.form, name, tuple(place.path for place in found), raws, self.line)

    def raws(self, place: Place) -> Iterator[Raw]:
        """Yield the rows of a file as they are."""
        for number, row in stream(place.path):
            id_ = self.id_of(row, f"{place.split or 'row'}-{number}")
            yield Raw(place.split, place.language, id_, row, where_of(place.path, number))

    def line(self, raw: Raw) -> dict[str, str]:
        """Return a row of a source as a line of a data set."""
        return self.line_of(raw.row, id_=raw.id, language=raw.language, where=raw.where)

    def release(self, paths: Sequence[Path], name: str, tables: Sequence[SourceTable] = ()) -> Source | None:
        """Return nothing, since no release is known; see `Task.release`."""
        return None

    def looks_like(self, row: Mapping[str, Any]) -> bool:
        """Return that no row does; see `Task.looks_like`."""
        return False

    def differences(self, lines: Mapping[str, Sequence[Line]]) -> Iterator[Difference]:
        """Yield nothing; see `Task.differences`."""
        yield from ()
