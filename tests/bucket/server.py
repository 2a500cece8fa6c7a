"""A real S3 server on loopback (moto, in a process of its own), and a proxy before it that misbehaves."""

from __future__ import annotations

import contextlib
import http.client
import re
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

FAULTS = ("lost reply", "reset before", "500", "503")
"""What may happen to one request: its effect without an answer, no effect and no answer, an error."""

_HOP = {"connection", "transfer-encoding", "content-length", "keep-alive", "server", "date"}


class Server(NamedTuple):
    """The process and its port."""

    process: subprocess.Popen[bytes]
    port: int

    def make_bucket(self, name: str) -> None:
        """Makes a bucket, which nothing under test ever does."""
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}/{name}", method="PUT")
        urllib.request.urlopen(request).read()


def start_server(log: Path) -> Server:
    """Starts moto's server on a free port and waits until it answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
            stdout=stream,
            stderr=stream,
            start_new_session=True,
        )
    until_s = time.monotonic() + 60
    while True:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5).read()
        except OSError:
            assert process.poll() is None and time.monotonic() < until_s, log.read_text()
            time.sleep(0.1)
        else:
            return Server(process, port)


class Proxy:
    """Passes requests on to the server, with the faults that a test sets.

    Conditional puts go one at a time: moto looks whether a key exists and then writes it, in several threads,
    so that two creators may both win, once in some hundred races. S3 decides in one step.

    Attributes:
        url: for AWS_ENDPOINT_URL.
        latency_s: added to each request.
        ignores_conditions: takes If-None-Match away, as a server does that does not know it.
        is_down: resets every connection.
        denies: answers 403.
        hangs: takes requests whose path this pattern finds, and does not answer while it stands.
        seen: (method, path) of all requests.
    """

    def __init__(self, port: int) -> None:
        self.latency_s = 0.0
        self.ignores_conditions = self.is_down = self.denies = False
        self.hangs: str | None = None
        self.seen: list[tuple[str, str]] = []
        self._faults: list[tuple[str, str, str, int]] = []
        self._lock, self.one_at_a_time = threading.Lock(), threading.Lock()
        handler = type("Handler", (_Handler,), {"proxy": self, "port": port})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def fail(self, fault: str, method: str, path: str, times: int = 1) -> None:
        """Lets the next requests whose path a pattern finds go wrong."""
        with self._lock:
            self._faults.append((fault, method, path, times))

    def has_seen(self, method: str, path: str) -> bool:
        """Whether a request came whose path a pattern finds."""
        return any(verb == method and re.search(path, seen) for verb, seen in self.seen)

    def fault_of(self, method: str, path: str) -> str:
        """The fault that a request meets, "" for none; each is used up."""
        with self._lock:
            self.seen.append((method, path))
            for number, (fault, verb, pattern, times) in enumerate(self._faults):
                if verb == method and re.search(pattern, path):
                    self._faults[number : number + 1] = (
                        [(fault, verb, pattern, times - 1)] if times > 1 else []
                    )
                    return fault
        return ""


class _Handler(BaseHTTPRequestHandler):
    """Passes requests on to the server, with the faults of a proxy; a subclass has the proxy and the port."""

    proxy: Proxy
    port: int
    protocol_version = "HTTP/1.1"

    def setup(self) -> None:
        super().setup()
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def pass_on(self) -> None:
        proxy = self.proxy
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fault = proxy.fault_of(self.command, self.path)
        while proxy.hangs is not None and re.search(proxy.hangs, self.path):
            time.sleep(0.05)
        time.sleep(proxy.latency_s)
        if proxy.is_down or fault == "reset before":
            return self._reset()
        if proxy.denies:
            return self._answer(403, {}, b"<Error><Code>AccessDenied</Code></Error>")
        if fault.isdigit():
            return self._answer(int(fault), {}, b"<Error><Code>InternalError</Code></Error>")
        headers = {k: v for k, v in self.headers.items() if k.lower() not in ("connection",)}
        if proxy.ignores_conditions:
            headers = {k: v for k, v in headers.items() if k.lower() != "if-none-match"}
        is_create = self.command == "PUT" and "If-None-Match" in self.headers
        with proxy.one_at_a_time if is_create else contextlib.nullcontext():
            reply, data = self._ask(body, headers)
        if fault == "lost reply":
            return self._reset()
        kept = {k: v for k, v in reply.getheaders() if k.lower() not in _HOP}
        if self.command == "HEAD":
            kept["Content-Length"] = reply.getheader("Content-Length") or "0"
        self._answer(reply.status, kept, data)

    def _ask(self, body: bytes, headers: dict[str, str]) -> tuple[http.client.HTTPResponse, bytes]:
        upstream = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            upstream.request(self.command, self.path, body, headers)
            reply = upstream.getresponse()
            return reply, reply.read()
        finally:
            upstream.close()

    def _answer(self, status: int, headers: dict[str, str], data: bytes) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if self.command != "HEAD":
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _reset(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except (OSError, ValueError):  # the client left, or we left it
            self.close_connection = True

    def finish(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            super().finish()

    def log_message(self, format: str, *args: Any) -> None:
        pass

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = pass_on
