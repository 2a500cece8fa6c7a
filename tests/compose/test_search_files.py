"""The key `search` of a sweep file: what is sealed of it, and what is refused before anything runs."""

from __future__ import annotations

import sys

import msgspec
import pytest

from orchestrator.compose.files import find_sweeps
from orchestrator.core.search import drawn, filled, grown
from orchestrator.errors import UserError
from orchestrator.formats import decode, encode

SPACE = "space: {opt: [sgd, adam], lr: {low: 1e-5, high: 0.1, log: true}, momentum: {low: 0.0, high: 0.99}}"
CONFIG = "config: {opt: sgd, lr: 0.1, momentum: 0.0, layers: 2, tag: 'run-${lr}', twice: [1, '${lr}']}\n"
WHEN = "when: {momentum: opt=sgd}\n"
STAGES = "stages: {fit: {command: 'echo {args}', reads: [opt, lr, momentum, layers, tag, twice]}}\n"


def search(project, more="", *overrides, space=SPACE, config=CONFIG, when=WHEN, number=20):
    text = f"search: {{metric: loss, mode: min, num_cells: {number}, batch: 5, seed: 3, {space}}}\n"
    return project.sweep(f"{config}{text}{when}{STAGES}{more}", *overrides)


def test_the_first_round_is_composed_and_templates_give_what_hydra_would_compose(project):
    found = search(project, "columns: {rate: lr}\n").sweep
    sealed = found.search
    assert len(found.cells) == 5
    assert sealed is not None
    assert [cell.axes["lr"] for cell in found.cells] == [str(point["lr"]) for point in sealed.start]
    later = drawn(sealed, sealed.start, 4)
    cells = grown(found, sealed, [later]).sweep.cells
    assert cells[:5] == found.cells
    for cell, point in zip(cells[5:], later, strict=True):
        lr = point["lr"]
        overrides = [f"{name}={value}" for name, value in point.items()]
        (alone,) = project.sweep(f"{CONFIG}axes: {{}}\n{STAGES}", *overrides).sweep.cells
        assert cell.config == alone.config == {**cell.config, "lr": lr, "tag": f"run-{lr}", "twice": [1, lr]}
        assert cell.stage_digests == alone.stage_digests
        assert cell.columns == {"rate": lr}
        assert cell.axes["momentum"] == ("" if point["opt"] == "adam" else str(point["momentum"]))


def test_a_sealed_search_is_read_as_it_was_written_and_grows_alike(project):
    found = search(project).sweep
    again = decode(encode(found), type(found))
    assert again == found
    points = [drawn(found.search, found.search.start, 7)]
    assert grown(again, again.search, points) == grown(found, found.search, points)


def test_random_points_are_an_ordinary_grid_without_anything_to_decide(project):
    found = search(project, "expect_cells: 20\n", space=f"{SPACE}, sampler: random").sweep
    assert found.search is None
    assert len(found.cells) == len({cell.id for cell in found.cells}) == 20
    first = search(project).sweep
    assert found.cells[:5] == first.cells


def test_the_most_cells_are_expected(project):
    assert len(search(project, "expect_cells: 20\n").sweep.cells) == 5
    with pytest.raises(UserError, match="the sweep has 20 cells, 4 fewer than expect_cells: 24"):
        search(project, "expect_cells: 24\n")
    project.write(
        "sweeps/own.yaml", f"{CONFIG}search: {{metric: a, mode: max, num_cells: 7, {SPACE}}}\n{STAGES}"
    )
    assert {entry.name: entry.num_cells for entry in find_sweeps(project.folder)}["own"] == 7


def test_the_command_line_narrows_the_space(project):
    found = search(project, "", "opt=adam", "lr=0.01,0.02", number=2).sweep
    assert {(cell.axes["opt"], cell.axes["momentum"]) for cell in found.cells} == {("adam", "")}
    assert {cell.axes["lr"] for cell in found.cells} == {"0.01", "0.02"}
    assert "momentum" not in search(project, "", "~momentum", "momentum=0.5").sweep.cells[0].axes
    with pytest.raises(UserError, match="'layers' is not in the space"):
        search(project, "", "layers=1,2")


def test_the_command_line_changes_the_search_itself(project):
    found = search(project, "", "search.num_cells=12", "search.batch=4", "search.seed=8", "search.mode=max")
    sealed = found.sweep.search
    assert (sealed.num_cells, sealed.batch, sealed.seed, sealed.select.mode) == (12, 4, 8, "max")
    assert len(found.sweep.cells) == 4
    with pytest.raises(UserError, match="sampler"):
        search(project, "", "search.sampler=grid")
    with pytest.raises(UserError, match=r"(?s)unknown key 'search\.mod'.*did you mean search\.mode "):
        search(project, "", "search.mod=max")


def test_options_choose_config_groups_and_named_values(study):
    found = study.sweep(
        "search: {metric: loss, mode: min, num_cells: 30, batch: 4, space: {trainer: [quick, slow], "
        "size: {small: {model: a, seed: 1}, large: {model: c}}, trainer.steps: {low: 5, high: 50}}}\n"
        "stages: {s: {command: x, reads: [trainer, model, label, seed]}}"
    ).sweep
    sealed = found.search
    assert {tuple(template.labels.values()) for template in sealed.templates} == {
        (trainer, size) for trainer in ("quick", "slow") for size in ("small", "large")
    }
    point = {"trainer": "slow", "size": "large", "trainer.steps": 17}
    cell = grown(found, sealed, [[point]]).sweep.cells[-1]
    assert cell.id.startswith("slow.large.steps17-")
    assert cell.config["trainer"] == {"lr": 1e-5, "steps": 17, "warmup": {"share": 0.1, "of": 17}}
    assert cell.config["model"]["name"] == "c"


SCHEMA = """
import msgspec
class Config(msgspec.Struct):
    lr: float = 0.0
    size: float = 1.0
    half: float = 0.0
    def __post_init__(self):
        self.half = self.lr / 2
"""


def test_a_number_that_a_schema_converts_is_sealed_and_one_that_it_computes_is_refused(project):
    project.write("own_schema.py", SCHEMA)
    config = "config: {schema: 'own_schema:Config', lr: 0.1, size: 1}\n"
    stages = "stages: {fit: {command: 'echo {args}', reads: [lr, size]}}\n"
    head = "search: {metric: loss, mode: min, num_cells: 20, space: "
    found = project.sweep(f"{config}{head}{{size: {{low: 1, high: 900}}}}}}\n{stages}").sweep
    (template,) = found.search.templates
    assert filled(template, {"size": 4}) == {"lr": 0.1, "size": 4.0, "half": 0.05}
    with pytest.raises(UserError, match="half follows from a range in a way that cannot be sealed"):
        project.sweep(f"{config}{head}{{lr: {{low: 0.1, high: 0.9}}}}}}\n{stages}")


@pytest.mark.parametrize(
    ("when", "message"),
    [
        ("{opt: lr=1e-05}", "on the range 'lr'"),
        ("{opt=sgd: momentum=0.0}", "about one value"),
        ("{lr: size=1}", "'size' is no axis"),
    ],
)
def test_conditions_of_a_search_are_on_options_alone(project, when, message):
    with pytest.raises(UserError, match=message):
        search(project, when=f"when: {when}\n")


def test_a_cell_that_only_a_range_of_no_stage_distinguishes_is_one_cell(project):
    stages = "stages: {fit: {command: 'echo {args}', reads: [layers]}}\n"
    text = "search: {metric: loss, mode: min, num_cells: 9, batch: 4, space: {lr: {low: 0.1, high: 0.9}}}\n"
    found = project.sweep(f"{CONFIG}{text}{stages}").sweep
    assert len(found.cells) == 1
    sweep, rounds = grown(found, found.search, [drawn(found.search, found.search.start, 4)])
    assert rounds == [(found.cells[0].id,) * 4] * 2
    assert msgspec.structs.replace(sweep, search=None) == msgspec.structs.replace(found, search=None)


APP = """
import hydra

@hydra.main(version_base=None, config_path="conf", config_name="config")
def main(cfg):
    pass

main()
"""


def test_a_search_of_an_app_seals_what_the_app_composes(project):
    project.write("conf/config.yaml", "defaults: [{opt: sgd}]\nwidth: 4\nname: 'w${width}'\n")
    project.write("conf/opt/sgd.yaml", "lr: 0.1\nmomentum: 0.9\n")
    project.write("conf/opt/adam.yaml", "lr: 0.001\n")
    project.write("app.py", APP)
    app = f"app: {{script: app.py, python: {sys.executable}}}\n"
    found = project.sweep(
        f"{app}search: {{metric: value, mode: min, num_cells: 9, batch: 2, space: {{opt: [sgd, adam], "
        "opt.momentum: {low: 0.0, high: 0.99}, width: {low: 1, high: 8}}}\nwhen: {opt.momentum: opt=sgd}\n"
    ).sweep
    point = {"opt": "sgd", "opt.momentum": 0.25, "width": 3}
    cell = grown(found, found.search, [[point]]).sweep.cells[-1]
    axes = ", ".join(f"{name}: [{value}]" for name, value in point.items())
    (alone,) = project.sweep(f"{app}axes: {{{axes}}}\n").sweep.cells
    assert cell.config == alone.config
    assert (cell.id, cell.stage_digests) == (alone.id, alone.stage_digests)
