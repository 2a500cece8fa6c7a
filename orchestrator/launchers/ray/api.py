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
from typing import Any, NamedTuple

from orchestrator.errors import InfrastructureError

TIMEOUT_S = 15.0


class Reply(NamedTuple):
    """What the server said; `data` is the parsed JSON, or else its text."""

    status: int
    data: Any


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
        except urllib.error.URLError as error:
            if isinstance(error.reason, TimeoutError):
                raise Unanswered(f"{self.address} did not answer in {self._timeout_s:.0f} s") from error
            raise Unreached(f"{self.address}: {error.reason}") from error
        except (OSError, http.client.HTTPException) as error:
            raise Unanswered(f"{self.address}: {error or type(error).__name__}") from error

    def get(self, path: str) -> Any:
        """Asks for something that must be there.

        Raises:
            InfrastructureError: it does not answer, or not with success.
        """
        try:
            reply = self.send("GET", path)
        except (Unreached, Unanswered) as error:
            raise InfrastructureError(f"the Ray cluster does not answer: {error}") from error
        if reply.status != 200 or isinstance(reply.data, str):
            said = f"{reply.status} {str(reply.data)[:200]}"
            fix = (
                "RAY_AUTH_TOKEN, or ~/.ray/auth_token as on the cluster" if reply.status in (401, 403) else ""
            )
            raise InfrastructureError(f"{self.address}{path} is no Ray dashboard for us: {said}", fix=fix)
        return reply.data

    def job(self, name: str) -> dict[str, Any] | None:
        """Asks about one job, None when there is none of that name.

        Raises:
            InfrastructureError: the cluster does not answer.
        """
        jobs = [job for job in self.get("/api/jobs/") if job.get("submission_id") == name]
        return jobs[0] if jobs else None

    def nodes(self) -> list[dict[str, Any]]:
        """Asks for the nodes that live, each with its `resources_total`.

        Raises:
            InfrastructureError: the cluster does not answer.
        """
        query = urllib.parse.urlencode({"detail": "1", "limit": "10000"})
        nodes: list[dict[str, Any]] = self.get(f"/api/v0/nodes?{query}")["data"]["result"]["result"]
        return [node for node in nodes if node["state"] == "ALIVE"]


def auth_token() -> str:
    """Returns the token where Ray looks for it (docs.ray.io, "Ray token authentication"), "" for none."""
    if token := os.environ.get("RAY_AUTH_TOKEN"):
        return token.strip()
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token").expanduser()
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _parsed(data: bytes) -> Any:
    try:
        return json.loads(data)
    except ValueError:
        return data.decode(errors="replace").strip()
