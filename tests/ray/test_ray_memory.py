"""A node that runs out of memory: Ray kills all actors there, and the cell that held it alone is at fault."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.launches import wait_for
from tests.conftest import TEMPORARY
from tests.ray.sweeps import OnRay
from tests.ray.testbed import RayCluster

FREE_GIB, HOG_GIB = 2.5, 3.5
HOG = f"""
import time


def hog(config, inputs, context):
    held = []
    for step in range(1, 101):
        if config.seed == 0 and len(held) < {HOG_GIB} * 8:
            held.append(b"x" * 2**27)
        context.log(step, num_steps=100, held=len(held))
        context.stop_if_asked()
        time.sleep(0.08)
    return [{{"seed": config.seed}}]
"""


def threshold() -> float:
    """A share of this machine's memory that leaves `FREE_GIB` more to use than is used before Ray starts."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    meminfo = {line.partition(":")[0]: int(line.split()[1]) / 2**20 for line in lines}
    total = meminfo["MemTotal"]
    return (total - meminfo["MemAvailable"] + FREE_GIB) / total


@pytest.fixture(params=["head elsewhere", "one machine", "configured"])
def short(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[OnRay]:
    """A node of four CPUs whose memory ends soon; its head is on a machine of its own, or on the same."""
    folder = Path(tempfile.mkdtemp(prefix="sweep-ray.", dir=TEMPORARY))
    limits = {"memory_usage_threshold": round(threshold(), 3), "memory_monitor_refresh_ms": 100}
    head = {"RAY_memory_monitor_refresh_ms": "0"} if request.param != "one machine" else {}
    if request.param == "configured":
        cluster = RayCluster(folder / "ray", [{}], head=head, config=limits)
    else:
        cluster = RayCluster(folder / "ray", [{}], {f"RAY_{k}": str(v) for k, v in limits.items()}, head)
    try:
        cluster.up()
        (tmp_path / "project").mkdir()
        on = OnRay(cluster, tmp_path / "project", tmp_path / "store")
        yield on
        on.end_drivers()
    finally:
        cluster.down()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.long
def test_the_cell_that_needs_too_much_memory_fails_and_those_beside_it_are_done(short: OnRay) -> None:
    short.write_stages(HOG)
    name = short.write(cells=4, stage="hog")
    said = short("launch", name, *short.words, "--wait", timeout_s=280, code=1)
    assert short.counts() == {"done": 3, "failed": 1}, said
    (failed,) = [cell for cell, state in short.states().items() if state == "failed"]
    assert failed.startswith("seed0")
    reason = short.reasons()[failed]
    assert "oom_host, 2 attempts" in reason and "Ray's memory monitor ended its worker" in reason
    ends = short.ends()
    assert sum(end["cause"] == "oom_host" for end in ends) == 2
    assert {end["cause"] for end in ends} <= {None, "oom_host", "preempted"}
    assert len(short.claims()) <= 12
    wait_for(lambda: not short.driver_pids())
