"""A W&B server on loopback, as far as the real client needs one to upload runs: GraphQL and file streams."""

from __future__ import annotations

import gzip
import json
from collections import Counter, defaultdict
from typing import Any

from tests.trackers.receiver import Loopback, QuietHandler


class WandbServer(Loopback):
    """Keeps what runs are given.

    Attributes:
        history: id of a run to its lines of history.
        configs: id of a run to its config.
        upserts: how often each run was opened, or was refused.
        deleted: ids that are answered by 409, as those of runs that somebody deleted are.
        refuses: status by which every run is refused, 0 to take them.
    """

    def __init__(self) -> None:
        self.history: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self.configs: dict[str, dict[str, Any]] = {}
        self.upserts: Counter[str] = Counter()
        self.deleted: set[str] = set()
        self.refuses = 0
        outer = self

        class Handler(QuietHandler):
            def do_POST(self) -> None:
                data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                if self.headers.get("Content-Encoding") == "gzip":
                    data = gzip.decompress(data)
                try:
                    body = json.loads(data or b"{}")
                except ValueError:  # the library's telemetry
                    body = {}
                if self.path == "/graphql":
                    status, answer = outer.graphql(body.get("query", ""), body.get("variables") or {})
                else:
                    status, answer = outer.stream(self.path.split("/")[-2], body)
                text = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def do_GET(self) -> None:
                self.send_response(404)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def do_PUT(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

        super().__init__(Handler)

    def graphql(self, query: str, variables: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """Answers a query."""
        if "upsertBucket" in query:
            name = variables.get("name") or ""
            self.upserts[name] += 1
            if self.refuses:
                return self.refuses, {"errors": [{"message": "permission denied"}]}
            if name in self.deleted:
                message = f"run {name} was previously created and deleted; try a new run name"
                return 409, {"errors": [{"message": message}]}
            self.configs[name] = json.loads(variables.get("config") or "{}")
            project = {"name": variables.get("project"), "entity": {"name": "us"}}
            bucket = {
                "id": "1",
                "name": name,
                "displayName": name,
                "description": "",
                "config": "{}",
                "sweepName": "",
                "project": project,
                "historyLineCount": 0,
            }
            return 200, {"data": {"upsertBucket": {"bucket": bucket, "inserted": True}}}
        if "createRunFiles" in query:
            files = [{"name": name, "uploadUrl": f"{self.address}/f/{name}"} for name in variables["files"]]
            return 200, {"data": {"createRunFiles": {"runID": "1", "uploadHeaders": [], "files": files}}}
        if "viewer" in query.lower():
            viewer = {"id": "1", "entity": "us", "username": "us", "flags": "{}", "teams": {"edges": []}}
            return 200, {"data": {"viewer": viewer, "serverInfo": {"features": []}}}
        if "model(" in query and "bucket(" in query:
            return 200, {"data": {"model": {"bucket": self.resumed(variables.get("name") or "")}}}
        return 200, {"data": {}}

    def resumed(self, name: str) -> dict[str, Any] | None:
        """What a client needs to go on with a run; None if it was never opened."""
        if name not in self.configs or name in self.deleted:
            return None
        lines = self.history.get(name, [])
        return {
            "name": name,
            "summaryMetrics": "{}",
            "displayName": name,
            "logLineCount": 0,
            "historyLineCount": len(lines),
            "eventsLineCount": 0,
            "historyTail": json.dumps([json.dumps(lines[-1])] if lines else []),
            "eventsTail": "[]",
            "config": "{}",
            "tags": [],
            "notes": "",
            "wandbConfig": '{"t": 1}',  # without it, the run counts as never started
        }

    def stream(self, run: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """Takes lines of a run's files."""
        for file, chunk in (body.get("files") or {}).items():
            if file == "wandb-history.jsonl":
                self.history[run] += map(json.loads, chunk["content"])
        return 200, {"limits": {}}
