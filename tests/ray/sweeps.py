"""Sweeps that tests give to the Ray cluster, and what they read of their drivers."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

from tests.commands.launches import running_heartbeats, wait_for
from tests.launchers.on_scheduler import OnScheduler
from tests.ray.testbed import RayCluster

ROOT = Path(__file__).parents[2]


class OnRay(OnScheduler):
    """The command on a machine outside the cluster, which shares a folder with it."""

    def __init__(self, cluster: RayCluster, folder: Path, store: Path) -> None:
        outside = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
        token = str(cluster.folder / "token")
        super().__init__(
            folder, store, {**outside, "RAY_AUTH_TOKEN_PATH": token, "PYTHONPATH": str(ROOT)}
        )
        self.cluster = cluster

    @property
    def words(self) -> tuple[str, ...]:
        """What a launch on the cluster is told."""
        return ("launcher=ray", f"launcher.address={self.cluster.address}", "launcher.settle_s=5")

    def launch(self, name: str = "jobs.yaml", *words: str, **more: Any) -> str:
        """Launches it on Ray."""
        return self("launch", name, *self.words, *words, **more)

    def driver(self, number: int = 1, name: str = "jobs") -> dict[str, Any]:
        """What the driver of a submission sees; {} before it sees anything."""
        path = self.store / f"sweeps/{name}/submissions/{number:06d}/driver.json"
        told: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        return told

    def driver_pids(self, name: str = "jobs") -> list[int]:
        """The processes of the drivers of a sweep, the shells around them left out."""
        names = [each["name"].encode() for each in self.submissions(name)]
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                words = path.read_bytes().split(b"\0")
            except OSError:
                continue
            if b"orchestrator.launchers.ray.driver" in words and words[0] != b"sh":
                found += [int(path.parent.name)] if set(names) & set(words) else []
        return found

    def until_running(self, number: int = 1, timeout_s: float = 60) -> list[dict[str, Any]]:
        """Waits until so many stages run; returns their heartbeats."""
        wait_for(lambda: len(running_heartbeats(self.store)) >= number, timeout_s)
        return running_heartbeats(self.store)

    def until_over(self, name: str = "jobs", timeout_s: float = 60) -> None:
        """Waits until no driver of the sweep lives."""
        wait_for(lambda: not self.driver_pids(name), timeout_s)

    def end_drivers(self, name: str = "jobs") -> None:
        """Kills what a test left."""
        for _ in range(20):  # whose shells start them anew
            for pid in self.driver_pids(name):
                os.kill(pid, signal.SIGKILL)
