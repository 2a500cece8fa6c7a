"""An axis, or one of its values, that counts only beside some values of other axes: the key `when`."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from orchestrator.api.grid import arrangement, placed
from orchestrator.api.sweep import Sweep
from orchestrator.compose.files import find_sweeps
from orchestrator.errors import UserError

CONFIG = "config: {optimizer: sgd, momentum: 0.5, clip: null, size: small, seed: 0}\n"
STAGES = "stages: {fit: {command: 'echo {args}', reads: [optimizer, momentum, clip, size, seed]}}\n"
AXES = "axes: {optimizer: [sgd, adam], momentum: [0.1, 0.9], seed: [0, 1]}\n"


def composed(project, text, *overrides):
    return project.sweep(CONFIG + text + STAGES, *overrides)


def labels(composition):
    return [" ".join(cell.axes.values()) for cell in composition.sweep.cells]


def test_an_axis_has_no_label_and_sets_no_key_where_its_condition_fails(project):
    found = composed(project, f"{AXES}when: {{momentum: optimizer=sgd}}\nexpect_cells: 6\n").sweep
    assert [tuple(cell.axes.values()) for cell in found.cells] == [
        *(("sgd", m, s) for m in ("0.1", "0.9") for s in "01"),
        *(("adam", "", s) for s in "01"),
    ]
    assert [cell.config["momentum"] for cell in found.cells] == [0.1, 0.1, 0.9, 0.9, 0.5, 0.5]
    assert [cell.id.rpartition("-")[0] for cell in found.cells[3:5]] == [
        "sgd.momentum0.9.seed1",
        "adam.seed0",
    ]


def test_a_sweep_without_conditions_is_sealed_as_before(project):
    plain = composed(project, "axes: {optimizer: [sgd, adam]}\n").sweep
    assert plain == composed(project, "axes: {optimizer: [sgd, adam]}\nwhen: {}\n").sweep


def test_a_single_value_counts_where_its_condition_holds(project):
    text = f"{AXES}when: {{momentum=0.9: optimizer=sgd}}\n"
    assert labels(composed(project, text, "~seed")) == ["sgd 0.1", "sgd 0.9", "adam 0.1"]


def test_conditions_follow_from_one_another_in_any_order(project):
    text = (
        "axes: {clip: [1, 2], momentum: [0.1, 0.9], optimizer: [sgd, adam]}\n"
        "when: {clip: momentum=0.9, momentum: optimizer=sgd}\n"
    )
    # Axes come after those on which they depend, so the optimizer varies slowest.
    assert labels(composed(project, text)) == [" 0.1 sgd", "1 0.9 sgd", "2 0.9 sgd", "  adam"]


def test_named_values_negations_and_several_words_are_conditions_too(project):
    text = (
        "axes: {optimizer: [sgd, adam, lion], recipe: {short: {momentum: 0}, long: {momentum: 1}}, "
        "size: [small, large]}\n"
        "when: {recipe=long: 'optimizer!=adam size=large', size: 'optimizer=sgd,adam'}\n"
    )
    assert labels(composed(project, text)) == [
        *("sgd short small", "sgd short large", "sgd long large"),
        *("adam short small", "adam short large", "lion short "),
    ]


def test_a_group_is_chosen_and_refined_only_where_the_axis_counts(study):
    found = study.sweep(
        "axes: {trainer: [quick, slow], trainer.lr: [0.1, 0.2], model: [a, b]}\n"
        "when: {trainer.lr: trainer=slow, model: trainer.lr=0.2}\n"
        "stages: {s: {command: x, reads: [trainer, model]}}"
    ).sweep
    assert [(c.config["trainer"]["lr"], c.config["model"]["name"]) for c in found.cells] == [
        (1e-3, "a"),
        (0.1, "a"),
        (0.2, "a"),
        (0.2, "b"),
    ]


def test_the_sum_and_the_limit_count_points_and_not_products(project):
    text = f"{AXES}when: {{momentum: optimizer=sgd}}\nexclude: [seed=1 momentum=0.9]\n"
    assert len(composed(project, text + "max_cells: 6\n").sweep.cells) == 5
    with pytest.raises(UserError) as error:
        composed(project, text + "expect_cells: 6\n")
    assert "2 x 2 x 2 - 2 by `when` - 1 excluded = 5" in error.value.allowed
    with pytest.raises(UserError, match="more than max_cells: 5"):
        composed(project, text + "max_cells: 5\n")


def test_selectors_find_the_cells_with_and_without_a_label(project):
    text = f"{AXES}when: {{momentum: optimizer=sgd}}\n"
    # The config of the cells without a label has 0.5, which is no label.
    assert labels(composed(project, text + "exclude: ['momentum=']\n", "~seed")) == ["sgd 0.1", "sgd 0.9"]
    assert labels(composed(project, text + "include: ['momentum!=0.1']\n", "~seed")) == ["sgd 0.9", "adam "]
    with pytest.raises(UserError, match=r"unknown momentum '0\.5'"):
        composed(project, text + "exclude: [momentum=0.5]\n")
    late = composed(project, text + "exclude: ['momentum=0.1 clip=null']\n", "~seed")
    assert labels(late) == ["sgd 0.9", "adam "]


def test_the_command_line_narrows_conditional_axes(project):
    text = f"{AXES}when: {{momentum: optimizer=sgd}}\n"
    assert labels(composed(project, text, "optimizer=adam", "seed=3")) == ["adam  3"]
    assert labels(composed(project, text, "optimizer=adam,sgd,lion", "momentum=0.7", "seed=0")) == [
        *("adam  0", "sgd 0.7 0", "lion  0"),
    ]
    assert labels(composed(project, text, "~momentum", "~optimizer")) == ["0", "1"]
    with pytest.raises(UserError, match="would change nothing") as error:
        composed(project, text, "optimizer=adam", "momentum=0.7")
    assert error.value.allowed == "momentum when optimizer=sgd"
    with pytest.raises(UserError, match="depends on 'optimizer', which ~optimizer takes away"):
        composed(project, text, "~optimizer")


def test_a_setting_that_an_axis_makes_only_somewhere_may_be_made_for_the_other_cells(project):
    text = "axes: {optimizer: [sgd, adam], recipe: {a: {momentum: 0.1}}}\nwhen: {recipe: optimizer=sgd}\n"
    found = composed(project, text, "momentum=0.3").sweep
    assert [cell.config["momentum"] for cell in found.cells] == [0.1, 0.3]


def test_conditions_are_completed_from_the_file_that_a_sweep_is_like(project):
    project.write("first.yaml", f"{CONFIG}{AXES}when: {{momentum: optimizer=sgd}}\n{STAGES}")
    found = project.sweep(
        "like: first\naxes: {size: [small, large]}\nwhen: {size: optimizer=adam}\n", "seed=0"
    )
    assert labels(found) == ["sgd 0.1 0 ", "sgd 0.9 0 ", "adam  0 small", "adam  0 large"]


def test_an_empty_label_could_not_be_told_from_none_and_is_refused(project):
    with pytest.raises(UserError, match="has the empty label"):
        composed(project, "axes: {optimizer: [sgd, adam], size: ['', large]}\nwhen: {size: optimizer=sgd}\n")


def test_sweep_list_counts_the_cells_without_composing_them(project):
    project.write("sweeps/own.yaml", f"{CONFIG}{AXES}when: {{momentum: optimizer=sgd}}\n{STAGES}")
    assert {entry.name: entry.num_cells for entry in find_sweeps(project.folder)}["own"] == 6
    project.write("sweeps/bad.yaml", f"{CONFIG}{AXES}when: {{momentum: optimizer=x}}\n{STAGES}")
    assert "unknown optimizer" in {entry.name: entry.error for entry in find_sweeps(project.folder)}["bad"]


def test_an_apps_key_that_only_one_option_has_is_set_only_there(project):
    project.write("conf/config.yaml", "defaults: [{opt: sgd}]\nseed: 0\n")
    project.write("conf/opt/sgd.yaml", "lr: 0.1\nmomentum: 0.9\n")
    project.write("conf/opt/adam.yaml", "lr: 0.001\n")
    project.write("app.py", APP)
    found = project.sweep(
        f"app: {{script: app.py, python: {sys.executable}}}\n"
        "axes: {opt: [sgd, adam], opt.momentum: [0.0, 0.5]}\nwhen: {opt.momentum: opt=sgd}\n"
    )
    assert labels(found) == ["sgd 0.0", "sgd 0.5", "adam "]
    assert found.sweep.cells[2].config["opt"] == {"lr": 0.001}


APP = """
import hydra

@hydra.main(version_base=None, config_path="conf", config_name="config")
def main(cfg):
    pass

main()
"""

OWN = """
config: {optimizer: sgd, sigma: 0.5, seed: 0}
axes: {optimizer: [sgd, adam], sigma: [0.1, 0.3]}
when: {sigma: optimizer=sgd}
stages:
  fit: {command: "echo loss={config.sigma}", reads: [optimizer, sigma, seed], metric: {loss: "loss=(.*)"}}
"""


@pytest.fixture
def launched(sweep: Any) -> Any:
    (sweep.folder / "own.yaml").write_text(OWN)
    sweep("launch", "own.yaml", "launcher.workers=1")
    return sweep


def test_tables_selectors_and_the_grid_show_that_a_label_is_missing(launched: Any) -> None:
    assert "adam       -      adam-" in launched("plan", "own.yaml")
    assert "adam       –      adam-" in launched("best", "own", "loss")
    opened = Sweep.open("own", store=str(launched.store))
    assert [(row["optimizer"], row["sigma"], row["loss"]) for row in opened.rows().to_pylist()] == [
        *(("sgd", 0.1, 0.1), ("sgd", 0.3, 0.3), ("adam", None, 0.5)),
    ]
    (cell,) = opened.status("sigma=").cells
    assert opened.cells[cell].axes == {"optimizer": "adam", "sigma": ""}
    assert len(opened.status("sigma!=0.1").cells) == 2
    with pytest.raises(UserError, match=r"unknown sigma '0\.5'"):
        opened.status("sigma=0.5")
    view = opened._sealed()
    grid, _ = placed(view, view.sweep.cells, arrangement(view.sweep.cells))
    assert grid.rows == (("0.1",), ("0.3",), ("–",))


@pytest.mark.long
def test_reports_queries_and_arrays_leave_the_cells_without_a_label_out_of_its_plots(launched: Any) -> None:
    opened = Sweep.open("own", store=str(launched.store))
    assert opened.rows().to_xarray("loss", missing="nan")["loss"].sizes == {"optimizer": 2, "sigma": 3}
    (page,) = [path for path in opened.report() if path.name == "report.md"]
    text = page.read_text().replace("**", "")
    assert "| adam | – | 0.5 |" in text
    assert "2 cells: mean" in text.partition("![loss against sigma]")[2].partition("##")[0]
    query = "select cell from results where sigma is null or sigma > 0.2 order by loss"
    assert [row["cell"].partition("-")[0] for row in launched.json("query", query)] == [
        "sgd.sigma0.3",
        "adam",
    ]
