"""Launches of the sweep with a mistake: a command, on a full disk, stopped again and again, or on Slurm."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[2]
WAITED_FOR = {"pending", "queued", "running", "released", "lost", "unknown"}
SWEEP = (sys.executable, "-P", "-m", "orchestrator.cli.main")


class Run:
    """One launch of the sweep with a mistake.

    Args:
        folder: with the sweep file and its module.
        words: of the launch.

    Attributes:
        store: where it records.
        env: environment of its commands.
    """

    def __init__(self, folder: Path, words: Sequence[str]) -> None:
        self.folder, self.words, self.store = folder, tuple(words), folder / "store"
        self.env = {**os.environ, "SWEEP_STORE": str(self.store), "PYTHONPATH": str(REPOSITORY)}

    def launch(self, *words: str, timeout_s: float | None = None) -> int:
        """Launch; return the exit code. It is asked to stop so long after its first claim."""
        before = self._num_claims()
        with (self.folder / "launch.log").open("ab") as log:
            process = subprocess.Popen(
                [*SWEEP, "launch", "mistakes.yaml", "launcher.workers=2", *self.words, *words],
                cwd=self.folder,
                env=self.env,
                stdout=log,
                stderr=log,
            )
            while timeout_s and process.poll() is None and self._num_claims() == before:
                time.sleep(0.2)
            try:
                return process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGTERM)
                return process.wait()

    def _num_claims(self) -> int:
        return sum(1 for _ in self.store.glob("records/*/*/*/claim.json"))

    def json(self, *words: str) -> Any:
        """Return what a verb prints with ``--json``; None if it printed an error."""
        done = subprocess.run(
            [*SWEEP, *words, "--json"],
            cwd=self.folder,
            env=self.env,
            capture_output=True,
            text=True,
            check=False,
        )
        return json.loads(done.stdout) if done.stdout.strip() else None


def preempted(run: Run) -> int:
    """Stop each launch 4 seconds after its first claim, and start another one, until all is done."""
    for _ in range(100):
        if (code := run.launch(timeout_s=4)) == 0:
            return code
    return 1


def on_full_disk(run: Run) -> int:
    """Launch into a file system that is too small, and enlarge it a while after the first failure."""
    run.store.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", run.store], check=True)
    enlarging = threading.Thread(target=_enlarge_later, args=(run,), daemon=True)
    try:
        enlarging.start()
        if (code := run.launch()) != 0:  # what failed for good meanwhile
            enlarging.join()
            code = run.launch()
        kept = run.folder / "kept"
        shutil.copytree(run.store, kept, symlinks=True)
    finally:
        subprocess.run(["umount", "-l", run.store], check=True)
    run.store.rmdir()
    kept.rename(run.store)
    return code


def _enlarge_later(run: Run) -> None:
    """Enlarge the file system of a run 20 seconds after a stage has failed for want of space."""
    until_s = time.monotonic() + 300
    while time.monotonic() < until_s and not failed_stages(run):
        time.sleep(1)
    time.sleep(20)
    subprocess.run(["mount", "-o", "remount,size=200m", run.store], check=False)


def on_slurm(hurt: Callable[[Mapping[str, str]], object]) -> Callable[[Run], int]:
    """Return a launch on a Slurm of two nodes, the first of which is hurt again and again."""

    def launch(run: Run) -> int:
        sys.path.insert(0, str(REPOSITORY))
        from tests.slurm.testbed import Testbed

        testbed = Testbed.start(Path(tempfile.mkdtemp(prefix="mistakes.", dir="/tmp")), nodes=2)
        try:
            run.env |= testbed.env
            run.words = (
                *(word for word in run.words if not word.startswith("launcher.workers")),
                *("launcher=slurm", "cluster=testbed", "cluster.memory_gib=2"),
                *(("launcher.bad_node_hours=0",) if "policy.quarantine_s=0" in run.words else ()),
            )
            done = subprocess.run(
                [*SWEEP, "launch", "mistakes.yaml", *run.words], cwd=run.folder, env=run.env, check=False
            )
            until_s = time.monotonic() + 600
            while done.returncode == 0 and time.monotonic() < until_s:
                hurt(testbed.env)
                subprocess.run(
                    [*SWEEP, "reconcile", "mistakes"],
                    cwd=run.folder,
                    env=run.env,
                    capture_output=True,
                    check=False,
                )
                counts = (run.json("status", "mistakes") or {"counts": {"unknown": 1}})["counts"]
                # `unknown`: Slurm did not answer, or the job's end is not accounted yet.
                if not WAITED_FOR & {state for state, number in counts.items() if number}:
                    break
                time.sleep(1)
            return done.returncode
        finally:
            testbed.stop()

    return launch


def kill_on_node1(env: Mapping[str, str]) -> None:
    """Kill each child of a worker that runs on the first node."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            variables = (entry / "environ").read_bytes().split(b"\0")
            command = (entry / "cmdline").read_bytes()
            conf = f"SLURM_CONF={env['SLURM_CONF']}".encode()
            if b"SLURMD_NODENAME=node1" in variables and conf in variables and b"python" in command:
                os.kill(int(entry.name), signal.SIGKILL)
        except (OSError, ProcessLookupError):
            continue


def failed_stages(run: Run) -> list[dict[str, Any]]:
    """Return each failed attempt: its stage, cell, cause and seconds."""
    found = []
    for path in run.store.glob("records/*/*/*/end.json"):
        end = json.loads(path.read_text())
        if end["outcome"] == "failed":
            claim = json.loads((path.parent / "claim.json").read_text())
            stage = path.relative_to(run.store).parts[1]
            found.append({"stage": stage, "cell": claim["cell"], "cause": end["cause"], "s": end["seconds"]})
    return found
