"""The label of a cell says what ran: on the axis, in `columns`, in ids and for selectors."""

from __future__ import annotations

import pytest

from orchestrator.errors import UserError

CONFIG = "config: {opt: {lr: 0.0, momentum: 0.9}, base: 0.5, seed: 0, trainer: x}\n"
STAGES = "stages: {fit: {command: 'echo {config.opt.lr}', reads: [opt, seed]}}\n"
RECIPE = "recipe: {small: {opt.lr: 0.5}, large: {opt.lr: 0.05}}"


def sweep(project, axes, *overrides, more=""):
    return project.sweep(f"{CONFIG}axes: {{{axes}}}\n{more}{STAGES}", *overrides).sweep


def test_a_sweep_that_is_like_another_is_refused_for_the_axis_that_it_adds(project):
    project.write("first.yaml", f"{CONFIG}axes: {{{RECIPE}}}\n{STAGES}")
    with pytest.raises(UserError, match=r"both set 'opt\.lr'"):
        project.sweep("like: first\naxes: {opt.lr: [0.1]}\n")
    assert len(project.sweep("like: first\naxes: {opt.lr: [0.1], recipe: {none: {}}}\n").sweep.cells) == 1


def test_cells_in_which_one_axis_alone_sets_the_key_are_fine(project):
    axes = "opt.lr: [0.1, 0.2], recipe: {own: {opt.lr: 0.5}, none: {}}"
    cells = sweep(project, axes, more="exclude: [recipe=own]\n").cells
    assert [(cell.axes["opt.lr"], cell.config["opt"]["lr"]) for cell in cells] == [("0.1", 0.1), ("0.2", 0.2)]
    beside = sweep(project, "opt: [{momentum: 0.1}, {momentum: 0.2}], opt.lr: [0.3]").cells
    assert [cell.config["opt"] for cell in beside] == [{"lr": 0.3, "momentum": m} for m in (0.1, 0.2)]


@pytest.mark.parametrize("first", ["trainer", "trainer.lr"])
def test_a_groups_axis_is_refined_by_an_axis_of_a_key_in_it_whatever_their_order(study, first):
    axes = {"trainer": "trainer: [quick, slow]", "trainer.lr": "trainer.lr: [0.1, 0.2]"}
    order = [axes.pop(first), *axes.values()]
    cells = study.sweep(
        f"axes: {{{', '.join(order)}}}\nstages: {{s: {{command: x, reads: [trainer]}}}}"
    ).sweep.cells
    found = {(cell.axes["trainer"], cell.axes["trainer.lr"], cell.config["trainer"]["lr"]) for cell in cells}
    assert found == {(group, str(lr), lr) for group in ("quick", "slow") for lr in (0.1, 0.2)}
    assert {cell.config["trainer"]["steps"] for cell in cells} == {10, 100}


def test_two_axes_that_choose_from_one_group_are_refused(study):
    axes = "axes: {model: [a, b], size: {small: {model: c}, large: {}}}"
    with pytest.raises(UserError, match="both set 'model'"):
        study.sweep(f"{axes}\nstages: {{s: {{command: x, reads: [model]}}}}")


@pytest.mark.parametrize(
    ("axes", "override"),
    [
        (RECIPE, "opt.lr=0.3"),
        (RECIPE, "opt={lr:0.3}"),
        (RECIPE, "++opt.lr=0.3"),
        ("opt: [{lr: 1}, {lr: 2}]", "opt.lr=0.3"),
        ("opt.lr: [0.1, 0.2]", "opt={lr:0.3}"),
    ],
)
def test_an_override_of_a_key_that_every_label_sets_is_refused(project, axes, override):
    with pytest.raises(UserError, match="would change nothing"):
        sweep(project, axes, override)


def test_an_override_may_set_a_key_where_its_axis_is_taken_away_after_it(project):
    (cell,) = sweep(project, RECIPE, "opt.lr=0.3", "~recipe").cells
    assert (cell.axes, cell.config["opt"]["lr"]) == ({}, 0.3)


def test_the_label_of_an_interpolation_is_the_value_that_it_leads_to(project):
    cells = sweep(project, 'opt.lr: ["${base}", 0.2], base: [1, 2]').cells
    assert [(cell.axes["opt.lr"], cell.config["opt"]["lr"]) for cell in cells] == [
        ("1", 1),
        ("2", 2),
        ("0.2", 0.2),
    ]
    assert all("$" not in cell.id for cell in cells)


def test_a_schema_that_makes_another_value_of_a_label_is_refused(project):
    project.write(
        "shape.py",
        """
        import msgspec
        class Shape(msgspec.Struct):
            lr: float
            def __post_init__(self):
                self.lr = min(self.lr, 1.0)
        """,
    )
    config = "config: {lr: 0.1, schema: 'shape:Shape'}\naxes: {lr: [1, LR]}\n"
    text = config + "stages: {s: {command: x, reads: [lr]}}"
    assert [c.config["lr"] for c in project.sweep(text.replace("LR", "0.5")).sweep.cells] == [1.0, 0.5]
    with pytest.raises(UserError, match=r"the label of lr is 7, but the cell has 1\.0"):
        project.sweep(text.replace("LR", "7"))


@pytest.mark.parametrize(
    ("columns", "what"),
    [
        ("columns: {recipe: opt.lr}\n", "'recipe' itself is small"),
        ("columns: {seed: base}\n", "the column 'seed' shows base, which is 0.5, but 'seed' itself is 0"),
    ],
)
def test_a_column_that_shows_something_else_under_a_name_that_is_taken_is_refused(project, columns, what):
    with pytest.raises(UserError) as error:
        sweep(project, RECIPE, more=columns)
    assert what in error.value.what


def test_a_column_may_have_the_name_of_what_it_shows(project):
    cells = sweep(project, RECIPE, more="columns: {seed: seed, lr: opt.lr}\n").cells
    assert [cell.columns for cell in cells] == [{"seed": 0, "lr": 0.5}, {"seed": 0, "lr": 0.05}]


@pytest.mark.parametrize("override", ["seed=1,1", "seed=1,1.0", "recipe=small,small", "base=true,True"])
def test_an_axis_with_one_value_twice_on_the_command_line_is_refused(project, override):
    with pytest.raises(UserError, match="which is one value"):
        sweep(project, f"{RECIPE}, seed: [5]", override)


def test_values_that_only_look_alike_are_two(project):
    assert len(sweep(project, "seed: [1, true, '01', 0.1, null, '']").cells) == 6
