"""Sweeps with stages of their own that the tests of several schedulers launch."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from tests.execution.faults import small_disk
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

FILLS = """
description: three cells that fit on the disk one at a time
config: {{seed: 0, meet: {meet}, mib: {mib}}}
axes: {{seed: "range(0,3)"}}
stages: {{fill: {{run: "own:fill", reads: [seed], uses: [meet, mib]}}}}
"""
FILLING = """
import os, pathlib, time

def fill(config, inputs, context):
    meet, large = pathlib.Path(context.uses.meet), context.output / "large"
    path = meet / str(config.seed)
    path.exists() or path.touch()
    while len(list(meet.iterdir())) < 3:
        time.sleep(0.1)
    start = max(path.stat().st_mtime for path in meet.iterdir()) + 1
    if time.time() > start:
        start = time.time() // 1 + 2  # after a pause, which ends when a second begins
    with large.open("wb") as stream:
        os.posix_fallocate(stream.fileno(), 0, context.uses.mib * 2**20 // 5)
        time.sleep(start - time.time())  # all that run get here, and go on at one moment
        os.posix_fallocate(stream.fileno(), 0, context.uses.mib * 2**20 * 4 // 5)
        time.sleep(0.3)
    large.unlink()
    return [{"seed": config.seed}]
"""
DISK_MIB = 32


@contextmanager
def on_small_disk(jobs: OnScheduler) -> Iterator[None]:
    """Have the store of a test on a small file system."""
    with small_disk(jobs.folder.parent / "disk", f"{DISK_MIB}m") as disk:
        jobs.store = disk / "store"
        jobs.env["SWEEP_STORE"] = str(jobs.store)
        yield


def assert_all_end_one_after_the_other(jobs: OnScheduler, *words: str) -> None:
    """Run three cells that lack space together twice, and then take turns."""
    meet = jobs.folder / "meet"
    meet.mkdir()
    (jobs.folder / "jobs.yaml").write_text(FILLS.format(meet=meet, mib=DISK_MIB - 4))  # beside the snapshot
    (jobs.folder / "own.py").write_text(FILLING)
    said = jobs("launch", "jobs.yaml", *words, "policy.space_pause_s=4", "--wait")
    assert "waiting: " in said and ". fill lacked space on a disk: " in said, said
    assert "jobs@1: 3 cells: 3 done" in said, said
    ends = jobs.ends()
    causes = Counter(end["cause"] for end in ends)
    assert causes[None] == 3 and causes["storage"] >= 4, "at least two lacked space twice"
    last = sorted(end["at"] for end in ends if end["outcome"] == "succeeded")
    assert len({*last}) == 3, "one after the other, as each takes two seconds"


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
