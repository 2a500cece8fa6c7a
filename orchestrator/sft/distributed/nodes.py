"""Sockets between ranks and the stage's process, and the start of ranks on each node of a Slurm allocation.

On one machine processes connect to a Unix socket in a private folder. Between nodes they use TCP, at an
address that the other nodes can reach. There both sides prove that they have a random key. The key travels in
the environment only, so other users of the cluster cannot connect.

One ``srun`` starts a launcher on each node. Run as a command, this module replaces itself by that ``srun``.
Before that it has the kernel kill it when the stage's process dies, which also holds for the ``srun``. It
imports no torch.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import secrets
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Connection, answer_challenge, deliver_challenge
from pathlib import Path

from orchestrator.entry import socket_folder
from orchestrator.errors import StageFailure

SOCKET, KEY, PARENT = "SWEEP_RANKS_SOCKET", "SWEEP_RANKS_KEY", "SWEEP_RANKS_PARENT"
"""Environment variables: the address to connect to, the key for it, and the pid of the parent process."""

_HANDSHAKE_S = 5
"""How long an unknown connection may take for each part of its proof, in seconds."""

_FOREIGN = ("SLURM_", "PMI_", "PMIX_", "OMPI_", "TORCHELASTIC_", "PET_", "MASTER_", "ACCELERATE_")
"""Prefixes of variables by which other launchers configure a process."""
_FOREIGN_NAMES = {
    *("RANK", "LOCAL_RANK", "GROUP_RANK", "ROLE_RANK", "ROLE_NAME", "NODE_RANK"),
    *("WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE", "ROLE_WORLD_SIZE", "OMP_NUM_THREADS"),
}


def count(environment: Mapping[str, str] | None = None) -> int:
    """Return the number of nodes for the ranks: all of the surrounding Slurm job, or this machine alone."""
    environment = os.environ if environment is None else environment
    if "SLURM_JOB_ID" not in environment or "SLURM_JOB_NODELIST" not in environment:
        return 1
    return max(1, int(environment.get("SLURM_JOB_NUM_NODES") or 1))


def without_job(inherited: Mapping[str, str]) -> dict[str, str]:
    """Return an environment without the variables that torchrun, MPI or NCCL would read as their own."""
    return {
        name: value
        for name, value in inherited.items()
        if name not in _FOREIGN_NAMES and not name.startswith(_FOREIGN)
    }


def die_with(parent: int) -> None:
    """Have the kernel kill this process when its parent dies, even if SIGKILL ends the parent.

    Args:
        parent: pid that the parent must have. If it has changed, the parent is dead already, and this process
            ends.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:  # it died before the line above
        os._exit(1)


def environment(inherited: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of ranks on this machine, without the variables of a surrounding job.

    Otherwise torchrun would take over settings that were made for another launcher, such as ``MASTER_ADDR``.
    """
    # On one machine gloo would otherwise resolve the host name, which need not have an address.
    loopback = {"GLOO_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else {}
    return {**loopback, **without_job(inherited), **imports()}


def imports() -> dict[str, str]:
    """Return the variables that give a new interpreter the import paths of this one."""
    here = str(Path.cwd())
    paths = [path or here for path in sys.path]
    return {"PYTHONPATH": os.pathsep.join(paths), "PYTHONSAFEPATH": "1"}


class Meeting:
    """Server in the stage's process, to which the launchers and ranks connect.

    Args:
        num_nodes: number of nodes they run on.
        num_guests: number of connections to expect.

    Raises:
        StageFailure: this node has no address that the other nodes can reach.
    """

    def __init__(self, num_nodes: int, num_guests: int) -> None:
        self._folder: Path | None = None
        self._key = b""
        if num_nodes == 1:
            self._folder = Path(tempfile.mkdtemp(prefix="sweep-", dir=socket_folder()))  # mode 0700
            self.server = socket.socket(socket.AF_UNIX)
            self.server.bind(str(self._folder / "s"))
            self.environment = {SOCKET: str(self._folder / "s")}
        else:
            self._key = secrets.token_bytes(32)
            self.server = socket.socket(socket.AF_INET)
            # A cluster's node often has several networks. This picks the one in which the other nodes are.
            self.server.bind((_address_towards(_another_node()), 0))
            host, port = self.server.getsockname()
            self.environment = {SOCKET: f"{host}:{port}", KEY: self._key.hex()}
        self.server.listen(num_guests)

    def accept(self) -> Connection | None:
        """Accept one connection. Return None if the other side cannot prove that it has the key."""
        guest, _ = self.server.accept()
        with guest:
            pipe = Connection(os.dup(guest.fileno()))
            if not self._key:
                return pipe
            try:
                _set_patience(guest, _HANDSHAKE_S)
                deliver_challenge(pipe, self._key)
                answer_challenge(pipe, self._key)
                _set_patience(guest, 0)
            except (OSError, EOFError, AuthenticationError, ValueError):
                pipe.close()
                return None
        return pipe

    def close(self) -> None:
        """Stop accepting connections, and remove the socket's folder."""
        self.server.close()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)


def join() -> Connection:
    """Connect a rank, or a launcher, to the stage's process."""
    where, key = os.environ[SOCKET], os.environ.get(KEY)
    if key is None:
        return Client(where, "AF_UNIX")
    host, _, port = where.rpartition(":")
    return Client((host, int(port)), authkey=bytes.fromhex(key))


def hang_up(pipe: Connection) -> None:
    """Close one direction of a pipe: the other side reads an end of file, but its messages still arrive."""
    with contextlib.suppress(OSError), socket.socket(fileno=os.dup(pipe.fileno())) as ours:
        ours.shutdown(socket.SHUT_WR)


def free_endpoint() -> str:
    """Return the address of the stage's node with a port that is free at the moment."""
    host = os.environ[SOCKET].rpartition(":")[0]
    with socket.socket() as probe:
        probe.bind((host, 0))
        return f"{host}:{probe.getsockname()[1]}"


def interface() -> str:
    """Return the name of the network interface towards the stage's node, "" if it cannot be found."""
    ours = _address_towards(os.environ[SOCKET].rpartition(":")[0])
    with socket.socket(type=socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            with contextlib.suppress(OSError):  # it has no address
                answer = fcntl.ioctl(probe, 0x8915, struct.pack("256s", name.encode()))  # SIOCGIFADDR
                if socket.inet_ntoa(answer[20:24]) == ours:
                    return name
    return ""


def _another_node() -> str:
    """Return the name of one other node of the Slurm job.

    Raises:
        StageFailure: ``scontrol`` cannot list the nodes (cause ``config``).
    """
    nodes = os.environ["SLURM_JOB_NODELIST"]
    try:
        listed = subprocess.run(
            ["scontrol", "show", "hostnames", nodes],
            capture_output=True,
            text=True,
            errors="replace",
            check=True,
        )
    except (OSError, subprocess.CalledProcessError) as error:
        raise StageFailure("config", f"cannot list the nodes {nodes} by scontrol: {error}") from error
    return next(n for n in listed.stdout.split() if n != os.environ.get("SLURMD_NODENAME"))


def _address_towards(node: str) -> str:
    """Return this node's address in the network that leads to another node.

    Connecting a UDP socket chooses a route but sends no packet, so nothing needs to listen there.

    Raises:
        StageFailure: there is no route (cause ``communication``).
    """
    try:
        with socket.socket(type=socket.SOCK_DGRAM) as probe:
            probe.connect((node, 9))
            return str(probe.getsockname()[0])
    except OSError as error:
        raise StageFailure("communication", f"no way from this node to {node}: {error}") from error


def _set_patience(guest: socket.socket, seconds: int) -> None:
    """Limit how long the kernel blocks a read from a peer, in seconds; 0 for no limit."""
    guest.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", seconds, 0))


def srun(num_nodes: int, command: list[str]) -> list[str]:
    """Return the command that runs another command once on each node of the allocation.

    It shares the resources of the job steps that run already (``--overlap``), such as the worker.
    """
    return [
        *("srun", f"--nodes={num_nodes}", f"--ntasks={num_nodes}", "--ntasks-per-node=1", "--overlap"),
        *("--kill-on-bad-exit=1", "--mpi=none", "--cpu-bind=none", "--mem=0", "--export=ALL"),
        *("--input=none", "--quiet", f"--chdir={Path.cwd()}", *command),
    ]


if __name__ == "__main__":
    die_with(int(os.environ[PARENT]))
    os.execvp(sys.argv[1], sys.argv[1:])
