"""Infinities and NaN: refused where they are typed, before anything is recorded, and named."""

from __future__ import annotations

import pytest

from orchestrator.core.records import StartRecord
from orchestrator.formats import encode
from tests.conftest import Sweep

SWEEP = """
description: counts
config:
  seed: 0
  extra: {rate: RATE, list: [1, 2]}
  count: {num_steps: 1, checkpoint_every: 1, step_s: 0, fail: null}
axes: {seed: [1, 2]}
stages: [count]
"""


@pytest.mark.parametrize(
    ("words", "key"),
    [
        (["policy.limits_s.count=.inf"], "policy.limits_s.count"),
        pytest.param(["policy.lease_s=inf"], "policy.lease_s", marks=pytest.mark.long),
        pytest.param(["policy.grace_s=nan"], "policy.grace_s", marks=pytest.mark.long),
        pytest.param(
            ["policy.checkpoint_interval_s=-inf"], "policy.checkpoint_interval_s", marks=pytest.mark.long
        ),
        pytest.param(["hardware.mfu=nan"], "hardware.mfu", marks=pytest.mark.long),
        (["cluster.hours=inf"], "cluster.hours"),
        pytest.param(["policy.limits_s.count=inf"], "policy.limits_s", marks=pytest.mark.long),
        pytest.param(["count.step_s=.inf"], "count.step_s", marks=pytest.mark.long),
        pytest.param(["extra.rate=.nan"], "extra.rate", marks=pytest.mark.long),
        pytest.param(["extra.rate=1,.inf"], "extra.rate", marks=pytest.mark.long),
        (["extra.list=[1,.nan]"], "extra.list[1]"),
        pytest.param(["seed=1,.nan"], "seed", marks=pytest.mark.long),
    ],
)
def test_a_number_that_is_not_finite_is_refused_and_nothing_is_recorded(
    sweep: Sweep, words: list[str], key: str
) -> None:
    (sweep.folder / "counts.yaml").write_text(SWEEP.replace("RATE", "1.5"))
    said = sweep("launch", "counts.yaml", *words, code=2)
    assert key in said
    assert not sweep.store.exists()


@pytest.mark.parametrize("rate", [".inf", "-.inf", ".nan"])
def test_one_in_a_sweep_file_is_refused_with_its_key(sweep: Sweep, rate: str) -> None:
    (sweep.folder / "counts.yaml").write_text(SWEEP.replace("RATE", rate))
    assert "extra.rate" in sweep("launch", "counts.yaml", code=2)
    assert not sweep.store.exists()


@pytest.mark.parametrize("key", ["neutral: {seed: .nan}", "limit_s: .inf"])
def test_one_in_a_stage_is_refused_with_its_key(sweep: Sweep, key: str) -> None:
    stage = f"{{act: {{command: 'true', reads: [seed], {key}}}}}"
    (sweep.folder / "acts.yaml").write_text(f"axes: {{seed: [1]}}\nconfig: {{seed: 0}}\nstages: {stage}\n")
    said = sweep("launch", "acts.yaml", code=2)
    assert key.partition(":")[0] in said and "stages.act" in said
    assert not sweep.store.exists()


def test_no_record_is_written_with_null_in_the_place_of_one() -> None:
    assert b'"parent":null' in encode(StartRecord(parent=None, uses={"a": 1.5}, provenance={}))
    for value in (float("inf"), float("nan")):
        with pytest.raises(ValueError, match="not finite"):
            encode(StartRecord(parent=None, uses={"a": [{"b": value}]}, provenance={}))
