"""Tables and pages: Markdown, and one HTML file that needs no network, no script and no other file."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import jinja2

from orchestrator.errors import inert
from orchestrator.reporting import Fragment, HeldFacts


class Table(NamedTuple):
    """A table for people.

    Attributes:
        key: name of its file, such as ``table2``.
        title: its caption.
        columns: the headers; ``#`` in front marks a column of numbers and is not shown.
        rows: texts; the first of each row is the row's header.
        note: what the reader must know: n, intervals, tests.
    """

    key: str
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""

    @property
    def headers(self) -> list[tuple[str, bool]]:
        """The text of each header, and whether its column holds numbers."""
        return [(name.removeprefix("#"), name.startswith("#")) for name in self.columns]


FORMULAS = {
    "Cells": ("the value in the row that the cell's stage returned; (mean): the mean of its rows", "rows"),
    "report.md": ("mean ± sample standard deviation (n - 1) over n cells, or a sum of records", "records"),
}
"""File or heading of a table of the general report to how its numbers are computed, and from what."""

_SPECIAL = re.compile(r"([\\`*_\[\]<>|#~])")
"""Characters with a meaning in Markdown."""


def escaped(text: str) -> str:
    """Return text that Markdown shows unchanged, on one line."""
    return " ".join(_SPECIAL.sub(r"\\\1", text).split())


def table(content: Table) -> str:
    """Return a table and its note as Markdown."""
    rules = ["---:" if is_number else "---" for _, is_number in content.headers]
    lines = [_line(escaped(name) for name, _ in content.headers), _line(rules)]
    lines += [_line(map(escaped, row)) for row in content.rows]
    return "\n".join(lines) + (f"\n\n{escaped(content.note)}" if content.note else "") + "\n"


def section(content: Table, *, level: int = 2) -> str:
    """Return a table under its title as Markdown.

    Args:
        content: the table.
        level: of the heading, from 1.
    """
    return f"{'#' * level} {escaped(content.title)}\n\n{table(content)}"


def page(
    title: str, paragraphs: Sequence[str], tables: Iterable[Table], figures: Iterable[tuple[str, str, str]]
) -> str:
    """Return the whole report as Markdown.

    Args:
        title: its heading.
        paragraphs: below the heading.
        tables: in order; those without rows are left out.
        figures: title, file and caption of each.
    """
    parts = [f"# {escaped(title)}\n", *(f"{escaped(text)}\n" for text in paragraphs)]
    parts += [section(content) for content in tables if content.rows]
    parts += [
        f"## {escaped(name)}\n\n![{escaped(name)}]({file})\n\n{escaped(text)}\n"
        for name, file, text in figures
    ]
    return "\n".join(parts)


def _line(cells: Iterable[str]) -> str:
    """Return one line of a Markdown table."""
    return f"| {' | '.join(cells)} |"


_TEMPLATE = Path(__file__).with_name("page.html")


class Picture(NamedTuple):
    """A figure on the page.

    Attributes:
        key: unique on the page.
        title: a heading.
        caption: what is shown.
        alt: a description for readers who cannot see the figure.
        svg: content of the file.
    """

    key: str
    title: str
    caption: str
    alt: str
    svg: bytes

    @property
    def source(self) -> str:
        """The picture as a ``data:`` URL.

        As an image instead of inline SVG, its ids and styles cannot clash with those of other pictures.
        """
        return "data:image/svg+xml;base64," + base64.b64encode(self.svg).decode()


class Section(NamedTuple):
    """A part of the page under a heading: text, then tables, then figures.

    Attributes:
        key: unique on the page.
        title: its heading.
        text: paragraphs.
        tables: below the text.
        pictures: below the tables.
        empty: the text to show if there is nothing else.
        fragment: markup below the text, such as the grid of a sweep.
    """

    key: str
    title: str
    text: Sequence[str] = ()
    tables: Sequence[Table] = ()
    pictures: Sequence[Picture] = ()
    empty: str = ""
    fragment: Fragment | None = None


def render(title: str, *, subtitle: str, sections: Sequence[Section]) -> str:
    """Return the page as HTML. All names and texts are escaped."""
    # Names come from users' configs: `autoescape` keeps them from being read as markup.
    environment = jinja2.Environment(
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        finalize=inert,
    )
    template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    return template.render(title=title, subtitle=subtitle, sections=sections) + "\n"


def held_tables(held: Sequence[HeldFacts]) -> list[Table]:
    """Return for each unit a table of where the held time went, and one of why work was lost, if any was."""
    return [table for facts in held for table in (_parts(facts), _lost(facts)) if table.rows]


def _parts(facts: HeldFacts) -> Table:
    """Return the table with one line for each stage, and one for each worker's own time."""
    names = list(facts.hours)
    total = sum(facts.hours.values())
    lines = [
        [stage or "between stages", *(f"{parts.get(name, 0.0):.3f}" for name in names)]
        for stage, parts in facts.by_stage.items()
    ]
    if lines:
        lines.append(["all", *(f"{facts.hours[name]:.3f}" for name in names)])
    if total:
        lines.append(["% of all", *(f"{100 * facts.hours[name] / total:.1f}" for name in names)])
    note = (
        "From the start of each worker to its last sign of life. Compute and evaluation count where a product"
    )
    note += " holds them; other work is lost. What older records do not show is unknown."
    return Table(
        f"held-{facts.unit}", f"Held {facts.unit}", ["stage", *(f"#{name}" for name in names)], lines, note
    )


def _lost(facts: HeldFacts) -> Table:
    """Return the table of why work was lost."""
    found = sorted(facts.lost_hours.items(), key=lambda item: -item[1])
    lines = [[why, f"{amount:.3f}"] for why, amount in found]
    return Table(f"lost-{facts.unit}", f"Lost {facts.unit}", ["cause", "#amount"], lines)
