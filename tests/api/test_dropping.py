"""The cells that a budget drops save enough, and no more than that."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.api.dropping import Droppable, to_drop

CANDIDATES = st.lists(
    st.builds(Droppable, st.just("c"), st.integers(0, 20).map(float), st.integers(0, 9)), max_size=12
).map(lambda found: [each._replace(cell=str(number)) for number, each in enumerate(found)])


def test_the_example_of_the_rule_holds() -> None:
    cells = [Droppable("a", 4, 1), Droppable("b", 4, 2), Droppable("c", 9, 9)]
    assert [each.cell for each in to_drop(cells, 10)] == ["a", "c"]


@given(CANDIDATES, st.floats(-5, 200))
def test_what_is_dropped_suffices_if_anything_does_and_none_of_it_is_needless(
    candidates: list[Droppable], excess_s: float
) -> None:
    dropped = to_drop(candidates, excess_s)
    saved_s = sum(each.saved_s for each in dropped)
    possible_s = sum(each.saved_s for each in candidates)
    assert saved_s >= min(excess_s, possible_s)
    assert all(saved_s - each.saved_s < excess_s for each in dropped) or saved_s < excess_s
    assert to_drop(candidates, excess_s) == dropped


def test_of_cells_that_cost_the_same_the_least_claimed_go_first() -> None:
    cells = [Droppable("a", 1, 9), Droppable("b", 1, 1), Droppable("c", 1, 5)]
    assert [each.cell for each in to_drop(cells, 2)] == ["b", "c"]
