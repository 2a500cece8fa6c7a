"""The grid of a sweep as HTML: for the page, for a file without a server, and for the page of a report.

A template writes every text, with autoescape, because axis values and messages come from users and stages.
"""

from __future__ import annotations

import base64
import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import jinja2

from orchestrator.api.grid import CellGrid, Spot
from orchestrator.api.overview import Overview, overview
from orchestrator.api.pace import duration
from orchestrator.api.state import SweepState
from orchestrator.core.state import State
from orchestrator.errors import inert
from orchestrator.reporting import Fragment

HERE = Path(__file__).parent

MAX_SPOTS = 1200
"""Positions that one page of the grid shows. A browser draws so many in a fraction of a second."""

SYMBOLS: Mapping[str, str] = {
    State.DONE: "✓",
    State.RUNNING: "▶",
    State.QUEUED: "…",
    State.FAILED: "✗",
    State.LOST: "⚡",
    State.BLOCKED: "■",
    State.RELEASED: "↺",
    State.CANCELLED: "–",
    State.PENDING: "·",
    State.STOPPED: "▫",
    State.UNKNOWN: "?",
}
"""State to its mark, so that no state is shown by its colour alone."""


def utc(at_s: float) -> str:
    """Return a Unix time as ``2026-11-26 19:20:05 UTC``."""
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(at_s))


def when(at: str) -> str:
    """Return the time of a record without its fraction and zone, which is UTC."""
    return at[:19].replace("T", " ")


def number(value: float | None) -> str:
    """Return a number for people: whole from 100 on, else with three digits; "" for None."""
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:,.3g}"


def environment() -> jinja2.Environment:
    """Return what renders the templates, with the functions that they use."""
    found = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE / "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        finalize=inert,
    )
    found.globals.update(symbols=SYMBOLS)
    found.filters.update(when=when, utc=utc, part=lambda text: quote(str(text), safe=""))
    return found


TEMPLATES = environment()


class Box(NamedTuple):
    """One position of the grid as it is drawn.

    Attributes:
        state: that decides on the colour; "" where the grid has no cell.
        symbol: of the state.
        text: beside the symbol, such as ``40 %`` or ``3/5``.
        title: the whole, for a tooltip and for screen readers.
        address: of the page about it; "" for none.
    """

    state: str = ""
    symbol: str = ""
    text: str = ""
    title: str = ""
    address: str = ""


class GridRow(NamedTuple):
    """One row of the grid: its labels and its boxes."""

    labels: tuple[str, ...]
    boxes: Sequence[Box]


class Header(NamedTuple):
    """One row of the grid's head: the name of an axis, and (label, number of columns) from left to right."""

    axis: str
    labels: Sequence[tuple[str, int]]


class Drawn(NamedTuple):
    """A part of a grid, ready for the template.

    Attributes:
        headers: a row for each axis of the columns.
        row_axes: names of the axes of the rows.
        rows: the rows of this part.
        num_columns: of the grid.
        first, last, total: numbers of the rows, from 1.
        folded: axes whose cells share a position.
    """

    headers: Sequence[Header]
    row_axes: Sequence[str]
    rows: Sequence[GridRow]
    num_columns: int
    first: int
    last: int
    total: int
    folded: Sequence[str]


Address = Callable[[Spot], str]
"""A function that returns the address of the page about a position; "" for none."""


def rows_a_page(grid: CellGrid) -> int:
    """Return how many rows of a grid one page shows."""
    return max(10, MAX_SPOTS // max(1, len(grid.columns)))


def drawn(found: Overview, address: Address, *, first: int = 0, most: int | None = None) -> Drawn:
    """Return a part of the grid for the template.

    Args:
        found: the sweep.
        address: returns where a position leads.
        first: index of the first row.
        most: most rows; by default all that follow.
    """
    grid = found.grid
    last = len(grid.rows) if most is None else min(len(grid.rows), first + most)
    boxes = [[Box()] * len(grid.columns) for _ in range(first, last)]
    for spot in grid.spots:
        if first <= spot.row < last:
            boxes[spot.row - first][spot.column] = _box(found, spot, address(spot))
    return Drawn(
        headers=[*_headers(grid)],
        row_axes=grid.row_axes,
        rows=[GridRow(grid.rows[first + i], each) for i, each in enumerate(boxes)],
        num_columns=len(grid.columns),
        first=first + 1,
        last=last,
        total=len(grid.rows),
        folded=grid.folded_axes,
    )


def _headers(grid: CellGrid) -> Iterator[Header]:
    """Yield the head's rows; columns that agree up to an axis share a label."""
    for depth, axis in enumerate(grid.column_axes, start=1):
        groups = groupby(grid.columns, key=lambda labels: labels[:depth])
        yield Header(axis, [(labels[-1], len([*each])) for labels, each in groups])


def _box(found: Overview, spot: Spot, address: str) -> Box:
    cells = [found.cells[index] for index in spot.cells]
    state = str(spot.state)
    if len(cells) > 1:
        done = spot.counts.get(State.DONE, 0)
        counts = ", ".join(f"{each} {name}" for name, each in spot.counts.items())
        return Box(state, SYMBOLS[state], f"{done}/{len(cells)}", f"{counts} of {len(cells)} cells", address)
    (cell,) = cells
    text = f"{100 * cell.progress:.0f} %" if cell.progress is not None and state == State.RUNNING else ""
    # The reason of a running cell holds the age of its heartbeat, and would make every look another one.
    details = (cell.stage, text) if state == State.RUNNING else (cell.reason,)
    title = "; ".join(filter(None, (f"{cell.id}: {state}", *details)))
    return Box(state, SYMBOLS[state], text, title, address)


def nowhere(spot: Spot) -> str:
    """Return that a position leads nowhere, as in a file."""
    return ""


def style(*names: str) -> str:
    """Return style sheets of the page, one after the other."""
    return "".join((HERE / "static" / name).read_text(encoding="utf-8") for name in names)


def fragment(found: Overview) -> Fragment:
    """Return the grid with totals and failures, as a report embeds it."""
    body = TEMPLATES.get_template("fragment.html").render(of=found, **_parts(found))
    return Fragment(style=style("grid.css"), body=body)


def fragment_of(view: SweepState) -> Fragment:
    """Return the grid of a sweep state, as a report embeds it."""
    return fragment(overview(view))


def file_page(found: Sequence[Overview], every_s: float | None = None) -> str:
    """Return a page that needs no server, no script and no other file.

    Args:
        found: the sweeps.
        every_s: after how many seconds a browser reads the file again; None for never.
    """
    parts: list[dict[str, Any]] = [{"of": each, **_parts(each)} for each in found]
    sheet = style("grid.css", "dark.css", "file.css")
    template = TEMPLATES.get_template("file.html")
    return template.render(sweeps=parts, style=sheet, digest=source_of(sheet), every_s=every_s)


def source_of(text: str) -> str:
    """Return the source by which a content security policy allows one inline style, as CSP 3 defines it."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _parts(found: Overview) -> dict[str, Any]:
    most = rows_a_page(found.grid)
    return {"grid": drawn(found, nowhere, most=most), "facts": facts(found)}


def facts(found: Overview) -> dict[str, str]:
    """Return the totals that are known: name to value, for people."""
    gpus = found.gpus
    shares = {
        "cells done": f"{found.counts.get(State.DONE, 0):,} of {sum(found.counts.values()):,}",
        "time left": "" if found.eta_s is None else duration(found.eta_s),
        "workers": number(gpus.num_workers) if gpus.num_workers else "",
        "GPUs in use": f"{number(gpus.in_use)} of {number(gpus.held)}" if gpus.held else "",
        "GPUs waited for": number(gpus.asked - gpus.held) if gpus.asked > gpus.held else "",
        "GPU-hours spent": number(gpus.hours) if gpus.hours else "",
        "tokens per second": number(found.tokens_per_second),
        "next decision": found.decision,
    }
    return {name: text for name, text in shares.items() if text}
