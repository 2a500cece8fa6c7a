"""Sweeps that tests give to the test bed, and what they read of their jobs."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.commands.launches import records, wait_for
from tests.conftest import Sweep
from tests.slurm.testbed import Testbed

COUNT = """
description: counting as jobs
config: {{seed: 0, count: {{num_steps: {steps}, checkpoint_every: 5, step_s: {step_s}, fail: null}}}}
axes: {{seed: "range(0,{cells})"}}
stages: [count]
"""
SLURM = ("launcher=slurm", "cluster=testbed", "cluster.memory_gib=1")


class OnSlurm(Sweep):
    """The command on a login node of the test bed."""

    def __init__(self, cluster: Testbed, folder: Path, store: Path) -> None:
        super().__init__(folder, store, cluster.env)
        self.cluster = cluster

    def write(self, name: str = "jobs", *, cells: int = 4, steps: int = 10, step_s: float = 0.0) -> str:
        """Writes a sweep that counts, and returns its file."""
        path = self.folder / f"{name}.yaml"
        path.write_text(COUNT.format(cells=cells, steps=steps, step_s=step_s))
        return path.name

    def launch(self, name: str = "jobs.yaml", *words: str, **more: Any) -> str:
        """Launches it on Slurm."""
        return self("launch", name, *SLURM, *words, **more)

    def counts(self, name: str = "jobs") -> dict[str, int]:
        """Number of cells by state, as `sweep status` says."""
        counts: dict[str, int] = self.json("status", name)["counts"]
        return counts

    def states(self, name: str = "jobs") -> dict[str, str]:
        """State by cell, in the order of the grid."""
        return {cell["cell"]: cell["state"] for cell in self.json("status", name)["cells"]}

    def reasons(self, name: str = "jobs") -> dict[str, str]:
        """Reason by cell."""
        return {cell["cell"]: cell["reason"] for cell in self.json("status", name)["cells"]}

    def until(self, condition: Callable[[], Any], timeout_s: float = 60) -> Any:
        """Waits for a condition that asks by commands, which take a while themselves."""
        deadline_s = time.monotonic() + timeout_s
        while not (value := condition()):
            assert time.monotonic() < deadline_s, "waited in vain"
            time.sleep(0.3)
        return value

    def until_done(self, cells: int, name: str = "jobs", timeout_s: float = 90) -> None:
        """Waits until every cell is done, by the store alone."""
        wait_for(lambda: len(list((self.store / "done").rglob("*.json"))) >= cells, timeout_s)
        assert self.counts(name) == {"done": cells}

    def wake(self) -> None:
        """Lets jobs that wait to be started anew start now."""
        for task in self.cluster.job_states("--states=PENDING"):
            self.cluster.ask("scontrol", "update", f"jobid={task}", "StartTime=now")

    def assert_each_done_once(self, cells: int) -> None:
        """Every product exists once; no attempt was repeated after it succeeded."""
        assert len(list((self.store / "done").rglob("*.json"))) == cells
        assert not list((self.store / "void").rglob("*.json"))
        ends = records(self.store, "end.json")
        assert sum(end["outcome"] == "succeeded" for end in ends) == cells

    def write_launcher(self, **settings: Any) -> str:
        """Writes a launcher of the project's own, and returns what chooses it."""
        path = self.folder / "conf/launcher/mine.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"defaults": ["slurm"], **settings}))
        return "launcher=mine"

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

    def submissions(self, name: str = "jobs") -> list[dict[str, Any]]:
        """The intents, oldest first."""
        paths = sorted((self.store / f"sweeps/{name}/submissions").glob("*.json"))
        return [json.loads(path.read_text()) for path in paths]

    def closings(self, name: str = "jobs") -> list[dict[str, Any]]:
        """The ends of jobs that were recorded."""
        paths = sorted((self.store / f"sweeps/{name}/submissions").glob("*/closings/*.json"))
        return [over for path in paths for over in json.loads(path.read_text())["over"]]
