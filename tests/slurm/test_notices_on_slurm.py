"""Nobody waits for the jobs: the last one of them sends the notices."""

from __future__ import annotations

import json

import pytest

from tests.cli.launches import wait_for
from tests.slurm.sweeps import OnSlurm
from tests.trackers.receiver import receiving

SWEEP = """
config: {seed: 0, count: {num_steps: 2, checkpoint_every: 1, step_s: 0, fail: null}}
axes: {seed: [0, 1]}
stages: [count]
"""


@pytest.mark.long
def test_the_last_job_tells_of_the_end_once(jobs: OnSlurm) -> None:
    (jobs.folder / "jobs.yaml").write_text(SWEEP)
    with receiving() as receiver:
        jobs.env["HOOK"] = receiver.url
        jobs.launch("jobs.yaml", "notify.webhook_env=HOOK", "launcher.max_running=1")
        wait_for(lambda: receiver.got, timeout_s=240)
        wait_for(lambda: not jobs.tasks(), timeout_s=120)
        assert receiver.kinds == ["done"]
        assert receiver.got[0]["counts"] == {"done": 2}
        jobs("reconcile", "jobs")
        assert (
            receiver.kinds == ["done"] and json.loads(jobs("status", "jobs", "--json"))["undelivered"] == []
        )
