"""What ends a job before its work is done, and how the work goes on: limits, people, other people's jobs."""

from __future__ import annotations

import threading
import time

import pytest

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


def test_waiting_jobs_that_somebody_cancels_stay_so_until_the_next_launch(jobs):
    name = jobs.write(cells=2)
    jobs.launch(name, "cluster.sbatch.hold=true")
    jobs.cluster.run("scancel", jobs.task().partition("_")[0])
    jobs.until_job("")
    jobs.until(lambda: jobs.counts() == {"failed": 2})
    tell(jobs)
    print(jobs("reconcile", "jobs", code=1))
    tell(jobs)
    print(jobs.launch(name))
    jobs.until_done(2)
    tell(jobs)


class Meanwhile:
    """Runs `sweep reconcile` and `sweep launch` again and again, and watches that no cell has two jobs."""

    def __init__(self, jobs, name):
        self.jobs, self.name, self.most, self.errors, self.stop = jobs, name, 0, [], False

    def __enter__(self):
        self.threads = [threading.Thread(target=self.again), threading.Thread(target=self.watch)]
        for t in self.threads: t.start()
        return self

    def again(self):
        n = 0
        while not self.stop:
            try:
                print(self.jobs("reconcile", "jobs", code=None) if n % 3 else self.jobs.launch(*self.name, code=None))
            except AssertionError as error:
                self.errors.append(error)
            n += 1

    def watch(self):
        while not self.stop:
            self.most = max(self.most, len([t for t in self.jobs.cluster.job_states() if "_" in t]))
            time.sleep(0.2)

    def __exit__(self, *_):
        self.stop = True
        for t in self.threads: t.join()


@pytest.mark.parametrize("partition", ["low", "lowgrace"])
def test_preempt(jobs, partition):
    words = (jobs.write(cells=1, steps=100, step_s=0.2), f"cluster.sbatch.partition={partition}", "cluster.cpus=32", "policy.lease_s=5")
    jobs.launch(*words)
    jobs.until_checkpoints(2)
    task = jobs.task()
    with Meanwhile(jobs, words) as m:
        high = jobs.cluster.submit("--partition=high", "--nodes=4", "--exclusive", wrap="sleep 20")
        jobs.until_job("PENDING", task)
        tell(jobs)
        jobs.cluster.run("scancel", high)
        jobs.wake()
        time.sleep(2)
        tell(jobs)
        jobs.until_done(1)
    print(m.most, m.errors)
    print(jobs.cluster.run("sacct", "-nPXD", "-j", task, "-o", "JobID,State,ExitCode,NodeList,Start,End"))
    tell(jobs)
    print(jobs.steps())
    assert m.most == 1, not m.errors


def test_requeue(jobs):
    words = (jobs.write(cells=1, steps=100, step_s=0.2), "policy.lease_s=5")
    jobs.launch(*words)
    jobs.until_checkpoints(2)
    task = jobs.task()
    with Meanwhile(jobs, words) as m:
        jobs.cluster.run("scontrol", "requeue", task)
        jobs.until_job("PENDING", task)
        tell(jobs)
        jobs.wake()
        time.sleep(2)
        tell(jobs)
        jobs.until_done(1)
    print(m.most, m.errors)
    print(jobs.cluster.run("sacct", "-nPXD", "-j", task, "-o", "JobID,State,ExitCode,NodeList,Start,End"))
    tell(jobs)
    print(jobs.steps())
    assert m.most == 1, not m.errors
