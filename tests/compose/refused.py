# ruff: noqa: E501 - each sweep file is one line
"""Sweep files and overrides that are refused; recorded/ has the whole text of each error."""

from __future__ import annotations

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
    ["modle=a"],
    ["modle=a,b"],
    ["mixx=en"],
    ["trainer.stepz=3"],
    ["trainer.stepz=3,4"],
    ["~trainer.stepz"],
    ["model=aa"],
    ["SEED=1"],
    ["model=a,bb"],
    ["trainer=quik"],
    ["trainer=quik,slow"],
    ["mix=en+e"],
    ["model=glob(z*)"],
    ["languages=[sw]"],
    ["launcher=loca"],
    ["launcher.workers=1,2"],
    ["policy.leas_s=3"],
    ["policy.lease_s=long"],
    ["policy.lease_s=-1"],
    ["+policy.retries.tiemout=1"],
    ["policy.grace_s=-1"],
    ["policy.limits_s.fit=0"],
    ["policy.limits_s={fit: .nan}"],
    ["policy.limits_s.fitt=1"],
    ["store.url="],
    ["cluster.name=x"],
    ["+api_token=hunter2"],
    ["+login={user: me, password: x}"],
    ["launcher=ray", "launcher.resources={gpus: 1}"],
    ["launcher=slurm", "launcher.resources.gpus=1"],
    ["launcher.api_key=x"],
    ["+model.HF_TOKEN=x,y"],
    ["seed=interval(0,1)"],
    ["seed=range(0,3,0)"],
    ["seed=range(0,3),7"],
    ["seed=[range(0,3)]"],
    ["+cell=1,2"],
    ["seed=choice()"],
    ["=3"],
    ["model=null"],
    ["trainer=3"],
    ["~nowhere"],
    ["a=[1"],
    ["expect_cells=many"],
    ["expect_cells=5"],
    ["hydra.job.name=x"],
    ["label=${nowhere}"],
    ["label=${oc.env:NOT_SET_ANYWHERE}"],
    ["data.root=???"],
    ["seed=???,1"],
]

FILES = [
    "app: ''",
    "app: '-m'",
    "app: nothing.py",
    "app: 'nothing.py \"x'",
    "app: {script: nothing.py, volatil: [a]}",
    "app: {volatile: [a]}",
    "app: 'own.yaml seed=3'",
    "app: own.yaml\nconfig: {seed: 1}",
    "app: [x]",
    "axes: {model: []}",
    "axes: {mix: {}}",
    "axes: {seed: 3}",
    "axes: {seed: 'range(3,0)'}",
    "axes: {mix: {true: {seed: 1}}}",
    "axes: {mix: {a: 3}}",
    "axes: {seed: range(0,3)}",
    "axes: {seed: range(3,0,-1)}",
    "axes: {seed: ['range(0,3)']}",
    "axes: {stage: {a: {seed: 1}}}",
    "axes: {state: {a: {seed: 1}}}",
    "axes: {launcher: [local]}",
    "axes: {store.url: [x]}",
    "axes: {mix: {a: {policy.lease_s: 3}}}",
    "axes: {sead: [1, 2]}",
    "axes: {mix: {a: {model: null}}}",
    "axes: {mix: {a: {model: zz}}}",
    "axes: {'a b': [1]}",
    "axes: [seed]",
    "axis: {seed: [1]}",
    "expect_cells: four",
    "overrides: {trainer: quik}",
    "overrides: {sead: 1}",
    "overrides: {store.url: /x}",
    "overrides: {store: {url: /x}}",
    "overrides: ['store.url=/x']",
    "overrides: {+wandb_api_key: x}",
    "axes: {mix: {a: {+auth_token: x}}}",
    "overrides: [seed]",
    "overrides: ['seed=1,2']",
    "exclude: ['modle=a']",
    "exclude: ['model=c']",
    "exclude: ['model=a,b']",
    "include: ['seed=7']",
    "exclude: ['model']",
    "exclude: ['trainer=quick']",
    "exclude: ['state=failed']",
    "exclude: ['']",
    "columns: {size: model.widht}",
    "columns: {attempts: seed}",
    "columns: {m: model}",
    "report: ['no_such_module_here:write']",
    "report: ['orchestrator:']",
    "report: [acuracy]",
    "columns: {'': seed}",
    'columns: {"a\\tb": seed}',
    'axes: {"a\\a": {x: {seed: 1}}}',
    "stages: []",
    "stages: {'fit.': {command: x}}",
    "stages: {fit: {command: x}, Fit: {command: y}}",
    "stages: {fit: {command: x, reads: [seed], neutral: {sead: 0}}}",
    "stages: {fit: {command: x, reads: [model], neutral: {seed: 0}}}",
    "stages: {fit: {command: x, reads: [model], neutral: {model.widht: 0}}}",
    "stages: {fit: {run: 'json:dumps', results: x}}",
    'stages: {fit: {command: "x\\0y"}}',
    "stages: {fit: {command: x, results: /etc/passwd}}",
    "stages: {fit: {command: x, results: ../x}}",
    "stages: {fit: {command: x, results: a/../../x}}",
    "stages: {fit: {command: x, results: ''}}",
    "stages: {fit: {command: x, results: '.'}}",
    "stages: {fit: {command: x, results: ~/x}}",
    'stages: {fit: {command: x, results: "a\\nb"}}',
    "stages: [trian]",
    "stages: [train, train]",
    "stages: {fit: {}}",
    "stages: {fit: {run: 'a:b', command: x}}",
    "stages: {fit: {run: nomodule}}",
    "stages: {fit: {run: 'no_such_module_here:main'}}",
    "stages: {fit: {run: 'json:dmups'}}",
    "stages: {fit: {run: 'json.no_such:main'}}",
    "stages: {fit: {command: x, red: [a]}}",
    "stages: {fit: {command: x, reads: seed}}",
    "stages: {fit: {command: x, reads: [sead]}}",
    "stages: {fit: {command: x, uses: [sead]}}",
    "stages: {fit: {command: x, reads: [seed], uses: [seed]}}",
    "stages: {fit: {command: x, each: {l: langages}}}",
    "stages: {fit: {command: x, each: {l: seed}}}",
    "stages: {fit: {command: x, after: [prep]}}",
    "stages: {a: {command: x, after: [b]}, b: {command: y, after: [a]}}",
    "stages: {a: {command: x}, b: {command: x}}",
    "stages: {a: {command: 'x {inputs.fit}'}}",
    "stages: {a: {command: 'x {config.lr}', reads: [seed]}}",
    "stages: {a: {command: 'x {ouput}'}}",
    "stages: {a: {command: 'x {config}', reads: [seed]}}",
    "stages: {a: {command: 'x {output.y}'}}",
    "stages: {a: {command: 'x {config.model.widht}', reads: [model]}}",
    "stages: {a: {command: 'x {config.model}', reads: [model]}}",
    "stages: {a: {command: 'x {uses.model.x}', uses: [model]}}",
    "stages: {p: {command: 'y', reads: [model], each: {l: languages}}, a: {command: 'x {inputs.p}', after: [p]}}",
    "stages: {a: {command: ''}}",
    "stages: {a: {command: '  '}}",
    "stages: {a: {command: 'x \"y'}}",
    "stages: {count: {limit_s: 0}}",
    "stages: {a: {command: x, reads: [model], uses: [trainer], remedies: {oom_gup: []}}}",
    "stages: {a: {command: x, reads: [model], uses: [trainer], remedies: {oom_gpu: [{halve: model.width}]}}}",
    "stages: {a: {command: x, reads: [model], uses: [trainer], remedies: {oom_gpu: [{set: {model: b}}]}}}",
    "stages: {a: {command: x, reads: [model], uses: [trainer], remedies: {oom_gpu: [{halve: seed}]}}}",
    "stages: {a: {command: x, reads: [model], uses: [trainer], remedies: {oom_gpu: [{third: trainer.steps}]}}}",
    "stages: {a: {command: x, reads: [model], uses: [trainer], remedies: {oom_gpu: [{halve: trainer.steps, times: 0}]}}}",
    "stages: {a: {command: x, reads: [model], uses: [trainer], remedies: {oom_gpu: [{times: 2}]}}}",
    "stages: {a: {command: x, reads: [model], uses: [trainer], remedies: {oom_gpu: {halve: trainer.steps}}}}",
    "stages: {count: {remedies: {nan: [{halve: seed}]}}}",
    "stages: {a: {command: x, reads: [seed], alike: [modle]}}",
    "stages: {'a/b': {command: x}}",
    "stages: {a: {command: x, skip: 'modle=a'}}",
    "stages: {a: {command: x, skip: 'model=a,b'}}",
    "stages: {a: {command: x, reads: [folder]}}\nconfig: {folder: /data/x, model: 1}",
    "stages: {a: {command: /bin/x y}}",
    "stages: {a: {command: x, reads: [x]}}\nconfig: {x: .nan, model: 1}",
    "stages: {a: {command: x}}\nconfig: {x: '${y}', model: 1}",
    "stages: {a: {command: x}}\nconfig: {x: '???', model: 1}",
    "stages: {a: {command: x}}\nconfig: {defaults: [{modle: a}], model: 1}",
    "stages: {a: {command: x}}\nconfig: {schema: 'no_such_module_x:C', model: 1}",
    "stages: {a: {command: x}}\nconfig: {schema: 'orchestrator.errors:UserError', model: 1}",
    "stages: {a: {command: x}}\nconfig: {fingerprints: {a: b}, model: 1}",
]

WHEN = {
    "an unknown axis": "{momentun: optimizer=sgd}",
    "an unknown axis in a condition": "{momentum: optimiser=sgd}",
    "a config key in a condition": "{momentum: size=small}",
    "an unknown value": "{momentum: optimizer=sgdd}",
    "an unknown value of its own": "{momentum=0.2: optimizer=sgd}",
    "itself": "{momentum: momentum=0.1}",
    "a circle": "{momentum: seed=0, seed: momentum=0.1}",
    "nowhere": "{momentum: 'optimizer=sgd optimizer=adam'}",
    "a value that counts nowhere": "{momentum=0.9: seed!=0 seed!=1}",
    "no value": "{momentum: optimizer}",
    "two axes": "{momentum=0.1 seed=0: optimizer=sgd}",
    "nothing": "{momentum: ''}",
}

SEARCHES = {
    "axes beside it": (
        "axes: {layers: [1, 2]}\n",
        "space: {opt: [sgd, adam], lr: {low: 1e-5, high: 0.1, log: true}, momentum: {low: 0.0, high: 0.99}}",
    ),
    "rungs": (
        "rungs: {stage: fit, key: layers, at: [1, 2], keep: 1/2, metric: loss, mode: min}\n",
        "space: {opt: [sgd, adam], lr: {low: 1e-5, high: 0.1, log: true}, momentum: {low: 0.0, high: 0.99}}",
    ),
    "a range wider than a float": ("", "space: {lr: {low: -1.7e308, high: 1.7e308}}"),
    "exclusions": (
        "exclude: [opt=sgd]\n",
        "space: {opt: [sgd, adam], lr: {low: 1e-5, high: 0.1, log: true}, momentum: {low: 0.0, high: 0.99}}",
    ),
    "no space": ("", "space: {}"),
    "an unknown key": ("", "space: {lrr: {low: 0.0, high: 1}}"),
    "an unknown sampler": (
        "",
        "sampler: grid, space: {opt: [sgd, adam], lr: {low: 1e-5, high: 0.1, log: true}, momentum: {low: 0.0, high: 0.99}}",
    ),
    "a range the wrong way round": ("", "space: {lr: {low: 1, high: 0.5}}"),
    "a logarithm of zero": ("", "space: {lr: {low: 0, high: 1.5, log: true}}"),
    "a step of a logarithm": ("", "space: {lr: {low: 1, high: 9, log: true, step: 2}}"),
    "a step that is too large": ("", "space: {lr: {low: 1, high: 9, step: 10}}"),
    "a range of text": ("", "space: {lr: {low: a, high: b}}"),
    "a word that is Optuna's no more": ("", "space: {lr: {low: 1, high: 2, q: 1}}"),
    "too few points": ("", "space: {layers: {low: 1, high: 4}, opt: [sgd, adam]}"),
    "an engine setting": ("", "space: {policy.breaker: {low: 1, high: 90}}"),
    "a list of nothing": ("", "space: {opt: []}"),
}

EQUAL = [
    *("seed: [1, 1]", "seed: [1, 1.0]", "seed: [true, True]", "seed: ['1', 1]", "seed: [[1, 2], [1, 2.0]]"),
    *("seed: [null, ~]", "opt: [{lr: 1}, {lr: 1.0}]", "seed: ['a+b', [a, b]]"),
]
LABELLED: list[tuple[str, list[str]]] = [
    ("opt.lr: [0.1], recipe: {small: {opt.lr: 0.5}, large: {opt.lr: 0.05}}", []),
    ("recipe: {small: {opt.lr: 0.5}, large: {opt.lr: 0.05}}, opt.lr: [0.1]", []),
    (
        "recipe: {small: {opt.lr: 0.5}, large: {opt.lr: 0.05}}, other: {a: {opt.lr: 1}}",
        [],
    ),
    ("opt: [{lr: 0.5}, {lr: 0.05}], opt.lr: [0.1]", []),
    ("opt.lr: [0.1], opt: [{lr: 0.5, momentum: 0}]", []),
    ("opt: [null], opt.lr: [0.1]", []),
    ("opt.lr: [0.1], recipe: {a: {opt: {lr: 0.5}}}", []),
    ("opt.lr: [0.1], recipe: {a: {++opt.lr: 0.5}}", []),
    (
        "recipe: {small: {opt.lr: 0.5}, large: {opt.lr: 0.05}}",
        ["opt.lr=0.1,0.2"],
    ),
    (
        "recipe: {small: {opt.lr: 0.5}, large: {opt.lr: 0.05}}",
        ["+opt.lr=0.1,0.2"],
    ),
    ("seed: [1]", ["opt={lr:1},{lr:2}", "opt.lr=0.1,0.2"]),
    *((axes, []) for axes in EQUAL),
]
OPTIMIZERS = """
config: {optimizer: sgd, momentum: 0.5, clip: null, size: small, seed: 0}
stages: {fit: {command: 'echo {args}', reads: [optimizer, momentum, clip, size, seed]}}
axes: {optimizer: [sgd, adam], momentum: [0.1, 0.9], seed: [0, 1]}
"""
SEARCH = """
config: {opt: sgd, lr: 0.1, momentum: 0.0, layers: 2}
stages: {fit: {command: 'echo {args}', reads: [opt, lr, momentum, layers]}}
"""
LABELS = """
config: {opt: {lr: 0.0, momentum: 0.9}, base: 0.5, seed: 0, trainer: x}
stages: {fit: {command: 'echo {config.opt.lr}', reads: [opt, seed]}}
"""
STAGES = """
config: {seed: 0, lr: 0.1, width: 4, steps: 9}
stages:
  fit: {command: "fit {config.steps} {resume}", reads: [seed, lr, width, steps], checkpoints: c}
  score: {command: "s", reads: [seed], after: [fit]}
"""
_TUNE = "{name: tune, axes: {lr: [0.1, 0.2], seed: [7, 8]}, select: {metric: loss, mode: min, mean: [seed]}}"
PHASES: list[tuple[str, list[str]]] = [
    *(
        (f"phases: [{first}, {second}]", words)
        for first, second, words in (
            (_TUNE, "{name: confirm, axes: {seed: [1]}}", ["expect_cells=2"]),
            (_TUNE, "{name: confirm, axes: {seed: [1]}}", ["expect_cells=4"]),
            (_TUNE, "{name: confirm, axes: {seed: [1]}}", ["max_cells=3"]),
            (_TUNE, "{name: confirm, axes: {seed: [1]}}", ["steps=3,4"]),
            (_TUNE, "{name: confirm, axes: {seed: [1]}}", ["lr=0.1"]),
            (_TUNE, "{name: confirm, axes: {seed: [1]}}", ["phase=tune"]),
            (_TUNE, "{name: confirm, overrides: {lr: 3}}", []),
            (_TUNE, "{name: tune, axes: {seed: [1]}}", []),
            (_TUNE, "{axes: {seed: [1]}}", []),
            (_TUNE, "{name: confirm, axes: {lr: [3]}}", []),
            (_TUNE, "{name: confirm, axes: {phase: [3]}}", []),
            (_TUNE, "{name: confirm, axes: {seed: [1]}, when: {seed: width=3}}", []),
            (_TUNE, "{name: confirm, exclude: ['lr=0.1', 'lr=0.2']}", []),
            (_TUNE, "{name: confirm, select: {metric: loss, mode: min}}", []),
            ("{name: tune, axes: {lr: [1, 2]}}", "{name: confirm, axes: {seed: [1]}}", []),
            (_TUNE.replace("mean: [seed]", "mean: [width]"), "{name: confirm, axes: {seed: [1]}}", []),
            (_TUNE.replace("mean: [seed]", "per: [width]"), "{name: confirm, axes: {seed: [1]}}", []),
            (_TUNE.replace("mean: [seed]", "mean: [seed], per: [seed]"), "{name: confirm}", []),
            (_TUNE.replace("mean: [seed]", "top: 9"), "{name: confirm, axes: {seed: [1]}}", []),
            (_TUNE.replace("mean: [seed]", "top: 0"), "{name: confirm, axes: {seed: [1]}}", []),
            (_TUNE.replace("mean: [seed]", "stage: nofit"), "{name: confirm, axes: {seed: [1]}}", []),
            (_TUNE.replace("mode: min", "mode: mean"), "{name: confirm, axes: {seed: [1]}}", []),
            (_TUNE.replace("name: tune", "name: 'a b'"), "{name: confirm, axes: {seed: [1]}}", []),
            (_TUNE, "{name: confirm, selects: 1}", []),
        )
    ),
    (f"phases: [{_TUNE}]", []),
    ("phases: []", []),
    (f"axes: {{lr: [1]}}\nphases: [{_TUNE}]", []),
]
RUNGS: list[tuple[str, list[str]]] = [
    *(
        (f"axes: {{lr: [1, 2, 3], seed: [1, 2]}}\nrungs: {{{rungs}}}", words)
        for rungs, words in (
            ("stage: fit, key: steps, at: [1, 3, 9], keep: 1/3, metric: loss, mode: min", []),
            ("stage: fit, key: steps, at: [1, 3, 9], keep: 0.5, metric: loss, mode: min", ["steps=3"]),
            ("stage: fit, key: steps, at: [1, 3, 9], keep: 0.5, metric: loss, mode: min", ["steps=3,4"]),
            ("stage: fit, key: steps, at: [1, 3], keep: 0.5, metric: loss, mode: min", []),
            ("stage: fitt, key: steps, at: [1, 9], keep: 0.5, metric: loss, mode: min", []),
            ("stage: fit, key: stepz, at: [1, 9], keep: 0.5, metric: loss, mode: min", []),
            ("stage: score, key: steps, at: [1, 9], keep: 0.5, metric: loss, mode: min", []),
            ("stage: score, key: seed, at: [1, 9], keep: 0.5, metric: loss, mode: min", []),
            ("stage: fit, key: lr, at: [1, 9], keep: 0.5, metric: loss, mode: min", []),
            ("stage: fit, key: steps, at: [9, 1], keep: 0.5, metric: loss, mode: min", []),
            ("stage: fit, key: steps, at: [1], keep: 0.5, metric: loss, mode: min", []),
            ("stage: fit, key: steps, at: [1, 9], keep: 0, metric: loss, mode: min", []),
            ("stage: fit, key: steps, at: [1, 9], keep: 1.5, metric: loss, mode: min", []),
            ("stage: fit, key: steps, at: [1, 9], keep: 1/0, metric: loss, mode: min", []),
            ("stage: fit, key: steps, at: [1, 9], keep: half, metric: loss, mode: min", []),
            ("stage: fit, key: steps, at: [1, 9], keep: 1/2, metric: loss, mode: min, per: [width]", []),
            ("stage: fit, key: steps, at: [1, 9], keep: 1/2, metric: loss, mode: min, mean: [seed]", []),
            ("stage: fit, key: steps, at: [1, 9], keep: 1/2, metric: loss", []),
        )
    ),
]
