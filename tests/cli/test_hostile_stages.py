"""Stages that misbehave: the engine keeps its promises whatever they do."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.cli.launches import records, running_heartbeats, wait_for

HOSTILE = """
description: stages that misbehave
config: {how: fine}
axes: {how: [fine, grandchild, float_step, own_integer, no_output, wild_rows, huge_message, catches_all]}
stages: {act: {run: "hostile:main", reads: [how]}}
"""
STAGE = """
import shutil, subprocess, time


class Integer(int):
    pass


def main(config, inputs, context):
    match config.how:
        case "grandchild":  # goes on writing into the output after the stage has returned
            file = context.output / "growing"
            file.write_text("y")
            for _ in range(3):  # of which one may not be scheduled for a while
                subprocess.Popen(["bash", "-c", f"while true; do echo y >> {file}; sleep 0.001; done"])
            time.sleep(0.3)
        case "float_step":
            context.log(1.0, loss=float("nan"))
        case "own_integer":
            context.log(Integer(3), loss=Integer(4), what=object())
        case "no_output":
            shutil.rmtree(context.output)
        case "wild_rows":
            return [{"loss": float("inf")}]
        case "huge_message":
            raise RuntimeError("x" * 5_000_000)
        case "catches_all":
            try:
                raise SystemExit(7)
            except BaseException:
                pass
    return [{"how": config.how}]
"""


def test_whatever_a_stage_does_its_cell_ends_and_the_launch_too(sweep):
    (sweep.folder / "hostile.yaml").write_text(HOSTILE)
    (sweep.folder / "hostile.py").write_text(STAGE)
    output = sweep("launch", "hostile.yaml", code=1)
    cells = {cell["axes"]["how"]: cell for cell in sweep.json("status", "hostile")["cells"]}
    states = {how: (cell["state"], cell["cause"]) for how, cell in cells.items()}
    assert states == {
        "fine": ("done", None),
        "float_step": ("done", None),
        "own_integer": ("done", None),
        "catches_all": ("done", None),
        "grandchild": ("failed", "code"),
        "no_output": ("failed", "code"),
        "wild_rows": ("failed", "code"),
        "huge_message": ("failed", "unknown"),
    }
    assert "the output changed after the stage returned" in output
    assert len(output) < 20_000
    assert not (sweep.store / "void").exists()


def test_a_reader_that_leaves_does_not_stop_a_launch(slow):
    command = f"{sys.executable} -m orchestrator launch slow.yaml count.step_s=0.01 | head -1"
    environment = {**os.environ, "SWEEP_STORE": str(slow.store)}
    subprocess.run(
        command, shell=True, cwd=slow.folder, env=environment, check=True, stdin=subprocess.DEVNULL
    )
    wait_for(lambda: slow.json("status", "slow")["counts"].get("done") == 6)
    assert [end["outcome"] for end in records(slow.store, "end.json")] == ["succeeded"] * 6


def test_plan_says_when_products_were_made_by_other_code_than_now(sweep):
    (sweep.folder / "own.yaml").write_text(
        "config: {seed: 0}\naxes: {seed: [0]}\nstages: {make: {run: 'own:main', reads: [seed]}}\n"
    )
    (sweep.folder / "own.py").write_text("def main(config, inputs, context):\n    return [{'version': 1}]\n")
    sweep("launch", "own.yaml")
    assert "made by other code" not in sweep("plan", "own.yaml")
    (sweep.folder / "own.py").write_text("def main(config, inputs, context):\n    return [{'version': 2}]\n")
    assert "made by other code than now" in sweep("plan", "own.yaml")
    sweep("discard", "own", "seed=0", "--stage", "make", "--reason", "version 1 was wrong")
    assert "1 done" in sweep("launch", "own.yaml")
    assert [row["version"] for row in sweep.json("collect", "own")] == [2]


def test_one_fork_server_serves_all_workers(slow, background):
    launch = background("launch", "slow.yaml", "launcher.workers=3", "count.step_s=0.3", is_forked=False)
    wait_for(lambda: len(running_heartbeats(slow.store)) == 3)
    servers = [
        path.parent.name
        for path in Path("/proc").glob("[0-9]*/cmdline")
        if path.exists() and b"forkserver" in path.read_bytes() and is_below(path.parent, launch.process.pid)
    ]
    # the server, three workers forked from it and up to three children of theirs bear its command line; a
    # server of each worker's own would make it ten
    assert 4 <= len(servers) <= 7
    launch.interrupt()
    assert launch.end()[0] == 1


def is_below(process: Path, ancestor: int) -> bool:
    while process.name not in ("0", "1"):
        try:
            parent = (process / "stat").read_text().rpartition(")")[2].split()[1]
        except OSError:
            return False
        if parent == str(ancestor):
            return True
        process = process.parent / parent
    return False


def test_an_unreadable_request_is_named_and_nothing_breaks(slow):
    slow("launch", "slow.yaml", "count.step_s=0.0")
    request = next(slow.store.glob("sweeps/slow/requests/*.json"))
    request.write_text(request.read_text().replace('"lease_s":', '"lease_s":"long","was":'))
    for words in (("status", "slow"), ("why", "slow", "seed=0"), ("plan", "slow.yaml", "count.step_s=0.0")):
        assert "is unreadable" in slow(*words)
    slow("launch", "slow.yaml", "count.step_s=0.0")
    assert len(records(slow.store, "claim.json")) == 6
