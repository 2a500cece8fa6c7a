"""Result rows of commands: a file of JSON or of comma-separated values, as programs write them.

- JSON, told by its first character: any number of values one after the other, on one line each or indented. A
  mapping is a row, a list holds rows. So JSON lines, ``json.dump(row, indent=2)`` and a list of mappings are
  read.
- Else a table with a header: CSV, or TSV. A field that is a number is read as one, an empty one is null.

What says nothing at all, such as an empty file, is no way to say that there are no rows: ``[]`` is, or a
header alone.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from orchestrator.core.rows import checked_rows
from orchestrator.errors import StageFailure
from orchestrator.stage import Row

_WHOLE = re.compile(r"[+-]?(0|[1-9][0-9]{0,4000})")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[+-]?(nan|inf|infinity)", re.IGNORECASE)
_SPACE = re.compile(r"\s*")


def read_rows(path: Path) -> tuple[Row, ...]:
    """Reads the rows of a results file.

    Raises:
        StageFailure: the file is missing, or holds what is no row of finite values (cause ``data``); the
            message names the file, and the line or the row and its column.
    """
    try:
        if path.exists() and not path.is_file():  # the read of a fifo or a device would never end
            raise ValueError("it is a folder" if path.is_dir() else "it is no regular file")
        text = path.read_text(encoding="utf-8-sig")
        if not text.strip():
            raise ValueError("it is empty; [] says that there are no rows")
        is_table = text.lstrip()[:1] not in ("", "{", "[") and path.suffix not in (".json", ".jsonl")
        return checked_rows(_table(text) if is_table else _values(text), cause="data")
    except FileNotFoundError:
        raise StageFailure("data", f"there is no results file {path.name}{_others(path)}") from None
    except UnicodeDecodeError as error:
        raise StageFailure(
            "data", f"the results {path.name} are no UTF-8 text (byte {error.start + 1})"
        ) from error
    except (OSError, ValueError, RecursionError, csv.Error) as error:
        raise StageFailure("data", f"cannot read the results {path.name}: {error}") from error
    except StageFailure as failure:
        raise StageFailure("data", f"{path.name}: {failure}") from None


def _others(path: Path) -> str:
    names = sorted(other.name for other in path.parent.glob("*")) if path.parent.is_dir() else []
    return f"; beside it are {', '.join(names[:8])}" if names else "; its folder is empty"


def _values(text: str) -> list[Any]:
    """Returns the mappings in a text of JSON values, in order."""
    decoder = json.JSONDecoder(object_pairs_hook=_mapping)
    rows, start = list[Any](), _end_of_space(text, 0)
    while start < len(text):
        try:
            value, end = decoder.raw_decode(text, start)
        except json.JSONDecodeError as error:
            line, column = _place(text, error.pos)
            raise ValueError(f"line {line}, column {column}: {error.msg}") from None
        line = _place(text, start)[0]
        found = value if isinstance(value, list) else [value]
        if strange := [item for item in found if not isinstance(item, dict)]:
            raise ValueError(f"line {line}: a row must be a mapping, one is {json.dumps(strange[0])[:60]}")
        rows += found
        start = _end_of_space(text, end)
    return rows


def _mapping(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"a mapping holds {next(n for n in names if names.count(n) > 1)!r} twice")
    return found


def _end_of_space(text: str, start: int) -> int:
    match = _SPACE.match(text, start)
    return match.end() if match else start


def _place(text: str, position: int) -> tuple[int, int]:
    return text.count("\n", 0, position) + 1, position - text.rfind("\n", 0, position)


def _table(text: str) -> list[Row]:
    """Returns the rows of a table with a header; the delimiter is what the header has most of."""
    header_line = text.lstrip("\r\n").partition("\n")[0]
    delimiter = max(",\t;", key=header_line.count)
    reader = csv.reader(io.StringIO(text.lstrip("\r\n"), newline=""), delimiter=delimiter, strict=True)
    names = [name.strip() for name in next(reader)]
    if len(names) > 1 and not names[0]:
        names[0] = "index"  # as pandas writes it
    if len(set(names)) < len(names) or "" in names:
        raise ValueError(f"line 1: every column needs a name of its own, they are {names}")
    if all(_NUMBER.fullmatch(name) or _NOT_FINITE.fullmatch(name) for name in names):
        raise ValueError(f"line 1: a table needs a header, the names of its columns would be {names}")
    lines = []
    for fields in reader:
        if not fields:
            continue
        if len(fields) != len(names):
            raise ValueError(f"line {reader.line_num}: {len(fields)} fields for {len(names)} columns")
        lines.append(fields)
    if not lines and len(names) == 1:
        raise ValueError(f"it is neither JSON nor a table, but the line {names[0]!r}")
    columns = [_column([fields[number] for fields in lines]) for number in range(len(names))]
    return [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]


def _column(fields: Sequence[str]) -> list[Any]:
    """Types the fields of one column: they are numbers where all are, text where one is not."""
    filled = [field.strip() for field in fields if field.strip()]
    is_number = [bool(_NUMBER.fullmatch(field)) for field in filled]
    if filled and all(
        known or _NOT_FINITE.fullmatch(field) for field, known in zip(filled, is_number, strict=True)
    ):
        is_text = any(len(field.lstrip("+-")) > 1 and re.match(r"[+-]?0[0-9]", field) for field in filled)
        return _as_text(fields) if is_text else [_number(field.strip()) for field in fields]
    if filled and all(field.lower() in ("true", "false") for field in filled):
        return [field.strip().lower() == "true" if field.strip() else None for field in fields]
    return _as_text(fields)


def _as_text(fields: Sequence[str]) -> list[str | None]:
    """Returns fields as they stand, an empty one as null."""
    return [field or None for field in fields]


def _number(field: str) -> int | float | None:
    if not field:
        return None
    return int(field) if _WHOLE.fullmatch(field) else float(field)


__all__ = ["read_rows"]
