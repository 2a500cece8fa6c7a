"""Remedies with real workers: which rung attempts start on, what is recorded, and what it costs."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from orchestrator.core.evidence import Budget
from orchestrator.core.failure import Cause
from orchestrator.core.records import StartRecord
from orchestrator.core.state import State, stage_status
from orchestrator.core.sweep import ComposedSweep
from orchestrator.stage import StageSpec
from orchestrator.store.evidence import EvidenceReader
from tests.execution.faults import order_for
from tests.execution.here import Worked, work
from tests.store.builders import ledger_at, seal, sweep_of

USES = ("count.width", "count.parts", "count.fits", "count.adapts")
LADDER: tuple[dict[str, Any], ...] = ({"halve": "count.width", "double": "count.parts", "times": 2},)
HUNGRY = StageSpec(
    run="tests.execution.stages:hungry",
    reads=("count", "seed"),
    uses=USES,
    remedies={"oom_gpu": LADDER},
    alike=("count",),
)


def hungry(num_cells: int, *, fits: int, adapts: bool = False, **rest: Any) -> ComposedSweep:
    """Cells that start with a width of 8, of which `fits` fit."""
    count = {"width": 8, "parts": 1, "fits": fits, "adapts": adapts}
    return sweep_of(num_cells, {"count": HUNGRY}, **count, **rest)


def worked(store: Path, sweep: ComposedSweep) -> Worked:
    order = order_for(store, sweep.name, policy={"retries": {"oom_gpu": 0}})
    return work(ledger_at(store), seal(store, sweep), order)


def starts(store: Path, sweep: ComposedSweep) -> list[list[StartRecord]]:
    """The starts of each cell's attempts."""
    ledger = ledger_at(store)
    found = [ledger.attempts(instance) for instance in sweep.stages.values()]
    return [[a.start for a in attempts if a.start is not None] for attempts in found]


def state(store: Path, sweep: ComposedSweep, digest: str) -> State:
    evidence = EvidenceReader(ledger_at(store), sweep.stages.values()).evidence(digest)
    return stage_status(evidence, Budget({"oom_gpu": 0})).state


def test_a_class_climbs_the_ladder_once_and_its_next_cells_start_where_it_worked(tmp_path: Path) -> None:
    sweep = hungry(3, fits=2)
    worked(tmp_path, sweep)
    first, *others = starts(tmp_path, sweep)
    assert [start.remedies for start in first] == [{"oom_gpu": (rung, 2)} for rung in (0, 1, 2)]
    assert [start.uses["count"]["width"] for start in first] == [8, 4, 2]
    assert first[-1].before == {"count.width": 8, "count.parts": 1}
    assert [[start.remedies for start in each] for each in others] == [[{"oom_gpu": (2, 2)}]] * 2
    assert {state(tmp_path, sweep, digest) for digest in sweep.stages} == {State.DONE}
    ledger = ledger_at(tmp_path)
    done = [ledger.product(instance, 1)[0] for instance in sweep.stages.values()]
    assert [record.rows for record in done if record] == [({"width": 2, "parts": 4},)] * 3


def test_a_second_launch_with_more_cells_starts_where_the_first_one_ended(tmp_path: Path) -> None:
    worked(tmp_path, hungry(1, fits=2))
    more = hungry(2, fits=2)
    worked(tmp_path, more)
    assert [len(each) for each in starts(tmp_path, more)] == [3, 1]


def test_at_the_end_of_the_ladder_the_cause_stands_and_no_other_cell_climbs_it_again(tmp_path: Path) -> None:
    sweep = hungry(2, fits=1)
    worked(tmp_path, sweep)
    first, second = starts(tmp_path, sweep)
    assert [start.remedies["oom_gpu"][0] for start in first] == [0, 1, 2]
    assert [start.remedies["oom_gpu"][0] for start in second] == [2]
    for digest in sweep.stages:
        assert state(tmp_path, sweep, digest) is State.FAILED
    ends = [a.end for a in ledger_at(tmp_path).attempts(sweep.stages[sweep.cells[1].stage_digests[0]])]
    assert [end and end.cause for end in ends] == [Cause.OOM_GPU]


def test_what_a_stage_adapts_itself_is_recorded_while_it_runs_and_the_class_starts_there(
    tmp_path: Path,
) -> None:
    sweep = hungry(2, fits=4, adapts=True)
    worked(tmp_path, sweep)
    first, second = starts(tmp_path, sweep)
    assert [(start.remedies["oom_gpu"], start.uses["count"]["width"]) for start in first] == [((1, 2), 4)]
    assert [(start.remedies["oom_gpu"], start.before["count.width"]) for start in second] == [((1, 2), 8)]
    assert second[0].uses["count"] == {"width": 4, "parts": 2, "fits": 4, "adapts": True}


def test_a_command_gets_the_values_of_the_rung(tmp_path: Path) -> None:
    script = "printf 'width\\n%s\\n' {uses.count.width} > {output}/rows.csv; "
    script += "if [ {uses.count.width} -gt 4 ]; then echo 'RuntimeError: CUDA out of memory' >&2; exit 1; fi"
    spec = StageSpec(
        command=script,
        shell=True,
        reads=("seed",),
        uses=("count.width",),
        remedies={"oom_gpu": ({"halve": "count.width"},)},
        results="rows.csv",
    )
    sweep = sweep_of(1, {"count": spec}, width=8)
    worked(tmp_path, sweep)
    (attempts,) = starts(tmp_path, sweep)
    assert [start.uses["count"]["width"] for start in attempts] == [8, 4]
    assert state(tmp_path, sweep, next(iter(sweep.stages))) is State.DONE


@pytest.mark.long
def test_after_a_broken_connection_a_worker_pauses_and_then_goes_on(tmp_path: Path) -> None:
    spec = StageSpec(run="tests.execution.stages:cut_off", reads=("seed",), uses=USES)
    sweep = sweep_of(1, {"count": spec}, width=8, parts=1, fits=1, adapts=False)
    order = order_for(tmp_path, sweep.name, policy={"retries": {"communication": 2}})
    started_s = time.monotonic()
    work(ledger_at(tmp_path), seal(tmp_path, sweep), order)
    assert time.monotonic() - started_s > 1.0 + 2.0
    assert state(tmp_path, sweep, next(iter(sweep.stages))) is State.DONE
