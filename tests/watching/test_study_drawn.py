"""What `sweep watch` draws of a study with cells of every history is as recorded, see ../recording.py."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from orchestrator.api.overview import Overview, Watched
from orchestrator.errors import SweepError
from orchestrator.watching import board, drawing, screens
from orchestrator.watching.reading import FailureFilters, Selection, detail
from tests.recording import compare_text
from tests.seen import moment, plain
from tests.store.study import NAME, Study
from tests.store.study_records import NOW_S

RECORDED = Path(__file__).parent / "recorded"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store."""
    root = tmp_path_factory.mktemp("study") / "store"
    with moment(NOW_S):
        Study(root)
    return root


def lines(watched: Watched, found: Overview) -> Iterator[str]:
    """What is drawn, with the styles as marks; a part under a line each."""
    for width in (200, 60, 20):
        yield f"-- totals and pace on {width} columns"
        yield drawing.totals(found, width).markup
    yield drawing.pace(found).markup
    for height in (2, 9):
        yield f"-- failures in {height} lines"
        yield drawing.troubles(found, height).markup
    yield "-- marks"
    for spot in found.grid.spots:
        yield " ".join(f"{drawing.mark(spot, found.cells, width)!r}" for width in (1, 2, 4))
    for cell in found.cells:
        seen = detail(watched, Selection(cell.id))
        yield f"-- {cell.id}"
        yield drawing.labels_of(cell, ("mixture",), named=True)
        yield drawing.labels_of(cell, ("model", "mixture"), named=False)
        yield board._facts(cell).markup
        yield board.cell_text(cell, seen, 60, 14).markup
        yield board._log_text(seen, 3).markup
    yield "-- not read yet, no cell"
    yield board.cell_text(found.cells[0], None, 60, 14).markup
    yield board._facts(None).markup


def questions(watched: Watched, found: Overview) -> Iterator[str]:
    """What is asked before a change."""
    ids = [cell.id for cell in found.cells]
    for verb, chosen in (("cancel", ids), ("cancel", ids[3:5]), ("rerun", ids[:1]), ("rerun", ids[3:4])):
        try:
            asked = screens.ask(watched, verb, chosen)  # type: ignore[arg-type]
            yield "\n  ".join([asked.title, *asked.lines])
        except SweepError as error:
            yield f"error: {error}"
    filters = FailureFilters()
    for before in ((), ("model=small",)):
        only: tuple[str, ...] = before
        for _ in range(len(found.troubles) + 2):
            only = filters.after(msgspec.structs.replace(found, only=only))
            yield f"filter: {only}"


def test_what_is_drawn_of_a_study_is_as_recorded(root: Path) -> None:
    with moment(NOW_S):
        os.environ["HOOK"] = "http://localhost"  # to which notices would go
        watched = Watched(NAME, str(root))
        found = watched.look()
        text = "\n".join([*lines(watched, found), "-- questions", *questions(watched, found)])
    compare_text(RECORDED / "drawn.txt", plain(text, {str(root): "STORE"}))


SERIES = {
    "nothing": [],
    "a point": [(3, 1.5)],
    "falling": [(step, 4 / (1 + step / 10)) for step in range(60)],
    "a jump": [(0, 0.0), (1, 0.0), (9, 1e6), (10, -1e6)],
    "flat": [(1, 2.0), (5, 2.0)],
    "no number": [(1, float("nan")), (2, 1.0), (3, float("inf")), (4, 2.0)],
}


def test_curves_and_numbers_are_as_recorded() -> None:
    found = []
    for name, points in SERIES.items():
        for width, height in ((30, 4), (7, 2), (60, 9)):
            found += [f"-- {name}, {width}x{height}", *drawing.curve_lines(points, width, height)]
    numbers = (0, 1, 9.99, 10, 99.96, 100, 999.5, 1000, 12345, 1e6, 2.5e9, 0.004, -3)
    found += [f"{number}: {drawing.amount(number)}" for number in numbers]
    found += [repr(board.fit(text, width)) for text in ("", "mixture", "ab漢字cd") for width in (0, 1, 4, 9)]
    compare_text(RECORDED / "curves.txt", "\n".join(found))
