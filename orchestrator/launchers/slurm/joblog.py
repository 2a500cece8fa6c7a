"""What a job's own log tells of its end, where neither Slurm nor the job's report does."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

from orchestrator.core.dispatch import Filed
from orchestrator.core.failure import Cause
from orchestrator.core.jobs import Over
from orchestrator.launchers.slurm.script import SETUP_SAID

_OOM_WORDS = ("exceeded memory limit", "oom-kill", "oom_kill", "Out Of Memory", "OUT_OF_MEMORY")
_TAIL_BYTES = 4096

_NO_CAUSE = re.compile(
    r"(srun|slurmstepd)\S*: (error: )?(\S+: tasks? [\d,-]+: Exited with exit code"
    r"|Terminating StepId|Terminating job step|Job step aborted|\*\*\* (STEP|JOB)|First task exited"
    r"|Force Terminated)"
    r"|[\d-]+T[\d:]+Z (worker \d+: |job: \S+ submission \d+ task \d+, start)"
)
"""Lines that say that a job ended, and not why; and what our own jobs write of their progress."""

_PREFIX = re.compile(r"^((srun|slurmstepd)\S*: (error|fatal): |\S*/slurm_script: (?=line))")


def explained(filed: Filed, over: Over, log: Path) -> Over:
    """Add to an end what the log says of it.

    A job that Slurm without cgroups ended for its memory is FAILED or CANCELLED. A job that ended before its
    worker could report says why in the last line that is no mere word of Slurm's that it ended.
    """
    if over.word not in ("FAILED", "CANCELLED"):
        return over
    try:
        with log.open("rb") as stream:
            stream.seek(max(0, stream.seek(0, 2) - _TAIL_BYTES))
            lines = stream.read().decode(errors="replace").splitlines()
    except OSError:
        return over
    if over.cause is Cause.CONFIG:
        told = [line for line in lines if line.startswith(SETUP_SAID)]
        return msgspec.structs.replace(over, detail=told[-1].partition(": ")[2]) if told else over
    if over.cause not in (Cause.UNKNOWN, Cause.CANCELLED):
        return over
    if any(word in line for word in _OOM_WORDS for line in lines):
        detail = "it used more host memory than it had asked for"
        return msgspec.structs.replace(over, cause=Cause.OOM_HOST, detail=detail)
    report = filed.reports.get(over.index)
    if over.word != "FAILED" or (report is not None and report.restart == over.restarts and report.why):
        return over
    told = [line.strip() for line in lines if line.strip() and not _NO_CAUSE.match(line)]
    if not told:
        return over
    return msgspec.structs.replace(over, detail=f"{_PREFIX.sub('', told[-1])[:300]}: {over.detail}")
