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

OVERRIDES = [
    (["modle=a"], "unknown key 'modle'", "model"),
    (["modle=a,b"], "unknown key 'modle'", "model"),
    (["mixx=en"], "unknown key 'mixx'", "mix"),
    (["trainer.stepz=3"], "unknown key 'trainer.stepz'", "trainer.steps"),
    (["trainer.stepz=3,4"], "unknown key 'trainer.stepz'", "trainer.steps"),
    (["~trainer.stepz"], "unknown key 'trainer.stepz'", "trainer.steps"),
    (["model=aa"], "unknown model 'aa'", "a"),
    (["SEED=1"], "unknown key 'SEED'", "did you mean seed"),
    (["model=a,bb"], "unknown model 'bb'", "b"),
    (["trainer=quik"], "unknown trainer 'quik'", "quick"),
    (["trainer=quik,slow"], "unknown trainer 'quik'", "quick"),
    (["mix=en+e"], "axis 'mix' has no 'en+e'", "en"),
    (["model=glob(z*)"], "has no value", "a, b, c"),
    (["languages=[sw]"], "would change nothing", ""),
    (["launcher=loca"], "unknown launcher 'loca'", "local"),
    (["launcher.workers=1,2"], "cannot be an axis", ""),
    (["policy.leas_s=3"], "unknown key 'policy.leas_s'", "policy.lease_s"),
    (["policy.lease_s=long"], "policy.lease_s is of the wrong type: str ('long')", "float"),
    (["policy.lease_s=-1"], "policy.lease_s is -1", "at least"),
    (["+policy.retries.tiemout=1"], "unknown failure cause 'tiemout'", "timeout"),
    (["policy.grace_s=-1"], "policy.grace_s is -1", "at least"),
    (["policy.limits_s.fit=0"], "policy.limits_s.fit is 0", "more than 0"),
    (["policy.limits_s={fit: .nan}"], "policy.limits_s.fit is nan", "a finite number"),
    (["policy.limits_s.fitt=1"], "unknown stage 'fitt'", "fit"),
    (["store.url="], "names no store", ""),
    (["cluster.name=x"], "unknown key 'cluster.name'", ""),
    (["+api_token=hunter2"], "api_token looks like a secret", ""),
    (["+login={user: me, password: x}"], "login.password looks like a secret", ""),
    (["launcher=ray", "launcher.resources={gpus: 1}"], "launcher.resources is a list, and not a mapping", ""),
    (["launcher=slurm", "launcher.resources.gpus=1"], "launcher.resources is a list, and not a mapping", ""),
    (["launcher.api_key=x"], "launcher.api_key looks like a secret", ""),
    (["+model.HF_TOKEN=x,y"], "model.HF_TOKEN looks like a secret", ""),
    (["seed=interval(0,1)"], "has no list of values", ""),
    (["seed=range(0,3,0)"], "never ends", ""),
    (["seed=range(0,3),7"], "stands among other values", "all values"),
    (["seed=[range(0,3)]"], "stands among other values", "all values"),
    (["+cell=1,2"], "'cell' cannot be the name of an axis", "state, cause"),
    (["seed=choice()"], "is no override", ""),
    (["=3"], "is no override", ""),
    (["model=null"], "model is null", "~KEY"),
    (["trainer=3"], "unknown trainer '3'", "quick"),
    (["~nowhere"], "unknown key 'nowhere'", ""),
    (["a=[1"], "is no override", ""),
    (["expect_cells=many"], "is no number of cells", ""),
    (["expect_cells=5"], "4 cells, 1 fewer than expect_cells: 5", "2 x 2 - 0 excluded = 4"),
    (["hydra.job.name=x"], "Hydra's own settings", ""),
    (["label=${nowhere}"], "nowhere", ""),
    (["label=${oc.env:NOT_SET_ANYWHERE}"], "NOT_SET_ANYWHERE", ""),
    (["data.root=???"], "data.root is not set", ""),
    (["seed=???,1"], "seed is not set", ""),
]


@pytest.mark.parametrize(("overrides", "what", "allowed"), OVERRIDES, ids=lambda value: str(value)[:40])
def test_a_wrong_override_is_refused(study, overrides, what, allowed):
    with pytest.raises(UserError) as error:
        study.sweep(SWEEP, *overrides)
    assert what in error.value.what
    assert allowed in error.value.allowed
    assert "Traceback" not in str(error.value)
    assert len(str(error.value).splitlines()) <= 4


FILES = [
    ("axes: {model: []}", "axis 'model' is empty", ""),
    ("axes: {mix: {}}", "axis 'mix' is empty", ""),
    ("axes: {seed: 3}", "axis 'seed' is 3", "a list"),
    ("axes: {seed: 'range(3,0)'}", "has no value", ""),
    ("axes: {mix: {true: {seed: 1}}}", "has the label True", "a label is text"),
    ("axes: {mix: {a: 3}}", "label 'a' of axis 'mix' is '3'", "key: value"),
    ("axes: {seed: range(0,3)}", "the text 'range(0' for a value", "in quotes"),
    ("axes: {seed: range(3,0,-1)}", "the text 'range(3' for a value", "in quotes"),
    ("axes: {seed: ['range(0,3)']}", "the text 'range(0,3)' for a value", "stands alone"),
    ("axes: {stage: {a: {seed: 1}}}", "'stage' cannot be the name of an axis", "their own cell, sweep"),
    ("axes: {state: {a: {seed: 1}}}", "'state' cannot be the name of an axis", "cause"),
    ("axes: {launcher: [local]}", "cannot be on an axis", ""),
    ("axes: {store.url: [x]}", "cannot be on an axis", ""),
    ("axes: {mix: {a: {policy.lease_s: 3}}}", "cannot be on an axis", ""),
    ("axes: {sead: [1, 2]}", "unknown key 'sead'", "seed"),
    ("axes: {mix: {a: {model: null}}}", "model is null", ""),
    ("axes: {mix: {a: {model: zz}}}", "unknown model 'zz'", "a, b, c"),
    ("axes: {'a b': [1]}", "cannot be the name of an axis", ""),
    ("axes: [seed]", "axes is of the wrong type", "mapping"),
    ("axis: {seed: [1]}", "unknown key 'axis'", "axes"),
    ("expect_cells: four", "expect_cells is of the wrong type", "int"),
    ("overrides: {trainer: quik}", "unknown trainer 'quik'", "quick"),
    ("overrides: {sead: 1}", "unknown key 'sead'", "seed"),
    ("overrides: {store.url: /x}", "the store is not the sweep's to choose", ""),
    ("overrides: {store: {url: /x}}", "the store is not the sweep's to choose", ""),
    ("overrides: ['store.url=/x']", "the store is not the sweep's to choose", ""),
    ("overrides: {+wandb_api_key: x}", "wandb_api_key looks like a secret", ""),
    ("axes: {mix: {a: {+auth_token: x}}}", "auth_token looks like a secret", ""),
    ("overrides: [seed]", "is no override", ""),
    ("overrides: ['seed=1,2']", "has several values", ""),
    ("exclude: ['modle=a']", "unknown key 'modle'", "model"),
    ("exclude: ['model=c']", "unknown model 'c'", "a, b"),
    ("exclude: ['model=a,b']", "no cell is left", "2 - 2 excluded = 0"),
    ("include: ['seed=7']", "no cell is left", "2 - 2 excluded = 0"),
    ("exclude: ['model']", "names a cell by its id", ""),
    ("exclude: ['trainer=quick']", "is a section", ""),
    ("exclude: ['state=failed']", "not known before a launch", ""),
    ("exclude: ['']", "selector is empty", ""),
    ("columns: {size: model.widht}", "unknown config key 'model.widht'", "model.width"),
    ("columns: {attempts: seed}", "'attempts' cannot be the name of a column", "revision"),
    ("columns: {m: model}", "'model', a section of the config", "model.width"),
    ("report: ['no_such_module_here:write']", "no module 'no_such_module_here'", ""),
    ("report: ['orchestrator:']", "unknown report 'orchestrator:'", ""),
    ("report: [acuracy]", "unknown report 'acuracy'", "accuracy"),
    ("columns: {'': seed}", "'' cannot be the name of a column", ""),
    ('columns: {"a\\tb": seed}', "cannot be the name of a column", ""),
    (f"axes: {{{'a' * 300}: [1]}}", "cannot be the name of an axis", ""),
    ('axes: {"a\\a": {x: {seed: 1}}}', "cannot be the name of an axis", ""),
    ("stages: []", "has no stages", ""),
    (f"stages: {{{'s' * 300}: {{command: x}}}}", "cannot be the name of a stage", "at most 128"),
    ("stages: {'fit.': {command: x}}", "'fit.' cannot be the name of a stage", "not ending with a dot"),
    ("stages: {fit: {command: x}, Fit: {command: y}}", "'fit' and 'Fit' differ only in case", ""),
    ("stages: {fit: {command: x, reads: [seed], neutral: {sead: 0}}}", "does not read", "seed"),
    ("stages: {fit: {command: x, reads: [model], neutral: {seed: 0}}}", "does not read", "model"),
    ("stages: {fit: {command: x, reads: [model], neutral: {model.widht: 0}}}", "unknown key", "model.width"),
    ("stages: {fit: {run: 'json:dumps', results: x}}", "stages.fit.results is for commands", ""),
    ('stages: {fit: {command: "x\\0y"}}', "null character", ""),
    *(
        (f"stages: {{fit: {{command: x, results: {path}}}}}", "stages.fit.results is", "the output folder")
        for path in ("/etc/passwd", "../x", "a/../../x", "''", "'.'", "~/x", '"a\\nb"', "x" * 300)
    ),
    ("stages: [trian]", "unknown stage 'trian'", "train"),
    ("stages: [train, train]", "named twice", ""),
    ("stages: {fit: {}}", "unknown stage 'fit'", ""),
    ("stages: {fit: {run: 'a:b', command: x}}", "exactly one of", ""),
    ("stages: {fit: {run: nomodule}}", "stages.fit.run", "module:function"),
    ("stages: {fit: {run: 'no_such_module_here:main'}}", "no module 'no_such_module_here'", ""),
    ("stages: {fit: {run: 'json:dmups'}}", "module 'json' has no 'dmups'", "did you mean dumps"),
    ("stages: {fit: {run: 'json.no_such:main'}}", "no module 'json.no_such'", ""),
    ("stages: {fit: {command: x, red: [a]}}", "unknown key 'stages.fit.red'", "stages.fit.reads"),
    ("stages: {fit: {command: x, reads: seed}}", "stages.fit.reads is of the wrong type", "list"),
    ("stages: {fit: {command: x, reads: [sead]}}", "stage 'fit' reads the unknown key 'sead'", "seed"),
    ("stages: {fit: {command: x, uses: [sead]}}", "stage 'fit' uses the unknown key 'sead'", "seed"),
    ("stages: {fit: {command: x, reads: [seed], uses: [seed]}}", "both reads and uses 'seed'", ""),
    ("stages: {fit: {command: x, each: {l: langages}}}", "unknown key 'langages'", "languages"),
    ("stages: {fit: {command: x, each: {l: seed}}}", "is no list", ""),
    ("stages: {fit: {command: x, after: [prep]}}", "unknown stage 'prep'", "fit"),
    ("stages: {a: {command: x, after: [b]}, b: {command: y, after: [a]}}", "in a circle", ""),
    ("stages: {a: {command: x}, b: {command: x}}", "one and the same", ""),
    ("stages: {a: {command: 'x {inputs.fit}'}}", "asks for {inputs.fit}", ""),
    ("stages: {a: {command: 'x {config.lr}', reads: [seed]}}", "asks for {config.lr}", "seed"),
    ("stages: {a: {command: 'x {ouput}'}}", "asks for the unknown {ouput}", "did you mean output"),
    ("stages: {a: {command: 'x {config}', reads: [seed]}}", "asks for the unknown {config}", "config.seed"),
    ("stages: {a: {command: 'x {output.y}'}}", "asks for the unknown {output.y}", "output"),
    (
        "stages: {a: {command: 'x {config.model.widht}', reads: [model]}}",
        "asks for {config.model.widht}",
        "config.model.width",
    ),
    ("stages: {a: {command: 'x {config.model}', reads: [model]}}", "{config.model}, no single value", ""),
    ("stages: {a: {command: 'x {uses.model.x}', uses: [model]}}", "{uses.model.x}", "uses.model"),
    (
        "stages: {p: {command: 'y', reads: [model], each: {l: languages}},"
        " a: {command: 'x {inputs.p}', after: [p]}}",
        "asks for {inputs.p}",
        "inputs.p.en",
    ),
    ("stages: {a: {command: ''}}", "command of stage 'a' is empty", ""),
    ("stages: {a: {command: '  '}}", "command of stage 'a' is empty", ""),
    ("stages: {a: {command: 'x \"y'}}", "cannot be split: no closing quotation", ""),
    ("stages: {count: {limit_s: 0}}", "stages.count.limit_s is 0", "more than 0"),
    *(
        (f"stages: {{a: {{command: x, reads: [model], uses: [trainer], remedies: {ladder}}}}}", what, allowed)
        for ladder, what, allowed in (
            ("{oom_gup: []}", "unknown cause 'oom_gup'", "oom_gpu"),
            ("{oom_gpu: [{halve: model.width}]}", "'model.width', which the stage reads", "keys of `uses`"),
            ("{oom_gpu: [{set: {model: b}}]}", "'model', which the stage reads", "keys of `uses`"),
            ("{oom_gpu: [{halve: seed}]}", "'seed', which the stage does not use", "trainer"),
            ("{oom_gpu: [{third: trainer.steps}]}", "remedies.oom_gpu[0] is", "halve"),
            ("{oom_gpu: [{halve: trainer.steps, times: 0}]}", "remedies.oom_gpu[0] is", "times"),
            ("{oom_gpu: [{times: 2}]}", "remedies.oom_gpu[0] is", "set"),
            ("{oom_gpu: {halve: trainer.steps}}", "remedies.oom_gpu is of the wrong type", "list"),
        )
    ),
    ("stages: {count: {remedies: {nan: [{halve: seed}]}}}", "'seed', which the stage reads", ""),
    ("stages: {a: {command: x, reads: [seed], alike: [modle]}}", "`alike` the unknown key 'modle'", "model"),
    ("stages: {'a/b': {command: x}}", "cannot be the name of a stage", ""),
    ("stages: {a: {command: x, skip: 'modle=a'}}", "unknown key 'modle'", "model"),
    ("stages: {a: {command: x, skip: 'model=a,b'}}", "every stage of a cell is skipped", ""),
    (
        "stages: {a: {command: x, reads: [folder]}}\nconfig: {folder: /data/x, model: 1}",
        "absolute path",
        "where",
    ),
    ("stages: {a: {command: /bin/x y}}", "the command is the absolute path '/bin/x y'", "where"),
    ("stages: {a: {command: x, reads: [x]}}\nconfig: {x: .nan, model: 1}", "config.x is nan", ""),
    ("stages: {a: {command: x}}\nconfig: {x: '${y}', model: 1}", "'y' not found", ""),
    ("stages: {a: {command: x}}\nconfig: {x: '???', model: 1}", "x is not set", ""),
    ("stages: {a: {command: x}}\nconfig: {defaults: [{modle: a}], model: 1}", "modle/a", ""),
    ("stages: {a: {command: x}}\nconfig: {schema: 'no_such_module_x:C', model: 1}", "no module", ""),
    (
        "stages: {a: {command: x}}\nconfig: {schema: 'orchestrator.errors:UserError', model: 1}",
        "no msgspec",
        "",
    ),
    ("stages: {a: {command: x}}\nconfig: {fingerprints: {a: b}, model: 1}", "fingerprints is", ""),
]


@pytest.mark.parametrize(("text", "what", "allowed"), FILES, ids=lambda value: str(value)[:50])
def test_a_wrong_sweep_file_is_refused(study, text, what, allowed):
    lines = {"axes": "axes: {model: [a, b]}", "stages": "stages: {s: {command: x, reads: [model, seed]}}"}
    for part in text.splitlines():
        lines.pop(part.partition(":")[0], None)
    with pytest.raises(UserError) as error:
        study.sweep("\n".join([*lines.values(), text]))
    assert what in error.value.what
    assert allowed in error.value.allowed
    assert len(str(error.value).splitlines()) <= 4


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
