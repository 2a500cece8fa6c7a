"""Running Slurm's programs: with our options alone, a time limit, and an outcome that may be no answer."""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Mapping
from typing import NamedTuple

from orchestrator.errors import InfrastructureError

TIMEOUT_S = 30.0
SILENT_S = 60.0
"""A command that did not answer in time is not asked again so soon."""

_INPUT = re.compile(
    r"(SLURM|SLURMD|SBATCH|SRUN|SALLOC|SQUEUE|SACCT|SACCTMGR|SCANCEL|SINFO|SCONTROL|SSTAT|SPRIO|SSHARE)_"
)
_KEPT = frozenset({"SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_JWT"})
_silent_until_s: dict[str, float] = {}


class Said(NamedTuple):
    """How a command of Slurm's ended."""

    code: int
    output: str
    error: str

    @property
    def problem(self) -> str:
        """Its last words on standard error, on one line."""
        lines = [line.strip() for line in self.error.splitlines() if line.strip()]
        return lines[-1] if lines else f"exit code {self.code}"


def environment(inherited: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment for Slurm's programs: ours without the variables that they read as options.

    Slurm's programs take filters and options from the environment (``SQUEUE_PARTITION``, ``SCANCEL_STATE``,
    ``SBATCH_ACCOUNT``, ``SLURM_CLUSTERS``), and what a job that we may run in says of itself has the same
    names. A filter that is not ours would make an answer incomplete. What says where Slurm is, and as whom to
    speak to it, stays: SLURM_CONF, SLURM_CONF_SERVER and SLURM_JWT.
    """
    return {
        name: value
        for name, value in (os.environ if inherited is None else inherited).items()
        if name in _KEPT or not _INPUT.match(name)
    }


def slurm(*words: str, text: str | None = None, timeout_s: float = TIMEOUT_S) -> Said:
    """Run a command of Slurm's.

    Raises:
        InfrastructureError: there is no such command here, or it did not answer in time.
    """
    if time.monotonic() < _silent_until_s.get(words[0], 0.0):
        raise InfrastructureError(f"{words[0]} did not answer a moment ago")
    try:
        done = subprocess.run(
            words,
            input=text,
            stdin=subprocess.DEVNULL if text is None else None,
            env=environment(),
            capture_output=True,
            encoding="utf-8",
            timeout=timeout_s,
            check=False,
            errors="replace",
        )
    except FileNotFoundError as error:
        raise InfrastructureError(
            f"there is no {words[0]} here", fix="run it on a login node of the cluster; sweep doctor"
        ) from error
    except OSError as error:
        raise InfrastructureError(f"{words[0]} cannot be run: {error}") from error
    except subprocess.TimeoutExpired as error:
        _silent_until_s[words[0]] = time.monotonic() + SILENT_S
        raise InfrastructureError(f"{words[0]} did not answer within {timeout_s:.0f} s") from error
    return Said(done.returncode, done.stdout, done.stderr)


def asked(*words: str) -> str:
    """Run a command whose output is needed.

    Raises:
        InfrastructureError: it did not succeed.
    """
    said = slurm(*words)
    if said.code != 0:
        raise InfrastructureError(f"{words[0]} failed: {said.problem}")
    return said.output
