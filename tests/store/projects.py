"""Projects of a user's, and another Polysweep that runs a script."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path


def git(folder: Path, *words: str) -> None:
    """Runs git as somebody."""
    identity = (
        "-c",
        "user.name=test",
        "-c",
        "user.email=test@example.org",
        "-c",
        "protocol.file.allow=always",
    )
    subprocess.run(["git", *identity, *words], cwd=folder, check=True, capture_output=True)


def repository(folder: Path, **files: str) -> Path:
    """Makes a repository with one commit; names use ``__`` for a slash and end in ``.py``."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        path = folder / f"{name.replace('__', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    git(folder, "init", "-q")
    git(folder, "add", ".")
    git(folder, "commit", "-q", "-m", "first", "--allow-empty")
    return folder


def in_python(folder: Path, script: str, *words: str) -> str:
    """Runs a script that imports `orchestrator` from a folder."""
    env = {**os.environ, "PYTHONPATH": str(folder), "PYTHONSAFEPATH": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script, *words],
        cwd=folder,
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.stdout
