"""Sweeps that tests give to the Ray cluster, and what they read of their drivers."""

from __future__ import annotations

import json
import os
import signal
import urllib.request
from pathlib import Path
from typing import Any

from tests.cli.launches import records, running_heartbeats, wait_for
from tests.launchers.on_scheduler import OnScheduler
from tests.ray.testbed import RayCluster, end, group_of

ROOT = Path(__file__).parents[2]


class OnRay(OnScheduler):
    """The command on a machine outside the cluster, which shares a folder with it."""

    def __init__(self, cluster: RayCluster, folder: Path, store: Path) -> None:
        outside = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
        token = str(cluster.folder / "token")
        super().__init__(folder, store, {**outside, "RAY_AUTH_TOKEN_PATH": token, "PYTHONPATH": str(ROOT)})
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

    def driver_pids(self, name: str = "jobs", *, shells: bool = False) -> list[int]:
        """The processes of the drivers of a sweep, or the shells around them that start them anew."""
        names = [each["name"].encode() for each in self.submissions(name)]
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            words = cmdline(int(path.parent.name)).split(b"\0")
            if b"orchestrator.launchers.ray.driver" in words and set(names) & set(words):
                found += [int(path.parent.name)] if (words[0] == b"sh") is shells else []
        return found

    def until_running(self, number: int = 1, timeout_s: float = 60) -> list[dict[str, Any]]:
        """Waits until so many stages run; returns their heartbeats."""
        wait_for(lambda: len(running_heartbeats(self.store)) >= number, timeout_s)
        return running_heartbeats(self.store)

    def until_over(self, name: str = "jobs", timeout_s: float = 60) -> None:
        """Waits until no driver of the sweep lives."""
        wait_for(lambda: not self.driver_pids(name), timeout_s)

    def end_drivers(self) -> None:
        """Kills what a test left."""
        names = [path.name for path in self.store.glob("sweeps/*")]
        for shells in (True, False):
            for pid in [pid for name in names for pid in self.driver_pids(name, shells=shells)]:
                end(pid, signal.SIGKILL)

    def actor_of(self, worker: int) -> int:
        """The process of the actor that holds the other end of a worker's standard input."""
        pipe = Path(f"/proc/{worker}/fd/0").readlink()
        for leader in self.cluster.processes.values():
            for pid in group_of(leader):
                if cmdline(pid).startswith(b"ray::Slot") and pipe in links(pid):
                    return pid
        raise LookupError(f"no actor of {worker}")

    def node_of(self, worker: int) -> str:
        """The name of the node that a worker runs on."""
        actor = self.actor_of(worker)
        return next(name for name, pid in self.cluster.processes.items() if actor in group_of(pid))

    def claims(self) -> list[dict[str, Any]]:
        """The claims, in the order of cells and attempts."""
        found = records(self.store, "claim.json")
        return sorted(found, key=lambda claim: (claim["cell"], int(claim["folder"].name)))

    def post(self, path: str) -> None:
        """Asks the dashboard for a change, as an administrator does."""
        token = (self.cluster.folder / "token").read_text()
        request = urllib.request.Request(
            self.cluster.address + path, b"", {"Authorization": f"Bearer {token}"}, method="POST"
        )
        urllib.request.urlopen(request, timeout=30).close()

    def ray_job(self, number: int = 1, name: str = "jobs") -> dict[str, Any]:
        """What Ray says of a submission's driver; {} when it does not know it."""
        wanted = self.submissions(name)[number - 1]["name"]
        listed = self.cluster.ask("/api/jobs/") or []
        return next((job for job in listed if job["submission_id"] == wanted), {})

    def until_job(self, status: str, number: int = 1) -> None:
        """Waits until Ray says that a driver is so."""
        wait_for(lambda: self.ray_job(number).get("status") == status, 60)


def cmdline(pid: int) -> bytes:
    """The command line of a process, b"" for one that is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def links(pid: int) -> list[Path]:
    """What a process has open."""
    return [path.readlink() for path in Path(f"/proc/{pid}/fd").iterdir() if path.is_symlink()]


def inside(pid: int, leader: int) -> bool:
    """Whether a process has this number among those below another one, in their own count."""
    for each in group_of(leader):
        try:
            status = Path(f"/proc/{each}/status").read_text()
        except OSError:
            continue
        numbers = next(line for line in status.splitlines() if line.startswith("NSpid:"))
        if numbers.split()[-1] == str(pid):
            return True
    return False
