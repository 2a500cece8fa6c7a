"""The web server: its socket, and its end on a signal."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator, Mapping
from types import FrameType
from typing import Any

from orchestrator.errors import UserError
from orchestrator.serving.security import is_loopback

LAST_S = 1.5
"""After so many seconds a stop does not wait for answers any more."""

STOPS = (signal.SIGINT, signal.SIGTERM)


def listen(host: str, port: int, *, beyond: bool = False) -> socket.socket:
    """Return a socket that accepts connections, so that the address can be printed before anything else.

    Args:
        host: address to bind.
        port: to bind; 0 for a free one.
        beyond: whether addresses that other machines reach are allowed.

    Raises:
        UserError: the address is not loopback, is not of this machine, or its port is in use.
    """
    where = f"--host {host} --port {port}"
    if not 0 <= port < 2**16:
        raise UserError(f"{port} is no port", where=where, allowed="1 to 65535; 0 or none for a free one")
    if not beyond and not is_loopback(host):
        raise UserError(
            f"{host} can be reached from other machines",
            where=where,
            allowed="127.0.0.1, ::1 or localhost; `ssh -L PORT:127.0.0.1:PORT HERE` opens it elsewhere",
            fix="--beyond-loopback, where everybody on the network may try the token over plain HTTP",
        )
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        server = socket.socket(family, socket.SOCK_STREAM)
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(address)
        server.listen(128)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            fix = "another --port, or none for a free one"
            raise UserError(f"port {port} is in use", where=where, fix=fix) from error
        raise UserError(f"cannot serve at {host}:{port}: {error}", where=where) from error
    return server


@contextlib.contextmanager
def ending_quietly() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM end the process with exit code 0, also before the server runs."""

    def end(number: int, frame: FrameType | None) -> None:
        raise SystemExit(0)

    before: Mapping[int, Any] = {number: signal.signal(number, end) for number in STOPS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run(app: Any, server: socket.socket) -> None:
    """Serve until a signal comes. Connections that are still open then are closed after a second.

    Args:
        app: an ASGI application.
        server: the socket of `listen`.
    """
    import uvicorn

    class Quiet(uvicorn.Server):
        """A server that leaves signals to `run`: uvicorn would raise them again at its end."""

        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            """Leave the handlers as they are."""
            yield

    config = uvicorn.Config(
        app,
        http="h11",
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="critical",  # no line of uvicorn's, since one could hold an address with the token
        access_log=False,
        server_header=False,
        proxy_headers=False,  # no proxy is in front of it
        timeout_graceful_shutdown=1,
    )

    async def main() -> None:
        quiet = Quiet(config)
        loop = asyncio.get_running_loop()

        def stop() -> None:
            quiet.should_exit = True
            # A thread that waits for a store that hangs cannot be stopped, and would keep the process.
            last = threading.Timer(LAST_S, os._exit, (0,))
            last.daemon = True
            last.start()

        for number in STOPS:
            loop.add_signal_handler(number, stop)
        await quiet.serve(sockets=[server])

    # While a look at a large sweep computes, the pages would wait five times as long for their turn.
    sys.setswitchinterval(0.001)
    with contextlib.suppress(asyncio.CancelledError):
        asyncio.run(main())
    sys.stderr.flush()
