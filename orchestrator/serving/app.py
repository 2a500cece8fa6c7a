"""The addresses of the pages, and what becomes of an error while one is made."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Callable, Mapping
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from orchestrator.api.overview import overview
from orchestrator.errors import SweepError, UserError, one_line, words_of
from orchestrator.serving import cells, drawing, results
from orchestrator.serving.live import Look
from orchestrator.serving.server import POLICY
from orchestrator.serving.site import Seen, Served, Site, Unknown, pages_of, query, version, whole
from orchestrator.store import layout
from orchestrator.store.table import write_csv

SERVED_TYPES: Mapping[str, str] = {
    ".html": "text/html; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".pdf": "application/pdf",
    ".json": "application/json",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".csv": "text/plain; charset=utf-8",
    ".md": "text/plain; charset=utf-8",
    ".tex": "text/plain; charset=utf-8",
    ".txt": "text/plain; charset=utf-8",
}
"""Ending of a file to its type; others are downloaded."""

PICTURES = "default-src 'none'; style-src 'unsafe-inline'; sandbox"
"""Policy of an SVG that is opened by itself: figures have styles on their elements, and nothing may run."""

REPORT_POLICY = POLICY.replace("script-src 'self'; style-src 'self'", "style-src {sources}")
"""Policy of a report: no script at all, and the style sheets that it holds, by their digests."""

_STYLES = re.compile(r"<style[^>]*>(.*?)</style>", re.DOTALL | re.IGNORECASE)

SHEETS = ("grid.css", "dark.css", "app.css")
"""The style sheets of every page. They are served as one, since each answer delays the first paint."""

_STATIC: Mapping[str, bytes] = {
    "pages.css": "".join(map(drawing.style, SHEETS)).encode(),
    **{
        path.relative_to(drawing.HERE / "static").as_posix(): path.read_bytes()
        for path in (drawing.HERE / "static").rglob("*")
        if path.suffix in (".js", ".css")
    },
}
"""Name of a static file to its content; no other file is served."""

Handler = Callable[[Site, Served, Request], Response]


def application(sweeps: Mapping[str, Served]) -> Starlette:
    """Return the pages of some sweeps, without the checks of `Guard`.

    Args:
        sweeps: name to sweep.
    """
    site = Site(sweeps)

    def guarded(make: Callable[[Request], Response]) -> Callable[[Request], Response]:
        def endpoint(request: Request) -> Response:
            try:
                return make(request)
            except HTTPException:
                raise
            except Exception as error:  # noqa: BLE001 - an error of one page must not end the server
                return _failure(site, error)

        return endpoint

    def route(path: str, view: Handler) -> Route:
        def make(request: Request) -> Response:
            return view(site, _served(site, request.path_params["sweep"]), request)

        return Route(f"/s/{{sweep}}{path}", guarded(make), methods=["GET"])

    def start(request: Request) -> Response:
        if len(site.sweeps) == 1:
            return grid_page(site, next(iter(site.sweeps.values())), request)
        return index_page(site, request)

    return Starlette(
        routes=[
            Route("/", guarded(start), methods=["GET"]),
            Route("/live", guarded(lambda request: index_live(site, request)), methods=["GET"]),
            route("", grid_page),
            route("/live", grid_live),
            route("/cells", cells.cells_page),
            route("/cell/{cell:path}/live", cells.cell_live),
            route("/cell/{cell:path}", cells.cell_page),
            route("/log", cells.log_part),
            route("/log.txt", cells.log_text),
            route("/curves", cells.curves_page),
            route("/curves.json", cells.curves_json),
            route("/results", results_page),
            route("/results.csv", results_csv),
            route("/report", report_page),
            route("/report/{file:path}", report_file),
            Route("/static/{version}/{file:path}", static, methods=["GET"]),
            Route("/favicon.ico", favicon, methods=["GET"]),
        ],
        exception_handlers={HTTPException: lambda request, error: _http_error(site, error)},
    )


def _served(site: Site, name: str) -> Served:
    if name not in site.sweeps:
        raise Unknown(f"{name!r} is not served here")
    return site.sweeps[name]


def _http_error(site: Site, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    return site.page("error.html", None, status, what="There is no such page." if status == 404 else "")


def _failure(site: Site, error: Exception) -> Response:
    """Return the page about an error: what the user asked for wrongly, or that the store does not answer."""
    if isinstance(error, UserError):
        # A parameter that the message repeats may have any length.
        what = "\n  ".join(one_line(line) for line in str(error).split("\n"))
        return site.page("error.html", None, 404 if isinstance(error, Unknown) else 400, what=what)
    if isinstance(error, SweepError | OSError):
        what = error.what if isinstance(error, SweepError) else one_line(words_of(error))
        return site.page("error.html", None, 503, what=f"The store does not answer: {what}")
    print(f"error: {type(error).__name__}: {one_line(words_of(error))}", file=sys.stderr, flush=True)
    return site.page("error.html", None, 500, what="Polysweep itself failed; its terminal shows how.")


# The grid


def _grid_facts(served: Served, seen: Seen, request: Request) -> dict[str, Any]:
    """Return what the grid shows: the rows of one page, of the cells that a selector keeps."""
    only = request.query_params.get("only", "")
    found = overview(seen.view, [only]) if only else seen.found
    most = drawing.rows_a_page(found.grid)
    last = max(1, -(-len(found.grid.rows) // most))
    page = min(max(1, whole(request, "page", 1)), last)
    return {
        "address": served.path + "/live" + query(only=only, page=str(page) if page > 1 else ""),
        "of": found,
        "grid": drawing.drawn(found, served.address_in(found), first=(page - 1) * most, most=most),
        "facts": drawing.facts(found),
        "served": served,
        "only": only,
        "page": page,
        "last_page": last,
        "page_address": served.path + query(only=only),
    }


def grid_page(site: Site, served: Served, request: Request) -> Response:
    """Return the grid, with totals and failures."""
    look, seen = served.seen()
    facts = _grid_facts(served, seen, request)
    live = site.part(look, "grid-live.html", **facts)
    return site.page("sweep.html", look, live=live, **{k: facts[k] for k in ("served", "of", "only")})


def grid_live(site: Site, served: Served, request: Request) -> Response:
    """Return the grid if it has changed."""
    look, seen = served.polled()
    return site.live(request, look, "grid-live.html", **_grid_facts(served, seen, request))


def _index_facts(site: Site, *, polled: bool) -> tuple[Look[Seen], dict[str, Any]]:
    found, oldest = [], None
    for served in site.sweeps.values():
        look, seen = served.polled() if polled else served.seen()
        oldest = look if oldest is None or look.at_s < oldest.at_s else oldest
        facts = {"served": served, "look": look, "of": seen.found, "facts": drawing.facts(seen.found)}
        # The first rows are enough where several sweeps share a page.
        most = min(30, drawing.rows_a_page(seen.found.grid))
        found.append({**facts, "grid": drawing.drawn(seen.found, served.address_in(seen.found), most=most)})
    assert oldest is not None  # at least one sweep is served
    return oldest, {"address": "/live", "sweeps": found}


def index_page(site: Site, request: Request) -> Response:
    """Return the page of several sweeps."""
    look, facts = _index_facts(site, polled=False)
    return site.page("index.html", look, live=site.part(look, "index-live.html", **facts))


def index_live(site: Site, request: Request) -> Response:
    """Return the states of several sweeps if they have changed."""
    look, facts = _index_facts(site, polled=True)
    return site.live(request, look, "index-live.html", **facts)


# Results


def _filters(request: Request) -> dict[str, str]:
    """Return the conditions of the parameters ``col.NAME``."""
    params = request.query_params
    return {name.removeprefix("col."): params[name] for name in params if name.startswith("col.")}


def _results(served: Served, request: Request) -> tuple[Look[Seen], Seen, list[dict[str, Any]]]:
    look, seen = served.seen()
    rows = served.rows(look, seen)
    if only := request.query_params.get("only", ""):
        kept = {cell.id for cell in seen.view.select([only])}
        rows = [row for row in rows if row["cell"] in kept]
    return look, seen, rows


def results_page(site: Site, served: Served, request: Request) -> Response:
    """Return the table of results."""
    look, seen, rows = _results(served, request)
    sort, descending = request.query_params.get("sort", ""), request.query_params.get("desc", "") == "1"
    filters = _filters(request)
    found = results.page_of(
        rows, filters=filters, sort=sort, descending=descending, number=whole(request, "page", 1)
    )
    base = {"only": request.query_params.get("only", ""), **{f"col.{k}": v for k, v in filters.items()}}

    def address(**more: str) -> str:
        return f"{served.path}/results{query(**{**base, **more})}"

    def sorted_by(name: str) -> str:
        # A second click turns the order round.
        return address(sort=name, desc="1" if name == sort and not descending else "")

    return site.page(
        "results.html",
        look,
        served=served,
        of=seen.found,
        table=found,
        filters=filters,
        only=base["only"],
        sort=sort,
        descending=descending,
        sorted_by=sorted_by,
        pages=pages_of(
            address(sort=sort, desc="1" if descending else ""),
            found.number,
            found.num_rows,
            results.PAGE_ROWS,
        ),
        shown=results.shown,
        csv=f"{served.path}/results.csv{query(**base, sort=sort, desc='1' if descending else '')}",
    )


def results_csv(site: Site, served: Served, request: Request) -> Response:
    """Return the rows that the filters keep as CSV."""
    _, _, rows = _results(served, request)
    kept = results.kept(rows, _filters(request))
    if sort := request.query_params.get("sort", ""):
        kept = results.ordered(kept, sort, descending=request.query_params.get("desc", "") == "1")
    stream = io.StringIO()
    write_csv([dict(row) for row in kept], stream)
    named = {"content-disposition": f'attachment; filename="{served.name}.csv"'}
    return Response(stream.getvalue(), media_type="text/csv; charset=utf-8", headers=named)


# The report


def _report_files(seen: Seen) -> dict[str, int]:
    key = layout.report(seen.view.sweep.name)
    return seen.view.ledger.objects.trees([key])[key]


def report_page(site: Site, served: Served, request: Request) -> Response:
    """Return the list of the report's files."""
    look, seen = served.last()
    files = sorted(_report_files(seen).items(), key=lambda item: (not item[0].endswith(".html"), item[0]))
    return site.page("report.html", look, served=served, of=seen.found, files=files)


def report_file(site: Site, served: Served, request: Request) -> Response:
    """Return a file of the report. Its scripts do not run, and its own style sheets do apply."""
    _, seen = served.last()
    name = request.path_params["file"]
    # Only a path that the store lists is read, so none can lead out of the folder.
    if name not in _report_files(seen):
        raise Unknown(f"the report has no file {name!r}")
    key = f"{layout.report(seen.view.sweep.name)}/{name}"
    data = seen.view.ledger.objects.read_from(key, 0)
    suffix = name[name.rfind(".") :].lower() if "." in name else ""
    kind = SERVED_TYPES.get(suffix, "application/octet-stream")
    headers = {"content-security-policy": PICTURES} if suffix == ".svg" else {}
    if suffix == ".html":
        styles = _STYLES.findall(data.decode(errors="replace"))
        sources = " ".join(f"'{drawing.source_of(text)}'" for text in dict.fromkeys(styles)) or "'none'"
        headers["content-security-policy"] = REPORT_POLICY.format(sources=sources)
    if suffix not in SERVED_TYPES:
        headers["content-disposition"] = "attachment"
    return Response(data, media_type=kind, headers=headers)


# Files of the pages themselves


async def static(request: Request) -> Response:
    """Return a static file; a browser may keep it, because its address changes with its content."""
    name = request.path_params["file"]
    data = _STATIC.get(name)
    if data is None or request.path_params["version"] != version():
        raise HTTPException(404)
    keep = {"cache-control": "private, max-age=31536000, immutable"}
    return Response(data, media_type=SERVED_TYPES[name[name.rfind(".") :]], headers=keep)


def favicon(request: Request) -> Response:
    """Return that there is no icon."""
    return Response(status_code=204)
