"""A signal to all processes of a job: the stage saves and is released, whoever hears of it first."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from orchestrator.core.records import End
from orchestrator.core.sweep import ComposedSweep
from orchestrator.saving import MANIFEST
from orchestrator.stage import StageSpec
from orchestrator.store import layout
from tests import forked
from tests.execution.faults import order_for
from tests.execution.stages import READS, USES
from tests.execution.waiting import lives, signal_all, until
from tests.store.builders import instance_of, ledger_at, seal, sweep_of

WAITS = "{python} -c 'import time; print(1, flush=True); time.sleep(60)'"
SAVES = (
    "{python} -c 'import os, signal, sys, time; "
    "signal.signal(signal.SIGTERM, lambda n, _: (signal.signal(n, signal.SIG_IGN), "
    'os.makedirs("{checkpoints}/5", exist_ok=True), sys.exit(7))); '  # the worker's comes too
    "print(1, flush=True); time.sleep(60)'"
)
IN_A_SHELL = f"bash -c '{WAITS.replace(chr(39), chr(34))}; exit $?'"


class Job:
    """A worker as a batch script starts it, and what it left in the store."""

    def __init__(self, store: Path, sweep: ComposedSweep) -> None:
        self.folder_of_store, self.instance = store, instance_of(sweep)
        file = store.parent / "order.json"
        file.write_bytes(msgspec.json.encode(order_for(store, sweep.name, policy={"grace_s": 60.0})))
        self.process = forked.Started("orchestrator.execution.main", [str(file)])

    @property
    def folder(self) -> Path:
        """The first attempt's."""
        return self.folder_of_store / layout.payload(self.instance, 1)

    def wait_for(self, text: str) -> None:
        """Waits until a line of the stage's log says so, or a checkpoint of that step is whole."""
        log = self.folder / layout.LOG
        manifest = self.folder / layout.CHECKPOINTS / text / MANIFEST
        until(lambda: manifest.exists() or (log.exists() and text in log.read_text().splitlines()))

    def end(self) -> End:
        """Waits until the worker has ended; returns the end of the attempt."""
        assert self.process.wait(60) == 0
        attempt = ledger_at(self.folder_of_store).attempt(self.instance, 1)
        assert attempt is not None and attempt.end is not None
        return attempt.end


@pytest.fixture
def jobs() -> Iterator[list[Job]]:
    """Jobs that are ended after the test."""
    started: list[Job] = []
    yield started
    for job in started:
        if job.process.poll() is None:
            signal_all(job.process.pid, signal.SIGKILL)
        job.process.wait()


def start(jobs: list[Job], store: Path, spec: StageSpec, **count: object) -> Job:
    sweep = sweep_of(1, {"count": spec}, **count)
    seal(store, sweep)
    jobs.append(Job(store, sweep))
    return jobs[-1]


def checkpoints(job: Job) -> list[int]:
    return sorted(int(path.parent.name) for path in job.folder.glob(f"checkpoints/*/{MANIFEST}"))


def steps(job: Job) -> int:
    """How many steps the stage has logged."""
    metrics = job.folder / layout.METRICS
    return metrics.read_text().count("\n") if metrics.exists() else 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2])
def test_a_stage_that_sleeps_saves_at_its_next_step(store: Path, jobs: list[Job], number: int) -> None:
    function = StageSpec(run="orchestrator.count:main", reads=READS, uses=USES)
    job = start(jobs, store, function, num_steps=1000, checkpoint_every=2, step_s=0.5)
    until(lambda: steps(job) >= 3)  # past the checkpoint of step 2, after which it would end without another
    pids = signal_all(job.process.pid, number)
    assert len(pids) == 2
    step = steps(job)
    end = job.end()
    assert (end.outcome, end.why) == ("released", "stopped")
    saved = checkpoints(job)[-1]
    assert saved >= step and saved == steps(job)
    assert not any(lives(pid) for pid in pids)


@pytest.mark.parametrize(
    ("command", "number"),
    [
        (WAITS, signal.SIGTERM),
        (WAITS, signal.SIGUSR2),
        (SAVES, signal.SIGTERM),
        pytest.param(IN_A_SHELL, signal.SIGTERM, marks=pytest.mark.long),
        pytest.param(WAITS, signal.SIGUSR1, marks=pytest.mark.long),
        pytest.param(SAVES, signal.SIGUSR1, marks=pytest.mark.long),
    ],
)
def test_a_command_that_ends_by_the_signal_was_stopped(
    store: Path, jobs: list[Job], command: str, number: int
) -> None:
    job = start(jobs, store, StageSpec(command=command, reads=READS, uses=USES))
    job.wait_for("1")
    pids = signal_all(job.process.pid, number)
    assert len(pids) >= 3
    end = job.end()
    assert (end.outcome, end.why) == ("released", "stopped"), end.message
    assert checkpoints(job) == ([5] if command == SAVES else [])
    assert not any(lives(pid) for pid in pids)


def test_a_command_that_dies_long_before_its_stage_hears_of_a_stop_was_stopped(
    store: Path, jobs: list[Job]
) -> None:
    job = start(jobs, store, StageSpec(command=WAITS, reads=READS, uses=USES))
    job.wait_for("1")
    command, child, worker = (pid for pid in signal_all(job.process.pid, 0))
    os.kill(command, signal.SIGTERM)
    until(lambda: not lives(command))
    os.kill(child, signal.SIGTERM)
    os.kill(worker, signal.SIGTERM)
    assert job.end().outcome == "released"


def test_a_command_that_alone_is_ended_by_a_signal_has_failed(store: Path, jobs: list[Job]) -> None:
    job = start(jobs, store, StageSpec(command="bash -c 'kill $$'", reads=READS, uses=USES))
    until(lambda: job.folder.exists())
    until(lambda: ledger_at(store).attempt(job.instance, 2))
    attempt = ledger_at(store).attempt(job.instance, 1)
    assert attempt and attempt.end and "killed by signal 15" in attempt.end.message


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGTERM,
        pytest.param(signal.SIGUSR1, marks=pytest.mark.long),
        pytest.param(signal.SIGUSR2, marks=pytest.mark.long),
    ],
)
def test_ranks_save_together_and_end(store: Path, jobs: list[Job], number: int) -> None:
    spec = StageSpec(run="tests.sft.ranked:stage", reads=READS, uses=USES)
    job = start(jobs, store, spec, num_steps=100_000)
    metrics = job.folder / layout.METRICS
    until(lambda: metrics.exists() and metrics.read_text().count("\n") > 10)
    pids = signal_all(job.process.pid, number)
    assert len(pids) == 6  # worker, child, launcher with its watcher, and ranks
    end = job.end()
    assert (end.outcome, end.why) == ("released", "stopped"), end.log_tail
    (step,) = checkpoints(job)
    saved = job.folder / "checkpoints" / f"{step:08d}"
    assert [(saved / f"rank-{rank}").read_text() for rank in (0, 1)] == [str(step)] * 2
    assert not any(lives(pid) for pid in pids)


@pytest.mark.long
def test_ranks_that_are_only_starting_hear_of_a_stop_once_they_can(store: Path, jobs: list[Job]) -> None:
    spec = StageSpec(run="tests.sft.ranked:stage", reads=READS, uses=USES)
    job = start(jobs, store, spec, num_steps=100_000)
    seen: set[int] = set()
    while job.process.poll() is None:  # at each new process, from the child's birth on, all get another
        pids = signal_all(job.process.pid, 0)
        if len(pids) > 1 and set(pids) - seen:
            seen |= set(pids)
            for pid in pids[:-2]:
                os.kill(pid, signal.SIGTERM)
            if len(pids) == 6:
                signal_all(job.process.pid, signal.SIGTERM)
                break
    assert job.end().outcome == "released"
    assert checkpoints(job) == [1]
    assert not any(lives(pid) for pid in seen)
