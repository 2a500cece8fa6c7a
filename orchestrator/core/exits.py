"""The cause of a process's failure, by its signal, its exit code and the end of its log. Pure.

Of a log only the last traceback and the last lines count, and only if the process failed: earlier ones were
handled. `orchestrator.core.failure` weighs what a traceback shows.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Sequence
from typing import NamedTuple

from orchestrator.core.failure import Cause, cause_of, cause_of_exception
from orchestrator.core.tracebacks import Raised, exceptions_in, ranked, with_bases


class CommandFailure(NamedTuple):
    """How a command failed.

    Attributes:
        cause: the failure cause.
        exception: the class of its last exception, "" if its log shows none.
        message: one line that describes what happened.
    """

    cause: Cause
    exception: str
    message: str


_SIGNALS = {
    "SIGSEGV": (Cause.UNKNOWN, "it crashed: segmentation fault"),
    "SIGBUS": (Cause.UNKNOWN, "it crashed: bus error, as where /dev/shm is full or a mapped file was cut"),
    "SIGABRT": (Cause.UNKNOWN, "it aborted"),
    "SIGILL": (Cause.UNKNOWN, "it crashed: an instruction that this CPU lacks"),
    "SIGFPE": (Cause.CODE, "it crashed: a division by zero"),
    "SIGXCPU": (Cause.TIMEOUT, "its limit of CPU time is over"),
    "SIGXFSZ": (Cause.STORAGE, "it wrote a file beyond its size limit"),
    "SIGSYS": (Cause.UNKNOWN, "a system call that is not allowed here"),
    "SIGKILL": (Cause.UNKNOWN, "another process ended it; the kernel's out-of-memory killer did not act"),
}
_EXIT_CODES = {
    124: (Cause.TIMEOUT, "the limit that `timeout` sets is over"),
    126: (Cause.CONFIG, "its program cannot be executed"),
    127: (Cause.CONFIG, "its program was not found"),
}
_WRAPPERS = frozenset({"ChildFailedError", "CalledProcessError", "SystemExit", "KeyboardInterrupt"})
"""Exceptions with which a launcher such as torchrun repeats that one of its processes failed."""

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_PRINTED = re.compile(r"((?:[A-Za-z_]\w*\.)*([A-Z]\w*(?:Error|Exception))): (.+)$")
"""An exception that a program caught and printed as its last line, without the traceback."""
_LAST_WORDS = tuple(
    (re.compile(pattern), cause)
    for pattern, cause in (
        (r"terminate called after throwing an instance of '(std::bad_alloc)'", Cause.OOM_HOST),
        (r"(?:(?i:fatal|error)[ :]+)*((?:CUDA|HIP)(?: runtime)?(?: error:)? out of memory.*)", Cause.OOM_GPU),
        (r"(?:[\w./-]+: )+((?:\w+: )*[Cc]annot allocate memory)$", Cause.OOM_HOST),
        (r"(slurmstepd: error: Detected \d+ oom[_-]kill event.*)", Cause.OOM_HOST),
        (r"(?:[\w./-]+: )+(.*No space left on device|.*Disk quota exceeded)$", Cause.STORAGE),
        (r"(?:[\w./-]+: )+(can't open file .*\[Errno 2\].*)$", Cause.CODE),
        (r"(?:[\w./-]+: )*((?:line \d+: )?.*: (?:command )?not found)$", Cause.CONFIG),
        (r"(?:\S*\bpython[\d.]*: )(No module named .*)$", Cause.CODE),
    )
)  # fmt: skip
"""Last lines of programs that are not Python, or whose interpreter did not start."""

_USAGE, _USAGE_ERROR = re.compile(r"usage: ", re.IGNORECASE), re.compile(r"(?:[\w./ -]+: )?((?i:error): .*)")
_WHAT = re.compile(r"\s*what\(\):\s+(.+)")
"""What argparse, click and others print of wrong arguments, and C++ of an exception that nothing caught."""

_NUM_LAST_LINES, _NUM_USAGE_LINES, _NUM_TRACEBACK_LINES = 8, 40, 100
"""How far from the end the reason may stand, in lines. Launchers and trackers print a few lines after it."""


def cause_of_exit(exit_code: int, log: str, *, oom_killed: bool) -> tuple[Cause, str]:
    """Return the cause for a child that left no outcome, and a phrase that describes what happened.

    Args:
        exit_code: as `multiprocessing` returns it; negative for a signal.
        log: the end of its output.
        oom_killed: whether the kernel's OOM killer acted on this machine while the child ran.
    """
    if exit_code >= 0:
        return Cause.UNKNOWN, f"the stage's process exited with code {exit_code} without finishing"
    name = _signal_name(-exit_code)
    # SIGKILL alone proves nothing: a scheduler or a user may have sent it.
    if name == "SIGKILL" and oom_killed:
        return Cause.OOM_HOST, "the stage's process was killed while the kernel was out of memory"
    how = f"the stage's process was killed by {name}"
    lines = [line for line in log.splitlines() if line.strip()]
    if name == "SIGABRT" and (last := _last_words(lines)) is not None:
        return last[0], f"{how}: {last[1]}"
    return Cause.UNKNOWN, how


def cause_of_command(exit_code: int, log: str, *, oom_killed: bool) -> CommandFailure:
    """Return why a command failed, from its signal, its exit code and the end of its log.

    A shell whose program dies of signal n exits with 128 + n. Both forms count alike. The evidence is tried
    in this order: an OOM kill, a traceback, a known last line, a printed exception, the signal or exit code.

    Args:
        exit_code: not 0; negative for a signal.
        log: the end of its output.
        oom_killed: whether the kernel's OOM killer acted on this machine while it ran.
    """
    number = -exit_code if exit_code < 0 else exit_code - 128
    name = _signal_name(number) if 0 < number <= 64 else ""
    how = f"was killed by signal {number} ({name})" if exit_code < 0 else f"exited with code {exit_code}"
    how += f" (128 + {name})" if name and exit_code > 0 else ""
    if name == "SIGKILL" and oom_killed:
        return CommandFailure(Cause.OOM_HOST, "", f"{how} while the kernel was out of memory")
    log = _COLOUR.sub("", log)
    marked = [ranked(line.rstrip()) for line in log.split("\n") if line.strip()]
    lines = [line.removeprefix(rank) for rank, line in marked]
    # A process that a signal killed raised nothing: a traceback in its log was handled before.
    raised = _last_exception(marked, exit_code) if not name and exit_code not in _EXIT_CODES else None
    if raised is not None and raised.classes[0] in _WRAPPERS:
        # What the program itself said stands before the traceback of what had started it.
        start = max(number for number, line in enumerate(lines) if line.startswith("Traceback"))
        if (last := _last_words(lines[:start])) is not None:
            return CommandFailure(last[0], "", f"{how}: {last[1]}")
    if raised is not None:
        name, text = raised.classes[0], raised.text.partition("\n")[0]
        return CommandFailure(cause_of(raised), name, f"{how}: {name}: {text}" if text else f"{how}: {name}")
    # C++ aborts after it prints an uncaught exception, so SIGABRT may have a last line that explains it.
    if (last := _last_words(lines)) is not None and name in ("", "SIGABRT"):
        return CommandFailure(last[0], "", f"{how}: {last[1]}")
    if not name and exit_code not in _EXIT_CODES and (match := _PRINTED.match(lines[-1] if lines else "")):
        cause = cause_of_exception(with_bases(match.group(1)), match.group(3))
        return CommandFailure(cause, match.group(2), f"{how}: {match.group(0)}")
    cause, words = _SIGNALS.get(name) or _EXIT_CODES.get(exit_code) or (Cause.UNKNOWN, "")
    return CommandFailure(cause, "", f"{how}: {words}" if words else how)


def _last_exception(lines: Sequence[tuple[str, str]], exit_code: int) -> Raised | None:
    """Return the exception of the last traceback, or None.

    One failing rank causes more tracebacks, which come after its own and only repeat the failure: the
    launcher's, and the lost connections of other ranks. Such an echo never replaces a traceback found before:

        [rank1]: ValueError: bad sample                    the reason
        [rank0]: RuntimeError: Connection closed by peer   echo: another rank lost its connection
        ChildFailedError: train.py FAILED                  echo: the launcher

    Python exits with code 1 after an exception. After any other exit code, a traceback counts only if it
    stands at the very end of the log.
    """
    found: Raised | None = None
    found_rank = ""
    num_lines = _NUM_TRACEBACK_LINES if exit_code in (1, 120) else _NUM_LAST_LINES
    for number, rank, raised in exceptions_in(lines):
        is_echo = raised.classes[0] in _WRAPPERS or (
            rank != found_rank and cause_of(raised) is Cause.COMMUNICATION
        )
        # Exit code 120 replaces 1 where Python could not flush its output at exit.
        if number >= len(lines) - num_lines and (found is None or not is_echo):
            found, found_rank = raised, rank
    return found


def _last_words(lines: Sequence[str]) -> tuple[Cause, str] | None:
    """Return the cause that the last lines state, and the words that state it."""
    last = lines[-_NUM_LAST_LINES:]
    has_usage = any(_USAGE.match(line) for line in lines[-_NUM_USAGE_LINES:])
    for line in reversed(last):
        if has_usage and (match := _USAGE_ERROR.match(line)):
            return Cause.CONFIG, match.group(1)
        if (match := _WHAT.match(line)) and (
            cause := cause_of_exception(["RuntimeError"], match.group(1))
        ) is not Cause.UNKNOWN:
            return cause, match.group(1)
        for pattern, cause in _LAST_WORDS:
            if match := pattern.match(line.strip()):
                return cause, match.group(1)
    return None


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
