"""The cause of a process's failure, by its signal, its exit code and the end of its log. Pure.

Of a log only the last traceback and the last lines count, and only if the process failed: earlier ones were
handled. What Python prints beside it, as for an exception in ``__del__``, never replaces it.
`orchestrator.core.failure` weighs what a traceback shows.
"""

from __future__ import annotations

import errno
import re
import signal
from collections.abc import Sequence
from typing import NamedTuple

from orchestrator.core.failure import DETERMINISTIC, OF_MACHINES, Cause, cause_of, cause_of_exception
from orchestrator.core.tracebacks import Raised, Shown, exceptions_in, marked, with_bases


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
_NOT_RUN = re.compile(
    r".*(not found|No such file|Permission denied|Is a directory|Exec format|cannot execute)"
)
"""What shells print of a program that they cannot run. Codes 126 and 127 alone may come from a machine."""

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
        (r"(?:[\w./-]+: )+(.*(?:No space left on device|Disk quota exceeded|Stale file handle"
         r"|Input/output error|Read-only file system|[Tt]ransport endpoint (?:is not connected|shutdown)))$",
         Cause.STORAGE),
        (r"(?:\S+: )*(error while loading shared libraries: "
         r"lib(?:cuda|nvidia-[\w-]+|amdhip64|hsa-runtime64|ze_loader)\.so.*)", Cause.BAD_NODE),
        (r"(?:\S+: )*(error while loading shared libraries: .*)", Cause.UNKNOWN),
        (r"(?:[\w./-]+: )+(can't open file .*\[Errno 2\].*)$", Cause.CODE),
        (r"(?:\S*\bpython[\d.]*: )(No module named .*)$", Cause.CODE),
        (r"(memory allocation of \d+ bytes failed)$", Cause.OOM_HOST),
        (r"(curl: \((?:5|6|7|16|18|28|35|52|55|56|92)\) .*)", Cause.COMMUNICATION),
        (r"(?:[\w./-]+: )+(.*(?:Temporary failure in name resolution|Name or service not known))$",
         Cause.COMMUNICATION),
    )
)  # fmt: skip
"""Last lines of programs that are not Python, or whose interpreter did not start."""

_MISSING = re.compile(r"(?:[\w./-]+: )*((?:line \d+: )?.*: (?:command )?not found)$")
"""What a shell prints of a program that is not there. It goes on, so only the last line is the reason."""

_USAGE, _USAGE_ERROR = re.compile(r"usage: ", re.IGNORECASE), re.compile(r"(?:[\w./ -]+: )?((?i:error): .*)")
_USAGE_CODE, _OTHER_STATUS = 2, re.compile(r".*exit status (?!2\b)")
"""What argparse, click and others print of wrong arguments, their exit code, and what shows another one."""

_NOT_RUN_CODES, _NOT_RUN_STATUS = (126, 127), re.compile(r"exit (?:status|code) 12[67]\b")
"""Exit codes by which shells report a program that cannot be run, and how Python's errors name them."""

_REPORTS = tuple(
    (re.compile(heading), re.compile(certain, re.MULTILINE), module, re.compile(mistakes))
    for heading, certain, module, mistakes in (
        # C++: the message follows in the next line
        (r"terminate called after throwing an instance of '(?P<name>[\w:]+)", r"^", "",
         r"std::(out_of_range|length_error|logic_error|bad_(\w*cast|typeid|\w+_access|function_call))\b"),
        # Rust: the message follows in the next line since 1.73
        (r"thread 'main' (?:\(\d+\) )?panicked at (?:'(?P<text>.*)', )?[^\s']+:\d+:\d+:?$", r"^", "",
         r".*?\b(index out of bounds|range (start|end) index|attempt to (add|subtract|multiply|divide"
         r"|negate|shift|calculate)|on a `None`|assertion|not (yet )?implemented|entered unreachable code"
         r"|already (mutably )?borrowed)"),
        # Julia: a stack trace follows
        (r"ERROR: (?:LoadError: |InitError: )*(?:(?P<name>[A-Z]\w*(?:Error|Exception|Mismatch))\b(?:\(.*\))?"
         r"(?:: |$))?(?P<text>.*)", r"^Stacktrace:", "julia.",
         r"julia\.(UndefVar|Method|Bounds|UndefRef|UndefKeyword|Inexact|StackOverflow|Divide|Field)Error"
         r"|julia\.DimensionMismatch"),
        # R: warnings may follow, which name the reason
        (r"Error(?: in .+?)? ?: ?(?P<text>.*)", r"^Execution halted", "",
         r".*(object '.*' not found|could not find function|subscript out of bounds|unused argument"
         r"|argument .* is missing|non-numeric argument|non-conformable|undefined columns"
         r"|there is no package called)"),
        # pytest: the summary of its tests
        (r"(?:FAILED|ERROR) \S+::.*? - (?:(?P<name>(?:[A-Za-z_]\w*\.)*[A-Z]\w*): )?(?P<text>.*)",
         r"^(?:=+ )?.*\d+ (?:failed|errors?)\b.* in [\d.]+s", "", r"assert "),
        # Java
        (r'Exception in thread "main" (?P<name>[\w.$]+)(?:: (?P<text>.*))?$', r"^", "",
         r"java\.lang\.(NullPointer|ClassCast|Arithmetic|NegativeArraySize|ClassNotFound|\w*IndexOutOfBounds)"
         r"Exception|java\.lang\.(NoClassDefFound|NoSuch\w+|StackOverflow|Assertion)Error"),
    )
)  # fmt: skip
"""How other languages report an error that nothing caught: the report's first line, what it must contain, the
module of the class, and which errors are mistakes in the program."""

_WHAT = re.compile(r"\s*what\(\):\s+")
"""What C++ prints before the message of an exception."""

_SYSTEM_ERRORS = {
    errno.ENOENT: "No such file or directory", errno.EISDIR: "Is a directory",
    errno.ENOTDIR: "Not a directory", errno.ENOMEM: "Cannot allocate memory",
    errno.EIO: "Input/output error", errno.ENOSPC: "No space left on device",
    errno.EROFS: "Read-only file system", errno.ESTALE: "Stale file handle",
    errno.EDQUOT: "Disk quota exceeded", errno.EFBIG: "File too large",
    errno.ECONNREFUSED: "Connection refused", errno.ECONNRESET: "Connection reset by peer",
    errno.ECONNABORTED: "Software caused connection abort", errno.ETIMEDOUT: "Connection timed out",
    errno.EHOSTUNREACH: "No route to host", errno.EHOSTDOWN: "Host is down",
    errno.ENETUNREACH: "Network is unreachable",
}  # fmt: skip
_SYSTEM = re.compile(
    "|".join(rf"(?P<E{code}>{words}|\b{errno.errorcode[code]}\b)" for code, words in _SYSTEM_ERRORS.items()),
    re.IGNORECASE,
)
"""System errors that show a cause, by the system's words and by their names: all languages print these."""
_NODES = r"shared object|\.so\b|\bsocket|\.sock\b|\bconnect\b|\bdial\b|(?<![\w.])/(dev|proc|sys|run|var/run)/"
_OF_NODE = re.compile(_NODES)
"""What a node or a service lacks, where the system's words are those of a missing file."""
_OF_PROGRAM = re.compile(r"(?!.*(?:line \d+: |run command|exec))(?:[\w./-]+: )+(.*)$")
"""A program's line about what it worked on; not a shell's, which goes on, nor about a missing program."""

_NUM_LAST_LINES, _NUM_USAGE_LINES, _NUM_TRACEBACK_LINES, _NUM_TEXT_LINES = 8, 40, 100, 8
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
    if name != "SIGABRT":
        return Cause.UNKNOWN, how
    lines = [marked(line).text for line in log.splitlines() if line.strip()]
    last = _last_words(lines, may_be_usage=False)
    return (last[0], f"{how}: {last[1]}") if last is not None else (Cause.UNKNOWN, how)


def cause_of_command(exit_code: int, log: str, *, oom_killed: bool) -> CommandFailure:
    """Return why a command failed, from its signal, its exit code and the end of its log.

    A shell whose program dies of signal n exits with 128 + n. Both forms count alike. The evidence is tried
    in this order: an OOM kill, a traceback, a known last line, a printed exception, the traceback of a
    thread, the signal or exit code. A machine's fault that a line after the traceback states counts more than
    an exception of the user's.

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
    try:
        return _judged(exit_code, name, how, _COLOUR.sub("", log))
    except Exception as fault:  # noqa: BLE001 - a log may hold anything; its user is not to blame for our fault
        return CommandFailure(Cause.UNKNOWN, "", f"{how}: its log cannot be judged ({type(fault).__name__})")


def _judged(exit_code: int, name: str, how: str, log: str) -> CommandFailure:
    """Return why a command failed by its log, and if that shows nothing, by its signal or exit code.

    Args:
        exit_code, log: of the command.
        name: of the signal that ended it, "" without one.
        how: the beginning of the message.
    """
    of_log = [marked(line.rstrip()) for line in log.split("\n") if line.strip()]
    lines = [line.text for line in of_log]
    shown = exceptions_in(of_log)
    # A process that a signal killed raised nothing: a traceback in its log was handled before.
    may_have_raised = not name and exit_code not in _EXIT_CODES
    found = _last_exception(shown, len(lines), exit_code) if may_have_raised else None
    if found is not None and not found.side:
        last = _words_beside(found, lines, shown[-1].line + 1)
        return _as_failure(found, how) if last is None else CommandFailure(last[0], "", f"{how}: {last[1]}")
    # C++ aborts after it prints an uncaught exception, so SIGABRT may have a last line that explains it.
    how_it_ended = {"may_be_usage": exit_code == _USAGE_CODE, "is_missing": exit_code in _NOT_RUN_CODES}
    last = _last_words(lines, **how_it_ended) if name in ("", "SIGABRT") else None
    if last is not None:
        return CommandFailure(last[0], "", f"{how}: {last[1]}")
    is_printed = may_have_raised and bool(lines) and not (shown and shown[-1].line == len(lines) - 1)
    if is_printed and (match := _PRINTED.match(lines[-1])):
        cause = cause_of_exception(with_bases(match.group(1)), match.group(3))
        return CommandFailure(cause, match.group(2), f"{how}: {match.group(0)}")
    if found is not None:
        return _as_failure(found, how)
    cause, words = _SIGNALS.get(name) or _EXIT_CODES.get(exit_code) or (Cause.UNKNOWN, "")
    if cause is Cause.CONFIG and lines and not any(map(_NOT_RUN.match, lines[-_NUM_LAST_LINES:])):
        return CommandFailure(Cause.UNKNOWN, "", how)
    return CommandFailure(cause, "", f"{how}: {words}" if words else how)


def cause_of_raised(raised: Raised, log: str) -> Cause:
    """Return the cause of an exception that ended a stage; of a program that it started, by the log's end.

    Args:
        raised: the exception.
        log: the end of the stage's output, with the exception's traceback unless it is a `SystemExit`.
    """
    cause = cause_of(raised)
    if cause is not Cause.UNKNOWN or raised.classes[0] not in _WRAPPERS:
        return cause
    code = int(raised.text) if raised.text.isdecimal() else 1
    if raised.classes[0] == "SystemExit":  # a traceback with more than its message after it was handled
        lines = [line for line in _COLOUR.sub("", log).split("\n") if line.strip()]
        own = [] if raised.text.lstrip("-").isdecimal() else [*filter(str.strip, raised.text.split("\n"))]
        end = max((each.line + 1 for each in exceptions_in([*map(marked, lines)])), default=len(lines))
        whole = cause_of_command(code, log, oom_killed=False).cause
        # Launchers and trackers print after the reason too: what a machine lacked counts in any place.
        if end < len(lines) - len(own) and (own or whole in (Cause.CONFIG, Cause.DATA, Cause.CODE)):
            log = "\n".join(lines[end:])
    return cause_of_command(code, log, oom_killed=False).cause if code else cause


def _as_failure(shown: Shown, how: str) -> CommandFailure:
    first = shown.raised.first  # the name of a group reveals nothing
    name, text = first.classes[0], first.text.partition("\n")[0]
    message = f"{how}: {name}: {text}" if text else f"{how}: {name}"
    return CommandFailure(cause_of(shown.raised), name, message)


def _words_beside(found: Shown, lines: Sequence[str], end: int) -> tuple[Cause, str] | None:
    """Return the cause that lines beside a traceback state, and the words, if they count more than it.

    Args:
        found: the exception.
        lines: of the log.
        end: number of the first line after all tracebacks.
    """
    raised = found.raised
    if raised.classes[0] in _WRAPPERS:
        # What the program itself printed stands before the traceback of what had started it.
        begun = "Traceback (most recent call last)"
        starts = (number for number, line in enumerate(lines[: found.line]) if begun in line)
        before = lines[: max(starts, default=found.line)]
        is_missing = _NOT_RUN_STATUS.search(raised.text) is not None
        return _last_words(before, may_be_usage=not _OTHER_STATUS.match(raised.text), is_missing=is_missing)
    last = _last_words(lines[end:], may_be_usage=False)
    is_weaker = cause_of(raised) in DETERMINISTIC | {Cause.UNKNOWN}
    return last if last is not None and last[0] in OF_MACHINES and is_weaker else None


def _last_exception(shown: Sequence[Shown], num_lines: int, exit_code: int) -> Shown | None:
    """Return the exception of the last traceback, or None.

    One failing rank causes more tracebacks, which come after its own and only repeat the failure: the
    launcher's, and the lost connections of other ranks. Such an echo never replaces a traceback found before,
    and neither does an exception of a thread:

        [rank1]: ValueError: bad sample                    the reason
        [rank0]: RuntimeError: Connection closed by peer   echo: another rank lost its connection
        ChildFailedError: train.py FAILED                  echo: the launcher

    Python exits with code 1 after an exception. After any other exit code, a traceback counts only if it
    stands at the very end of the log. What Python prints and ignores never counts.

    Args:
        shown: all exceptions of the log.
        num_lines: of the log.
        exit_code: of the process.
    """
    found: Shown | None = None
    # Exit code 120 replaces 1 where Python could not flush its output at exit.
    num_counted = _NUM_TRACEBACK_LINES if exit_code in (1, 120) else _NUM_LAST_LINES
    for each in shown:
        if each.side == "ignored" or each.line < num_lines - num_counted:
            continue
        is_echo = each.raised.classes[0] in _WRAPPERS or (
            found is not None and each.rank != found.rank and cause_of(each.raised) is Cause.COMMUNICATION
        )
        if found is None or (not each.side and (found.side or not is_echo)):
            found = each
    return found


def _last_words(
    lines: Sequence[str], *, may_be_usage: bool, is_missing: bool = False
) -> tuple[Cause, str] | None:
    """Return the cause that the last lines state, and the words that state it.

    Args:
        lines: of the log.
        may_be_usage: whether the program may have ended because of wrong arguments.
        is_missing: whether a shell reported by its exit code that a program cannot be run.
    """
    if (reported := _reported(lines)) is not None:
        return reported
    has_usage = may_be_usage and any(map(_USAGE.match, lines[-_NUM_USAGE_LINES:]))
    for line in reversed(lines[-_NUM_LAST_LINES:]):
        is_last = line is lines[-1]
        found = ((cause, words.match(line.strip())) for words, cause in _LAST_WORDS)
        known = next(((cause, match.group(1)) for cause, match in found if match), None)
        if known is None and (is_missing or is_last) and (match := _MISSING.match(line.strip())):
            known = Cause.CONFIG, match.group(1)
        is_usage = has_usage and (known is None or known[0] not in OF_MACHINES)
        if is_usage and (match := _USAGE_ERROR.match(line)):
            return Cause.CONFIG, match.group(1)
        if known is None and is_last and not is_missing and (match := _OF_PROGRAM.match(line.strip())):
            cause = _of_system(match.group(1))
            known = None if cause is Cause.UNKNOWN else (cause, match.group(1))
        if known is not None:
            return known
    return None


def _reported(lines: Sequence[str]) -> tuple[Cause, str] | None:
    """Return the cause of the last error that a program in another language reported, and its message."""
    for number in range(len(lines) - 1, max(-1, len(lines) - 1 - _NUM_TRACEBACK_LINES), -1):
        for heading, certain, module, mistakes in _REPORTS:
            match = heading.match(lines[number])
            if match is None or not certain.search("\n".join(lines[number:])):
                continue
            told = match.groupdict()
            rest = [_WHAT.sub("", line).strip() for line in lines[number + 1 :][:_NUM_TEXT_LINES]]
            name, text = module + (told.get("name") or "Error"), told.get("text") or " ".join(rest[:1])
            cause = _of_report(name, text, "\n".join((text, *rest)), mistakes)
            return None if cause is Cause.UNKNOWN else (cause, text or name)
    return None


def _of_report(name: str, text: str, whole: str, mistakes: re.Pattern[str]) -> Cause:
    """Return the cause of an error of another language.

    Args:
        name: of its class.
        text: its message.
        whole: the message and the lines after it.
        mistakes: classes and messages of mistakes in the program.
    """
    cause = cause_of_exception((*with_bases(name.replace("::", ".")), "RuntimeError"), text)
    if cause not in DETERMINISTIC | {Cause.UNKNOWN}:
        return cause
    of_system = _of_system(whole)
    if of_system in OF_MACHINES or cause is not Cause.UNKNOWN:
        return of_system if of_system in OF_MACHINES else cause
    return Cause.CODE if mistakes.match(name) or mistakes.match(text) else of_system


def _of_system(text: str) -> Cause:
    """Return the cause that a system error in a message shows, as the exception of Python for it does."""
    match = _SYSTEM.search(text)
    if match is None or match.lastgroup is None:
        return Cause.UNKNOWN
    number = int(match.lastgroup[1:])
    if number == errno.ENOENT and _OF_NODE.search(text):
        return Cause.UNKNOWN
    names = [base.__name__ for base in type(OSError(number, "")).__mro__]
    return cause_of_exception(names, f"[Errno {number}] {text}")


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
