"""The test bed itself: that it is a Slurm which does what tests of the launcher rely on."""

from __future__ import annotations

import signal
import tempfile
import time
from pathlib import Path

import pytest

from tests.conftest import TEMPORARY
from tests.execution.waiting import until
from tests.slurm.testbed import Testbed


def test_four_nodes_come_up_idle_and_the_partitions_are_there(cluster):
    assert cluster.node_states() == {f"node{number}": "idle" for number in (1, 2, 3, 4)}
    partitions = cluster.run("sinfo", "--noheader", "--format=%R %l").split("\n")
    assert set(partitions) == {
        "hidden infinite",
        *(f"{name} infinite" for name in ("normal", "high", "low", "lowgrace")),
        "short 5:00",
    }


@pytest.mark.long
def test_an_array_runs_to_its_end_within_seconds(cluster):
    start_s = time.monotonic()
    job = cluster.submit("--array=0-19", wrap="true")
    until(lambda: not cluster.job_states(), timeout_s=20)
    print(f"20 tasks took {time.monotonic() - start_s:.1f} s")

    def ended() -> list[str]:
        return cluster.run("sacct", "-nXP", "-j", job, "--format=state").split()

    until(lambda: ended() == ["COMPLETED"] * 20, timeout_s=10)  # accounting follows a little later


def test_a_job_sees_the_gpus_that_it_asked_for(cluster):
    assert cluster.run("srun", "--gres=gpu:2", "bash", "-c", "echo $CUDA_VISIBLE_DEVICES") == "0,1"


@pytest.mark.long
def test_a_job_of_a_higher_partition_puts_one_of_the_low_partition_back_into_the_queue(cluster):
    low = cluster.submit("--partition=low", "--nodes=4", "--exclusive", wrap="sleep 60")
    until(lambda: cluster.job_states() == {low: "RUNNING"}, timeout_s=10)
    high = cluster.submit("--partition=high", "--nodes=4", "--exclusive", wrap="sleep 60")
    until(lambda: cluster.job_states() == {low: "PENDING", high: "RUNNING"}, timeout_s=10)


def test_more_jobs_than_the_limit_of_a_qos_are_refused(cluster):
    options = ("sbatch", "--parsable", "--qos=limited", "--output=/dev/null", "--wrap=sleep 60")
    refused = cluster.ask(*options, "--array=0-10")
    assert refused.returncode == 1
    assert "QOSMaxSubmitJobPerUserLimit" in refused.stderr
    cluster.run(*options, "--array=0-8")
    cluster.run(*options)
    assert cluster.ask(*options).returncode == 1


@pytest.mark.long
def test_commands_fail_soon_when_the_controller_is_stopped_and_what_they_sent_arrives_later(cluster):
    cluster.kill("slurmctld", signal.SIGSTOP)
    start_s = time.monotonic()
    refused = cluster.ask("sbatch", "--output=/dev/null", "--wrap=sleep 60")
    assert "timed out" in refused.stderr and refused.returncode == 1
    assert time.monotonic() - start_s < 15
    cluster.kill("slurmctld", signal.SIGCONT)
    until(cluster.job_states, timeout_s=10)  # Slurm has it, although sbatch said that it failed


@pytest.mark.long
def test_a_second_test_bed_without_accounting_stands_beside_the_first(cluster):
    with tempfile.TemporaryDirectory(
        prefix="sweep-slurm.", dir=TEMPORARY, ignore_cleanup_errors=True
    ) as folder:
        other = Testbed.start(Path(folder), nodes=1, gpus=0, accounting="none")
        try:
            assert list(other.node_states()) == ["node1"]
            assert other.run("srun", "echo", "here") == "here"
            refused = other.ask("sacct")
            assert refused.returncode == 1 and "accounting storage is disabled" in refused.stderr
        finally:
            other.stop()
    assert len(cluster.node_states()) == 4  # the first one never noticed


@pytest.mark.long
def test_a_node_whose_slurmd_is_killed_fails_its_job_and_comes_back(cluster):
    job = cluster.submit("--nodelist=node2", "--no-requeue", wrap="sleep 300")
    until(lambda: cluster.job_states() == {job: "RUNNING"}, timeout_s=10)
    cluster.kill("slurmd.node2")
    until(lambda: not cluster.job_states(), timeout_s=40)

    def state() -> str:
        return cluster.run("sacct", "-nXP", "-j", job, "--format=state")

    until(lambda: state() == "NODE_FAIL", timeout_s=10)
    cluster.revive()
    until(lambda: cluster.node_states()["node2"] == "idle", timeout_s=20)


@pytest.mark.long
def test_a_controller_that_was_killed_knows_its_jobs_when_it_is_back(cluster):
    job = cluster.submit(wrap="sleep 300")
    until(lambda: cluster.job_states() == {job: "RUNNING"}, timeout_s=10)
    held = cluster.submit("--hold", wrap="true")  # so that all is saved: a start by backfill alone is not
    time.sleep(8)  # it saves once in 5 s
    cluster.kill("slurmctld")
    assert cluster.ask("squeue").returncode == 1
    cluster.revive()
    assert cluster.job_states() == {job: "RUNNING", held: "PENDING"}


@pytest.mark.long
def test_a_lost_node_takes_its_processes_along(cluster):
    mark = cluster.folder / "alive"
    job = cluster.submit("--nodelist=node3", wrap=f"while sleep 0.1; do touch {mark}; done")
    until(mark.exists, timeout_s=10)
    cluster.lose("node3")
    mark.unlink(missing_ok=True)
    time.sleep(1)
    assert not mark.exists()
    until(lambda: cluster.job_states()[job] == "PENDING", timeout_s=40)  # requeued
