"""The client of a broker: starts it on first use, and waits for its replies with a time limit.

A process that forks must not load the object-store library, so each process has a broker of its own. A forked
process drops its parent's broker, and starts another when it needs one. When a broker dies in the middle of a
call, a new one is started and the call is made again. Only a create is not made again. It may have succeeded,
so a second one could find its own object. It raises an `OSError`, as if the server's reply were lost.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

import orchestrator

LENGTH_BYTES = 4


class Move(msgspec.Struct, frozen=True, array_like=True):
    """A file to upload or download.

    Attributes:
        key: Key in the store.
        path: Path on this machine.
        size: Size in bytes.
        sha256: Expected digest of the content, hexadecimal; only for downloads.
    """

    key: str
    path: str
    size: int
    sha256: str = ""


class WireRequest(msgspec.Struct, frozen=True, array_like=True):
    """One call to the broker.

    Attributes:
        number: Number of the call, which its reply repeats. Replies may arrive in any order.
        verb: Suffix of the handler's name in `orchestrator.store.broker.Broker`: ``get`` for ``do_get``.
        keys: Keys or prefixes.
        data: Content to write.
        start: Byte offset to read from.
        moves: Files to transfer.
        limit: Maximum number of bytes to read; None for all.
    """

    number: int
    verb: str
    keys: tuple[str, ...] = ()
    data: bytes = b""
    start: int = 0
    moves: tuple[Move, ...] = ()
    limit: int | None = None


class WireReply(msgspec.Struct, frozen=True, array_like=True):
    """The reply to one call.

    Attributes:
        number: Number of the call.
        value: Return value of the verb.
        error: Description of the error, "" for success.
        errno: Kind of the error: EACCES not permitted, ENXIO no such bucket, EINVAL not a valid address, or
            the errno of a local error; EIO for all others.
    """

    number: int
    value: Any = None
    error: str = ""
    errno: int = 0


def frame(message: WireRequest | WireReply) -> bytes:
    """Return a message as sent through the pipe: its length in 4 bytes, then MessagePack."""
    body = msgspec.msgpack.encode(message)
    return len(body).to_bytes(LENGTH_BYTES, "big") + body


LIMIT_S, STALL_S, CONNECT_S = 10.0, 30.0, 3.0
"""Time limits in seconds: for one record, for a pause within a file transfer, and for opening a
connection.
"""

SLOW_BYTES_S = 2**18
"""Lowest accepted transfer rate in bytes per second. A slower transfer exceeds its time limit."""

TRIES = 4
"""How often a call is made whose broker dies."""

PULSE_S = 0.5
_START_S = 20.0  # covers the start of Python on a busy machine
_BLOCKED = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGQUIT}


class BrokerLost(OSError):
    """The broker ended in the middle of a call, or before it."""

    def __init__(self) -> None:
        super().__init__(errno.EIO, "the store's broker died")


class Connection:
    """A connection to the broker of one store.

    Args:
        url: Address of the store.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._process: subprocess.Popen[bytes] | None = None
        # Numbers are never reused, so that a reply from an earlier broker matches no new call.
        self._last = 0
        self._forget()
        _connections.add(self)

    def call(
        self,
        verb: str,
        *keys: str,
        data: bytes = b"",
        start: int = 0,
        limit: int | None = None,
        moves: Sequence[Move] = (),
        keepalive: Callable[[], object] = lambda: None,
    ) -> Any:
        """Send a call and wait for its reply; see `orchestrator.store.broker.Broker` for the verbs.

        Args:
            verb: Name of the operation.
            keys: Keys or prefixes.
            data: Content to write.
            start: Byte offset to read from.
            limit: Maximum number of bytes to read; None for all.
            moves: Files to transfer.
            keepalive: Called about twice a second while the reply is missing. It may make calls itself.

        Raises:
            OSError: The store or the broker did not answer, or refused.
        """
        num_bytes = len(data) + sum(move.size for move in moves)
        limit_s = LIMIT_S * 1.5 + num_bytes / SLOW_BYTES_S + 0.2 * len(keys)
        limit_s += 0.0 if verb in ("create", "put") else 60.0
        for left in reversed(range(1 if verb == "create" else TRIES)):
            try:
                number = self.begin(verb, *keys, data=data, start=start, limit=limit, moves=moves)
                return self._wait(number, limit_s, keepalive)
            except BrokerLost:
                if not left:
                    raise
        raise AssertionError("unreachable")

    def _wait(self, number: int, limit_s: float, keepalive: Callable[[], object]) -> Any:
        # The broker limits its own requests. This longer limit covers a broker that hangs.
        deadline_s = time.monotonic() + limit_s
        while (answer := self.taken(number, wait_s=PULSE_S)) is None:
            if time.monotonic() > deadline_s:
                self.close()
                raise OSError(errno.ETIMEDOUT, f"the store did not answer in {limit_s:.0f} s")
            keepalive()
        return _value(answer)

    def begin(
        self,
        verb: str,
        *keys: str,
        data: bytes = b"",
        start: int = 0,
        limit: int | None = None,
        moves: Sequence[Move] = (),
    ) -> int:
        """Send a call without waiting; return its number, with which `taken` finds the reply.

        Raises:
            OSError: The broker cannot be reached.
        """
        with self._lock:
            self._ensure()
            self._last += 1
            call = WireRequest(self._last, verb, keys, data, start, tuple(moves), limit)
            self._pending.add(call.number)
            self._write(frame(call))
            return call.number

    def taken(self, number: int, *, wait_s: float = 0.0) -> WireReply | None:
        """Return the reply to a call that was begun, once; None while it has not arrived.

        Args:
            number: Number of the call, from `begin`.
            wait_s: Longest time to wait for data, in seconds.

        Raises:
            OSError: The broker died, or was restarted since.
        """
        with self._lock:
            if number not in self._pending:
                raise BrokerLost
            if number not in self._answers:
                self._read(wait_s)
            answer = self._answers.pop(number, None)
            if answer is not None:
                self._pending.discard(number)
            return answer

    def close(self) -> None:
        """Stop the broker if one runs. Calls in progress are lost."""
        process = self._process
        self._forget()
        if process is not None:
            _close_pipes(process)
            try:
                process.wait(timeout=1.0)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def after_fork(self) -> None:
        """Drop the parent's broker in a forked child.

        The child also inherits the pipe. It must close its copy, because the broker ends only when the pipe
        has no writer left.
        """
        process = self._process
        self._forget()
        if process is not None:
            _close_pipes(process)
            process.returncode = 0  # not our child: waiting for it would fail

    def _forget(self) -> None:
        self._process, self._buffer = None, bytearray()
        self._answers: dict[int, WireReply] = {}
        self._pending: set[int] = set()
        self._lock = threading.RLock()

    def _ensure(self) -> None:
        """Start a broker unless one runs, with stop signals blocked.

        Ctrl-C and a scheduler's SIGTERM reach all processes of a job at once. A broker that died of one would
        make the store unreachable just when the worker must write its last records: checkpoint, log and
        `end`. The child inherits the blocked mask, so no signal can arrive before it is in place; the parent
        restores its own mask.
        """
        if self._process is not None and self._process.poll() is None:
            return
        self.close()
        package = str(Path(orchestrator.__file__).parents[1])
        paths = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, _BLOCKED)
        try:
            self._process = subprocess.Popen(
                # With -P, a file in the working folder cannot shadow a module of the library.
                [sys.executable, "-P", "-m", "orchestrator.store.broker", self._url],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
                bufsize=0,
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def _write(self, data: bytes) -> None:
        assert self._process is not None and self._process.stdin is not None
        handle, view = self._process.stdin.fileno(), memoryview(data)
        try:
            while view:
                # Read replies while writing. Otherwise both pipes could fill, and neither side could go on.
                self._read(0.0)
                _, writable, _ = select.select([], [handle], [], _START_S)
                if not writable:
                    raise OSError(errno.ETIMEDOUT, "the store's broker takes no more")
                # A pipe that select reports as writable takes PIPE_BUF bytes without blocking.
                view = view[os.write(handle, view[: select.PIPE_BUF]) :]
        except BrokenPipeError:
            self.close()
            raise BrokerLost from None
        except BaseException:  # after half a frame, the pipe is unusable
            self.close()
            raise

    def _read(self, wait_s: float) -> None:
        """Read the broker's replies that have arrived, waiting up to `wait_s` for the first."""
        process = self._process
        if process is None or process.stdout is None:
            raise BrokerLost
        handle = process.stdout.fileno()
        # Only the first wait blocks: after that, read what is there.
        while select.select([handle], [], [], wait_s)[0]:
            data = os.read(handle, 2**20)
            if not data:
                self.close()
                raise BrokerLost
            self._buffer += data
            wait_s = 0.0
            self._parse()

    def _parse(self) -> None:
        while len(self._buffer) >= LENGTH_BYTES:
            end = LENGTH_BYTES + int.from_bytes(self._buffer[:LENGTH_BYTES], "big")
            # The rest of this message has not arrived yet.
            if len(self._buffer) < end:
                return
            answer = msgspec.msgpack.decode(bytes(self._buffer[LENGTH_BYTES:end]), type=WireReply)
            del self._buffer[:end]
            if answer.number == 0:  # the broker cannot serve this address
                self.close()
                _value(answer)
            # The reply to a call that timed out has no receiver, and is dropped.
            if answer.number in self._pending:
                self._answers[answer.number] = answer


def _value(answer: WireReply) -> Any:
    if answer.error:
        raise OSError(answer.errno, answer.error)
    return answer.value


def _close_pipes(process: subprocess.Popen[bytes]) -> None:
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.close()


_connections: weakref.WeakSet[Connection] = weakref.WeakSet()


def _after_fork() -> None:
    for connection in list(_connections):
        connection.after_fork()


# Registered globally, so that a fork anywhere in the process is covered.
os.register_at_fork(after_in_child=_after_fork)


class Transfer(NamedTuple):
    """An upload in progress.

    Attributes:
        connection: Connection that performs it.
        number: Number of the call.
    """

    connection: Connection
    number: int

    def is_done(self) -> bool:
        """Return whether the upload has finished, without waiting.

        After it has returned True, it must not be called again: the reply can be taken only once.

        Raises:
            OSError: The upload failed, or the broker was lost.
        """
        answer = self.connection.taken(self.number)
        if answer is not None and answer.error:
            raise OSError(answer.errno, answer.error)
        return answer is not None
