"""What follows from the records of a bundle: rows from predictions, tables from rows, and ``claims.json``.

The same functions make a bundle and verify it. What they make at both times is compared, so a bundle holds
nothing in these files that its records do not imply. No code of the sweep runs: stages, tasks and reports
count only by the names that this installation has for them.
"""

from __future__ import annotations

import io
import re
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec

from orchestrator.api import reports
from orchestrator.api.state import SweepState
from orchestrator.bundles.content import products
from orchestrator.core.evidence import Liveness
from orchestrator.core.records import Done
from orchestrator.core.sweep import Cell, StageInstance
from orchestrator.jobs.cells import Jobs
from orchestrator.jobs.submissions import Submissions
from orchestrator.registry import FORMULAS, REPORTS, RESCORED, load
from orchestrator.reporting import Offers
from orchestrator.store import layout
from orchestrator.store.access import Records
from orchestrator.store.evidence import EvidenceReader, OwnerReport
from orchestrator.store.ledger import Ledger, check_mark
from orchestrator.store.objects import PosixStore
from orchestrator.store.table import Rows, collect_rows, write_csv

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
    """Return the content of ``claims.json``: each number of each table of some reports, and where it is from.

    The numbers are read from the Markdown files, because those are what people read and quote.

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


ROWS, CLAIMS, REPORT = "rows.json", "claims.json", "report"
_KEPT = (".csv", ".json", ".md")
"""Endings of a report's files that a bundle holds: tables and the data of figures. It is drawn by anyone."""

_UNSEEN = OwnerReport(Liveness.UNKNOWN, "its owner is not looked for")


class Recomputed(NamedTuple):
    """What follows from the records of a bundle.

    Attributes:
        files: name in the bundle to content.
        num_rows, num_predicted: result rows of the sweep, and those that follow from predictions.
        num_claims: numbers in tables.
        faults: where records contradict each other, as lines.
        unchecked: what could not be computed again, as lines.
    """

    files: dict[str, bytes]
    num_rows: int
    num_predicted: int
    num_claims: int
    faults: list[str]
    unchecked: list[str]


def state_of(folder: Path, sweep: str, number: int) -> SweepState:
    """Return the state of a sweep whose records lie in a folder, as its records alone imply it.

    Neither a scheduler nor a process is looked for, and files of products may be absent.

    Raises:
        SweepError: the records cannot be read.
    """
    objects = PosixStore(folder)
    ledger = Ledger(objects, store_format=check_mark(Records(objects)))
    view = SweepState(ledger, ledger.revision(sweep, number).sweep, number, sealed=True)
    view.jobs = Jobs(Submissions(ledger, sweep).read(view.problems))
    view.reader = EvidenceReader(
        ledger,
        view.instances.values(),
        observer=lambda instance, attempt: _UNSEEN,
        check_files=False,
        specs=view.sweep.specs,
    )
    return view


def recompute(view: SweepState) -> Recomputed:
    """Return what follows from the records of a sweep.

    Args:
        view: from `state_of`.

    Raises:
        SweepError: a report cannot be written from the rows.
    """
    faults, unchecked = [], []
    rescored, num_predicted = set[str](), 0
    for instance, done in products(view):
        if instance.stage not in RESCORED or not done.rows:
            continue
        if view.sweep.specs[instance.stage].name != instance.stage:
            unchecked.append(f"{instance.name}: a stage of the user's own")
            continue
        found = load(RESCORED[instance.stage])(
            instance.reads, _folder(view, done), done.rows, _inputs(view, instance)
        )
        name = _name(view, instance)
        faults += [f"{name}: {fault}" for fault in found.faults]
        unchecked += [f"{name}: {why}" for why in found.unchecked]
        if not found.faults and not found.unchecked:
            rescored.add(instance.digest)
            num_predicted += len(done.rows)
    rows = collect_rows(view.sweep, view.number, view.sweep.cells, view.cells, view.reader)
    made = _reports(view, rows, unchecked)
    files = {ROWS: _lines(rows), "rows.csv": _table(rows)}
    texts: dict[str, dict[str, str]] = defaultdict(dict)
    for (report, name), data in made.items():
        files[f"{REPORT}/{report}/{name}"] = data
        if name.endswith(".md"):
            texts[report][name] = data.decode()
    cells = view.sweep.cells
    with_rows = {d for d in view.sweep.stages if (e := view.reader.evidence(d).done) is not None and e.rows}
    whole = [c.id for c in cells if {d for d in c.stage_digests if d in with_rows} <= rescored]
    claims = claims_of(texts, cells, whole)
    found_claims = Claims(
        sweep=view.sweep.name, revision=view.number, cells=tuple(cell.id for cell in cells), claims=claims
    )
    files[CLAIMS] = msgspec.json.format(msgspec.json.encode(found_claims), indent=1) + b"\n"
    return Recomputed(files, len(rows), num_predicted, len(claims), faults, unchecked)


def _folder(view: SweepState, done: Done) -> Path:
    return view.ledger.objects.folder(layout.output(done, done.attempt))


def _inputs(view: SweepState, instance: StageInstance) -> dict[str, Path]:
    """Return the folders of the products that a stage took, by the stage that made them."""
    made = {taken.stage: view.reader.evidence(taken.digest).done for taken in instance.inputs}
    return {stage: _folder(view, done) for stage, done in made.items() if done is not None}


def _name(view: SweepState, instance: StageInstance) -> str:
    cells = [cell.id for cell in view.sweep.cells if instance.digest in cell.stage_digests]
    return f"{instance.name} of {cells[0]}" if cells else instance.name


def _reports(view: SweepState, rows: Rows, unchecked: list[str]) -> dict[tuple[str, str], bytes]:
    """Return the tables and data of a sweep's reports, by report and file."""
    facts = msgspec.structs.replace(reports.about(view), made_at="")
    names: Sequence[str] = view.sweep.report or (reports.fitting_report(rows, facts),)
    offers: Offers = {"about": lambda: facts, "over": tuple, "drawn": lambda: False}
    made: dict[tuple[str, str], bytes] = {}
    for name in names:
        # The bundle may name any object. Only reports of this installation are called.
        if name not in REPORTS:
            unchecked.append(f"the report {name} is none of this installation")
            continue
        with tempfile.TemporaryDirectory() as place:
            written = reports.write_report(
                name, rows, Path(place), offers, where=view.title, notify=lambda line: None
            )
            made |= {(name, p.name): p.read_bytes() for p in written if p.suffix in _KEPT}
    return made


def _lines(rows: Rows) -> bytes:
    """Return rows as JSON, one a line, so that a difference has a line."""
    lines = b",\n".join(msgspec.json.encode(row) for row in rows)
    return b"[\n" + lines + b"\n]\n"


def _table(rows: Rows) -> bytes:
    stream = io.StringIO(newline="")
    write_csv(rows, stream)
    return stream.getvalue().encode()
