"""A look at a sweep: where cells lie in the grid, what is counted and left, and that nothing is written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest

from orchestrator.api.grid import MAX_COLUMNS, arrangement
from orchestrator.api.logs import MetricsReader, curve, log_tail, metrics_of, thinned
from orchestrator.api.overview import Overview, Watched
from orchestrator.api.pace import duration
from orchestrator.core.state import State
from orchestrator.core.sweep import Cell
from orchestrator.errors import InfrastructureError, SweepError, UserError
from orchestrator.store import layout
from tests.store import states


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> states.Made:
    return states.make(tmp_path_factory.mktemp("overview") / "store")


@pytest.fixture
def look(made: states.Made) -> Overview:
    return Watched("study", made.ledger.objects.url).look()


def cells_of(**axes: list[str]) -> list[Cell]:
    """Cells with each combination of labels of two to four axes."""
    points: list[dict[str, str]] = [{}]
    for axis, labels in axes.items():
        points = [{**point, axis: label} for point in points for label in labels]
    return [Cell(id=str(n), axes=p, columns={}, config={}, stage_digests=()) for n, p in enumerate(points)]


def names(number: int) -> list[str]:
    return [f"v{n}" for n in range(number)]


def test_the_last_axis_is_the_rows_and_the_others_are_the_columns():
    found = arrangement(cells_of(model=names(5), task=names(2), mixture=names(23)))
    assert (found.rows, found.columns, found.folded) == (("mixture",), ("model", "task"), ())


def test_seeds_share_a_position_and_an_axis_with_one_label_has_none():
    found = arrangement(cells_of(rate=names(3), task=names(1), width=names(4), seed=names(5)))
    assert (found.rows, found.columns, found.folded) == (("width",), ("rate",), ("seed",))
    alone = arrangement(cells_of(seed=names(5)))
    assert (alone.rows, alone.columns, alone.folded) == (("seed",), (), ())


def test_with_many_columns_the_longest_axes_become_rows_until_the_columns_are_few():
    found = arrangement(cells_of(rate=names(MAX_COLUMNS + 1), name=names(2)))
    assert (found.rows, found.columns) == (("rate",), ("name",))
    found = arrangement(cells_of(a=names(20), b=names(19), c=names(21)))
    assert (found.rows, found.columns) == (("a", "c"), ("b",))


def test_rows_can_be_chosen_and_an_unknown_axis_is_named():
    cells = cells_of(model=names(5), task=names(2), seed=names(3))
    assert arrangement(cells, ["model", "seed"])[:3] == (("model", "seed"), ("task",), ())
    with pytest.raises(UserError, match="'modle' is no axis"):
        arrangement(cells, ["modle"])


def test_each_cell_lies_at_the_position_of_its_labels(look: Overview):
    assert look.grid.row_axes == ("mixture",)
    assert look.grid.column_axes == ("model", "task")
    assert [row[0] for row in look.grid.rows] == list(states.STUDY["mixture"])
    for cell in look.cells:
        assert look.grid.rows[cell.row] == (cell.axes["mixture"],)
        assert look.grid.columns[cell.column] == (cell.axes["model"], cell.axes["task"])
    assert sum(len(spot.cells) for spot in look.grid.spots) == len(look.cells) == 20


def test_states_are_those_of_status_and_counts_add_up(look: Overview, made: states.Made):
    shown = {cell.id: cell.state for cell in look.cells}
    wanted = {"out_of_memory": "failed", "unscored": "failed"}
    assert shown == {cell: wanted.get(kind, kind) for cell, kind in made.kinds.items()}
    assert look.counts == {"done": 8, "running": 2, "failed": 6, "cancelled": 2, "pending": 2}


def test_labels_neither_break_a_line_nor_act_on_a_terminal(tmp_path: Path):
    states.make(tmp_path / "store", {"text": ("two\nlines", "\x1b[31mred", "\u202ertl", "日本")})
    found = Watched("study", str(tmp_path / "store")).look()
    shown = [r"two\nlines", r"\x1b[31mred", r"\u202ertl", "日本"]
    assert [labels[0] for labels in found.grid.rows] == shown
    assert [cell.axes["text"] for cell in found.cells] == shown


def test_a_running_cell_shows_its_stage_and_how_far_it_is(look: Overview, made: states.Made):
    (cell, *_) = [cell for cell in look.cells if cell.state is State.RUNNING]
    assert (cell.stage, cell.step, cell.num_steps, cell.progress) == ("fit", 40, 100, 0.4)


def test_failures_are_grouped_and_each_group_can_be_selected(look: Overview, made: states.Made):
    assert [(each.cause, each.stage, len(each.cells)) for each in look.troubles] == [
        ("data", "fit", 2),
        ("oom_gpu", "fit", 2),
        ("config", "score", 2),
    ]
    again = Watched("study", made.ledger.objects.url).look([look.troubles[0].selector])
    assert tuple(cell.id for cell in again.cells) == look.troubles[0].cells


def test_gpus_speed_and_the_time_left_are_those_of_the_running_stages(look: Overview):
    assert (look.gpus.in_use, look.gpus.held, look.gpus.num_workers) == (4.0, 4.0, 2)
    assert look.gpus.hours == pytest.approx(2.0)
    assert look.tokens_per_second == 2000.0
    # Two stages run: 400 s for 40 steps, so 600 s are left. Two cells are pending, of 600 s and 60 s each.
    assert look.eta_s == pytest.approx((2 * 600 + 2 * 60 + 2 * 660) / 2)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (59.4, "59 s"),
        (60, "1 min"),
        (600, "10 min"),
        (3599, "59 min"),
        (7380, "2 h 3 min"),
        (7830, "2 h 10 min"),
        (190_000, "2 d 4 h"),
        (200_000, "2 d 7 h"),
    ],
)
def test_a_duration_has_two_units_at_most(seconds: float, text: str):
    assert duration(seconds) == text


def test_a_speed_that_is_no_number_counts_as_none(tmp_path: Path):
    made = states.make(tmp_path / "store", {"model": ("a", "b")}, ("running",))
    first, second = (tmp_path / "store" / layout.metrics(made.fit(cell), 1) for cell in made.of("running"))
    for value in ("NaN", "-Infinity", "9" * 400, '"fast"', "true"):
        with first.open("a") as stream:
            stream.write(f'{{"step": 41, "tokens_per_second": {value}}}\n')
    second.write_text('{"step": 1, "tokens_per_second": Infinity}\n')
    assert Watched("study", str(tmp_path / "store")).look().tokens_per_second == 1000.0


def test_a_look_at_chosen_cells_keeps_rows_and_columns_where_they_are(made: states.Made):
    found = Watched("study", made.ledger.objects.url).look(["mixture=en model=small"])
    assert found.grid.row_axes == ("mixture",)
    assert found.grid.columns == (("small", "math"), ("small", "calls"))
    assert found.num_cells == 20
    with pytest.raises(UserError, match="unknown"):
        Watched("study", made.ledger.objects.url).look(["mixtrue=en"])


def test_folded_cells_share_a_spot_that_shows_what_needs_a_person_first(tmp_path: Path):
    axes = {"rate": ("0.1", "0.2"), "width": ("8", "16"), "seed": ("0", "1", "2")}
    made = states.make(tmp_path / "store", axes, cycle=("done", "failed", "running"))
    found = Watched("study", made.ledger.objects.url).look()
    assert len(found.grid.spots) == 4
    assert {spot.state for spot in found.grid.spots} == {State.FAILED}
    assert found.grid.spots[0].counts == {"done": 1, "failed": 1, "running": 1}


def test_curve_and_log_are_those_of_the_stage_that_runs(made: states.Made):
    watched = Watched("study", made.ledger.objects.url)
    cell = watched.view.cell(made.of("running")[0])
    assert metrics_of(watched.view, cell, watched.metrics) == {"fit": ("loss", "tokens_per_second")}
    found = curve(watched.view, cell, watched.metrics)
    assert (found.stage, found.metric, found.num_values) == ("fit", "loss", 40)
    assert found.points[0] == (1, 3.6364)
    tail = log_tail(watched.view, cell, lines=3)
    assert tail.lines == ("step 38 of 100", "step 39 of 100", "step 40 of 100")
    assert (tail.is_whole, tail.is_over) == (False, False)


def test_a_curve_follows_what_is_added_and_ignores_a_line_in_the_making(tmp_path: Path):
    made = states.make(tmp_path / "store", {"mixture": ("en", "es")}, cycle=("running",))
    watched = Watched("study", made.ledger.objects.url)
    cell = watched.view.sweep.cells[0]
    path = tmp_path / "store" / layout.metrics(made.fit(cell.id), 1)
    assert len(curve(watched.view, cell, watched.metrics).points) == 40
    with path.open("a") as stream:
        stream.write(json.dumps({"step": 41, "loss": 0.5}) + '\n{"step": 42, "lo')
    assert curve(watched.view, cell, watched.metrics).points[-1] == (41, 0.5)
    with path.open("a") as stream:
        stream.write('ss": 0.25}\n')
    assert curve(watched.view, cell, watched.metrics).points[-1] == (42, 0.25)
    assert curve(watched.view, cell, MetricsReader()).points[-1] == (42, 0.25)


def test_a_thinned_curve_keeps_its_ends_and_its_spikes():
    points = [(step, 1.0) for step in range(1, 10_001)]
    points[5000] = (5001, 9.0)
    found = thinned(points, 100)
    assert len(found) <= 100
    assert (found[0], found[-1]) == ((1, 1.0), (10_000, 1.0))
    assert (5001, 9.0) in found
    assert found == sorted(found)


def test_a_look_changes_nothing_in_the_store(made: states.Made):
    root = Path(made.ledger.objects.url)

    def all_files() -> dict[str, Any]:
        return {str(path): path.stat().st_mtime_ns for path in root.rglob("*")}

    before = all_files()
    watched = Watched("study", str(root))
    found = watched.look()
    for cell in watched.view.sweep.cells:
        curve(watched.view, cell, watched.metrics)
        log_tail(watched.view, cell)
    assert all_files() == before
    assert json.loads(msgspec.json.encode(found))["counts"]["done"] == 8


def test_a_store_that_goes_away_is_an_error_and_one_that_comes_back_is_read_again(tmp_path: Path):
    root = tmp_path / "store"
    states.make(root)
    watched = Watched("study", str(root))
    before = watched.look()
    root.rename(tmp_path / "away")
    root.mkdir()
    with pytest.raises((InfrastructureError, SweepError, OSError)):
        watched.look()
    shutil.rmtree(root)
    (tmp_path / "away").rename(root)
    assert watched.look().counts == before.counts


def test_a_sweep_that_was_never_launched_is_shown_and_its_launch_is_seen(
    sweep: Any, monkeypatch: pytest.MonkeyPatch
):
    (sweep.folder / "own.yaml").write_text(
        "config: {seed: 0, count: {num_steps: 1, checkpoint_every: 1, step_s: 0.0, fail: null}}\n"
        "axes: {seed: [0, 1]}\nstages: [count]\n"
    )
    monkeypatch.chdir(sweep.folder)
    watched = Watched("own.yaml", str(sweep.store))
    assert watched.look().counts == {"pending": 2}
    sweep("launch", "own.yaml")
    found = watched.look()
    assert (found.title, found.counts) == ("own@1", {"done": 2})


def test_a_new_revision_is_followed_unless_one_was_named(tmp_path: Path):
    root = tmp_path / "store"
    states.make(root)
    following, fixed = Watched("study", str(root)), Watched("study@1", str(root))
    states.make(root, {**states.STUDY, "mixture": ("en", "es")}, cycle=("pending",))
    assert (following.look().revision, fixed.look().revision) == (2, 1)
