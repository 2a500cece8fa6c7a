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


class OtherUser(Sweep):
    """Runs the command as a user, with a group and a umask."""

    def __init__(self, folder: Path, store: Path, *, uid: int, gid: int, umask: int) -> None:
        super().__init__(folder, store)
        self._uid, self._gid, self._umask = uid, gid, umask

    def __call__(self, *words: str, code: int | None = 0, timeout_s: float = 120) -> str:
        done = subprocess.run(
            [*_as(self._uid, self._gid), sys.executable, "-m", "orchestrator", *words],
            cwd=self.folder,
            env={**os.environ, "SWEEP_STORE": str(self.store), "HOME": str(self.folder)},
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


def _as(uid: int, gid: int) -> list[str]:
    return ["setpriv", f"--reuid={uid}", f"--regid={gid}", "--clear-groups", "--"]


def other_user(sweep: Sweep, *, uid: int = NOBODY, gid: int = NOBODY, umask: int = 0o022) -> OtherUser:
    """Makes the test's folders passable and returns the command as another user; skips where that cannot be."""
    if os.getuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("only root can start the command as another user")
    for folder in (sweep.folder, *sweep.folder.parents):
        if folder.stat().st_uid == 0 and folder.is_relative_to("/tmp") and folder != Path("/tmp"):
            folder.chmod(folder.stat().st_mode | 0o055)
    probe = [*_as(uid, gid), sys.executable, "-c", "import orchestrator"]
    if subprocess.run(probe, cwd=sweep.folder, check=False, capture_output=True).returncode != 0:
        pytest.skip("another user cannot run this Python")
    return OtherUser(sweep.folder, sweep.store, uid=uid, gid=gid, umask=umask)
