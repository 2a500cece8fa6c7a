"""Requests of mirrors to their servers, and what the answers mean for all that is to be sent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from orchestrator.errors import one_line, retry_after_s
from orchestrator.trackers.protocol import Unavailable

if TYPE_CHECKING:
    import httpx

REQUEST_S = 10.0
"""Seconds to wait for each answer."""


def is_address(url: str) -> bool:
    """Return whether a text is the address of a server, with a scheme, a host and a possible port."""
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # such as "http://me:pass/word@host", whose port would be "pass"
        return False


class HttpServer:
    """A server that takes what a mirror sends.

    Args:
        url: its address.
        names: the environment variables with its credentials, for messages.
        **options: of `httpx.Client`.
    """

    def __init__(self, url: str, *, names: str, **options: Any) -> None:
        import httpx

        self._url = url
        self._names = names
        self._client = httpx.Client(timeout=REQUEST_S, **options)

    @property
    def host(self) -> str:
        """The server's address, without what a URL may hold beside it."""
        parts = urlsplit(self._url)
        return f"{parts.scheme}://{parts.hostname}" + (f":{parts.port}" if parts.port else "")

    def request(
        self, path: str, body: Mapping[str, Any] | None = None, query: Mapping[str, str] | None = None
    ) -> httpx.Response:
        """Make a request, and return the answer.

        Args:
            path: from the server's address on.
            body: JSON that is posted; None for a GET.
            query: of a GET.

        Raises:
            Unavailable: the server takes nothing.
        """
        import httpx

        url = f"{self._url}{path}"
        try:
            if body is None:
                answer = self._client.get(url, params=query)
            else:
                answer = self._client.post(url, json=body)
        except httpx.TimeoutException:
            raise Unavailable(f"{self.host} does not answer within {REQUEST_S:.0f} s") from None
        except httpx.HTTPError as error:
            raise Unavailable(f"{self.host} cannot be reached: {one_line(str(error))}") from None
        status = answer.status_code
        if status in (401, 403):
            raise self.refused(f" ({status})")
        if status == 429 or status >= 500:
            what = "takes no more for now" if status == 429 else "fails"
            retry_s = retry_after_s(answer.headers.get("Retry-After", ""))
            raise Unavailable(f"{self.host} {what} ({status})", retry_s=retry_s)
        return answer

    def refused(self, how: str) -> Unavailable:
        """Return the error for credentials that the server does not accept."""
        return Unavailable(f"{self.host} refuses us{how}", fix=f"check {self._names}", is_final=True)

    def unexpected(self, status: int, name: str) -> Unavailable:
        """Return the error for an answer that is none of this API.

        Args:
            status: of the answer.
            name: the variable with the address.
        """
        what = f"{self.host} gives an answer that is not of this API ({status})"
        return Unavailable(what, fix=f"check {name}", is_final=True)
