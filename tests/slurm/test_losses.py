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


def stop_processes(jobs):
    pass


def worker(jobs):
    return records(jobs.store, "claim.json")[-1]["owner"]["process"]["pid"]


def test_node_lost(jobs):
    words = (jobs.write(cells=1, steps=150, step_s=0.2), "policy.lease_s=5")
    jobs.launch(*words)
    jobs.until_checkpoints(2)
    task = jobs.task()
    with Meanwhile(jobs, words) as m:
        jobs.cluster.lose("node1")
        jobs.until_job("PENDING", task)
        tell(jobs)
        jobs.wake()
        jobs.until_job("RUNNING", task)
        time.sleep(1)
        tell(jobs)
        jobs.until_done(1)
    print(m.most, m.errors)
    print(jobs.cluster.run("sacct", "-nPXD", "-j", task, "-o", "JobID,State,ExitCode,NodeList,Start,End"))
    tell(jobs)
    print(jobs.steps())
    assert m.most == 1, not m.errors


def test_zombie(jobs):
    words = (jobs.write(cells=1, steps=250, step_s=0.2), "policy.lease_s=5")
    jobs.launch(*words)
    jobs.until_checkpoints(2)
    task, zombie = jobs.task(), worker(jobs)
    with Meanwhile(jobs, words) as m:
        jobs.cluster.kill("slurmd.node1")
        jobs.until_job("PENDING", task)
        os.kill(zombie, 0)
        tell(jobs)
        jobs.wake()
        jobs.until_job("RUNNING", task)
        until(lambda: len(records(jobs.store, "claim.json")) == 2)
        time.sleep(4)
        try:
            os.kill(zombie, 0)
            print("ZOMBIE LIVES")
        except OSError:
            pass
        tell(jobs)
        jobs.until_done(1)
    print(m.most, m.errors)
    print(jobs.cluster.run("sacct", "-nPXD", "-j", task, "-o", "JobID,State,ExitCode,NodeList,Start,End"))
    tell(jobs)
    print(jobs.steps())
    assert m.most == 1, not m.errors


@pytest.mark.parametrize("who", ["worker", "child", "srun"])
def test_kill(jobs, who):
    words = (jobs.write(cells=1, steps=100, step_s=0.2), "policy.lease_s=5")
    jobs.launch(*words)
    jobs.until_checkpoints(2)
    task = jobs.task()
    child = jobs.beats()[0]["child"]["pid"]
    parent = worker(jobs)
    if who == "srun":
        srun = [p for p in Path("/proc").glob("[0-9]*") if (p / "comm").exists() and (p / "comm").read_text() == "srun\n" and str(jobs.store).encode() in (p / "cmdline").read_bytes()]
        print(srun, [(p / "cmdline").read_bytes() for p in srun])
        for p in srun:
            os.kill(int(p.name), signal.SIGKILL)
    else:
        os.kill(child if who == "child" else parent, signal.SIGKILL)
    time.sleep(1)
    tell(jobs)
    if who != "child":
        jobs.until_job("", task)
        tell(jobs)
    print(jobs("reconcile", "jobs"))
    tell(jobs)
    jobs.until(lambda: "ended" in jobs("reconcile", "jobs") or jobs.counts() == {"done": 1})
    jobs.until_done(1)
    print(jobs.cluster.run("sacct", "-nPXD", "-j", task, "-o", "JobID,State,ExitCode,NodeList,Start,End"))
    tell(jobs)
    print(jobs.steps())


GREEDY = """
import os, time


def greedy(config, inputs, context):
    held = []
    context.log(1, attempt=context.attempt)
    with context.checkpoint(1) as folder:
        (folder / "state").write_text("x")
    size = int(os.environ.get("GREEDY_MB", "1200"))
    while len(held) * 50 < size:
        held.append(bytearray(50 << 20))
        for k in range(0, 50 << 20, 4096):
            held[-1][k] = 1
        time.sleep(0.1)
    time.sleep(15)
    return [{"mb": size}]
"""


def test_oom(jobs):
    jobs.write_stages(GREEDY)
    name = jobs.write(cells=1, stage="greedy")
    jobs.launch(name, "policy.lease_s=5", "cluster.memory_gib=0.8")
    task = jobs.task()
    jobs.until_job("RUNNING", task)
    jobs.until_job("", task, 60)
    tell(jobs)
    print(jobs.cluster.run("sacct", "-nPD", "-j", task, "-o", "JobID,State,ExitCode,NodeList,Start,End"))
    print(jobs("reconcile", "jobs"))
    tell(jobs)
    jobs.until_done(1)
    print(jobs.submissions())
    tell(jobs)
    print(jobs.cluster.run("sacct", "-nPD", "-j", task, "-o", "JobID,State,ExitCode,NodeList,Start,End"))


MEMORY = """
def memory(config, inputs, context):
    if context.attempt < 3:
        raise MemoryError("not enough")
"""


def test_oom_in_stage(jobs):
    jobs.write_stages(MEMORY)
    name = jobs.write(cells=1, stage="memory")
    jobs.launch(name, "policy.lease_s=5")
    task = jobs.task()
    time.sleep(2)
    jobs.until_job("", task, 60)
    tell(jobs)
    print(jobs("reconcile", "jobs", code=None))
    time.sleep(8)
    tell(jobs)
    print(jobs("reconcile", "jobs", code=None))
    tell(jobs)
    print([s["resources"]["memory_gib"] for s in jobs.submissions()])
