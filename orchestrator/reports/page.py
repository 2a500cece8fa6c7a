"""The page: one HTML file that needs no network, no script and no other file."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import jinja2


class Table(NamedTuple):
    """A table for people.

    Attributes:
        key: of its file, such as ``table2``.
        title: its caption.
        columns: the headers; those that begin with ``#`` are of numbers, and are shown without it.
        rows: texts; the first of each is the row's header.
        note: what the reader must know: n, intervals, tests.
    """

    key: str
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""

    @property
    def headers(self) -> list[tuple[str, bool]]:
        """Each header, and whether its column is of numbers."""
        return [(name.removeprefix("#"), name.startswith("#")) for name in self.columns]


_SPECIAL = re.compile(r"([\\`*_\[\]<>|#~])")


def escaped(text: str) -> str:
    """Returns text that Markdown shows as it is, on one line."""
    return " ".join(_SPECIAL.sub(r"\\\1", text).split())


def table(content: Table) -> str:
    """Returns a table with its note."""
    rules = ["---:" if is_number else "---" for _, is_number in content.headers]
    lines = [_line(escaped(name) for name, _ in content.headers), _line(rules)]
    lines += [_line(map(escaped, row)) for row in content.rows]
    return "\n".join(lines) + (f"\n\n{escaped(content.note)}" if content.note else "") + "\n"


def section(content: Table, *, level: int = 2) -> str:
    """Returns a table under its title."""
    return f"{'#' * level} {escaped(content.title)}\n\n{table(content)}"


def page(
    title: str, said: Sequence[str], tables: Iterable[Table], figures: Iterable[tuple[str, str, str]]
) -> str:
    """Returns the whole report.

    Args:
        title: its heading.
        said: paragraphs below it.
        tables: in order; those without rows are left out.
        figures: title, file and caption of each.
    """
    parts = [f"# {escaped(title)}\n", *(f"{escaped(text)}\n" for text in said)]
    parts += [section(content) for content in tables if content.rows]
    parts += [
        f"## {escaped(name)}\n\n![{escaped(name)}]({file})\n\n{escaped(text)}\n"
        for name, file, text in figures
    ]
    return "\n".join(parts)


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


_TEMPLATE = Path(__file__).with_name("page.html")


class Picture(NamedTuple):
    """A figure in the page.

    Attributes:
        key: unique in the page.
        title: a heading.
        caption: what is shown.
        alt: what it shows, for who cannot see it.
        svg: the file's bytes; an image of its own, so that its names and styles stay its own.
    """

    key: str
    title: str
    caption: str
    alt: str
    svg: bytes

    @property
    def source(self) -> str:
        """The picture itself as an address."""
        return "data:image/svg+xml;base64," + base64.b64encode(self.svg).decode()


class Section(NamedTuple):
    """A part of the page under a heading: text, then tables, then figures.

    Attributes:
        empty: what is said where there is nothing else.
    """

    key: str
    title: str
    text: Sequence[str] = ()
    tables: Sequence[Table] = ()
    pictures: Sequence[Picture] = ()
    empty: str = ""


def render(title: str, *, subtitle: str, sections: Sequence[Section]) -> str:
    """Returns the page; whatever a name holds is shown as text."""
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    return template.render(title=title, subtitle=subtitle, sections=sections) + "\n"
