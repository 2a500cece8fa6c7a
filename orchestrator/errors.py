"""The tree of errors with the exit code of each, and the texts of messages: foreign ones are made safe here.

::

    SweepError
    ├── UserError            exit 2: the user's mistake; nothing was started
    └── InfrastructureError  exit 3: a file system, a scheduler or a hub failed
        ├── DamagedRecord    it does not pass by itself
        ├── AccessDenied     a certificate or a token is not accepted; waiting does not help
        └── SchedulerUnavailable  a scheduler does not answer now, and may later
    StageFailure             (an Exception) is raised inside a stage to name the cause; it becomes a record
    StopRequested            (a BaseException) unwinds a stage that must stop
"""

from __future__ import annotations

import contextlib
import difflib
import errno
import os
import re
import time
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path


class SweepError(Exception):
    """Any error that Polysweep raises on purpose.

    Args:
        what: what is wrong, with the value, in one line.
        where: the file, line or key.
        allowed: what would have been right, or the nearest names.
        fix: what to type next.
    """

    exit_code = 1

    def __init__(self, what: str, *, where: str = "", allowed: str = "", fix: str = "") -> None:
        super().__init__(what)
        self.what, self.where, self.allowed, self.fix = what, where, allowed, fix

    def __str__(self) -> str:
        parts = (
            escaped(part).replace("\n", "\n  ") for part in (self.what, self.where, self.allowed, self.fix)
        )
        return "\n  ".join(part for part in parts if part)


class UserError(SweepError):
    """The user's mistake: exit code 2, nothing submitted, nothing lost."""

    exit_code = 2


class UnknownSweep(UserError):
    """No sweep file has this name.

    Args:
        name: the name, for the message.
        known: the names of the existing files.
        where: the folders that were searched.
        fix: what to type next.
    """

    def __init__(self, name: str, known: Iterable[str], *, where: str = "", fix: str = "") -> None:
        self.name, self.known = name, tuple(known)
        super().__init__(f"unknown sweep {name!r}", where=where, allowed=nearest(name, self.known), fix=fix)


class InfrastructureError(SweepError):
    """A failure of the store, a scheduler or the machine: exit code 3."""

    exit_code = 3


class DamagedRecord(InfrastructureError):
    """A record in the store that is there and malformed. Waiting does not help."""


class AccessDenied(InfrastructureError):
    """A server's certificate is not trusted here, or it does not accept our token. Waiting does not help."""


class SchedulerUnavailable(InfrastructureError):
    """A scheduler does not answer. Waiting may help."""


class StageFailure(Exception):
    """The failure of a stage that can name the cause itself.

    Args:
        cause: one of `orchestrator.core.failure.Cause`, for example ``"data"``.
        message: one line for the user.
    """

    def __init__(self, cause: str, message: str) -> None:
        super().__init__(message)
        self.cause = cause


class NotKept(StageFailure):
    """The failure of a stage for which the product of its earlier version does not suffice.

    If files of an input are retired, the stage is then blocked until the input is made again.
    """


class StopRequested(BaseException):
    """The exception that unwinds a stage after its checkpoint, because the worker requested a stop.

    It is not an `Exception`, so that a broad ``except`` in a stage does not swallow it.

    Args:
        why: the reason of the stop.
    """

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


class StopSignal:
    """A flag that another thread or a signal handler sets once, when the stage should stop.

    It has no lock: a signal that interrupts the handler of another would wait for that lock for ever.
    """

    def __init__(self) -> None:
        self.asked, self.why = False, ""
        self.seen = False
        """Whether the stage has read that a stop was requested."""

    def ask(self, why: str) -> None:
        """Request a stop of the stage; the first reason is kept."""
        if not self.asked:
            self.why = why  # before the flag: a reader that sees the flag must find the reason
            self.asked = True


_FULL = re.compile(r"No space left on device|Disk quota exceeded")


def means_full_disk(message: str) -> bool:
    """Return whether an error means that a disk is full or a quota used up, by its message."""
    return _FULL.search(message) is not None


def is_out_of_space(error: BaseException) -> bool:
    """Return whether a write failed because a disk is full, or a quota used up.

    Libraries that are not Python's raise errors of their own, with the system's words in them.
    """
    return getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or means_full_disk(str(error))


def check_proxies() -> None:
    """Raise `UserError` for a proxy in the environment that no request could be made by."""
    from urllib.parse import urlsplit
    from urllib.request import getproxies

    for name in ("http", "https", "all"):
        if not (proxy := getproxies().get(name, "")):
            continue
        try:
            parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
            is_usable = bool(parts.hostname) and parts.port != 0
        except ValueError:
            parts, is_usable = urlsplit(""), False
        has_socks = parts.scheme.startswith("socks5") and find_spec("socksio") is not None
        if not is_usable or not (parts.scheme in ("http", "https") or has_socks):
            raise UserError(
                f"the proxy in {name}_proxy, or {name.upper()}_PROXY, cannot be used: {parts.scheme or 'it'}"
                + (" needs the package socksio" if parts.scheme.startswith("socks5") else " is no proxy"),
                allowed="http://HOST:PORT",
                fix=f"unset {name}_proxy {name.upper()}_PROXY",
            )


def nearest(name: str, known: Iterable[str], *, limit: int = 12) -> str:
    """Return the known names that are similar, or else a list of them, for the `allowed` part of an error."""
    names = sorted(set(known))
    # Compare without case: a wrong capital is a common mistake, and costs as much as any other letter.
    by_lower: dict[str, list[str]] = {}
    for each in names:
        by_lower.setdefault(each.lower(), []).append(each)
    close = difflib.get_close_matches(name.lower(), by_lower, n=3, cutoff=0.6)
    if close:
        return f"did you mean {' or '.join(each for lower in close for each in by_lower[lower])}?"
    shown = ", ".join(names[:limit]) + (", ..." if len(names) > limit else "")
    return f"known: {shown}" if names else "none is known"


MAX_LINE = 500
"""Greatest length of a message, in characters."""

_ACTING = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # control characters but tab and line feed, so ANSI sequences too
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # characters that change the direction of text
    "\u2028\u2029\ufeff\ud800-\udfff]"  # other line separators, byte order marks, lone surrogates
)
"""Characters that act on a terminal, or that UTF-8 cannot encode."""


SEQUENCE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])")
"""An escape sequence of a terminal (ECMA-48): a control sequence, a system command, or a short one."""


def escaped(text: str) -> str:
    r"""Return a text that cannot act on a terminal and that UTF-8 can encode; ``\x1b`` replaces an escape.

    Tabs and line feeds stay.
    """
    return _ACTING.sub(_escape, text)


def printable(text: str) -> str:
    """Return a text without characters that move the cursor, change colours or break the line."""
    return text if text.isprintable() else escaped(text).replace("\n", "\\n").replace("\t", "\\t")


def inert(value: object) -> object:
    """Return a value of a template of a page with a text escaped; markup, a subclass, stays as it is.

    Control characters are no HTML, and others reverse the text around them.
    """
    return escaped(value) if type(value) is str else value


def _escape(match: re.Match[str]) -> str:
    number = ord(match[0])
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}"


def one_line(text: str, limit: int = MAX_LINE) -> str:
    """Return the beginning of a text as one line of at most `limit` characters."""
    begun = text[: 4 * limit]  # the text may have millions of characters
    line = escaped(" ".join(re.split(r"[ \t\r\n]+", begun.strip(" \t\r\n"))))
    return line if len(line) <= limit and len(begun) == len(text) else line[: limit - 3] + "..."


def first_line_of(error: Exception) -> str:
    """Return the first line of an exception's text that is not empty, or its type if there is none."""
    return next((line for line in words_of(error).splitlines() if line.strip()), type(error).__name__)


def words_of(error: object) -> str:
    """Return the text of an exception or of any other object, even if its ``__str__`` fails.

    The text of a group of exceptions holds that of its first member, which alone reveals what happened.
    """
    try:
        if isinstance(error, BaseExceptionGroup):
            first = error.exceptions[0]
            return f"{error}: {type(first).__name__}: {words_of(first)}"
        return str(error)
    except Exception as failure:  # noqa: BLE001 - the code of others
        return f"(its text cannot be had: __str__ raised {type(failure).__name__})"


def counted(number: int, noun: str) -> str:
    """Return ``1 cell`` or ``2 cells``."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def retry_after_s(value: str) -> float | None:
    """Return the seconds for which a server requests a pause; None if it requests none.

    Args:
        value: of the header ``Retry-After``: a number or a date (RFC 9110, 10.2.3).
    """
    from email.utils import parsedate_to_datetime  # slow to import, and few servers request a pause

    with contextlib.suppress(ValueError):
        return max(0.0, float(value))
    with contextlib.suppress(ValueError, TypeError):
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    return None


def is_utf8(text: str) -> bool:
    """Return whether UTF-8 can hold a text: not half a character, nor a byte of a name that is no text."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def home_expanded(path: str | Path) -> Path:
    """Return a path that a user typed, with ``~`` replaced; that of an unknown user stays as it is."""
    return Path(os.path.expanduser(path))  # noqa: PTH111 - the method of a path raises for an unknown user


def real_path(path: str | Path) -> Path:
    """Return an absolute path without links; a link that leads to itself stays as it is."""
    return Path(os.path.realpath(path))  # the method `resolve` raises for such a link
