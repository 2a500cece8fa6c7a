"""What sweep files, settings and trees become, and how bad ones are refused, is as recorded."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Any

from orchestrator.core import commandspec, identity, settings, tree
from orchestrator.core.grid import Grid
from orchestrator.core.selector import Selector, Selectors, Subject, select
from orchestrator.core.sweep import check_axis, check_name, gates_among, parse, parse_reference, stage_specs
from orchestrator.stage import StageSpec
from tests.core.asked.inputs import CHANGES, COMMANDS, CONFIG, FILES, GRIDS, LONG, SETTINGS
from tests.recording import Answers, answer


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


ASKED: Mapping[str, Callable[[], Answers]] = {each.__name__: each for each in (files, names, chosen, trees)}
