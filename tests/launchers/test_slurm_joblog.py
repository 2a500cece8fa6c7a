"""What a job's log tells of its end, in logs that Slurm 22.05 and our jobs wrote."""

from __future__ import annotations

import pytest

from orchestrator.core.failure import Cause
from orchestrator.jobs.records import JobExitReport
from orchestrator.launchers.slurm.launcher import explained
from orchestrator.launchers.slurm.parsing import over_of
from tests.jobs.test_judgement import submitted

OURS = "2026-11-26T06:51:33Z job: s submission 1 task 0, start 0, on node1"
EXITED = "srun: error: node1: task 0: Exited with exit code 127"


@pytest.mark.parametrize(
    ("lines", "exit_code", "detail"),
    [
        (
            ["sweep: 1: exec: /x/python: not found", EXITED],
            "127:0",
            "sweep: 1: exec: /x/python: not found: exit code 127",
        ),
        (
            ["slurmstepd: error: execve(): sh: No such file or directory", EXITED],
            "2:0",
            "execve(): sh: No such file or directory: exit code 2",
        ),
        (
            ["Traceback (most recent call last):", "ModuleNotFoundError: No module named 'x'", EXITED],
            "1:0",
            "ModuleNotFoundError: No module named 'x': exit code 1",
        ),
        (
            ["/var/spool/slurmd/job7/slurm_script: line 12: FOO: unbound variable"],
            "1:0",
            "line 12: FOO: unbound variable: exit code 1",
        ),
        (
            [
                OURS,
                "2026-11-26T06:51:33Z worker 0: seed0 count: attempt 1",
                "srun: error: node1: task 0: Killed",
            ],
            "137:0",
            "node1: task 0: Killed: exit code 137",
        ),
        ([OURS, EXITED], "1:0", "exit code 1"),
        ([], "1:0", "exit code 1"),
        (
            ["sweep: line 2 of cluster.setup failed with exit code 1: module load x"],
            "78:0",
            "line 2 of cluster.setup failed with exit code 1: module load x",
        ),
        (
            [OURS, "slurmstepd: error: Detected 1 oom-kill event(s) in StepId=7.batch"],
            "1:0",
            "it used more host memory than it had asked for",
        ),
    ],
)
def test_a_job_that_died_says_why_by_the_last_line_that_tells(tmp_path, lines, exit_code, detail):
    log = tmp_path / "0.log"
    log.write_text("".join(f"{line}\n" for line in lines))
    assert explained(submitted(), over_of(0, "FAILED", exit_code), log).detail == detail


def test_without_a_log_slurms_words_stand_and_53_is_no_signal(tmp_path):
    over = explained(submitted(), over_of(0, "FAILED", "0:53"), tmp_path / "0.log")
    assert "cannot write the job's log" in over.detail and over.cause is Cause.UNKNOWN
    assert over_of(0, "FAILED", "0:9").detail == "signal 9"


def test_what_a_job_reported_itself_needs_no_log(tmp_path):
    log = tmp_path / "0.log"
    log.write_text("some line\n")
    over = over_of(0, "FAILED", "1:0")
    told = submitted()._replace(reports={0: JobExitReport(code=1, why="the disk is full")})
    assert explained(told, over, log) == over
