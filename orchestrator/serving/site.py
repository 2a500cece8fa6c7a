"""What all pages share: the sweeps that are served, the newest look at each, and the making of answers."""

from __future__ import annotations

import hashlib
import math
import threading
import time
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, urlencode

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from orchestrator.api.grid import Spot
from orchestrator.api.logs import MetricsReader
from orchestrator.api.overview import Overview, Watched
from orchestrator.api.state import SweepState
from orchestrator.api.status import rows_of
from orchestrator.core.settings import RETIRING
from orchestrator.core.sweep import Cell
from orchestrator.errors import InfrastructureError, UserError
from orchestrator.serving import drawing
from orchestrator.serving.live import Live, Look
from orchestrator.store import layout
from orchestrator.store.table import Rows

POLL_S = 2
"""How often an open page looks for changes, in seconds."""

FIRST_S = 20.0
"""How long a page waits for the first look at a sweep, in seconds."""


QUICK_S = 0.15
"""A look that takes no longer is repeated for each page, in seconds."""

STALE_S = 60.0
"""Greatest age of a slower look that a new page shows at first, in seconds."""

SOON_S = 1.0
"""Time from a page with an earlier look to the next look, in seconds."""

Stamp = tuple[int, ...] | None
"""Times of change of folders; None where a store has none."""


def stamp_of(view: SweepState) -> Stamp:
    """Return the times at which the records last changed that take back what was done.

    Those are requests, such as a cancel, and products that were voided or retired. A page is right about them
    although it does not read everything again: without a new record, these folders are the same.

    Args:
        view: the sweep state.
    """
    name = view.sweep.name
    stages = {instance.stage for instance in view.sweep.stages.values()}
    keys = [layout.requests(name), layout.revisions(name), layout.submissions(name)]
    keys += [layout.void_index(stage) for stage in sorted(stages)]
    keys += [layout.retired_index(stage, policy) for stage in sorted(stages) for policy in RETIRING]
    folders = [folder for key in keys if (folder := view.ledger.objects.shared_folder(key)) is not None]
    return tuple(map(_changed_ns, folders)) if folders else None


def _changed_ns(folder: Path) -> int:
    try:
        return folder.stat().st_mtime_ns
    except (FileNotFoundError, NotADirectoryError):
        return 0


class Unknown(UserError):
    """Signal that an address names a sweep, cell or file that does not exist."""


class Seen(NamedTuple):
    """What one look has read.

    Attributes:
        view: the sweep state.
        found: the same at one look.
        stamp: see `stamp_of`, from before the look.
    """

    view: SweepState
    found: Overview
    stamp: Stamp

    def cell(self, id_: str) -> Cell:
        """Return a cell by its whole id.

        Raises:
            Unknown: the sweep has no such cell.
        """
        found = next((cell for cell in self.view.sweep.cells if cell.id == id_), None)
        if found is None:
            raise Unknown(f"{self.found.title} has no cell {id_!r}")
        return found


class Served:
    """A sweep that is served.

    Args:
        watched: the sweep.

    Attributes:
        name: of the sweep.
        live: its newest look.
        metrics: reads metrics, one thread at a time by `lock`.
        lock: for `metrics` and the rows.
    """

    def __init__(self, watched: Watched) -> None:
        self.name = watched.view.sweep.name

        def look() -> Seen:
            stamp = stamp_of(watched.view)
            found = watched.look()
            return Seen(watched.view, found, stamp)

        self.live: Live[Seen] = Live(look)
        # Even to ask for the time of a folder can hang, so that is done by a thread of its own.
        self._stamps: Live[Stamp] = Live(lambda: stamp_of(watched.view))
        self.metrics = MetricsReader()
        self.lock = threading.Lock()
        self._rows: tuple[int, Rows] = (0, [])
        self._pause_s = watched.pause_s

    @property
    def path(self) -> str:
        """Path of its pages."""
        return f"/s/{quote(self.name, safe='')}"

    def cell_path(self, id_: str) -> str:
        """Return the path of a cell's page."""
        return f"{self.path}/cell/{quote(id_, safe='')}"

    def address_in(self, found: Overview) -> drawing.Address:
        """Return what leads from a position of a grid to its cell, or to the list of its cells."""

        def address(spot: Spot) -> str:
            if len(spot.cells) == 1:
                return self.cell_path(found.cells[spot.cells[0]].id)
            return f"{self.path}/cells{query(row=spot.row, column=spot.column)}"

        return address

    def polled(self) -> tuple[Look[Seen], Seen]:
        """Return the newest look for a page that is open. Large sweeps are looked at less often.

        Raises:
            InfrastructureError: the store has not answered yet.
        """
        return self._of(self.live.get(max_age_s=self._pause_s(1.5)))

    def last(self) -> tuple[Look[Seen], Seen]:
        """Return the last look, for what depends little on states.

        Raises:
            InfrastructureError: the store has not answered yet.
        """
        return self._of(self.live.get(max_age_s=math.inf))

    def seen(self) -> tuple[Look[Seen], Seen]:
        """Return a look for a new page: right about what was taken back, even just now.

        A look at ten thousand cells takes a second. An earlier one is shown first if nothing was taken back
        since; what was done since then follows with the first poll.

        Raises:
            InfrastructureError: the store has not answered yet.
        """
        last = self.live.get(max_age_s=math.inf)
        if last.value is None or last.took_s <= QUICK_S:
            return self._of(self.live.get())
        if last.value.stamp is not None and last.age_s < STALE_S:
            stamp = self._stamps.get(wait_s=0.3)
            if stamp.value == last.value.stamp and not (stamp.is_silent or stamp.is_late):
                self._look_soon()
                return self._of(last)
        return self._of(self.live.get(wait_s=3 * last.took_s))

    def _look_soon(self) -> None:
        """Look again when the page is painted, for a viewer whose browser does not poll."""
        timer = threading.Timer(SOON_S, lambda: self.live.get(max_age_s=SOON_S, wait_s=0.0))
        timer.daemon = True
        timer.start()

    def _of(self, look: Look[Seen]) -> tuple[Look[Seen], Seen]:
        if look.value is None:
            look = self.live.get(wait_s=FIRST_S)
        if look.value is None:
            raise InfrastructureError(look.problem or "the store has not answered yet")
        return look, look.value

    def rows(self, look: Look[Seen], seen: Seen) -> Rows:
        """Return the result rows of a look; they are collected once for each look."""
        with self.lock:
            if self._rows[0] != look.number:
                self._rows = look.number, rows_of(seen.view, [])
            return self._rows[1]


class Site:
    """The sweeps, and the rendering of pages.

    Args:
        sweeps: name to sweep, in the order in which they are shown.
    """

    def __init__(self, sweeps: Mapping[str, Served]) -> None:
        self.sweeps = sweeps

    def page(self, name: str, look: Look[Seen] | None, status: int = 200, /, **facts: Any) -> Response:
        """Return a page.

        Args:
            name: of its template.
            look: what it shows; None for a page without data.
            status: of the answer.
            facts: further values for the template.
        """
        values = {"site": self, "look": look, "now_s": time.time(), "version": version(), "poll_s": POLL_S}
        html = drawing.TEMPLATES.get_template(name).render(**values, **facts)
        return HTMLResponse(html, status, headers=read_headers(look))

    def live(self, request: Request, look: Look[Seen], name: str, /, **facts: Any) -> Response:
        """Return a part of a page that is polled; 204 if it is the same as before.

        Args:
            request: its parameter `seen` names the part that the browser shows.
            look: what it shows.
            name: of its template.
            facts: further values for the template.
        """
        part = self.part(look, name, **facts)
        if request.query_params.get("seen") == part["seen"]:
            return Response(status_code=204, headers=read_headers(look))
        html = drawing.TEMPLATES.get_template("live.html").render(**part)
        return HTMLResponse(html, headers=read_headers(look))

    def part(
        self, look: Look[Seen], name: str, /, address: str, id: str = "live", **facts: Any
    ) -> dict[str, Any]:
        """Return a part of a page that is polled, for the template ``live.html``.

        Args:
            look: what it shows.
            name: of its template.
            address: from which it is polled, with a query.
            id: of its element.
            facts: further values for the template.
        """
        body = drawing.TEMPLATES.get_template(name).render(look=look, **facts)
        seen = hashlib.sha256(body.encode()).hexdigest()[:16]
        joint = "&" if "?" in address else "?"
        return {
            "id": id,
            "body": body,
            "seen": seen,
            "address": f"{address}{joint}seen={seen}",
            "poll_s": POLL_S,
        }


def read_headers(look: Look[Seen] | None) -> dict[str, str]:
    """Return headers from which a page learns how old its data is."""
    return {} if look is None else {"x-read-at": f"{look.at_s:.3f}", "x-now": f"{time.time():.3f}"}


def query(**values: Any) -> str:
    """Return a query string with its question mark, without empty values; "" if all are empty."""
    kept = {name: value for name, value in values.items() if value not in (None, "", [], ())}
    return f"?{urlencode(kept, doseq=True)}" if kept else ""


def pages_of(address: str, number: int, total: int, most: int) -> dict[str, Any]:
    """Return the links to the page before and after one, for the template ``nav.html``.

    Args:
        address: of the first page.
        number: of this page, from 1.
        total: entries on all pages.
        most: most entries on a page.
    """
    joint = "&" if "?" in address else "?"
    last = max(1, -(-total // most))
    return {
        "number": number,
        "last": last,
        "before": f"{address}{joint}page={number - 1}" if number > 1 else "",
        "after": f"{address}{joint}page={number + 1}" if number < last else "",
    }


def whole(request: Request, name: str, default: int) -> int:
    """Return a parameter as a whole number that is not negative.

    Raises:
        UserError: it is another text.
    """
    text = request.query_params.get(name, "")
    if not text:
        return default
    if not (text.isascii() and text.isdecimal() and len(text) < 16):
        raise UserError(f"{name} is no number: {text[:40]!r}")
    return int(text)


@cache
def version() -> str:
    """Return a digest of the static files. Their addresses hold it, so that browsers may keep them."""
    digest = hashlib.sha256()
    for path in sorted((drawing.HERE / "static").rglob("*")):
        digest.update(path.read_bytes() if path.is_file() else b"")
    return digest.hexdigest()[:12]
