"""Sweeps with stages of their own that the tests of several schedulers launch."""

from __future__ import annotations

import json

from tests.launchers.on_scheduler import OnScheduler

MOLD = """
description: one long cell and two short ones
config: {hours: 1}
axes: {hours: [1, 8, 3]}
stages: {train: {run: "own:train", reads: [hours], estimate: "own:cost"}}
"""
MOLDED = """
import os
from orchestrator.costs import Estimate

def cost(config, **_):
    return Estimate(wall_hours=float(config.hours), num_gpus=1)

def train(config, inputs, context):
    return [{"gpus": len(os.environ["CUDA_VISIBLE_DEVICES"].split(","))}]
"""
BOX = """
description: a sweep with a box of cells that fail
config: {{task: a, seed: 0, broken: {flag}}}
axes: {{task: [a, b], seed: "range(0,6)"}}
stages: {{fit: {{run: "own:fit", reads: [task, seed], uses: [broken]}}}}
"""
BOXED = """
import pathlib
import time

def fit(config, inputs, context):
    if config.task == "b" and pathlib.Path(context.uses.broken).exists():
        raise ValueError(f"row {config.seed} of /data/{config.seed}.jsonl has no answer")
    start = context.resume.step if context.resume else 0
    for step in range(start + 1, 21 if config.task == "b" else 3):
        time.sleep(0.1)
        if context.checkpoint_due(step):
            with context.checkpoint(step) as folder:
                (folder / "state").write_text(str(step))
        context.stop_if_asked()
    return [{"seed": config.seed}]
"""


def write_moldable(jobs: OnScheduler) -> str:
    """Write a sweep of three cells, of 1, 8 and 3 hours, whose rows hold their GPUs; return its file."""
    (jobs.folder / "jobs.yaml").write_text(MOLD)
    (jobs.folder / "own.py").write_text(MOLDED)
    return "jobs.yaml"


def gpus_by_hours(jobs: OnScheduler) -> dict[int, int]:
    """Return the GPUs that each cell of the moldable sweep had, by its hours."""
    jobs("collect", "jobs", "--out", "rows.json")
    return {row["hours"]: row["gpus"] for row in json.loads((jobs.folder / "rows.json").read_text())}


def assert_box_is_held_until_mended_and_budget_ends(jobs: OnScheduler, *words: str) -> None:
    """Run a sweep, half of whose cells fail alike; mend it, and let its budget end while it runs again.

    Args:
        jobs: where.
        words: of a launch whose workers hold one GPU each, one at a time.
    """
    flag = jobs.folder / "broken"
    flag.touch()
    (jobs.folder / "jobs.yaml").write_text(BOX.format(flag=flag))
    (jobs.folder / "own.py").write_text(BOXED)
    jobs("launch", "jobs.yaml", *words, "policy.checkpoint_interval_s=0.3")
    jobs.until(lambda: jobs.counts() == {"done": 6, "failed": 3, "blocked": 3})
    held = [cell for cell, state in jobs.states().items() if state == "blocked"]
    assert all("3 cells with task=b failed alike: ValueError: row" in jobs.reasons()[cell] for cell in held)
    assert "sweep rerun jobs --only task=b" in jobs.why(held[0])
    (failure,) = jobs.json("failures", "jobs")["failures"]
    assert (len(failure["cells"]), sorted(failure["held"])) == (3, sorted(held))
    assert jobs.json("nodes") == []  # no machine is to blame
    before = len(jobs.submissions())
    jobs("reconcile", "jobs", code=1)
    assert len(jobs.submissions()) == before  # no job for cells that would start nothing

    flag.unlink()
    spent = jobs.json("status", "jobs", "--spent")["budget"]["spent_gpu_hours"]
    budget = spent + 7 / 3600  # six cells need 12 s of a GPU, and their workers some for their start
    jobs("rerun", "jobs", "--only", "task=b", f"policy.budget.gpu_hours={budget}")
    # A job of the first launch may have been open, and it alone was allowed to run.
    jobs.until(lambda: jobs("reconcile", "jobs", code=None) and set(jobs.counts()) == {"done", "blocked"})
    assert 6 < jobs.counts()["done"] < 12
    assert any("are spent" in reason for reason in jobs.reasons().values())
    found = jobs.json("status", "jobs", "--spent")
    assert abs(found["budget"]["spent_gpu_hours"] - budget) < 4 / 3600
    (gpus,) = [each for each in found["spent"] if each["unit"] == "gpu_seconds"]
    assert abs(sum(gpus["parts"].values()) - gpus["total"]) < 1e-6 and gpus["parts"]["compute"] > 3
    jobs("launch", "jobs.yaml", *words, "policy.budget.gpu_hours=1")
    jobs.until(lambda: jobs("reconcile", "jobs", code=None) and jobs.counts() == {"done": 12})
