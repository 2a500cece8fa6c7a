"""The entry of every command: standard streams in any condition, and UTF-8 inside under any locale.

A stream that is closed, full or limited to some characters never changes what a command does. Characters that
it cannot show are replaced. A command that runs things continues when its output is no longer read. A command
that only reads ends with exit code 0 when its reader leaves, and with an error when its output cannot be
written.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any, TextIO, cast

MARK = "SWEEP_ATTEMPT"
"""Environment variable of everything that an attempt starts, see `orchestrator.processes`."""

_TERMINAL = "SWEEP_TERMINAL_ENCODING"
"""Environment variable with the terminal's encoding, for a process that restarted itself with UTF-8."""


class ReaderLeft(Exception):
    """Signal that nobody reads standard output any more, for example after `head` has read enough.

    It is not an `OSError`, because libraries that print handle that by ending the process in their own ways.
    """


class Stream:
    """Standard output or error.

    Args:
        stream: the underlying stream.
        is_silent: whether output that cannot be written is dropped without an error.
    """

    def __init__(self, stream: TextIO, *, is_silent: bool) -> None:
        self._stream, self.is_silent = stream, is_silent
        self._failure: OSError | None = None

    def write(self, text: str) -> int:
        """Write a text.

        Raises:
            ReaderLeft: nobody reads the stream any more.
            OSError: the stream cannot be written.
        """
        try:
            return self._stream.write(text)
        except OSError as error:
            self._give_up(error)
            return len(text)

    def flush(self) -> None:
        """Write what is buffered, or raise an earlier write's error again, which a library may have hidden.

        Raises:
            ReaderLeft: nobody reads the stream any more.
            OSError: the stream cannot be written, now or earlier.
        """
        try:
            if self._failure is not None and not self.is_silent:
                raise self._failure
            self._stream.flush()
        except OSError as error:
            self._give_up(error)

    def _silence(self) -> None:
        """Drop everything that is written from now on, and what is still buffered."""
        with contextlib.suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)

    def _give_up(self, error: OSError) -> None:
        """Silence the stream after a failed write, and raise unless the stream is silent by choice."""
        self._silence()
        if self.is_silent:
            return
        # The stream leads to /dev/null by now, so that the flush at exit cannot fail a second time.
        if isinstance(error, BrokenPipeError):
            raise ReaderLeft from None
        self._failure = error
        raise OSError(error.errno, f"cannot write standard output: {error.strerror}") from None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def pause(seconds: float) -> None:
    """Wait, unless the reader of standard output leaves meanwhile.

    A verb that follows a quiet sweep writes nothing for hours, and a write alone shows that ``| head -1`` has
    ended. So the pipe itself is watched.

    Raises:
        ReaderLeft: standard output is a pipe or a socket, and nobody reads it any more.
    """
    end_s = time.monotonic() + seconds
    watched = select.poll()
    try:
        watched.register(sys.stdout.fileno(), 0)  # errors are reported without being requested
    except (OSError, ValueError):
        pass  # a notebook's stream has no descriptor
    else:
        if any(flags & select.POLLERR for _, flags in watched.poll(1000 * seconds)):
            raise ReaderLeft
    time.sleep(max(0.0, end_s - time.monotonic()))


def fix_import_paths() -> None:
    """Make the folders of PYTHONPATH absolute, as this interpreter understood them when it started.

    Commands and jobs run in other folders, in which a relative one would name another place.
    """
    if paths := os.environ.get("PYTHONPATH"):
        os.environ["PYTHONPATH"] = os.pathsep.join(map(os.path.abspath, paths.split(os.pathsep)))


def prepare() -> None:
    """Make the standard streams writable, and UTF-8 the encoding of everything else.

    Three things may be inherited wrongly from the process that started this one: an ignored SIGCHLD, closed
    streams, and a locale without UTF-8. While SIGCHLD is ignored, the kernel keeps no exit codes, and every
    program that we start would seem to end with 0. Under a locale without UTF-8, some file names could not be
    decoded, so the process restarts itself with UTF-8.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for number, mode in ((0, os.O_RDONLY), (1, os.O_WRONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:  # closed: the next opened file would get this number, and our output
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
    fix_import_paths()
    os.environ.pop("PYTHONIOENCODING", None)  # meant for the streams here, not for the stages' logs
    os.environ.pop(MARK, None)  # what a stage launches through this command is not part of its attempt
    encoding = os.environ.pop(_TERMINAL, "")
    sys.stdin = sys.stdin or open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stdout = cast(TextIO, Stream(_writable(sys.stdout, 1, encoding), is_silent=False))
    sys.stderr = cast(TextIO, Stream(_writable(sys.stderr, 2, encoding), is_silent=True))


def _writable(stream: TextIO | None, number: int, encoding: str) -> TextIO:
    """Return a stream that replaces characters that its encoding lacks."""
    if stream is None:
        return open(number, "w", encoding="utf-8", errors="replace", closefd=False)
    if hasattr(stream, "reconfigure"):
        stream.reconfigure(encoding=encoding or None, errors="replace")
    return stream


def socket_folder() -> str:
    """Return a folder for sockets with a short path: a socket's path has at most 107 bytes (unix(7))."""
    usual = tempfile.gettempdir()
    if len(os.fsencode(usual)) < 60:
        return usual
    others = ("/tmp", "/var/tmp", "/dev/shm")
    return next((folder for folder in others if os.access(folder, os.W_OK | os.X_OK)), usual)


@contextlib.contextmanager
def short_paths() -> Iterator[None]:
    """Place temporary files, such as the sockets of libraries, in a folder with a short path."""
    before, tempfile.tempdir = tempfile.tempdir, socket_folder()
    try:
        yield
    finally:
        tempfile.tempdir = before


_kept: list[int] = []
"""Copies of descriptor 1 while it leads to standard error."""


@contextlib.contextmanager
def for_people(*, as_json: bool) -> Iterator[None]:
    """Send what is printed meanwhile to standard error, if standard output is for JSON alone.

    Processes that are started meanwhile inherit descriptor 1, so it leads to standard error as well.
    """
    if not as_json:
        yield
        return
    printing = sys.stdout
    printing.flush()
    _kept.append(os.dup(1))
    try:
        os.dup2(2, 1)
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        printing.flush()  # of whoever kept the stream; it is not for standard output either
        give_back_output()
        os.close(_kept.pop())


def give_back_output() -> None:
    """Let descriptor 1 lead to standard output again, for a process that takes the place of this one."""
    if _kept:
        os.dup2(_kept[-1], 1)


def need_output() -> None:
    """Let output that cannot be written be an error again; see `outlive_the_reader`."""
    if isinstance(sys.stdout, Stream):
        sys.stdout.is_silent = False


def outlive_the_reader() -> None:
    """Let a command that runs things continue when its output can no longer be written."""
    if isinstance(sys.stdout, Stream):
        sys.stdout.is_silent = True
    else:
        sys.stdout = cast(TextIO, Stream(sys.stdout, is_silent=True))
