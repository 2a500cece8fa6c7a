"""x"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from tests.commands.launches import records
from tests.slurm.test_life import Meanwhile, tell
from tests.worker.waiting import until

OLD = """
def mine(config, inputs, context):
    return [{"word": "old"}]
"""


def test_old_code(jobs):
    jobs.write_stages(OLD)
    name = jobs.write(cells=1, stage="mine")
    jobs.launch(name, "cluster.sbatch.hold=true")
    jobs.write_stages(OLD.replace("old", "new"))
    print(jobs("status", "jobs"))
    jobs.cluster.run("scontrol", "release", jobs.task())
    jobs.until_done(1)
    print(jobs("show", "jobs", next(iter(jobs.states()))))
    tell(jobs)


@pytest.mark.parametrize("what", ["mine.py", "orchestrator/worker/loop.py"])
def test_damaged(jobs, what):
    jobs.write_stages(OLD)
    name = jobs.write(cells=1, stage="mine")
    jobs.launch(name, "cluster.sbatch.hold=true")
    [path] = (jobs.store / "code").glob(f"*/*/{what}")
    path.chmod(0o644)
    path.write_text(path.read_text() + "\n# changed\n")
    jobs.cluster.run("scontrol", "release", jobs.task())
    jobs.until_job("")
    tell(jobs)
    print(jobs("reconcile", "jobs", code=None))
    tell(jobs)
    print(jobs("reconcile", "jobs", code=None))
    print(jobs.closings())
    print(jobs.launch(name))
    jobs.until_done(1)
    tell(jobs)


def test_node_check(jobs):
    name = jobs.write(cells=3)
    words = [name, 'cluster.node_check=\'test "$SLURMD_NODENAME" != node1 || { echo no GPU >&2; exit 1; }\'']
    print(jobs.launch(*words, "launcher.max_running=1"))
    for n in range(8):
        jobs.until(lambda: not jobs.cluster.job_states())
        tell(jobs)
        print(jobs.closings())
        print(jobs("reconcile", "jobs", code=None))
        for sub in jobs.submissions():
            print(sub["number"], sub["exclude"], sub["tasks"])
        if jobs.counts() == {"done": 3}:
            break
    tell(jobs)


GPUS = """
import os, time


def gpus(config, inputs, context):
    for k in range(1, 400):
        if k > 100 and config.seed < 2: break
        time.sleep(0.1)
        if context.checkpoint_due(k):
            with context.checkpoint(k) as folder:
                time.sleep(2)
                (folder / "state").write_text("x")
            context.stop_if_asked()
    return [{"devices": os.environ.get("CUDA_VISIBLE_DEVICES"), "step": os.environ.get("SLURM_STEP_GPUS")}]
"""


@pytest.mark.parametrize("how", ["scancel", "USR1", "requeue"])
def test_side_by_side(jobs, how):
    jobs.write_stages(GPUS)
    name = jobs.write(cells=2, stage="gpus")
    minute = ("cluster.hours=0.016", "cluster.min_hours=0.016") if how == "USR1" else ()
    print(jobs.launch(name, "launcher.cells_per_job=2", "launcher.workers_per_job=2", "policy.lease_s=5", "launcher.resources=[{only: 'seed=0,1', gpus: 1}]", *minute, code=None))
    task = jobs.task()
    until(lambda: len(jobs.beats()) == 2)
    if how == "scancel":
        jobs.cluster.run("scancel", task)
    elif how == "USR1":
        jobs.cluster.run("scancel", "--signal=USR1", task)
    else:
        jobs.cluster.run("scontrol", "requeue", task)
    jobs.until_job("PENDING" if how != "scancel" else "", task)
    print(jobs.ends())
    tell(jobs)
    jobs.wake()
    if how == "scancel":
        print(jobs.launch(name))
    jobs.until_done(2)
    for d in (jobs.store / "done").rglob("*.json"):
        print(d.read_text())
    tell(jobs)
