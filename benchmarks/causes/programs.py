"""The list of programs that fail, and what they share."""

from __future__ import annotations

import socket
import tempfile
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

Failure = Callable[[Any], object]
FAILURES: dict[str, Failure] = {}


def failure(run: Failure) -> Failure:
    """Add a failure under its function's name."""
    FAILURES[run.__name__] = run
    return run


def scratch(name: str, data: bytes) -> str:
    """Return a new file with some content."""
    path = Path(tempfile.mkdtemp()) / name
    path.write_bytes(data)
    return str(path)


def closed_port() -> int:
    """Return a port on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def answering(status: int) -> str:
    """Return the address of a server that answers with a status."""
    import threading
    from http.server import BaseHTTPRequestHandler, HTTPServer

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(status)

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_address[1]}/"


def answered(status: int) -> object:
    """Ask a server that answers with a status."""
    return urllib.request.urlopen(answering(status))
