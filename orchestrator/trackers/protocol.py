"""What a mirror is: the protocol of another system that shows a sweep's cells, and what all of them share.

That includes requests to a server, and what its answers mean for all that is to be sent (`HttpServer`).
"""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, Protocol
from urllib.parse import urlsplit

import msgspec

from orchestrator.errors import one_line, retry_after_s
from orchestrator.formats import SINCE_2
from orchestrator.provenance import without_secrets
from orchestrator.store.ledger import Ledger
from orchestrator.store.objects import ObjectStore

if TYPE_CHECKING:
    import httpx


DONE, RUNNING, STOPPED, BROKEN = "done", "running", "stopped", "failed"
"""The states of a cell as a mirror shows them."""


class MetricPoint(NamedTuple):
    """The metrics of one step of an attempt.

    Attributes:
        stage: name of the stage.
        attempt: its number.
        step: as the stage counts.
        at: time of the step, in seconds since 1970; 0.0 if it is not known.
        metrics: names to values. Some may be no numbers.
    """

    stage: str
    attempt: int
    step: int
    at: float
    metrics: dict[str, Any]


class Described(msgspec.Struct, frozen=True, kw_only=True):
    """A cell, as described to the mirror when its run is opened.

    Attributes:
        id: of the run, see `run_id`.
        cell: id of the cell.
        sweep, revision: of which sweep.
        config: resolved.
        axes: their labels.
        stages: names of the stages that the run shows.
        began: when its first attempt started, in seconds since 1970; 0.0 if it is not known.
    """

    id: str
    cell: str
    sweep: str
    revision: int
    config: dict[str, Any]
    axes: dict[str, str]
    stages: tuple[str, ...]
    began: float = 0.0


class MirrorProgress(msgspec.Struct, kw_only=True):
    """How much a cell's run was sent so far.

    Attributes:
        bytes: key of each attempt's payload to the bytes of its metrics that were sent.
        products: the products whose rows were sent, as ``DIGEST.GENERATION``.
        id: id of the run that replaced a deleted first one; "" while there is none.
        lines: number of the lines that were sent, for W&B, whose server counts them.
        state: of the cell, as the other system shows it; "" if it shows none.
    """

    bytes: dict[str, int] = {}
    products: list[str] = []
    id: Annotated[str, SINCE_2] = ""
    lines: Annotated[int, SINCE_2] = 0
    state: Annotated[str, SINCE_2] = ""


class Notes:
    """What runs were sent, by their id, in a record beside the mirror's files.

    A run is noted after it was sent, so a mirror that is killed notes too little, never too much. An earlier
    launch may have run on another machine. While this mirror works, nobody else should, see `mirror.locked`.

    Args:
        objects: the store.
        prefix: the mirror's folder in it.
        name: of the file.
    """

    def __init__(self, objects: ObjectStore, prefix: str, name: str) -> None:
        self._objects = objects
        self._key = f"{prefix}/{name}"
        self._known: dict[str, MirrorProgress] | None = None

    def of(self, id: str) -> MirrorProgress:
        """Return what a run was sent; nothing if the record is absent or damaged.

        Raises:
            OSError: the record cannot be read now.
        """
        self._known = self._all() if self._known is None else self._known
        return self._known.get(id, MirrorProgress())

    def note(self, id: str, progress: MirrorProgress) -> None:
        """Note what a run was sent, and keep the notes of all others.

        Raises:
            OSError: the record cannot be read or written now.
        """
        self._known = {**self._all(), id: progress}
        self._objects.put(self._key, msgspec.json.encode(self._known))

    def _all(self) -> dict[str, MirrorProgress]:
        # Errors pass on. Otherwise `note` would replace a record that cannot be read at the moment.
        try:
            return msgspec.json.decode(self._objects.get(self._key) or b"", type=dict[str, MirrorProgress])
        except (msgspec.DecodeError, UnicodeDecodeError):
            return {}


class MirroredRun(Protocol):
    """The run of one cell in the other system.

    Attributes:
        id: its id there. It differs from the requested id if that run was deleted and this one replaces it.
        progress: what it has. At first it is what the mirror returned before, unless the run turned out to
            be another one.
    """

    id: str
    progress: MirrorProgress

    def log(self, points: Sequence[MetricPoint], sent: MirrorProgress) -> int:
        """Record some points, and return how many it had not; `sent` is the progress with them."""

    def results(self, stage: str, rows: Sequence[dict[str, Any]], at: float, sent: MirrorProgress) -> None:
        """Record the rows of a stage that was done at a time; `sent` is the progress with them."""

    def mark(self, state: str, at: float) -> None:
        """Record the state of the cell, and when it was reached; 0.0 if that is not known."""

    def close(self, state: str) -> None:
        """End the run, or pause it until the cell continues."""


class Followed(NamedTuple):
    """The sweep that a mirror follows.

    Attributes:
        id: the same for all revisions of one sweep in one store.
        name: of the sweep.
        revision: its number.
        num_cells: of that revision.
        ledger: the store.
    """

    id: str
    name: str
    revision: int
    num_cells: int
    ledger: Ledger


class Mirror(Protocol):
    """What shows cells in another system. The constructor takes its options, and checks them.

    Attributes:
        title: its name for people.
        problem: why it could not send something, of which the launch must not stop; "" if nothing.
    """

    title: str
    problem: str

    def check(self) -> None:
        """Raise `UserError` unless this machine and environment have what it needs."""

    def begin(self, sweep: Followed) -> None:
        """Prepare for the runs of a sweep."""

    def progress(self, id: str) -> MirrorProgress:
        """Return what is known of a run before it is opened."""

    def open(self, cell: Described) -> MirroredRun:
        """Open or resume the run of a cell."""

    def forget(self, id: str) -> bool:
        """Drop what is known of a run after an error; return whether it is read again from there."""

    def end(self) -> None:
        """Finish what is shown of the sweep as a whole."""

    def summary(self) -> str:
        """Return one line about what was done, and what is left to do."""


class Unavailable(Exception):
    """The other system takes nothing from anybody at the moment.

    Args:
        what: what it does instead, in one line.
        fix: what to do about it.
        retry_s: seconds after which it may be tried again; None for the usual pause.
        is_final: whether it will not change while this process runs, as with a wrong key.
    """

    def __init__(
        self, what: str, *, fix: str = "", retry_s: float | None = None, is_final: bool = False
    ) -> None:
        super().__init__(what)
        self.what, self.fix, self.retry_s, self.is_final = what, fix, retry_s, is_final


def is_number(value: Any) -> bool:
    """Return whether a metric is a number that a float can hold."""
    return isinstance(value, int | float) and -sys.float_info.max <= value <= sys.float_info.max


def flat(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the values of a config by dotted key."""
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from ((f"{name}.{key}", inner) for key, inner in flat(value))
        else:
            yield str(name), value


def as_text(value: Any) -> str:
    """Return a value of a config as text: JSON, unless it is text already."""
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def summary_of(stage: str, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return every number of the rows under a name: stage, column, and the texts in which the rows differ.

    Six rows with ``eval_language`` and ``accuracy`` become ``evaluate/accuracy/en`` and so on. A column that
    is the same in all rows keeps its plain name, as do all columns of a single row.
    """
    columns = dict.fromkeys(name for row in rows for name in row)
    constant = {name for name in columns if all(row.get(name) == rows[0].get(name) for row in rows)}
    labels = [
        n for n in columns if n not in constant and all(isinstance(row.get(n), str | None) for row in rows)
    ]
    summary: dict[str, Any] = {}
    for number, row in enumerate(rows, start=1):
        label = "/".join(str(row[name]) for name in labels if row.get(name) is not None) or str(number)
        for name, value in row.items():
            if isinstance(value, str | int | float) and name not in labels:
                summary[f"{stage}/{name}" if name in constant else f"{stage}/{name}/{label}"] = value
    return summary


_logger = logging.getLogger("orchestrator.trackers.mirrors")


def log(text: str) -> None:
    """Write to the mirrors' log, without credentials."""
    _logger.info("%s", without_secrets(text))


@contextlib.contextmanager
def log_to(path: Path | None) -> Iterator[None]:
    """Write the log to a file; to standard error without one."""
    handler = logging.StreamHandler() if path is None else logging.FileHandler(path, encoding="utf-8")
    # Only our own lines: the libraries below log every request.
    _logger.propagate = False
    _logger.setLevel(logging.INFO)
    _logger.addHandler(handler)
    try:
        yield
    finally:
        _logger.removeHandler(handler)
        handler.close()


REQUEST_S = 10.0
"""Seconds to wait for each answer."""


def is_address(url: str) -> bool:
    """Return whether a text is the address of a server, with a scheme, a host and a possible port."""
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # such as where a password with a slash ends the host, and its begin is the port
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
