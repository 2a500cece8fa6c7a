"""The study's grid as section 1 of the study has it."""

from __future__ import annotations

from collections import Counter

import pytest

pytestmark = pytest.mark.xdist_group("study sweeps")  # they share what is expensive to make

CORE = ("en", "es", "ja", "bn", "sw")
EXTRAS = ("fr", "de", "ru", "zh", "th")
MODELS = {"qwen3-0.6b", "qwen3-1.7b", "qwen3-8b", "gemma3-1b", "gemma3-4b"}


@pytest.fixture(scope="module")
def grid():
    from orchestrator.compose.main import compose

    return compose("multilingual_220").sweep


def mixtures(sweep):
    return {cell.axes["mixture"]: frozenset(cell.config["languages"]) for cell in sweep.cells}


def test_the_grid_is_five_models_by_two_tasks_by_22_mixtures_and_a_baseline(grid):
    assert Counter(cell.axes["model"] for cell in grid.cells) == dict.fromkeys(MODELS, 46)
    assert Counter(cell.axes["task"] for cell in grid.cells) == {"math": 115, "api_calling": 115}
    assert len(set(mixtures(grid).values())) == len(mixtures(grid)) == 23
    assert [len(grid.cells), sum(cell.axes["mixture"] == "none" for cell in grid.cells)] == [230, 10]


def test_the_mixtures_are_those_of_the_studys_table(grid):
    found = mixtures(grid)
    core, extras = frozenset(CORE), frozenset(EXTRAS)
    wanted = {frozenset(), frozenset({"en"}), core, core | extras}
    wanted |= {frozenset({"en", x}) for x in CORE[1:]}
    wanted |= {(core - {x}) | more for x in CORE for more in (frozenset(), frozenset({"fr", "th"}), extras)}
    assert set(found.values()) == wanted
    assert sum(map(len, found.values())) == 119
    assert not any("te" in languages for languages in found.values())


def test_the_two_extras_of_the_mixtures_of_six_are_one_setting(project):
    found = mixtures(project.compose("multilingual_220", ["extras=[de,zh]", "model=qwen3-8b"]).sweep)
    sixes = [languages for languages in found.values() if len(languages) == 6]
    assert len(sixes) == 5
    assert all(languages - set(CORE) == {"de", "zh"} for languages in sixes)


def test_a_baseline_is_evaluated_and_never_trained(grid):
    for cell in grid.cells:
        stages = {grid.stages[digest].stage for digest in cell.stage_digests}
        assert ("train" in stages) is (cell.axes["mixture"] != "none")
        assert "evaluate" in stages


def test_the_tiny_study_has_the_cells_of_the_study_and_two_families(project, grid):
    tiny = project.compose("multilingual_220_tiny").sweep
    assert mixtures(tiny) == mixtures(grid)
    families = Counter(cell.config["model"]["family"] for cell in tiny.cells)
    assert families == {"qwen3": 3 * 46, "gemma3": 2 * 46}
    tokenizers = {digest for digest, node in tiny.stages.items() if node.stage == "tokenizer"}
    assert len(tokenizers) == 2


@pytest.mark.parametrize(("name", "num_cells"), [("bilingual", 60), ("one_model", 46)])
def test_a_subset_shares_its_stages_with_the_study(project, grid, name, num_cells):
    subset = project.compose(name).sweep
    assert len(subset.cells) == num_cells
    assert {cell.id for cell in subset.cells} <= {cell.id for cell in grid.cells}
    assert set(subset.stages) <= set(grid.stages)
