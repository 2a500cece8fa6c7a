"""A failure is data: whatever a stage does, its cell ends with a cause and the others go on."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.cli.launches import records, wait_for
from tests.execution.waiting import parent_of

FAILING = """
description: every way to fail beside a cell that does not
config: {kind: good, seed: 0, count: {num_steps: 3, checkpoint_every: 1, step_s: 0.0, fail: null}}
axes:
  kind:
    good: {seed: 1}
    raise: {seed: 2, count.fail: {how: raise, step: 2, attempts: 9}}
    data: {seed: 3, count.fail: {how: data, step: 2, attempts: 9}}
    config: {seed: 4, count.fail: {how: config, step: 2, attempts: 9}}
    nan: {seed: 5, count.fail: {how: nan, step: 2, attempts: 9}}
    memory: {seed: 6, count.fail: {how: memory, step: 2, attempts: 9}}
    exit: {seed: 7, count.fail: {how: exit, step: 2, attempts: 9}}
    kill: {seed: 8, count.fail: {how: kill, step: 2, attempts: 9}}
    hang: {seed: 9, count.fail: {how: hang, step: 2, attempts: 9}}
    chance: {seed: 10, count.fail: {how: chance, step: 2, attempts: 1}}
stages: [count]
"""
CAUSES = {
    "raise": ("code", 1),
    "data": ("data", 1),
    "config": ("config", 1),
    "nan": ("nan", 2),
    "memory": ("oom_host", 2),
    "exit": ("unknown", 2),
    "kill": ("unknown", 2),
    "hang": ("timeout", 2),
}


def test_each_way_to_fail_has_its_cause_and_its_own_number_of_retries(sweep):
    (sweep.folder / "failing.yaml").write_text(FAILING)
    output = sweep("launch", "failing.yaml", "+policy.limits_s.count=1.5", code=1)
    cells = {cell["axes"]["kind"]: cell for cell in sweep.json("status", "failing")["cells"]}
    found = {
        kind: (cell["cause"], cell["attempts"]) for kind, cell in cells.items() if cell["state"] == "failed"
    }
    assert found == CAUSES
    assert cells["good"]["state"] == cells["chance"]["state"] == "done"
    assert cells["chance"]["attempts"] == 2
    for cause in {cause for cause, _ in CAUSES.values()}:
        assert f"failed by {cause}: " in output
    assert output.count("sweep logs failing ") == len(CAUSES)
    ends = {end["cause"]: end for end in records(sweep.store, "end.json") if end["outcome"] == "failed"}
    assert "ValueError: scripted failure" in ends["code"]["log_tail"]
    assert ends["code"]["exception"] == "ValueError"
    assert "no end after its limit" in ends["timeout"]["message"]


@pytest.mark.long
def test_the_death_of_the_fork_server_costs_attempts_but_no_result(slow, background):
    launch = background("launch", "slow.yaml", "policy.retries.unknown=5", is_forked=False)
    wait_for(lambda: records(slow.store, "heartbeat.json"))
    children = [
        int(path.parent.name)
        for path in Path("/proc").glob("[0-9]*/cmdline")
        if b"forkserver" in path.read_bytes() and parent_of(int(path.parent.name)) == launch.process.pid
    ]
    assert children
    os.kill(children[0], signal.SIGKILL)
    code, output = launch.end(timeout_s=90)
    if code:  # the workers lost their server: the launch says so, and the next one finishes
        assert "cells:" in output or "worker" in output
        slow("launch", "slow.yaml", "policy.retries.unknown=5")
    assert slow.json("status", "slow")["counts"] == {"done": 6}


FULL = """
description: a stage that writes more than the disk holds
config: {num_mib: 64, seed: 0}
axes: {seed: [0, 1]}
stages: {fill: {run: "fill:main", reads: [seed], uses: [num_mib]}}
"""
FILL = """
def main(config, inputs, context):
    if config.seed == 0:
        with (context.output / "big").open("wb") as stream:
            for _ in range(context.uses.num_mib):
                stream.write(b"x" * 2**20)
    return [{"seed": config.seed}]
"""


def test_a_full_disk_is_a_storage_failure_and_loses_nothing_that_was_recorded(sweep, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.system(f"mount -t tmpfs -o size=16m tmpfs {disk} 2>/dev/null") != 0:
        pytest.skip("mounting a small tmpfs is not permitted here")
    try:
        (sweep.folder / "full.yaml").write_text(FULL)
        (sweep.folder / "fill.py").write_text(FILL)
        store = f"store.url={disk / 'runs'}"
        words = (
            "policy.retries.storage=0",
            "policy.space_pause_s=1",
            "launcher.workers=1",
        )  # or both may meet the full disk
        output = sweep("launch", "full.yaml", store, *words, code=1)
        assert "failed by storage: 1 stage" in output
        assert "No space left on device" in output
        assert "1 done" in sweep("status", "full", store)
        for path in disk.rglob("big"):
            path.unlink()
        again = sweep("launch", "full.yaml", store, "num_mib=1")
        assert "2 done" in again
    finally:
        os.system(f"umount {disk}")


ALIKE = """
description: failures that look alike, whatever number they name
config: {kind: good, seed: 0, count: {num_steps: 4, checkpoint_every: 1, step_s: 0.0, fail: null}}
axes:
  kind:
    good: {seed: 1}
    early: {seed: 2, count.fail: {how: raise, step: 2, attempts: 1}}
    late: {seed: 3, count.fail: {how: raise, step: 3, attempts: 1}}
    data: {seed: 4, count.fail: {how: data, step: 2, attempts: 1}}
stages: [count]
"""


def test_failures_that_look_alike_are_one_group_that_can_be_rerun_by_its_fingerprint(sweep):
    (sweep.folder / "alike.yaml").write_text(ALIKE)
    assert "alike@1 (not launched yet" in sweep("failures", "alike.yaml")
    sweep("launch", "alike.yaml", code=1)
    raised, data = sweep.json("failures", "alike")["failures"]
    assert (raised["cause"], raised["exception"], raised["num_stages"]) == ("code", "ValueError", 2)
    assert raised["pattern"] == "scripted failure at step #"
    assert raised["frames"][-2:] == ["count.py:main", "count.py:_fail_as_scripted"]
    assert [cell.split("-")[0] for cell in raised["cells"]] == ["early", "late"]
    assert data["cause"] == "data" and data["failure"] != raised["failure"]
    text = sweep("failures", "alike")
    assert f"{raised['failure']}  2 cells  count  code  ValueError: scripted failure at step #" in text
    assert f"sweep rerun alike --only failure={raised['failure']}" in text
    assert (
        sweep.json("failures", "alike", "--only", "kind=late")["failures"][0]["failure"] == raised["failure"]
    )
    assert "0123456789" in sweep("rerun", "alike", "--only", "failure=0123456789", code=2)
    sweep("rerun", "alike", "--only", f"failure={raised['failure']}", code=None)
    states = {cell["axes"]["kind"]: cell["state"] for cell in sweep.json("status", "alike")["cells"]}
    assert states == {"good": "done", "early": "done", "late": "done", "data": "failed"}
    assert [each["failure"] for each in sweep.json("failures", "alike")["failures"]] == [data["failure"]]
