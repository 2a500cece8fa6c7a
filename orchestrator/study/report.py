"""The `study` report: the paper's tables and figures from all existing rows, and a page with all of them.

This module collects the numbers, adds how they came to be, and writes the files. It computes no statistics
itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from orchestrator.reporting import About, Fragment
from orchestrator.reports import page
from orchestrator.reports.page import Table
from orchestrator.reports.style import Drawing, save, styled
from orchestrator.results import notes_of
from orchestrator.study import accuracy_figures, coverage, effect_figures, numbers, paper, provenance_tables
from orchestrator.study.comparison import ledger
from orchestrator.study.paper import distinct
from orchestrator.study.sections import NumbersSection, Report, SweepSection, Swept
from orchestrator.study.tables import model
from orchestrator.study.tables.results import Row, languages_of

JSON, MARKDOWN, HTML = "report.json", "report.md", "report.html"
TITLE = "Multilinguality in post-training: a replication of arXiv 2604.13286"
FIGURES = (
    accuracy_figures.figure2,
    effect_figures.figure3,
    effect_figures.figure4,
    accuracy_figures.figure7,
    accuracy_figures.figure8,
    effect_figures.figure9,
)
"""The paper's figures, in its order. Each returns None if it has no numbers."""


def write(
    rows: Sequence[Row],
    folder: Path,
    *,
    about: About | None = None,
    grid: Fragment | None = None,
    drawn: bool = True,
) -> list[Path]:
    """Write ``report.html``, ``report.md``, ``report.json``, tables and figures, and return their paths.

    Args:
        rows: the rows of `collect`, of any part of the sweep.
        folder: the destination, which is created if needed. Files of an earlier report in it are replaced.
        about: facts of the sweep. Without them, the rows are a table from elsewhere.
        grid: the grid of the sweep's cells, for the page.
        drawn: whether to write the page and the figures too, and not only tables and numbers.

    Returns:
        The paths of all files.

    Raises:
        UserError: the rows are not such a table.
    """
    report = numbers_of(rows, about)
    folder.mkdir(parents=True, exist_ok=True)
    with styled():
        drawings = [drawing for draw in FIGURES if (drawing := draw(report.numbers)) is not None]
    html, figures = _page(report, drawings, folder, grid) if drawn else ([], [])
    paths = [*html, folder / MARKDOWN, folder / JSON]
    paths[-2].write_text(_markdown(report, drawings), encoding="utf-8")
    paths[-1].write_bytes(report.to_json())
    for table in (model.accuracies(report.numbers), *model.results(report.numbers), *_accounts(report)):
        if table.rows:
            paths.append(folder / f"{table.key}.md")
            paths[-1].write_text(page.section(table, level=1), encoding="utf-8")
    _remove_stale(folder, [*paths, *figures])
    return [*paths, *figures]


def _page(
    report: Report, drawings: Sequence[Drawing], folder: Path, grid: Fragment | None
) -> tuple[list[Path], list[Path]]:
    """Write the figures, and the page with all of them. Return the paths of the page and of the figures."""
    pictures: list[page.Picture] = []
    files: list[Path] = []
    for drawing in drawings:
        files += save(drawing, folder)
        # The page embeds the drawing, so that the HTML file is complete by itself.
        svg = files[-1].read_bytes()
        pictures.append(page.Picture(drawing.key, drawing.title, drawing.caption, drawing.alt, svg))
    sections = list(_sections(report, pictures, grid))
    path = folder / HTML
    path.write_text(page.render(TITLE, subtitle=_subtitle(report), sections=sections), encoding="utf-8")
    return [path], files


def numbers_of(rows: Sequence[Row], about: About | None = None) -> Report:
    """Return the content of ``report.json``: the study's numbers, and how they came to be."""
    where = f"{about.sweep}@{about.revision}" if about else "the table"
    found = numbers.report(rows, expected=coverage.expected(about), where=where)
    return Report(
        sweep=_identity(about, rows),
        swept=_swept(rows, found, about),
        status=coverage.status(found, about),
        numbers=found,
        ledger=ledger(about),
        retries=about.retries if about is not None else (),
        gpu_hours=provenance_tables.gpu_hours(rows),
        held=about.held if about is not None else (),
        provenance=provenance_tables.provenance(rows, about),
    )


def _identity(about: About | None, rows: Sequence[Row]) -> SweepSection:
    notes = tuple(notes_of(rows))
    if about is None:
        return SweepSection(notes=notes)
    return SweepSection(
        sweep=about.sweep,
        revision=about.revision,
        sealed=about.sealed,
        description=about.description,
        stages=about.stages,
        made_at=about.made_at,
        notes=(*about.notes, *notes),
    )


def _swept(rows: Sequence[Row], found: NumbersSection, about: About | None) -> Swept:
    """Return what was run: the whole grid of a sweep, or what occurs in a table."""
    shown = [*found.fig8, *found.baselines]
    cells = coverage.expected(about)
    mixtures = [cell.languages for cell in cells] if cells is not None else [r.get("languages") for r in rows]
    trained = sorted({paper.in_order(languages_of(names)) for names in mixtures}, key=_place)
    return Swept(
        models=distinct(cells or shown, "model"),
        tasks=distinct(cells or shown, "task"),
        mixtures=[paper.label_of(names) for names in trained] if shown or cells else [],
        eval_languages=list(paper.in_order(distinct(shown, "eval_language"))),
    )


def _place(languages: Sequence[str]) -> tuple[int, list[int]]:
    """Return a sort key: small mixtures first, then in the order of the study's languages."""
    known = (*paper.CORE, *paper.EXTRAS)
    return len(languages), [known.index(name) if name in known else len(known) for name in languages]


def _subtitle(report: Report) -> str:
    sweep = report.sweep
    if sweep.sweep is None:
        return "From a table of results."
    made = f", as of {sweep.made_at}" if sweep.made_at else ""
    launched = "" if sweep.sealed else " (not launched yet)"
    return f"Sweep {sweep.sweep}, revision {sweep.revision}{launched}{made}."


def _sections(
    report: Report, pictures: Sequence[page.Picture], grid: Fragment | None
) -> Iterator[page.Section]:
    """Yield the sections of the page."""
    sentences = [*provenance_tables.headline(report), *report.sweep.notes]
    tables = [provenance_tables.grid(report), provenance_tables.missing(report)]
    yield page.Section("status", "What was run, and where it stands", sentences, tables, fragment=grid)
    nothing = "Nothing is done yet."
    yield page.Section("verdicts", "Verdicts", (), [model.verdicts(report.numbers)], empty=nothing)
    yield page.Section("tables", "Tables", (), model.results(report.numbers), empty=nothing)
    yield page.Section(
        "figures", "Figures", (), (), pictures, empty="There are no rows yet to draw a figure from."
    )
    text = [] if report.ledger.known else ["The table does not say how its cells were configured."]
    if report.ledger.known and not report.ledger.differs:
        text = ["No cell differs from what the paper says."]
    yield page.Section(
        "deviations",
        "Deviation ledger",
        text,
        [provenance_tables.differs(report), provenance_tables.ours(report)],
    )
    yield page.Section("retries", "Remedies and retries", (), [provenance_tables.retries(report)],
                       empty="Every stage was done at its first attempt." if report.sweep.sweep
                       else "A table does not tell.")  # fmt: skip
    yield page.Section(
        "hours",
        "GPU-hours",
        (),
        [provenance_tables.hours(report)],
        empty="No row says how long training took.",
    )
    yield page.Section("cost", "What the sweep cost", [each.summary for each in report.held],
                       page.held_tables(report.held), empty="No worker recorded what it held.")  # fmt: skip
    hosts = report.provenance.hosts
    yield page.Section("provenance", "Provenance", [f"Made on {', '.join(hosts)}."] if hosts else [],
                       [provenance_tables.codes(report), provenance_tables.launches(report)],
                       empty="The rows name no code version.")  # fmt: skip


HISTORY = (
    provenance_tables.differs,
    provenance_tables.ours,
    provenance_tables.retries,
    provenance_tables.hours,
    provenance_tables.codes,
    provenance_tables.launches,
)
"""Tables of how the results came to be; the first four are also written to files of their own."""


def _accounts(report: Report) -> list[Table]:
    """Return the tables that are also written to files of their own, beside those of results."""
    own = [make(report) for make in HISTORY[:4]]
    return [provenance_tables.missing(report), model.verdicts(report.numbers), *own]


def _markdown(report: Report, drawings: Sequence[Drawing]) -> str:
    shown = [
        provenance_tables.grid(report),
        provenance_tables.missing(report),
        model.verdicts(report.numbers),
        *model.results(report.numbers),
        *(make(report) for make in HISTORY[:4]),
        *page.held_tables(report.held),
        *(make(report) for make in HISTORY[4:]),
    ]
    sentences = [_subtitle(report), *provenance_tables.headline(report), *report.sweep.notes]
    return page.page(TITLE, sentences, shown, [(d.title, f"{d.key}.png", d.caption) for d in drawings])


def _remove_stale(folder: Path, written: Sequence[Path]) -> None:
    """Remove files of an earlier report for which this one has no rows.

    Readers would take them for a part of this report. Only names that a report can write are removed.
    """
    keys = ("figure2", "figure3", "figure4", "figure7", "figure8", "figure9")
    owned = [f"{key}.{suffix}" for key in keys for suffix in ("png", "svg", "md")]
    owned += [
        f"{key}.md" for key in ("table2", "table3", "baselines", "missing", "verdicts", "retries", "hours")
    ]
    owned += ["deviations-paper.md", "deviations-ours.md"]
    for name in owned:
        if folder / name not in written:
            (folder / name).unlink(missing_ok=True)
