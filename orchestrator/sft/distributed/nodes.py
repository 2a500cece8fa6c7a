"""Where ranks meet the stage's process, and how they come to run on every node of a Slurm allocation.

On one machine they meet at a socket in a folder of the user's own. Between nodes it is TCP, at an address
that the other nodes can reach, and both sides prove that they know a random key, which travels in the
environment alone. A launcher is started on each node by one ``srun``; the module, as a command, is what
becomes that ``srun``, so that it cannot outlive the stage. It knows nothing of torch.
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
"""Environment variables: where to meet, the key there, and the process that must outlive this one."""

_HANDSHAKE_S = 5
"""How long a stranger may keep us waiting for a proof."""

_FOREIGN = ("SLURM_", "PMI_", "PMIX_", "OMPI_", "TORCHELASTIC_", "PET_", "MASTER_", "ACCELERATE_")
_FOREIGN_NAMES = {
    *("RANK", "LOCAL_RANK", "GROUP_RANK", "ROLE_RANK", "ROLE_NAME", "NODE_RANK"),
    *("WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE", "ROLE_WORLD_SIZE", "OMP_NUM_THREADS"),
}


def count(environment: Mapping[str, str] | None = None) -> int:
    """Return over how many nodes ranks are spread: all of the Slurm job around us, or this machine alone."""
    environment = os.environ if environment is None else environment
    if "SLURM_JOB_ID" not in environment or "SLURM_JOB_NODELIST" not in environment:
        return 1
    return max(1, int(environment.get("SLURM_JOB_NUM_NODES") or 1))


def without_job(inherited: Mapping[str, str]) -> dict[str, str]:
    """Return an environment without what torchrun, MPI or NCCL would take for their own."""
    return {
        name: value
        for name, value in inherited.items()
        if name not in _FOREIGN_NAMES and not name.startswith(_FOREIGN)
    }


def die_with(parent: int) -> None:
    """Has the kernel kill this process when its parent dies, even by SIGKILL."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:  # it died before we asked
        os._exit(1)


class Meeting:
    """The stage's end: a server that lets in those who should come.

    Args:
        num_nodes: on how many nodes they run.
        num_guests: how many will come.

    Raises:
        StageFailure: this node has no address towards the others.
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
            self.server.bind((_address_towards(_another_node()), 0))
            host, port = self.server.getsockname()
            self.environment = {SOCKET: f"{host}:{port}", KEY: self._key.hex()}
        self.server.listen(num_guests)

    def accept(self) -> Connection | None:
        """Lets the next one in; None when it cannot prove that it should."""
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
        """Lets nobody in any more."""
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
    """Lets the other end know that nothing more will come; what it says is still heard."""
    with contextlib.suppress(OSError), socket.socket(fileno=os.dup(pipe.fileno())) as ours:
        ours.shutdown(socket.SHUT_WR)


def free_endpoint() -> str:
    """Return the address of the stage's node with a port that is free at the moment."""
    host = os.environ[SOCKET].rpartition(":")[0]
    with socket.socket() as probe:
        probe.bind((host, 0))
        return f"{host}:{probe.getsockname()[1]}"


def interface() -> str:
    """Name this node's network interface towards the stage's; "" when it cannot be found."""
    ours = _address_towards(os.environ[SOCKET].rpartition(":")[0])
    with socket.socket(type=socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            with contextlib.suppress(OSError):  # it has no address
                answer = fcntl.ioctl(probe, 0x8915, struct.pack("256s", name.encode()))  # SIOCGIFADDR
                if socket.inet_ntoa(answer[20:24]) == ours:
                    return name
    return ""


def _another_node() -> str:
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
    """Return our address on the network in which another node is; nothing is sent."""
    try:
        with socket.socket(type=socket.SOCK_DGRAM) as probe:
            probe.connect((node, 9))
            return str(probe.getsockname()[0])
    except OSError as error:
        raise StageFailure("communication", f"no way from this node to {node}: {error}") from error


def _set_patience(guest: socket.socket, seconds: int) -> None:
    """Bounds how long the kernel lets us wait for a peer's words; 0 for no bound."""
    guest.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", seconds, 0))


def srun(num_nodes: int, command: list[str]) -> list[str]:
    """Return the command that runs another once on each node of the allocation, beside what runs there."""
    return [
        *("srun", f"--nodes={num_nodes}", f"--ntasks={num_nodes}", "--ntasks-per-node=1", "--overlap"),
        *("--kill-on-bad-exit=1", "--mpi=none", "--cpu-bind=none", "--mem=0", "--export=ALL"),
        *("--input=none", "--quiet", f"--chdir={Path.cwd()}", *command),
    ]


if __name__ == "__main__":
    die_with(int(os.environ[PARENT]))
    os.execvp(sys.argv[1], sys.argv[1:])
