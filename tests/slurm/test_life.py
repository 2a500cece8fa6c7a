"""What ends a job before its work is done, and how the work goes on: limits, people, other people's jobs."""

from __future__ import annotations

import pytest

from tests.cli.launches import records
from tests.slurm.meanwhile import Meanwhile
from tests.slurm.sweeps import OnSlurm

SHORT = ("cluster.hours=0.03", "cluster.min_hours=0.03")
"""Two minutes: SIGUSR1 is always believed, and Slurm's own does not come in the first half minute."""
BLIND = """
import time


def blind(config, inputs, context):
    time.sleep(600)
"""
SLOW_SAVER = """
import os
import time


def saver(config, inputs, context):
    start = context.resume.step if context.resume else 0
    for step in range(start + 1, 31):
        context.log(step)
        time.sleep(0.2)
        if context.checkpoint_due(step):
            with context.checkpoint(step) as folder:
                time.sleep(2)
                (folder / "state").write_text("saved")
            context.stop_if_asked()
    return [{"devices": os.environ.get("CUDA_VISIBLE_DEVICES")}]
"""


def assert_went_on(jobs: OnSlurm, steps: int) -> None:
    """The second attempt went on where the first had been asked to stop; no step was counted twice."""
    assert jobs.steps() == list(range(1, steps + 1))
    first, second = jobs.starts()
    assert first["parent"] is None and second["parent"]["attempt"] == 1
    jobs.assert_each_done_once(1)
    jobs.assert_counted(steps)


@pytest.mark.long
def test_a_job_near_its_limit_saves_a_checkpoint_starts_itself_anew_and_goes_on(jobs):
    jobs.launch(jobs.write(cells=1, steps=40, step_s=0.1), *SHORT)
    jobs.until_checkpoints(2)
    task = jobs.task()
    jobs.cluster.run("scancel", "--signal=USR1", task)
    jobs.until_job("PENDING", task)
    [end] = jobs.ends()
    assert (end["outcome"], end["why"]) == ("released", "deadline")
    jobs.until(lambda: "waits to be started anew after REQUEUED" in jobs.why())
    assert "to be started anew)" in jobs.why()  # its own last word
    assert "1 queued" in jobs("reconcile", "jobs")
    jobs.wake()
    jobs.until_done(1)
    assert_went_on(jobs, 40)
    jobs.until_job("", task)
    jobs("reconcile", "jobs")
    assert len(jobs.submissions()) == 1
    assert [over["cause"] for over in jobs.closings()] == [None]  # no budget is touched
    log = jobs("logs", "jobs", "seed=0", "--job")
    assert "attempt 1 released deadline" in log and "start 1, on node" in log
    assert "User defined signal" not in log and "Killed" not in log


@pytest.mark.long
def test_a_job_too_short_for_any_checkpoint_gets_twice_the_hours_once_and_is_not_started_anew_for_ever(jobs):
    jobs.write_stages(BLIND)
    minute = ("cluster.hours=0.015", "cluster.min_hours=0.015")
    jobs.launch(jobs.write(cells=1, stage="blind"), *minute, "policy.grace_s=1", "policy.retries.timeout=0")
    for number in (1, 2):  # the first time costs no retry, and there is none
        jobs.until(jobs.beats)
        task = jobs.task()
        jobs.cluster.run("scancel", "--signal=USR1", task)
        jobs.until_job("", task)
        said = jobs("reconcile", "jobs", code=None)
        assert len(jobs.submissions()) == min(number + 1, 2)
    assert [each["resources"]["hours"] for each in jobs.submissions()] == [0.015, 0.03]
    assert "jobs failed by timeout: 1 cell" in said and "ask for more hours" in said
    assert [over["cause"] for over in jobs.closings()] == ["timeout", "timeout"]
    assert "no checkpoint was finished within its time limit" in jobs.why()
    end = ("sacct", "-nPX", "-j", task, "--format=State,ExitCode")
    jobs.until(lambda: jobs.cluster.run(*end) == "FAILED|76:0")


@pytest.mark.long
def test_a_job_whose_start_takes_most_of_its_time_is_not_started_anew_for_ever(jobs):
    jobs.write_stages("import time\n\ntime.sleep(45)\n")
    minute = ("cluster.hours=0.016", "cluster.min_hours=0.016")
    jobs.launch(jobs.write(cells=1, stage="late"), *minute)
    jobs.until_job("RUNNING")
    jobs.until_job("", timeout_s=80)
    jobs.until(lambda: "ask for more hours" in jobs.why())
    assert not records(jobs.store, "claim.json")


@pytest.mark.long
def test_running_and_waiting_tasks_that_somebody_cancels_stay_so_until_the_next_launch(jobs):
    name = jobs.write(cells=3, steps=40, step_s=0.1)
    held = ("cluster.sbatch.hold=true", "cluster.settle_s=3", "--only", "seed=1,2")
    jobs.launch(name, *held)
    waits = jobs.task()
    jobs.launch(name, "cluster.settle_s=3", "--only", "seed=0")
    runs = jobs.task()
    jobs.until_checkpoints(2)
    jobs.launch(name, "cluster.settle_s=3", "--only", "seed=0,1")  # takes over the jobs of both
    jobs.cluster.run("scancel", runs, waits)
    jobs.until_job("", runs)
    jobs.until(lambda: jobs("reconcile", "jobs", code=None) and jobs.counts().get("failed") == 2)
    first, second, _ = jobs.states()
    assert list(jobs.states().values()) == ["failed", "failed", "queued"]
    assert "jobs failed by cancelled: 2 cells" in jobs("reconcile", "jobs", code=1)
    why = jobs.why(first)
    assert f"job {runs} ended CANCELLED on node" in why and "attempt 1 was released (stopped)" in why
    assert "ended CANCELLED" in jobs.why(second)
    assert "nothing yet: job" in jobs("logs", "jobs", "seed=1", "--job")
    assert len(jobs.submissions()) == 2
    jobs.launch(name, "--only", "seed=0,1")
    jobs.until(lambda: jobs.counts() == {"done": 2, "queued": 1})
    starts = [start["parent"]["attempt"] for start in jobs.starts() if start["parent"]]
    assert starts == [1]  # the one that ran went on where it had been asked to stop
    jobs.assert_counted(40)


@pytest.mark.long
def test_waiting_jobs_that_somebody_cancels_stay_so_until_the_next_launch(jobs):
    name = jobs.write(cells=2)
    jobs.launch(name, "cluster.sbatch.hold=true")
    jobs.launch(name)  # takes over the jobs that wait
    jobs("rerun", "jobs", "--only", "seed=1")
    jobs.cluster.run("scancel", jobs.task().partition("_")[0])
    jobs.until_job("")
    jobs.until(lambda: jobs.counts() == {"failed": 2})
    assert "jobs failed by cancelled: 2 cells" in jobs("reconcile", "jobs", code=1)
    assert "ended CANCELLED" in jobs.why()
    assert "nothing yet: job" in jobs("logs", "jobs", "seed=0", "--job")
    assert not jobs.cluster.job_states()
    jobs.launch(name)
    jobs.until_done(2)
    jobs.assert_each_done_once(2)


@pytest.mark.long
@pytest.mark.parametrize("cells", [1, 2])
def test_one_waiting_task_that_somebody_cancels_stays_so_though_slurm_forgets_it(jobs, cells):
    name = jobs.write(cells=cells)
    jobs.launch(name, "cluster.sbatch.hold=true", "cluster.settle_s=3")
    jobs.cluster.run("scancel", jobs.task())
    jobs.until(lambda: jobs("reconcile", "jobs", code=None) and jobs.counts().get("failed") == 1)
    assert list(jobs.states().values()) == ["failed", "queued"][:cells]
    assert "cancelled" in jobs.why() and len(jobs.submissions()) == 1
    jobs.launch(name)
    assert len(jobs.submissions()) == 2
    jobs.until(lambda: "done" in jobs.states().values())


@pytest.mark.long
@pytest.mark.parametrize("partition", ["low", "lowgrace"])
def test_a_preempted_job_goes_on_whatever_is_launched_meanwhile(jobs, partition):
    words = (
        jobs.write(cells=1, steps=80, step_s=0.2),
        f"cluster.sbatch.partition={partition}",
        "cluster.cpus=32",
    )
    jobs.launch(*words)
    jobs.until_checkpoints(2)
    task = jobs.task()
    with Meanwhile(jobs, words):
        high = jobs.cluster.submit("--partition=high", "--nodes=4", "--exclusive", wrap="sleep 60")
        jobs.until_job("PENDING", task)
        word = "PREEMPTED" if partition == "low" else "REQUEUED"  # after a time of grace it asks itself
        jobs.until(lambda: f"waits to be started anew after {word}" in jobs.why())
        jobs.until(lambda: not jobs.cluster.ask("scancel", high).returncode)
        jobs.wake()
        jobs.until_done(1)
    assert_went_on(jobs, 80)
    jobs.until_job("", task)
    starts = ("sacct", "-nPXD", "-j", task, "--format=State")
    jobs.until(lambda: jobs.cluster.run(*starts).split() == [word, "COMPLETED"])


@pytest.mark.long
def test_a_job_that_an_operator_requeues_goes_on_whatever_is_launched_meanwhile(jobs):
    words = (jobs.write(cells=1, steps=80, step_s=0.2),)
    jobs.launch(*words)
    jobs.until_checkpoints(2)
    task = jobs.task()
    with Meanwhile(jobs, words):
        jobs.cluster.run("scontrol", "requeue", task)
        jobs.until_job("PENDING", task)
        jobs.wake()
        jobs.until_done(1)
    assert_went_on(jobs, 80)


@pytest.mark.long
@pytest.mark.parametrize("how", ["notice", "cancel"])
def test_workers_side_by_side_have_gpus_of_their_own_and_all_save_when_the_job_must_stop(jobs, how):
    jobs.write_stages(SLOW_SAVER)
    limit = SHORT if how == "notice" else ()
    pair = ("launcher.cells_per_job=2", "launcher.workers_per_job=2")
    words = (jobs.write(cells=2, stage="saver"), *pair, "launcher.resources=[{only: 'seed=0,1', gpus: 1}]")
    jobs.launch(*words, *limit)
    jobs.until(lambda: len(jobs.beats()) == 2)
    task = jobs.task()
    jobs.cluster.run("scancel", *(["--signal=USR1"] if how == "notice" else []), task)
    jobs.until_job("PENDING" if how == "notice" else "", task)
    assert [(end["outcome"], end["seconds"] > 2) for end in jobs.ends()] == [("released", True)] * 2
    if how == "notice":
        jobs.wake()
    else:
        jobs.until(lambda: jobs.counts() == {"failed": 2})
        jobs.launch(*words)
    jobs.until_done(2)
    jobs.assert_each_done_once(2)
    assert [start["parent"] is not None for start in jobs.starts()] == [False, False, True, True]
    assert sorted(row["devices"] for done in jobs.products() for row in done["rows"]) == ["0", "1"]
    assert "died" not in jobs("logs", "jobs", "seed=0", "--job")


@pytest.mark.long
def test_held_jobs_of_a_sweep_that_was_finished_locally_find_nothing_to_do(jobs):
    name = jobs.write(cells=2)
    jobs.launch(name, "cluster.sbatch.hold=true")
    tasks = [jobs.task(index) for index in (0, 1)]
    assert "2 cells: 2 done" in jobs("launch", name, "launcher=local")
    assert jobs.counts() == {"done": 2}
    assert "2 done" in jobs("reconcile", "jobs")  # of the first launch, whose jobs are open
    jobs.cluster.run("scontrol", "release", jobs.array())
    for task in tasks:
        jobs.until_job("", task)
    jobs.assert_each_done_once(2)
    assert len(records(jobs.store, "claim.json")) == 2
    assert "nothing was left to do" in jobs("logs", "jobs", "seed=0", "--job")
    assert f"job {tasks[0]} ended" in jobs.why() and "nothing was left to do" in jobs.why()
    jobs.launch(name)
    assert [over["cause"] for over in jobs.closings()] == [None, None]


@pytest.mark.long
def test_a_script_that_is_submitted_by_hand_once_more_runs_no_stage_twice(jobs):
    jobs.launch(jobs.write(cells=2, steps=40, step_s=0.1))
    script = jobs.store / "sweeps/jobs/logs/jobs-000001/job.sh"
    again = jobs.cluster.run("sbatch", "--parsable", script)
    jobs.until(lambda: len(jobs.beats()) == 2)
    jobs.until_job("RUNNING", f"{again}_0")
    jobs("reconcile", "jobs")
    jobs.until_done(2)
    jobs.until(lambda: not jobs.cluster.job_states())
    jobs.assert_each_done_once(2)
    assert len(records(jobs.store, "claim.json")) == 2
    assert jobs.counts() == {"done": 2} and len(jobs.submissions()) == 1
