"""What sweep files, settings and trees become, and how bad ones are refused, is as recorded."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from orchestrator.core import commandspec, identity, settings, tree
from orchestrator.core.grid import Grid, Selectors
from orchestrator.core.selector import Selector, Subject, select
from orchestrator.core.sweep import check_axis, check_name, gates_among, parse, parse_reference, stage_specs
from orchestrator.stage import StageSpec
from tests.core.recording import Answers, answer, compare

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
            ("oom_gpu", {"halve": "lr", "times": 20}),
        )
    ),
]


def registered(name: str) -> StageSpec | None:
    return StageSpec(run="m:fit", reads=("seed",), name="fit") if name == "fit" else None


def specs_of(file: Mapping[str, Any]) -> dict[str, StageSpec]:
    return stage_specs(parse(file, where="s.yaml"), registered, known=lambda: ["fit"], where="s.yaml")


def composed(file: Mapping[str, Any]) -> object:
    """The cells of a grid of two seeds and two rates."""
    parsed, specs = parse(file, where="s.yaml"), specs_of(file)
    selectors = Selectors.parse(parsed.exclude, parsed.include, {})
    grid = Grid(selectors, parsed.columns, specs, where="s.yaml")
    axes = [{"seed": str(seed), "lr": str(lr)} for seed, lr in itertools.product((1, 2), (0.1, 0.2))]
    grid.check_labels(axes)
    for labels in axes:
        if grid.admits(labels):
            config = {**CONFIG, "seed": int(labels["seed"]), "lr": float(labels["lr"])}
            grid.add(dict(labels), "_".join(labels.values()), config)
    cells, notes = grid.cells((2, 2), 4 if len(specs) < 3 else 3)
    stages = [
        (each.stage, each.label, each.digest[:8], each.reads, each.inputs) for each in grid.stages.values()
    ]
    chains = [
        (cell.id, cell.axes, cell.columns, [digest[:8] for digest in cell.stage_digests]) for cell in cells
    ]
    return chains, stages, notes, grid.sum_text, len(grid.merged), gates_among(specs)


def files() -> Answers:
    """Sweep files."""
    for name, file in GRIDS.items():
        yield name, answer(lambda file=file: composed(file))  # type: ignore[misc]
    for name, file in FILES.items():
        yield f"file: {name}", answer(lambda file=file: specs_of(file))  # type: ignore[misc]
    for fields in COMMANDS:
        yield str(fields)[:200], answer(lambda fields=fields: specs_of({"stages": {"fit": fields}})["fit"])  # type: ignore[misc]
    for text in ("'a", 'a"b', "a'b'", "a\\'", "'a\\'", '"it\'s"', ""):
        yield f"quote after {text}", [commandspec.open_quote(text, quote) for quote in ("", "'", '"')]
    for text in ("a {args}", "a '{args}' \"{output}\"", "a '{work}", "a ${HOME} {{x}} {x}"):
        yield f"placeholders of {text}", list(commandspec.quoted_placeholders(text))
        yield "  without braces", commandspec.unescaped(text)


def names() -> Answers:
    """Names, references, ids and digests."""
    for name in (
        "a",
        "a.b",
        ".a",
        "a.",
        "a/b",
        "",
        "A-1_+",
        LONG,
        "ä",
        "a b",
        "state",
        "cell",
        "x=y",
        "a,b",
        "x" * 101,
    ):
        yield f"name {name[:20]}", answer(lambda name=name: check_name(name, what="stage", where="s.yaml"))  # type: ignore[misc]
        yield f"axis {name[:20]}", answer(lambda name=name: check_axis(name, where="s.yaml"))  # type: ignore[misc]
        yield (
            f"reference {name[:20]}",
            [
                answer(lambda word=word: parse_reference(word))
                for word in (name, f"{name}@2", f"{name}@x", f"{name}@0")  # type: ignore[misc]
            ],
        )
    yield "ids", identity.cell_ids(["a", "a", "b c/d", "", "x" * 300, "Ä"], [[str(n)] for n in range(6)])
    values: list[Any] = [
        1,
        1.0,
        True,
        None,
        "a",
        "e\u0301",
        [1, "a"],
        {"b": 1, "a": {}},
        float("nan"),
        {1: 2},
        object,
        "/abs",
        (1,),
    ]
    for value in values:
        yield (
            f"canonical {value!r}"[:60],
            answer(lambda value=value: identity.canonical({"k": value}, where="here")),
        )  # type: ignore[misc]
        yield "  text", answer(lambda value=value: tree.scalar_text(value))  # type: ignore[misc]
        yield "  rows", answer(lambda value=value: tree.checked_rows([{"k": value}]))  # type: ignore[misc]
    for rows in (None, [], {}, [1], [{"a": [{"b": float("inf")}]}], [{"a": "\ud800"}], [{1: 2}], "text"):
        yield f"rows {rows!r}"[:60], answer(lambda rows=rows: tree.checked_rows(rows, cause="data"))  # type: ignore[misc]


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


def chosen() -> Answers:
    """Settings."""
    for key, value in CHANGES:
        changed = tree.with_value(SETTINGS, key.split("."), value)
        yield f"{key}={value!r}", answer(lambda changed=changed: settings.engine_from(changed, where="conf"))  # type: ignore[misc]
    for words in (["a"], ["store.url=x", "b"], ["store.url="], ["store.url=x", "store.url=y"], []):
        yield f"words {words}", answer(lambda words=words: settings.split_store(words))  # type: ignore[misc]


def trees() -> Answers:
    """Trees of values, and selectors over them."""
    for key in ("seed", "train.steps", "train", "train.nothing", "seed.x", "", "langs"):
        yield (
            f"key {key}",
            (
                tree.pick(CONFIG, key),
                tree.without_key(CONFIG, key),
                answer(lambda key=key: tree.each_values(CONFIG, key)),
            ),
        )  # type: ignore[misc]
        placed: dict[str, Any] = {"train": {"steps": 1}}
        if key:
            tree.place(placed, key, 7)
        yield "  placed", placed
    yield "keys", list(tree.dotted_keys(CONFIG))
    yield "each twice", answer(lambda: tree.each_values({"l": [1, "1"]}, "l"))
    yield "changed", tree.changed_keys(CONFIG, {**CONFIG, "seed": 2, "train": {"steps": 10}, "new": 1})
    for value in ({"a": float("nan")}, {"a": [{"b": float("inf")}]}, {"a": 1.0}):
        yield f"finite {value}", answer(lambda value=value: tree.refuse_non_finite(value, where="w", key="k"))  # type: ignore[misc]
    subjects = [
        Subject({"seed": str(n)}, {"n": n * 10}, {**CONFIG, "seed": n}, cell=f"cell{n}") for n in (1, 2, 10)
    ]
    for text in (
        "seed=1",
        "seed=1,2",
        "seed!=1",
        "seed=1*",
        "n=10",
        "train.steps=10",
        "sead=1",
        "seed=9",
        "seed=",
        "=1",
        "cell1",
        "cell*",
        "celll1",
        "seed=1 n=20",
        "'a b'=1",
        "train.note='a b'",
        "train.note='a",
        "langs=en",
        "off=null",
        "lr=0.10",
        "off=",
        "seed>1",
        "!seed=1",
        "seed=1.0",
        "*",
        "state=done",
        "n='10'",
    ):
        yield (
            f"selector {text}",
            answer(lambda text=text: [Selector.parse(text).matches(each) for each in subjects]),
        )  # type: ignore[misc]
        yield (
            "  checked",
            answer(lambda text=text: Selector.parse(text).check(subjects, labels={}, where="w")),
        )  # type: ignore[misc]
        yield (
            "  chosen",
            answer(lambda text=text: select([text, "seed=2"], [(each.cell, each) for each in subjects])),
        )  # type: ignore[misc]


RECORDED: Mapping[str, Callable[[], Answers]] = {
    each.__name__: each for each in (files, names, chosen, trees)
}


@pytest.mark.parametrize("name", RECORDED)
def test_each_answer_is_the_recorded_one(name: str) -> None:
    compare(name, RECORDED[name]())
