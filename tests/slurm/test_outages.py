"""Slurm that lies, hangs or is away, and commands that are killed: nothing fails or is submitted twice."""

from __future__ import annotations

import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.launches import records, wait_for
from tests.conftest import TEMPORARY
from tests.slurm.sweeps import SLURM, OnSlurm
from tests.slurm.testbed import Testbed

HELD = "cluster.sbatch.hold=true"
LOST = """$real "$@" >/dev/null
echo "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation" >&2
exit 1"""
AWAY = """echo "slurm_load_jobs error: Unable to contact slurm controller (connect failure)" >&2
exit 1"""


def release(jobs: OnSlurm) -> None:
    """Lets held jobs run."""
    for job in {task.partition("_")[0] for task in jobs.cluster.job_states()}:
        jobs.cluster.run("scontrol", "release", job)


def assert_one_job_each(jobs: OnSlurm, cells: int) -> None:
    held = jobs.open_jobs()
    assert len(held) == cells and all(len(tasks) == 1 for tasks in held.values()), held


def assert_done_once(jobs: OnSlurm, cells: int) -> None:
    release(jobs)
    jobs.until_done(cells)
    jobs.assert_each_done_once(cells)
    assert len(records(jobs.store, "claim.json")) == cells


def test_a_wait_ends_at_a_submission_that_cannot_be_read(jobs):
    record = jobs.store / "sweeps/jobs/submissions/000001.json"
    jobs.wrap("sbatch", f'$real "$@"; if test -f {record}; then echo x >{record}; fi')
    said = jobs.launch(jobs.write(cells=1), HELD, "--wait", code=3)
    assert "000001.json" in said and "its cells may have a job" in said and "trying again" not in said


@pytest.mark.long
def test_who_waits_for_a_sweep_waits_for_a_controller_that_is_away(jobs):
    for command in ("scontrol", "sbatch"):  # each fails once: the checks, and the first submission
        away = f"if mkdir {jobs.store.parent}/{command} 2>/dev/null; then\n{AWAY}\nfi"
        jobs.wrap(command, f'{away}\n$real "$@"')
    said = jobs.launch(jobs.write(cells=2), "--wait")
    assert said.count("trying again") == 2 and "2 done" in said
    jobs.assert_each_done_once(2)


# Replies that are lost


def test_a_job_whose_reply_was_lost_is_found_by_its_name_at_once(jobs):
    jobs.wrap("sbatch", LOST)
    assert "4 cells in 4 tasks" in jobs.launch(jobs.write(), HELD)
    assert_one_job_each(jobs, 4)


@pytest.mark.long
def test_a_job_whose_reply_was_lost_is_found_later_when_squeue_failed_too(jobs):
    name = jobs.write(cells=2)
    jobs.wrap("sbatch", LOST)
    jobs.wrap("squeue", AWAY)
    said = jobs.launch(name, HELD, code=3)
    assert "did not say whether it took submission 1: " in said and "Socket timed out" in said
    assert "later: sweep reconcile jobs" in said
    assert jobs.counts() == {"unknown": 2}
    assert "2 unknown" in (said := jobs.launch(name, HELD)) and "was not answered" in said
    jobs.unwrap()
    assert "2 queued" in jobs("reconcile", "jobs")
    assert_one_job_each(jobs, 2)
    assert_done_once(jobs, 2)


@pytest.mark.long
def test_of_a_store_that_was_removed_and_made_again_no_old_job_is_taken_for_a_new_one(jobs):
    name = jobs.write(cells=1)
    jobs.launch(name, HELD)
    jobs.store.rename(jobs.store.with_name("gone"))
    jobs.wrap("sbatch", f"cat >{jobs.folder}/never; {LOST.partition(chr(10))[2]}")
    jobs.launch(name, HELD, code=3)
    jobs.unwrap()
    assert "was not answered" in jobs("reconcile", "jobs")
    assert jobs.counts() == {"unknown": 1}


# Commands that are killed

KILLED = {
    "before sbatch": "cat >/dev/null; kill -KILL $PPID",
    "after sbatch": '$real "$@"; kill -KILL $PPID',
    "after the id was recorded": "(until [ -e {job} ]; do sleep 0.01; done; kill -KILL $PPID) &>/dev/null &\n"
    '$real "$@"',
}


@pytest.mark.parametrize(
    "when",
    [
        "after sbatch",
        *(pytest.param(when, marks=pytest.mark.long) for when in KILLED if when != "after sbatch"),
    ],
)
def test_a_launch_that_was_killed_leaves_an_honest_status_and_no_duplicate(jobs, when):
    settle_s = 4 if when == "before sbatch" else 600  # a job that is there is found before that
    name, settle = jobs.write(cells=3), f"cluster.settle_s={settle_s}"
    job = jobs.store / "sweeps/jobs/submissions/000001/job.json"
    jobs.wrap("sbatch", KILLED[when].replace("{job}", str(job)))
    jobs.launch(name, HELD, settle, code=-9)
    killed_s = time.monotonic()
    jobs.unwrap()
    is_recorded, num_tasks = job.exists(), len(jobs.cluster.job_states())
    assert (is_recorded, num_tasks) == (when == "after the id was recorded", 0 if "before" in when else 3)
    reasons = jobs.reasons().values()
    assert jobs.counts() == ({"queued": 3} if is_recorded else {"unknown": 3})
    assert is_recorded or all("sweep reconcile" in reason for reason in reasons)
    said = jobs.launch(name, HELD, settle)
    if num_tasks:
        assert jobs.counts() == {"queued": 3}
    else:
        if time.monotonic() - killed_s < settle_s:
            assert "was not answered" in said and not jobs.cluster.job_states()
        wait_for(lambda: time.monotonic() - killed_s > settle_s)
    jobs("reconcile", "jobs")
    assert_one_job_each(jobs, 3)
    if when == "after sbatch":
        assert_done_once(jobs, 3)


@pytest.mark.long
def test_a_job_that_comes_of_an_intent_given_up_long_ago_claims_nothing(jobs):
    name = jobs.write(cells=2)
    jobs.wrap("sbatch", f"cat >{jobs.folder}/late.sh; kill -KILL $PPID")
    jobs.launch(name, HELD, "cluster.settle_s=1", code=-9)
    jobs.unwrap()
    time.sleep(1.5)
    assert "2 cells in 2 tasks" in jobs("reconcile", "jobs")
    late = jobs.cluster.run("sbatch", "--parsable", jobs.folder / "late.sh")
    jobs.cluster.run("scontrol", "release", late)
    wait_for(lambda: not any(task.startswith(late) for task in jobs.cluster.job_states()))
    logs = jobs.store / "sweeps/jobs/logs/jobs-000001"
    assert "given up" in (logs / "0.log").read_text()
    assert not records(jobs.store, "claim.json")
    assert_done_once(jobs, 2)


# A controller that is away


@pytest.mark.parametrize("how", [signal.SIGSTOP, pytest.param(signal.SIGKILL, marks=pytest.mark.long)])
def test_a_launch_without_a_controller_records_nothing_and_says_so_soon(jobs, how):
    name = jobs.write()
    jobs.cluster.kill("slurmctld", how)
    start_s = time.monotonic()
    said = jobs.launch(name, code=3)
    assert time.monotonic() - start_s < 45
    assert "scontrol" in said and "error" in said and len(said.splitlines()) < 6, said
    assert not (jobs.store / "sweeps").exists()
    jobs.cluster.revive()
    assert "4 cells in 4 tasks" in jobs.launch(name, HELD)


@pytest.mark.long
@pytest.mark.parametrize("how", ["STOP", "KILL"])
def test_a_controller_that_goes_away_while_it_is_asked_loses_and_doubles_nothing(jobs, how):
    name = jobs.write()
    time.sleep(6)  # what it saves once in 5 s is all that it remembers when it was killed
    jobs.wrap("sbatch", f'kill -{how} {jobs.cluster.pid("slurmctld")}; sleep 0.3; exec $real "$@"')
    start_s = time.monotonic()
    said = jobs.launch(name, HELD, code=3)
    assert time.monotonic() - start_s < 90
    assert "sweep reconcile jobs" in said
    jobs.unwrap()
    start_s = time.monotonic()
    assert set(jobs.counts()) == ({"unknown"} if how == "STOP" else {"pending"})
    assert time.monotonic() - start_s < 45
    jobs.launch(name, HELD, code=3)
    jobs("reconcile", "jobs", code=3)
    jobs.cluster.revive()
    jobs("reconcile", "jobs")
    assert_one_job_each(jobs, 4)
    assert_done_once(jobs, 4)


@pytest.mark.long
@pytest.mark.parametrize("how", [signal.SIGSTOP, signal.SIGKILL])
def test_status_without_a_controller_fails_no_cell_and_what_runs_goes_on(jobs, how):
    name = jobs.write(cells=3, steps=300, step_s=0.1)
    jobs.launch(name, "--only", "seed=0,1")
    jobs.launch(name, HELD, "--only", "seed=2")
    jobs.until(lambda: jobs.counts().get("running") == 2)
    time.sleep(6)  # as above
    before = jobs.cluster.job_states()
    jobs.cluster.kill("slurmctld", how)
    start_s = time.monotonic()
    states = list(jobs.states().values())
    assert time.monotonic() - start_s < 45
    assert states[:2] == ["running"] * 2 and states[2] in ("unknown", "queued")
    said = jobs("cancel", "jobs", "--only", "seed=2")
    assert "cancelled 1 cell" in said and "1 job may still wait, and would end at once" in said
    jobs.cluster.revive()
    assert jobs.cluster.job_states().keys() <= before.keys()
    jobs.launch(name, "--only", "seed=2")
    release(jobs)
    jobs.until_done(3)
    jobs.assert_each_done_once(3)


@pytest.mark.long
def test_commands_that_hang_cost_half_a_minute_once(jobs):
    name = jobs.write()
    jobs.launch(name, HELD)
    for command in ("sacct", "squeue"):
        jobs.wrap(command, "sleep 1000 & wait $!")
    for words in (("status", "jobs"), ("launch", name, *SLURM, HELD), ("reconcile", "jobs")):
        start_s = time.monotonic()
        said = jobs(*words)
        print(f"{words[0]} took {time.monotonic() - start_s:.0f} s")
        assert time.monotonic() - start_s < 60
        assert "4 unknown" in said
        assert words[0] != "status" or said.count("squeue did not answer within 30 s") == 4
    jobs.unwrap()
    assert_one_job_each(jobs, 4)


# Accounting that is away


@pytest.mark.long
def test_without_slurmdbd_the_controller_tells_what_waits_runs_and_failed_a_moment_ago(jobs):
    name = jobs.write(cells=3, steps=300, step_s=0.1)
    jobs.launch(name, "--only", "seed=0", "cluster.setup=['exit 9']")
    jobs.launch(name, "--only", "seed=1")
    jobs.launch(name, "--only", "seed=2", HELD)
    jobs.until(lambda: jobs.states()[list(jobs.states())[1]] == "running")
    jobs.cluster.kill("slurmdbd")
    assert list(jobs.states().values()) == ["pending", "running", "queued"]
    first, _, last = jobs.reasons().values()
    assert "ended FAILED" in first and "exit code 9" in first and "JobHeldUser" in last
    said = jobs("reconcile", "jobs")
    assert "1 cell in 1 task" in said and len(jobs.submissions()) == 4
    assert jobs.closings()[0]["cause"] == "unknown"
    jobs("cancel", "jobs")
    jobs.until(lambda: not jobs.cluster.job_states())
    assert jobs.counts() == {"cancelled": 3}


@pytest.fixture
def bare(tmp_path: Path) -> Iterator[OnSlurm]:
    """A Slurm without accounting, which forgets within seconds."""
    folder = tempfile.mkdtemp(prefix="sweep-slurm.", dir=TEMPORARY)
    cluster = Testbed.start(Path(folder), nodes=2, gpus=0, accounting="none", min_job_age=3, requeue_delay=5)
    (tmp_path / "project").mkdir()
    yield OnSlurm(cluster, tmp_path / "project", tmp_path / "store")
    cluster.stop()


@pytest.mark.long
def test_a_cluster_without_accounting_does_all_of_it(bare):
    name = bare.write(cells=4, steps=150, step_s=0.1)
    bare.launch(name, "cluster.settle_s=5")
    bare.until(lambda: bare.counts() == {"running": 4})
    again = next(iter(bare.cluster.job_states()))
    bare.cluster.run("scontrol", "requeue", again)
    bare.until_done(4, timeout_s=120)
    bare.assert_each_done_once(4)
    starts = records(bare.store, "start.json")
    assert sum(start["parent"] is not None for start in starts) == 1
    wait_for(
        lambda: not bare.cluster.ask("squeue", "-h", "-t", "all").stdout, timeout_s=60
    )  # all is forgotten
    assert "4 done" in bare("reconcile", "jobs")
    assert {over["word"] for over in bare.closings()} == {"EXITED"}  # by their own word


@pytest.mark.long
def test_a_job_that_was_forgotten_and_said_nothing_has_vanished(bare):
    bare.launch(bare.write(cells=2), "cluster.setup=['exit 9']", "cluster.settle_s=5")
    wait_for(lambda: not bare.cluster.ask("squeue", "-h", "-t", "all").stdout, timeout_s=60)
    assert bare.counts() == {"unknown": 2}
    time.sleep(5)
    said = bare("reconcile", "jobs")
    assert "2 cells in 2 tasks" in said
    assert [over["word"] for over in bare.closings()] == ["VANISHED"] * 2
    assert {over["cause"] for over in bare.closings()} == {"node_lost"}


# Answers that are strange

EMPTY = "exit 0"
STRANGE = {
    "sacct says nothing": {"sacct": EMPTY},
    "sacct is slow": {"sacct": 'sleep 2; exec $real "$@"'},
    "sacct tells half of it": {"sacct": '$real "$@" | head -c 60'},
    "sacct speaks another language": {"sacct": '$real "$@" | tr "|" ";"'},
    "sacct knows a state to come": {"sacct": '$real "$@" | sed s/PENDING/DREAMING/'},
    "squeue speaks another language": {"squeue": '$real "$@" | tr "|" ";"'},
    "squeue knows a state to come": {"squeue": '$real "$@" | sed s/PENDING/DREAMING/'},
    "squeue is away": {"squeue": AWAY},
    "squeue is away and sacct says nothing": {"squeue": AWAY, "sacct": EMPTY},
    "both speak another language": dict.fromkeys(("sacct", "squeue"), '$real "$@" | tr "|" ";"'),
}


@pytest.mark.long
def test_no_strange_answer_fails_a_cell_or_gives_it_a_second_job(jobs):
    name = jobs.write(cells=3)
    jobs.launch(name, HELD, "cluster.settle_s=0")
    # A busy controller has no reason for a new job yet, and accounting gets to know of it later.
    jobs.until(lambda: {"waits: JobHeldUser" in reason for reason in jobs.reasons().values()} == {True})
    accounts = ("sacct", "-nPX", "-j", jobs.array(), "--format=JobID")
    jobs.until(lambda: jobs.cluster.run(*accounts))
    before = jobs.cluster.job_states()
    for what, wrapped in STRANGE.items():
        jobs.unwrap()
        for path in (jobs.folder.parent / "wrapped").glob("*"):
            path.unlink()
        for command, body in wrapped.items():
            jobs.wrap(command, body)
        said = jobs("reconcile", "jobs")
        assert "3 queued" in said or "3 unknown" in said, (what, said)
        assert jobs.cluster.job_states() == before, what
        reason = next(iter(jobs.reasons().values()))
        assert any(
            word in reason for word in ("waits: JobHeldUser", "DREAMING", "accounting does not list it")
        )
    assert len(jobs.submissions()) == 1 and not jobs.closings()
    jobs.unwrap()
    assert_done_once(jobs, 3)
