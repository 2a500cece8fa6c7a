"""What every request to the page passes before it is answered, and the headers of every answer."""

from __future__ import annotations

import hmac
import ipaddress
import os
import re
import secrets
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
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
