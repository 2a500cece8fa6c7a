"""Cells composed by patching must be what Hydra itself would have composed."""

from __future__ import annotations

import copy
import random
import time

import pytest
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from orchestrator.compose.axes import KeyValue
from orchestrator.compose.configs import Patched
from orchestrator.compose.root import Root
from orchestrator.errors import UserError

SWEEP = """
overrides: {trainer: slow, depth: 5}
axes:
  model: [a, b]
  task: [math, calls]
  trainer.lr: [1e-3, 0.1, "${seed}"]
  mix:
    none: {languages: []}
    en+es: {languages: [en, es]}
    extra: {languages: [en, "${extras.0}", "${extras.1}"], depth: 7}
    folder: {data.root: elsewhere, languages: ["${task.name}"], plain: {one: 3}}
    task: {data.math.size: 1, data.calls.size: "${trainer.steps}", plain: {two: [9]}}
    other: {model: c, depth: 1}
  seed: range(0,3)
stages:
  fit:
    command: "true"
    reads: [label, chained, items, first, listed, mirror, mirrored, seen, plain, data, languages]
"""

MIX = {
    "none": ["languages=[]"],
    "en+es": ["languages=[en,es]"],
    "extra": ["languages=[en,'${extras.0}','${extras.1}']", "depth=7"],
    "folder": ["data.root=elsewhere", "languages=['${task.name}']", "plain={one:3}"],
    "task": ["data.math.size=1", "data.calls.size='${trainer.steps}'", "plain={two:[9]}"],
    "other": ["model=c", "depth=1"],
}


def by_hydra(folder, overrides):
    with initialize_config_dir(str(folder / "conf"), version_base="1.3"):
        return OmegaConf.to_container(hydra_compose("config", overrides), resolve=True, throw_on_missing=True)


def test_sampled_cells_have_the_config_that_hydra_composes(study):
    cells = study.sweep(SWEEP, "~model").sweep.cells
    assert len(cells) == 2 * 3 * 6 * 3
    for cell in random.Random(0).sample(cells, 24):
        axes = cell.axes
        values = [f"trainer.lr={axes['trainer.lr']}", *MIX[axes["mix"]], f"seed={axes['seed']}"]
        overrides = ["trainer=slow", "depth=5", f"task={axes['task']}", *values]
        assert cell.config == by_hydra(study.folder, overrides), cell.id


def test_a_group_axis_and_value_axes_together_have_the_config_that_hydra_composes(study):
    sweep = (
        "axes: {model: [a, b, c], seed: [3, 4]}\nstages: {s: {command: x, reads: [model, chained, mirrored]}}"
    )
    for cell in study.sweep(sweep, "trainer.lr=0.5,0.25", "+new.key=1,2").sweep.cells:
        axes = cell.axes
        overrides = [
            f"model={axes['model']}",
            f"seed={axes['seed']}",
            f"trainer.lr={axes['trainer.lr']}",
            f"+new.key={axes['new.key']}",
        ]
        assert cell.config == by_hydra(study.folder, overrides)


@pytest.mark.parametrize(
    ("primary", "overrides"),
    [
        ("{defaults: [model: a, _self_], x: 1}", ["x=2", "model=b"]),
        ("{defaults: [model: a, _self_], x: 1}", ["x=2", "hydra.run.dir=elsewhere"]),
        ("{defaults: [model: a, _self_], x: 1}", ["hydra/job_logging=none", "+model@other=b"]),
        ("{defaults: [model: a, _self_], x: 1}", ["~hydra.job.chdir", "++y.z=3"]),
        ("{defaults: [model: a, _self_, override hydra/job_logging: none], x: 1}", ["~x"]),
        ("{defaults: [model: a, _self_, hydra/launcher: x], x: 1}", []),
        ("{defaults: [model: a, _self_], hydra: {job: {name: mine}}, x: '${hydra.job.name}'}", []),
        ("{defaults: [further: here], hydra: {searchpath: ['file://{more}']}}", []),
        ("{defaults: [further: here]}", ["hydra.searchpath=[file://{more}]"]),
        ("{defaults: [further: here]}", []),
        ("{x: 1, hydra: '???'}", ["x=2"]),
        ("{defaults: [model: a, settings], x: '${choice}'}", ["settings.unknown=1"]),
        ("{defaults: [model: a], x: 1}", ["x=1,2"]),
        ("{defaults: [model: a], x: 1}", ["y=1"]),
        ("{defaults: [model: '${x}'], x: a}", ["model=b", "model=c"]),
    ],
)
def test_a_config_that_names_hydra_s_own_section_or_not_is_composed_or_refused_as_by_hydra(
    study, tmp_path, primary, overrides
):
    more = tmp_path / "more"
    (more / "further").mkdir(parents=True)
    (more / "further" / "here.yaml").write_text("found: 1")
    (study.folder / "conf" / "settings.yaml").write_text("# @package hydra.job\nname: set\n")
    (study.folder / "conf" / "own.yaml").write_text(primary.replace("{more}", str(more)))
    overrides = [text.replace("{more}", str(more)) for text in overrides]
    try:
        with initialize_config_dir(str(study.folder / "conf"), version_base="1.3"):
            expected = hydra_compose("own", overrides)
    except Exception:
        with pytest.raises(UserError):
            Root("own", [study.folder / "conf"]).compose(overrides)
    else:
        found = Root("own", [study.folder / "conf"]).compose(overrides)
        assert found == expected
        assert OmegaConf.to_yaml(found) == OmegaConf.to_yaml(expected)  # the order too
        assert OmegaConf.is_struct(found)


VALUES = {
    "seed": st.integers(0, 3),
    "depth": st.sampled_from([1, "${seed}", 2.5, None]),
    "languages": st.sampled_from([["en"], ["en", "es"], ["${task.name}"], ["${extras.1}", "x"]]),
    "data.root": st.sampled_from(["here", "there-${seed}"]),
    "data.math": st.sampled_from([{"size": 4}, {"name": "${task.name}", "size": "${depth}"}]),
    "data.math.size": st.integers(0, 3),
    "data.calls.size": st.sampled_from([1, "${trainer.steps}"]),
    "trainer.lr": st.sampled_from([0.1, 1, "${seed}"]),
    "trainer.steps": st.integers(1, 3),
    "trainer.warmup": st.sampled_from([{"share": 0.5}, {"of": 3}]),
    "plain": st.sampled_from([{"one": 2}, {"two": []}]),
    "model.width": st.integers(1, 3),
    "task.name": st.sampled_from(["math", "calls"]),
    "listed": st.sampled_from([[], ["${seed}"]]),
    "extras": st.just(["de", "sw"]),
    "label": st.sampled_from(["fixed", "${model.name}"]),
}
CELLS = st.lists(
    st.lists(st.sampled_from(sorted(VALUES)), max_size=4, unique=True).flatmap(
        lambda keys: st.tuples(*(st.tuples(st.just(key), VALUES[key]) for key in keys))
    ),
    min_size=1,
    max_size=6,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cells=CELLS)
def test_patching_one_cell_after_another_is_like_patching_each_afresh(study, cells):
    config = _composed(study)
    patched = Patched(copy.deepcopy(config))
    for cell in cells:
        fresh = copy.deepcopy(config)
        for key, value in cell:
            OmegaConf.update(fresh, key, value, merge=True)
        expected = OmegaConf.to_container(fresh, resolve=True, throw_on_missing=True)
        assert patched.resolved([KeyValue(key, value) for key, value in cell]) == expected


_KEPT = {}


def _composed(study):
    if "config" not in _KEPT:
        _KEPT["config"] = Root("config", [study.folder / "conf"]).compose(["trainer=slow"])
    return _KEPT["config"]


def test_cells_share_the_sections_that_do_not_differ(study):
    one, two = study.sweep("axes: {seed: [1, 2]}\nstages: {s: {command: x, reads: [seed]}}").sweep.cells
    assert one.config["data"] is two.config["data"]
    assert one.config["label"] != two.config["label"]


@pytest.mark.parametrize(
    "inline", ["config: {a: 1, b: '${a}', model: x}", "config: {a: 1, b: '${a}', model: [1]}"]
)
def test_an_inline_config_is_composed_without_any_group(study, inline):
    cells = study.sweep(
        f"{inline}\naxes: {{a: [1, 2]}}\nstages: {{s: {{command: x, reads: [b]}}}}"
    ).sweep.cells
    assert [cell.config["b"] for cell in cells] == [1, 2]
    assert set(cells[0].config) == {"a", "b", "model"}


def test_an_inline_config_may_have_a_defaults_list_of_the_users_groups(study):
    text = """
    config: {defaults: [{model: b}, _self_], a: 1}
    axes: {model: [a, c]}
    stages: {s: {command: x, reads: [model]}}
    """
    assert [cell.config["model"]["width"] for cell in study.sweep(text).sweep.cells] == [1, 3]


@pytest.mark.long
def test_ten_thousand_cells_take_less_than_15_s_of_one_core(study):
    text = """
    axes: {model: [a, b], trainer: [quick, slow], mix: {x: {depth: 1}, y: {depth: 3}}, trainer.lr: [1, 2, 3]}
    stages: {s: {command: x, reads: [label, data, mirror, seed, trainer]}}
    """
    before_s = time.process_time()
    cells = study.sweep(text, "trainer.lr=1,2,3,4,5", "seed=range(0,250)").sweep.cells
    assert len(cells) == 10_000
    assert time.process_time() - before_s < 15
