# ruff: noqa: B023, E501 - questions are asked at once, each on a line
"""Costs, results, files, and what stages and reports are given: each answer is as recorded, see recording.py."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator import costs, errors, manifest, provenance, reporting, results
from orchestrator.costs import Estimate, Need, checked_estimate, checked_needs, together
from orchestrator.execution.command_text import read_rows
from orchestrator.spec import Config, StageSpec
from orchestrator.spec import plain as tree_of
from orchestrator.stage import Inputs
from tests.recording import Answers, answer, compare, plain

RECORDED = Path(__file__).parent / "recorded"


def costs_asked() -> Answers:
    for made in (
        None,
        3,
        Estimate(gpu_hours=-1.0),
        Estimate(num_steps=float("nan")),
        Estimate(wall_hours="x"),
        Estimate(num_tokens=3),
    ):  # type: ignore[arg-type]
        yield f"estimate {made}"[:60], answer(lambda: checked_estimate("m:f", made) is made)
    need = Need(what="a")
    for made in (None, [], [need], (need, 3), "text", {"a": 1}, need):
        yield f"needs {made}"[:60], answer(lambda: checked_needs("m:f", made))
    found = [
        Estimate(num_steps=3, gpu_hours=2.0, wall_hours=1.0, num_gpus=2, memory_gib=5.0, memory_terms_gib={"a": 5.0}, disk_gib=1.0, peak_disk_gib=4.0,
                 useful_share=0.5, checkpoint_share=0.1, lost_s=9.0, load_s=2.0, assumptions=("x", "y")),
        Estimate(num_tokens=7, generation_gpu_hours=1.0, wall_hours=3.0, num_gpus=1, micro_batch=4, micro_batch_tokens=64, recomputes="selective", memory_gib=9.0,
                 host_memory_gib=3.0, disk_gib=2.0, peak_disk_gib=2.5, useful_share=0.75, stop_s=4.0, assumptions=("y", "z"), measured=True, num_requests=5, prompt_tokens=6),
        Estimate(micro_batch=8, recomputes=True, memory_terms_gib={"b": 1.0}, completion_tokens=2, num_generations=4, model_flops=1e9, hardware_flops=2e9),
    ]  # fmt: skip
    for number in range(len(found) + 1):
        yield f"together {number}", together(found[:number])
    yield "and the last two", together(found[1:])
    yield "devices", costs.DEVICES
    measured = costs.Measured({"a": [costs.Finished({}, [], 1.0)]})
    yield "measured", [len(measured), list(measured), measured.once(len), measured.once(len)]


ROWS: list[dict[str, Any]] = [
    {"cell": "a", "lr": 0.1, "seed": 1, "sweep": "s", "revision": 1, "stage": "fit", "loss": 0.5, "note": "x", "ok": True, "eval": {"acc": 0.5, "deep": {"f1": 1}}},
    {"cell": "a", "lr": 0.1, "seed": 1, "sweep": "s", "revision": 1, "stage": "score[en]", "loss": 0.25, "split": "test", "accuracy": 0.75, "notes": "odd"},
    {"cell": "a", "lr": 0.1, "seed": 1, "sweep": "s", "revision": 1, "stage": "score[es]", "loss": float("inf"), "split": "train", "accuracy": 0.5, "huge": 10**400},
    {"cell": "b", "lr": 0.1, "seed": 2, "sweep": "s", "revision": 1, "stage": "fit", "loss": "93.5%", "epoch": 1},
    {"cell": "b", "lr": 0.1, "seed": 2, "sweep": "s", "revision": 1, "stage": "fit", "loss": 0.125, "epoch": 2, "notes": "odd"},
    *({"cell": "c", "lr": 0.2, "seed": 1, "sweep": "s", "revision": 2, "stage": "score", "word": f"w{n}", "accuracy": n / 10} for n in range(10)),
    {"cell": "d", "lr": 0.1, "seed": 1, "sweep": "s", "revision": 2, "stage": "fit", "loss": None},
]  # fmt: skip


def results_asked() -> Answers:
    axes = results.axes_of_table(ROWS)
    yield (
        "axes",
        [
            axes,
            results.axes_of_table(ROWS[:5]),
            results.axes_of_table([{"a": 1}]),
            results.axes_of(ROWS, ["lr", "seed", "sweep"]),
        ],
    )
    found = results.by_cell(ROWS, axes=["lr", "seed"], columns=["note"])
    for each in found:
        yield f"cell {each.cell}", each
    names = results.metrics_of(found)
    yield "metrics", names
    yield "notes", [results.notes_of(ROWS, names), results.texts_among_numbers(ROWS, names)]
    for over in ([], ["seed"], ["seed", "lr"]):
        for group in results.spread_over(found, over):
            yield (
                f"over {over} {group.axes}",
                [group.cells, {name: results.spread_text(each) for name, each in group.metrics.items()}],
            )
    for values in ([1.0], [1.0, 2.0, 4.0], [1e308, 1e308], [0.1, 0.1], [123456.0, 7654321.0]):
        yield f"spread {values}", [results.spread(values), results.spread_text(results.spread(values))]
    for value in (0.0, 3.0, 999999.0, 1e6, -2.5, 0.000123456, 1e9, 12345.678):
        yield f"number {value}", results.number_text(value)
    for name in (
        "loss",
        "val_loss",
        "accuracy",
        "accuracy_std",
        "tokens_per_second",
        "it/s",
        "eval.f1",
        "loss[split=test]",
        "x (mean)",
        "acc (mean)",
        "size",
        "pass",
        "false_pass",
        "s",
    ):
        yield f"direction {name}", [results.direction(name), results.is_seed(name)]
    yield "seeds", [results.is_seed(name) for name in ("seed", "data.seed", "my_seed", "seeds", "SEED")]
    yield "evenly", [results.evenly(list(range(n)), most) for n, most in ((3, 5), (10, 3), (10, 4), (5, 2))]
    labels = {
        "a": {"lr": "0.1", "seed": "one", "x": "y"},
        "d": {"lr": "0.10", "seed": "1.0"},
        "b": {"seed": "null"},
    }
    yield (
        "labelled",
        results.labelled(
            [
                {**row, "seed": row["seed"] if row["cell"] != "b" else None}
                for row in [ROWS[0], ROWS[3], ROWS[-1]]
            ],
            labels,
        ),
    )


def facts_asked(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Answers:
    git = {"commit": "1a2b3c4d5e", "dirty": True, "diff_sha256": "d", "diff": "text"}
    for state in ({}, git, {**git, "dirty": False}):
        yield (
            f"version {state}",
            [
                provenance.code_version("99887766aa", state, now=now)
                for now in ("", "99887766aa", "55443322bb")
            ],
        )
    yield "without diff", provenance.without_diff(git)
    yield "age", [provenance.age_s("never"), provenance.age_s("")]
    mounts = folder / "mounts"
    mounts.write_text(
        "a / ext4 rw\nb /net nfs4 rw\nc /net/local\\040disk xfs rw\nd /fuse fuse.sshfs rw\nshort\ne /lus lustre rw\n"
    )
    for path in ("/", "/net", "/net/x", "/net/local disk/x", "/network", "/fuse/x", "/lus/a/b"):
        yield f"network {path}", provenance.is_network(Path(path), str(mounts))
    yield "no mounts", provenance.is_network(Path("/net"), str(folder / "nothing"))
    for name in ("one.py", "two/__init__.py", "two/deep/x.py", "two/data.txt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    for targets in (
        ["one:f"],
        ["two.deep.x:f", "one:g", ""],
        ["three:f"],
        ["orchestrator.count:f"],
        ["\0:f"],
    ):
        yield (
            f"files {targets!r}",
            [str(path) for path in provenance.stage_files(targets, [str(folder / "none"), str(folder)])],
        )
    monkeypatch.setenv("MY_API_TOKEN", "s3cr3t-value-of-it")
    yield "secrets", provenance.without_secrets("--token s3cr3t-value-of-it of http://u:p4ssw0rd@h/x")


def files_asked(folder: Path) -> Answers:
    tree = folder / "tree"
    for name, text in (("b/x.txt", "x"), ("a.txt", "aa"), (".nfs00001234", "gone"), ("b/c/y", "")):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(text)
    files = manifest.scan(tree)
    yield "scan", [(file.path, file.size, file.sha256[:8]) for file in files]
    yield "stamps", [(Path(each.path).name, each.size) for each in manifest.stamps(tree)]
    yield (
        "whole",
        [
            manifest.damage(tree, files),
            manifest.damage_by_size({file.path: file.size for file in files}, files),
        ],
    )
    (tree / "a.txt").write_text("ab")
    yield "other content", [manifest.damage(tree, files), manifest.damage(tree, files, content=False)]
    (tree / "a.txt").write_text("abc")
    yield (
        "other size",
        [manifest.damage(tree, files, content=False), manifest.damage_by_size({"a.txt": 3}, files)],
    )
    (tree / "a.txt").unlink()
    yield "missing", [manifest.damage(tree, files), manifest.damage_by_size({}, files)]
    for path in ("a/b", "", ".", "..", "a/../b", "a//b", "/a", "a\0b", "a/."):

        def checked() -> object:
            try:
                return manifest.File(path, 1, "x")
            except ValueError as error:
                return f"ValueError: {error}"

        yield f"path {path!r}", checked()
    outside = folder / "outside"
    outside.mkdir()
    (outside / "z").write_text("zz")
    product = folder / "product"
    product.mkdir()
    for name, target in (
        ("in", "real"),
        ("out", str(outside)),
        ("file", str(outside / "z")),
        ("broken", "nowhere"),
        ("up", ".."),
        ("loop", "loop"),
    ):
        (product / name).symlink_to(target)
    (product / "real").write_text("r")
    yield (
        "contain",
        [
            manifest.contain(product),
            sorted((path.relative_to(product).as_posix(), path.is_symlink()) for path in product.rglob("*")),
            manifest.contain(product),
        ],
    )
    (product / "real").chmod(0)
    manifest.open_to_owner(product)
    yield "open to owner", oct((product / "real").stat().st_mode & 0o777)


def stages_asked(folder: Path) -> Answers:
    inputs = Inputs({"one": {"": Path("/p/one")}, "each": {"en": Path("/p/en"), "es": Path("/p/es")}})
    for name in ("one", "each", "none"):
        yield (
            f"input {name}",
            [
                name in inputs,
                plain(answer(lambda: inputs[name])),
                plain(answer(lambda: dict(inputs.each(name)))),
            ],
        )
    config = Config({"a": 1, "b": {"c": [1, {"d": 2}]}}, declared="reads")
    for act in (
        lambda: config.a,
        lambda: config.b.c,
        lambda: config["b"]["c"],
        lambda: config.x,
        lambda: config.b.x,
        lambda: config["x"],
        lambda: dict(config),
        lambda: len(config),
        lambda: tree_of(config),
        lambda: config.to_dict(),
        lambda: repr(config),
    ):

        def tried() -> object:
            try:
                return act()
            except (AttributeError, KeyError) as error:
                return f"{type(error).__name__}: {error}"

        yield "config", plain(answer(tried))
    yield "spec", StageSpec(command="x", reads=("a",))
    for text in ("a,b\n1,2\n,x\n", "a\n", "", "a,a\n1,2\n", "a;b\n1;2\n"):
        (folder / "rows.csv").write_text(text)
        yield f"csv {text!r}", answer(lambda: read_rows(folder / "rows.csv"))
    for text in ('{"a": 1}', '[{"a": 1}, {"b": [1]}]', "3", "[3]", "{", '{"a": NaN}', ""):
        (folder / "rows.json").write_text(text)
        yield f"json {text!r}", answer(lambda: read_rows(folder / "rows.json"))
    for text in ('{"a": 1}\n\n{"a": 2}\n', "3\n", '{"a"'):
        (folder / "rows.jsonl").write_text(text)
        yield f"jsonl {text!r}", answer(lambda: read_rows(folder / "rows.jsonl"))
    yield "no rows", answer(lambda: read_rows(folder / "nothing.json"))
    for report in (
        lambda rows, folder: [],
        lambda rows, folder, *, about: about,
        lambda rows, folder, curves, grid: (curves, grid),
        len,
    ):

        def called() -> object:
            try:
                return reporting.call(
                    report,
                    [],
                    folder,
                    {
                        "about": lambda: "facts",
                        "curves": lambda: "curves",
                        "grid": lambda: "grid",
                        "drawn": lambda: 1 / 0,
                    },
                )
            except TypeError as error:
                return f"TypeError: {error}"

        yield "report", [reporting.wants_facts(report), called()]


def of(found: Answers, folder: Path) -> Iterator[tuple[str, object]]:
    home = str(Path(errors.__file__).parents[1])
    return (
        (question, plain(each).replace(str(folder), "FOLDER").replace(home, "PROJECT"))
        for question, each in found
    )


def test_costs_and_results_are_as_recorded(tmp_path: Path) -> None:
    compare(RECORDED / "costs.txt", of(costs_asked(), tmp_path))
    compare(RECORDED / "results.txt", of(results_asked(), tmp_path))


def test_facts_of_files_and_code_are_as_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compare(RECORDED / "facts.txt", of(facts_asked(tmp_path, monkeypatch), tmp_path))
    compare(RECORDED / "files.txt", of(files_asked(tmp_path), tmp_path))


def test_what_stages_and_reports_are_given_is_as_recorded(tmp_path: Path) -> None:
    compare(RECORDED / "stages.txt", of(stages_asked(tmp_path), tmp_path))
