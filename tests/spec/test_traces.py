"""What real runs leave in a store is a behaviour of the specification; what was forged is none."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.core.sweep import ComposedSweep
from orchestrator.count import COUNT
from tests.cli.launches import Running, wait_for
from tests.cli.test_training_survives import kill_the_training
from tests.execution import faults
from tests.execution.faults import Start, finish, order_for, starter
from tests.spec.check import missing
from tests.spec.trace import Step, behaviours, rejected
from tests.store.builders import ledger_at, seal, sweep_of

pytestmark = pytest.mark.skipif(missing() != "", reason=f"not on this machine: {missing()}")

TWO = {
    "first": COUNT,
    "second": COUNT.__class__(run=COUNT.run, reads=COUNT.reads, uses=COUNT.uses, after=("first",)),
}


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts real workers as processes; those that still live at the end of the test are killed."""
    started: list[faults.Running] = []
    yield starter(tmp_path, started)
    for running in started:
        running.end()


def killed_sweep(store: Path, start: Start, ks: list[int]) -> ComposedSweep:
    """Two stages for each k; their worker is killed at its k-th change to the store, another finishes."""
    sweep = sweep_of(len(ks), TWO)
    seal(store, sweep)
    for first in range(0, len(ks), 4):
        workers = [
            start(order_for(store, sweep.name, cells=(f"seed{n}",), policy={"lease_s": 60.0}), at=k)
            for n, k in list(enumerate(ks))[first : first + 4]
        ]
        for worker in workers:
            worker.wait()
    finish(start, order_for(store, sweep.name, policy={"lease_s": 60.0}))
    return sweep


def test_what_killed_workers_leave_is_a_behaviour_and_what_was_forged_is_none(
    store: Path, start: Start, tmp_path: Path
) -> None:
    sweep = killed_sweep(store, start, [9, 15])
    traces = list(behaviours(ledger_at(store), sweep).values())
    assert sum(step.event == "claims" for trace in traces for step in trace) > len(
        traces
    )  # some were repeated
    forged = [forge(trace) for trace in traces[-1:] for forge in FORGERIES.values()]
    honest = len(traces)
    wrong = rejected(traces + forged, tmp_path)
    assert not [index for index in wrong if index < honest], [traces[n] for n in wrong if n < honest]
    assert sorted(wrong) == list(range(honest, honest + len(forged))), FORGERIES.keys()


@pytest.mark.long
def test_what_workers_killed_at_each_step_leave_is_a_behaviour(
    store: Path, start: Start, tmp_path: Path
) -> None:
    sweep = killed_sweep(store, start, list(range(1, 26)))
    traces = list(behaviours(ledger_at(store), sweep).values())
    for first in range(0, len(traces), 10):
        folder = tmp_path / str(first)
        folder.mkdir()
        part = traces[first : first + 10]
        assert {n: part[n] for n in rejected(part, folder)} == {}


@pytest.mark.long
def test_the_killed_smoke_sweep_is_a_behaviour(sweep, tmp_path: Path) -> None:
    """Its training's child and worker are killed, and the worker of each evaluation."""
    words = (
        "launch",
        "smoke",
        "model=tiny-qwen3",
        "task=math",
        "mixture=en+es",
        "policy.checkpoint_interval_s=0",
    )
    words += ("policy.lease_s=3", "policy.retries.unknown=5", "policy.retention=best")
    launch = Running(sweep.folder, sweep.store, words)
    kill_the_training(sweep.store, "child", at_step=5, timeout_s=400)
    wait_for(
        lambda: len(list((sweep.store / "records" / "train").glob("*/*/claim.json"))) == 2, timeout_s=200
    )
    kill_the_training(sweep.store, "worker", at_step=20, timeout_s=400)
    code, output = launch.end(timeout_s=600)
    assert code == 0, output
    sweep("discard", "smoke", "task=math", "--stage", "train", "--reason", "a bug")
    sweep(*words, timeout_s=600)
    ledger = ledger_at(sweep.store)
    traces = behaviours(ledger, ledger.revision("smoke", ledger.revision_numbers("smoke")[-1]).sweep)
    of_training = next(steps for name, steps in traces.items() if name.endswith("-> train"))
    assert sum(step.event == "claims" for step in of_training if step.stage == "b") >= 4
    names = list(traces)
    assert {names[n]: traces[names[n]] for n in rejected(list(traces.values()), tmp_path)} == {}


def product_before_claim(trace: list[Step]) -> list[Step]:
    claims = [step for step in trace if step.stage == "b" and step.event == "claims"]
    return [step for step in trace if step not in claims] + claims


def second_owner(trace: list[Step]) -> list[Step]:
    n = next(n for n, step in enumerate(trace) if step.event == "claims" and step.stage == "b")
    return [*trace[: n + 1], trace[n]._replace(worker=1 - (trace[n].worker or 0)), *trace[n + 1 :]]


def other_generation(trace: list[Step]) -> list[Step]:
    return [
        step._replace(detail=2) if step.event == "finishes" and step.stage == "b" else step for step in trace
    ]


def input_that_was_not(trace: list[Step]) -> list[Step]:
    return [
        step._replace(detail=2) if step.event == "takes" and step.stage == "b" else step for step in trace
    ]


def gap_in_numbers(trace: list[Step]) -> list[Step]:
    return [step._replace(number=step.number + 1) if step.stage == "b" else step for step in trace]


def without_its_input(trace: list[Step]) -> list[Step]:
    return [step for step in trace if step.stage == "b"]


def end_of_another(trace: list[Step]) -> list[Step]:
    return [
        step._replace(worker=1 - (step.worker or 0)) if step.event == "ends" and step.stage == "b" else step
        for step in trace
    ]


FORGERIES = {
    forge.__name__: forge
    for forge in (
        product_before_claim,
        second_owner,
        other_generation,
        input_that_was_not,
        gap_in_numbers,
        without_its_input,
        end_of_another,
    )
}
