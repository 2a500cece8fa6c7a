"""What tests of sweeps share: the command ``sweep`` with a store of its own, and what they read there."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

COUNT = """
description: counting
config: {seed: 0, count: {num_steps: 20, checkpoint_every: 5, step_s: 0.02, fail: null}}
axes: {seed: "range(0,4)"}
stages: [count]
"""


class SweepCommand:
    """The command ``sweep``, run in a folder, with a store of the test's own.

    Args:
        folder: the working folder.
        store: where the store is or will be.
        env: the environment; None for that of this process.

    Attributes:
        program: the words before the verb, such as those of another environment's Python.
    """

    program: Sequence[str] = (sys.executable, "-m", "orchestrator")

    def __init__(self, folder: Path, store: Path, env: Mapping[str, str] | None = None) -> None:
        self.folder = folder
        self.store = store
        self.env = None if env is None else {**env, "SWEEP_STORE": str(store)}

    def __call__(self, *words: str, code: int | None = 0, timeout_s: float = 120) -> str:
        """Run a verb, and return what it printed on both streams.

        Args:
            words: of the command line.
            code: the expected exit code; None for any.
            timeout_s: seconds that it may take.

        Raises:
            AssertionError: another exit code, or a traceback.
        """
        env = self.env or {**os.environ, "SWEEP_STORE": str(self.store)}
        code_of, out, err = self.run(words, env, timeout_s)
        assert "Traceback" not in err, err
        output = out + err
        assert code is None or code_of == code, f"exit {code_of}\n{output}"
        return output

    def run(self, words: tuple[str, ...], env: Mapping[str, str], timeout_s: float) -> tuple[int, str, str]:
        """Run a verb in a process, and return its exit code and both streams."""
        done = subprocess.run(
            [*self.program, *words],
            cwd=self.folder,
            env=env,
            capture_output=True,
            stdin=subprocess.DEVNULL,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        return done.returncode, done.stdout, done.stderr

    def json(self, *words: str) -> Any:
        """Run a reading verb with ``--json``, and return what it printed."""
        return json.loads(self(*words, "--json"))


def counted(seed: int, num_steps: int) -> str:
    """Return the digest at the end of the stage ``count``, see `orchestrator.count`."""
    state = str(seed)
    for step in range(1, num_steps + 1):
        state = hashlib.sha256(f"{state}:{step}".encode()).hexdigest()
    return state


def records(store: Path, name: str) -> list[dict[str, Any]]:
    """Return all records of one kind, such as ``claim.json``, each with the ``folder`` that it lies in."""
    return [
        {**json.loads(path.read_text()), "folder": path.parent}
        for path in store.glob(f"records/*/*/*/{name}")
    ]


def wait_for(condition: Callable[[], Any], timeout_s: float = 60) -> Any:
    """Wait until a condition holds, and return its value.

    Raises:
        AssertionError: it does not hold after `timeout_s` seconds.
    """
    deadline_s = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline_s, "waited in vain"
        time.sleep(0.02)
    return value


def running_heartbeats(store: Path) -> list[dict[str, Any]]:
    """Return the heartbeats, with the child's process, of attempts that have not ended."""
    return [
        beat
        for beat in records(store, "heartbeat.json")
        if beat["child"] and not (beat["folder"] / "end.json").exists()
    ]


def checkpoints(store: Path) -> list[Path]:
    """Return the manifests of all checkpoints."""
    return list(store.glob("payload/*/*/*/checkpoints/*/manifest.json"))
