"""``claims.json``: each number of each table of a sweep's reports, with where it comes from.

The numbers are read from the Markdown files of the reports, because those are what people read and quote.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

import msgspec

from orchestrator.core.sweep import Cell
from orchestrator.registry import FORMULAS, load

Verdict = Literal["recomputed from predictions", "recomputed from rows", "recomputed from records"]

Formulas = Mapping[str, tuple[str, str]]
"""File or heading of a table to how its numbers are computed, and from what."""
_VERDICTS: Mapping[str, Verdict] = {
    "predictions": "recomputed from predictions",
    "rows": "recomputed from rows",
    "records": "recomputed from records",
}

_NUMBER = re.compile(r"(?<![\w.])[-+−]?\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?(?![\w])")
_UNESCAPED = re.compile(r"\\([\\`*_\[\]<>|#~])")
_OTHER = ("as the report computes it", "records")


class TableClaim(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The numbers in one place of a table.

    Attributes:
        table: file of the report, and the table's heading.
        row: texts of the row's first columns, joined by ``, ``.
        column: heading of the column.
        text: as printed.
        value: the numbers in it, such as an accuracy and the ends of its interval.
        tolerance: half a unit of the last printed digit, by which rounding may move the first of them.
        cells: positions in `Claims.cells` of those from whose rows the numbers are computed, at most.
        formula: how they are computed.
        verdict: what they were computed from again: the kept predictions or only the recorded rows.
    """

    table: str
    row: str
    column: str
    text: str
    value: tuple[float, ...]
    tolerance: float
    cells: tuple[int, ...]
    formula: str
    verdict: Verdict


class Claims(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The content of ``claims.json``: the ids of the cells, and the claims."""

    sweep: str
    revision: int
    cells: tuple[str, ...]
    claims: tuple[TableClaim, ...]


class MarkdownTable(NamedTuple):
    """A table of a Markdown file: the headings above it, its columns, and its rows as texts."""

    heading: str
    columns: Sequence[str]
    is_number: Sequence[bool]
    rows: Sequence[Sequence[str]]


def claims_of(
    reports: Mapping[str, Mapping[str, str]], cells: Sequence[Cell], rescored: Iterable[str]
) -> tuple[TableClaim, ...]:
    """Return the claims in the Markdown files of some reports.

    Args:
        reports: name of a report to its files, each with its text.
        cells: of the sweep.
        rescored: ids of the cells whose rows follow from predictions that are in the bundle.
    """
    from_predictions = set(rescored)
    found: dict[tuple[str, ...], TableClaim] = {}
    for report, files in reports.items():
        formulas: Formulas = load(FORMULAS[report]) if report in FORMULAS else {}
        # A table has a file of its own, and stands on the page too: what is claimed twice is one claim.
        for file in sorted(files, key=lambda name: (name == "report.md", name)):
            for table in tables_in(files[file]):
                names = _Names(cells, table)
                for row in table.rows:
                    for claim in _of_row(report, file, table, row, names, formulas):
                        made = all(cells[number].id in from_predictions for number in claim.cells)
                        if claim.verdict == "recomputed from predictions" and not made:
                            claim = msgspec.structs.replace(claim, verdict="recomputed from rows")
                        found.setdefault((table.heading, claim.row, claim.column, claim.text), claim)
    return tuple(found.values())


def tables_in(text: str) -> Iterator[MarkdownTable]:
    """Yield the tables of a Markdown text."""
    heading, lines = "", [*text.split("\n"), ""]
    start = 0
    for number, line in enumerate(lines):
        if line.startswith("#"):
            heading = _plain(line.lstrip("#"))
        if line.startswith("| "):
            continue
        if number - start > 2 and re.fullmatch(r"[|:\- ]+", lines[start + 1]):
            rules = _fields(lines[start + 1])
            rows = [_fields(each) for each in lines[start + 2 : number]]
            yield MarkdownTable(heading, _fields(lines[start]), [r.endswith(":") for r in rules], rows)
        start = number + 1


def _fields(line: str) -> list[str]:
    return [_plain(text) for text in re.split(r"(?<!\\)\|", line)[1:-1]]


def _plain(text: str) -> str:
    return _UNESCAPED.sub(r"\1", text.strip())


class _Names:
    """The labels by which a table names cells: of its heading and of the texts in its rows."""

    def __init__(self, cells: Sequence[Cell], table: MarkdownTable) -> None:
        self._labels = [
            {_folded(each) for each in (cell.id, *cell.axes.values(), *map(str, cell.columns.values()))}
            for cell in cells
        ]
        self._known = set().union(*self._labels) if cells else set()
        self._heading = table.heading

    def cells(self, texts: Sequence[str]) -> tuple[int, ...]:
        """Return the positions of the cells that have each label which stands in the texts."""
        named = {_folded(text) for text in (self._heading, *texts)} & self._known
        return tuple(number for number, labels in enumerate(self._labels) if named <= labels)


def _folded(text: str) -> str:
    return text.replace("_", " ").casefold()


def _of_row(
    report: str,
    file: str,
    table: MarkdownTable,
    row: Sequence[str],
    names: _Names,
    formulas: Formulas,
) -> Iterator[TableClaim]:
    texts = [text for text, is_number in zip(row, table.is_number, strict=False) if not is_number]
    numbers = zip(row, table.columns, table.is_number, strict=False)
    formula, source = formulas.get(table.heading) or formulas.get(file) or _OTHER
    cells = names.cells(texts)
    for text, column, is_number in numbers:
        if is_number and (value := _values(text)):
            yield TableClaim(
                table=f"report/{report}/{file}: {table.heading}",
                row=", ".join(texts),
                column=column,
                text=text,
                value=value,
                tolerance=_tolerance(text),
                cells=cells,
                formula=formula,
                verdict=_VERDICTS[source],
            )


def _values(text: str) -> tuple[float, ...]:
    return tuple(float(found[0].replace(",", "").replace("−", "-")) for found in _NUMBER.finditer(text))


def _tolerance(text: str) -> float:
    found = _NUMBER.search(text)
    digits = len(found[0].partition("e")[0].partition(".")[2]) if found else 0
    return 0.5 * 10.0**-digits if found and "." in found[0] else 0.0
