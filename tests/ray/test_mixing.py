"""One sweep on one store by several launchers at once: whoever claims a stage first does it."""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from pathlib import Path

import pytest

from tests.cli.launches import Running, records, wait_for
from tests.conftest import TEMPORARY
from tests.ray.sweeps import OnRay
from tests.slurm.sweeps import SLURM
from tests.slurm.testbed import Testbed, Unavailable


def clusters(jobs: OnRay) -> Counter[str]:
    """Number of attempts by where their owner ran."""
    return Counter(claim["owner"]["cluster"] for claim in records(jobs.store, "claim.json"))


@pytest.mark.long
def test_ray_and_local_workers_share_the_cells_of_a_sweep(jobs: OnRay) -> None:
    name = jobs.write(cells=8, steps=10, step_s=0.2)
    assert "8 cells in 1 task" in jobs.launch(name, "launcher.max_workers=2")
    jobs.until_running(2)
    local = Running(jobs.folder, jobs.store, ("launch", name, "launcher.workers=2"))
    code, said = local.end()
    assert code == 0, said
    jobs.until_done(8)
    jobs.assert_each_done_once(8)
    jobs.assert_counted(10)
    assert min(clusters(jobs).values()) >= 2 and len(clusters(jobs)) == 2
    assert len(records(jobs.store, "claim.json")) == 8  # none was started twice
    jobs.until_over()
    assert "8 done" in jobs("reconcile", "jobs")


@pytest.mark.long
def test_slurm_ray_and_local_workers_share_a_sweep_at_once(jobs: OnRay) -> None:
    try:
        slurm = Testbed.start(Path(tempfile.mkdtemp(prefix="sweep-slurm.", dir=TEMPORARY)))
    except Unavailable as reason:
        pytest.skip(str(reason))
    try:
        jobs.env = {**jobs.env, **{k: v for k, v in slurm.env.items() if os.environ.get(k) != v}}
        name = jobs.write(cells=12, steps=20, step_s=0.4)
        by_ray = jobs.launch(name, "launcher.max_workers=2", "--only", "seed=0,1,2,3,4,5")
        by_slurm = jobs("launch", name, *SLURM, "launcher.max_running=2", "--only", "seed=4,5,6,7,8,9")
        assert "6 cells in 1 task" in by_ray
        assert "4 cells in 4 tasks" in by_slurm  # the driver holds the other two
        jobs.until_running(3)
        local = Running(jobs.folder, jobs.store, ("launch", name, "launcher.workers=2"))
        assert jobs.counts()["running"] >= 3
        code, said = local.end(180)
        assert code == 0, said
        jobs.until_done(12)
        jobs.assert_each_done_once(12)
        jobs.assert_counted(20)
        assert set(clusters(jobs)) == {"local", jobs.cluster.address, "testbed"}
        assert len(records(jobs.store, "claim.json")) == 12
        wait_for(lambda: not slurm.job_states())
        jobs.until_over()
        assert "12 done" in jobs("reconcile", "jobs")
        assert {over["index"] for over in jobs.closings()} == {0, 1, 2, 3}
        assert all(over["cause"] is None for over in jobs.closings())
    finally:
        slurm.stop()
