"""The space of a search: random points, the configs that follow from points, and slots."""

from __future__ import annotations

import math
from collections import Counter

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core.sealed import CellTemplate, ConfigSlot, SealedSearch, SearchParameter, Select
from orchestrator.core.search import drawn, filled, is_in, key_of, labels_of, rounded, slots_of

SPACE = (
    SearchParameter(name="opt", options=("sgd", "adam")),
    SearchParameter(name="train.lr", low=1e-5, high=1e-1, log=True),
    SearchParameter(name="momentum", low=0.0, high=0.99),
    SearchParameter(name="layers", low=1, high=8, is_int=True),
    SearchParameter(name="dropout", low=0.0, high=0.5, step=0.1),
)


def outline(option, ranges):
    return CellTemplate(labels={"opt": option}, ranges=ranges, parts={"opt": option}, config={})


SEARCH = SealedSearch(
    sampler="tpe",
    seed=1,
    num_cells=64,
    batch=8,
    select=Select(metric="loss", mode="min"),
    space=SPACE,
    templates=(
        outline("sgd", ("train.lr", "momentum", "layers", "dropout")),
        outline("adam", ("train.lr", "layers", "dropout")),
    ),
    columns={},
    start=(),
)


def test_random_points_are_in_the_space_differ_and_depend_on_the_seed_and_their_place_alone():
    points = drawn(SEARCH, [], 200)
    assert all(is_in(SEARCH, point) for point in points)
    assert len({key_of(point) for point in points}) == 200
    assert drawn(SEARCH, [], 40) == points[:40]
    assert drawn(SEARCH, points[:40], 160) == points[40:]
    assert drawn(msgspec.structs.replace(SEARCH, seed=2), [], 1) != points[:1]


@pytest.mark.parametrize(
    "value", [math.inf, -math.inf, math.nan, 1e308, -1e308, 10**400, "3", None, 9, 0, 1.5]
)
@pytest.mark.parametrize("name", ["layers", "dropout", "train.lr"])
def test_a_value_outside_its_range_or_between_its_steps_is_no_point_however_large(name, value):
    (point,) = drawn(SEARCH, [], 1)
    assert is_in(SEARCH, point)
    fits = name == "dropout" and value == 0
    assert is_in(SEARCH, {**point, name: value}) is fits


def test_options_and_logarithms_are_drawn_evenly_and_a_parameter_only_where_it_counts():
    points = drawn(SEARCH, [], 2000)
    assert Counter(point["opt"] for point in points)["sgd"] == pytest.approx(1000, abs=100)
    assert all(("momentum" in point) == (point["opt"] == "sgd") for point in points)
    decades = Counter(math.floor(math.log10(float(point["train.lr"]))) for point in points)
    assert all(decades[place] == pytest.approx(500, abs=80) for place in (-5, -4, -3, -2))
    assert set(Counter(point["dropout"] for point in points)) == {0.0, 0.1, 0.2, 0.3, 0.4, 0.5}
    assert set(Counter(point["layers"] for point in points)) == {*range(1, 9)}


def test_a_space_that_is_used_up_gives_fewer_points():
    space = (
        SearchParameter(name="a", low=1, high=3, is_int=True),
        SearchParameter(name="b", options=("x", "y")),
    )
    templates = tuple(
        CellTemplate(labels={"b": label}, ranges=("a",), parts={}, config={}) for label in ("x", "y")
    )
    small = msgspec.structs.replace(SEARCH, space=space, templates=templates)
    assert len(drawn(small, [], 100)) == 6


@given(st.sampled_from(SPACE[1:]), st.floats(-10, 10))
def test_rounding_stays_in_the_range_and_changes_nothing_twice(parameter, value):
    once = rounded(parameter, value)
    assert parameter.low <= once <= parameter.high
    assert rounded(parameter, once) == once
    assert isinstance(once, int) == parameter.is_int
    assert len(repr(once)) <= 12


@pytest.mark.parametrize(
    "change",
    [{"momentum": 1.5}, {"opt": "lion"}, {"layers": 2.5}, {"dropout": 0.15}, {"other": 1}, {"opt": "adam"}],
    ids=str,
)
def test_what_is_not_in_the_space_is_recognised(change):
    point = {"opt": "sgd", "train.lr": 0.01, "momentum": 0.5, "layers": 2, "dropout": 0.1}
    assert is_in(SEARCH, point)
    assert not is_in(SEARCH, {**point, **change})


def test_a_config_is_filled_where_values_and_texts_follow_from_ranges():
    points = [{"lr": 0.0317, "n": 3}, {"lr": 0.52, "n": 7}, {"lr": 1e-05, "n": 5}]

    def config(point):
        lr, n = point["lr"], point["n"]
        return {
            "lr": lr,
            "size": {"n": n, "half": float(n), "list": [1, n, {"deep": f"{n}"}]},
            "name": f"run-{lr}/n{n}-3",
            "same": ["x", 3, None],
        }

    slots = list(slots_of([config(point) for point in points], points))
    assert all(isinstance(slot, ConfigSlot) for slot in slots)
    template = CellTemplate(
        labels={}, ranges=("lr", "n"), parts={}, config=config(points[0]), slots=tuple(slots)
    )
    new = {"lr": 0.25, "n": 4}
    assert filled(template, new) == config(new)
    assert [type(filled(template, new)["size"][key]) for key in ("n", "half")] == [int, float]
    assert template.config == config(points[0])


@pytest.mark.parametrize(
    ("made", "path"),
    [
        (lambda lr: {"a": {"twice": 2 * lr}}, ("a", "twice")),
        (lambda lr: {"a": "big" if lr > 0.1 else "small"}, ("a",)),
        (lambda lr: {"a": [lr] * (2 if lr > 0.1 else 1)}, ("a",)),
        (lambda lr: {"a": {"x": 1} if lr > 0.1 else {}}, ("a",)),
        (lambda lr: {"a": lr > 0.1}, ("a",)),
        (lambda lr: {"a": f"{lr:.2f}"}, ("a",)),
    ],
)
def test_what_follows_from_a_range_in_another_way_is_named(made, path):
    points = [{"lr": 0.0317}, {"lr": 0.52}, {"lr": 0.0001}]
    assert list(slots_of([made(point["lr"]) for point in points], points)) == [path]


def test_a_cell_is_named_by_its_labels_and_a_parameter_that_does_not_count_has_none():
    template = SEARCH.templates[1]
    point = {"opt": "adam", "train.lr": 1e-05, "layers": 2, "dropout": 0.1}
    labels, name = labels_of(SEARCH, template, point)
    assert labels == {"opt": "adam", "train.lr": "1e-05", "momentum": "", "layers": "2", "dropout": "0.1"}
    assert name == "adam.lr1e-05.layers2.dropout0.1"
