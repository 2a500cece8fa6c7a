"""The pages about cells: lists of them, one cell with its evidence, its log, and curves of several."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from orchestrator.api.grid import GridCell
from orchestrator.api.logs import (
    MetricCurve,
    curve,
    interesting_stage,
    metrics_of,
    named_stage,
)
from orchestrator.api.status import explain
from orchestrator.api.waiting import decision_line
from orchestrator.core.state import FINAL
from orchestrator.core.sweep import Cell, StageInstance
from orchestrator.errors import SEQUENCE, escaped
from orchestrator.serving.site import Seen, Served, Site, Unknown, pages_of, query, whole
from orchestrator.store import layout
from orchestrator.store.objects import ObjectStore

MAX_CURVES = 40
"""Curves over each other; more could not be told apart."""

MAX_LISTED = 200
"""Cells of a list on one page."""

MAX_VALUE = 1e100
"""Largest absolute value that is drawn: a range that overflows a float leaves the whole plot empty."""

DRAWN_FIRST = 6
"""Curves that are drawn before the viewer has chosen any."""


def chosen(seen: Seen, request: Request) -> tuple[list[GridCell], str]:
    """Return the cells that the parameters `only`, or `row` and `column`, select, and what they share.

    Raises:
        UserError: a selector is wrong.
    """
    params, found = request.query_params, seen.found
    if "row" in params and "column" in params:
        place = whole(request, "row", 0), whole(request, "column", 0)
        spot = next((each for each in found.grid.spots if (each.row, each.column) == place), None)
        if spot is None:
            raise Unknown("the grid has no cell there")
        axes = (*found.grid.row_axes, *found.grid.column_axes)
        labels = (*found.grid.rows[spot.row], *found.grid.columns[spot.column])
        shared = ", ".join(f"{axis} {label}" for axis, label in zip(axes, labels, strict=True))
        return [found.cells[index] for index in spot.cells], shared
    if not (only := params.get("only", "")):
        return list(found.cells), ""
    kept = {cell.id for cell in seen.view.select([only])}
    return [cell for cell in found.cells if cell.id in kept], ""


def cells_page(site: Site, served: Served, request: Request) -> Response:
    """Return a list of cells."""
    look, seen = served.seen()
    cells, shared = chosen(seen, request)
    number = max(1, whole(request, "page", 1))
    params = request.query_params
    address = served.path + "/cells" + query(**{k: params.get(k) for k in ("only", "row", "column")})
    return site.page(
        "cells.html",
        look,
        served=served,
        of=seen.found,
        cells=cells[(number - 1) * MAX_LISTED : number * MAX_LISTED],
        total=len(cells),
        shared=shared,
        only=params.get("only", ""),
        pages=pages_of(address, number, len(cells), MAX_LISTED),
    )


def cell_page(site: Site, served: Served, request: Request) -> Response:
    """Return the page of one cell."""
    look, seen = served.seen()
    cell = seen.cell(request.path_params["cell"])
    instance, number = _log_of(seen, cell, request)
    part = last_part(seen.view.ledger.objects, layout.log(instance, number)) if number else None
    return site.page(
        "cell.html",
        look,
        served=served,
        of=seen.found,
        cell=cell,
        config=escaped(msgspec.json.format(msgspec.json.encode(cell.config), indent=2).decode()),
        head=site.part(look, "cell-head.html", **_cell_facts(served, seen, cell, "head")),
        rest=site.part(look, "cell-rest.html", **_cell_facts(served, seen, cell, "rest")),
        log=part,
        is_over=not number or _is_over(seen, instance, number),
        stage=instance.name,
        attempt=number,
        stages=[seen.view.instances[digest].name for digest in seen.view.chain(cell)],
        log_query=query(cell=cell.id, stage=instance.name, attempt=number),
        curve_query=query(cell=[cell.id]),
    )


def cell_live(site: Site, served: Served, request: Request) -> Response:
    """Return the part of a cell's page that changes, if it has changed."""
    look, seen = served.polled()
    cell = seen.cell(request.path_params["cell"])
    part = "head" if request.query_params.get("part") == "head" else "rest"
    return site.live(request, look, f"cell-{part}.html", **_cell_facts(served, seen, cell, part))


def _cell_facts(served: Served, seen: Seen, cell: Cell, part: str) -> dict[str, Any]:
    # Reading the content of large products would take minutes. Their sizes are compared.
    evidence = explain(seen.view, cell, content=False)
    return {
        "address": f"{served.cell_path(cell.id)}/live?part={part}",
        "id": part,
        "served": served,
        "cell": cell,
        "why": evidence,
        "decision": decision_line(evidence["decision"]) if evidence["decision"] else "",
    }


def _log_of(seen: Seen, cell: Cell, request: Request) -> tuple[StageInstance, int]:
    """Return the stage and attempt whose log is meant; attempt 0 for a stage that was never started.

    Raises:
        UserError: the cell has no such stage.
        Unknown: the stage has no such attempt.
    """
    name = request.query_params.get("stage", "")
    instance = named_stage(seen.view, cell, name) if name else interesting_stage(seen.view, cell)
    numbers = seen.view.ledger.numbers(instance)
    number = whole(request, "attempt", 0) or (numbers[-1] if numbers else 0)
    if number and number not in numbers:
        raise Unknown(f"{instance.name} of {cell.id} has no attempt {number}")
    return instance, number


def _is_over(seen: Seen, instance: StageInstance, number: int) -> bool:
    attempt = seen.view.ledger.renewed().attempt(instance, number)
    return attempt is None or attempt.end is not None


def log_part(site: Site, served: Served, request: Request) -> Response:
    """Return what was added to a log after a byte, as JSON."""
    _, seen = served.last()
    cell = seen.cell(request.query_params.get("cell", ""))
    instance, number = _log_of(seen, cell, request)
    if not number:
        return JSONResponse({"text": "", "next": 0, "is_over": False})
    # The record is read before the log: if the attempt has ended, the log that follows is complete.
    is_over = _is_over(seen, instance, number)
    part = part_from(seen.view.ledger.objects, layout.log(instance, number), whole(request, "after", 0))
    return JSONResponse({"text": part.text, "next": part.end, "is_over": is_over})


def log_text(site: Site, served: Served, request: Request) -> Response:
    """Return a whole log as it is, as plain text."""
    _, seen = served.last()
    cell = seen.cell(request.query_params.get("cell", ""))
    instance, number = _log_of(seen, cell, request)
    key, objects = layout.log(instance, number), seen.view.ledger.objects
    if not number or not objects.size(key):
        raise Unknown(f"{instance.name} of {cell.id} has no log")

    def parts() -> Iterator[bytes]:
        position = 0
        while data := objects.read_from(key, position, LOG_CHUNK):
            position += len(data)
            yield data

    return StreamingResponse(parts(), media_type="text/plain; charset=utf-8")


# Curves


def curves_page(site: Site, served: Served, request: Request) -> Response:
    """Return the page on which curves of chosen cells are drawn over each other."""
    look, seen = served.seen()
    cells, _ = chosen(seen, request)
    wanted = _wanted(seen, request)
    if not wanted and "cell" not in request.query_params:
        wanted = [cell.id for cell in cells if str(cell.state) not in ("pending", "blocked")][:DRAWN_FIRST]
    metric, stage = request.query_params.get("metric", ""), request.query_params.get("stage", "")
    with served.lock:
        known = metrics_of(seen.view, seen.cell(wanted[0]), served.metrics) if wanted else {}
    names = list(dict.fromkeys(name for each in known.values() for name in each))
    listed = cells[:MAX_LISTED]
    shown = {cell.id for cell in listed}
    return site.page(
        "curves.html",
        look,
        served=served,
        of=seen.found,
        cells=[*(cell for cell in seen.found.cells if cell.id in {*wanted} - shown), *listed],
        total=len(cells),
        wanted=wanted,
        most=MAX_CURVES,
        metric=metric or (names[0] if names else ""),
        stage=stage,
        names=names,
        stages=list(known),
        only=request.query_params.get("only", ""),
        curves=[_in_numbers(id_, each) for id_, each in _curves(served, seen, wanted, metric, stage)],
        curve_query=query(cell=wanted, metric=metric, stage=stage),
    )


def curves_json(site: Site, served: Served, request: Request) -> Response:
    """Return the curves of the chosen cells as JSON."""
    _, seen = served.polled()
    metric, stage = request.query_params.get("metric", ""), request.query_params.get("stage", "")
    wanted = _wanted(seen, request)
    found = _curves(served, seen, wanted, metric, stage)
    is_over = all(seen.view.cells[id_].state in FINAL for id_ in wanted)
    curves = [_drawn(id_, each) for id_, each in found]
    return JSONResponse(
        {"metric": found[0][1].metric if found else metric, "curves": curves, "is_over": is_over}
    )


def _wanted(seen: Seen, request: Request) -> list[str]:
    """Return the ids of the cells that the parameter `cell` names, at most `MAX_CURVES`.

    Raises:
        Unknown: one of them is no cell.
    """
    ids = list(dict.fromkeys(request.query_params.getlist("cell")))[:MAX_CURVES]
    return [seen.cell(id_).id for id_ in ids if id_]


def _curves(
    served: Served, seen: Seen, wanted: Sequence[str], metric: str, stage: str
) -> list[tuple[str, MetricCurve]]:
    """Return ids of cells with their curves, without those that have no points."""
    found = []
    for id_ in wanted:
        cell = seen.cell(id_)
        if stage and stage not in {seen.view.instances[d].name for d in seen.view.chain(cell)}:
            continue
        with served.lock:
            each = curve(seen.view, cell, served.metrics, metric or None, stage or None)
        if each.points:
            found.append((id_, each))
    return found


def _drawn(id_: str, found: MetricCurve) -> dict[str, Any]:
    """Return a curve for the plot, with the number of its points that cannot be drawn."""
    points = [point for point in found.points if abs(point[1]) <= MAX_VALUE]  # never NaN
    return {
        "cell": id_,
        "label": id_,
        "points": points,
        "num_hidden": len(found.points) - len(points),
    }


def _in_numbers(id_: str, found: MetricCurve) -> dict[str, Any]:
    """Return a curve for the table below the plot."""
    step, last = found.points[-1]
    values = [value for _, value in found.points if not math.isnan(value)] or [last]
    return {
        "cell": id_,
        "stage": found.stage,
        "metric": found.metric,
        "last": last,
        "step": step,
        "lowest": min(values),
        "highest": max(values),
    }


LOG_TAIL = 2**16
"""Bytes of a log's end that a page shows at first."""

LOG_CHUNK = 2**18
"""Most bytes that are read for one answer."""

_UNFINISHED = re.compile(r"\x1b(?:\[[0-?]*[ -/]*|\][^\x07\x1b]*)?$")
"""A sequence that a later part of the log finishes."""

_MAX_SEQUENCE = 4096


class LogPart(NamedTuple):
    """A part of a log.

    Attributes:
        text: for a page.
        start: number of its first byte.
        end: number of the byte after its last one. The next part begins here.
    """

    text: str
    start: int
    end: int


def last_part(objects: ObjectStore, key: str) -> LogPart:
    """Return the end of a log, from the beginning of a line on."""
    start = max(0, objects.size(key) - LOG_TAIL)
    part = part_from(objects, key, start)
    if not start:
        return part
    # The bytes at the cut may be the middle of a character or of a line.
    rest = part.text.partition("\n")[2]
    return part._replace(text=rest or part.text)


def part_from(objects: ObjectStore, key: str, start: int) -> LogPart:
    """Return the part of a log that begins with a byte; an empty one at its end."""
    data = objects.read_from(key, start, LOG_CHUNK)
    used = len(data) - _incomplete(data)
    text = data[:used].decode(errors="replace")
    held = _UNFINISHED.search(text[-_MAX_SEQUENCE:])
    if held is not None and len(held[0]) < len(text):
        used -= len(held[0].encode())
        text = text[: len(text) - len(held[0])]
    return LogPart(plain_log(text), start, start + used)


def _incomplete(data: bytes) -> int:
    """Return how many bytes at the end are the beginning of a character of UTF-8 whose rest is missing."""
    for back in range(1, min(4, len(data)) + 1):
        byte = data[-back]
        if byte & 0xC0 == 0x80:
            continue
        needed = 4 if byte >= 0xF0 else 3 if byte >= 0xE0 else 2 if byte >= 0xC0 else 1
        return back if needed > back and back < len(data) else 0
    return 0


def plain_log(text: str) -> str:
    """Return a text of a terminal as plain lines: of a line that was overwritten, the last state."""
    text = SEQUENCE.sub("", text).replace("\r\n", "\n")
    if "\r" in text:
        text = "\n".join(line.rstrip("\r").rpartition("\r")[2] for line in text.split("\n"))
    return escaped(text)
