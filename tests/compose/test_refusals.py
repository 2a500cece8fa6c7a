"""Whatever is wrong ends as a `UserError` that names it, with the nearest names."""

from __future__ import annotations

import contextlib
import warnings

import pytest

from orchestrator.compose.overrides import run_settings
from orchestrator.errors import UserError

SWEEP = """
expect_cells: 4
axes:
  model: [a, b]
  mix:
    none: {languages: []}
    en: {languages: [en]}
columns: {languages: languages}
stages: {fit: {command: "true", reads: [model, languages, seed]}}
"""


def test_the_name_of_an_axis_is_not_offered_for_itself(project):
    with pytest.raises(UserError) as error:
        project.sweep("config: {a: 1}\naxes: {b: [1]}\nstages: {s: {command: x, reads: [a]}}")
    assert error.value.what == "unknown key 'b'"
    assert "did you mean" not in error.value.allowed


def test_what_only_sounds_like_a_secret_is_fine(project):
    keys = ["max_new_tokens", "block_tokens", "tokenizer", "pad_token", "mask_token", "monkey"]
    overrides = [f"+{key}=1" for key in keys] + ["+password=null"]
    config = project.sweep("config: {a: 1}\nstages: {s: {command: x, reads: [a]}}", *overrides).sweep
    assert set(keys) < set(config.cells[0].config)


@pytest.mark.parametrize(
    ("source", "is_found"),
    [
        ("def main(config, inputs, context): ...", True),
        ("from json import dumps as main", True),
        ("if True:\n    (main, *rest) = [print]", True),
        ("def make():\n    global main\n    main = print\nmake()", True),
        ("globals()['main'] = print", True),
        ("import sys\nsetattr(sys.modules[__name__], 'main', print)", True),
        ("from json import *", True),
        ("def __getattr__(name): ...", True),
        ("pattern = '\\d'\ndef main(config, inputs, context): ...", True),
        ("def mian(config, inputs, context): ...", False),
        ("import torch_of_a_gpu_node\nclass Main: ...", False),
        ("def main(config:", False),
    ],
)
def test_a_function_is_looked_for_in_the_source_and_nothing_is_imported(project, source, is_found):
    project.write("fit.py", f"{source}\nraise AssertionError('imported')\n")
    warnings.simplefilter("error")  # for this test; the source of users has warnings
    with contextlib.nullcontext() if is_found else pytest.raises(UserError, match="runs 'fit:main', but"):
        project.sweep("config: {a: 1}\nstages: {s: {run: 'fit:main', reads: [a]}}")


def test_a_work_folder_is_refused_over_a_bucket_however_that_is_named(project, monkeypatch):
    text = "config: {a: 1}\nstages: {s: {command: 'x {work}', reads: [a]}}"
    with pytest.raises(UserError, match="does not keep"):
        project.sweep(text, "store.url=s3://bucket/x")
    monkeypatch.setenv("SWEEP_STORE", "s3://bucket/x")
    with pytest.raises(UserError, match="does not keep"):
        project.sweep(text)
    project.sweep(text, "store.url=runs")


def test_every_placeholder_that_a_worker_fills_in_is_fine(project):
    composed = project.sweep("""
        config: {a: {b: 1}, d: 2, l: [x]}
        stages:
          p: {command: "echo {print this} {} {1}", reads: [d], each: {v: l}}
          s:
            command: "x {output} {scratch} {checkpoints} {resume}-{attempt}
              {config.a.b} {uses.d} {inputs.p.x}"
            reads: [a]
            uses: [d]
            after: [p]
    """)
    assert [instance.stage for instance in composed.sweep.stages.values()] == ["p", "s"]
    assert "{config.a.b} {uses.d} {inputs.p.x}" in (composed.sweep.specs["s"].command or "")


def test_bad_yaml_names_file_and_line(study):
    with pytest.raises(UserError) as error:
        study.sweep("description: x\naxes: {seed: [1, 2\nstages: [count]\n")
    assert "YAML syntax error" in error.value.what
    assert error.value.where.startswith("own.yaml, line 3")


def test_bad_yaml_in_a_config_names_file_and_line(study):
    study.write("conf/model/a.yaml", "name: a\n  width: 3\n")
    with pytest.raises(UserError) as error:
        study.sweep(SWEEP)
    assert "YAML syntax error" in error.value.what
    assert "conf/model/a.yaml" in error.value.where
    assert "line 2" in error.value.where


@pytest.mark.parametrize("text", ["", "- a", "a", "{a: b}: c", "a: 1\na: 2", "\0"])
def test_what_is_no_mapping_of_a_sweep_is_refused(study, text):
    with pytest.raises(UserError):
        study.sweep(text)


def test_unknown_sweeps_and_paths_are_refused_with_the_nearest(study):
    study.write("sweeps/night.yaml", SWEEP)
    with pytest.raises(UserError) as error:
        study.compose("nigt")
    assert "night" in error.value.allowed
    with pytest.raises(UserError) as error:
        study.compose("sweeps/nigth.yaml")
    assert "night.yaml" in error.value.allowed


def test_reading_verbs_refuse_overrides_that_are_no_engine_settings(study):
    with pytest.raises(UserError, match="'seed' is no engine setting"):
        run_settings(["seed=3"], cwd=study.folder)


def test_a_group_that_the_defaults_list_lacks_is_refused(study):
    study.write("conf/extra/x.yaml", "a: 1\n")
    with pytest.raises(UserError):
        study.sweep(SWEEP, "extra=x")
