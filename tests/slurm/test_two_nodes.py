"""One stage over two nodes of a job: the steps of one process, and an end that leaves nobody behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.execution.waiting import lives, parent_of, until
from tests.sft import chain
from tests.sft.conftest import STEPS, Ground, ground  # noqa: F401 - a fixture
from tests.sft.test_training import MIXTURE, adopt, train
from tests.sft.test_two_processes import distance

ROOT = Path(__file__).parents[2]


class Job:
    """A job of several nodes whose batch script starts a stage, and stays when that is gone."""

    def __init__(self, environment: dict[str, str], folder: Path, told: dict[str, Any]) -> None:
        self._environment = {**environment, "PYTHONPATH": str(ROOT)}
        self.folder = folder
        (folder / "pids").mkdir(parents=True)
        (folder / "told.json").write_text(json.dumps(told))
        script = f"cd {ROOT}\n{sys.executable} -m tests.slurm.stage {folder} & wait\nsleep 60"
        (folder / "job.sh").write_text(f"#!/bin/bash\ntrap '' TERM USR1 USR2\n{script}\n")
        self.number = self.run(
            *("sbatch", "--parsable", "--nodes=2", "--ntasks-per-node=1", "--mem=8G", "--time=5"),
            *(f"--output={folder}/log", str(folder / "job.sh")),
        ).strip()

    def run(self, *command: str) -> str:
        """Runs a command of Slurm's."""
        return subprocess.run(
            command, env=self._environment, check=True, capture_output=True, text=True
        ).stdout

    def end(self) -> None:
        """Ends it, if it still runs."""
        command = ["scancel", "--signal=KILL", "--full", self.number]
        subprocess.run(command, env=self._environment, check=False, capture_output=True)

    @property
    def log(self) -> str:
        """What job, launchers and ranks said."""
        path = self.folder / "log"
        return path.read_text() if path.exists() else ""

    def outcome(self, timeout_s: float = 60) -> list[Any]:
        """Waits for what the stage came to; by then none of its steps runs."""
        file = self.folder / "outcome.json"
        try:
            until(file.exists, timeout_s=timeout_s)
        except AssertionError:
            raise AssertionError(self.log) from None
        outcome: list[Any] = json.loads(file.read_text())
        return outcome

    def steps(self) -> list[str]:
        """The steps of ranks that Slurm knows to run."""
        listed = self.run("squeue", "--steps", f"--jobs={self.number}", "--noheader", "--format=%i")
        return [name for name in listed.split() if not name.endswith((".batch", ".extern"))]

    def pids(self, number: int) -> dict[str, int]:
        """Waits for the processes that `ranked.fail` notes: ranks by number, and a helper of each."""
        folder = self.folder / "pids"
        until(lambda: len([path for path in folder.glob("*") if path.read_text()]) == 2 * number)
        return {path.name: int(path.read_text()) for path in folder.iterdir()}


Submit = Callable[..., Job]


@pytest.fixture
def submit(cluster: Any, tmp_path: Path) -> Iterator[Submit]:
    """Submits jobs; those that still run at the end of the test are ended."""
    jobs: list[Job] = []

    def start(name: str = "job", **told: Any) -> Job:
        jobs.append(Job(cluster.env, tmp_path / name, told))
        return jobs[-1]

    yield start
    for job in jobs:
        job.end()


def training(ground: Ground, *overrides: str) -> dict[str, Any]:  # noqa: F811
    inputs = {
        stage: {label: str(path) for label, path in each.items()} for stage, each in ground.inputs.items()
    }
    return {"config": [MIXTURE, *STEPS, *overrides], "inputs": inputs}


@pytest.mark.long
@pytest.mark.parametrize("num_processes", [2, 4])
@pytest.mark.parametrize("sharding", ["fsdp", "ddp"])
def test_a_training_on_two_nodes_makes_the_steps_of_one_process(
    ground: Ground,  # noqa: F811
    tmp_path: Path,
    submit: Submit,
    num_processes: int,
    sharding: str,
) -> None:
    settings = (f"trainer.num_processes={num_processes}", f"trainer.sharding={sharding}")
    job = submit(**training(ground, *settings))
    one = train(ground, tmp_path / "one", *STEPS)
    assert job.outcome() == ["done", None], job.log
    two = job.folder / "attempt" / "output"
    assert json.loads((two / "training.json").read_text())["num_processes"] == num_processes
    assert distance(one, two) < 2e-6
    until(lambda: not job.steps(), timeout_s=5)


@pytest.mark.long
def test_ranks_know_nothing_of_the_job_around_them_and_share_one_context(
    tmp_path: Path, submit: Submit
) -> None:
    job = submit(function="know", config={}, num_processes=4)
    word, facts = job.outcome()
    assert word == "done", job.log
    assert [fact["rank"] for fact in facts] == [["0", "0"], ["1", "1"], ["2", "0"], ["3", "1"]]
    assert all(fact["world"] == ["4", "2"] for fact in facts)
    assert {fact["threads"] for fact in facts} == {"1"}
    assert not [name for fact in facts for name in fact["foreign"]]
    assert len({fact["port"] for fact in facts}) == 1 and facts[0]["port"] != "29500"


@pytest.mark.long
@pytest.mark.parametrize(
    "how",
    [
        (),
        pytest.param(("--signal=USR1",), marks=pytest.mark.long),  # to the ranks' step alone
        pytest.param(("--signal=TERM",), marks=pytest.mark.long),  # likewise: preemption with a time of grace
    ],
)
def test_a_cancelled_training_saves_and_goes_on_in_one_process_on_one_node(
    ground: Ground,  # noqa: F811
    tmp_path: Path,
    submit: Submit,
    how: tuple[str, ...],
) -> None:
    epochs = "trainer.num_epochs=10"
    job = submit(**training(ground, epochs, "trainer.num_processes=2", "trainer.sharding=fsdp"))
    step = job.folder / "step"
    until(lambda: step.exists() and int(step.read_text() or 0) >= 5)
    job.run("scancel", *how, job.number)
    assert job.outcome() == ["released", "stopped"], job.log
    checkpoint = chain.newest(job.folder / "attempt")
    assert checkpoint and checkpoint.step >= 5
    resumed = train(ground, tmp_path / "next", *STEPS, epochs, resume=adopt(checkpoint, tmp_path / "next"))
    assert distance(train(ground, tmp_path / "whole", *STEPS, epochs), resumed) < 2e-6


@pytest.mark.long
def test_where_srun_kills_the_ranks_for_a_signal_to_all_the_attempt_is_released(
    ground: Ground,  # noqa: F811
    submit: Submit,
) -> None:
    job = submit(**training(ground, "trainer.num_epochs=20", "trainer.num_processes=2"))
    step = job.folder / "step"
    until(lambda: step.exists() and int(step.read_text() or 0) >= 5)
    job.run("scancel", "--signal=TERM", "--full", job.number)
    assert job.outcome(20) == ["released", "stopped"], job.log


def waits(tmp_path: Path, num_processes: int) -> dict[str, Any]:
    """What has ranks wait for each other's end."""
    folder = tmp_path / "job" / "pids"
    return {
        "config": {"how": "wait", "rank": 0, "folder": str(folder)},
        "num_processes": num_processes,
    }


@pytest.mark.long
@pytest.mark.parametrize(("num_processes", "rank"), [(2, 1), (4, 3)])
def test_a_killed_rank_on_the_second_node_ends_all_and_is_named(
    tmp_path: Path, submit: Submit, num_processes: int, rank: int
) -> None:
    job = submit(function="fail", **waits(tmp_path, num_processes))
    pids = job.pids(num_processes)
    os.kill(pids[str(rank)], signal.SIGKILL)
    assert job.outcome(15) == ["failed", f"unknown: rank {rank} was killed by SIGKILL"], job.log
    assert not [name for name in map(str, range(num_processes)) if lives(pids[name])]
    # Helpers are in sessions of their own. The watcher of each node ends them once its launcher is gone.
    until(lambda: not [name for name, pid in pids.items() if lives(pid)], timeout_s=5)
    until(lambda: not job.steps(), timeout_s=5)


@pytest.mark.long
def test_a_killed_rank_is_named_though_its_node_reports_it_long_after_its_peer_has_failed(
    tmp_path: Path, submit: Submit
) -> None:
    """As on a busy machine: the launcher of its node is stopped for a while."""
    told = waits(tmp_path, 2)
    job = submit(function="fail", **{**told, "config": {**told["config"], "how": "meet", "rank": 1}})
    pids = job.pids(2)
    time.sleep(0.5)  # for its peer to come to where it waits
    launcher = parent_of(pids["1"])
    os.kill(launcher, signal.SIGSTOP)
    os.kill(pids["1"], signal.SIGKILL)
    until(lambda: not lives(pids["0"]))
    time.sleep(2)
    os.kill(launcher, signal.SIGCONT)
    assert job.outcome(20) == ["failed", "unknown: rank 1 was killed by SIGKILL"], job.log
    assert not [name for name, pid in pids.items() if lives(pid)]
    until(lambda: not job.steps(), timeout_s=5)


@pytest.mark.long  # the ranks of one node have a test of it that is not
def test_nobody_outlives_a_stage_that_is_killed(tmp_path: Path, submit: Submit) -> None:
    job = submit(function="fail", **waits(tmp_path, 2))
    pids = job.pids(2)
    os.kill(int((job.folder / "pid").read_text()), signal.SIGKILL)
    until(lambda: not [name for name, pid in pids.items() if lives(pid)], timeout_s=10)
    until(lambda: not job.steps(), timeout_s=10)
    assert job.run("squeue", f"--jobs={job.number}", "--noheader", "--format=%T").strip() == "RUNNING"
