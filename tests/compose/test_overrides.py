from __future__ import annotations

import json

import pytest

from orchestrator.compose.overrides import run_settings
from orchestrator.errors import UserError

SWEEP = """
description: a small one
expect_cells: 12
axes:
  model: [a, b]
  mix:
    none: {languages: []}
    en: {languages: [en]}
    en+es: {languages: [en, es]}
  seed: "range(0,2)"
stages: {fit: {command: "true", reads: [model, languages, seed, trainer]}}
"""


def labels(composition, axis):
    return list(dict.fromkeys(cell.axes[axis] for cell in composition.sweep.cells))


def test_without_overrides_the_grid_is_the_product_of_the_axes_the_last_fastest(study):
    composition = study.sweep(SWEEP)
    assert [cell.axes for cell in composition.sweep.cells[:3]] == [
        {"model": "a", "mix": "none", "seed": "0"},
        {"model": "a", "mix": "none", "seed": "1"},
        {"model": "a", "mix": "en", "seed": "0"},
    ]
    assert len(composition.sweep.cells) == 12
    assert composition.notes == ()
    assert composition.sweep.description == "a small one"


@pytest.mark.parametrize(
    ("override", "axis", "expected"),
    [
        ("model=b", "model", ["b"]),
        ("model=c,a", "model", ["c", "a"]),
        ("model=glob(?)", "model", ["a", "b", "c"]),
        ("mix=en+es", "mix", ["en+es"]),
        ("mix=en,en+es", "mix", ["en", "en+es"]),
        ("seed=7", "seed", ["7"]),
        ("seed=range(0,3)", "seed", ["0", "1", "2"]),
        ("trainer.lr=1e-3,0.1", "trainer.lr", ["0.001", "0.1"]),
        ("trainer=quick,slow", "trainer", ["quick", "slow"]),
        ("+added=[1,2],null,true", "added", ["1+2", "null", "true"]),
    ],
)
def test_an_override_narrows_replaces_or_adds_an_axis_and_lifts_the_check(study, override, axis, expected):
    text = SWEEP.replace("seed, trainer]", "seed, trainer, added]") if axis == "added" else SWEEP
    composition = study.sweep(text, override)
    assert labels(composition, axis) == expected
    assert f"the command line changed {axis}" in composition.notes[-1]


def test_an_axis_can_be_taken_away(study):
    composition = study.sweep(SWEEP, "~mix", "languages=[sw]")
    assert "mix" not in composition.sweep.cells[0].axes
    assert {tuple(cell.config["languages"]) for cell in composition.sweep.cells} == {("sw",)}


def test_single_values_set_config_keys_and_keep_the_check(study):
    composition = study.sweep(SWEEP, "trainer=slow", "trainer.steps=3", "+note=hello", "~plain")
    config = composition.sweep.cells[0].config
    assert (config["trainer"]["lr"], config["trainer"]["steps"], config["note"]) == (1e-5, 3, "hello")
    assert "plain" not in config
    assert composition.notes == ()


def test_a_mapping_sets_keys_of_a_group_or_merges_into_a_section(study):
    overrides = [
        "trainer={steps:3,warmup:{share:1}}",
        "trainer=slow",
        "plain={one:9}",
        "launcher={workers:2}",
    ]
    composition = study.sweep(SWEEP, *overrides)
    config = composition.sweep.cells[0].config
    assert config["trainer"] == {"lr": 1e-5, "steps": 3, "warmup": {"share": 1, "of": 3}}
    assert config["plain"] == {"one": 9, "two": [1, 2]}
    assert composition.settings.launcher["workers"] == 2


def test_the_command_line_outranks_the_files_overrides_and_axes_outrank_both(study):
    text = "overrides: {trainer: slow, trainer.steps: 5, model: c, depth: 9}\n" + SWEEP.lstrip()
    config = study.sweep(text, "trainer=quick", "depth=8").sweep.cells[0].config
    assert (config["trainer"]["lr"], config["trainer"]["steps"]) == (1e-3, 5)
    assert config["model"]["name"] == "a"
    assert config["depth"] == 8


def test_a_nested_mapping_of_overrides_sets_the_keys_of_a_group(study):
    text = "overrides: {trainer: {steps: 5, warmup: {share: 0.5}}, launcher: {workers: 3}}\n" + SWEEP.lstrip()
    composition = study.sweep(text)
    config = composition.sweep.cells[0].config
    assert config["trainer"]["steps"] == 5
    assert config["trainer"]["warmup"] == {"share": 0.5, "of": 5}
    assert composition.settings.launcher["workers"] == 3


@pytest.mark.parametrize(
    "text", ["text with, commas = and 'quotes'", "back\\slash", "${seed}", "1e-5", "null", ""]
)
def test_text_of_the_files_overrides_stays_the_text_that_it_is(study, text):
    overrides = "overrides: " + json.dumps({"label": text})
    label = study.sweep(overrides + "\n" + SWEEP.lstrip(), "model=a").sweep.cells[0].config["label"]
    assert label == (0 if text == "${seed}" else text)


def test_expect_cells_on_the_command_line_is_checked_even_with_a_changed_axis(study):
    assert len(study.sweep(SWEEP, "model=a", "expect_cells=6").sweep.cells) == 6
    with pytest.raises(UserError) as error:
        study.sweep(SWEEP, "model=a", "expect_cells=7")
    assert "6 cells, 1 fewer than expect_cells: 7" in error.value.what
    assert error.value.allowed == "1 x 3 x 2 - 0 excluded = 6"


def test_engine_settings_are_apart_from_the_cells(study):
    composition = study.sweep(
        SWEEP, "launcher.workers=4", "store.url=/x", "policy.retries.timeout=5", "tracker=store"
    )
    assert composition.settings.launcher["workers"] == 4
    assert composition.settings.store.url == "/x"
    assert composition.settings.policy.retries["timeout"] == 5
    assert composition.settings.policy.retries["preempted"] == 20
    assert composition.sweep == study.sweep(SWEEP).sweep


def test_users_add_launchers_and_change_settings_in_their_own_conf(study):
    study.write("conf/launcher/mine.yaml", "name: mine\nspeed: 3\n")
    study.write("conf/store/default.yaml", "url: /elsewhere\n")
    engine = study.sweep(SWEEP, "launcher=mine").settings
    assert engine.launcher == {"name": "mine", "speed": 3}
    assert run_settings(["policy.lease_s=180"], cwd=study.folder).store.url == "/elsewhere"


def test_conf_beside_the_sweep_outranks_conf_in_the_working_folder_and_both_add_up(study):
    study.write("elsewhere/conf/model/a.yaml", "name: other-a\nwidth: 9\n")
    study.write("elsewhere/own.yaml", SWEEP)
    cells = study.compose("elsewhere/own.yaml").sweep.cells
    assert {cell.config["model"]["name"] for cell in cells} == {"other-a", "b"}


def test_the_sweeps_name_is_its_files_or_the_one_given(study):
    study.write("sweeps/night.yaml", SWEEP)
    assert study.compose("night").sweep.name == "night"
    assert study.compose("night", name="night-2").sweep.name == "night-2"
    with pytest.raises(UserError, match="cannot be the name"):
        study.compose("night", name="../x")


def test_composing_twice_gives_the_same_sweep(study):
    assert study.sweep(SWEEP).sweep == study.sweep(SWEEP).sweep


def test_a_label_may_choose_a_group_and_set_keys_at_once(study):
    text = """
    axes:
      size:
        small: {model: a, trainer.steps: 1}
        large: {model: c, trainer: slow, "+model.deep": true}
    stages: {fit: {command: "true", reads: [model, trainer]}}
    """
    small, large = study.sweep(text).sweep.cells
    assert (small.config["model"]["name"], small.config["trainer"]["steps"]) == ("a", 1)
    assert (large.config["model"]["name"], large.config["trainer"]["steps"]) == ("c", 100)
    assert large.config["model"]["deep"] is True
    assert "deep" not in small.config["model"]


def test_hydra_may_be_in_use_in_the_same_process(study):
    from hydra import compose, initialize_config_dir

    with initialize_config_dir(str(study.folder / "conf"), version_base="1.3"):
        study.sweep(SWEEP)
        assert compose("config", ["seed=5"]).seed == 5
