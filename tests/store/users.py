"""The command as another user of the machine: permissions say nothing to root."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import Sweep

NOBODY = 65534
ROOT = Path(__file__).parents[2]


class OtherUser(Sweep):
    """Runs the command as a user, with a group and a umask."""

    def __init__(self, sweep: Sweep, words: list[str], env: dict[str, str], umask: int) -> None:
        super().__init__(sweep.folder, sweep.store, env)
        self._words, self._umask = words, umask

    def __call__(self, *words: str, code: int | None = 0, timeout_s: float = 120) -> str:
        done = subprocess.run(
            [*self._words, "-m", "orchestrator", *words],
            cwd=self.folder,
            env=self.env,
            capture_output=True,
            stdin=subprocess.DEVNULL,
            text=True,
            timeout=timeout_s,
            umask=self._umask,
            check=False,
        )
        assert "Traceback" not in done.stderr, done.stderr
        said = done.stdout + done.stderr
        assert code is None or done.returncode == code, f"exit {done.returncode}\n{said}"
        return said


PROBE = (
    "import subprocess, sys, orchestrator.cli.main, msgspec, hydra; "
    "subprocess.run([sys.executable, '-c', ''], check=True)"
)


def other_user(
    sweep: Sweep, *, uid: int = NOBODY, gid: int = NOBODY, umask: int = 0o022, groups: str = "--clear-groups"
) -> OtherUser:
    """Returns the command as another user; skips where that cannot be."""
    if os.getuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("only root can start the command as another user")
    paths = [str(ROOT), *(path for path in sys.path if "site-packages" in path)]
    env = {**os.environ, "HOME": str(sweep.folder), "PYTHONPATH": os.pathsep.join(paths)}
    for python in (sys.executable, f"/usr/bin/python3.{sys.version_info.minor}"):
        words = ["setpriv", f"--reuid={uid}", f"--regid={gid}", groups, "--", python]
        probe = subprocess.run(
            [*words, "-c", PROBE], cwd=sweep.folder, env=env, check=False, capture_output=True
        )
        if probe.returncode == 0:
            return OtherUser(sweep, words, env, umask)
    pytest.skip("no Python that another user can start has what is needed")
