"""Sweeps of any script, from a command line alone."""

from __future__ import annotations

import json
import os
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from orchestrator import log
from orchestrator.compose.given import given
from orchestrator.core.commandspec import lacks_results
from orchestrator.errors import StageFailure, UserError
from orchestrator.execution.command_output import CheckpointFiles, metrics_in, printed_row
from orchestrator.stage import Context, StageSpec
from tests.apps import app
from tests.conftest import Sweep

OPTIONS = ("python", "volatile", "checkpoints", "results", "metric", "keep", "shell")

SCRIPT = """
import argparse, json, os, sys, time

parser = argparse.ArgumentParser()
parser.add_argument("--lr", type=float)
parser.add_argument("--width", type=int)
parser.add_argument("--out")
parser.add_argument("--resume", default="")
args = parser.parse_args()
assert args.resume == os.environ["SWEEP_CHECKPOINT"]
start = step = int(open(args.resume).read()) if args.resume else 0
while step < 4:
    step += 1
    print(f"step={step}/4 loss={args.lr / step}", flush=True)
    with open(f"{args.out}/ckpt-{step}.pt", "w") as stream:
        stream.write(str(step))
    if step == 2 and not start:
        time.sleep(2.2)
        sys.exit("node failure")
print("best: 0.9\\nbest: 0.75")
json.dump({"start": start, "width": args.width}, open(f"{args.out}/rows.json", "w"))
"""


def of_run(command: str, *words: str, **options: list[str]) -> tuple[str, dict[str, Any]]:
    return given(None, command, words, {**{name: [] for name in OPTIONS}, **options})


def test_a_command_line_alone_gives_rows_metrics_and_goes_on_from_a_checkpoint_file(sweep: Sweep) -> None:
    (sweep.folder / "fit.py").write_text(SCRIPT)
    user = Sweep(sweep.folder, sweep.store, app.environment())
    command = "python fit.py --lr {lr} --width {width} --out {output} --resume '{checkpoint}'"
    options = [
        "--checkpoints",
        "ckpt-*.pt",
        "--results",
        "{output}/rows.json",
        "--metric",
        r"best=best: (\S+)",
    ]
    user("launch", "--run", command, "lr=1e-3", "width=64", *options)
    rows = user.json("collect", "fit")
    assert [(row["width"], row["start"], row["best"], row["attempts"]) for row in rows] == [(64, 2, 0.75, 2)]
    (end,) = sweep.store.glob("records/run/*/1/end.json")
    assert "code 1, last line: node failure (python" in end.read_text()
    metrics = [path.read_text() for path in sweep.store.glob("payload/run/*/2/metrics.jsonl")]
    assert [json.loads(line)["step"] for line in metrics[0].splitlines()] == [3, 4]
    assert json.loads(metrics[0].splitlines()[0])["num_steps"] == 4


@pytest.mark.long
def test_done_cells_without_the_results_that_are_read_now_are_named_by_plan_and_launch(sweep: Sweep) -> None:
    (sweep.folder / "fit.py").write_text("import sys\nprint('loss:', sys.argv[1])\n")
    sweep.env = {**app.environment(), "SWEEP_STORE": str(sweep.store)}
    words = ("--run", "python fit.py {lr}", "lr=1,2")
    assert "done without" not in sweep("launch", *words)
    words = (*words, "--metric", "loss=loss: (.*)")
    for verb in ("plan", "launch"):
        said = sweep(verb, *words)
        assert "2 cells done without what `results` or `metric` of run reads now" in said
    again = re.search("sweep (discard .*)", said)
    assert again is not None
    sweep(*shlex.split(again[1]))
    assert "done without" not in sweep("launch", *words)
    assert [row["loss"] for row in sweep.json("collect", "fit")] == [1, 2]


@pytest.mark.parametrize(
    ("options", "rows", "lacks"),
    [
        ({}, [], False),
        ({"results": "a.csv"}, [], True),
        ({"results": "a.csv"}, [{"x": 1}], False),
        ({"metric": {"loss": "(.)"}}, [], True),
        ({"metric": {"loss": "(.)"}}, [{"x": 1}], True),
        ({"metric": {"loss": "(.)"}}, [{"x": 1}, {"loss": 1}], False),
    ],
)
def test_a_product_lacks_results_if_none_of_their_columns_is_there(
    options: dict[str, Any], rows: list[dict[str, Any]], lacks: bool
) -> None:
    assert lacks_results(StageSpec(command="fit", **options), rows) is lacks
    assert not lacks_results(StageSpec(run="a:b"), rows)


def test_a_script_in_the_place_of_a_sweep_is_pointed_to_the_options_for_scripts(sweep: Sweep) -> None:
    (sweep.folder / "fit.py").write_text("")
    assert "by --run or --app; `sweep new fit.py` writes" in sweep("launch", "fit.py", "lr=1", code=2)


def test_names_in_braces_become_keys_and_the_sweep_has_the_name_of_the_script() -> None:
    name, tree = of_run(
        "python src/fit.py {lr} {opt.name} {output} {config.seed}", "lr=1,2", "opt.name=a", "seed=3"
    )
    assert (name, tree["config"]) == ("fit", {"lr": 1, "opt": {"name": "a"}, "seed": 3})
    assert tree["stages"]["run"] == {
        "command": "python src/fit.py {config.lr} {config.opt.name} {output} {config.seed}",
        "reads": ["lr", "opt.name", "seed"],
    }
    assert of_run("fit {lr} | tee x", "lr=1", shell=["true"])[1]["stages"]["run"]["shell"] is True
    assert of_run("python -m pkg.mod {lr}", "lr=1")[0] == "mod"
    assert of_run("accelerate launch --config x.yaml src/train.py {lr}", "lr=1")[0] == "train"
    assert of_run("torchrun {args}", "lr=1", "launcher=slurm", "policy.grace_s=3")[0] == "torchrun"


@pytest.mark.parametrize(
    ("command", "words", "options", "message"),
    [
        ("fit {lr}", [], {}, "{lr}, but nothing sets it"),
        ("fit {lr}", ["lr=1", "seed=2"], {}, "seed is set, but the command does not use it"),
        ("fit {lr}", ["+lr=1"], {}, "goes with a config"),
        ("fit {output}", ["output=1"], {}, "output is a name of Polysweep's own"),
        ("fit {policy}", ["policy=1"], {}, "policy=VALUE is a setting of Polysweep"),
        ("fit", [], {"volatile": ["x"]}, "--volatile does not go with --run"),
        ("fit", [], {"results": ["a", "b"]}, "given 2 times"),
        ("fit", [], {"metric": ["loss"]}, "NAME=REGEX"),
    ],
)
def test_mistakes_in_a_command_line_are_named(
    command: str, words: list[str], options: dict[str, list[str]], message: str
) -> None:
    with pytest.raises(UserError) as error:
        of_run(command, *words, **options)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("step=3 loss=0.5 acc: 1e-3", {"step": 3, "loss": 0.5, "acc": 0.001}),
        (
            "[12:30] Step: 12/100, train/loss: 0.7 lr=nan",
            {"step": 12, "num_steps": 100, "train/loss": 0.7, "lr": None},
        ),
        ("global_step=1 x=-2", {"step": 1, "x": -2.0}),
        ("\x1b[32mstep=\x1b[1m5\x1b[0m \x1b[36mloss\x1b[0m=\x1b[1m0.5\x1b[0m", {"step": 5, "loss": 0.5}),
        ("step=4", None),
        ("timestep=3 loss=1", None),
        ("step 3 loss 0.5", None),
    ],
)
def test_metrics_of_printed_lines(line: str, found: dict[str, Any] | None) -> None:
    assert metrics_in(line) == found


def test_a_metric_is_the_last_match_of_its_pattern() -> None:
    text = "loss: 3\nloss: 2.5\nname: a b\n"
    assert printed_row({"loss": r"loss: (\S+)", "name": "name: (.*)"}, text) == {"loss": 2.5, "name": "a b"}
    coloured = "\x1b[32mloss: \x1b[1m0.5\x1b[0m\n"
    assert printed_row({"loss": "^loss: (.*)$"}, coloured) == {"loss": 0.5}
    assert printed_row({"loss": "\x1b.32mloss: \x1b.1m(.*)\x1b"}, coloured) == {"loss": 0.5}
    with pytest.raises(StageFailure, match="nothing"):
        printed_row({"f1": r"f1: (\S+)"}, text)


def test_log_writes_for_a_sweep_and_does_nothing_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SWEEP_METRICS", raising=False)
    log(1, loss=0.5)
    monkeypatch.setenv("SWEEP_METRICS", str(tmp_path / "metrics.jsonl"))
    log(1, loss=0.5, num_steps=2)
    log(2, loss=float("nan"))
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == [{"step": 1, "loss": 0.5, "num_steps": 2}, {"step": 2, "loss": None}]


def test_of_a_program_that_saves_often_the_newest_complete_file_is_taken(tmp_path: Path) -> None:
    (tmp_path / "output").mkdir()
    files = CheckpointFiles(StageSpec(command="x", checkpoints="e=*.ckpt"), Context(tmp_path))
    for number in range(1, 4):  # at each look the newest is another file
        (tmp_path / f"output/e={number}.ckpt").write_text(str(number))
        os.utime(tmp_path / f"output/e={number}.ckpt", (number, number))
        files.look()
    taken = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert taken == ["1", "2"]
    (tmp_path / "output/e=3.ckpt").unlink()
    for _ in range(3):  # the deleted one was held, and older files are no newer checkpoints
        files.look()
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["2", "3"]
    assert (tmp_path / "checkpoints/3/e=3.ckpt").read_text() == "3"
