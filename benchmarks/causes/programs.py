"""The list of programs that fail, and what they share."""

from __future__ import annotations

import ctypes
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


def small_disk(*, read_only: bool = False) -> Path:
    """Return a new disk of 64 KiB, mounted for this process alone."""
    libc, folder = ctypes.CDLL(None, use_errno=True), tempfile.mkdtemp()
    new_namespace, private, flags = 0x20000, 0x44000, 1 if read_only else 0
    failed = libc.unshare(new_namespace) or libc.mount(b"none", b"/", None, private, None)
    if failed or libc.mount(b"tmpfs", folder.encode(), b"tmpfs", flags, b"size=64k"):
        raise NotImplementedError(f"no mount: {ctypes.get_errno()}")
    return Path(folder)


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
