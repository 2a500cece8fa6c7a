"""The Jobs API of a Ray cluster, over HTTP: never through Ray Client, and without importing `ray`.

A laptop that submits needs neither Ray nor the cluster's version of it. Source: docs.ray.io, "Ray Jobs REST
API", and the state API of the dashboard, both of Ray 2.60.
"""

from __future__ import annotations

import json
import os
import re
import ssl
import time
import urllib.parse
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import httpx
import msgspec

from orchestrator.core.secrets import redacted
from orchestrator.errors import (
    AccessDenied,
    InfrastructureError,
    SchedulerUnavailable,
    UserError,
    check_proxies,
)

TIMEOUT_S = 15.0
MAX_BYTES = 64 * 2**20
"""Largest answer that is read. The nodes of a large cluster take some 20 MB."""

CERTIFICATES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "RAY_TLS_CA_CERT")
"""Variables that name trusted certificates, a file or a folder, as in Ray's own client. The first one that is
set counts, beside SSL_CERT_FILE and SSL_CERT_DIR."""

LOGIN = (
    "RAY_AUTH_TOKEN, or ~/.ray/auth_token as on the cluster; RAY_JOB_HEADERS='{...}' for a proxy before it"
)
"""Where users can put credentials; part of error messages."""

T = TypeVar("T")


class Reply(NamedTuple):
    """The server's answer; `data` is the parsed JSON, or else the text."""

    status: int
    data: Any


class JobDetails(msgspec.Struct, frozen=True):
    """The fields that are read of a job (`JobDetails` in Ray's schema); times are in ms since 1970."""

    submission_id: str | None = None
    status: str | None = None
    message: str | None = None
    error_type: str | None = None
    driver_exit_code: int | None = None
    start_time: float | None = None
    end_time: float | None = None


class Stopped(msgspec.Struct, frozen=True):
    """The answer to a stop: whether the job still had to be stopped."""

    stopped: bool


class _Version(msgspec.Struct, frozen=True):
    ray_version: str


class _Logs(msgspec.Struct, frozen=True):
    logs: str | None


class _NodeState(msgspec.Struct, frozen=True):
    state: str | None = None
    resources_total: dict[str, float] | None = None


class _Rows(msgspec.Struct, frozen=True):
    result: list[_NodeState]


class _ListedJob(msgspec.Struct, frozen=True):
    result: _Rows


class _ListedNodes(msgspec.Struct, frozen=True):
    data: _ListedJob


class Unreached(Exception):
    """No connection was made, so the server cannot have received the request."""


class Untrusted(Unreached):
    """The server's certificate is not trusted here."""


class Unanswered(Exception):
    """The server may have received the request, but did not answer it."""


class Redirected(UserError):
    """The server redirects to another address; the request had no effect."""


class Api:
    """A cluster's dashboard.

    Args:
        address: ``http://HOST:8265``, perhaps with a path, as behind a proxy. RAY_API_SERVER_ADDRESS takes
            precedence, for a cluster that is reached in another way from here.
        timeout_s: for a complete answer.

    Raises:
        UserError: the address, RAY_JOB_HEADERS, a proxy or a file of certificates cannot be used.
    """

    def __init__(self, address: str, *, timeout_s: float = TIMEOUT_S) -> None:
        self.address = checked_address(os.environ.get("RAY_API_SERVER_ADDRESS") or address)
        self._timeout_s = timeout_s
        self._headers = {"Content-Type": "application/json", "Accept": "application/json", **job_headers()}
        # a header that the user sets takes precedence over the token
        if "authorization" not in map(str.lower, self._headers) and (token := auth_token()):
            self._headers["Authorization"] = f"Bearer {token}"
        check_headers(self._headers)
        check_proxies()
        # loading certificates takes time, and plain HTTP needs none
        self._verify = _certificates() if self.address.startswith("https:") else False

    def send(self, method: str, path: str, body: Any = None) -> Reply:
        """Send one request.

        The errors separate what the caller must know: whether the request may have had an effect. After
        `Unreached` it is safe to repeat a submission; after `Unanswered` the job may exist.

        Raises:
            Unreached: there is nothing at the address, or nothing that is trusted (`Untrusted`).
            Unanswered: the connection broke, or there was no complete answer in time.
            Redirected: the server redirects to another address.
        """
        try:
            reply, location = self._sent(method, path, body)
        except (ValueError, httpx.InvalidURL) as error:  # the address or the token is not valid in a request
            raise Unreached(f"{self.address}: {error}") from error
        except httpx.TimeoutException as error:
            raise Unanswered(f"{self.address} did not answer in {self._timeout_s:.0f} s") from error
        except (
            httpx.ConnectError,
            httpx.ProxyError,
            httpx.UnsupportedProtocol,
            httpx.LocalProtocolError,
        ) as error:
            why = str(error)
            if "CERTIFICATE_VERIFY_FAILED" in why:
                why = f"its certificate is not trusted here ({why}): set REQUESTS_CA_BUNDLE=FILE"
                raise Untrusted(f"{self.address}: {why}") from error
            raise Unreached(f"{self.address}: {why}") from error
        except (OSError, httpx.HTTPError) as error:
            raise Unanswered(f"{self.address}: {error or type(error).__name__}") from error
        if 300 <= reply.status < 400:
            raise self._redirected(path, reply.status, location)
        return reply

    def _sent(self, method: str, path: str, body: Any) -> tuple[Reply, str]:
        """Send a request, and return the answer and the target of a redirect."""
        deadline_s, data = time.monotonic() + self._timeout_s, bytearray()
        options: dict[str, Any] = {"json": body, "headers": self._headers, "timeout": self._timeout_s}
        # no redirect is followed: a POST would become a GET, and our token would be sent elsewhere
        options |= {"verify": self._verify, "follow_redirects": False}
        with httpx.stream(method, self.address + path, **options) as answer:
            # in parts, because the timeout restarts with every byte that arrives
            for part in answer.iter_bytes():
                data += part
                if len(data) > MAX_BYTES:
                    raise OSError(f"its answer has more than {MAX_BYTES // 2**20} MiB")
                if time.monotonic() > deadline_s:
                    raise TimeoutError("its answer did not end in time")
            return Reply(answer.status_code, _parsed(bytes(data))), answer.headers.get("Location", "")

    def _redirected(self, path: str, status: int, location: str) -> Redirected:
        """Return the error for a redirect, with the address to use instead."""
        asked = self.address + path
        target = urllib.parse.urljoin(asked, location)
        plain = target.partition("?")[0].rstrip("/")
        base = plain.removesuffix(path.partition("?")[0].rstrip("/"))
        # the target may contain credentials, as in the link of a login
        to = redacted(base if base != plain else target)
        return Redirected(
            f"{self.address} redirects to {to}: use that"
            if base != plain
            else f"{self.address} redirects to {to}",
            where=f"{asked} answered {status}; a redirected POST would be lost",
            fix=f"launcher.address={to}" if base != plain else f"if that is a login: {LOGIN}",
        )

    def get(self, path: str, kind: type[T]) -> T:
        """Return something that must exist, converted to its type.

        Raises:
            InfrastructureError: the server does not answer, or not with success, or with something else.
            Redirected: the server redirects to another address.
        """
        return self.expected(self._asked(path), path, kind)

    def _asked(self, path: str) -> Reply:
        try:
            return self.send("GET", path)
        except Untrusted as error:
            raise AccessDenied(str(error)) from error
        except (Unreached, Unanswered) as error:
            raise SchedulerUnavailable(f"the Ray cluster does not answer: {error}") from error

    def expected(self, reply: Reply, path: str, kind: type[T]) -> T:
        """Return the content of a successful answer, converted to its type.

        Raises:
            SchedulerUnavailable: the server failed.
            AccessDenied: it does not accept the token, or requires one.
            InfrastructureError: it is no success, or something else, such as a login page.
        """
        answer = f"{reply.status} {' '.join(str(reply.data).split())[:200]}"
        if reply.status == 200:
            try:
                return msgspec.convert(reply.data, kind)
            except msgspec.ValidationError as error:
                answer = f"{error}: {answer}"
        # a proxy may answer with the page of a login, and with success
        is_login = reply.status in (401, 403) or (reply.status == 200 and isinstance(reply.data, str))
        fix = LOGIN if is_login else ""
        # such as "No available agent to submit job", while the cluster or a proxy before it starts
        kind_of_error = SchedulerUnavailable if reply.status >= 500 else InfrastructureError
        if reply.status in (401, 403):
            kind_of_error = AccessDenied
        raise kind_of_error(f"{self.address}{path} is no Ray dashboard for us: {answer}", fix=fix)

    def version(self) -> str:
        """Return the version of the cluster's Ray.

        Raises:
            InfrastructureError: the cluster does not answer.
        """
        return self.get("/api/version", _Version).ray_version

    def job(self, name: str) -> JobDetails | None:
        """Return one job; None if the cluster has none of that name.

        A list of all jobs would contain those of months, each with its environment: 130 kB a job.

        Raises:
            InfrastructureError: the cluster does not answer, or another server does.
        """
        path = f"/api/jobs/{urllib.parse.quote(name, safe='')}"
        reply = self._asked(path)
        # only Ray's own sentence counts: a proxy may answer 404 as well
        if reply.status == 404 and reply.data == f"Job {name} does not exist":
            return None
        job = self.expected(reply, path, JobDetails)
        if job.submission_id != name:
            raise InfrastructureError(
                f"{self.address}{path} is no Ray dashboard for us: it tells of another job"
            )
        return job

    def submit(self, request: dict[str, Any]) -> Reply:
        """Submit a job; `is_taken` interprets the answer.

        Raises:
            Unreached, Unanswered, Redirected: as in `send`.
        """
        return self.send("POST", "/api/jobs/", request)

    def log(self, name: str) -> str:
        """Return what a job has printed.

        Raises:
            InfrastructureError: the cluster does not answer.
        """
        return self.get(f"/api/jobs/{name}/logs", _Logs).logs or ""

    def nodes(self) -> list[dict[str, float]]:
        """Return what each live node has, in Ray's names and units.

        Raises:
            InfrastructureError: the cluster does not answer.
        """
        query = urllib.parse.urlencode({"detail": "1", "limit": "10000"})
        rows = self.get(f"/api/v0/nodes?{query}", _ListedNodes).data.result.result
        return [row.resources_total or {} for row in rows if row.state == "ALIVE"]


def is_taken(reply: Reply, name: str) -> bool:
    """Return whether the answer to a submission shows that a job of this name exists, from now or before.

    Names are unique, so "already exists" means that an earlier try got through although its reply was lost.
    """
    if reply.status == 200:
        return isinstance(reply.data, dict) and name in (
            reply.data.get("submission_id"),
            reply.data.get("job_id"),
        )
    return f"Job with submission_id {name} already exists" in str(reply.data)


def checked_address(address: str) -> str:
    """Return the address of a dashboard, without a slash at its end.

    Raises:
        UserError: it is no HTTP address, or contains a password, which would be stored with each job.
    """
    try:
        parts = urllib.parse.urlsplit(address)
        is_usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # such as an unclosed bracket, or a port that is no number or too large
        is_usable = False
    # paths are appended, so nothing may follow the path; `urlsplit` would remove a line break
    if not is_usable or not re.fullmatch(r"[^\s\x00-\x1f?#]+", address):
        raise UserError(
            f"{redacted(address)!r} is no address of a Ray dashboard",
            where="RAY_API_SERVER_ADDRESS, or else launcher.address",
            allowed="http://HOST:8265 or https://HOST/PATH",
        )
    if parts.username or parts.password:
        raise UserError(
            f"the address {redacted(address)} holds a user or a password",
            allowed="it is kept with each job, for all who read the store",
            fix='RAY_JOB_HEADERS=\'{"Authorization": "Basic ..."}\' in the environment',
        )
    return address.rstrip("/")


def job_headers() -> dict[str, str]:
    """Return the headers in RAY_JOB_HEADERS, a JSON object, as Ray's own client reads it.

    Raises:
        UserError: it is something else; its value is not shown.
    """
    text = os.environ.get("RAY_JOB_HEADERS")
    if not text:
        return {}
    try:
        return msgspec.json.decode(text.encode(), type=dict[str, str])
    except (msgspec.DecodeError, UnicodeError):
        raise UserError(
            "RAY_JOB_HEADERS is no JSON object of texts", allowed='{"Authorization": "Bearer ..."}'
        ) from None


def check_headers(headers: Mapping[str, str]) -> None:
    """Raise `UserError` for headers that no request can have; their values are not shown."""
    for name, value in headers.items():
        source = "RAY_JOB_HEADERS, RAY_AUTH_TOKEN or the file of the token"
        if name.lower() in ("content-length", "transfer-encoding"):
            raise UserError(f"the header {name} depends on each request", where=source, fix="leave it out")
        if not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name) or not re.fullmatch(r"[ -~\t]*", value):
            raise UserError(
                f"the header {name!r} cannot be sent",
                where=source,
                allowed="ASCII without line breaks, in a name no spaces or colons",
            )


def auth_token() -> str:
    """Return the token from where Ray reads it (docs.ray.io, "Ray token authentication"), "" for none."""
    if token := os.environ.get("RAY_AUTH_TOKEN"):
        return token.strip()
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token").expanduser()
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _certificates() -> ssl.SSLContext:
    """Return a context that trusts the system's certificates, and those that a variable names."""
    context = ssl.create_default_context()
    for variable in CERTIFICATES:
        if place := os.environ.get(variable):
            try:
                is_folder = Path(place).is_dir()
                context.load_verify_locations(**{"capath" if is_folder else "cafile": place})
            except (OSError, ssl.SSLError) as error:
                raise UserError(f"{variable}={place} holds no certificates: {error}") from None
            break
    return context


def _parsed(data: bytes) -> Any:
    """Return the parsed JSON, or else the text."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return data.decode(errors="replace").strip()
