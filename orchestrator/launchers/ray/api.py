"""The Jobs API of a Ray cluster, over HTTP: never Ray Client, and without importing `ray`.

Source: docs.ray.io, "Ray Jobs REST API", and the state API of the dashboard, both of Ray 2.60.
"""

from __future__ import annotations

import gzip
import http.client
import io
import json
import os
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
import zlib
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import msgspec

from orchestrator.core.secrets import redacted
from orchestrator.errors import InfrastructureError, UserError

TIMEOUT_S = 15.0
MAX_BYTES = 64 * 2**20
"""Of an answer: the nodes of a large cluster take some 20 MB."""

CERTIFICATES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "RAY_TLS_CA_CERT")
"""Variables that name certificates to trust, a file or a folder, as Ray's own client reads them. The first
counts, beside SSL_CERT_FILE and SSL_CERT_DIR."""

LOGIN = (
    "RAY_AUTH_TOKEN, or ~/.ray/auth_token as on the cluster; RAY_JOB_HEADERS='{...}' for a proxy before it"
)
T = TypeVar("T")


class Reply(NamedTuple):
    """What the server said; `data` is the parsed JSON, or else its text."""

    status: int
    data: Any


class JobDetails(msgspec.Struct, frozen=True):
    """What is read of a job (`JobDetails` in Ray's schema); times are in ms since 1970."""

    submission_id: str | None = None
    status: str | None = None
    message: str | None = None
    error_type: str | None = None
    driver_exit_code: int | None = None
    start_time: float | None = None
    end_time: float | None = None


class Stopped(msgspec.Struct, frozen=True):
    """The answer to a stop: whether the job was still to be stopped."""

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


class _Nodes(msgspec.Struct, frozen=True):
    data: _ListedJob


class Unreached(Exception):
    """No connection was made: the server knows of nothing."""


class Unanswered(Exception):
    """A request may have arrived, and there was no answer."""


class Redirected(UserError):
    """The server wants to be asked at another address; nothing was done."""


class _Stay(urllib.request.HTTPRedirectHandler):
    """Follows no redirect: urllib would make a GET of a POST, and give our token to another server."""

    def redirect_request(self, *_: Any) -> None:
        """Return no request, so that the answer is the redirect itself."""


class Api:
    """A cluster's dashboard.

    Args:
        address: ``http://HOST:8265``, perhaps with a path, as behind a proxy; RAY_API_SERVER_ADDRESS outranks
            it, as where the same cluster is reached in another way.
        timeout_s: for a whole answer.

    Raises:
        UserError: the address, RAY_JOB_HEADERS or a file of certificates cannot be used.
    """

    def __init__(self, address: str, *, timeout_s: float = TIMEOUT_S) -> None:
        self.address = checked_address(os.environ.get("RAY_API_SERVER_ADDRESS") or address)
        self._timeout_s = timeout_s
        self._headers = {"Content-Type": "application/json", "Accept": "application/json", **job_headers()}
        if "authorization" not in map(str.lower, self._headers) and (token := auth_token()):
            self._headers["Authorization"] = f"Bearer {token}"
        handlers: list[urllib.request.BaseHandler] = [_Stay()]
        if self.address.startswith("https:"):
            handlers.append(urllib.request.HTTPSHandler(context=_certificates()))
        self._opener = urllib.request.build_opener(*handlers)

    def send(self, method: str, path: str, body: Any = None) -> Reply:
        """Send one request.

        Raises:
            Unreached: there is nothing at the address.
            Unanswered: the connection broke, or there was no whole answer in time.
            Redirected: it is to be asked elsewhere.
        """
        try:
            reply, location = self._sent(method, path, body)
        except ValueError as error:  # of an address or a token that no request can have
            raise Unreached(f"{self.address}: {error}") from error
        except urllib.error.URLError as error:
            if isinstance(error.reason, TimeoutError):
                raise Unanswered(f"{self.address} did not answer in {self._timeout_s:.0f} s") from error
            if isinstance(error.reason, ssl.SSLCertVerificationError):
                why = f"its certificate is not trusted here ({error.reason.verify_message})"
                raise Unreached(f"{self.address}: {why}: set REQUESTS_CA_BUNDLE=FILE") from error
            raise Unreached(f"{self.address}: {error.reason}") from error
        except (OSError, http.client.HTTPException, zlib.error, EOFError) as error:
            raise Unanswered(f"{self.address}: {error or type(error).__name__}") from error
        if 300 <= reply.status < 400:
            raise self._redirected(path, reply.status, location)
        return reply

    def _sent(self, method: str, path: str, body: Any) -> tuple[Reply, str]:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.address + path, data, self._headers, method=method)
        deadline_s = time.monotonic() + self._timeout_s
        try:
            answer = self._opener.open(request, timeout=self._timeout_s)
        except urllib.error.HTTPError as error:
            answer = error
        with answer:
            data, headers = _read(answer, deadline_s), answer.headers
            if headers.get("Content-Encoding", "").lower() in ("gzip", "x-gzip"):
                data = _bounded(gzip.GzipFile(fileobj=io.BytesIO(data)).read(MAX_BYTES + 1))
            return Reply(answer.status or 0, _parsed(data)), headers.get("Location", "")

    def _redirected(self, path: str, status: int, location: str) -> Redirected:
        asked = self.address + path
        target = urllib.parse.urljoin(asked, location)
        plain = target.partition("?")[0].rstrip("/")
        base = plain.removesuffix(path.partition("?")[0].rstrip("/"))
        to = redacted(base if base != plain else target)
        return Redirected(
            f"{self.address} redirects to {to}: use that"
            if base != plain
            else f"{self.address} redirects to {to}",
            where=f"{asked} answered {status}; a redirected POST would be lost",
            fix=f"launcher.address={to}" if base != plain else f"if that is a login: {LOGIN}",
        )

    def get(self, path: str, kind: type[T]) -> T:
        """Ask for something that must be there, and of that kind.

        Raises:
            InfrastructureError: it does not answer, not with success, or with something else.
            Redirected: it is to be asked elsewhere.
        """
        return self.expected(self._asked(path), path, kind)

    def _asked(self, path: str) -> Reply:
        try:
            return self.send("GET", path)
        except (Unreached, Unanswered) as error:
            raise InfrastructureError(f"the Ray cluster does not answer: {error}") from error

    def expected(self, reply: Reply, path: str, kind: type[T]) -> T:
        """Return what an answer of success holds.

        Raises:
            InfrastructureError: it is none, or holds something else, as the page of a login does.
        """
        said = f"{reply.status} {' '.join(str(reply.data).split())[:200]}"
        if reply.status == 200:
            try:
                return msgspec.convert(reply.data, kind)
            except msgspec.ValidationError as error:
                said = f"{error}: {said}"
        is_login = reply.status in (401, 403) or (reply.status == 200 and isinstance(reply.data, str))
        fix = LOGIN if is_login else ""
        raise InfrastructureError(f"{self.address}{path} is no Ray dashboard for us: {said}", fix=fix)

    def version(self) -> str:
        """Ask for the cluster's Ray.

        Raises:
            InfrastructureError: the cluster does not answer.
        """
        return self.get("/api/version", _Version).ray_version

    def job(self, name: str) -> JobDetails | None:
        """Ask for one job; None when the cluster says that it knows none of the name.

        A list of all jobs would hold those of months: 130 kB each, as Ray keeps the environment with it.

        Raises:
            InfrastructureError: the cluster does not answer, or somebody else in its place.
        """
        path = f"/api/jobs/{urllib.parse.quote(name, safe='')}"
        reply = self._asked(path)
        if reply.status == 404 and reply.data == f"Job {name} does not exist":
            return None
        job = self.expected(reply, path, JobDetails)
        if job.submission_id != name:
            raise InfrastructureError(
                f"{self.address}{path} is no Ray dashboard for us: it tells of another job"
            )
        return job

    def submit(self, request: dict[str, Any]) -> Reply:
        """Submit a job; whether it was taken is for `is_taken` to say.

        Raises:
            Unreached, Unanswered, Redirected: as of `send`.
        """
        return self.send("POST", "/api/jobs/", request)

    def log(self, name: str) -> str:
        """Ask for what a job has printed.

        Raises:
            InfrastructureError: the cluster does not answer.
        """
        return self.get(f"/api/jobs/{name}/logs", _Logs).logs or ""

    def nodes(self) -> list[dict[str, float]]:
        """Ask what the nodes that live have, in Ray's names and units.

        Raises:
            InfrastructureError: the cluster does not answer.
        """
        query = urllib.parse.urlencode({"detail": "1", "limit": "10000"})
        rows = self.get(f"/api/v0/nodes?{query}", _Nodes).data.result.result
        return [row.resources_total or {} for row in rows if row.state == "ALIVE"]


def is_taken(reply: Reply, name: str) -> bool:
    """Tell whether the answer to a submission says that there is a job of this name now, or was before."""
    if reply.status == 200:
        return isinstance(reply.data, dict) and name in (
            reply.data.get("submission_id"),
            reply.data.get("job_id"),
        )
    return f"Job with submission_id {name} already exists" in str(reply.data)


def checked_address(address: str) -> str:
    """Return the address of a dashboard without a slash at its end.

    Raises:
        UserError: it is no HTTP address, or holds a password, which would be kept with each job.
    """
    parts = urllib.parse.urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
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
    """Return the headers of RAY_JOB_HEADERS, as Ray's own client reads it: a JSON object.

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


def auth_token() -> str:
    """Return the token where Ray looks for it (docs.ray.io, "Ray token authentication"), "" for none."""
    if token := os.environ.get("RAY_AUTH_TOKEN"):
        return token.strip()
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token").expanduser()
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _certificates() -> ssl.SSLContext:
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


def _read(answer: Any, deadline_s: float) -> bytes:
    """Read a whole answer, within the time and the size that one may have.

    Raises:
        OSError, IncompleteRead: it has more, or less than it announced.
    """
    parts, size = [], 0
    while part := answer.read1(2**16):
        parts.append(part)
        size += len(part)
        if size > MAX_BYTES:
            break
        if time.monotonic() > deadline_s:
            raise TimeoutError("its answer did not end in time")
    if size <= MAX_BYTES and getattr(answer, "length", None):
        raise http.client.IncompleteRead(b"", answer.length)
    return _bounded(b"".join(parts))


def _bounded(data: bytes) -> bytes:
    if len(data) > MAX_BYTES:
        raise OSError(f"its answer has more than {MAX_BYTES // 2**20} MiB")
    return data


def _parsed(data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return data.decode(errors="replace").strip()
