"""Handing a script to sbatch: what it said, and whether that can be believed."""

from __future__ import annotations

import re
import time

from orchestrator.core.jobs import Submission
from orchestrator.errors import InfrastructureError
from orchestrator.launchers.base import Outcome, Verdict
from orchestrator.launchers.slurm.programs import slurm
from orchestrator.launchers.slurm.query import find
from orchestrator.launchers.slurm.reasons import UNCLEAR, UNREACHED, is_limit, refusal_advice

SBATCH_TIMEOUT_S = 60.0
_LOOKS, _LOOK_S = 3, 1.0
_ANSWER = re.compile(r"^\s*(?P<job>[1-9]\d*)(;(?P<cluster>[\w.-]+))?\s*$", re.MULTILINE)
"""What ``sbatch --parsable`` prints: a line of its own, beside which a site's wrapper may print others."""

_SLURMS_OWN = re.compile(r"Batch job submission failed|Unable to contact slurm controller")
"""What only sbatch says, when there is no job."""


def submit(text: str, submission: Submission) -> Outcome:
    """Give a script to sbatch; where that does not know how it ended, look for a job of that name.

    Args:
        text: the script.
        submission: whose name no other job has, and whose cluster the job must go to.
    """
    try:
        said = slurm("sbatch", "--parsable", text=text, timeout_s=SBATCH_TIMEOUT_S)
    except InfrastructureError as error:
        if "there is no" in error.what:
            return Outcome(Verdict.UNREACHED, said=error.what)
        return _looked_for(submission, error.what)
    answers = list(_ANSWER.finditer(said.output))
    words = " ".join(said.error.split())
    if said.code == 0 and len(answers) == 1:
        job, cluster = answers[0]["job"], answers[0]["cluster"] or ""
        if said.output.strip() != answers[0][0].strip():  # a number among other lines may be another's
            job = _looked_for(submission, "").job or job
        return _accepted(submission, job, cluster)
    if said.code == 0 or answers or UNCLEAR.search(words):
        return _looked_for(submission, words or " ".join(said.output.split()))
    if not _SLURMS_OWN.search(words):  # a site's wrapper may fail after sbatch has succeeded
        try:
            job = find(submission)
        except InfrastructureError:
            return Outcome(Verdict.UNCLEAR, said=_short(words))
        if job is not None:
            return Outcome(Verdict.ACCEPTED, job=job)
    if UNREACHED.search(words):
        return Outcome(Verdict.UNREACHED, said=_short(words))
    if is_limit(words):
        return Outcome(Verdict.LIMIT, said=_short(words))
    advice = refusal_advice(words)
    return Outcome(Verdict.REFUSED, said=_short(words) + (f"; {advice}" if advice else ""))


def _accepted(submission: Submission, job: str, cluster: str) -> Outcome:
    """Take a job, but not one of another cluster: nobody would look for it there."""
    if cluster.casefold() in ("", submission.cluster.casefold()):
        return Outcome(Verdict.ACCEPTED, job=job)
    try:
        ended = slurm("scancel", "-M", cluster, job)
    except InfrastructureError as error:
        return Outcome(Verdict.UNCLEAR, said=f"job {job} went to cluster {cluster}, and {error.what}")
    if ended.code != 0:
        return Outcome(Verdict.UNCLEAR, said=f"job {job} went to cluster {cluster}: {ended.problem}")
    return Outcome(
        Verdict.REFUSED,
        said=f"sbatch gave the job to cluster {cluster}, not {submission.cluster}, and it was cancelled; "
        f"cluster.sbatch.clusters: {cluster} submits to that cluster",
    )


def _looked_for(submission: Submission, said: str) -> Outcome:
    for look in range(_LOOKS):
        time.sleep(_LOOK_S * look)
        try:
            if (job := find(submission)) is not None:
                return Outcome(Verdict.ACCEPTED, job=job)
        except InfrastructureError:
            continue
    return Outcome(Verdict.UNCLEAR, said=_short(said))


def _short(words: str) -> str:
    return re.sub(r"sbatch: (error: )?", "", words)[:300]
