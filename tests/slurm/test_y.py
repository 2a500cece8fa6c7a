"""y"""
from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from tests.commands.launches import records
from tests.slurm.test_life import Meanwhile, tell
from tests.worker.waiting import until


def test_local(jobs):
    name = jobs.write(cells=2)
    jobs.launch(name, "cluster.sbatch.hold=true")
    tasks = [jobs.task(), jobs.task(1)]
    print(jobs("launch", name, "launcher=local"))
    tell(jobs)
    print(jobs("reconcile", "jobs", code=None))
    for t in tasks:
        jobs.cluster.run("scontrol", "release", t)
    jobs.until_job("", tasks[0]); jobs.until_job("", tasks[1])
    tell(jobs)
    time.sleep(3)
    print(jobs.cluster.run("sacct", "-nPXD", "-j", tasks[0].split("_")[0], "-o", "JobID,State,ExitCode,NodeList,Start,End"))
    print(jobs("reconcile", "jobs", code=None))
    jobs.assert_each_done_once(2)
    assert len(records(jobs.store, "claim.json")) == 2


def test_twice(jobs):
    name = jobs.write(cells=2, steps=60, step_s=0.2)
    jobs.launch(name)
    script = jobs.store / "sweeps/jobs/logs/jobs-000001/job.sh"
    again = jobs.cluster.run("sbatch", "--parsable", script)
    print(again)
    until(lambda: len(jobs.beats()) == 2)
    tell(jobs)
    print(jobs.cluster.job_states())
    print(jobs("reconcile", "jobs"))
    jobs.until_done(2)
    jobs.until(lambda: not jobs.cluster.job_states())
    tell(jobs)
    print([c["owner"] for c in records(jobs.store, "claim.json")])
    print(jobs("reconcile", "jobs"))
    print(jobs.closings())
    assert len(records(jobs.store, "claim.json")) == 2
