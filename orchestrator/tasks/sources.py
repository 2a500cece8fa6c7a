"""Local sources of task data: the rows of a file or folder, each with its split, language and item.

This module recognises the form of files and streams them, because mCoT-MATH is one JSON array of 12 GB.
Parquet files, also of a hub, are read by the library `datasets`. It would hold the array in memory, and could
not name the line of a bad row, so JSON is read here. `importing` decides which ids are taken.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from orchestrator.errors import UserError
from orchestrator.tasks import api_calling, math
from orchestrator.tasks.base import LANGUAGES, Split

JSON = (".json", ".jsonl")
_BY_ID = "aligned by id"
_BY_PLACE = "aligned by place within each language and checked by equal answers"

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
        equal_golds: whether to leave out items whose answers differ between languages. Such a translation
            is wrong.
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
    equal_golds: bool = False
    by_place: bool = False
    revision: str | None = None
    commit: str | None = None


_SPLITS: Mapping[str, Split | None] = {
    "train.jsonl": Split.TRAIN,
    "test.jsonl": Split.TEST,
    "lv3-api-train.json": Split.TRAIN,
    "level-1-api.json": Split.TEST,
    "level-2-api.json": Split.TEST,
}
"""Published English files whose name implies the split."""


def open_source(path: Path, task: str) -> Source:
    """Return a file or folder as a source, recognised by its names and rows.

    Raises:
        UserError: it does not exist, or nothing in it is recognised.
    """
    path = path.expanduser()
    if not path.exists():
        raise UserError(f"no file or folder {str(path)!r}", fix=f"sweep data describe {task}")
    source = _api(path) if task == "api_calling" else _math(path)
    if source is None:
        raise UserError(
            f"nothing in {path} is known as data of {task}",
            fix=f"sweep data describe {task} lists what can be imported",
        )
    return source


class _Place(NamedTuple):
    path: Path
    split: Split | None
    language: str


def places(folder: Path, names: Mapping[str, Sequence[str]]) -> list[_Place]:
    """Return the files of a folder, and of its folders train, validation and test, by split and language."""
    found = []
    for split in (None, *Split):
        inside = folder / split if split else folder
        for language in LANGUAGES:
            for name in names.get(language, ()):
                if (inside / name).is_file():
                    known = Split.TEST if name.startswith("mgsm_") else _SPLITS.get(name)
                    found.append(_Place(inside / name, split or known, language))
    return found


_MATH_NAMES = {
    code: [f"mgsm_{code}.tsv", f"{code}.jsonl", *(["train.jsonl", "test.jsonl"] if code == "en" else [])]
    for code in LANGUAGES
}
_API_NAMES = {
    code: [
        *(["level-1-api.json", "lv3-api-train.json"] if code == "en" else []),
        f"{code}.json",
        f"{code}.jsonl",
    ]
    for code in LANGUAGES
}


def _math(path: Path) -> Source | None:
    if path.is_dir():
        if found := places(path, _MATH_NAMES):
            return _of_places(path.name, found, _math_rows, _math_line)
        if next(path.rglob("*.parquet"), None) is not None:
            return of_parquet(str(path), path.name)
        return mcot_source(sorted(p for p in path.rglob("*") if p.suffix in JSON), path.name)
    if path.suffix == ".parquet":
        return of_parquet(str(path), path.name)
    return of_files([path], path.name)


def of_files(paths: Sequence[Path], name: str) -> Source | None:
    """Return math files as a source, recognised by their names or else by mCoT-MATH's rows.

    The result is None if neither fits.
    """
    found = [
        _Place(path, Split.TEST if known.startswith("mgsm_") else _SPLITS.get(known), language)
        for language, names in _MATH_NAMES.items()
        for known in names
        for path in paths
        if path.name == known
    ]
    if found:
        return _of_places(name, found, _math_rows, _math_line)
    return mcot_source([path for path in paths if path.suffix in JSON], name)


def _api(path: Path) -> Source | None:
    if path.is_dir():
        found = places(path, _API_NAMES)
        return _of_places(path.name, found, _api_rows, _api_line) if found else None
    if path.suffix not in JSON:
        return None
    language = path.stem if path.stem in LANGUAGES else "en"
    place = _Place(path, _SPLITS.get(path.name), language)
    return _of_places(path.name, [place], _api_rows, _api_line)


_Rows = Callable[[_Place], Iterator[Raw]]


def _of_places(
    name: str, found: Sequence[_Place], read: _Rows, line: Callable[[Raw], dict[str, str]]
) -> Source:
    """Return files with known splits and languages as a source."""

    def rows() -> Iterator[Raw]:
        for place in found:
            yield from read(place)

    is_mgsm = all(place.path.suffix == ".tsv" for place in found)
    form = "api-bank" if read is _api_rows else "mgsm" if is_mgsm else "worked"
    return Source(form, name, tuple(place.path for place in found), rows, line)


def _math_rows(place: _Place) -> Iterator[Raw]:
    if place.path.suffix == ".tsv":
        for line in math.lines(place.path, place.language):
            id_ = f"mgsm-{line['id']}"  # the prefix avoids the ids of other sources that count from 1
            yield Raw(place.split, place.language, id_, line, f"{place.path}:{line['id']}")
        return
    for number, row in stream(place.path):
        id_ = math.id_of(row, f"{place.split or 'row'}-{number}")
        yield Raw(place.split, place.language, id_, row, f"{place.path}:{number}")


def _math_line(raw: Raw) -> dict[str, str]:
    if math.is_row(raw.row) and "question" not in raw.row:
        return math.mcot_line_of(raw.row, id_=raw.id, language=raw.language, where=raw.where)
    return math.line_of(raw.row, id_=raw.id, language=raw.language, where=raw.where)


def _api_rows(place: _Place) -> Iterator[Raw]:
    for number, row in stream(place.path):
        parts = [str(row[key]) for key in ("file", "id") if key in row]
        id_ = "#".join(parts) if "id" in row else f"{place.split or 'row'}-{number}"
        yield Raw(place.split, place.language, id_, row, f"{place.path}, row {number}")


def _api_line(raw: Raw) -> dict[str, str]:
    return api_calling.line_of(raw.row, id_=raw.id, where=raw.where)


def mcot_source(paths: Sequence[Path], name: str) -> Source | None:
    """Return files as a source in mCoT-MATH's form, or None if their first row has another form."""
    if not (first := next((row for path in paths for _, row in stream(path)), None)):
        return None
    if not math.is_row(first):
        return None
    by_place = not math.place_of(first).id

    def rows() -> Iterator[Raw]:
        for path in paths:
            for number, row in stream(path):
                language, id_ = math.place_of(row)
                yield Raw(None, language, id_, row, f"{path}, row {number}")

    note = _BY_PLACE if by_place else _BY_ID
    return Source("mcot", name, tuple(paths), rows, _mcot_line, note, equal_golds=True, by_place=by_place)


def _mcot_line(raw: Raw) -> dict[str, str]:
    return math.mcot_line_of(raw.row, id_=raw.id, language=raw.language, where=raw.where)


def stream(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the number and the fields of each row of a JSON array or of JSON lines (from 1).

    Raises:
        UserError: the file is neither.
    """
    with path.open("rb") as file:
        is_array = file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"["
    rows: Iterator[tuple[int, Any]]
    rows = enumerate(_array(path)) if is_array else _lines(path)
    for number, row in rows:
        if not isinstance(row, dict):
            raise UserError("a row is not a JSON object", where=f"{path}, row {number}")
        yield number, row


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
    except (json.JSONDecodeError, RecursionError) as error:
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
    except (json.JSONDecodeError, RecursionError) as error:
        raise UserError(f"not a JSON array of rows: {error}", where=str(path)) from None


class _Table(NamedTuple):
    """Rows of one language or of all ("") and of one split, which can be read several times."""

    language: str
    split: Split | None
    rows: Iterable[dict[str, Any]]


def of_parquet(where: str, name: str, *, commit: str | None = None) -> Source | None:
    """Return Parquet files as a source, or None if their first row has no known form.

    The library finds which files belong to which split and configuration. A configuration named after a
    language holds its rows; else each row names its language, as in mCoT-MATH.

    Args:
        where: a file or folder, or the id of a data set on a hub.
        name: of the source.
        commit: of the data set on the hub, whose files stay in the library's cache; None for local files,
            which are read in place.

    Raises:
        UserError: local files are not Parquet files that fit together.
    """
    try:
        tables = _tables(where, commit)
        first = next((row for table in tables for row in table.rows), None)
    except Exception as error:
        if commit is not None:
            raise
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"not a Parquet file: {reason}", where=where) from None
    if first is None or not (tables[0].language or math.is_row(first)):
        return None

    def place(table: _Table, row: Mapping[str, Any]) -> tuple[str, str]:
        return (table.language, math.id_of(row, "")) if table.language else math.place_of(row)

    def rows() -> Iterator[Raw]:
        for table in tables:
            for number, row in enumerate(table.rows):
                language, id_ = place(table, row)
                words = f"{name} {table.language} {table.split or ''}".split()
                yield Raw(table.split, language, id_, row, f"{' '.join(words)}, row {number}")

    by_place = not place(tables[0], first)[1]
    line = _math_line if tables[0].language else _mcot_line
    note = _BY_PLACE if by_place else _BY_ID
    path = Path(where)
    files = () if commit else (path,) if path.is_file() else tuple(sorted(path.rglob("*.parquet")))
    return Source("parquet", name, files, rows, line, note, equal_golds=True, by_place=by_place)


def _tables(where: str, commit: str | None) -> list[_Table]:
    import datasets  # takes half a second, and few sources need it

    # It would report each local file that is read to the hub as a download.
    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False
    datasets.disable_progress_bars()
    if Path(where).is_file():
        found = {"": datasets.load_dataset("parquet", data_files=where, streaming=True)}
    else:
        configs = datasets.get_dataset_config_names(where, revision=commit)
        # Of a hub the rows are converted once, then mapped into memory; local files need no second copy.
        options = {"revision": commit, "streaming": commit is None}
        if any(config in LANGUAGES for config in configs):
            configs = [config for config in configs if config in LANGUAGES]
        found = {config: datasets.load_dataset(where, config, **options) for config in configs}
    return [
        # Without names of splits, all rows are "train" for the library.
        _Table(
            config if config in LANGUAGES else "", None if set(splits) == {"train"} else Split(split), rows
        )
        for config, splits in found.items()
        for split, rows in splits.items()
        if split in tuple(Split)
    ]
