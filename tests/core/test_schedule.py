"""The order of cells, and the time that a plan takes on a number of GPUs."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core import schedule
from orchestrator.core.schedule import PlannedStage as S


def _alone(*hours: float) -> dict[str, S]:
    return {str(number): S(each, 1) for number, each in enumerate(hours)}


def test_the_longest_chain_starts_first() -> None:
    work = {
        "a": S(1, 1),
        "b": S(2, 1),
        "c": S(4, 1, ("a",)),
        "d": S(4.5, 1),
    }
    assert schedule.chain_hours(work) == {"a": 5, "b": 2, "c": 4, "d": 4.5}
    assert schedule.longest_first([["d"], ["b"], ["a", "c"]], work) == [2, 0, 1]


def test_a_stage_that_is_done_counts_no_more() -> None:
    work = {"c": S(4, 1, ("a",)), "d": S(4.5, 1)}
    assert schedule.longest_first([["a", "c"], ["d"]], work) == [1, 0]


def test_of_equal_chains_the_one_that_more_cells_wait_for_comes_first() -> None:
    work = {
        "x": S(1, 1),
        "y": S(1, 1),
        **{key: S(2, 1, ("y",)) for key in "pq"},
        "o": S(2, 1, ("x",)),
    }
    assert schedule.longest_first([["x", "o"], ["y", "p"], ["y", "q"]], work) == [1, 2, 0]


def test_without_estimates_cells_keep_their_order() -> None:
    assert schedule.longest_first([["a"], ["b"], ["c"]], {key: S(0, 0) for key in "abc"}) == [
        0,
        1,
        2,
    ]


@pytest.mark.parametrize(
    ("work", "num_gpus", "per_node", "hours"),
    [
        pytest.param(_alone(1, 1, 1, 1, 4), 2, 8, 4, id="the long one first"),
        pytest.param({}, 8, 8, 0, id="nothing to do"),
        pytest.param(
            {"a": S(3, 0), "b": S(2, 1, ("a",))},
            1,
            1,
            5,
            id="a stage without a GPU, then one with",
        ),
        pytest.param(
            {"a": S(1, 2), "b": S(1, 2)},
            4,
            3,
            2,
            id="a node of three holds one pair alone",
        ),
        pytest.param(
            {"a": S(1, 4), "b": S(5, 1), "c": S(5, 3)},
            4,
            4,
            6,
            id="a wide one waits for a node",
        ),
        pytest.param(
            {"a": S(5, 3), "b": S(4, 4), "c": S(1, 1)},
            4,
            4,
            9,
            id="a small one goes before",
        ),
        pytest.param({"a": S(2, 1, ("z",))}, 1, 1, 2, id="an input that is done"),
    ],
)
def test_each_stage_starts_when_its_inputs_are_done_and_gpus_are_free(
    work: dict[str, S], num_gpus: int, per_node: int, hours: float
) -> None:
    assert schedule.makespan_hours(work, num_gpus, gpus_per_node=per_node) == hours


def test_a_stage_wider_than_a_node_is_an_error() -> None:
    with pytest.raises(ValueError, match="needs 8 GPUs, and a node has 4"):
        schedule.makespan_hours({"a": S(1, 8)}, 16, gpus_per_node=4)


def test_stages_that_wait_for_each_other_are_an_error() -> None:
    with pytest.raises(ValueError, match="circle"):
        schedule.chain_hours({"a": S(1, 1, ("b",)), "b": S(1, 1, ("a",))})


@given(st.lists(st.floats(0.1, 9), min_size=1, max_size=6), st.integers(1, 3))
def test_the_time_lies_between_the_bound_and_what_graham_proved(hours: list[float], num_gpus: int) -> None:
    """Longest first takes at most 4/3 - 1/(3m) of the best schedule, found here by trying all of them."""
    best = min(
        max(sum(h for h, gpu in zip(hours, split, strict=True) if gpu == each) for each in range(num_gpus))
        for split in itertools.product(range(num_gpus), repeat=len(hours))
    )
    work = _alone(*hours)
    assert schedule.lower_bound_hours(work, num_gpus) <= best + 1e-9
    found = schedule.makespan_hours(work, num_gpus)
    assert best - 1e-9 <= found <= best * (4 / 3 - 1 / (3 * num_gpus)) + 1e-9


def test_more_gpus_for_the_longest_cell_shorten_the_whole() -> None:
    work = {"long": S(10, 1), **_alone(*[1] * 20)}
    assert schedule.makespan_hours(work, 16) == 10 == schedule.lower_bound_hours(work, 16)
    molded = schedule.makespan_hours(schedule.mold(work, 16, gpus_per_node=8), 16)
    assert molded < 3  # 8 GPUs take 10 / 1.8 ** 3 = 1.7 hours
    assert schedule.moldable_lower_bound_hours(work, 16, gpus_per_node=8) <= molded


def test_where_gpus_are_short_no_cell_gets_more_than_it_needs() -> None:
    work = _alone(*[1] * 64)
    assert schedule.mold(work, 8, gpus_per_node=8) == work


def test_a_cell_holds_its_gpus_over_all_of_its_own_stages() -> None:
    work = {
        "shared": S(1, 0),
        "train": S(4, 4, ("shared",)),
        "score": S(1, 1, ("train",)),
    }
    cells = {"a": ["shared", "train", "score"], "b": ["shared"]}
    assert schedule.of_cells(cells, work) == {
        "shared": S(1, 0),
        "a": S(5, 4, ("shared",)),
    }


def test_ten_thousand_cells_on_a_thousand_nodes_use_nearly_all_of_their_time() -> None:
    drawn = random.Random(0)
    work = {str(n): S(drawn.lognormvariate(0, 0.5), drawn.choice([1, 2, 4, 8])) for n in range(10_000)}
    assert schedule.makespan_hours(work, 2_000) < 1.02 * schedule.lower_bound_hours(work, 2_000)


def test_a_number_that_was_chosen_before_stays_and_counts_for_the_others() -> None:
    work = {"long": S(10, 1), **_alone(*[1] * 20)}
    assert schedule.mold(work, 16, gpus_per_node=8)["long"].num_gpus == 8
    kept = schedule.mold(work, 16, gpus_per_node=8, kept={"long": 2, "0": 4, "of another sweep": 8})
    assert (kept["long"].num_gpus, kept["0"].num_gpus) == (2, 4)
    assert kept["long"].hours == pytest.approx(10 / 1.8)
    # Fewer than suffice is never kept: the hardware of then may have had more memory.
    assert schedule.mold({"wide": S(1, 4)}, 8, gpus_per_node=8, kept={"wide": 1})["wide"].num_gpus == 4


def test_a_stage_gets_no_more_gpus_than_it_can_use() -> None:
    work = {"long": S(10, 1, most_gpus=2), **_alone(*[1] * 20)}
    assert schedule.mold(work, 16, gpus_per_node=8)["long"].num_gpus == 2


def test_a_measured_efficiency_replaces_the_guess() -> None:
    assert [one.hours for one in schedule.choices(S(8, 1, efficiency=1.0), 8)] == [8, 4, 2, 1]
    # At a half, more GPUs would save nothing, so none are given.
    work = {"long": S(10, 1, efficiency=0.5), **_alone(*[1] * 20)}
    assert schedule.mold(work, 16, gpus_per_node=8) == work


def test_a_shared_stage_gets_what_suffices_and_a_cell_what_all_its_stages_can_use() -> None:
    work = {
        "shared": S(9, 2),
        "train": S(4, 1, ("shared",), 8, 0.7),
        "score": S(1, 1, ("train",), 2, 0.6),
        "other": S(1, 1, ("shared",)),
    }
    found = schedule.of_cells({"a": ["shared", "train", "score"], "b": ["shared", "other"]}, work)
    assert found["shared"].most_gpus == 2
    assert found["a"] == S(5, 1, ("shared",), 2, 0.7)


@given(
    st.lists(st.tuples(st.floats(0.1, 9), st.sampled_from([0, 1, 2, 4])), min_size=1, max_size=12),
    st.sampled_from([4, 8, 16]),
)
def test_chosen_numbers_fit_a_node_and_are_the_same_for_all_launches(
    cells: list[tuple[float, int]], num_gpus: int
) -> None:
    work = {str(n): S(hours, gpus) for n, (hours, gpus) in enumerate(cells)}
    chosen = schedule.mold(work, num_gpus, gpus_per_node=8)
    assert chosen == schedule.mold(work, num_gpus, gpus_per_node=8)
    for key, stage in chosen.items():
        assert stage in schedule.choices(work[key], min(8, num_gpus))


def test_long_cells_get_more_gpus_in_time_for_estimates_that_are_wrong() -> None:
    """By the estimates nothing is gained: a long cell takes as long as all others together."""
    work = {**{f"long{n}": S(10, 1) for n in range(4)}, **_alone(*[1] * 120)}
    assert schedule.makespan_hours(work, 16) == schedule.lower_bound_hours(work, 16) == 10
    chosen = schedule.mold(work, 16, gpus_per_node=8)
    assert all(chosen[f"long{n}"].num_gpus > 1 for n in range(4))
    rigid, molded = (
        schedule.makespan_hours(
            {**each, "long0": each["long0"]._replace(hours=1.5 * each["long0"].hours)}, 16
        )
        for each in (work, chosen)
    )
    assert rigid == 15 and molded < 12
