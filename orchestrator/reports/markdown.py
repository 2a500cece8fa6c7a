"""Tables and the whole report as Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from orchestrator.reports.tabular import Table

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
