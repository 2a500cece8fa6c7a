"""Jobs that Slurm holds because a node failed to start them are released, and done."""

from __future__ import annotations

import pytest

from tests.slurm.sweeps import OnSlurm


@pytest.mark.long
def test_a_job_that_its_node_failed_to_start_is_released_by_the_next_reconcile(jobs: OnSlurm) -> None:
    folder = jobs.cluster.folder
    spools = [path for path in folder.glob("spool/*") if path.is_dir()]
    for spool in spools:  # no node can write the script of a job
        spool.rename(spool.with_name(f"{spool.name}.away"))
        spool.touch()
    try:
        jobs.write(cells=1, steps=4)
        jobs.launch()
        jobs.until(lambda: "requeued" in jobs.cluster.run("squeue", "-hr", "-o", "%r"))
    finally:
        for spool in spools:
            spool.unlink()
            spool.with_name(f"{spool.name}.away").rename(spool)
    jobs.cluster.revive()
    assert "can never start" not in jobs("reconcile", "jobs")
    jobs.until_done(1)
    jobs.assert_each_done_once(1)
