"""What sites ask for and how their clusters differ: jobs run there too, or say what is wrong."""

from __future__ import annotations

import json
import os
import shutil
import sys

import pytest

from tests.slurm.sweeps import SLURM

HELD = "cluster.sbatch.hold=true"
COMMAND = """
description: a command that starts steps of its own
config: {seed: 0}
axes: {seed: [0]}
stages: {hi: {command: "sh -c 'srun -n1 hostname >{output}/host; env -0 >{output}/env'", reads: [seed]}}
"""


def test_a_stage_may_start_steps_sees_no_task_and_gets_its_environment_without_export(jobs):
    (jobs.folder / "hi.yaml").write_text(COMMAND)
    mine = 'cluster.environment={MINE: "{\\"a\\": [1, \\"$HOME\\"]}", FLAG: true}'
    jobs.launch("hi.yaml", "+cluster.sbatch.export=NONE", "launcher.resources=[{gpus: 2}]", mine)
    jobs.until_done(1, "hi")
    (output,) = jobs.store.glob("payload/hi/*/1/output")
    assert (output / "host").read_text().strip() == os.uname().nodename
    seen = dict(pair.split("=", 1) for pair in (output / "env").read_text().split("\0") if pair)
    assert json.loads(seen["MINE"]) == {"a": [1, "$HOME"]} and seen["FLAG"] == "true"
    tasks = {
        "SLURM_NTASKS",
        "SLURM_PROCID",
        "SLURM_LOCALID",
        "SLURM_STEP_ID",
        "SLURM_NODEID",
        "SLURM_EXPORT_ENV",
    }
    assert not tasks & seen.keys()
    assert seen["SLURM_JOB_ID"] == jobs.array("hi") and seen["SLURM_JOB_NODELIST"].startswith("node")
    assert seen["CUDA_VISIBLE_DEVICES"] == "0,1"


@pytest.mark.long
def test_jobs_that_die_at_once_say_why_in_words(jobs):
    name = jobs.write(cells=4)
    logs = jobs.folder.parent / "logs"
    deaths = (
        (
            "line 2 of cluster.setup failed with exit code 127: module load",
            "cluster.setup=['true', 'module load x']",
        ),
        ("/nowhere/python", "cluster.python=/nowhere/python"),
        ("NOT_SET: unbound variable", "cluster.setup=['set -u', 'echo $NOT_SET']"),
    )
    for number, (_, word) in enumerate(deaths):
        jobs.launch(name, "--only", f"seed={number}", word, code=None)
    jobs.launch(name, "--only", "seed=3", HELD, f"cluster.logs={logs}", code=None)
    shutil.rmtree(logs)
    logs.write_text("no folder")
    jobs.cluster.run("scontrol", "release", jobs.array())
    jobs.until(lambda: not jobs.cluster.job_states())
    jobs("reconcile", "jobs", code=None)
    details = [over["detail"] for over in jobs.closings()]
    causes = [over["cause"] for over in jobs.closings()]
    for (words, _), detail in zip(deaths, details, strict=False):
        assert words in detail and "Exited with" not in detail, details
    assert causes[0] == "config" and causes[1:] == ["unknown"] * 3
    assert "cannot write the job's log" in details[3] and "0:53" in details[3]


def test_a_limit_that_never_passes_is_an_error_with_what_to_change(jobs):
    for qos, more in (("denies", ["Flags=DenyOnLimit"]), ("holds", [])):
        jobs.cluster.ask("sacctmgr", "-i", "add", "qos", qos, "set", "MaxWall=5", *more)
        jobs.cluster.run("sacctmgr", "-i", "modify", "user", "root", "set", f"qos+={qos}")
    name = jobs.write(cells=1)
    said = jobs.until(
        lambda: said if "Invalid qos" not in (said := jobs.launch(name, "cluster.qos=denies", code=2)) else ""
    )  # slurmctld hears of it soon
    assert "QOSMaxWallDurationPerJobLimit" in said and "ask for fewer hours" in said
    said = jobs.launch(name, "cluster.qos=holds", code=1)
    said += jobs("reconcile", "jobs", code=1)
    assert "1 job can never start so: QOSMaxWallDurationPerJobLimit: ask for fewer hours" in said
    assert "1 waiting job cancelled" in jobs("cancel", "jobs")


def test_a_dry_run_needs_no_slurm_where_the_profile_says_it_all(jobs):
    path = jobs.folder / "bin"
    path.mkdir()
    for program in ("bash", "git"):
        (path / program).symlink_to(shutil.which(program))
    jobs.env.update(PATH=str(path), SLURM_CONF="/nowhere")
    partition = "cluster.partitions={long: {cpus_per_node: 8, memory_gib: 64, max_hours: 24}}"
    said = jobs("launch", jobs.write(cells=2), *SLURM, "--dry-run", partition)
    assert "#SBATCH --partition=long" in said and "2 tasks" in said
    assert "arrays are cut at Slurm's default, 1001 tasks" in said
    assert sys.executable in said and not jobs.store.exists()
