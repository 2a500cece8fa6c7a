"""A real Ray cluster on this machine: a head and nodes as processes of their own, on loopback; fake GPUs.

``python -m tests.ray.testbed up FOLDER`` and ``down FOLDER``; `make ray-smoke` shows the use.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from orchestrator.processes import process_table
from tests.execution.waiting import lives

PYTHON = sys.executable
# Ray gives loopback as an address to nobody but a Mac's single node; else it takes the machine's own, and
# listens to the world. So its processes are told that this is one (the environment below), the command is
# not; and a head is not told of nodes, beside which it would not start when it was lost.
START = (
    "import functools, ray._private.ray_constants as c, ray._private.services as s; "
    "c.ENABLE_RAY_CLUSTER = True; s.get_node_ip_address = lambda address=None: '127.0.0.1'; "
    "s.find_gcs_addresses = functools.cache(set); from ray.scripts.scripts import main; main()"
)
NODES = ({"GPU": 2}, {"GPU": 2}, {"GPU": 4})
CPUS = 4
STORE_BYTES = 80_000_000
READY_S = 90.0


def free_port() -> int:
    """Returns a port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def environment(folder: Path) -> dict[str, str]:
    """What Ray's processes get: this Python first, a token, quick notice of dead nodes, no telemetry."""
    return {
        **{key: value for key, value in os.environ.items() if not key.startswith("RAY_")},
        "PATH": f"{Path(PYTHON).parent}:{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(folder / "token"),
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_DISABLE_IMPORT_WARNING": "1",
        "RAY_prestart_worker_first_driver": "0",  # one Python a CPU and node, of which nearly none is used
        "RAY_health_check_initial_delay_ms": "2000",
        "RAY_health_check_period_ms": "1000",
        "RAY_health_check_failure_threshold": "4",
        "RAY_gcs_rpc_server_reconnect_timeout_s": "20",
    }


class RayCluster:
    """A head without CPUs, and nodes.

    Args:
        folder: for its files; short, since sockets lie in it.
        nodes: the custom resources and GPUs of each node.
        environment: further variables of its processes.
        head: further ones of the head alone.
        config: of the whole cluster, as `ray start --system-config` takes it.
    """

    def __init__(
        self,
        folder: Path,
        nodes: Sequence[dict[str, float]] = NODES,
        environment: Mapping[str, str] | None = None,
        head: Mapping[str, str] | None = None,
        config: Mapping[str, float] | None = None,
    ) -> None:
        self.folder, self._nodes, self._environment = folder, nodes, environment or {}
        self._head, self._config = head or {}, config or {}
        self._port, self._dashboard = free_port(), free_port()
        self.processes: dict[str, int] = {}

    @property
    def address(self) -> str:
        """What `launcher.address` takes."""
        return f"http://127.0.0.1:{self._dashboard}"

    def up(self) -> None:
        """Starts all, and waits until every node is known."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "token").write_text(secrets.token_hex(32))
        self.start_head()
        for number, resources in enumerate(self._nodes, 1):
            self.start_node(f"node{number}", resources)
        self._wait_for_all()

    def start_head(self) -> None:
        """Starts the head at the address that it has, or had."""
        wait(self._try_head, "the head does not answer")

    def _try_head(self) -> bool:
        """Starts the head if it does not run; returns whether it answers."""
        if "head" in self.processes and lives(self.processes["head"]):
            return bool(self.ask("/api/version"))
        if "head" in self.processes:
            self.kill("head")
        self._start(
            "head",
            "--head",
            f"--port={self._port}",
            "--dashboard-host=127.0.0.1",
            f"--dashboard-port={self._dashboard}",
            "--num-cpus=0",
            "--num-gpus=0",
            *([f"--system-config={json.dumps(self._config)}"] if self._config else []),
        )
        return False

    def start_node(self, name: str, resources: dict[str, float], *, apart: bool = False) -> None:
        """Starts a node; with `apart` as on another machine, none of whose processes is seen from here."""
        custom = {key: value for key, value in resources.items() if key not in ("CPU", "GPU")}
        self._start(
            name,
            f"--address=127.0.0.1:{self._port}",
            f"--num-cpus={resources.get('CPU', CPUS):g}",
            f"--num-gpus={resources.get('GPU', 0):g}",
            f"--resources={json.dumps({name: 1, **custom})}",
            apart=apart,
        )

    def _start(self, name: str, *words: str, apart: bool = False) -> None:
        command = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"] if apart else []
        command += [PYTHON, "-c", START, "start", *words, "--block", "--node-ip-address=127.0.0.1"]
        command += [
            f"--temp-dir={self.folder}/{name}",  # in one, nodes that start together choose the same sockets
            f"--object-store-memory={STORE_BYTES}",
            f"--dashboard-agent-listen-port={free_port()}",  # which nodes of one address would share
            "--disable-usage-stats",
        ]
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                command,
                env={
                    **environment(self.folder),
                    **self._environment,
                    **(self._head if name == "head" else {}),
                    "SWEEP_CACHE": f"{self.folder}/{name}/sweep",
                },
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.processes[name] = process.pid

    def ask(self, path: str, method: str = "GET") -> Any:
        """Returns what the dashboard answers; None when it does not answer."""
        headers = {"Authorization": f"Bearer {(self.folder / 'token').read_text()}"}
        request = urllib.request.Request(self.address + path, headers=headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:
                return json.loads(answer.read())
        except (OSError, ValueError):
            return None

    def nodes(self) -> list[dict[str, Any]]:
        """Returns the nodes that live."""
        told = self.ask("/api/v0/nodes?detail=1&limit=1000")
        rows = told["data"]["result"]["result"] if told and told.get("data") else []
        return [row for row in rows if row["state"] == "ALIVE"]

    def add_nodes(self, nodes: dict[str, dict[str, float]], *, apart: bool = False) -> None:
        """Starts nodes beside those that live, and waits until they live too."""
        before = {row["node_id"] for row in self.nodes()}  # maybe one of the same name that was killed
        for name, resources in nodes.items():
            self.start_node(name, resources, apart=apart)
        self._wait_for(nodes, lambda row: row["node_id"] not in before, apart=apart)

    def _wait_for(
        self, nodes: dict[str, dict[str, float]], counts: Callable[[Any], bool], *, apart: bool = False
    ) -> None:
        """Waits until these nodes live. One that ended is started again: its port may have been taken."""

        def all_live() -> bool:
            for name, resources in nodes.items():
                if not lives(self.processes[name]):
                    self.kill(name)
                    self.start_node(name, resources, apart=apart)
            known = {key for row in self.nodes() if counts(row) for key in row["resources_total"]}
            return nodes.keys() <= known

        wait(all_live, f"not all of these nodes live: {', '.join(nodes)}")

    def _wait_for_all(self) -> None:
        """Waits until all nodes live, and none else."""
        nodes = {f"node{number}": resources for number, resources in enumerate(self._nodes, 1)}
        self._wait_for(nodes, lambda row: True)
        wait(lambda: len(self.nodes()) == len(nodes) + 1, f"there are not {len(nodes) + 1} nodes")

    def node_id(self, name: str) -> str:
        """Returns the id of a node."""
        return next(str(row["node_id"]) for row in self.nodes() if name in row["resources_total"])

    def drain(self, name: str, seconds: int) -> None:
        """Announces that a node will go, as an autoscaler does when a machine is to be preempted."""
        words = ["drain-node", f"--address=127.0.0.1:{self._port}", f"--node-id={self.node_id(name)}"]
        words += ["--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=spot"]
        words += [f"--deadline-remaining-seconds={seconds}"]
        subprocess.run([PYTHON, "-c", START, *words], env=environment(self.folder), check=True)

    def raylet(self, name: str) -> int:
        """Returns the pid of a node's raylet."""
        for pid in group_of(self.processes[name]):
            if Path(f"/proc/{pid}/comm").read_text().strip() == "raylet":
                return pid
        raise LookupError(f"no raylet of {name}")

    def kill(self, name: str) -> None:
        """Kills a node, or the head, with all its processes but such as left its session."""
        for pid in group_of(self.processes.pop(name)):
            end(pid, signal.SIGKILL)

    def heal(self) -> None:
        """Starts again what was killed: the nodes, or all if the head was."""
        if "head" not in self.processes or not self.ask("/api/version"):
            for name in list(self.processes):
                self.kill(name)
            self.start_head()
        wanted = {f"node{number}": resources for number, resources in enumerate(self._nodes, 1)}
        known = {key for row in self.nodes() for key in row["resources_total"]}
        for name in [name for name in self.processes if name not in wanted.keys() & known and name != "head"]:
            self.kill(name)
        for name, resources in wanted.items():
            if name not in self.processes:
                self.start_node(name, resources)
        self._wait_for_all()

    def down(self) -> None:
        """Ends all, nodes first."""
        for name in reversed(list(self.processes)):
            self.kill(name)
        shutil.rmtree(self.folder, ignore_errors=True)


def group_of(leader: int) -> list[int]:
    """Returns a process and all that descend from it, the last first."""
    children: dict[int, list[int]] = {}
    for pid, entry in process_table().items():
        children.setdefault(entry.parent, []).append(pid)
    found = [leader]
    for pid in found:
        found += children.get(pid, [])
    return found[::-1]


def end(pid: int, number: int) -> None:
    """Sends a signal to a process that may be gone."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def wait(condition: Callable[[], Any], what: str, timeout_s: float = READY_S) -> Any:
    """Waits for something to become true."""
    deadline_s = time.monotonic() + timeout_s
    while time.monotonic() < deadline_s:
        if value := condition():
            return value
        time.sleep(0.2)
    raise TimeoutError(what)


def main() -> None:
    """Brings a cluster up, which stays, or takes it down."""
    verb, folder = sys.argv[1], Path(sys.argv[2])
    state = folder / "cluster.json"
    if verb == "up":
        cluster = RayCluster(folder)
        cluster.up()
        state.write_text(json.dumps({"processes": cluster.processes}))
        told = {"RAY_API_SERVER_ADDRESS": cluster.address, "RAY_AUTH_TOKEN_PATH": str(folder / "token")}
        (folder / "env").write_text("".join(f"export {key}={value}\n" for key, value in told.items()))
        print(f"a head and {len(NODES)} nodes, known after: source {folder}/env")
    else:
        cluster = RayCluster(folder)
        cluster.processes = json.loads(state.read_text())["processes"]
        cluster.down()


if __name__ == "__main__":
    main()
