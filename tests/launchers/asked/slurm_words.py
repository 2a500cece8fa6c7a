"""What Slurm's words mean, and what it is asked for, is as recorded."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from orchestrator.core.failure import Cause
from orchestrator.jobs.judgement import SubmissionState
from orchestrator.jobs.records import Accepted, JobEnd, JobExitReport
from orchestrator.launchers.slurm import parsing, reasons
from orchestrator.launchers.slurm.launcher import SlurmLauncher, bad_nodes, explained
from tests.launchers.test_slurm_words import SACCT, SQUEUE
from tests.recording import Answers
from tests.store.builders import submission_of


def told(found: Any) -> dict[str, Any]:
    """The fields of a value without those that are usual, and without a time by this machine's time zone."""
    usual = found._field_defaults
    return {
        name: str(value) if isinstance(value, str) else value
        for name, value in found._asdict().items()
        if value != usual.get(name) and name != "submitted_s"
    }


def observed() -> Answers:
    """What each line of accounting and of the controller means, and both together."""
    accounts, now = parsing.read_sacct(SACCT.splitlines()), parsing.read_squeue(SQUEUE.splitlines())
    states = [*parsing._WAITING, *parsing._LIVE, *parsing._OVER, "REVOKED"]
    for state in sorted(states):
        yield f"phase {state}", str(parsing.phase_of(state))
    for task, job in sorted(accounts.items()):
        yield f"accounting {task}", told(job)
    for task, job in sorted(now.items()):
        yield f"controller {task}", told(job)
    line = "9|0|{}|{}|2026-11-25T02:44:28|node1|{}|0:03|256|2026-11-25T02:31:50|s.1.ab|with a line"
    for word, reason, restarts in itertools.product(
        ("PENDING", "COMPLETING", "CANCELLED", "TIMEOUT"),
        ("Priority", "launch failed requeued held", "PartitionTimeLimit"),
        ("0", "4", "x"),
    ):
        (job,) = parsing.read_squeue([line.format(word, reason, restarts)]).values()
        yield f"controller {word} {reason} {restarts}", told(job)
    account = "9_0|{}|1:0|node1|{}|Unknown|{}|None|2026-11-25T02:31:50|s.1.ab"
    for old, new, restarts in itertools.product(
        (
            "",
            "RUNNING",
            "PREEMPTED",
            "REQUEUED",
            "FAILED",
            "NODE_FAIL",
            "CANCELLED by 0",
            "CANCELLED by 12345",
        ),
        ("", "PENDING", "RUNNING", "COMPLETED", "CANCELLED", "NEW"),
        ("0", "2"),
    ):
        one = parsing.read_sacct([account.format(old, "2026-11-25T02:44:28", "5")] if old else [])
        two = parsing.read_squeue([line.format(new, "None", restarts)] if new else [])
        for name, listed in (("", two), ("no answer ", None)):
            if listed is None and (new or restarts == "2"):
                continue
            both = parsing.agreed(listed, one).get(("9", 0))
            yield f"{name}{old or 'no account'}, {new or 'not listed'} {restarts}", both and told(both)
    mine = next(iter(now.items()))
    for renamed, again in itertools.product((False, True), repeat=2):
        job = mine[1]._replace(
            name="x" if renamed else mine[1].name, submitted_s=1.0 if again else mine[1].submitted_s
        )
        yield f"reused {renamed} {again}", told(parsing.agreed({mine[0]: job}, accounts)[mine[0]])
    former = "9_0|REQUEUED|0:0|{}|{}|{}|0|None|2026-11-25T02:31:50|s.1.ab"
    for start, at, node in itertools.product(
        ("Unknown", "None", "2026-11-25T02:44:28"), ("Unknown", "x"), ("None assigned", "n1")
    ):
        lines = [former.format(node, start, at), account.format("RUNNING", "2026-11-25T02:45:28", "5")]
        yield f"former {start} {at} {node}", told(parsing.read_sacct(lines)["9", 0])
    unknown = line.replace("2026-11-25T02:44:28|node1", "Unknown|node1").format("PENDING", "None", "0")
    yield "start unknown", told(next(iter(parsing.read_squeue([unknown]).values())))
    for code in ("0:0", "1:0", "0:9", "0:53", "75:0", "78:0", "77", "x:0", "4:9"):
        for word in ("FAILED", "COMPLETED", "CANCELLED", "TIMEOUT"):
            yield f"end {word} {code}", parsing.over_of(3, word, code, node="n", restarts=2, seconds=5.0)
    for name in ("12_3", "12_[0-4%2]", "12_[0,3-9:3]", "12", "12_3.batch", "12_[]"):
        yield f"tasks {name}", parsing.tasks_of(name)
    for text in ("4:42", "1:02:03", "2-03:04:05", "2-3", "UNLIMITED", ""):
        yield f"seconds {text}", parsing.seconds_of(text)
    for status in ("0", "256", "9", "1033", "4:0", "x"):
        yield f"status {status}", parsing._exit_code(status)


REASONS = (
    "QOSMaxWallDurationPerJobLimit AssocMaxCpuMinutesPerJobLimit QOSMaxGRESMinutesPerJob QOSMaxMemoryPerJob "
    "QOSMaxGRESPerJob QOSMaxCpuPerJobLimit MaxCPUsPerNode QOSMaxNodePerJobLimit PartitionNodeLimit "
    "PartitionMinNodes QOSMinGRES QOSMaxBillingPerJob QOSResourceLimit InvalidAccount PartitionConfig "
    "BadConstraints ReservationDeleted DependencyNeverSatisfied JobHoldMaxRequeue "
    "launch_failed_requeued_held QOSMaxCpuPerUserLimit AssocGrpMemLimit QOSMaxJobsPerUserLimit Priority"
).split()
MESSAGES = (
    "Requested time limit is invalid",
    "Memory specification can not be satisfied",
    "CPU count per node can not be satisfied",
    "Node count specification invalid",
    "Invalid account",
    "Access/permission denied",
    "Requested partition configuration not available now",
    "Invalid feature specification",
    "Requested node configuration is not available",
    "Requested reservation is invalid",
    "Invalid Trackable RESource (TRES) specification",
    "Invalid node name specified",
    "Job dependency problem",
    "Invalid license specification",
    "unrecognized option '--x'",
    "Job violates accounting/QOS policy",
    "Required node not available (down, drained or reserved)",
    "other",
)


def advised() -> Answers:
    """What reasons and refusals advise."""
    for reason in REASONS:
        yield (
            reason,
            (
                reasons.never(f"({reason}, x)"),
                reasons.is_limit(f"error: {reason} Job violates accounting/QOS policy"),
                reasons.refusal_advice(f"sbatch: {reason}"),
                [reasons.may_release(reason, n) for n in (None, 3, 4)],
            ),
        )
    for message in MESSAGES:
        yield message, (reasons.is_limit(message), reasons.refusal_advice(message))


LOGS = {
    "memory": "x\nslurmstepd: error: Detected 1 oom-kill event(s)\n",
    "setup": "sweep: line 2 of cluster.setup failed with exit code 1: module load x\nmore\n",
    "python": "2026-11-26T06:51:33Z job: s submission 1 task 0, start 0\nsrun: error: no such file\n\n"
    "srun: error: node1: task 0: Exited with exit code 1\n",
    "bash": "/var/spool/slurm_script: line 12: X: unbound variable\n",
    "nothing": "",
    "odd": "a line\n",
    "long": "so " * 2000,
}


def explanations() -> Answers:
    """The ends of jobs, completed by their logs."""
    with tempfile.TemporaryDirectory() as folder:
        for (name, text), word, code, report in itertools.product(
            LOGS.items(), ("FAILED", "CANCELLED", "TIMEOUT"), ("1:0", "78:0", "4:0"), (None, 0, 1)
        ):
            (Path(folder) / "0.log").write_bytes(text.encode() + (b"\xff words\n" if name == "odd" else b""))
            reports = {} if report is None else {0: JobExitReport(code=1, why="it says so", restart=report)}
            filed = SubmissionState(submission_of(7), Accepted(nonce="n", job="12"), {}, reports)
            over = parsing.over_of(0, word, code)
            found = SlurmLauncher({}, 1).explain(filed, over, Path(folder))
            yield f"{name}, {word}, {code}, {report}", found
        missing = parsing.over_of(0, "FAILED", "1:0")
        yield "no log", explained(filed, missing, Path(folder) / "1.log")


def left_out() -> Answers:
    """Nodes on which jobs end early, too often for chance."""
    ends: dict[str, JobEnd] = {
        "idle": JobEnd(index=0, word="FAILED", cause=Cause.UNKNOWN, node="n1", seconds=600.0, idle=True),
        "slow": JobEnd(index=0, word="FAILED", cause=Cause.UNKNOWN, node="n1", seconds=601.0, idle=True),
        "killed": JobEnd(
            index=0, word="FAILED", cause=Cause.UNKNOWN, node="n1", seconds=5.0, detail="x: exit code 137"
        ),
        "signal": JobEnd(
            index=0, word="FAILED", cause=Cause.UNKNOWN, node="n1", seconds=5.0, detail="signal 9"
        ),
        "memory": JobEnd(
            index=0, word="FAILED", cause=Cause.OOM_HOST, node="n1", seconds=5.0, detail="signal 9"
        ),
        "busy": JobEnd(
            index=0, word="FAILED", cause=Cause.UNKNOWN, node="n1", seconds=5.0, detail="exit code 1"
        ),
        "good": JobEnd(index=0, word="COMPLETED", node="n1", seconds=5.0),
        "nowhere": JobEnd(index=0, word="FAILED", cause=Cause.UNKNOWN, seconds=5.0, idle=True),
    }
    for names in [
        *((n,) * 2 for n in ends),
        ("idle",),
        ("idle", "killed", "good"),
        ("idle", "idle", "good", "good"),
    ]:
        filed = [
            SubmissionState(submission_of(number), Accepted(nonce="n", job="1"), {0: ends[name]}, {})
            for number, name in enumerate(names)
        ]
        yield f"{names}", [list(bad_nodes(filed, recent, fast_s=600.0)) for recent in (range(9), range(1))]


ASKED: dict[str, Callable[[], Answers]] = {
    "observed": observed,
    "advised": advised,
    "explanations": explanations,
    "left_out": left_out,
}
