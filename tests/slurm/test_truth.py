"""What the command says of jobs is true, and what it does to them is what was asked: no more, no less."""

from __future__ import annotations

import re
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest

from orchestrator.jobs.records import Accepted, JobEnd, JobExitReport
from orchestrator.jobs.submissions import Submissions
from orchestrator.store import layout
from orchestrator.store.access import new_nonce
from orchestrator.store.ledger import open_ledger
from tests.cli.launches import records, wait_for
from tests.slurm.sweeps import SLURM, OnSlurm
from tests.store.builders import submission_of

HELD = "cluster.sbatch.hold=true"
SINGLE = ("--parsable", "--qos=single", "--output=/dev/null", "--wrap=sleep 300")


def all_open_once(jobs: OnSlurm, cells: int) -> bool:
    held = jobs.open_jobs()
    return len(held) == cells and all(len(tasks) == 1 for tasks in held.values())


# Limits


@pytest.mark.long
def test_a_submit_limit_holds_cells_back_and_reconcile_refills_until_all_are_done(jobs):
    name = jobs.write(cells=23, steps=2)
    said = jobs.launch(name, "cluster.qos=limited", HELD)
    assert "13 cells held back by a limit: QOSMaxSubmitJobPerUserLimit" in said
    assert "later: sweep reconcile jobs" in said and "10 queued, 13 pending" in said
    assert len(jobs.cluster.job_states()) == 10
    number = len(jobs.submissions())
    assert "13 cells held back" in jobs("reconcile", "jobs")
    assert len(jobs.submissions()) == number + 1  # one refusal more, not one for each size
    why = jobs("why", "jobs", "seed=22")
    assert why.count("QOSMaxSubmitJobPerUserLimit") <= 3, why
    ended = 0
    while ended < 23:
        for job in {task.partition("_")[0] for task in jobs.cluster.job_states()}:
            jobs.cluster.run("scontrol", "release", job)
        wait_for(lambda: not jobs.cluster.job_states(), timeout_s=60)
        jobs("reconcile", "jobs")
        assert len(jobs.cluster.job_states()) <= 10
        ended = jobs.counts().get("done", 0)
    jobs.assert_each_done_once(23)
    assert len(records(jobs.store, "claim.json")) == 23


@pytest.mark.long
def test_reconcile_that_stays_refills_without_filling_the_store_with_refusals(jobs):
    name = jobs.write(cells=23, steps=2)
    jobs.launch(name, "cluster.qos=limited")
    jobs("reconcile", "jobs", "--wait", timeout_s=300)
    jobs.assert_each_done_once(23)
    refused = [over for over in jobs.closings() if over["word"] == "LIMIT"]
    print(f"{len(jobs.submissions())} submissions, {len(refused)} refused tasks")
    assert len(jobs.submissions()) < 40


def test_max_jobs_holds_the_rest_for_reconcile(jobs):
    name = jobs.write(cells=5, steps=2)
    said = jobs.launch(name, "launcher.max_jobs=2")
    assert "2 cells in 2 tasks" in said and "3 cells held back by a limit: launcher.max_jobs=2" in said
    wait_for(lambda: len(list((jobs.store / "done").rglob("*.json"))) == 2 and not jobs.cluster.job_states())
    assert "2 cells in 2 tasks" in (said := jobs("reconcile", "jobs")) and "1 cell held back" in said
    wait_for(lambda: len(list((jobs.store / "done").rglob("*.json"))) == 4)
    jobs("reconcile", "jobs", "--wait")
    jobs.assert_each_done_once(5)


@pytest.mark.long
def test_never_more_jobs_run_at_once_than_was_asked_whatever_the_number_of_arrays(jobs):
    name = jobs.write(cells=9, steps=20, step_s=0.1)
    mine = "launcher.resources=[{only: 'seed=0', hours: 1}, {only: 'seed=1,2', hours: 2}]"
    said = jobs.launch(name, mine, "launcher.max_running=2")
    assert said.count("  job ") == 2 and "held back by a limit: launcher.max_running=2" in said
    most = 0

    def sample() -> bool:
        nonlocal most
        most = max(most, sum(state == "RUNNING" for state in jobs.cluster.job_states().values()))
        return len(list((jobs.store / "done").rglob("*.json"))) == 9

    log = jobs.folder.parent / "waiting"
    with log.open("w") as stream:
        waiting = subprocess.Popen(
            [sys.executable, "-m", "orchestrator", "reconcile", "jobs", "--wait"],
            cwd=jobs.folder,
            env=jobs.env,
            stdout=stream,
            stderr=stream,
        )
    wait_for(lambda: sample() or waiting.poll() is not None, timeout_s=100)
    assert waiting.wait(60) == 0, log.read_text()
    assert most == 2
    jobs.assert_each_done_once(9)


# Whose settings


def test_each_cell_is_submitted_with_the_settings_of_the_launch_that_named_it_last(jobs):
    name = jobs.write(cells=2)
    jobs.launch(name, "--only", "seed=0", "cluster.setup=['exit 9']")
    wait_for(lambda: not jobs.cluster.job_states())
    jobs.launch(name, "--only", "seed=1", HELD, "cluster.min_hours=2")
    assert [each["request"] for each in jobs.submissions()] == [1, 2]
    assert "1 cell in 1 task" in jobs("reconcile", "jobs")
    assert [each["request"] for each in jobs.submissions()] == [1, 2, 1]
    assert [each["resources"]["hours"] for each in jobs.submissions()] == [0.5, 2.0, 0.5]


def test_nothing_is_submitted_while_a_submission_cannot_be_read(jobs):
    name = jobs.write(cells=2)
    jobs.launch(name, HELD)
    path = jobs.store / "sweeps/jobs/submissions/000001.json"
    whole = path.read_bytes()
    path.write_bytes(whole[:100])
    for words in (("launch", name, *SLURM, HELD), ("reconcile", "jobs")):
        said = jobs(*words, code=3)
        assert "000001.json is unreadable" in said and "nothing is submitted" in said
    assert "warning: sweeps/jobs/submissions/000001.json" in jobs("status", "jobs")
    assert len(jobs.tasks()) == 2
    path.write_bytes(whole)
    assert jobs.counts() == {"queued": 2}


# Several commands at once


@pytest.mark.parametrize("first", [pytest.param(True, marks=pytest.mark.long), False])
def test_four_commands_at_once_give_no_cell_two_jobs(jobs, first):
    name = jobs.write(cells=5)
    if not first:  # five jobs that died before they worked
        jobs.launch(name, "cluster.setup=['exit 9']")
        wait_for(lambda: not jobs.cluster.job_states())
    launch, reconcile = ("launch", name, *SLURM, HELD), ("reconcile", "jobs")
    commands = [launch] * 4 if first else [reconcile, reconcile, launch, launch]
    running = [
        subprocess.Popen(
            [sys.executable, "-m", "orchestrator", *words],
            cwd=jobs.folder,
            env=jobs.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for words in commands
    ]
    said = [each.communicate(timeout=120)[0] for each in running]
    for words, each, text in zip(commands, running, said, strict=True):
        # Jobs of one reconcile die at once too, and the other may be late enough to find some dead.
        died_again = words == reconcile and re.search(r"5 cells: .*\b[1-5] failed", text) is not None
        assert each.returncode == (1 if died_again else 0), said
    held = jobs.open_jobs()
    if first:
        assert all_open_once(jobs, 5), (held, said)
    assert all(len(tasks) == 1 for tasks in held.values()), (held, said)
    jobs("reconcile", "jobs")
    assert all(len(tasks) == 1 for tasks in jobs.open_jobs().values())


# Cancelling


def test_cancel_ends_the_named_cells_jobs_and_no_other_and_a_launch_gives_them_new_ones(jobs):
    name = jobs.write(cells=4, steps=2000, step_s=0.05)
    jobs.launch(name, "--only", "seed=0,1")
    jobs.launch(name, "--only", "seed=2,3", HELD)
    jobs.until(lambda: jobs.counts() == {"running": 2, "queued": 2})
    before = jobs.tasks()
    cells = list(jobs.states())
    said = jobs("cancel", "jobs", "--only", "seed=0,2")
    cancelled_s = time.monotonic()
    assert "cancelled 2 cells, 1 of them running" in said and "1 waiting job cancelled" in said
    gone = before.keys() - jobs.tasks().keys()
    assert {jobs_cell(jobs, task) for task in gone} >= {cells[2]}
    again = jobs.launch(name, "--only", "seed=2", HELD)  # at once, before accounting knows
    assert "1 cell in 1 task" in again and all(len(tasks) == 1 for tasks in jobs.open_jobs().values())
    wait_for(lambda: any(end["outcome"] == "released" for end in records(jobs.store, "end.json")))
    print(f"it ended {time.monotonic() - cancelled_s:.1f} s after the cancel")
    (end,) = records(jobs.store, "end.json")
    assert (end["why"], end["outcome"]) == ("cancelled", "released")
    jobs.until(lambda: cells[0] not in jobs.open_jobs())
    assert list(jobs.states().values()) == ["cancelled", "running", "queued", "queued"]
    assert "1 cell in 1 task" in jobs.launch(name, "--only", "seed=0")
    assert all_open_once(jobs, 4)
    jobs("cancel", "jobs")
    jobs.until(lambda: not jobs.open_jobs())
    assert jobs.counts() == {"cancelled": 4}


def jobs_cell(jobs: OnSlurm, task: str) -> str:
    """The one cell of a task."""
    for each in jobs.submissions():
        for index, cells in enumerate(each["tasks"]):
            if task == f"{each['name']}.{index}":
                return str(cells[0])
    raise AssertionError(task)


# Revisions


def test_jobs_of_an_earlier_revision_are_told_and_cancelled_without_those_of_the_new_one(jobs):
    name = jobs.write(cells=3, steps=10)
    jobs.launch(name, HELD)
    old = jobs.tasks()
    jobs.write(cells=3, steps=11)
    said = jobs.launch(name, HELD)
    assert "jobs@2" in said and "3 cells in 3 tasks" in said
    assert "3 jobs of jobs@1 not over yet" in said and "sweep cancel jobs@1" in said
    assert "3 jobs of jobs@1" in jobs("reconcile", "jobs")
    new = jobs.tasks().keys() - old.keys()
    assert len(new) == 3
    assert "3 waiting jobs cancelled" in jobs("cancel", "jobs@1")
    assert jobs.tasks().keys() == new
    assert jobs.counts("jobs") == {"queued": 3} and jobs.counts("jobs@1") == {"cancelled": 3}
    assert "jobs@1" not in jobs("reconcile", "jobs")
    assert jobs.tasks().keys() == new


def test_a_cell_that_two_revisions_share_keeps_its_one_job(jobs):
    name = jobs.write(cells=2)
    jobs.launch(name, HELD)
    jobs.write(cells=3)
    assert "1 cell in 1 task" in jobs.launch(name, HELD)
    assert all_open_once(jobs, 3)
    said = jobs("cancel", "jobs@1")
    assert "2 cells go on: the current revision has them too" in said and "sweep cancel jobs" in said
    assert jobs.counts() == {"queued": 3}
    assert "3 waiting jobs cancelled" in jobs("cancel", "jobs")
    assert not jobs.tasks()


@pytest.mark.long
def test_cancelling_some_cells_leaves_the_jobs_of_another_revision_alone(jobs):
    name = jobs.write(cells=2, steps=10)
    jobs.launch(name, HELD)
    jobs.write(cells=2, steps=11)
    jobs.launch(name, HELD)
    assert "1 waiting job cancelled" in jobs("cancel", "jobs", "--only", "seed=0")
    assert len(jobs.tasks()) == 3


# Why and logs


@pytest.mark.long
@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ([HELD], "JobHeldUser"),
        (["cluster.sbatch.begin=now+1hour"], "BeginTime, expected to start at 20"),
        pytest.param(["cluster.memory_gib=240", "cluster.hours=0.2"], "Resources", marks=pytest.mark.long),
        (["cluster.qos=single"], "QOSMaxJobsPerUserLimit"),
    ],
)
def test_why_tells_slurms_own_reason_and_the_estimated_start(jobs, words, reason):
    if "cluster.memory_gib=240" in words:
        jobs.cluster.submit("--array=0-3", "--mem=240G", "--exclusive", "--time=5", wrap="sleep 300")
        wait_for(lambda: list(jobs.cluster.job_states().values()) == ["RUNNING"] * 4)
    if "cluster.qos=single" in words:
        jobs.cluster.ask("sacctmgr", "-i", "add", "qos", "single", "MaxJobsPerUser=1")
        jobs.cluster.ask("sacctmgr", "-i", "modify", "user", "root", "set", "qos+=single")
        first = jobs.until(lambda: jobs.cluster.ask("sbatch", *SINGLE).stdout)  # slurmctld hears of it soon
        wait_for(lambda: jobs.cluster.job_states() == {first.strip(): "RUNNING"})
    jobs.launch(jobs.write(cells=1), *words)
    why = jobs.until(lambda: said if f"it waits: {reason}" in (said := jobs("why", "jobs", "seed0")) else "")
    assert "queued: job " in why
    assert reason.partition(",")[0] in jobs("status", "jobs")
    if reason == "Resources":  # the backfill scheduler tells when
        jobs.until(lambda: "Resources, expected to start at 20" in jobs("why", "jobs", "seed0"))


@pytest.mark.long
def test_logs_of_a_job_that_was_started_anew_are_those_of_its_last_attempt(jobs):
    jobs.launch(jobs.write(cells=1, steps=120, step_s=0.1))
    jobs.until(lambda: jobs.counts() == {"running": 1})
    jobs.until(lambda: list(jobs.store.glob("payload/*/*/1/checkpoints/*/manifest.json")))
    (task,) = jobs.cluster.job_states()
    jobs.cluster.run("scontrol", "requeue", task)
    wait_for(lambda: records(jobs.store, "end.json"))
    jobs.until(lambda: jobs.wake() or list((jobs.store / "done").rglob("*.json")))
    said = jobs("logs", "jobs", "seed0")
    assert " attempt 2: " in said and f"/2/{layout.LOG}" in said
    job = jobs("logs", "jobs", "seed0", "--job")
    assert "task 0, start 0, on node" in job and "task 0, start 1, on node" in job
    assert "attempt 1 released stopped" in job and "attempt 2 succeeded" in job


def test_a_job_that_dies_before_its_worker_is_retried_once_and_its_log_is_found(jobs):
    name = jobs.write(cells=1)
    jobs.launch(name, "cluster.setup=['echo no module named cuda >&2', 'exit 9']")
    for number in (1, 2):
        wait_for(lambda: not jobs.cluster.job_states())
        assert len(jobs.submissions()) == number
        said = jobs("reconcile", "jobs", code=None)
    assert "jobs failed by unknown: 1 cell" in said and "exit code 9 (unknown, 2 jobs)" in said
    assert f"sweep logs jobs {next(iter(jobs.states()))} --job" in said
    assert "sweep rerun jobs" in said
    assert jobs.counts() == {"failed": 1}
    assert "no module named cuda" in jobs("logs", "jobs", "seed0", "--job")
    assert "no module named cuda" in jobs.json("logs", "jobs", "seed0", "--job")["text"]
    assert "--job" in jobs("logs", "jobs", "seed0", code=2)
    assert "1 cell in 1 task" in jobs("rerun", "jobs", "cluster.setup=[]")
    jobs.until_done(1)


# Reading


@pytest.mark.long
def test_reading_changes_nothing_and_submits_nothing(jobs):
    name = jobs.write(cells=3)
    jobs.launch(name, HELD, "--only", "seed=0")
    jobs.launch(name, "cluster.setup=['exit 9']", "--only", "seed=1")
    jobs.until(lambda: len(jobs.cluster.job_states()) == 1)

    def files() -> dict[Path, tuple[int, int]]:
        paths = [path for path in jobs.store.rglob("*") if path.is_file()]
        return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in paths}

    before, tasks = files(), jobs.tasks()
    for words in (
        ("status", "jobs"),
        ("why", "jobs", "seed0"),
        ("why", "jobs", "seed1"),
        ("logs", "jobs", "seed1", "--job"),
        ("logs", "jobs", "seed0", "--job"),
        ("plan", name, *SLURM),
        ("launch", name, *SLURM, "--dry-run"),
        ("reconcile", "jobs", "--dry-run"),
        ("show", "jobs", "seed0"),
    ):
        jobs(*words, code=0)
        assert files() == before, words
    assert jobs.tasks() == tasks


@pytest.mark.long
def test_status_of_2000_cells_with_jobs_takes_a_second(jobs):
    name = jobs.write(cells=2000)
    start_s = time.monotonic()
    assert "1 cell in 1 task" in jobs.launch(name, HELD, "--only", "seed=0")
    print(f"launch: {time.monotonic() - start_s:.1f} s")
    (first,) = jobs.submissions()
    file_submissions(jobs, list(jobs.states()))
    start_s, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    counts = jobs.counts()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    user_s = after.ru_utime - before.ru_utime
    print(f"status: {user_s:.2f} s of user time, {time.monotonic() - start_s:.1f} s in all; {counts}")
    assert counts == {"queued": 1, "pending": 1500, "unknown": 499} and first["number"] == 1
    assert user_s < 3  # of a busy machine


def file_submissions(jobs: OnSlurm, cells: list[str]) -> None:
    """Writes of each cell but the first four jobs: three that were preempted, and one that may be alive."""
    ledger = open_ledger(str(jobs.store))
    submissions = Submissions(ledger, "jobs")
    number = 1
    for turn in range(4):
        for start in range(1, len(cells), 100):
            number += 1
            tasks = tuple((cell,) for cell in cells[start : start + 100])
            submission = submission_of(
                number, nonce=new_nonce(), cluster="testbed", name=f"x.{number}", tasks=tasks
            )
            ledger.create(layout.submission("jobs", number), submission, submission.nonce)
            accepted = Accepted(nonce=new_nonce(), job=str(900_000 + number))
            ledger.create(layout.accepted("jobs", number), accepted, accepted.nonce)
            if turn == 3 and start > 1500:
                continue
            for index in range(len(tasks) if turn == 3 else 0):
                submissions.report(number, index, 0, JobExitReport(code=0))
            over = [JobEnd(index=index, word="PREEMPTED") for index in range(len(tasks))]
            if turn < 3 or start > 500:
                submissions.close(number, over, at="2026-01-01T00:00:00+00:00")
