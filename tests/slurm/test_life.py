"""What ends a job before its work is done, and how the work goes on: limits, people, other people's jobs."""

from __future__ import annotations

from tests.commands.launches import records

BLIND = """
import time


def blind(config, inputs, context):
    time.sleep(600)
"""
MINUTE = ("cluster.hours=0.016", "cluster.min_hours=0.016")
"""A limit of one minute, of which the notice (cluster.signal_s) takes half."""


def tell(jobs, only=None):
    for words in (("status", "jobs"), ("why", "jobs", next(iter(jobs.states()))), ("logs", "jobs", next(iter(jobs.states()))), ("logs", "jobs", next(iter(jobs.states())), "--job")):
        print("$", *words)
        print(jobs(*words, code=None))


def test_a_job_near_its_limit_saves_a_checkpoint_starts_itself_anew_and_goes_on(jobs):
    jobs.launch(jobs.write(cells=1, steps=60, step_s=0.2), *MINUTE)
    jobs.until_checkpoints(2)
    task = jobs.task()
    jobs.cluster.run("scancel", "--signal=USR1", task)
    jobs.until_job("PENDING", task)
    [end] = jobs.ends()
    assert (end["outcome"], end["why"]) == ("released", "deadline")
    jobs.until(lambda: "waits to be started anew after REQUEUED" in jobs.why())
    assert "1 queued" in jobs("reconcile", "jobs")
    jobs.wake()
    jobs.until_done(1)
    jobs.assert_counted(60)
    assert jobs.steps() == list(range(1, 61))
    parent = jobs.starts()[-1]["parent"]
    assert parent["attempt"] == 1 and parent["step"] >= 10
    jobs.until_job("", task)
    jobs("reconcile", "jobs")
    tell(jobs)
    assert len(jobs.submissions()) == 1
    assert [over["cause"] for over in jobs.closings()] == [None]


def test_a_job_too_short_for_any_checkpoint_fails_by_its_time_limit(jobs):
    jobs.write_stages(BLIND)
    name = jobs.write(cells=1, stage="blind")
    jobs.launch(name, *MINUTE, "policy.checkpoint_interval_s=1000", "policy.grace_s=1")
    jobs.until(jobs.beats)
    task = jobs.task()
    jobs.cluster.run("scancel", "--signal=USR1", task)
    jobs.until_job("", task)
    tell(jobs)
    print(jobs("reconcile", "jobs", code=None))
    tell(jobs)
    jobs.until(lambda: len(jobs.beats()) == 1)
    jobs.cluster.run("scancel", "--signal=USR1", jobs.task())
    jobs.until_job("")
    print(jobs("reconcile", "jobs", code=None))
    tell(jobs)


def test_a_running_job_that_somebody_cancels_stays_so_until_the_next_launch(jobs):
    name = jobs.write(cells=1, steps=60, step_s=0.2)
    jobs.launch(name)
    jobs.until_checkpoints(2)
    task = jobs.task()
    jobs.cluster.run("scancel", task)
    jobs.until_job("", task)
    jobs.until(lambda: jobs.counts() == {"failed": 1})
    print(jobs("reconcile", "jobs", code=1))
    tell(jobs)
    print(jobs.launch(name))
    jobs.until_done(1)
    tell(jobs)
    assert jobs.steps() == list(range(1, 61))


def test_a_waiting_job_that_somebody_cancels_stays_so_until_the_next_launch(jobs):
    name = jobs.write(cells=1)
    jobs.launch(name, "cluster.sbatch.hold=true")
    jobs.cluster.run("scancel", jobs.task())
    jobs.until_job("")
    jobs.until(lambda: jobs.counts() == {"failed": 1})
    tell(jobs)
    print(jobs("reconcile", "jobs", code=1))
    tell(jobs)
    print(jobs.launch(name))
    jobs.until_done(1)
    tell(jobs)


def test_preempt(jobs):
    jobs.launch(jobs.write(cells=1, steps=200, step_s=0.1), "launcher.resources={'': {partition: low, cpus: 32}}")
    jobs.until_checkpoints(2)
