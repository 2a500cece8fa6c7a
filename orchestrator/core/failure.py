"""Failure causes, and how to find the cause in an exception, an exit code or a log. Pure.

The class of an exception decides first. The message decides only for general classes such as
``RuntimeError``. Its patterns must match from the beginning, because a message may quote the words of
another cause. Of a log only the last traceback and the last lines count, and only if the process failed.

Example: ``RuntimeError: CUDA out of memory. Tried to allocate ...`` is `oom_gpu`. The class decides nothing,
and the message begins as torch writes it. ``ValueError: cannot parse 'CUDA out of memory'`` is `code`.
"""

from __future__ import annotations

import builtins
import re
import signal
from collections.abc import Iterator, Sequence
from enum import StrEnum
from typing import NamedTuple


class Cause(StrEnum):
    """The kind of a failure. Each cause has its own retry budget in the policy."""

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
"""Causes that would probably recur. A launch gives them no fresh retry budget; `sweep rerun` does."""

PASSING = frozenset(map(Cause, ("preempted", "node_lost", "communication", "storage", "bad_node", "unknown")))
"""Causes that come from outside, or that nobody knows. They end no stage that advances."""

_CLASSES = {
    Cause.OOM_HOST: "MemoryError",
    Cause.NAN: "FloatingPointError",
    Cause.DATA: """
        FileNotFoundError IsADirectoryError UnicodeDecodeError JSONDecodeError BadZipFile
        BadGzipFile UnpicklingError ArrowInvalid ParserError EmptyDataError DatasetGenerationError
        DataFilesNotFoundError UnidentifiedImageError
    """,
    Cause.COMMUNICATION: """
        TimeoutError ConnectionError DistBackendError DistNetworkError DistStoreError gaierror
        herror URLError SSLError ConnectError ConnectTimeout ReadTimeout WriteTimeout PoolTimeout
        ReadError RemoteProtocolError IncompleteRead ProtocolError MaxRetryError NewConnectionError
        NameResolutionError ChunkedEncodingError EndpointConnectionError LocalEntryNotFoundError
        ServerDisconnectedError APIConnectionError APITimeoutError
    """,
    Cause.CODE: """
        ImportError SyntaxError NameError AttributeError TypeError LookupError NotImplementedError
        RecursionError ConfigAttributeError ConfigKeyError
    """,
    Cause.CONFIG: "MissingMandatoryValue InterpolationKeyError InterpolationResolutionError UserError",
    Cause.STORAGE: "InfrastructureError",
}
_BY_TYPE = {name: cause for cause, names in _CLASSES.items() for name in names.split()}
"""Classes that decide, whatever their message."""

_STATUS = re.compile(r"(?:HTTP Error |(?:Client|Server) error '?|)(?P<status>[45]\d\d)\b", re.IGNORECASE)
"""The HTTP status with which the messages of urllib, requests, httpx and huggingface_hub begin."""

_PASSING = frozenset({"408", "425", "429"})
"""Statuses that ask for another try. The others from 400 to 499 are answers to a wrong request."""

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
        (r"\[\S*/gloo/transport/\S+\] ", Cause.COMMUNICATION),
        (r"([^:]+: )*(No space left on device|Disk quota exceeded)", Cause.STORAGE),
        (r"PytorchStreamWriter failed writing", Cause.STORAGE),
        (r"((training|train|validation|eval\w*) )?(loss|gradients?|grad_norm|perplexity)( value)?"
         r"( at \S+( \d+)?)?:? ?(is|are|was|became|=|:) ?(not finite|non-finite|nan|[+-]?inf)\b", Cause.NAN),
        (r"Function '\w+' returned nan values", Cause.NAN),
        (r"(CUDA error: )?(uncorrectable|hardware stack|CUDA-capable device\S* is/are busy|no CUDA-capable|"
         r"system not yet init|driver shutting|initialization error|unknown error)\b", Cause.BAD_NODE),
        (r"Unexpected error from cudaGetDeviceCount|CUDA (driver )?initialization( failed|:)|"
         r"(Failed to initialize )?NVML: |No CUDA GPUs are available", Cause.BAD_NODE),
        (r"(\[Errno (98|100|101|103|104|110|111|112|113)\]|<urlopen error|We couldn't connect to)",
         Cause.COMMUNICATION),
        (r"\[Errno 8\]|Can't load |Couldn't instantiate the backend|\S+ is not a local folder|"
         r"\S+ does not appear to have a file named", Cause.CONFIG),
        (r"\[Errno (7|36)\]", Cause.CODE),
        (r"\[enforce fail at inline_container|(disk I/O error|database or disk is full|database is locked)$",
         Cause.STORAGE),
        (r"Error while serializing: .*(code: 28|No space left)", Cause.STORAGE),
        (r"Error while deserializing|Compressed file ended|Ran out of input|field larger than field limit|"
         r"line contains NUL|PytorchStreamReader failed|Unable to load weights|invalid load key", Cause.DATA),
        (r"mat1 |(the )?(expanded )?sizes? of |size mismatch|shape '|(expected|given|input type) "
         r"|dimension out |stack expects|tensors? must |tensors? used as ind|both arguments", Cause.CODE),
        (r"error\(s\) in loading state_dict|element \d+ of tensors|trying to backward|boolean value of"
         r"|one of the variables needed|a leaf variable|CUDA error: device-side assert"
         r"|\W\w+\W not implemented for", Cause.CODE),
        (r"(encountered |got )?(a )?(nan|non-finite|inf) (in )?(the )?(loss|gradients?)\b", Cause.NAN),
    )
)  # fmt: skip
"""Patterns for the beginning of messages, for classes that do not identify the cause."""

_BY_GENERAL_TYPE = {
    "OutOfMemoryError": Cause.OOM_GPU,  # torch's; Ray's means host memory and matches by message
    "ArithmeticError": Cause.CODE,
    "AssertionError": Cause.CODE,
    "ValueError": Cause.CODE,
    "OSError": Cause.STORAGE,
}
"""Classes that decide if no message pattern matches."""


def cause_of_exception(type_names: Sequence[str], message: str) -> Cause:
    """Return the cause of an exception.

    A missing input file is `data`. Any other error of the file system is `storage`.

    Args:
        type_names: the names of its class and base classes, nearest first.
        message: its text.
    """
    if any("HTTP" in name for name in type_names) and (match := _STATUS.match(message)):
        is_wrong = match["status"] < "500" and match["status"] not in _PASSING
        return Cause.CONFIG if is_wrong else Cause.COMMUNICATION
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
    """Return the cause for a child that left no outcome, and a phrase that describes what happened.

    Args:
        exit_code: as `multiprocessing` returns it; negative for a signal.
        oom_killed: whether the kernel's OOM killer acted on this machine while the child ran.
    """
    if exit_code >= 0:
        return Cause.UNKNOWN, f"the stage's process exited with code {exit_code} without finishing"
    name = _signal_name(-exit_code)
    # SIGKILL alone proves nothing: a scheduler or a user may have sent it.
    if name == "SIGKILL" and oom_killed:
        return Cause.OOM_HOST, "the stage's process was killed while the kernel was out of memory"
    return Cause.UNKNOWN, f"the stage's process was killed by {name}"


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

_RANK = re.compile(r"(\[?(?:rank|default)\s?\d*\]?:\s?)+|\d+: ", re.IGNORECASE)
_BOX = re.compile(r"╭─+ Traceback \(most recent call last\) ─+╮")  # the heading that the library rich draws
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_EXCEPTION = re.compile(r"((?:[A-Za-z_]\w*\.)*([A-Z_a-z]\w*))(?:: (.*))?$")
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
        (r"\S+: (error: (?:unrecognized arguments|the following arguments are required|"
         r"argument \S+: |invalid choice).*)", Cause.CONFIG),
        (r"(?:\S*\bpython[\d.]*: )(No module named .*)$", Cause.CODE),
    )
)  # fmt: skip
"""Last lines of programs that are not Python, or whose interpreter did not start."""

_NUM_LAST_LINES, _NUM_TRACEBACK_LINES = 8, 100
"""How far from the end the reason may stand, in lines. Launchers and trackers print a few lines after it."""


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
    marked = [_marked(line.rstrip()) for line in log.split("\n") if line.strip()]
    lines = [line.removeprefix(rank) for rank, line in marked]
    # A process that a signal killed raised nothing: a traceback in its log was handled before.
    raised = _last_exception(marked, exit_code) if not name and exit_code not in _EXIT_CODES else None
    if raised is not None and raised[0][0] in _WRAPPERS:
        # What the program itself said stands before the traceback of what had started it.
        start = max(number for number, line in enumerate(lines) if line.startswith("Traceback"))
        if (last := _last_words(lines[:start])) is not None:
            return CommandFailure(last[0], "", f"{how}: {last[1]}")
    if raised is not None:
        names, text = raised
        line = f"{names[0]}: {text}" if text else names[0]
        return CommandFailure(cause_of_exception(names, text), names[0], f"{how}: {line}")
    # C++ aborts after it prints an uncaught exception, so SIGABRT may have a last line that explains it.
    if (last := _last_words(lines)) is not None and name in ("", "SIGABRT"):
        return CommandFailure(last[0], "", f"{how}: {last[1]}")
    if not name and exit_code not in _EXIT_CODES and (match := _PRINTED.match(lines[-1] if lines else "")):
        names = _bases(match.group(2))
        return CommandFailure(cause_of_exception(names, match.group(3)), names[0], f"{how}: {match.group(0)}")
    cause, words = _SIGNALS.get(name) or _EXIT_CODES.get(exit_code) or (Cause.UNKNOWN, "")
    return CommandFailure(cause, "", f"{how}: {words}" if words else how)


def _last_exception(lines: Sequence[tuple[str, str]], exit_code: int) -> tuple[tuple[str, ...], str] | None:
    """Return (names of the class and its bases, message) of the last traceback, or None.

    One failing rank causes more tracebacks, which come after its own and only repeat the failure: the
    launcher's, and the lost connections of other ranks. Such an echo never replaces a traceback found before:

        [rank1]: ValueError: bad sample                    the reason
        [rank0]: RuntimeError: Connection closed by peer   echo: another rank lost its connection
        ChildFailedError: train.py FAILED                  echo: the launcher

    Python exits with code 1 after an exception. After any other exit code, a traceback counts only if it
    stands at the very end of the log.
    """
    found: tuple[tuple[str, ...], str] | None = None
    found_rank = ""
    num_lines = _NUM_TRACEBACK_LINES if exit_code in (1, 120) else _NUM_LAST_LINES
    for number, rank, names, text in sorted(_exceptions(lines)):
        is_echo = names[0] in _WRAPPERS or (
            rank != found_rank and cause_of_exception(names, text) is Cause.COMMUNICATION
        )
        # Exit code 120 replaces 1 where Python could not flush its output at exit.
        if number >= len(lines) - num_lines and (found is None or not is_echo):
            found, found_rank = (names, text), rank
    return found


def _marked(line: str) -> tuple[str, str]:
    """Return a line and the rank mark before it, as torch and launchers write it; "" without one."""
    match = _RANK.match(line)
    return (match.group() if match else "", line)


def _exceptions(lines: Sequence[tuple[str, str]]) -> Iterator[tuple[int, str, tuple[str, ...], str]]:
    """Yield the end of each traceback: line number, rank mark, names of the class and its bases, message.

    The lines of several ranks may alternate, so each rank's traceback is followed separately.
    """
    inside: set[str] = set()
    for number, (rank, marked) in enumerate(lines):
        line = marked.removeprefix(rank)
        if line.startswith(("Traceback (most recent call last):", '  File "')) or _BOX.match(line):
            # A syntax error in the program's own file has no heading, only the line `File "..."`.
            inside.add(rank)
        elif rank in inside and line and not (line[0].isspace() or line[0] in "│╰"):
            inside.remove(rank)
            if match := _EXCEPTION.match(line):
                yield number, rank, _bases(match.group(2)), (match.group(3) or "").strip()


def _bases(name: str) -> tuple[str, ...]:
    """Return the names of a class and its base classes, as far as Python's builtins define them."""
    kind = getattr(builtins, name, None)
    if isinstance(kind, type):
        return tuple(base.__name__ for base in kind.__mro__)
    # numpy raises _ArrayMemoryError, its own subclass of MemoryError.
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
