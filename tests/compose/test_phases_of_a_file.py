"""Cells of later phases are what a sweep of their own would have composed, and `expect_cells` counts them."""

from __future__ import annotations

from orchestrator.core.decisions import unfold
from orchestrator.core.sealed import Decision
from tests.compose.conftest import Project

STAGES = """
        config: {seed: 0, lr: 0.1, width: 4, name: "${lr}-${width}", model: small}
        stages:
          fit: {run: "builtins:print", reads: [seed, lr, width, name, model]}
"""


def test_a_cell_of_a_later_phase_is_composed_as_with_the_overrides_of_the_winner(project: Project) -> None:
    phased = project.sweep(
        STAGES
        + """
        phases:
          - name: tune
            axes: {lr: [0.1, 0.2, 0.3], seed: [7, 8]}
            select: {metric: accuracy, mode: max, mean: [seed], top: 2}
          - name: confirm
            overrides: {width: 8}
            axes: {seed: "range(0,5)"}
        expect_cells: 16
        """
    ).sweep
    direct = project.sweep(
        STAGES
        + """
        overrides: {width: 8}
        axes: {lr: [0.3, 0.1], seed: "range(0,5)"}
        """
    ).sweep
    decision = Decision(nonce="", revision=1, number=1, phase="tune", chosen=("lr=0.3", "lr=0.1"))
    cells = [cell for cell in unfold(phased, [decision]).sweep.cells if cell.axes["phase"] == "confirm"]
    found = {tuple(cell.stage_digests): cell.config for cell in cells}
    assert found == {tuple(cell.stage_digests): cell.config for cell in direct.cells}
    assert len(found) == 10


def test_each_model_has_its_winner_and_conditions_go_on_into_the_next_phase(project: Project) -> None:
    sweep = project.sweep(
        STAGES
        + """
        phases:
          - name: tune
            axes: {model: [small, large], lr: [0.1, 0.2], width: [1, 2]}
            when: {width: model=large}
            select: {metric: loss, mode: min, per: [model]}
          - name: more
            axes: {seed: [0, 1]}
        expect_cells: 10
        """
    ).sweep
    tune = sweep.phases[0]
    assert set(tune.groups.values()) == {"model=small", "model=large"}
    assert tune.candidates.keys() == sweep.phases[1].follows.keys()
    assert len(tune.candidates) == 2 + 4
    assert {len(ids) for ids in sweep.phases[1].follows.values()} == {2}


def test_an_override_of_an_axis_concerns_the_phases_that_have_it(project: Project) -> None:
    text = (
        STAGES
        + """
        phases:
          - name: tune
            axes: {lr: [0.1, 0.2]}
            select: {metric: loss, mode: min}
          - name: more
            axes: {seed: [5, 6, 7]}
        """
    )
    sweep = project.sweep(text, "seed=6", "width=9").sweep
    assert [cell.config["seed"] for cell in sweep.cells] == [0, 0, 6, 6]
    assert {cell.config["width"] for cell in sweep.cells} == {9}
