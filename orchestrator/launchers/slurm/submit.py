"""Handing a script to sbatch: what it said, and whether that can be believed."""

from __future__ import annotations

import re
import time

from orchestrator.errors import InfrastructureError
from orchestrator.launchers.base import Outcome, Verdict
from orchestrator.launchers.slurm.query import find, slurm
from orchestrator.launchers.slurm.words import LIMIT, UNCLEAR, UNREACHED

SBATCH_TIMEOUT_S = 60.0
_LOOKS, _LOOK_S = 3, 1.0


def submit(text: str, name: str, at: str) -> Outcome:
    """Gives a script to sbatch; where that does not know how it ended, looks for a job of that name.

    Args:
        text: the script, with an option ``--job-name`` that no other submission has.
        name: that name.
        at: now, in ISO 8601.
    """
    try:
        said = slurm("sbatch", "--parsable", text=text, timeout_s=SBATCH_TIMEOUT_S)
    except InfrastructureError as error:
        if "there is no" in error.what:
            return Outcome(Verdict.UNREACHED, said=error.what)
        return _looked_for(name, at, error.what)
    if said.code == 0 and (match := re.match(r"\s*(\d+)", said.output)):
        return Outcome(Verdict.ACCEPTED, job=match[1])
    words = " ".join(said.error.split())
    if said.code == 0 or UNCLEAR.search(words):
        return _looked_for(name, at, words or said.output)
    if UNREACHED.search(words):
        return Outcome(Verdict.UNREACHED, said=_short(words))
    return Outcome(Verdict.LIMIT if LIMIT.search(words) else Verdict.REFUSED, said=_short(words))


def _looked_for(name: str, at: str, said: str) -> Outcome:
    for look in range(_LOOKS):
        time.sleep(_LOOK_S * look)
        try:
            if (job := find(name, at)) is not None:
                return Outcome(Verdict.ACCEPTED, job=job)
        except InfrastructureError:
            continue
    return Outcome(Verdict.UNCLEAR, said=_short(said))


def _short(words: str) -> str:
    return re.sub(r"sbatch: (error: )?", "", words)[:300]
