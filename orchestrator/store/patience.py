"""Waiting while a shared folder does not answer, as happens on a network file system.

Only errors that pass by themselves are waited out. A full disk, a quota, a read-only mount or a missing
permission needs a person, so these errors are raised at once.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple, TypeVar

from orchestrator.errors import InfrastructureError
from orchestrator.store import layout
from orchestrator.store.objects import Listing, PosixStore, idle

T = TypeVar("T")

TRANSIENT = frozenset(
    {
        errno.EIO,
        errno.ESTALE,
        errno.ENOTCONN,
        errno.ETIMEDOUT,
        errno.EAGAIN,
        errno.EBUSY,
        errno.EREMOTEIO,
        errno.ENOLINK,
        errno.ECONNREFUSED,
        errno.ECONNRESET,
        errno.ECONNABORTED,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
        errno.ENETDOWN,
        errno.ENETUNREACH,
        errno.ENETRESET,
        errno.ESHUTDOWN,
    }
)
"""Errors of a server, a connection or a mount that may recover without help."""

AGAIN_S, POLL_S, SAY_S = 0.1, 0.5, 2.0
"""Pause before the second try, poll interval during an outage, and the time after which an outage is
reported; in seconds.
"""


class Outage(NamedTuple):
    """Settings for waiting out an outage.

    Attributes:
        limit_s: Time after which the error is raised, in seconds.
        notify: Receives one line when an outage begins and one when it ends.
        stop_asked: Returns the reason to stop waiting, "" to go on.
    """

    limit_s: float
    notify: Callable[[str], None]
    stop_asked: Callable[[], str] = lambda: ""


def is_transient(error: BaseException) -> bool:
    """Return whether an error, or the one that caused it, may pass by itself."""
    cause = error if isinstance(error, OSError) else error.__cause__
    return isinstance(cause, OSError) and cause.errno in TRANSIENT


def told(error: BaseException) -> str:
    """Return an error of the store as one line for people."""
    cause = error if isinstance(error, OSError) else error.__cause__
    if isinstance(cause, OSError) and cause.strerror:
        where = f": {cause.filename}" if cause.filename else ""
        return f"{cause.strerror}{where}"
    return " ".join(str(error).split())


def wait_out(act: Callable[[], T], answers: Callable[[], object], outage: Outage) -> T:
    """Run an operation; while the whole store does not answer, wait and try again.

    An error of a single folder, while the rest of the store answers, is retried only once. The caller can
    then go on with other stages instead of waiting for one.

    Args:
        act: The operation.
        answers: Probe that raises when the store as a whole does not answer.
        outage: Limit, messages and stop condition.

    Raises:
        OSError: The error is not transient, concerns one folder only, or lasted longer than the limit.
        InfrastructureError: The same, as raised by an operation that retries itself.
    """
    start_s, said, again = time.monotonic(), False, False
    while True:
        try:
            result = act()
        except (OSError, InfrastructureError) as error:
            waited_s = time.monotonic() - start_s
            if not is_transient(error) or outage.stop_asked() or waited_s > outage.limit_s:
                raise
            if _fails(answers):
                again = False
                # Short hiccups are common on network file systems, and are not reported.
                if not said and waited_s >= SAY_S:
                    outage.notify(
                        f"the store does not answer ({told(error)}): waiting for up to {outage.limit_s:.0f} s"
                    )
                    said = True
            # The store answers, so the error belongs to one folder. Two in a row are final.
            elif again:
                raise
            else:
                again = True
            time.sleep(AGAIN_S if waited_s < SAY_S else POLL_S)
            continue
        if said:
            outage.notify(f"the store answers again after {time.monotonic() - start_s:.0f} s")
        return result


def _fails(answers: Callable[[], object]) -> bool:
    try:
        answers()
    except (OSError, InfrastructureError):
        return True
    return False


class PatientStore(PosixStore):
    """A folder whose outages are waited out, for processes that would lose work by exiting.

    Args:
        root: The folder.
        outage: Limit, messages and stop condition.
    """

    def __init__(self, root: Path, outage: Outage) -> None:
        super().__init__(root)
        self._outage, self._gave_up = outage, False

    def _patiently(self, act: Callable[[], T]) -> T:
        # After one full wait, fail at once until the store answers again. Otherwise each further operation of
        # a worker that is shutting down would wait for the whole limit.
        if self._gave_up:
            result = act()
            self._gave_up = False
            return result
        start_s = time.monotonic()
        try:
            return wait_out(act, self._look, self._outage)
        except (OSError, InfrastructureError):
            # An error that was raised early, by a stop or as permanent, does not count as giving up.
            self._gave_up = time.monotonic() - start_s > self._outage.limit_s
            raise

    def _look(self) -> None:
        # The mark always exists, so an error here is one of the whole store.
        self.path(layout.STORE).open("rb").close()

    def create(self, key: str, data: bytes) -> bool:
        """Create as in a folder, waiting out outages."""
        return self._patiently(lambda: super(PatientStore, self).create(key, data))

    def put(self, key: str, data: bytes) -> None:
        """Write as in a folder, waiting out outages."""
        self._patiently(lambda: super(PatientStore, self).put(key, data))

    def get(self, key: str) -> bytes | None:
        """Read as in a folder, waiting out outages."""
        return self._patiently(lambda: super(PatientStore, self).get(key))

    def read_from(self, key: str, start: int, limit: int | None = None) -> bytes:
        """Read as in a folder, waiting out outages."""
        return self._patiently(lambda: super(PatientStore, self).read_from(key, start, limit))

    def list(self, prefix: str) -> Listing:
        """List as in a folder, waiting out outages."""
        return self._patiently(lambda: super(PatientStore, self).list(prefix))

    def trees(self, prefixes: Iterable[str]) -> dict[str, dict[str, int]]:
        """Walk as in a folder, waiting out outages."""
        # An iterator would be empty at the second try.
        wanted = [*prefixes]
        return self._patiently(lambda: super(PatientStore, self).trees(wanted))

    def workspace(self, prefix: str) -> Path:
        """Create the folder as in a folder store, waiting out outages."""
        return self._patiently(lambda: super(PatientStore, self).workspace(prefix))

    def upload(self, prefix: str, *, pulse: Callable[[], object] = idle) -> None:
        """Sync as in a folder, waiting out outages."""
        self._patiently(lambda: super(PatientStore, self).upload(prefix, pulse=pulse))
