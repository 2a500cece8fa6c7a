"""The web server: what every request passes and every answer carries, its socket, and its end on a signal."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hmac
import ipaddress
import os
import re
import secrets
import signal
import socket
import sys
import threading
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, MutableMapping
from types import FrameType
from typing import Any
from urllib.parse import parse_qs, urlencode

from orchestrator.errors import UserError

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
"""An application, as the ASGI specification 3.0 defines it."""

MIN_TOKEN = 16
"""Shortest token that a user may choose, in characters."""

POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'self'",
        "frame-ancestors 'none'",
    )
)
"""Content security policy of every page: own files only, no inline script or style, no frame around it."""

HEADERS: Mapping[bytes, bytes] = {
    b"content-security-policy": POLICY.encode(),
    b"x-content-type-options": b"nosniff",
    b"x-frame-options": b"DENY",
    b"referrer-policy": b"no-referrer",
    b"cross-origin-opener-policy": b"same-origin",
    b"cross-origin-resource-policy": b"same-origin",
    b"cache-control": b"no-store",
}
"""Headers of every answer. An answer's own header of the same name replaces one of these."""


def token_of(variable: str | None) -> str:
    """Return the token of an environment variable; a new random one for None.

    Raises:
        UserError: the variable is not set, or its token is too short or holds other characters.
    """
    if variable is None:
        return secrets.token_urlsafe(24)
    token = os.environ.get(variable, "")
    if len(token) < MIN_TOKEN or not re.fullmatch(r"[A-Za-z0-9._~-]+", token):
        raise UserError(
            f"the environment variable {variable} holds no token",
            where=f"--token-env {variable}",
            allowed=f"at least {MIN_TOKEN} characters of A-Z a-z 0-9 . _ ~ -",
        )
    return token


def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches an address."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def named_host(header: str) -> str:
    """Return the host of a ``Host`` header without its port, in lower case; "" if it is malformed."""
    if header.startswith("["):
        host, bracket, rest = header[1:].partition("]")
        well_formed = bool(bracket) and (not rest or rest.startswith(":"))
    else:
        host, _, port = header.partition(":")
        well_formed = ":" not in port
        rest = f":{port}" if port else ""
    return host.lower() if well_formed and (not rest or rest[1:].isdecimal() or rest == ":") else ""


class Guard:
    """The checks of every request, in this order: host, method, token.

    A page of another site can have its own name resolve to 127.0.0.1 (DNS rebinding). Its requests carry that
    name as their host, so they are refused before the token is looked at. The port in the header is ignored,
    because it differs behind ``ssh -L``.

    Args:
        app: the pages.
        token: that opens them.
        port: of the server. It is a part of the cookie's name, since cookies of one host ignore ports.
        names: hosts that are accepted in addition to loopback.
    """

    def __init__(self, app: App, token: str, port: int, names: Iterable[str] = ()) -> None:
        self._app = app
        self._token = token.encode()
        self._cookie = f"sweep_{port}"
        self._names = frozenset(name.lower() for name in names)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, with an error page if a check refuses it."""
        if scope["type"] != "http":
            return  # no websockets; there is nothing to start or stop
        safe = _with_headers(send)
        headers = [(name.lower(), value) for name, value in scope["headers"]]
        hosts = [value.decode("latin-1") for name, value in headers if name == b"host"]
        if len(hosts) != 1 or not self._is_own(hosts[0], scope):
            await _refuse(safe, 400, "This server does not answer for that host.")
        elif scope["method"] not in ("GET", "HEAD"):
            await _refuse(safe, 405, "These pages can only be read.", [(b"allow", b"GET, HEAD")])
        elif (given := self._given(scope)) is not None:
            await self._enter(safe, scope, given)
        elif not self._has_cookie(headers):
            await _refuse(safe, 401, "Open the address that `sweep serve` printed; it holds the token.")
        else:
            await self._app(scope, receive, safe)

    def _is_own(self, header: str, scope: Scope) -> bool:
        host = named_host(header)
        # A server at 0.0.0.0 is reached by any address of the machine. A name that was rebound is none.
        bound = str((scope.get("server") or ("",))[0]) if self._names else ""
        return bool(host) and (is_loopback(host) or host in self._names or host == bound)

    def _given(self, scope: Scope) -> str | None:
        """Return the token in the address of the start page; None if there is none."""
        if scope["path"] != "/":
            return None
        query = parse_qs(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        return query["token"][-1] if "token" in query else None

    async def _enter(self, send: Send, scope: Scope, given: str) -> None:
        """Set the cookie, and redirect to the address without the token."""
        if not self._is_token(given):
            await _refuse(send, 401, "That is not the token that `sweep serve` printed.")
            return
        query = parse_qs(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        rest = urlencode({name: values for name, values in query.items() if name != "token"}, doseq=True)
        morsel = f"{self._cookie}={self._token.decode()}; HttpOnly; SameSite=Strict; Path=/"
        more = [(b"location", f"/{'?' if rest else ''}{rest}".encode()), (b"set-cookie", morsel.encode())]
        await _refuse(send, 303, "", more)

    def _has_cookie(self, headers: Iterable[tuple[bytes, bytes]]) -> bool:
        for name, value in headers:
            if name != b"cookie":
                continue
            for part in value.decode("latin-1").split(";"):
                key, _, given = part.strip().partition("=")
                if key == self._cookie and self._is_token(given.strip('"')):
                    return True
        return False

    def _is_token(self, given: str) -> bool:
        return hmac.compare_digest(given.encode("utf-8", "replace"), self._token)


def _with_headers(send: Send) -> Send:
    """Return a function that adds `HEADERS` to what it sends."""

    async def safe(message: Message) -> None:
        if message["type"] == "http.response.start":
            own = list(message.get("headers", ()))
            named = {name.lower() for name, _ in own}
            message = {
                **message,
                "headers": own + [pair for pair in HEADERS.items() if pair[0] not in named],
            }
        await send(message)

    return safe


async def _refuse(send: Send, status: int, text: str, headers: Iterable[tuple[bytes, bytes]] = ()) -> None:
    body = f"{text}\n".encode() if text else b""
    more = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": [*more, *headers]})
    await send({"type": "http.response.body", "body": body})


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
