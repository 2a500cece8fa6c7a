"""The near end of a broker: starts it when it is first needed, and waits for its answers, never for ever.

A process that forks must not hold the object-store library, so each process has a broker of its own: a forked
one forgets its parent's and starts another when it needs one. A broker that dies in the middle of a call is
an `OSError`, as a server that does not answer is; the next call starts a new one.
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
from typing import Any

import msgspec

import orchestrator

LENGTH_BYTES = 4


class Move(msgspec.Struct, frozen=True, array_like=True):
    """A file to upload or download.

    Attributes:
        key: in the store.
        path: on this machine.
        size: bytes.
        sha256: of its content, hexadecimal; only for downloads.
    """

    key: str
    path: str
    size: int
    sha256: str = ""


class WireRequest(msgspec.Struct, frozen=True, array_like=True):
    """One request.

    Attributes:
        number: of the call; the answer carries it, and answers may come in any order.
        verb: a method of `orchestrator.store.broker.Broker`.
        keys: keys or prefixes.
        data: the content to write.
        start: the byte to read from.
        moves: files to transfer.
        limit: how many bytes to read, None for all.
    """

    number: int
    verb: str
    keys: tuple[str, ...] = ()
    data: bytes = b""
    start: int = 0
    moves: tuple[Move, ...] = ()
    limit: int | None = None


class WireReply(msgspec.Struct, frozen=True, array_like=True):
    """One answer; an error has a text.

    Attributes:
        number: of the call.
        value: what the verb returns.
        error: what went wrong in a line, "" when nothing did.
        errno: the error's kind: EACCES not allowed, ENXIO no such bucket, EINVAL no such address, else EIO.
    """

    number: int
    value: Any = None
    error: str = ""
    errno: int = 0


def frame(message: WireRequest | WireReply) -> bytes:
    """Returns a message as it goes through the pipe."""
    body = msgspec.msgpack.encode(message)
    return len(body).to_bytes(LENGTH_BYTES, "big") + body


LIMIT_S, STALL_S, CONNECT_S = 10.0, 30.0, 3.0
"""Seconds for a record, for a pause in the transfer of a file, and for a connection."""

SLOW_BYTES_S = 2**18
"""A transfer that is slower than that is given up."""

PULSE_S = 0.5
_START_S = 20.0  # for Python to start on a busy machine
_DEAF_TO = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGQUIT}


class Connection:
    """Calls to the broker of one store.

    Args:
        url: of the store.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._process: subprocess.Popen[bytes] | None = None
        self._last = 0  # never used twice, so that no call takes the answer to one of a former broker
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
        pulse: Callable[[], object] = lambda: None,
    ) -> Any:
        """Asks and waits; see `orchestrator.store.broker.Broker` for the verbs.

        Args:
            verb: what to do.
            keys: keys or prefixes.
            data: the content to write.
            start: the byte to read from.
            limit: how many bytes to read, None for all.
            moves: files to transfer.
            pulse: called every now and then while it takes long; may call in turn.

        Raises:
            OSError: the store, or the broker, did not answer, or refused.
        """
        # the broker keeps to the limits of each request: this one is for a broker that does not
        num_bytes = len(data) + sum(move.size for move in moves)
        limit_s = LIMIT_S * 1.5 + num_bytes / SLOW_BYTES_S + 0.2 * len(keys)
        limit_s += 0.0 if verb in ("create", "put") else 60.0
        number = self.begin(verb, *keys, data=data, start=start, limit=limit, moves=moves)
        deadline_s = time.monotonic() + limit_s
        while (answer := self.taken(number, wait_s=PULSE_S)) is None:
            if time.monotonic() > deadline_s:
                self.close()
                raise OSError(errno.ETIMEDOUT, f"the store did not answer in {limit_s:.0f} s")
            pulse()
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
        """Asks, and returns the number under which `taken` finds the answer.

        Raises:
            OSError: the broker cannot be reached.
        """
        with self._lock:
            self._ensure()
            self._last += 1
            call = WireRequest(self._last, verb, keys, data, start, tuple(moves), limit)
            self._pending.add(call.number)
            self._write(frame(call))
            return call.number

    def taken(self, number: int, *, wait_s: float = 0.0) -> WireReply | None:
        """Returns the answer to a call that was begun, None while there is none.

        Raises:
            OSError: the broker died, or was started anew since.
        """
        with self._lock:
            if number not in self._pending:
                raise OSError(errno.EIO, "the store's broker was lost meanwhile")
            if number not in self._answers:
                self._read(wait_s)
            answer = self._answers.pop(number, None)
            if answer is not None:
                self._pending.discard(number)
            return answer

    def close(self) -> None:
        """Ends the broker, if one runs; whatever was on its way is lost."""
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
        """Forgets a broker that is the parent's: it ends when no process holds its pipe any more."""
        process = self._process
        self._forget()
        if process is not None:
            _close_pipes(process)
            process.returncode = 0  # it is no child of this process: nobody here waits for it

    def _forget(self) -> None:
        self._process, self._buffer = None, bytearray()
        self._answers: dict[int, WireReply] = {}
        self._pending: set[int] = set()
        self._lock = threading.RLock()

    def _ensure(self) -> None:
        if self._process is not None and self._process.poll() is None:
            return
        self.close()
        package = str(Path(orchestrator.__file__).parents[1])
        paths = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
        # born deaf to what is sent to all processes of a terminal or a job: it must outlive the last records
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, _DEAF_TO)
        try:
            self._process = subprocess.Popen(
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
                # its answers are read meanwhile, or two full pipes would wait for each other
                self._read(0.0)
                _, writable, _ = select.select([], [handle], [], _START_S)
                if not writable:
                    raise OSError(errno.ETIMEDOUT, "the store's broker takes no more")
                view = view[os.write(handle, view[: select.PIPE_BUF]) :]
        except BaseException:  # half a frame: it must not be followed by another
            self.close()
            raise

    def _read(self, wait_s: float) -> None:
        """Takes what the broker has said, waiting a little for its first word."""
        process = self._process
        if process is None or process.stdout is None:
            raise OSError(errno.EIO, "the store's broker is gone")
        handle = process.stdout.fileno()
        while select.select([handle], [], [], wait_s)[0]:
            data = os.read(handle, 2**20)
            if not data:
                self.close()
                raise OSError(errno.EIO, "the store's broker died")
            self._buffer += data
            wait_s = 0.0
            self._parse()

    def _parse(self) -> None:
        while len(self._buffer) >= LENGTH_BYTES:
            end = LENGTH_BYTES + int.from_bytes(self._buffer[:LENGTH_BYTES], "big")
            if len(self._buffer) < end:
                return
            answer = msgspec.msgpack.decode(bytes(self._buffer[LENGTH_BYTES:end]), type=WireReply)
            del self._buffer[:end]
            if answer.number == 0:  # it cannot serve this address
                self.close()
                _value(answer)
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


os.register_at_fork(after_in_child=_after_fork)
