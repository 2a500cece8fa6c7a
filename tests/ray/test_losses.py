"""What hits drivers, workers, nodes and the head without warning, or with little: nothing is lost or done twice."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest

from tests.commands.launches import checkpoints, wait_for
from tests.ray.sweeps import OnRay, parent_of
from tests.worker.waiting import lives

APART = "launcher.resources=[{custom: {apart: 1}}]"


def resumed(jobs: OnRay) -> float:
    """Waits until a second attempt has computed something; returns when that was."""
    wait_for(lambda: list(jobs.store.glob("payload/*/*/2/metrics.jsonl")), timeout_s=80)
    return time.monotonic()


def assert_none_was_computed_twice(jobs: OnRay, steps: int) -> None:
    """Every step of every cell was counted once, over all its attempts."""
    for cell in jobs.store.glob("payload/count/*"):
        paths = sorted(cell.glob("*/metrics.jsonl"), key=lambda path: int(path.parent.name))
        seen = [json.loads(line)["step"] for path in paths for line in path.read_text().splitlines()]
        assert seen == list(range(1, steps + 1)), cell


def test_each_killed_process_is_replaced_at_once_and_those_that_lost_theirs_save_a_checkpoint(jobs):
    jobs.launch(jobs.write(cells=4, steps=60, step_s=0.2))
    jobs.until_checkpoints(4)
    jobs.until_running(4)
    worker, childs, keepers, actors = jobs.claims()
    pids = [claim["owner"]["process"]["pid"] for claim in (worker, childs, keepers, actors)]
    (beat,) = [beat for beat in jobs.beats() if beat["folder"] == childs["folder"]]
    keeper, actor = parent_of(pids[2]), jobs.actor_of(pids[3])
    os.kill(pids[0], signal.SIGKILL)
    os.kill(beat["child"]["pid"], signal.SIGKILL)
    os.kill(keeper, signal.SIGKILL)
    os.kill(actor, signal.SIGKILL)
    killed_s = time.monotonic()
    print(f"resumed after {resumed(jobs) - killed_s:.1f} s")
    jobs.until_done(4)
    print(jobs.ends(), jobs.driver(), (jobs.store / "sweeps/jobs/logs/jobs-000001/0.log").read_text())
    jobs.assert_each_done_once(4)
    jobs.assert_counted(60)
