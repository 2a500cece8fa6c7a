"""What each cell of the study is worth to its report."""

from __future__ import annotations

from typing import Any

from orchestrator.study import paper
from orchestrator.study.claims import weights


def config(*languages: str, task: str = "math") -> dict[str, Any]:
    return {
        "model": {"name": "m"},
        "task": {"name": task},
        "languages": list(languages),
        "seed": 0,
        "evaluation": {"languages": list(paper.EVAL_LANGUAGES)},
    }


def grid() -> dict[str, dict[str, Any]]:
    """One model and task of the study: 22 mixtures and the untrained model."""
    core, extras = paper.CORE, paper.EXTRAS
    cells = {"untrained": config(), "en": config("en"), "core": config(*core), "all": config(*core, *extras)}
    cells |= {f"en+{x}": config("en", x) for x in paper.OTHERS}
    for x in core:
        rest = tuple(y for y in core if y != x)
        for more in ((), paper.TWO_EXTRAS, extras):
            cells[f"no-{x}-{len(rest) + len(more)}"] = config(*rest, *more)
    return cells


def test_each_comparison_of_the_paper_counts_for_the_cells_that_it_needs() -> None:
    found = weights(grid())
    assert found is not None and len(found) == 23
    # 6 rows, two comparisons in 6 languages, and 3 sizes each that leave out x or English.
    assert found["en+es"] == 6 + 6 * 2 + 3 + 3
    assert found["en"] == 6 + 6 * (4 + 1)
    assert found["untrained"] == 6 + 6 * 5
    assert found["core"] == found["all"] == 6
    assert {found[cell] for cell in found if cell.startswith("no-")} == {7}


def test_cells_of_another_task_are_compared_with_their_own_alone() -> None:
    both = {
        f"{task}-{cell}": {**each, "task": {"name": task}}
        for task in ("a", "b")
        for cell, each in grid().items()
    }
    found, one = weights(both), weights(grid())
    assert found is not None and one is not None
    assert all(found[f"{task}-{cell}"] == one[cell] for task in ("a", "b") for cell in one)


def test_another_sweep_is_not_the_studys() -> None:
    assert weights({"a": {"seed": 0}}) is None
