"""The Jobs API of a Ray cluster, over HTTP: never Ray Client, and without importing `ray`.

Source: docs.ray.io, "Ray Jobs REST API", and the state API of the dashboard, both of Ray 2.60.
"""

from __future__ import annotations

import http.client
import json
import os
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import msgspec

from orchestrator.errors import InfrastructureError

TIMEOUT_S = 15.0
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


class _Version(msgspec.Struct, frozen=True):
    ray_version: str


class _Logs(msgspec.Struct, frozen=True):
    logs: str | None


class _NodeState(msgspec.Struct, frozen=True):
    state: str | None = None
    resources_total: dict[str, float] | None = None


class _Rows(msgspec.Struct, frozen=True):
    result: list[_NodeState]


class _Listed(msgspec.Struct, frozen=True):
    result: _Rows


class _Nodes(msgspec.Struct, frozen=True):
    data: _Listed


class Unreached(Exception):
    """No connection was made: the server knows of nothing."""


class Unanswered(Exception):
    """A request may have arrived, and there was no answer."""


class Api:
    """A cluster's dashboard.

    Args:
        address: ``http://HOST:8265``; RAY_API_SERVER_ADDRESS outranks it, as where the same
            cluster is reached in another way.
        timeout_s: for an answer.
    """

    def __init__(self, address: str, *, timeout_s: float = TIMEOUT_S) -> None:
        self.address = (os.environ.get("RAY_API_SERVER_ADDRESS") or address).rstrip("/")
        self._timeout_s = timeout_s

    def send(self, method: str, path: str, body: Any = None) -> Reply:
        """Sends one request.

        Raises:
            Unreached: there is nothing at the address.
            Unanswered: the connection broke, or there was no answer in time.
        """
        try:
            return self._sent(method, path, body)
        except ValueError as error:  # of an address or a token that no request can have
            raise Unreached(f"{self.address}: {error}") from error
        except urllib.error.URLError as error:
            if isinstance(error.reason, TimeoutError):
                raise Unanswered(f"{self.address} did not answer in {self._timeout_s:.0f} s") from error
            raise Unreached(f"{self.address}: {error.reason}") from error
        except (OSError, http.client.HTTPException) as error:
            raise Unanswered(f"{self.address}: {error or type(error).__name__}") from error

    def _sent(self, method: str, path: str, body: Any) -> Reply:
        headers = {"Content-Type": "application/json"}
        if token := auth_token():
            headers["Authorization"] = f"Bearer {token}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.address + path, data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=self._timeout_s) as answer:
                return Reply(answer.status, _parsed(answer.read()))
        except urllib.error.HTTPError as error:
            with error:
                return Reply(error.code, _parsed(error.read()))

    def get(self, path: str, kind: type[T]) -> T:
        """Asks for something that must be there, and of that kind.

        Raises:
            InfrastructureError: it does not answer, not with success, or with something else.
        """
        try:
            reply = self.send("GET", path)
        except (Unreached, Unanswered) as error:
            raise InfrastructureError(f"the Ray cluster does not answer: {error}") from error
        said = f"{reply.status} {str(reply.data)[:200]}"
        if reply.status == 200:
            try:
                return msgspec.convert(reply.data, kind)
            except msgspec.ValidationError as error:
                said = f"{error}: {said}"
        fix = "RAY_AUTH_TOKEN, or ~/.ray/auth_token as on the cluster" if reply.status in (401, 403) else ""
        raise InfrastructureError(f"{self.address}{path} is no Ray dashboard for us: {said}", fix=fix)

    def version(self) -> str:
        """Asks for the cluster's Ray.

        Raises:
            InfrastructureError: the cluster does not answer.
        """
        return self.get("/api/version", _Version).ray_version

    def jobs(self) -> list[JobDetails]:
        """Asks for all jobs that the cluster knows, also those that are over.

        Raises:
            InfrastructureError: the cluster does not answer.
        """
        return self.get("/api/jobs/", list[JobDetails])

    def log(self, name: str) -> str:
        """Asks for what a job has printed.

        Raises:
            InfrastructureError: the cluster does not answer.
        """
        return self.get(f"/api/jobs/{name}/logs", _Logs).logs or ""

    def nodes(self) -> list[dict[str, float]]:
        """Asks what the nodes that live have, in Ray's names and units.

        Raises:
            InfrastructureError: the cluster does not answer.
        """
        query = urllib.parse.urlencode({"detail": "1", "limit": "10000"})
        rows = self.get(f"/api/v0/nodes?{query}", _Nodes).data.result.result
        return [row.resources_total or {} for row in rows if row.state == "ALIVE"]


def auth_token() -> str:
    """Returns the token where Ray looks for it (docs.ray.io, "Ray token authentication"), "" for none."""
    if token := os.environ.get("RAY_AUTH_TOKEN"):
        return token.strip()
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token").expanduser()
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _parsed(data: bytes) -> Any:
    try:
        return json.loads(data)
    except ValueError:
        return data.decode(errors="replace").strip()
