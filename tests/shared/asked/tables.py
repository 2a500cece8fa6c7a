"""What tables of results, costs and texts for people become, as recorded."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Callable
from email.utils import formatdate
from typing import Any

from orchestrator import costs, errors, results
from orchestrator.costs import Estimate, Finished, Hardware, Measured, Need
from orchestrator.errors import UserError
from tests.recording import Answers, answer

NAMES = (
    "loss accuracy eval.acc tokens_per_s samples/second acc_std accuracy_drop wall_s "
    "time_ms f1 kl reward[a=b] loss[x] (mean) ACC "
    "Val_Loss pass@1 x latency_p99 num_items target_accuracy map ms"
).split()

ROWS: list[dict[str, Any]] = [
    {
        "cell": "a",
        "lr": 0.1,
        "seed": 0,
        "sweep": "s",
        "revision": 1,
        "stage": "fit",
        "loss": 0.5,
        "epoch": 1,
        "done": True,
    },
    {
        "cell": "a",
        "lr": 0.1,
        "seed": 0,
        "sweep": "s",
        "revision": 1,
        "stage": "fit",
        "loss": 0.25,
        "epoch": 2,
        "text": "x",
    },
    {
        "cell": "a",
        "lr": 0.1,
        "seed": 0,
        "sweep": "s",
        "revision": 1,
        "stage": "score[en]",
        "loss": 3,
        "split": "test",
        "eval": {"acc": 0.5, "n": {"m": 2}},
    },
    {
        "cell": "a",
        "lr": 0.1,
        "seed": 0,
        "sweep": "s",
        "revision": 1,
        "stage": "score[de]",
        "loss": 4,
        "split": "dev",
        "eval": {"acc": 0.75},
    },
    {
        "cell": "b",
        "lr": 0.2,
        "seed": 0,
        "sweep": "s",
        "revision": 2,
        "stage": "fit",
        "loss": math.nan,
        "only": 10**400,
        "note": "slow",
    },
    {
        "cell": "b",
        "lr": 0.2,
        "seed": 0,
        "sweep": "s",
        "revision": 2,
        "stage": "score[en]",
        "loss": "93.5%",
        "split": "test",
    },
    {
        "cell": "c",
        "lr": 0.1,
        "seed": 1,
        "sweep": "s",
        "revision": 1,
        "stage": "fit",
        "loss": 0.75,
        "done": False,
        "notes": "it was slow",
    },
    {
        "cell": "d",
        "lr": 0.2,
        "seed": 1,
        "sweep": "t",
        "revision": 1,
        "stage": "fit",
        "loss": "n/a",
        "notes": "it was slow",
    },
    {"cell": "e", "lr": 0.2, "seed": 2, "sweep": "t", "revision": 1, "stage": "fit", "loss": "?"},
    {"cell": "f", "lr": 0.2, "seed": 3, "sweep": "t", "revision": 1, "stage": "fit", "loss": "??"},
]


def tables() -> Answers:
    """Results by cell, their spread, and notes."""
    for name in NAMES:
        yield f"direction {name}", results.direction(name)
    for axis in ("seed", "data.seed", "my_seed", "seeds", "seed_a", "SEED"):
        yield f"seed {axis}", results.is_seed(axis)
    found = results.by_cell(ROWS, axes=["lr", "seed"], columns=["only"])
    for result in found:
        yield f"cell {result.cell}", (result.axes, result.metrics)
    many = [{"cell": "z", "stage": "fit", "split": f"s{n}", "loss": n} for n in range(60)]
    yield "many variants", results.by_cell(many, axes=[])[0].metrics
    few = [
        {"cell": "z", "stage": "fit[en]", "split": f"s{n}", "lang": "x" if n else None, "loss": n}
        for n in range(3)
    ]
    yield "few variants", results.by_cell(few, axes=["lr"])[0]._asdict()
    metrics = results.metrics_of(found)
    yield "metrics", metrics
    for line in results.notes_of(ROWS, metrics):
        yield "note", line
    yield "texts", list(results.texts_among_numbers(ROWS, ["loss", "fit.loss", "eval.acc"]))
    for over in ((), ("seed",), ("lr", "seed"), ("lr",)):
        for group in results.spread_over(found, over):
            yield (
                f"over {over} {group.cells}",
                (group.axes, {n: s._asdict() for n, s in group.metrics.items() if n.startswith("fit")}),
            )
    yield (
        "axes",
        (
            results.axes_of(ROWS, ["lr", "seed", "nothing"]),
            results.axes_of_table(ROWS),
            results.axes_of_table([{"a": 1}]),
        ),
    )
    alike = [{**row, "cell": "a"} for row in ROWS if row["stage"] == "fit"]
    yield (
        "axes of cells alike",
        results.axes_of_table([{**row, "sweep": "s", "revision": n} for n, row in enumerate(alike)]),
    )
    yield (
        "axes of sweeps",
        results.axes_of_table([{"cell": f"c{n}", "sweep": f"s{n}", "revision": 1} for n in range(2)]),
    )
    labels = {
        "a": {"lr": "0.1", "seed": "1"},
        "b": {"lr": "0.20", "other": "x"},
        "c": {"lr": "small", "seed": "TRUE"},
    }
    rows = [
        {"cell": "a", "lr": 0.1, "seed": 0},
        {"cell": "b", "lr": 0.2},
        {"cell": "c", "lr": 0.1, "seed": True},
        {"cell": "d", "lr": None},
    ]
    for row in results.labelled(rows, labels):
        yield f"labelled {row['cell']}", row
    yield "labelled null", results.labelled([{"cell": "a", "lr": None}], {"a": {"lr": "null"}})
    for values in ([1.0], [1.0, 2.0, 4.0], [1e308, 1e308], [0.1] * 3, [5, 7]):
        spread = results.spread(values)
        yield f"spread {values}", (spread._asdict(), results.spread_text(spread))
    for value in (0.0, 3.0, 1e6, 999999.0, 0.123456, 1e-9, -2.5, 123456.7):
        yield f"number {value}", results.number_text(value)
    for number, most in itertools.product((0, 1, 3, 5, 10), (2, 3, 4)):
        yield f"evenly {number} {most}", list(results.evenly(list(range(number)), most))


def said() -> Answers:
    """Texts of errors, and what of them is shown."""
    for name, known in (
        ("lr", ["LR", "learning_rate"]),
        ("x", []),
        ("zz", [f"n{n}" for n in range(14)]),
        ("modle", ["model", "Model", "mode", "x"]),
    ):
        yield f"nearest {name}", errors.nearest(name, known)
    yield "nearest of few", errors.nearest("q", ["b", "a", "b"], limit=1)
    texts = (
        "a\x1b[31mb\x07",
        "a\tb\nc",
        "\u202eabc\ufeff",
        "é\x9f",
        "  a \r\n b  ",
        "x" * 600,
        "y" * 500,
        "z" * 501,
        "",
        "\ud800",
    )
    for text in texts:
        name = f"{text[:8]!r} {len(text)}"
        yield f"escaped {name}", errors.escaped(text[:9])
        yield f"printable {name}", errors.printable(text[:9])
        yield (
            f"one line {name}",
            (errors.one_line(text[:40], 12), len(errors.one_line(text)), errors.one_line(text)[-4:]),
        )
        yield f"utf8 {name}", errors.is_utf8(text)
    yield "inert", (errors.inert("a\x1bb"), errors.inert(3))

    class Bad(Exception):
        def __str__(self) -> str:
            raise ValueError

    for error in (
        ValueError("\n\n b \nc"),
        KeyError("k"),
        Bad(),
        ExceptionGroup("many", [ValueError("one"), ValueError("two")]),
        ValueError(""),
    ):
        yield f"words of {type(error).__name__}", (errors.words_of(error), errors.first_line_of(error))
    for number, noun in ((0, "cell"), (1, "cell"), (12345, "job")):
        yield f"counted {number}", errors.counted(number, noun)
    for value in ("3", "-3", "1.5", "soon", formatdate(0, usegmt=True), formatdate(4e9, usegmt=True), ""):
        found = errors.retry_after_s(value)
        yield f"retry after {value}", found if found is None or found < 100 else "long"
    for text in ("No space left on device", "[Errno 122] Disk quota exceeded: x", "no space"):
        yield f"full {text}", (errors.means_full_disk(text), errors.is_out_of_space(RuntimeError(text)))
    yield "full by number", [errors.is_out_of_space(OSError(number, "x")) for number in (28, 122, 5)]
    error = UserError("what\nmore", where="where", allowed="\x1ballowed", fix="fix")
    yield (
        "user error",
        (str(error), error.exit_code, errors.InfrastructureError("x").exit_code, str(UserError("only"))),
    )
    unknown = errors.UnknownSweep("smok", ["smoke", "b"], where="sweeps", fix="sweep list")
    yield "unknown sweep", (str(unknown), unknown.known, unknown.name)
    stop = errors.StopSignal()
    stop.ask("first")
    stop.ask("second")
    yield (
        "stop",
        (
            stop.asked,
            stop.why,
            stop.seen,
            errors.StopRequested("why").why,
            errors.StageFailure("data", "x").cause,
        ),
    )
    yield "paths", (str(errors.home_expanded("~nobody-at-all/x")), str(errors.real_path("/tmp/../etc")))
    names = ("http_proxy", "https_proxy", "all_proxy")
    before = {name: os.environ.pop(name, None) for name in (*names, *map(str.upper, names))}
    try:
        for name, proxy in itertools.product(
            names, ("http://h:1", "h:1", "socks4://h", "//", "http://h:0", "foo://x:1", "http://[::1")
        ):
            os.environ[name] = proxy
            yield f"proxy {name} {proxy}", answer(errors.check_proxies)
            del os.environ[name]
    finally:
        os.environ.update({name: value for name, value in before.items() if value is not None})


def accounts() -> Answers:
    """Estimates of several stages together, and hooks that return what they must not."""
    small = Estimate(
        num_steps=2,
        gpu_hours=1.0,
        wall_hours=1.0,
        num_gpus=1,
        memory_gib=10.0,
        disk_gib=2.0,
        peak_disk_gib=5.0,
        useful_share=0.5,
        assumptions=("a", "b"),
        stop_s=3.0,
    )
    large = Estimate(
        num_tokens=7,
        model_flops=1.0,
        hardware_flops=2.0,
        generation_gpu_hours=3.0,
        wall_hours=4.0,
        num_gpus=8,
        micro_batch=4,
        micro_batch_tokens=9,
        recomputes="selective",
        memory_gib=70.0,
        memory_terms_gib={"weights": 3.0},
        host_memory_gib=100.0,
        disk_gib=1.0,
        peak_disk_gib=9.0,
        num_generations=5,
        num_requests=6,
        prompt_tokens=7,
        completion_tokens=8,
        assumptions=("b", "c"),
        measured=True,
        useful_share=0.75,
        checkpoint_share=0.25,
        lost_s=60.0,
        load_s=9.0,
        most_gpus=4,
        efficiency=0.9,
    )
    again = Estimate(
        micro_batch=1,
        recomputes=False,
        useful_share=0.0,
        memory_gib=1.0,
        lost_s=70.0,
        stop_s=1.0,
        load_s=1.0,
        host_memory_gib=1.0,
    )
    for name, estimates in {
        "none": [],
        "one": [large],
        "two": [small, large],
        "three": [again, small, large],
    }.items():
        yield f"together {name}", costs.together(estimates)
    for wrong in (
        small,
        None,
        Estimate(wall_hours=-1.0),
        Estimate(num_gpus=math.inf),
        Estimate(memory_gib="x"),
        Estimate(gpu_hours=math.nan),
    ):  # type: ignore[arg-type]
        yield (
            f"estimate {str(wrong)[:20]}",
            answer(lambda of=wrong: costs.checked_estimate("hooks:estimate", of) is of),
        )
    need = Need(what="model m", problem="not here", fetch="a:b", arguments={"x": 1})
    for given in ([need], (need, need), need, iter([need]), [], "x", {"a": need}, [1], None):
        yield (
            f"needs {type(given).__name__}",
            answer(lambda of=given: [each.what for each in costs.checked_needs("hooks:needs", of)]),
        )
    calls: list[int] = []
    measured = Measured({"fit": [Finished({"a": 1}, [{"b": 2}], 3.0)]})
    for _ in range(2):
        yield "once", measured.once(lambda of: (calls.append(1), len(of))[1])
    summary = lambda of: (calls.append(1), [*of])[1]  # noqa: E731
    yield (
        "twice",
        (
            measured.once(summary),
            measured.once(summary),
            len(calls),
            measured["fit"][0].seconds,
            len(Measured()),
        ),
    )
    for device, found in costs.DEVICES.items():
        yield f"device {device}", found._asdict()
    yield "hardware", Hardware(device="cpu", memory_gib=1.0, peak_tflops=0.1)


ASKED: dict[str, Callable[[], Answers]] = {
    "tables": tables,
    "said": said,
    "accounts_of_costs": accounts,
}
