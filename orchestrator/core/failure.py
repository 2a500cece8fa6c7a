"""Why an attempt failed: the causes, and how one is read from an exception, an exit code or the end of a log.

An exception's class decides first. Its message decides only where the class says nothing, as ``RuntimeError``
does, and then by patterns that must match from its beginning: a message may quote the words of another cause.
Of a log only the last traceback and the last lines count, and only for a process that failed.
"""

from __future__ import annotations

import builtins
import re
import signal
from collections.abc import Iterator, Sequence
from enum import StrEnum
from typing import NamedTuple


class Cause(StrEnum):
    """Whose fault a failure is; each cause has its own retry budget in the policy."""

    CONFIG = "config"
    DATA = "data"
    CODE = "code"
    OOM_GPU = "oom_gpu"
    OOM_HOST = "oom_host"
    NAN = "nan"
    TIMEOUT = "timeout"
    PREEMPTED = "preempted"
    NODE_LOST = "node_lost"
    COMMUNICATION = "communication"
    STORAGE = "storage"
    CANCELLED = "cancelled"
    BAD_NODE = "bad_node"
    UNKNOWN = "unknown"


DETERMINISTIC = frozenset({Cause.CONFIG, Cause.DATA, Cause.CODE})
"""Causes that chance does not cure: never retried by themselves, left to `rerun`."""

_BY_TYPE = {
    "MemoryError": Cause.OOM_HOST,
    "FloatingPointError": Cause.NAN,
    "FileNotFoundError": Cause.DATA,
    "IsADirectoryError": Cause.DATA,
    "TimeoutError": Cause.COMMUNICATION,
    "ConnectionError": Cause.COMMUNICATION,
    "DistBackendError": Cause.COMMUNICATION,
    "DistNetworkError": Cause.COMMUNICATION,
    "DistStoreError": Cause.COMMUNICATION,
    "UnicodeDecodeError": Cause.DATA,
    "JSONDecodeError": Cause.DATA,
    "ImportError": Cause.CODE,
    "SyntaxError": Cause.CODE,
    "NameError": Cause.CODE,
    "AttributeError": Cause.CODE,
    "TypeError": Cause.CODE,
    "LookupError": Cause.CODE,
    "NotImplementedError": Cause.CODE,
    "UserError": Cause.CONFIG,
    "InfrastructureError": Cause.STORAGE,
}
"""Classes that decide whatever their message says."""

_BY_MESSAGE = tuple(
    (re.compile(pattern, re.IGNORECASE), cause)
    for pattern, cause in (
        (r"(\w+ error: )?(CUDA|HIP|XPU|MPS)( backend)?( error:)? out of memory", Cause.OOM_GPU),
        (r"CUDA error: CUBLAS_STATUS_ALLOC_FAILED", Cause.OOM_GPU),
        (r"RESOURCE_EXHAUSTED: out of memory", Cause.OOM_GPU),
        (r"(task|actor|worker)\b.* (node|host) (running low on|out of) memory", Cause.OOM_HOST),
        (r"\[enforce fail at \S*alloc_cpu\S*\]|DefaultCPUAllocator: ", Cause.OOM_HOST),
        (r"std::bad_alloc|\[Errno 12\]|(can't|cannot) allocate memory|not enough memory", Cause.OOM_HOST),
        (r"DataLoader worker .*out of shared memory", Cause.OOM_HOST),
        (r"(\[[^\]]*\]:? ?)*(NCCL|nccl[A-Z]\w+|Watchdog caught collective)\b", Cause.COMMUNICATION),
        (r"(\[[^\]]*\]:? ?|[\w .()/-]+: )*Connection (reset|closed) by peer", Cause.COMMUNICATION),
        (r"([^:]+: )*(No space left on device|Disk quota exceeded)", Cause.STORAGE),
        (r"PytorchStreamWriter failed writing", Cause.STORAGE),
        (r"((training|train|validation|eval\w*) )?(loss|gradients?|grad_norm|perplexity)( value)?"
         r"( at \S+( \d+)?)?:? ?(is|are|was|became|=|:) ?(not finite|non-finite|nan|[+-]?inf)\b", Cause.NAN),
        (r"Function '\w+' returned nan values", Cause.NAN),
        (r"(encountered |got )?(a )?(nan|non-finite|inf) (in )?(the )?(loss|gradients?)\b", Cause.NAN),
    )
)  # fmt: skip
"""Beginnings of messages, for classes that say nothing of the cause by themselves."""

_BY_GENERAL_TYPE = {
    "OutOfMemoryError": Cause.OOM_GPU,  # torch's; Ray has one of the host's memory
    "ArithmeticError": Cause.CODE,
    "AssertionError": Cause.CODE,
    "ValueError": Cause.CODE,
    "OSError": Cause.STORAGE,
}
"""Classes that decide where the message does not."""


def cause_of_exception(type_names: Sequence[str], message: str) -> Cause:
    """Returns the cause of an exception.

    Args:
        type_names: the names of its class and its bases, nearest first.
        message: its text.

    A missing input file is `data`; any other refusal of the file system is `storage`.
    """
    for name in type_names:
        if name in _BY_TYPE:
            return _BY_TYPE[name]
    for pattern, cause in _BY_MESSAGE:
        if pattern.match(message.lstrip()):
            return cause
    for name in type_names:
        if name in _BY_GENERAL_TYPE:
            return _BY_GENERAL_TYPE[name]
    return Cause.UNKNOWN


def cause_of_exit(exit_code: int, *, oom_killed: bool) -> tuple[Cause, str]:
    """Returns the cause of a child that left no outcome, and a phrase of what happened.

    Args:
        exit_code: as `multiprocessing` gives it; negative for a signal.
        oom_killed: whether the kernel's OOM killer acted on this machine while the child ran.
    """
    if exit_code >= 0:
        return Cause.UNKNOWN, f"the stage's process exited with code {exit_code} without finishing"
    name = _signal_name(-exit_code)
    if name == "SIGKILL" and oom_killed:
        return Cause.OOM_HOST, "the stage's process was killed while the kernel was out of memory"
    return Cause.UNKNOWN, f"the stage's process was killed by {name}"


class CommandFailure(NamedTuple):
    """How a command failed.

    Attributes:
        cause: of the failure.
        exception: the class of its last exception, "" where its log shows none.
        message: what happened, in one line.
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
"""Exceptions of a launcher such as torchrun, which repeat that a process of theirs failed."""

_RANK = re.compile(r"(\[?(?:rank|default)\s?\d*\]?:\s?)+|\d+: ", re.IGNORECASE)
_BOX = re.compile(r"╭─+ Traceback \(most recent call last\) ─+╮")  # as the library rich draws it
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_EXCEPTION = re.compile(r"((?:[A-Za-z_]\w*\.)*([A-Z_a-z]\w*))(?:: (.*))?$")
_PRINTED = re.compile(r"((?:[A-Za-z_]\w*\.)*([A-Z]\w*(?:Error|Exception))): (.+)$")
"""An exception that a program caught and printed without its traceback, as the last line."""
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
        (r"\S+: (error: (?:unrecognized arguments|the following arguments are required|"
         r"argument \S+: |invalid choice).*)", Cause.CONFIG),
        (r"(?:\S*\bpython[\d.]*: )(No module named .*)$", Cause.CODE),
    )
)  # fmt: skip
"""Last lines of programs that are no Python, or whose interpreter refused to start."""

_NUM_LAST_LINES, _NUM_TRACEBACK_LINES = 8, 100
"""A launcher or tracker may print some lines after the reason, but not many."""


def cause_of_command(exit_code: int, log: str, *, oom_killed: bool) -> CommandFailure:
    """Returns why a command failed: by its signal, its exit code and the end of its log.

    A shell that saw its program die of signal n exits with 128 + n; both forms count alike.

    Args:
        exit_code: not 0; negative for a signal.
        log: the end of what it printed.
        oom_killed: whether the kernel's OOM killer acted on this machine while it ran.
    """
    number = -exit_code if exit_code < 0 else exit_code - 128
    name = _signal_name(number) if 0 < number <= 64 else ""
    how = f"was killed by signal {number} ({name})" if exit_code < 0 else f"exited with code {exit_code}"
    how += f" (128 + {name})" if name and exit_code > 0 else ""
    if name == "SIGKILL" and oom_killed:
        return CommandFailure(Cause.OOM_HOST, "", f"{how} while the kernel was out of memory")
    log = _COLOUR.sub("", log)
    marked = [_marked(line.rstrip()) for line in log.split("\n") if line.strip()]
    lines = [line.removeprefix(rank) for rank, line in marked]
    raised = _last_exception(marked, exit_code) if not name and exit_code not in _EXIT_CODES else None
    if raised is not None:
        names, text = raised
        line = f"{names[0]}: {text}" if text else names[0]
        return CommandFailure(cause_of_exception(names, text), names[0], f"{how}: {line}")
    if (last := _last_words(lines)) is not None and name in ("", "SIGABRT"):
        return CommandFailure(last[0], "", f"{how}: {last[1]}")
    if not name and exit_code not in _EXIT_CODES and (match := _PRINTED.match(lines[-1] if lines else "")):
        names = _bases(match.group(2))
        return CommandFailure(cause_of_exception(names, match.group(3)), names[0], f"{how}: {match.group(0)}")
    cause, words = _SIGNALS.get(name) or _EXIT_CODES.get(exit_code) or (Cause.UNKNOWN, "")
    return CommandFailure(cause, "", f"{how}: {words}" if words else how)


def _last_exception(lines: Sequence[tuple[str, str]], exit_code: int) -> tuple[tuple[str, ...], str] | None:
    """Returns (class and bases by name, message) of the last traceback.

    A launcher's own is passed over where it follows that of the process that failed, and so is a peer's which
    lost the connection to it, where lines are marked with the rank that wrote them. Python exits with code
    1; after any other code only a traceback at the very end is taken for the reason.
    """
    found: tuple[tuple[str, ...], str] | None = None
    found_rank = ""
    num_lines = _NUM_TRACEBACK_LINES if exit_code in (1, 120) else _NUM_LAST_LINES
    for number, rank, names, text in sorted(_exceptions(lines)):
        is_echo = names[0] in _WRAPPERS or (
            rank != found_rank and cause_of_exception(names, text) is Cause.COMMUNICATION
        )
        if number >= len(lines) - num_lines and (found is None or not is_echo):
            found, found_rank = (names, text), rank
    return found


def _marked(line: str) -> tuple[str, str]:
    """Returns a line and the rank before it, as torch and launchers mark it, "" without one."""
    match = _RANK.match(line)
    return (match.group() if match else "", line)


def _exceptions(lines: Sequence[tuple[str, str]]) -> Iterator[tuple[int, str, tuple[str, ...], str]]:
    """Yields the end of each traceback: the number of its line, its rank, the class with its bases, the
    message.

    Lines of several ranks may stand between one another.
    """
    inside: set[str] = set()
    for number, (rank, marked) in enumerate(lines):
        line = marked.removeprefix(rank)
        if line.startswith(("Traceback (most recent call last):", '  File "')) or _BOX.match(line):
            inside.add(rank)  # a syntax error of the program itself has no heading
        elif rank in inside and line and not (line[0].isspace() or line[0] in "│╰"):
            inside.remove(rank)
            if match := _EXCEPTION.match(line):
                yield number, rank, _bases(match.group(2)), (match.group(3) or "").strip()


def _bases(name: str) -> tuple[str, ...]:
    """Returns a class's name and those of its bases, as far as Python's own classes tell them."""
    kind = getattr(builtins, name, None)
    if isinstance(kind, type):
        return tuple(base.__name__ for base in kind.__mro__)
    known = next((known for known in ("MemoryError", "TimeoutError") if name.endswith(f"Array{known}")), "")
    return (name, known) if known else (name,)


def _last_words(lines: Sequence[str]) -> tuple[Cause, str] | None:
    for line in reversed(lines[-_NUM_LAST_LINES:]):
        for pattern, cause in _LAST_WORDS:
            if match := pattern.match(line.strip()):
                return cause, match.group(1)
    return None


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
