"""From a sweep file to cells, chains and digests."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.compose.files import find_sweeps, shipped
from orchestrator.compose.root import Root
from orchestrator.errors import UserError

CHAIN = """
config:
  seed: 0
  languages: [en, es]
  model: {name: m, width: 2, path: null}
  batch: 4
  metric: acc
axes:
  mixture: {none: {languages: []}, en: {languages: [en]}, en+es: {languages: [en, es]}}
  seed: [0, 1]
exclude: ["mixture=none seed!=0"]
columns: {trained_on: languages}
stages:
  prepare: {command: "p", reads: [model.name], each: {language: languages}, skip: languages=}
  check: {command: c, reads: [model.name], after: [prepare], each: {language: languages}, skip: mixture=none}
  fit:
    command: "f"
    reads: [seed, model]
    uses: [model.width, batch]
    after: [prepare, check]
    skip: mixture=none
  score: {command: "s", reads: [metric], after: [fit], results: rows.jsonl}
"""


def stages(composition, cell):
    return [composition.sweep.stages[digest].name for digest in cell.stage_digests]


def test_stages_that_cells_share_are_one_instance(project):
    composition = project.sweep(CHAIN)
    names = [node.name for node in composition.sweep.stages.values()]
    assert names.count("prepare[en]") == 1
    assert names.count("prepare[es]") == 1
    assert names.count("fit") == 4
    assert names.count("score") == 5


def test_a_chain_lists_inputs_before_what_takes_them(project):
    composition = project.sweep(CHAIN)
    by_mixture = {cell.axes["mixture"]: stages(composition, cell) for cell in composition.sweep.cells}
    assert by_mixture["none"] == ["score"]
    assert by_mixture["en+es"] == [
        *("prepare[en]", "prepare[es]", "check[en]", "check[es]", "fit", "score"),
    ]


def test_instances_over_the_same_list_take_only_their_own_input(project):
    nodes = {node.name: node for node in project.sweep(CHAIN).sweep.stages.values()}
    assert [item.label for item in nodes["check[es]"].inputs] == ["es"]
    assert nodes["check[es]"].reads == {"model": {"name": "m"}, "language": "es"}
    assert [item.stage for item in nodes["fit"].inputs][:2] in (["prepare", "prepare"], ["prepare", "check"])


def test_what_a_stage_only_uses_is_carved_out_of_what_it_reads(project):
    nodes = {node.name: node for node in project.sweep(CHAIN).sweep.stages.values()}
    assert nodes["fit"].reads["model"] == {"name": "m", "path": None}
    before = project.sweep(CHAIN).sweep
    assert project.sweep(CHAIN, "batch=8", "model.width=9").sweep.stages == before.stages


def test_a_changed_metric_makes_only_the_last_stage_anew(project):
    before, after = project.sweep(CHAIN).sweep, project.sweep(CHAIN, "metric=f1").sweep
    new = {after.stages[digest].stage for digest in after.stages.keys() - before.stages.keys()}
    assert new == {"score"}


def test_a_raised_version_makes_a_stage_and_all_after_it_anew(project):
    before = project.sweep(CHAIN).sweep
    after = project.sweep(CHAIN.replace('command: "f"', 'command: "f"\n    version: 2')).sweep
    new = {after.stages[digest].stage for digest in after.stages.keys() - before.stages.keys()}
    assert new == {"fit", "score"}


def test_a_new_key_at_its_neutral_value_leaves_digests_as_they_were(project):
    before = project.sweep(CHAIN).sweep
    text = CHAIN.replace("  batch: 4", "  batch: 4\n  dropout: 0.0").replace(
        "reads: [seed, model]", "neutral: {dropout: 0.0}\n    reads: [seed, model, dropout]"
    )
    same, other = project.sweep(text).sweep, project.sweep(text, "dropout=0.1").sweep
    assert same.stages.keys() == before.stages.keys()
    assert next(node for node in same.stages.values() if node.stage == "fit").reads["dropout"] == 0.0
    assert {node.digest for node in other.stages.values() if node.stage == "fit"}.isdisjoint(before.stages)


def test_ids_are_readable_unique_and_columns_are_kept(project):
    cells = project.sweep(CHAIN).sweep.cells
    assert len({cell.id for cell in cells}) == len(cells) == 5
    assert [cell.id.rpartition("-")[0] for cell in cells] == [
        *("none.seed0", "en.seed0", "en.seed1", "en+es.seed0", "en+es.seed1"),
    ]
    assert cells[-1].columns == {"trained_on": ["en", "es"]}


def test_identical_cells_are_merged_and_said_so(project):
    composition = project.sweep(CHAIN.replace('exclude: ["mixture=none seed!=0"]', ""))
    assert len(composition.sweep.cells) == 5
    assert composition.notes == ("1 cell is merged with an identical one: none.seed1 = none.seed0",)


def test_included_cells_are_those_that_match_any_selector(project):
    text = CHAIN.replace("columns:", 'include: ["mixture=none", "model.width=2 seed=1"]\ncolumns:')
    assert [cell.axes for cell in project.sweep(text).sweep.cells] == [
        {"mixture": "none", "seed": "0"},
        {"mixture": "en", "seed": "1"},
        {"mixture": "en+es", "seed": "1"},
    ]


def test_an_exclusion_may_name_a_label_that_the_command_line_narrowed_away(project):
    assert len(project.sweep(CHAIN, "mixture=en").sweep.cells) == 2


def test_excluded_cells_need_not_compose(project):
    text = """
    config: {a: 1, b: "${a}"}
    axes: {a: [1, "${nowhere}"]}
    exclude: ["a=$*"]
    stages: {s: {command: x, reads: [b]}}
    """
    assert len(project.sweep(text).sweep.cells) == 1


def test_a_users_stage_may_be_a_function_beside_the_sweep_file(project):
    source = "def main(config, inputs, context): ...\nraise RuntimeError('must not be imported to plan')\n"
    project.write("elsewhere/my_stage_module.py", source)
    project.write(
        "elsewhere/own.yaml", "config: {a: 1}\nstages: {s: {run: 'my_stage_module:main', reads: [a]}}\n"
    )
    composition = project.compose("elsewhere/own.yaml")
    assert composition.import_paths == (str(project.folder / "elsewhere"), str(project.folder))
    assert composition.source == (project.folder / "elsewhere" / "own.yaml").read_text()
    assert composition.sweep.specs["s"].run == "my_stage_module:main"


def test_a_sweep_without_axes_is_one_cell(project):
    (cell,) = project.sweep("config: {a: 1}\nstages: {s: {command: x, reads: [a]}}").sweep.cells
    assert cell.id.startswith("cell-")


def test_stages_that_ship_here_go_by_name_and_can_be_changed_in_place(project):
    text = "axes: {model: [tiny-qwen3]}\nstages: {tokenizer: , base: {limit_s: 60}}\n"
    specs = project.sweep(text).sweep.specs
    assert specs["base"].name == "base"
    assert specs["base"].limit_s == 60
    assert specs["tokenizer"].limit_s is None


def test_sweeps_are_found_with_their_number_of_cells_and_their_errors(project):
    project.write("sweeps/fine.yaml", CHAIN.replace("config:", "description: fine\nconfig:", 1))
    project.write("sweeps/by_config.yaml", CHAIN.replace("seed!=0", "model.width=2"))
    project.write("sweeps/broken.yaml", "axes: {")
    project.write("sweeps/smoke.yaml", "description: mine\nstages: [count]\n")
    entries = {entry.name: entry for entry in find_sweeps(project.folder)}
    assert (entries["fine"].num_cells, entries["fine"].description, entries["fine"].error) == (
        5,
        "fine",
        None,
    )
    assert entries["by_config"].num_cells is None
    assert "YAML syntax error" in entries["broken"].error
    assert entries["smoke"].description == "mine"


ROW = Path(__file__).parents[1] / "translation" / "en.json"
NEEDS_FOLDERS = {
    "smollm": ["model.path=org/model", "data=generated"],
    "translate_api_calling": [f"source.path={ROW}", "model.name=some-model"],
}
"""Sweeps that read folders of the user's, and what stands in for these here."""


IDENTITIES = {
    "bilingual": "23c6a609fb55ce89",
    "count": "d3ff755b2b3d2bf9",
    "multilingual_220": "3b693f3b51d001e3",
    "multilingual_220_tiny": "a267cc6ddd7fe736",
    "one_model": "7a708bcf105b26e2",
    "smoke": "3c8d3836f2050ad1",
    "smollm": "3139648231a043d9",
    "translate_api_calling": "a23d9f0a3783972f",
}
"""Sweep to a digest of the identities of its cells and stages: changed on purpose only, with a version."""


@pytest.mark.parametrize("name", sorted(path.stem for path in shipped("sweeps").glob("*.yaml")))
def test_a_sweep_that_ships_here_composes_and_has_the_cells_it_expects(project, name):
    if name in NEEDS_FOLDERS:
        with pytest.raises(UserError, match="is not set"):
            project.compose(name)
    composition = project.compose(name, NEEDS_FOLDERS.get(name, []))
    assert composition.sweep.name == name
    assert composition.notes == ()
    chains = "\n".join(f"{cell.id} {' '.join(cell.stage_digests)}" for cell in composition.sweep.cells)
    assert hashlib.sha256(chains.encode()).hexdigest()[:16] == IDENTITIES[name], "its stages would run again"


def test_planning_imports_neither_torch_nor_transformers(project):
    code = (
        "import sys; from orchestrator.compose.main import compose; compose('smoke');"
        "assert not {'torch', 'transformers', 'ray', 'submitit', 'matplotlib'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=project.folder)
    assert done.returncode == 0, done.stderr


def test_two_configs_inside_sweep_files_are_composed_in_turn():
    first, second = Root.inline({"x": 1}, ()), Root.inline({"y": 2}, ())
    assert (first.compose(["x=3"]), second.compose([]), first.compose([])) == ({"x": 3}, {"y": 2}, {"x": 1})
