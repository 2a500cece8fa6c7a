"""A job that is not listed is not over: filters, hidden jobs, other clusters, and answers with noise."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.jobs.records import Submission
from orchestrator.launchers.base import Verdict
from orchestrator.launchers.slurm.query import _sacct
from orchestrator.launchers.slurm.script import submit
from orchestrator.provenance import now
from tests.conftest import TEMPORARY
from tests.slurm.sweeps import OnSlurm
from tests.slurm.testbed import Testbed
from tests.store.builders import submission_of

HELD = "cluster.sbatch.hold=true"
SOON = "cluster.settle_s=0"
FILTERS = {
    "SQUEUE_PARTITION": "short",
    "SQUEUE_USERS": "daemon",
    "SQUEUE_ACCOUNT": "nobody",
    "SQUEUE_QOS": "limited",
    "SQUEUE_NAMES": "x",
    "SQUEUE_STATES": "RUNNING",
    "SQUEUE_LICENSES": "x",
    "SQUEUE_FORMAT": "%i",
    "SQUEUE_SORT": "-i",
    "SACCT_FORMAT": "JobID",
    "SCANCEL_PARTITION": "short",
    "SCANCEL_STATE": "RUNNING",
    "SCANCEL_NAME": "x",
    "SINFO_PARTITION": "short",
    "SINFO_FORMAT": "%n",
    "SBATCH_QOS": "limited",
    "SBATCH_PARTITION": "short",
    "SLURM_CLUSTERS": "far",
    "SLURM_TIME_FORMAT": "relative",
}


def assert_held(jobs: OnSlurm, cells: int, said: str = "") -> None:
    """One job a cell, one submission, nothing found over."""
    assert len(jobs.tasks()) == cells, said
    assert len(jobs.submissions()) == 1 and not jobs.closings(), said


def test_options_of_slurm_in_the_environment_change_nothing_from_launch_to_cancel(jobs):
    jobs.env.update(FILTERS)
    said = jobs.launch(jobs.write(cells=2), HELD, SOON, "cluster.partitions={normal: null}")
    for note in ("+cluster.sbatch.clusters=far", "cluster.qos=limited"):
        assert note in said
    assert "cluster.partitions={short" not in said  # the profile names them
    assert "2 queued" in jobs("reconcile", "jobs")
    assert "JobHeldUser" in jobs.why()
    assert_held(jobs, 2)
    assert "2 waiting jobs cancelled" in jobs("cancel", "jobs")
    assert not jobs.tasks()


@pytest.mark.long
def test_options_of_slurm_inside_a_job_do_not_keep_it_from_being_started_anew(jobs):
    exports = [f"'export {name}={value}'" for name, value in FILTERS.items() if name != "SLURM_CLUSTERS"]
    name = jobs.write(cells=1, steps=40, step_s=0.2)
    jobs.launch(name, f"cluster.setup=[{', '.join(exports)}]")
    jobs.until_checkpoints(2)
    task = jobs.task()
    jobs.cluster.run("scancel", "--signal=USR2", task)
    jobs.until_job("PENDING", task)
    jobs.wake()
    jobs.until_done(1)
    assert len(jobs.submissions()) == 1


NOBODY = ("setpriv", "--reuid=65534", "--regid=0", "--clear-groups")


class Colleague:
    """Another user of the cluster and of the store, whom Slurm shows only their own jobs."""

    def __init__(self, jobs: OnSlurm, store: Path) -> None:
        self._jobs, self._store = jobs, store

    def __call__(self, *words: str) -> str:
        # their variables still name the one who submitted, as after `su`
        done = subprocess.run(
            [*NOBODY, sys.executable, "-m", "orchestrator", *words, f"store.url={self._store}"],
            cwd="/",
            env=self._jobs.env | {"HOME": "/nonexistent", "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder in which everybody may write."""
    before = os.umask(0)
    with tempfile.TemporaryDirectory(prefix="sweep-shared.", dir=TEMPORARY) as folder:
        Path(folder).chmod(0o777)
        yield Path(folder)
    os.umask(before)


def test_jobs_that_slurm_hides_from_a_colleague_are_held_and_those_that_it_shows_are_told(jobs, shared):
    jobs.store = shared / "store"
    jobs.store.mkdir(mode=0o777)
    jobs.env["SWEEP_STORE"] = str(jobs.store)
    colleague = Colleague(jobs, jobs.store)
    jobs.cluster.folder.chmod(0o755)
    conf = jobs.cluster.folder / "etc/slurm.conf"
    text = conf.read_text()
    jobs.launch(jobs.write(cells=2), HELD, SOON, f"store.url={jobs.store}")
    assert "2 queued" in colleague("reconcile", "jobs")
    try:
        conf.write_text(text.replace("PrivateData=none", "PrivateData=jobs"))
        jobs.cluster.run("scontrol", "reconfigure")
        said = colleague("reconcile", "jobs")
        assert "2 unknown" in said, said
        assert "the scheduler shows nobody only their own" in colleague("why", "jobs", "seed=0")
        assert_held(jobs, 2)
        said = colleague("cancel", "jobs")
        assert "2 jobs may still wait" in said
        assert_held(jobs, 2)
        assert "2 waiting jobs cancelled" in jobs("cancel", "jobs")
        jobs.wrap("sbatch", '$real "$@"; kill -KILL $PPID')  # its number is lost
        jobs.launch(jobs.write("late", cells=1), HELD, SOON, f"store.url={jobs.store}", code=-9)
        assert "was not answered" in colleague("reconcile", "late")
        assert "1 queued" in jobs("reconcile", "late")
        assert len(jobs.submissions("late")) == 1
    finally:
        conf.write_text(text)
        jobs.cluster.run("scontrol", "reconfigure")


@pytest.fixture
def beside(jobs: OnSlurm) -> Iterator[Testbed]:
    """A second cluster on the same file system, reached from the first by its name."""
    with tempfile.TemporaryDirectory(
        prefix="sweep-slurm.", dir=TEMPORARY, ignore_cleanup_errors=True
    ) as folder:
        other = Testbed.start(Path(folder), nodes=1, gpus=0, cluster="beside", join=jobs.cluster.folder)
        yield other
        other.stop()
        jobs.cluster.run("sacctmgr", "-i", "delete", "cluster", "beside")


@pytest.mark.long
def test_jobs_of_another_cluster_are_submitted_asked_about_and_cancelled_there(jobs, beside):
    there = "+cluster.sbatch.clusters=beside"
    name = jobs.write(cells=2, steps=2)
    jobs.launch(name, there, HELD, SOON)
    assert len(beside.job_states()) == 2 and not jobs.tasks()
    assert "2 queued" in jobs("reconcile", "jobs") and "JobHeldUser" in jobs.why()
    assert len(jobs.submissions()) == 1 and not jobs.closings()
    here, jobs.env["SLURM_CONF"] = jobs.env["SLURM_CONF"], beside.env["SLURM_CONF"]
    assert "2 queued" in jobs("reconcile", "jobs")  # from there as well
    jobs.env["SLURM_CONF"] = here
    assert "2 waiting jobs cancelled" in jobs("cancel", "jobs")
    assert not beside.job_states()
    jobs.launch(name, there)
    jobs.until_done(2)
    assert "2 done" in jobs("reconcile", "jobs")


@pytest.mark.parametrize(
    ("named", "why"),
    [
        ("far", "cluster testbed is meant, this is far"),
        pytest.param("testbed", "it may be another of the same name", marks=pytest.mark.long),
    ],
)
def test_a_number_of_another_cluster_says_nothing_and_an_answer_of_another_is_refused(jobs, named, why):
    name = jobs.write(cells=1)
    jobs.launch(name, HELD, SOON)
    number = jobs.array()
    with tempfile.TemporaryDirectory(
        prefix="sweep-slurm.", dir=TEMPORARY, ignore_cleanup_errors=True
    ) as folder:
        knobs = {"cluster": named, "accounting": "none", "first_job_id": number}
        far = Testbed.start(Path(folder), nodes=1, gpus=0, **knobs)
        try:
            assert far.submit("--hold", "--array=0", wrap="true") == number
            here, jobs.env["SLURM_CONF"] = jobs.env["SLURM_CONF"], far.env["SLURM_CONF"]
            said = jobs("reconcile", "jobs")
            assert "1 unknown" in said, said
            assert why in jobs.why()
            assert "1 job may still wait" in jobs("cancel", "jobs")
            assert len(far.job_states()) == 1
        finally:
            jobs.env["SLURM_CONF"] = here
            far.stop()
    assert_held(jobs, 1)
    jobs.wrap("sbatch", 'job=$($real "$@") && echo "$job;far"')
    jobs.write(cells=2)
    said = jobs.launch(name, "--only", "seed=1", HELD, code=3)
    assert "went to cluster far" in said  # and could not be cancelled there: it is held


NOISE = {
    "a notice before it": 'echo "2026-11-30 06:00 maintenance"; echo "1 balance: 49721"; exec $real "$@"',
    "a number before it": 'echo 49721; exec $real "$@"',
    "a notice after it": '$real "$@"; echo "3 jobs are queued"',
    "the answer for people": '$real "$@" | sed "s/^/Submitted batch job /"',
    "a number in its place": '$real "$@" >/dev/null; echo "quota: ok"; echo 49721',
    "words on standard error": 'echo "job_submit: account set to lab" >&2; exec $real "$@"',
    "an exit code of the wrapper's own": '$real "$@"; exit 1',
    "a failure after the job": '$real "$@" >/dev/null; echo "hook: Connection refused" >&2; exit 7',
    "a name with something before it": 'sed s/--job-name=/--job-name=lab_/ | $real "$@" >/dev/null',
    "colours": '$real "$@" | sed "s/.*/\\x1b[32m&\\x1b[0m/"',
}


def test_the_number_of_a_job_is_found_whatever_a_wrapper_of_sbatch_prints_beside_it(jobs, monkeypatch):
    for number, body in enumerate(NOISE.values(), 1):
        jobs.wrap("sbatch", body)
        given = intent(number)
        text = f"#!/bin/bash\n#SBATCH --job-name={given.name} --hold --array=0\ntrue\n"
        with monkeypatch.context() as mine:
            for name in ("PATH", "SLURM_CONF"):
                mine.setenv(name, jobs.env[name])
            said = submit(text, given)
        listed = jobs.cluster.run("squeue", "-h", "-o", "%F %j").splitlines()
        (found,) = [line.split()[0] for line in listed if given.name in line]
        assert (said.verdict, said.job) == (Verdict.ACCEPTED, found), (body, said)


def intent(number: int) -> Submission:
    """A submission to the test bed."""
    return submission_of(number, cluster="testbed", name=f"noise.{number}.ab", at=now())


def test_a_job_that_only_accounting_calls_alive_holds_its_cell(jobs):
    jobs.launch(jobs.write(cells=2), HELD, SOON)
    jobs.until(lambda: "PENDING" in jobs.cluster.run("sacct", "-nXP", "-j", jobs.array(), "--format=state"))
    jobs.wrap("squeue", "exit 0")
    assert "2 unknown" in jobs("reconcile", "jobs")
    assert "is PENDING, by accounting alone" in jobs.why()
    jobs.wrap("squeue", 'echo "maintenance on Monday"; $real "$@" | tail -n 1')
    assert "1 queued, 1 unknown" in jobs("reconcile", "jobs")  # what is listed counts, and no absence does
    jobs.unwrap()
    assert_held(jobs, 2)


def test_accounting_lists_all_waiting_tasks_of_an_array_with_gaps(jobs, monkeypatch):
    run = jobs.cluster.run
    array = run("sbatch", "--parsable", "--hold", "--array=0-89", "--wrap=true").strip()
    gone = {index for index in range(90) if index % 2 or index % 7 == 0}
    run("scancel", *(f"{array}_{index}" for index in sorted(gone)))
    for name in ("PATH", "SLURM_CONF"):
        monkeypatch.setenv(name, jobs.env[name])
    wanted = {(array, index) for index in set(range(90)) - gone}
    jobs.until(
        lambda: {task for task, seen in _sacct("testbed", [array]).items() if seen.over is None} == wanted
    )


def test_a_job_in_a_hidden_partition_is_known_also_under_another_name(jobs):
    jobs.launch(jobs.write(cells=2), HELD, SOON, "cluster.partitions={hidden: null}")
    assert "2 queued" in jobs("reconcile", "jobs")
    jobs.cluster.run("scontrol", "update", f"jobid={jobs.task()}", "name=mine | too")
    jobs.until(lambda: "mine" in jobs.cluster.run("sacct", "-nXP", "-j", jobs.array(), "--format=jobname"))
    for _ in range(2):
        assert "2 queued" in jobs("reconcile", "jobs")
    assert len(jobs.cluster.job_states("--all")) == 2 and not jobs.closings()
    assert "2 waiting jobs cancelled" in jobs("cancel", "jobs")
    assert not jobs.cluster.job_states("--all")
