"""A stage that ran out of host memory is run again by workers with more, and the others go on meanwhile."""

from __future__ import annotations

import pytest

from tests.cli.launches import records
from tests.ray.sweeps import OnRay

STAGE = """
import os

def train(config, inputs, context):
    if config.seed == 1 and context.attempt < 2:
        raise MemoryError
    return [{"seed": config.seed}]
"""


@pytest.mark.long
def test_the_next_workers_of_a_cell_that_lacked_memory_get_twice_as_much(jobs: OnRay) -> None:
    jobs.write_stages(STAGE)
    name = jobs.write(cells=3, stage="train")
    few = ("launcher.memory_gib=0.25", "launcher.idle_s=2", "policy.retries.oom_host=0")
    jobs.launch(name, *few)
    jobs.until(lambda: jobs.counts() == {"done": 2, "pending": 1})
    assert "another remedy is left" in jobs.why(next(c for c in jobs.states() if "seed1" in c))
    claims = [claim["cell"] for claim in records(jobs.store, "claim.json") if "seed1" in claim["cell"]]
    assert len(claims) == 1  # no worker with as little tried it again
    jobs("reconcile", "jobs")
    assert [each["resources"]["memory_gib"] for each in jobs.submissions()] == [0.25, 0.5]
    assert [len(each["tasks"][0]) for each in jobs.submissions()] == [3, 1]
    jobs.until_done(3)
    starts = [start["remedies"] for start in jobs.starts() if "oom_host" in start.get("remedies", {})]
    assert sorted(each["oom_host"] for each in starts) == [[0, 1], [0, 1], [0, 1], [1, 1]]
