"""Requests to an MLflow server, by its REST API 2.0 (https://mlflow.org/docs/latest/rest-api.html).

It needs no library of MLflow's, which takes seconds to import and retries where this must not wait.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

from orchestrator.errors import UserError, one_line
from orchestrator.trackers.protocol import BROKEN, DONE, RUNNING, STOPPED, HttpServer, Unavailable, is_address

MAX_FOUND = 1000
"""Runs in one answer of a search."""
STATUS = {DONE: "FINISHED", BROKEN: "FAILED", STOPPED: "KILLED", RUNNING: "RUNNING"}
"""State of a cell to the word of MLflow."""


class RequestRefused(Exception):
    """The server refuses this one request, for example because a run was deleted.

    Args:
        code: the server's word, such as ``RESOURCE_DOES_NOT_EXIST``.
        message: its text.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code


class Server:
    """The REST API of an MLflow server.

    Args:
        environment: where the address and the credentials are.

    Raises:
        UserError: it names no server.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        user, token = environment.get("MLFLOW_TRACKING_USERNAME"), environment.get("MLFLOW_TRACKING_TOKEN")
        certificate = environment.get("MLFLOW_TRACKING_SERVER_CERT_PATH")
        insecure = environment.get("MLFLOW_TRACKING_INSECURE_TLS", "").lower() in ("1", "true")
        self._http = HttpServer(
            address_of(environment),
            names="MLFLOW_TRACKING_USERNAME and _PASSWORD, or MLFLOW_TRACKING_TOKEN",
            auth=(user, environment.get("MLFLOW_TRACKING_PASSWORD", "")) if user else None,
            headers={"Authorization": f"Bearer {token}"} if token and not user else None,
            verify=not insecure if insecure or not certificate else _trusting(certificate),
        )

    def call(self, name: str, body: Mapping[str, Any] | None = None, **query: str) -> Any:
        """Make a request, and return the JSON of the answer.

        Args:
            name: of the method, such as ``runs/create``.
            body: what is sent; None for a GET.
            **query: of a GET.

        Raises:
            Unavailable: the server takes nothing.
            RequestRefused: it refuses this request.
        """
        answer = self._http.request(f"/api/2.0/mlflow/{name}", body, query)
        try:
            found = answer.json()
        except ValueError:
            found = None
        if answer.status_code == 200 and isinstance(found, dict):
            return found
        text = found if isinstance(found, dict) else {}
        code, message = str(text.get("error_code", "")), one_line(str(text.get("message", "")))
        if code in ("PERMISSION_DENIED", "UNAUTHENTICATED"):
            raise self._http.refused(f" ({code})")
        if not code:
            raise self._http.unexpected(answer.status_code, "MLFLOW_TRACKING_URI")
        raise RequestRefused(code, message)

    def experiment(self, name: str) -> str:
        """Return the id of an experiment; create it if necessary.

        Raises:
            Unavailable: it was deleted there, or this is no MLflow server.
        """
        for _ in range(2):
            try:
                found = self.call("experiments/get-by-name", experiment_name=name).get("experiment")
                # The first answer of a server. Another server's may be JSON too.
                if not isinstance(found, dict) or "experiment_id" not in found:
                    raise self._http.unexpected(200, "MLFLOW_TRACKING_URI")
                if found.get("lifecycle_stage", "active") != "active":
                    fix = "restore it there, or choose another by tracker.mlflow.experiment=NAME"
                    raise Unavailable(f"the experiment {name} was deleted", fix=fix, is_final=True)
                return str(found["experiment_id"])
            except RequestRefused as error:
                if error.code != "RESOURCE_DOES_NOT_EXIST":
                    raise
            try:
                return str(self.call("experiments/create", {"name": name})["experiment_id"])
            except RequestRefused as error:
                if error.code != "RESOURCE_ALREADY_EXISTS":  # another mirror was faster
                    raise
        raise Unavailable(f"the experiment {name} is neither there nor can it be created")

    def search(self, experiment: str, filter: str) -> Iterator[Any]:
        """Yield the runs that a filter finds, the oldest first."""
        token = ""
        while True:
            body = {
                "experiment_ids": [experiment],
                "filter": filter,
                "max_results": MAX_FOUND,
                "order_by": ["attributes.start_time ASC"],
            }
            found = self.call("runs/search", {**body, **({"page_token": token} if token else {})})
            yield from found.get("runs", ())
            token = found.get("next_page_token", "")
            if not token:
                return

    def set_state(self, run: str, state: str, at: float) -> None:
        """Set the status of a run, and if it has ended, when."""
        body: dict[str, Any] = {"run_id": run, "status": STATUS[state]}
        if state != RUNNING:
            body["end_time"] = milliseconds(at) or int(time.time() * 1000)
        self.call("runs/update", body)


def _trusting(certificate: str) -> Any:
    import ssl

    return ssl.create_default_context(cafile=certificate)


def address_of(environment: Mapping[str, str]) -> str:
    """Return the address of the server.

    Raises:
        UserError: MLFLOW_TRACKING_URI is not set, or is no address of a server.
    """
    url = environment.get("MLFLOW_TRACKING_URI", "").rstrip("/")
    if not is_address(url):
        # The value is not shown: it may hold a password.
        what = "names no server" if url else "is not set"
        raise UserError(
            f"MLFLOW_TRACKING_URI {what}, and tracker=mlflow sends to one",
            allowed="http://... or https://...; for a database: mlflow server --backend-store-uri ...",
            fix="export MLFLOW_TRACKING_URI=http://HOST:PORT",
        )
    return url


def milliseconds(at: float) -> int:
    """Return a time as MLflow has it."""
    return round(at * 1000)
