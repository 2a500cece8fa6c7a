"""Nobody waits for the jobs: the driver sends the notices."""

from __future__ import annotations

import json

import pytest

from tests.cli.launches import wait_for
from tests.ray.sweeps import OnRay


@pytest.mark.long
def test_the_driver_tells_of_the_end_once(jobs: OnRay) -> None:
    told = jobs.folder / "told.jsonl"
    jobs.launch(jobs.write(cells=2), f"notify.command='cat >> {told}; echo >> {told}'")
    wait_for(told.exists, timeout_s=240)
    jobs.until_over()
    (line,) = told.read_text().splitlines()
    assert json.loads(line)["event"] == "done" and json.loads(line)["counts"] == {"done": 2}
    jobs("reconcile", "jobs")
    assert len(told.read_text().splitlines()) == 1
