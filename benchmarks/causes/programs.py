"""The list of programs that fail, and what they share."""

from __future__ import annotations

import asyncio
import ctypes
import os
import socket
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

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


def printed(text: str, code: int = 1) -> NoReturn:
    """Write what a program of another language prints, and end with its exit code."""
    print(text, file=sys.stderr, flush=True)
    sys.exit(code)


def terminated(text: str) -> NoReturn:
    """Write the last words of a program in C++ or Rust, and abort as it does."""
    print(text, file=sys.stderr, flush=True)
    os.abort()


def ran(*command: str) -> NoReturn:
    """Run a program, and end with its exit code."""
    sys.exit(subprocess.run(command, check=False).returncode)


def python(name: str, text: str, *module: str) -> NoReturn:
    """Run a file of Python, with a module such as ``pytest`` if one is named."""
    ran(sys.executable, *(part for each in module for part in each.split()), scratch(name, text.encode()))


def in_task(step: Callable[[], object]) -> object:
    """Take a step in a task of a group, whose exception is one of a group."""

    async def task() -> None:
        step()

    async def main() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(task())

    return asyncio.run(main())


def noted(error: Exception, *notes: str) -> NoReturn:
    """Raise an error with notes."""
    for note in notes:
        error.add_note(note)
    raise error
