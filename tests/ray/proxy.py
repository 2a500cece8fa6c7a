"""A proxy before a cluster's dashboard that loses the answer to the submission of a driver."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def losing(port: int, word: bytes) -> Iterator[str]:
    """Yields the address of the proxy.

    Args:
        port: of the dashboard.
        word: the answer to a request with it is lost; all others are passed on.
    """
    server = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=_serve, args=(server, port, word))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
    finally:
        server.shutdown(socket.SHUT_RDWR)
        server.close()
        thread.join()


def _serve(server: socket.socket, port: int, word: bytes) -> None:
    with contextlib.suppress(OSError):
        while True:
            client, _ = server.accept()
            with client, socket.create_connection(("127.0.0.1", port)) as dashboard:
                asked = _request(client)
                dashboard.sendall(asked.replace(b"Connection: keep-alive", b"Connection: close"))
                answer = b"".join(iter(lambda: dashboard.recv(65536), b""))
                if word not in asked:
                    client.sendall(answer)


def _request(client: socket.socket) -> bytes:
    """Reads a request with its body."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += client.recv(65536)
    head, _, body = data.partition(b"\r\n\r\n")
    lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    missing = int(lengths[0].partition(b":")[2]) - len(body) if lengths else 0
    while missing > 0:
        more = client.recv(65536)
        data, missing = data + more, missing - len(more)
    return data
