"""Sweep files that take from another what they leave out."""

from __future__ import annotations

import pytest

from orchestrator.errors import UserError

BASE = """
description: the first
expect_cells: 4
config: {seed: 0, size: small, rate: 1}
overrides: {rate: 2}
axes: {size: [small, large], seed: [0, 1]}
columns: {rate: rate}
stages: {fit: {command: "f {config.rate}", reads: [seed, size, rate]}}
"""


def test_a_sweep_takes_over_what_it_leaves_out_but_its_description_and_number(project):
    project.write("first.yaml", BASE)
    sweep = project.sweep("like: first").sweep
    assert (len(sweep.cells), sweep.description, list(sweep.specs)) == (4, "", ["fit"])
    assert {cell.columns["rate"] for cell in sweep.cells} == {2}


def test_axes_and_overrides_are_merged_by_name(project):
    project.write("first.yaml", BASE)
    sweep = project.sweep(
        "{like: first, expect_cells: 2, overrides: {size: huge}, axes: {size: [huge]}}"
    ).sweep
    assert [cell.axes for cell in sweep.cells] == [
        {"size": "huge", "seed": "0"},
        {"size": "huge", "seed": "1"},
    ]
    assert {cell.config["rate"] for cell in sweep.cells} == {2}


def test_what_it_narrows_is_not_the_other_sweeps(project):
    project.write("first.yaml", BASE)
    assert len(project.sweep("{like: first, include: [seed=0], expect_cells: 2}").sweep.cells) == 2
    assert len(project.compose("first.yaml").sweep.cells) == 4


def test_a_sweep_may_be_like_one_that_is_like_another(project):
    project.write("first.yaml", BASE)
    project.write("second.yaml", "{like: first, axes: {seed: [7]}}")
    sweep = project.sweep("{like: second, axes: {size: [large]}}").sweep
    assert [cell.axes for cell in sweep.cells] == [{"size": "large", "seed": "7"}]


@pytest.mark.parametrize(
    ("like", "what"),
    [("frist", "unknown sweep"), ("own", "circle"), ("7", "like is 7"), ("[first]", "like is ")],
)
def test_what_no_sweep_can_be_like_is_refused(project, like, what):
    project.write("first.yaml", BASE)
    with pytest.raises(UserError, match=what):
        project.sweep(f"like: {like}")
