"""An MLflow server on loopback: a small one in memory, as far as the mirror needs one, or the real one."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.trackers.receiver import Loopback, QuietHandler, free_port


class SmallMlflow(Loopback):
    """Keeps what the REST API 2.0 is given, and misbehaves on demand. It enforces the limits of a request.

    Attributes:
        runs: id of a run to its info, tags, params and every point of its metrics.
        requests: the path of each request.
        status: by which every request is refused, 0 to take them; `retry_after` goes with it.
        delay_s: before each answer.
        lose: number of answers of `log-batch` that are lost after the server took the request.
        headers: the Authorization of each request.
    """

    def __init__(self) -> None:
        self.runs: dict[str, dict[str, Any]] = {}
        self.experiments: dict[str, str] = {}
        self.requests: list[str] = []
        self.headers: list[str] = []
        self.status, self.retry_after, self.delay_s, self.lose = 0, "", 0.0, 0
        self._lock = threading.Lock()
        outer = self

        class Handler(QuietHandler):
            def do_GET(self) -> None:
                self.answer({name: values[0] for name, values in parse_qs(urlsplit(self.path).query).items()})

            def do_POST(self) -> None:
                self.answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

            def answer(self, body: dict[str, Any]) -> None:
                name = urlsplit(self.path).path.removeprefix("/api/2.0/mlflow/")
                outer.requests.append(name)
                outer.headers.append(self.headers.get("Authorization", ""))
                time.sleep(outer.delay_s)
                if outer.status:
                    status, found = outer.status, {}
                else:
                    with outer._lock:
                        status, found = outer.take(name, body)
                if name == "runs/log-batch" and body.get("metrics") and outer.lose > 0:
                    outer.lose -= 1
                    self.connection.close()
                    return
                text = json.dumps(found).encode()
                self.send_response(status)
                if outer.retry_after:
                    self.send_header("Retry-After", outer.retry_after)
                self.send_header("Content-Length", str(len(text)))
                with contextlib.suppress(OSError):  # a client that waited in vain has left
                    self.end_headers()
                    self.wfile.write(text)

        super().__init__(Handler)

    def take(self, name: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """Answer one request."""
        match name:
            case "experiments/get-by-name":
                wanted = body["experiment_name"]
                if wanted not in self.experiments:
                    return 404, {"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "no experiment"}
                return 200, {"experiment": {"experiment_id": self.experiments[wanted]}}
            case "experiments/create":
                self.experiments[body["name"]] = str(len(self.experiments) + 1)
                return 200, {"experiment_id": self.experiments[body["name"]]}
            case "runs/create":
                id = f"run{len(self.runs)}"
                info = {"run_id": id, "status": "RUNNING", "run_name": body["run_name"]}
                tags = {tag["key"]: tag["value"] for tag in body["tags"]}
                experiment = body["experiment_id"]
                self.runs[id] = {
                    "info": info, "tags": tags, "params": {}, "points": defaultdict(list), "of": experiment,
                }  # fmt: skip
                return 200, {"run": {"info": info}}
            case "runs/search":
                tag, _, value = body["filter"].partition(" = ")
                key = tag.removeprefix("tags.").strip("`")
                found = [
                    {
                        "info": run["info"],
                        "data": {"tags": pairs(run["tags"]), "params": pairs(run["params"])},
                    }
                    for run in self.runs.values()
                    if run["tags"].get(key) == value.strip("'") and run["of"] in body["experiment_ids"]
                ]
                return 200, {"runs": found}
            case "runs/log-batch":
                return self._batch(body)
            case "runs/update":
                info = self.runs[body["run_id"]]["info"]
                info |= {"status": body["status"], "end_time": body.get("end_time")}
                return 200, {"run_info": info}
        return 404, {"error_code": "ENDPOINT_NOT_FOUND", "message": name}

    def _batch(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        metrics, params, tags = (body.get(part, []) for part in ("metrics", "params", "tags"))
        if len(metrics) + len(params) + len(tags) > 1000 or len(params) > 100 or len(tags) > 100:
            return 400, {"error_code": "INVALID_PARAMETER_VALUE", "message": "too many"}
        run = self.runs.get(body["run_id"])
        if run is None:
            return 404, {"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "no run"}
        for param in params:
            if run["params"].setdefault(param["key"], param["value"]) != param["value"]:
                return 400, {"error_code": "INVALID_PARAMETER_VALUE", "message": "a param never changes"}
        for metric in metrics:
            point = (metric["step"], metric["timestamp"], metric["value"])
            if point not in run["points"][metric["key"]]:  # as a database does
                run["points"][metric["key"]].append(point)
        run["tags"] |= {tag["key"]: tag["value"] for tag in tags}
        return 200, {}

    def named(self, name: str) -> dict[str, Any]:
        """The run with a name."""
        (found,) = [run for run in self.runs.values() if run["info"]["run_name"] == name]
        return found


def pairs(values: dict[str, str]) -> list[dict[str, str]]:
    """Values as the API lists them."""
    return [{"key": key, "value": value} for key, value in values.items()]


@contextmanager
def real_mlflow(folder: Path) -> Iterator[str]:
    """Run MLflow's own server on a database in a folder; yield its address."""
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--workers", "1"]
    command += ["--artifacts-destination", str(folder / "artifacts")]
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder, start_new_session=True)
    address = f"http://127.0.0.1:{port}"
    try:
        until_s = time.monotonic() + 240
        while True:
            try:
                urllib.request.urlopen(f"{address}/health", timeout=5).close()
                break
            except OSError:
                assert process.poll() is None and time.monotonic() < until_s, (
                    folder / "server.log"
                ).read_text()
                time.sleep(0.2)
        yield address
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # its server is a child of the command
        process.wait(timeout=30)
