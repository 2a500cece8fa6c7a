"""Sweeps that tests give to the test bed, and what they read of their jobs."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

from tests.cli.launches import wait_for
from tests.launchers.on_scheduler import OnScheduler
from tests.slurm.testbed import Testbed

SLURM = ("launcher=slurm", "cluster=testbed", "cluster.memory_gib=1")


class OnSlurm(OnScheduler):
    """The command on a login node of the test bed."""

    def __init__(self, cluster: Testbed, folder: Path, store: Path) -> None:
        super().__init__(folder, store, cluster.env)
        self.cluster = cluster

    def launch(self, name: str = "jobs.yaml", *words: str, **more: Any) -> str:
        """Launches it on Slurm."""
        return self("launch", name, *SLURM, *words, **more)

    def wake(self) -> None:
        """Lets jobs that wait to be started anew start soon, but not within the second of their end.

        They would get the credential of before, which a node that has revoked it refuses: the job fails.
        """
        time.sleep(2)
        for task in self.cluster.job_states("--states=PENDING"):
            self.cluster.ask("scontrol", "update", f"jobid={task}", "StartTime=now")

    def wrap(self, command: str, body: str) -> None:
        """Puts a shell script of that name before Slurm's own command, which it knows as ``$real``."""
        real = shutil.which(command)
        folder = self.folder.parent / "wrapped"
        folder.mkdir(exist_ok=True)
        (folder / command).write_text(f"#!/bin/bash\nreal={real}\n{body}\n")
        (folder / command).chmod(0o755)
        self.env["PATH"] = f"{folder}:{os.environ['PATH']}"

    def unwrap(self) -> None:
        """Leaves all of Slurm's commands as they are."""
        self.env["PATH"] = os.environ["PATH"]

    def tasks(self) -> dict[str, str]:
        """State of each open task by ``name.index``, whose name is a submission's."""
        lines = self.cluster.run("squeue", "-hr", "-o", "%j.%K %T").splitlines()
        return dict(line.split() for line in lines)

    def open_jobs(self, name: str = "jobs") -> dict[str, list[str]]:
        """Open tasks by cell, as Slurm says; a task is one of a submission, by its name."""
        tasks = {
            f"{each['name']}.{index}": cells
            for each in self.submissions(name)
            for index, cells in enumerate(each["tasks"])
        }
        held: dict[str, list[str]] = {}
        for task in self.tasks():
            for cell in tasks.get(task, ()):  # the rest is of a former test, by a controller that was killed
                held.setdefault(cell, []).append(task)
        return held

    def task(self, index: int = 0, name: str = "jobs") -> str:
        """What Slurm calls a task of the last submission: ``12_0``."""
        path = sorted((self.store / f"sweeps/{name}/submissions").glob("*/job.json"))[-1]
        return f"{json.loads(path.read_text())['job']}_{index}"

    def array(self, name: str = "jobs") -> str:
        """What Slurm calls the array of the last submission: ``12``."""
        return self.task(name=name).partition("_")[0]

    def until_job(self, state: str, task: str | None = None, timeout_s: float = 40) -> str:
        """Waits until Slurm says that a task is in a state, "" for one that is queued no more; returns it."""
        task = task or self.task()
        wait_for(lambda: self.cluster.job_states().get(task, "") == state, timeout_s)
        return task
