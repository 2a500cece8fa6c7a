"""Sweep files and overrides that are composed; recorded/ has their cells, stages, notes and settings."""

from __future__ import annotations

STUDY = """
description: a small one
expect_cells: 12
axes:
  model: [a, b]
  mix:
    none: {languages: []}
    en: {languages: [en]}
    en+es: {languages: [en, es]}
  seed: "range(0,2)"
stages: {fit: {command: "true", reads: [model, languages, seed, trainer, items, label]}}
"""

CHAIN = """
config: {seed: 0, languages: [en, es], model: {name: m, width: 2, path: null}, batch: 4, metric: acc}
axes:
  mixture: {none: {languages: []}, en: {languages: [en]}, en+es: {languages: [en, es]}}
  seed: [0, 1]
columns: {trained_on: languages, width: model.width}
stages:
  prepare: {command: "p", reads: [model.name], each: {language: languages}, skip: languages=}
  check: {command: c, reads: [model.name], after: [prepare], each: {language: languages}, skip: mixture=none}
  fit:
    command: "f {config.seed} {uses.batch}"
    reads: [seed, model]
    uses: [model.width, batch]
    after: [prepare, check]
    skip: mixture=none
    remedies: {oom_gpu: [{halve: batch, times: 2}]}
  score: {command: "s", reads: [metric], after: [fit], results: rows.jsonl}
"""

WHEN = """
config: {optimizer: sgd, momentum: 0.5, clip: null, size: small, seed: 0}
axes: {clip: [1, 2], momentum: [0.1, 0.9], optimizer: [sgd, adam]}
when: {clip: momentum=0.9, momentum: optimizer=sgd}
stages: {fit: {command: 'echo {args}', reads: [optimizer, momentum, clip, size, seed]}}
"""

PHASES = """
config: {seed: 0, lr: 0.1, width: 4, name: "${lr}-${width}", model: small, steps: 1}
stages:
  fit: {command: "echo {uses.steps}", reads: [seed, lr, width, name, model], uses: [steps], checkpoints: x}
  score: {command: "s", reads: [seed], after: [fit]}
overrides: {width: 5}
phases:
  - name: tune
    axes: {model: [small, large], lr: [0.1, 0.2], width: [1, 2], seed: [7, 8]}
    when: {width: model=large}
    exclude: [lr=0.2 width=2]
    select: {metric: loss, mode: min, per: [model], mean: [seed], top: 2}
  - name: confirm
    overrides: {steps: 8}
    axes: {seed: "range(0,3)"}
    include: ["seed=0,1"]
"""

RUNGS = """
config: {seed: 0, lr: 0.1, steps: 27}
axes: {lr: [0.1, 0.2, 0.3, 0.4, 0.5, 0.6], seed: [1, 2]}
rungs: {stage: fit, key: steps, at: [3, 9, 27], keep: 1/3, metric: loss, mode: max}
stages:
  fit: {command: "fit {config.steps} {resume}", reads: [lr, seed, steps], checkpoints: "{output}/c"}
  score: {command: "s", reads: [seed], after: [fit]}
"""

SEARCH = """
config: {opt: sgd, lr: 0.1, momentum: 0.0, layers: 2, tag: 'run-${lr}', twice: [1, '${lr}']}
search:
  {metric: loss, mode: min, num_cells: 9, batch: 3, seed: 3,
   space: {opt: [sgd, adam], lr: {low: 1e-5, high: 0.1, log: true},
           momentum: {low: 0.0, high: 0.99, step: 0.33},
           layers: {low: 1, high: 4}}}
when: {momentum: opt=sgd}
columns: {rate: lr}
stages: {fit: {command: 'echo {args}', reads: [opt, lr, momentum, layers, tag, twice]}}
"""

OWN = """
config: {opt: {lr: 0.0, momentum: 0.9}, base: 0.5, seed: 0, words: [1]}
axes: {recipe: {small: {opt.lr: 0.5}, large: {opt.lr: "${base}"}}, seed: [1, true, "01", null, "", a b]}
exclude: [recipe=large seed!=1]
stages: {fit: {command: 'echo {config.opt.lr}', reads: [opt, seed]}}
"""

COMPOSED = {
    "a study": (STUDY, []),
    "a study, narrowed": (STUDY, ["model=c,a", "mix=en,en+es", "seed=7", "trainer=slow", "trainer.steps=3"]),
    "a study, with other axes": (
        STUDY,
        ["~mix", "languages=[sw]", "model=b", "trainer.lr=1e-3,0.1", "~plain", "+note=x"],
    ),
    "a study, with globs and choices": (
        STUDY,
        ["model=glob(?)", "trainer=choice(quick,slow)", "seed=0", "mix=en"],
    ),
    "settings of the engine": (
        STUDY,
        [
            *(
                "launcher=slurm",
                "launcher.resources=[{gpus: 2, hours: 1:30}]",
                "policy.lease_s=7",
                "model=a",
                "mix=en",
            ),
            *(
                "policy.limits_s.fit=9",
                "tracker=[wandb,mlflow]",
                "store.url=/x",
                "seed=1,2",
                "cluster.max_hours=2",
            ),
        ],
    ),
    "overrides of the file": (
        "overrides: {trainer: {steps: 5, warmup: {share: 0.5}}, launcher: {workers: 3}, depth: 8}\n"
        + STUDY.lstrip(),
        ["model=a", "seed=0", "depth=9"],
    ),
    "overrides of the file, as a list": (
        "overrides: ['trainer=slow', 'label=a b', '~plain', '+more={a:1}']\n" + STUDY.lstrip(),
        ["model=b", "mix=none", "expect_cells=2"],
    ),
    "a chain": (CHAIN, []),
    "a part of a chain": (CHAIN, ["mixture=en", "batch=8", "metric=f1", "model.path=x"]),
    "conditions": (WHEN, []),
    "conditions, narrowed": (WHEN, ["optimizer=adam,lion", "seed=3,4"]),
    "phases": (PHASES, []),
    "phases, narrowed": (PHASES, ["seed=1", "model=large", "lr=0.2,0.3", "steps=2"]),
    "rungs": (RUNGS, ["expect_cells=12"]),
    "a search": (SEARCH, []),
    "a search, at random": (SEARCH, ["search.sampler=random", "search.num_cells=4", "opt=adam"]),
    "a search, narrowed": (
        SEARCH,
        ["~momentum", "momentum=0.5", "lr=0.01,0.02", "search.mode=max", "search.batch=2"],
    ),
    "labels": (OWN, []),
    "words of YAML 1.1": (
        "config: {a: x, b: 0}\naxes: {a: [no, 010, 12:30, 1e-3, 0o17], b: [1, 2]}\n"
        "stages: {s: {command: x, reads: [a, b]}}",
        ["b=0x10"],
    ),
    "labels, merged": (OWN.replace("reads: [opt, seed]", "reads: [opt]"), []),
    "a single cell": (
        "config: {a: 1}\nstages: {s: {command: 'x {output}', reads: [a], limit_s: 3, version: 2}}",
        [],
    ),
}
"""Name to a sweep file and overrides."""

GIVEN = [
    (None, "python fit.py --lr {lr} {x}", ["lr=0.1,0.2", "x=a", "policy.lease_s=3", "expect_cells=2"], {}),
    (
        None,
        "python fit.py {args}",
        ["a.b=1", "c=[1,2]"],
        {"metric": ["loss=l: (.*)", "acc=a"], "results": ["{output}/r.csv"]},
    ),
    (None, "bash -c 'x {lr}' {output}", ["lr=1"], {"shell": [True], "keep": ["*.pt"], "checkpoints": ["c"]}),
    (None, "python -m a.b.c {{lr}}", [], {"python": ["/p"]}),
    (None, "{lr}", ["lr=1"], {}),
    (None, "x 'y {lr}", ["lr=1"], {}),
    (None, "./my script!.sh {config.lr}", ["lr=1"], {}),
    (None, "fit {lr} {width}", ["lr=1"], {}),
    (None, "fit {lr}", ["lrr=1"], {}),
    (None, "fit {lr}", ["lr=1", "w=2"], {}),
    (None, "fit {store}", ["store=x"], {}),
    (None, "fit {output}", ["output=x"], {}),
    (None, "fit {lr}", ["+lr=1"], {}),
    (None, "fit {lr}", ["~lr"], {}),
    (None, "fit {lr}", ["lr@x=1"], {}),
    (None, "fit {lr}", ["lr=1"], {"volatile": ["x"]}),
    (None, "fit {lr}", ["lr=1"], {"python": ["a", "b"]}),
    (None, "fit {lr}", ["lr=1"], {"metric": ["loss"]}),
    (None, "fit {lr}", ["lr=1"], {"metric": ["=x"]}),
    ("train.py", "fit", [], {}),
    ("train.py", None, ["a=1"], {}),
    ("-m pkg.mod", None, [], {"volatile": ["a", "b"], "python": ["/p"], "checkpoints": ["c"]}),
    ("train.py", None, [], {"results": ["x"]}),
    ("train.py", None, [], {"shell": [True]}),
    ("train.py 'x", None, [], {}),
    ("train.py", None, [], {"checkpoints": ["a", "b"]}),
]
"""What the command line gives in place of a sweep file: an app, a command, words, options."""

SETTINGS = [
    *(["seed=3"], ["expect_cells=3"], ["launcher.worker=1"], ["launcher=lokal"], ["policy.lease_s=0"]),
    *(["launcher.workers=1,2"], ["~launcher"], ["policy.password=x"], ["launcher=mine", "launcher.speed=5"]),
    *(["policy.limits_s={fit: 3}", "policy.grace_s=1"], ["launcher.workers=2", "launcher=local"]),
    *(
        ["tracker=store"],
        ["tracker=none"],
        ["tracker=wandb"],
        ["tracker=[mlflow]"],
        ["tracker=[store,wandb,wandb]"],
    ),
    *(
        ["tracker=[wandb,mlflow]", "tracker.options.project=p", "tracker.mlflow.experiment=e"],
        ["tracker=mlflw"],
    ),
    *(
        ["tracker=[wandb,mlflw]"],
        ["tracker=[none,wandb]"],
        ["launcher=[local,slurm]"],
        ["tracker=[mine,mlflow]"],
    ),
    *(
        ["tracker=[mine,wandb]"],
        ["cluster=own"],
        ["cluster=own", "cluster.max_hours=2-00:00:00"],
        ["cluster.hours=1:75"],
    ),
    *(
        ["launcher=slurm", "launcher.resources=[{hours: 0:05, gpus: 2}]"],
        ["launcher=ray", "launcher.resources.gpus=1"],
    ),
    *(
        ["store.url=~/zz"],
        ["store.url=a,b=1"],
        ["store.url=s3://x/y?z=[1"],
        ["store.url="],
        ["policy={limits_s: {a: 1.5}}"],
    ),
    *(
        ["notify.on=[finished]"],
        ["notify.url=x"],
        ["notify.url_env=HOOK"],
        ["hardware.device=h100"],
        ["hardware.tflops=1"],
    ),
    *(
        ["policy.retries.oom_gpu=3"],
        ["policy.retries.x=3"],
        ["policy.breaker=0"],
        ["+policy.own=1"],
        ["a=[1"],
        ["=3"],
        [""],
    ),
    *(["tracker=tensorboard", "tracker.tensorboard.dir=x"], ["tracker=trackio", "tracker.trackio.project=y"]),
]
"""Words that change settings, or are refused."""
