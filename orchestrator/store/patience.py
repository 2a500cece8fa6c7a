"""Waiting for a shared folder that does not answer for a while, as a network file system may.

Only errors that pass by themselves are waited out. A full disk, a quota, a read-only mount and a missing
permission are answers: somebody has to do something.
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
"""Errors of a server, a connection or a mount that may be well again in a moment."""

AGAIN_S, POLL_S, SAY_S = 0.1, 0.5, 2.0
"""Pause before the second try, between looks during an outage, and how long one lasts before it is named."""


class Outage(NamedTuple):
    """How an outage is waited out.

    Attributes:
        limit_s: seconds after which the error is raised.
        say: takes a line when an outage begins and when it is over.
        stop_asked: returns why waiting should end, "" while it should not.
    """

    limit_s: float
    say: Callable[[str], None]
    stop_asked: Callable[[], str] = lambda: ""


def is_transient(error: BaseException) -> bool:
    """Whether an error, or the one that caused it, may pass by itself."""
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
    """Do something to the store; when all of the store does not answer, wait until it does and try again.

    Where one folder errs while the rest of the store answers, a second try is all: others can go on.

    Args:
        act: what to do.
        answers: raises when the store as a whole does not answer.
        outage: how long, and what to say.

    Raises:
        OSError: the error does not pass, is of one folder alone, or lasted longer than the limit.
        InfrastructureError: likewise.
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
                if not said and waited_s >= SAY_S:
                    outage.say(
                        f"the store does not answer ({told(error)}): waiting for up to {outage.limit_s:.0f} s"
                    )
                    said = True
            elif again:
                raise
            else:
                again = True
            time.sleep(AGAIN_S if waited_s < SAY_S else POLL_S)
            continue
        if said:
            outage.say(f"the store answers again after {time.monotonic() - start_s:.0f} s")
        return result


def _fails(answers: Callable[[], object]) -> bool:
    try:
        answers()
    except (OSError, InfrastructureError):
        return True
    return False


class PatientStore(PosixStore):
    """A folder whose outages are waited out, for processes that would lose work by ending.

    Args:
        root: the folder.
        outage: how long, and what to say.
    """

    def __init__(self, root: Path, outage: Outage) -> None:
        super().__init__(root)
        self._outage, self._gave_up = outage, False

    def _patiently(self, act: Callable[[], T]) -> T:
        if self._gave_up:  # once is enough, until it answers again
            result = act()
            self._gave_up = False
            return result
        start_s = time.monotonic()
        try:
            return wait_out(act, self._look, self._outage)
        except (OSError, InfrastructureError):
            self._gave_up = time.monotonic() - start_s > self._outage.limit_s
            raise

    def _look(self) -> None:
        self.path(layout.STORE).open("rb").close()

    def create(self, key: str, data: bytes) -> bool:
        """As of a folder."""
        return self._patiently(lambda: super(PatientStore, self).create(key, data))

    def put(self, key: str, data: bytes) -> None:
        """As of a folder."""
        self._patiently(lambda: super(PatientStore, self).put(key, data))

    def get(self, key: str) -> bytes | None:
        """As of a folder."""
        return self._patiently(lambda: super(PatientStore, self).get(key))

    def read_from(self, key: str, start: int, limit: int | None = None) -> bytes:
        """As of a folder."""
        return self._patiently(lambda: super(PatientStore, self).read_from(key, start, limit))

    def list(self, prefix: str) -> Listing:
        """As of a folder."""
        return self._patiently(lambda: super(PatientStore, self).list(prefix))

    def trees(self, prefixes: Iterable[str]) -> dict[str, dict[str, int]]:
        """As of a folder."""
        wanted = [*prefixes]
        return self._patiently(lambda: super(PatientStore, self).trees(wanted))

    def workspace(self, prefix: str) -> Path:
        """As of a folder."""
        return self._patiently(lambda: super(PatientStore, self).workspace(prefix))

    def upload(self, prefix: str, *, pulse: Callable[[], object] = idle) -> None:
        """As of a folder."""
        self._patiently(lambda: super(PatientStore, self).upload(prefix, pulse=pulse))
