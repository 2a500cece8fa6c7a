"""The edge of every command: its standard streams, whatever they are, and UTF-8 inside whatever the locale.

A stream that is closed, full or limited to some characters never changes what a command does. What it cannot
show is replaced. A command that runs things goes on when nobody reads its output any more; one that only
reads ends, with exit code 0, when its reader leaves, and with an error when its output cannot be written.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from typing import Any, TextIO, cast

MARK = "SWEEP_ATTEMPT"
"""Environment variable of all that an attempt starts, see `orchestrator.processes`."""

_TERMINAL = "SWEEP_TERMINAL_ENCODING"
"""What the terminal takes, for a process that was started anew with UTF-8 inside."""


class ReaderLeft(Exception):
    """Nobody reads standard output any more, as when `head` has seen enough.

    It is no `OSError`: libraries that print end the process by that in ways of their own.
    """


class Stream:
    """Standard output or error.

    Args:
        stream: where it leads.
        is_silent: whether what cannot be written is dropped without an error.
    """

    def __init__(self, stream: TextIO, *, is_silent: bool) -> None:
        self._stream, self.is_silent = stream, is_silent
        self._failure: OSError | None = None

    def write(self, text: str) -> int:
        """Write a text."""
        try:
            return self._stream.write(text)
        except OSError as error:
            self._give_up(error)
            return len(text)

    def flush(self) -> None:
        """Write what is buffered, or fail as an earlier write did, which a library may have ignored."""
        try:
            if self._failure is not None and not self.is_silent:
                raise self._failure
            self._stream.flush()
        except OSError as error:
            self._give_up(error)

    def _silence(self) -> None:
        """Drop all that is written from now on, and what is still buffered."""
        with contextlib.suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)

    def _give_up(self, error: OSError) -> None:
        self._silence()
        if self.is_silent:
            return
        if isinstance(error, BrokenPipeError):
            raise ReaderLeft from None
        self._failure = error
        raise OSError(error.errno, f"cannot write standard output: {error.strerror}") from None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def prepare() -> None:
    """Make standard streams that can be written, and UTF-8 the encoding of all else.

    Who starts us may ignore SIGCHLD, which is inherited: then the kernel keeps no exit codes, and all that we
    start would seem to end with 0.

    Where the locale has another encoding, names of files could not be had: the process starts itself anew.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for number, mode in ((0, os.O_RDONLY), (1, os.O_WRONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:  # closed: the next file to be opened would take its place
            opened = os.open(os.devnull, mode)
            os.dup2(opened, number)
            if opened == number:
                os.set_inheritable(number, True)
            else:
                os.close(opened)
    if sys.getfilesystemencoding().lower() not in ("utf-8", "utf8") and _TERMINAL not in os.environ:
        encoding = getattr(sys.stdout, "encoding", None) or "ascii"
        environment = {**os.environ, "PYTHONUTF8": "1", _TERMINAL: encoding}
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)
    os.environ.pop("PYTHONIOENCODING", None)  # of the streams here: those of stages lead into logs
    os.environ.pop(MARK, None)  # what a stage submits or detaches by us is no part of its attempt
    encoding = os.environ.pop(_TERMINAL, "")
    sys.stdin = sys.stdin or open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stdout = cast(TextIO, Stream(_writable(sys.stdout, 1, encoding), is_silent=False))
    sys.stderr = cast(TextIO, Stream(_writable(sys.stderr, 2, encoding), is_silent=True))


def _writable(stream: TextIO | None, number: int, encoding: str) -> TextIO:
    """Return a stream that replaces what its encoding cannot say."""
    if stream is None:
        return open(number, "w", encoding="utf-8", errors="replace", closefd=False)
    if hasattr(stream, "reconfigure"):
        stream.reconfigure(encoding=encoding or None, errors="replace")
    return stream


def socket_folder() -> str:
    """Return a folder for sockets, whose whole paths have room for 107 bytes only (unix(7))."""
    usual = tempfile.gettempdir()
    if len(os.fsencode(usual)) < 60:
        return usual
    others = ("/tmp", "/var/tmp", "/dev/shm")
    return next((folder for folder in others if os.access(folder, os.W_OK | os.X_OK)), usual)


@contextlib.contextmanager
def short_paths() -> Iterator[None]:
    """Have temporary files, among them the sockets of libraries, lie where their paths are short."""
    before, tempfile.tempdir = tempfile.tempdir, socket_folder()
    try:
        yield
    finally:
        tempfile.tempdir = before


def outlive_the_reader() -> None:
    """Have a command that runs things go on when its output cannot be written any more."""
    if isinstance(sys.stdout, Stream):
        sys.stdout.is_silent = True
    else:
        sys.stdout = cast(TextIO, Stream(sys.stdout, is_silent=True))
