"""Servers on loopback: their start and end, and a webhook that answers as it is set to."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

PATH = "/services/T012345/B678901/secretpartofaddress"


class QuietHandler(BaseHTTPRequestHandler):
    """A handler of requests that logs none."""

    def log_message(self, *_: Any) -> None:
        pass


class Loopback:
    """A server in threads of this process.

    Attributes:
        address: its URL, without a path.
    """

    def __init__(self, handler: type[BaseHTTPRequestHandler]) -> None:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        """Stop, and free the port."""
        self._server.shutdown()
        self._server.server_close()


class Receiver(Loopback):
    """A webhook.

    Attributes:
        answers: what it does with the next requests: a status code, ``hang``, ``drip``, ``cut`` (before the
            status) or ``cut_body`` (after it). At the end of the list, 200.
        headers: of its answers.
        got: the bodies of the requests.
    """

    def __init__(self) -> None:
        self.answers: list[Any] = []
        self.headers: dict[str, str] = {}
        self.got: list[dict[str, Any]] = []
        self.is_over = threading.Event()
        receiver = self

        class Handler(QuietHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.got.append(json.loads(body))
                answer = receiver.answers.pop(0) if receiver.answers else 200
                receiver.reply(self, answer)

        super().__init__(Handler)

    @property
    def url(self) -> str:
        return f"{self.address}{PATH}"

    def reply(self, handler: BaseHTTPRequestHandler, answer: Any) -> None:
        sock = handler.connection
        if answer == "hang":
            if not self.is_over.wait(60):
                handler.send_response(200)
                handler.end_headers()
        elif answer == "drip":
            for byte in b"HTTP/1.1 200 OK\r\n" * 100:
                with contextlib.suppress(OSError):
                    sock.sendall(bytes([byte]))
                if self.is_over.wait(0.05):
                    return
        elif answer == "cut":
            sock.shutdown(socket.SHUT_RDWR)
        elif answer == "cut_body":
            sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nok")
            sock.shutdown(socket.SHUT_RDWR)
        else:
            handler.send_response(answer)
            for name, value in self.headers.items():
                handler.send_header(name, value)
            handler.end_headers()
            handler.wfile.write(f"no such hook: {handler.path}".encode())

    @property
    def kinds(self) -> list[str]:
        """The events that were received, by kind."""
        return [body["event"] for body in self.got]


@contextlib.contextmanager
def receiving() -> Iterator[Receiver]:
    receiver = Receiver()
    yield receiver
    receiver.is_over.set()
    receiver.close()


@contextlib.contextmanager
def refusing() -> Iterator[int]:
    """A port that refuses connections, and that nobody else can get meanwhile."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        yield int(one.getsockname()[1])


def free_port() -> int:
    """A port on which nobody listens now; another process may get it before it is used."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])
