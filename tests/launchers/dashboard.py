"""An HTTP server that answers as the dashboard of a Ray cluster does, where no Ray is."""

from __future__ import annotations

import http.server
import json
import os
import shlex
import subprocess
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from orchestrator.launchers.ray.boot import MARK
from orchestrator.launchers.ray.settings import GIB
from tests.recording import plain

NODES = [
    {
        "state": "ALIVE",
        "resources_total": {"CPU": 32.0, "memory": 64.0 * GIB, "GPU": 4.0, "accelerator_type:A100": 1.0},
    },
    {"state": "ALIVE", "resources_total": {"CPU": 8.0, "memory": 16.0 * GIB}},
    {"state": "DEAD", "resources_total": {"CPU": 8.0, "GPU": 8.0, "memory": 640.0 * GIB}},
    {"state": "ALIVE"},
]


class Dashboard:
    """Answers as the dashboard of Ray 2.60 does; `replies` has others, by method and path without its query.

    A job that is submitted runs at once, on this machine. Or it has printed `prints`, as the small job
    does that checks a cluster.
    """

    def __init__(self) -> None:
        self.replies: dict[str, tuple[int, Any]] = {}
        self.nodes, self.asked = NODES, list[str]()
        self.jobs: dict[str, dict[str, Any]] = {}
        self.logs: dict[str, str] = {}
        self.location = ""
        self.prints: Mapping[str, Any] | None = None
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def any(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                status, data = outer.reply(self.command, self.path, body)
                text = data.encode() if isinstance(data, str) else json.dumps(data).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(text)))
                if outer.location:
                    self.send_header("Location", outer.location)
                self.end_headers()
                self.wfile.write(text)

            do_GET = do_POST = do_DELETE = any

            def log_message(self, *_: Any) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(
            target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
        ).start()

    def reply(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        """The status and the content of an answer."""
        path, _, query = path.partition("?")
        request = json.loads(body) if body not in (b"", b"null") else {}
        shown = {name: text for name, text in request.items() if name != "entrypoint"}
        self.asked.append(" ".join(filter(None, [method, path, query, plain(shown) if shown else ""])))
        name = path.removeprefix("/api/jobs/").partition("/")[0]
        if (found := self.replies.get(f"{method} {path}") or self.replies.get("any")) is not None:
            return found
        if path == "/api/version":
            return 200, {"ray_version": "2.60.0"}
        if path == "/api/v0/nodes":
            return 200, {"data": {"result": {"result": self.nodes}}}
        if method == "POST" and path == "/api/jobs/":
            return 200, {"submission_id": self._run(request)}
        if name not in self.jobs:
            return 404, f"Job {name} does not exist"
        if path.endswith("/logs"):
            return 200, {"logs": self.logs[name]}
        if method == "DELETE":
            del self.jobs[name]
            return 200, {}
        return 200, {"stopped": True} if path.endswith("/stop") else self.jobs[name]

    def _run(self, request: Mapping[str, Any]) -> str:
        name = str(request["submission_id"])
        if self.prints is not None:
            nonce = json.loads(shlex.split(request["entrypoint"])[-1])[-1]
            self.jobs[name] = {"submission_id": name, "status": "SUCCEEDED", "driver_exit_code": 0}
            self.logs[name] = f"a line\n{MARK}{nonce}{json.dumps(self.prints)}\n"
            return name
        done = subprocess.run(
            ["sh", "-c", request["entrypoint"]], capture_output=True, text=True, check=False
        )
        status = "FAILED" if done.returncode else "SUCCEEDED"
        self.jobs[name] = {"submission_id": name, "status": status, "driver_exit_code": done.returncode}
        self.logs[name] = done.stdout + done.stderr
        return name

    def requests(self) -> list[str]:
        """What it was asked since the last call of this."""
        asked, self.asked = self.asked, []
        return asked


@contextmanager
def dashboard() -> Iterator[Dashboard]:
    """A dashboard, and an environment that names no other one."""
    before = dict(os.environ)
    for name in ("RAY_API_SERVER_ADDRESS", "RAY_JOB_HEADERS", "RAY_AUTH_TOKEN", "http_proxy", "HTTP_PROXY"):
        os.environ.pop(name, None)
    os.environ["RAY_AUTH_TOKEN_PATH"] = "/nowhere"
    here = Dashboard()
    try:
        yield here
    finally:
        here.server.shutdown()
        here.server.server_close()
        os.environ.clear()
        os.environ.update(before)
