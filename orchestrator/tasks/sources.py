"""Local sources of task data: the rows of a file or folder, each with its split, language and item.

Tasks recognise the form of their files. This module streams rows, because mCoT-MATH is one JSON array of 12
GB, and reads small files as a whole. Parquet files are read by the library `datasets`; of JSON it would hold
the array in memory, and could not name the line of a bad row. `importing` decides which ids are taken.
"""

from __future__ import annotations

import functools
import itertools
import json
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from orchestrator.errors import UserError, home_expanded, one_line
from orchestrator.registry import TASKS, lookup
from orchestrator.tasks.base import LANGUAGES, Split

PIECE_CHARS = 1 << 22
"""Characters to read at a time from a JSON array."""


class Raw(NamedTuple):
    """A row as it was found.

    Attributes:
        split: the split; None if the source does not name it.
        language: a key of `LANGUAGES`, or "" if the row's language is unknown.
        id: the id of the item that the row is or translates; "" if only the row's place identifies it.
        row: the fields.
        where: file and number, for error messages.
    """

    split: Split | None
    language: str
    id: str
    row: Mapping[str, Any]
    where: str


class Source(NamedTuple):
    """Rows that can be read several times, and the conversion of a row to a line of a data set.

    Attributes:
        form: the form that was recognised.
        name: the name of the file or folder, or the hub id.
        files: the files to read.
        rows: a function that reads the rows from the start.
        line: a function that converts one row.
        note: a note for readers of the data set.
        answer: a function from a line to what must be equal in all languages; None if nothing must. An item
            whose answers differ is left out, because a translation of it is wrong.
        by_place: whether rows are aligned by their place in each language. Equal answers must then confirm
            it.
        revision: the revision that was requested from a hub.
        commit: the commit that the hub returned for it.
    """

    form: str
    name: str
    files: tuple[Path, ...]
    rows: Callable[[], Iterator[Raw]]
    line: Callable[[Raw], dict[str, str]]
    note: str = ""
    answer: Callable[[Mapping[str, str]], object] | None = None
    by_place: bool = False
    revision: str | None = None
    commit: str | None = None


def open_source(path: Path, task: str) -> Source:
    """Return a file or folder as a source, recognised by its names and rows.

    Raises:
        UserError: it does not exist, or nothing in it is recognised.
    """
    path = home_expanded(path)
    if not path.exists():
        raise UserError(f"no file or folder {str(path)!r}", fix=f"sweep data describe {task}")
    source: Source | None = lookup(TASKS, task, kind="task").source(path)
    if source is None:
        files = itertools.islice((item for item in path.rglob("*") if item.is_file()), 6)
        names = sorted(one_line(item.relative_to(path).as_posix()) for item in files)
        raise UserError(
            f"nothing in {path} is known as data of {task}",
            where=f"it holds {', '.join(names)}" if names else "",
            fix=f"sweep data describe {task} lists what can be imported",
        )
    return source


class Place(NamedTuple):
    """A file with its language, and its split; None if nothing names the split."""

    path: Path
    split: Split | None
    language: str


def places(
    folder: Path, names: Mapping[str, Sequence[str]], published: Mapping[str, Split]
) -> Iterator[Place]:
    """Yield the files of a folder, and of its folders train, validation and test, by split and language.

    Args:
        folder: to search.
        names: map from language to the names that its files may have.
        published: names that imply a split.
    """
    for split in (None, *Split):
        inside = folder / split if split else folder
        for language in LANGUAGES:
            for name in names[language]:
                if (inside / name).is_file():
                    yield Place(inside / name, split or published.get(name), language)


def stream(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the number and the fields of each row of a JSON array or of JSON lines (from 1).

    Raises:
        UserError: the file is neither.
    """
    for number, row in enumerate(_array(path)) if is_array(path) else _lines(path):
        if not isinstance(row, dict):
            raise UserError("a row is not a JSON object", where=where_of(path, number))
        yield number, row


def is_array(path: Path) -> bool:
    """Return whether a file holds one JSON array, and not JSON lines."""
    with path.open("rb") as file:
        return file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"["


def where_of(path: Path, number: int) -> str:
    """Return the place of a row for error messages: a line of JSON lines, else a row."""
    return f"{path}:{number}" if path.suffix == ".jsonl" else f"{path}, row {number}"


def _lines(path: Path) -> Iterator[tuple[int, Any]]:
    number = 0
    try:
        # Only a line feed ends a row. By default, a lone carriage return within a text would end it too.
        with path.open(encoding="utf-8-sig", newline="\n") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, json.loads(line)
    except UnicodeDecodeError as error:
        raise UserError(f"not UTF-8 text: {error.reason}", where=str(path)) from None
    except (ValueError, RecursionError) as error:  # also a whole number of more than 4,300 digits
        if number == 1 and line.startswith("version https://git-lfs.github.com/spec/"):
            raise UserError("a git-lfs pointer, not the file", where=str(path), fix="git lfs pull") from None
        raise UserError(f"not JSON: {error}", where=f"{path}:{number}") from None


def _array(path: Path) -> Iterator[Any]:
    """Yield the elements of a JSON array without holding the whole array in memory.

    The standard library has no streaming parser. So this function decodes one element at a time from a
    buffer. If the element is incomplete, it appends the next piece of the file and tries again.
    """
    decoder, text, at = json.JSONDecoder(), "", 0
    try:
        with path.open(encoding="utf-8-sig") as file:
            # Position 1 is after the opening bracket.
            text, at, is_over = file.read(PIECE_CHARS).lstrip(), 1, False
            while True:
                while text[at : at + 1] in (" ", "\n", "\r", "\t", ","):
                    at += 1
                if text[at : at + 1] == "]":
                    if rest := (text[at + 1 :] + file.read(PIECE_CHARS)).strip():
                        raise ValueError(f"there is more after its end: {rest[:20]!r}")
                    return
                try:
                    row, at = decoder.raw_decode(text, at)
                    yield row
                except json.JSONDecodeError:
                    if is_over:
                        raise
                    more = file.read(PIECE_CHARS)
                    text, at, is_over = text[at:] + more, 0, not more
    except UnicodeDecodeError as error:
        raise UserError(f"not UTF-8 text: {error.reason}", where=str(path)) from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"not a JSON array of rows: {error}", where=str(path)) from None


class SourceTable(NamedTuple):
    """Rows that can be read several times.

    Attributes:
        name: for error messages.
        rows: a function that reads number and fields of each row from the start.
        language: of all rows; "" if each row names its own.
        split: of all rows; None if nothing names it.
    """

    name: str
    rows: Callable[[], Iterable[tuple[int, dict[str, Any]]]]
    language: str = ""
    split: Split | None = None


JSON = (".json", ".jsonl")
"""Endings of files that `stream` reads."""


def tables_in(path: Path) -> list[SourceTable]:
    """Return the tables of a file or folder: its Parquet files, or else its JSON files.

    Raises:
        UserError: the Parquet files are damaged, or do not fit together.
    """
    if path.suffix == ".parquet" or next(path.rglob("*.parquet"), None):
        try:
            return parquet_tables(str(path))
        except Exception as error:  # noqa: BLE001 - the library's errors have many classes
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"not a Parquet file: {reason}", where=str(path)) from None
    return tables_of(sorted(path.rglob("*.*")) if path.is_dir() else [path])


def tables_of(paths: Sequence[Path]) -> list[SourceTable]:
    """Return the JSON files among some files as tables."""
    return [SourceTable(str(path), functools.partial(stream, path)) for path in paths if path.suffix in JSON]


def parquet_tables(where: str, *, commit: str | None = None) -> list[SourceTable]:
    """Return the tables of Parquet files; the library `datasets` finds their configurations and splits.

    A configuration that is named after a language holds its rows.

    Args:
        where: a file or folder, or the id of a data set on a hub.
        commit: of the data set on the hub, whose rows stay in the library's cache; None for local files,
            which are read in place.
    """
    import datasets  # takes half a second, and few sources need it

    # It would report each local file that is read to the hub, as a download.
    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False
    datasets.disable_progress_bars()
    if Path(where).is_file():
        found = {"": datasets.load_dataset("parquet", data_files=where, streaming=True)}
    else:
        configs = datasets.get_dataset_config_names(where, revision=commit)
        configs = [config for config in configs if config in LANGUAGES] or configs
        # A hub's rows are converted once, then mapped into memory. Local files need no second copy.
        options = {"revision": commit, "streaming": commit is None}
        found = {config: datasets.load_dataset(where, config, **options) for config in configs}
    return [
        SourceTable(
            f"{where} {config} {split}",
            functools.partial(enumerate, rows),
            config if config in LANGUAGES else "",
            # Without names of splits, all rows are "train" for the library.
            None if set(splits) == {"train"} else Split(split),
        )
        for config, splits in found.items()
        for split, rows in splits.items()
        if split in tuple(Split)
    ]


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
