"""Sweep files, stages and settings, good and bad ones, that files.py asks about."""

from __future__ import annotations

from typing import Any

LONG = "x" * 300
CONFIG = {"seed": 1, "lr": 0.1, "langs": ["en", "sw"], "train": {"steps": 10, "note": "a b"}, "off": None}
GRIDS: dict[str, Any] = {
    "one stage": {"stages": {"fit": {"run": "m:f", "reads": ["seed"]}}},
    "a chain": {
        "stages": {
            "prepare": {"run": "m:p", "reads": ["train"], "each": {"lang": "langs"}},
            "fit": {"run": "m:f", "reads": ["seed"], "after": ["prepare"]},
            "score": {"run": "m:s", "each": {"lang": "langs"}, "after": ["prepare", "fit"]},
        }
    },
    "merged": {"stages": {"fit": {"run": "m:f", "reads": ["lr"]}}},
    "excluded": {"stages": {"fit": {"run": "m:f", "reads": ["seed"]}}, "exclude": ["seed=1"]},
    "excluded late": {"stages": {"fit": {"run": "m:f", "reads": ["seed"]}}, "exclude": ["train.steps=10"]},
    "included": {"stages": {"fit": {"run": "m:f", "reads": ["seed"]}}, "include": ["seed=2", "seed=3"]},
    "included late": {"stages": {"fit": {"run": "m:f", "reads": ["seed"]}}, "include": ["lr=0.1 seed=1"]},
    "unknown label": {"stages": {"fit": {"run": "m:f", "reads": ["seed"]}}, "exclude": ["seed=9"]},
    "unknown key": {"stages": {"fit": {"run": "m:f", "reads": ["seed"]}}, "exclude": ["sead=1"]},
    "columns": {"stages": {"fit": {"run": "m:f", "reads": ["seed"]}}, "columns": {"n": "train.steps"}},
    "unknown column": {"stages": {"fit": {"run": "m:f", "reads": ["seed"]}}, "columns": {"n": "train.stepz"}},
    "skipped": {"stages": {"fit": {"run": "m:f", "reads": ["seed"], "skip": "seed=1"}, "b": {"run": "m:b"}}},
    "all skipped": {"stages": {"fit": {"run": "m:f", "reads": ["seed"], "skip": "seed=1"}}},
    "reads what is not there": {"stages": {"fit": {"run": "m:f", "reads": ["sead"]}}},
    "uses what is not there": {"stages": {"fit": {"run": "m:f", "uses": ["train.stepz"]}}},
    "reads and uses": {"stages": {"fit": {"run": "m:f", "reads": ["seed"], "uses": ["seed"]}}},
    "a circle": {"stages": {"a": {"run": "m:a", "after": ["b"]}, "b": {"run": "m:b", "after": ["a"]}}},
    "after nothing": {"stages": {"a": {"run": "m:a", "after": ["bee"]}}},
    "two are one": {"stages": {"a": {"run": "m:a"}, "b": {"run": "m:a"}}},
    "each of no list": {"stages": {"a": {"run": "m:a", "each": {"x": "seed"}}}},
    "each of nothing": {"stages": {"a": {"run": "m:a", "each": {"x": "lang"}}}},
    "neutral": {"stages": {"a": {"run": "m:a", "reads": ["seed"], "neutral": {"seed": 1}}}},
    "neutral of nothing": {"stages": {"a": {"run": "m:a", "reads": ["seed"], "neutral": {"sead": 1}}}},
    "a version": {"stages": {"a": {"run": "m:a", "reads": ["seed"], "version": 2}}},
    "a command": {
        "stages": {"a": {"command": "a {config.seed} {uses.lr}", "reads": ["seed"], "uses": ["lr"]}}
    },
    "a command of a section": {"stages": {"a": {"command": "a {config.train}", "reads": ["train"]}}},
    "a command of an input": {
        "stages": {
            "p": {"run": "m:p", "each": {"l": "langs"}},
            "a": {"command": "a {inputs.p.en}", "after": ["p"]},
        }
    },
    "a command of no input": {
        "stages": {
            "p": {"run": "m:p", "each": {"l": "langs"}},
            "a": {"command": "a {inputs.p.fr}", "after": ["p"]},
        }
    },
    "a shell": {"stages": {"a": {"command": "a | b", "shell": True}}},
    "a gate": {"stages": {"g": {"run": "m:g", "reads": ["lr"]}, "a": {"run": "m:a", "gated_by": ["g"]}}},
    "no gate": {"stages": {"a": {"run": "m:a", "gated_by": ["g"]}}},
    "a gate that skips": {
        "stages": {"g": {"run": "m:g", "skip": "seed=1"}, "a": {"run": "m:a", "gated_by": ["g"]}}
    },
    "a gate of a launch": {
        "stages": {"g": {"run": "m:g", "reads": ["launch"]}, "a": {"run": "m:a", "gated_by": ["g"]}}
    },
    "a gate that is taken": {
        "stages": {
            "g": {"run": "m:g"},
            "a": {"run": "m:a", "gated_by": ["g"]},
            "b": {"run": "m:b", "after": ["g"]},
        }
    },
    "a gate that waits": {
        "stages": {
            "g": {"run": "m:g", "after": ["a"]},
            "h": {"run": "m:h"},
            "a": {"run": "m:a", "gated_by": ["h"]},
            "b": {"run": "m:b", "gated_by": ["g"]},
        }
    },
}
FILES: dict[str, Any] = {
    "nothing": {},
    "no mapping": [1],
    "unknown key": {"stagez": []},
    "wrong type": {"stages": 3},
    "no stages": {"axes": {"seed": [1]}},
    "max_cells": {"stages": ["fit"], "max_cells": 0},
    "expect_cells": {"stages": ["fit"], "expect_cells": "many"},
    "unknown stage": {"stages": ["fitt"]},
    "twice": {"stages": ["fit", "fit"]},
    "case": {"stages": {"fit": {"run": "m:f"}, "Fit": {"run": "m:f"}}},
    "limit": {"stages": {"fit": {"run": "m:f", "limit_s": 0}}},
    "a limit": {"stages": {"fit": {"run": "m:f", "limit_s": 1}}},
    "a function among others": {"stages": ["fit"], "axes": {"seed": ["range(0,3)"]}},
    "a torn function": {"stages": ["fit"], "axes": {"seed": "range(0"}},
    "a function": {"stages": ["fit"], "axes": {"seed": "range(0,3)"}},
    "column": {"stages": ["fit"], "columns": {" ": "seed"}},
    "engine's column": {"stages": ["fit"], "columns": {"cell": "seed"}},
    "both": {"stages": {"fit": {"run": "m:f", "command": "a"}}},
    "neither": {"stages": {"fit": {}}},
    "no target": {"stages": {"fit": {"run": "mf"}}},
}
COMMANDS: list[dict[str, Any]] = [
    *(
        {"command": text}
        for text in (
            "a",
            " ",
            '""',
            "a 'b",
            "a | b",
            "a > x",
            "X=1 a",
            "a {args}",
            "a --x={args}",
            "a {output} {work} {python}",
            "a {ouput}",
            "a {config.lr}",
            "a {uses.lr}",
            "a {inputs.p}",
            "a {{x}}",
            "a '|'",
            "a\0b",
            "a {config.*}",
        )
    ),
    *({"command": text, "shell": True} for text in ("a '{args}'", "a | b", "", 'a "{output}"', "a {args}")),
    *(
        {"command": "a {work}", "keep": [path]}
        for path in ("*.pt", "../x", "/x", "~x", "a//b", "a**", "**/b", ".", LONG)
    ),
    *(
        {"command": "a", key: value}
        for key, value in (
            ("finished", "ok"),
            ("finished", "/ok"),
            ("results", "r.jsonl"),
            ("results", "../r"),
            ("checkpoints", "c-*"),
            ("checkpoints", "/c"),
            ("python", " "),
            ("python", "env/bin/python"),
            ("keep", ["*"]),
            ("metric", {"loss": "loss=(.*)"}),
            ("metric", {"loss": "loss"}),
            ("metric", {"loss": "("}),
        )
    ),
    *(
        {"run": "m:f", key: value}
        for key, value in (
            ("finished", "ok"),
            ("results", "r"),
            ("checkpoints", "c"),
            ("shell", True),
            ("python", "p"),
            ("metric", {"a": "(b)"}),
            ("keep", ["*"]),
        )
    ),
    *(
        {"run": "m:f", "uses": ["lr", "train"], "reads": ["seed", "train.steps"], "remedies": {cause: [rung]}}
        for cause, rung in (
            ("oom_gpu", {"halve": "lr"}),
            ("oom_gpu", {"double": ["lr", "train.note"]}),
            ("oom_gpu", {"set": {"lr": 1}}),
            ("oom", {"halve": "lr"}),
            ("oom_gpu", {"halve": "seed"}),
            ("oom_gpu", {"halve": "train.steps"}),
            ("oom_gpu", {}),
            ("oom_gpu", {"times": 3}),
            ("oom_gpu", {"halve": "lr", "times": 0}),
            ("oom_gpu", {"halve": "lr", "times": 21}),
            ("nan", {"suggest": "another seed"}),
            ("nan", {"suggest": 3}),
            ("oom_gpu", {"halve": "lr", "suggest": "x"}),
            ("oom_gpu", {"set": "lr"}),
            ("oom_gpu", {"halve": [1]}),
            ("oom_gpu", {"halve": "other"}),
            ("oom_gpu", {"quarter": "lr"}),
            ("oom_gpu", {"halve": "lr", "double": "train.note", "set": {"lr": 1}, "times": 2}),
            ("oom_gpu", {"halve": "lr", "times": 20}),
        )
    ),
]


SETTINGS: dict[str, Any] = {"launcher": {"name": "local"}, "tracker": {}, "policy": {}, "store": {}}
CHANGES: list[tuple[str, Any]] = [
    ("launcher", {}),
    ("launcher", {"name": "external"}),
    ("launcher.hours", "1:30"),
    ("launcher.hours", "2-00:00:00"),
    ("launcher.hours", "2-12"),
    ("launcher.hours", "90"),
    ("launcher.hours", "1:60"),
    ("launcher.hours", "1:30:59"),
    ("launcher.hours", ["1:30"]),
    ("launcher.max_hours", "x"),
    ("cluster", {"name": "lab", "list": [{"hours": "0:30"}]}),
    ("policy.lease_s", 0.5),
    ("policy.lease_s", "long"),
    ("policy.checkpoint_interval_s", -1),
    ("policy.grace_s", -1),
    ("policy.quarantine_s", -1),
    ("policy.space_pause_s", -1),
    ("policy.breaker", -1),
    ("policy.breaker", 2.5),
    ("store.outage_s", -1),
    ("policy.retries", {"nan": 2}),
    ("policy.retries", {"none": 2}),
    ("policy.retries", {"nan": -1}),
    ("policy.retries", {"nan": 1.5}),
    ("policy.limits_s", {"fit": 0}),
    ("policy.limits_s", {"fit": 1}),
    ("policy.retention", "some"),
    ("policy.retention", "best"),
    ("policy.unknown", 1),
    ("polcy", 1),
    ("policy.budget", {"gpu_hours": -1}),
    ("policy.budget", {"gpu_hours": 0}),
    ("policy.budget", {"gpu_hours": float("inf")}),
    ("policy.budget", {"until": "2026-12-24"}),
    ("policy.budget", {"until": "soon"}),
    ("policy.budget", {"until": "2026-12-24T18:00+01:00"}),
    ("notify", {"webhook_env": "https://x"}),
    ("notify", {"webhook_env": "HOOK"}),
    ("notify", {"apprise_env": "a b"}),
    ("notify", {"stalled_minutes": -1}),
    ("hardware", {"device": "abacus"}),
    ("hardware", {"device": "h100x"}),
    ("hardware", {"max_gpus": 0}),
    ("hardware", {"cells_at_once": 0}),
    ("hardware", {"mfu": 0}),
    ("hardware", {"mfu": 1}),
    ("hardware", {"mfu": 1.1}),
]
