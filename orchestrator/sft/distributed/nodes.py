"""Ranks and the stage's process: sockets, the start on each node of a Slurm allocation, and how ranks ended.

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
import re
import secrets
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Connection, answer_challenge, deliver_challenge
from pathlib import Path
from typing import Any

from orchestrator.entry import socket_folder
from orchestrator.errors import StageFailure, StopRequested
from orchestrator.sft.distributed.context import ContextCalls

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


ENDED = 128 + signal.SIGTERM
"""Exit code of a rank that its launcher ended because another rank failed."""

PATIENCE_S, _NEIGHBOURS_S, _SILENT_S = 10.0, 0.5, 60.0
"""Waiting times after the first failure, in seconds.

`PATIENCE_S` is the time for all processes to end. `_NEIGHBOURS_S` replaces it in a job of several nodes as
soon as a node has reported its ranks' exits. `_SILENT_S` replaces both while a rank has ended without a
message and its node has not yet reported how.
"""
_SECONDARY = (ENDED, -signal.SIGTERM)
"""Exit codes of ranks that ended because another rank failed."""

_EITHER = (-signal.SIGABRT,)
"""Exit codes of ranks that failed by themselves, or because another rank did: NCCL aborts in both cases."""

_LOST = re.compile(r"/gloo/transport/|\bNCCL\b|Connection (reset|closed) by peer")
"""Words of an error that follows from the loss of another rank; torch raises it as a `RuntimeError`."""


class RankEnds:
    """How the ranks of a group ended, and which of the failures was the first cause.

    Args:
        num_processes, num_nodes: of the group.

    Attributes:
        done: what each rank returned.
        raised: the exception of each rank that raised one. In order of arrival: the first is closest to the
            cause.
        exits: rank, exit code and whether the kernel was out of memory, as launchers report them.
    """

    def __init__(self, num_processes: int, num_nodes: int) -> None:
        self._num_processes = num_processes
        self._num_nodes = num_nodes
        self.done: dict[int, Any] = {}
        self.raised: dict[int, BaseException] = {}
        self.exits: list[tuple[int, int, bool]] = []
        self._silent: list[int] = []  # ended without a message, in that order
        self._failed_s: float | None = None

    @property
    def are_all_done(self) -> bool:
        """Whether every rank returned."""
        return len(self.done) == self._num_processes

    @property
    def is_failed(self) -> bool:
        """Whether a rank ended without a result."""
        return self._failed_s is not None

    def lose(self, rank: int | None) -> None:
        """Note that a rank's connection closed. None is a process that had not yet named its rank."""
        if rank in self.done:
            return
        self._failed_s = self._failed_s or time.monotonic()
        if rank is not None and rank not in self.raised:
            self._silent.append(rank)

    def is_overdue(self, *, has_launcher: bool) -> bool:
        """Return whether the processes that are left have had their time to end after the first failure.

        Args:
            has_launcher: whether a launcher is still connected.
        """
        # A cause is reported, so the other nodes need not be waited for: Slurm ends them slowly.
        is_known = self._num_nodes > 1 and self.exits
        patience_s = _NEIGHBOURS_S if is_known else PATIENCE_S
        patience_s = _SILENT_S if self._unexplained(has_launcher) else patience_s
        return self._failed_s is not None and time.monotonic() - self._failed_s > patience_s

    def _unexplained(self, has_launcher: bool) -> list[int]:
        """Return the ranks that ended without a message, on nodes whose launcher has not reported how.

        Errors of other ranks, such as a reset connection, only follow from such an end. So they are not the
        cause.
        """
        per_node = self._num_processes // self._num_nodes
        reported = {rank // per_node for rank, _, _ in self.exits}
        return [rank for rank in self._silent if rank // per_node not in reported] if has_launcher else []

    def error(self, calls: ContextCalls, *, has_launcher: bool) -> BaseException:
        """Return the most likely first cause of a failure.

        One rank's end makes its peers fail too, often earlier in the order of messages. So a peer's
        "connection reset" must not hide the rank that the kernel killed. In order of preference:

        1. a `StageFailure` that a rank raised, since it names a cause;
        2. on several nodes, a requested stop, on which `srun` kills all ranks;
        3. the exit of a rank that raised nothing, other than those that a launcher ended;
        4. a rank that ended without a message or a report;
        5. a rank that aborted, if all that its peers raised is a lost connection;
        6. the first exception that a rank raised.

        Args:
            calls: of the context, which knows whether a stop was requested.
            has_launcher: whether a launcher is still connected.
        """
        for error in self.raised.values():
            if isinstance(error, StageFailure):
                return error
        if self._num_nodes > 1 and not self.raised and calls.stop_asked:
            return StopRequested(calls.why_stop())  # on SIGTERM `srun` kills all ranks
        if (exited := self._exit(lambda code: code not in (*_SECONDARY, *_EITHER))) is not None:
            return exited
        if unexplained := self._unexplained(has_launcher):
            return StageFailure("unknown", f"rank {unexplained[0]} ended without a word")
        aborted = self._exit(lambda code: code in _EITHER)
        if aborted is not None and all(map(_is_lost_connection, self.raised.values())):
            return aborted
        if self.raised:
            return next(iter(self.raised.values()))
        return StageFailure(
            "communication", f"torchrun did not bring {self._num_processes} processes to an end"
        )

    def _exit(self, is_wanted: Callable[[int], bool]) -> StageFailure | None:
        """Return the first exit of a rank that raised nothing, with such an exit code; None without one."""
        for rank, code, is_out_of_memory in self.exits:  # in the order of failure
            if rank not in self.raised and is_wanted(code):
                cause = "oom_host" if is_out_of_memory and code == -signal.SIGKILL else "unknown"
                how = (
                    f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with code {code}"
                )
                return StageFailure(cause, f"rank {rank} {how}")
        return None


def _is_lost_connection(error: BaseException) -> bool:
    """Return whether a rank raised only that it lost another one."""
    is_of_torch = type(error).__name__ in ("DistBackendError", "DistNetworkError", "DistStoreError")
    return is_of_torch or isinstance(error, ConnectionError) or bool(_LOST.search(str(error)))


if __name__ == "__main__":
    die_with(int(os.environ[PARENT]))
    os.execvp(sys.argv[1], sys.argv[1:])
