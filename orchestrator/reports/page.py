"""The page: one HTML file that needs no network, no script and no other file."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jinja2

from orchestrator.reports.tabular import Table

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
