"""Tables of faults."""

from __future__ import annotations

import random
import statistics
from pathlib import Path

import pytest

from orchestrator.core.failure import Cause
from orchestrator.errors import UserError
from orchestrator.simulation.scenario import FaultKind, FaultTable, Strike, Target, fault_table
from tests.simulation.cluster import table


def test_the_measured_table_holds_the_published_counts() -> None:
    found = fault_table("llama3")
    assert sum(fault.count for fault in found.faults) == 419
    assert found.gpu_hours == 54 * 24 * 16_384
    assert "2407.21783" in found.source
    assert fault_table("x100").gpu_hours == pytest.approx(found.gpu_hours / 100)
    assert fault_table("x1000").gpu_hours == pytest.approx(found.gpu_hours / 1000)
    assert fault_table("none").draw(random.Random(0), Target(8)) is None


def test_faults_come_as_often_as_the_table_says() -> None:
    drawn, found = random.Random(0), table("unknown", 0.25)
    strikes = [found.draw(drawn, Target(4)) for _ in range(4000)]
    assert statistics.mean(s.seconds for s in strikes if s) == pytest.approx(3600, rel=0.05)
    assert found.draw(drawn, Target(0)) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no table of faults"),
        ("{", "no table of faults"),
        ('{"source": "", "gpu_hours": 0}', "out of range"),
        (
            '{"source": "", "gpu_hours": 1, "faults": [{"name": "", "count": -1, "cause": "nan"}]}',
            "out of range",
        ),
        ('{"source": "", "gpu_hours": 1, "faults": [{"name": "", "count": 1, "cause": "bad"}]}', "cause"),
        ('{"gpu_hours": 1}', "source"),
    ],
)
def test_a_table_that_is_none_is_refused(tmp_path: Path, text: str | None, message: str) -> None:
    path = tmp_path / "faults.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=message):
        fault_table(str(path))


def test_a_mistake_strikes_each_attempt_of_its_stage_and_cells_at_the_same_time() -> None:
    bug = FaultKind(name="bad row", cause=Cause.DATA, after_s=40.0, stage="train", axes={"task": "math"})
    found = FaultTable(source="ours", gpu_hours=1.0, faults=(bug,))
    drawn = random.Random(0)
    math = {"task": "math", "seed": "1"}
    assert found.draw(drawn, Target(8, "train", math)) == Strike(40.0, bug)
    assert found.draw(drawn, Target(0, "train", math)) == Strike(40.0, bug)
    assert found.draw(drawn, Target(8, "score", math)) is None
    assert found.draw(drawn, Target(8, "train", {"task": "code"})) is None
