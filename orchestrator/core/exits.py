"""The cause of a process's failure, by its signal, its exit code and the end of its log. Pure.

Of a log only the last traceback and the last lines count, and only if the process failed: earlier ones were
handled. What Python prints beside it, as for an exception in ``__del__``, never replaces it.
`orchestrator.core.causes` weighs what a traceback shows.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import NamedTuple

from orchestrator.core import patterns
from orchestrator.core.causes import cause_of, cause_of_exception
from orchestrator.core.failure import DETERMINISTIC, OF_MACHINES, Cause
from orchestrator.core.patterns import lazily
from orchestrator.core.tracebacks import HEADING, Line, Raised, Shown, exceptions_in, lines_of, with_bases
from orchestrator.core.words import DATA, of_driver, of_phrases, of_system, of_words, unquoted


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


_SIGNALS = {name: (Cause(cause), words) for name, (cause, words) in patterns.SIGNALS.items()}
_EXIT_CODES = {code: (Cause(cause), words) for code, (cause, words) in patterns.EXIT_CODES.items()}
_WRAPPERS = frozenset({"ChildFailedError", "CalledProcessError", "SystemExit", "KeyboardInterrupt"})
"""Exceptions with which a launcher such as torchrun repeats that one of its processes failed."""

_LAST_WORDS = tuple((lazily(pattern), Cause(cause)) for pattern, cause in patterns.LAST_WORDS)
_KILLED = tuple((lazily(pattern), Cause(cause)) for pattern, cause in patterns.KILLED)
_REPORTS = tuple(
    (lazily(heading), lazily(certain), module, lazily(mistakes))
    for heading, certain, module, mistakes in patterns.REPORTS
)
"""The tables of `orchestrator.core.patterns`, compiled."""

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
    lines = [line.text for line in lines_of(log)]
    last = _last_words(lines, may_be_usage=False) if name == "SIGABRT" else _killed(lines)
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
        return _judged(exit_code, name, how, lines_of(log))
    except Exception as fault:  # noqa: BLE001 - a log may hold anything; its user is not to blame for our fault
        return CommandFailure(Cause.UNKNOWN, "", f"{how}: its log cannot be judged ({type(fault).__name__})")


def _judged(exit_code: int, name: str, how: str, of_log: Sequence[Line]) -> CommandFailure:
    """Return why a command failed by its log, and if that shows nothing, by its signal or exit code.

    Args:
        exit_code: of the command.
        name: of the signal that ended it, "" without one.
        how: the beginning of the message.
        of_log: the lines of its log.
    """
    lines = [line.text for line in of_log]
    shown = exceptions_in(of_log)
    # A process that a signal killed raised nothing: a traceback in its log was handled before.
    may_have_raised = not name and exit_code not in _EXIT_CODES
    found = _last_exception(shown, len(lines), exit_code) if may_have_raised else None
    if found is not None and not found.side:
        last = _words_beside(found, lines, shown[-1].line + 1)
        return _as_failure(found, how) if last is None else CommandFailure(last[0], "", f"{how}: {last[1]}")
    # C++ aborts after it prints an uncaught exception, so SIGABRT may have a last line that explains it.
    how_it_ended = {"is_missing": exit_code in patterns.NOT_RUN_CODES, "is_ended": not may_have_raised}
    how_it_ended["may_be_usage"] = exit_code == patterns.USAGE_CODE
    last = _last_words(lines, **how_it_ended) if name in ("", "SIGABRT") else _killed(lines)
    if last is not None:
        return CommandFailure(last[0], "", f"{how}: {last[1]}")
    is_printed = may_have_raised and not (shown and shown[-1].line == len(lines) - 1)
    if is_printed and (match := _printed(lines)):
        cause = cause_of_exception(with_bases(match.group(1)), match.group(3))
        return CommandFailure(cause, match.group(2), f"{how}: {match.group(0)}")
    if found is not None:
        return _as_failure(found, how)
    cause, words = _SIGNALS.get(name) or _EXIT_CODES.get(exit_code) or (Cause.UNKNOWN, "")
    if cause is Cause.CONFIG and lines and not any(map(patterns.NOT_RUN.match, lines[-_NUM_LAST_LINES:])):
        return CommandFailure(Cause.UNKNOWN, "", how)
    return CommandFailure(cause, "", f"{how}: {words}" if words else how)


def cause_of_raised(raised: Raised, log: str) -> Cause:
    """Return the cause of an exception that ended a stage; of a program that it started, by the log's end.

    Args:
        raised: the exception.
        log: the end of the stage's output, with the exception's traceback unless it is a `SystemExit`.
    """
    cause = cause_of(raised)
    if cause is not Cause.UNKNOWN or not _is_wrapper(raised):
        return cause
    code = int(raised.text) if raised.text.isdecimal() else 1
    if raised.classes[0] == "SystemExit":  # a traceback with more than its message after it was handled
        lines = lines_of(log)
        own = [] if raised.text.lstrip("-").isdecimal() else [*filter(str.strip, raised.text.split("\n"))]
        shown = exceptions_in(lines)
        end = max((each.line + 1 for each in shown), default=len(lines))
        while end < len(lines) and lines[end].rank and lines[end].rank == shown[-1].rank:
            end += 1
        while end < len(lines) and (patterns.SUMMARY.match(lines[end].text) or _is_lesser(lines[end].text)):
            end += 1
        whole = cause_of_command(code, log, oom_killed=False).cause
        # Launchers and trackers print after the reason too: what a machine lacked counts in any place.
        if end < len(lines) - len(own) and (own or whole in (Cause.CONFIG, Cause.DATA, Cause.CODE)):
            log = "\n".join(line.text for line in lines[end:])
    return cause_of_command(code, log, oom_killed=False).cause if code else cause


def _is_wrapper(raised: Raised) -> bool:
    """Whether an exception only repeats that another process failed."""
    return raised.classes[0] in _WRAPPERS or patterns.POINTS_ABOVE.match(raised.text) is not None


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
    if _is_wrapper(raised):
        # What the program itself printed stands before the traceback of what had started it.
        starts = (number for number, line in enumerate(lines[: found.line]) if HEADING in line)
        before = lines[: max(starts, default=found.line)]
        is_missing = patterns.NOT_RUN_STATUS.search(raised.text) is not None
        may_be_usage = not patterns.OTHER_STATUS.match(raised.text)
        last = _last_words(before, may_be_usage=may_be_usage, is_missing=is_missing)
        if last is None and (match := _printed(before)):
            last = cause_of_exception(with_bases(match.group(1)), match.group(3)), match.group()
        status = patterns.STATUS.search(raised.text)
        return _EXIT_CODES.get(int(status[1])) if status and last is None else last
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
        is_echo = _is_wrapper(each.raised) or (
            found is not None and each.rank != found.rank and cause_of(each.raised) is Cause.COMMUNICATION
        )
        if found is None or (not each.side and (found.side or not is_echo)):
            found = each
    return found


def _printed(lines: Sequence[str]) -> re.Match[str] | None:
    """Return the exception that the last line states without a traceback, None without one."""
    final = next(_own_words(lines), "").strip()
    return patterns.PRINTED.match(final[_end_of_stamp(final) :])


def _own_words(lines: Sequence[str]) -> Iterator[str]:
    """Yield the lines from the last one on, without what launchers and trackers print after it."""
    return (line for line in reversed(lines) if not patterns.AFTERWORDS.match(line.strip()))


def _end_of_stamp(line: str) -> int:
    """Return where a line begins behind the time that a logger writes; 0 if there is none."""
    match = patterns.STAMP.match(line)
    return match.end() if match and not _is_lesser(line) else 0


def _is_lesser(line: str) -> bool:
    """Whether the level of a line is one at which no program reports why it ends."""
    match = patterns.STAMP.match(line)
    return patterns.LESSER.match(line, match.end() if match else 0) is not None


def _killed(lines: Sequence[str]) -> tuple[Cause, str] | None:
    """Return the cause for which a scheduler or the kernel ended a process, as the last lines state it."""
    found = (
        (cause, words.match(line)) for line in lines[: -_NUM_LAST_LINES - 1 : -1] for words, cause in _KILLED
    )
    return next(((cause, match.group(1)) for cause, match in found if match), None)


def _last_words(
    lines: Sequence[str], *, may_be_usage: bool, is_missing: bool = False, is_ended: bool = False
) -> tuple[Cause, str] | None:
    """Return the cause that the last lines state, and the words that state it.

    Args:
        lines: of the log.
        may_be_usage: whether the program may have ended because of wrong arguments.
        is_missing: whether a shell reported by its exit code that a program cannot be run.
        is_ended: whether the exit code is not the program's own, so that its last line may be any one.
    """
    if (reported := _reported(lines)) is not None:
        return reported
    has_usage = may_be_usage and any(map(patterns.USAGE.match, lines[-_NUM_USAGE_LINES:]))
    stated: tuple[Cause, str] | None = None
    is_report = not is_ended  # whether this line and all after it may be one report of errors
    for number, shown in enumerate(islice(_own_words(lines), _NUM_LAST_LINES)):
        line = shown.strip(patterns.BORDERS)
        if beside := patterns.NO_REASON.search(shown):
            is_report = is_report and beside["help"] is not None
            continue
        begin = _end_of_stamp(line)
        found = ((cause, words.match(line, begin)) for words, cause in _LAST_WORDS)
        known = next(((cause, match.group(1)) for cause, match in found if match), None)
        if known is None and (is_missing or number == 0) and (match := patterns.MISSING.match(line)):
            known = Cause.CONFIG, match.group(1)
        is_usage = has_usage and (known is None or known[0] not in OF_MACHINES)
        if is_usage and stated is None and (match := patterns.USAGE_ERROR.match(line)):
            return Cause.CONFIG, match.group(1)
        if known is None and number == 0 and not _is_lesser(line) and (cause := of_driver(line)):
            known = cause, line
        elif known is None and is_report and not is_missing:
            known = _of_line(line, begin, is_final=number == 0)
        if known is not None and known[0] not in DETERMINISTIC:
            return known
        stated = stated or known
        is_report = is_report and (shown[:1].isspace() or patterns.OF_REPORT.search(line) is not None)
        if stated is not None and not is_report:
            break
    return stated if stated is not None or is_ended else _of_settings(lines[-_NUM_USAGE_LINES:])


def _of_line(line: str, begin: int, *, is_final: bool) -> tuple[Cause, str] | None:
    """Return the cause that a line at the end of a program's output shows, and its words.

    Args:
        line: of the log.
        begin: where it begins behind the time that a logger wrote.
        is_final: whether it is the last one. An exception there is judged by `_printed`.
    """
    words = line[begin:]
    if match := patterns.PRINTED.match(words):  # its class is better evidence
        cause = Cause.UNKNOWN if is_final else cause_of_exception(with_bases(match[1]), match[3])
    else:
        cause = of_words(words)
    if _is_lesser(line):  # no reason, unless a client tried until the end
        is_retry = cause is Cause.COMMUNICATION and patterns.RETRY.search(line) and "WARN" in line
        return (cause, words) if is_retry else None
    is_other = patterns.OF_SHELL.match(words) or not patterns.OF_REPORT.search(line)
    return None if cause is Cause.UNKNOWN or (cause in DETERMINISTIC and is_other) else (cause, words)


def _of_settings(lines: Sequence[str]) -> tuple[Cause, str] | None:
    """Return that the config is wrong, if the last lines are those of Hydra or of a parser of arguments."""
    if any(line.startswith(patterns.HYDRA) for line in lines[-_NUM_LAST_LINES:]):
        if any(line.startswith(patterns.HYDRA_JOB) for line in lines):
            called = next(filter(None, map(patterns.HYDRA_TARGET.match, lines)), None)
            cause = (
                cause_of_exception(with_bases(called["name"]), called["text"]) if called else Cause.UNKNOWN
            )
            return (cause, called.group()) if called and cause is not Cause.UNKNOWN else None
        return next(((Cause.CONFIG, line) for line in lines if patterns.HYDRA_ERROR.match(line)), None)
    hints = [number for number, line in enumerate(lines) if patterns.HINT.match(line)]
    for number, shown in enumerate(lines):
        line = shown.strip(patterns.BORDERS)
        match = patterns.OPTION.match(line)
        is_near = any(hint != number and hint >= number - _NUM_TEXT_LINES for hint in hints)
        is_last = number == len(lines) - 1 and ": " in line and " -" in line.replace("'", " ")
        if match and (is_last or is_near):
            return Cause.CONFIG, match.group(1)
    return None


def _reported(lines: Sequence[str]) -> tuple[Cause, str] | None:
    """Return the cause of the last error that a program in another language reported, and its message."""
    are_certain: set[re.Pattern[str]] = set()  # reports of which a line so far holds what it must contain
    for number in range(len(lines) - 1, max(-1, len(lines) - 1 - _NUM_TRACEBACK_LINES), -1):
        are_certain.update(certain for _, certain, _, _ in _REPORTS if certain.search(lines[number]))
        begin = _end_of_stamp(lines[number])
        for heading, certain, module, mistakes in _REPORTS:
            match = heading.match(lines[number], begin)
            if match is None or certain not in are_certain:
                continue
            fields = match.groupdict()
            rest = [patterns.WHAT.sub("", line).strip() for line in lines[number + 1 :][:_NUM_TEXT_LINES]]
            name, text = module + (fields.get("name") or "Error"), fields.get("text") or " ".join(rest[:1])
            cause = _of_report(name, text, "\n".join((text, *rest)), mistakes)
            root = next(filter(None, map(patterns.ROOT.match, reversed(lines[number:]))), None)
            if cause is Cause.UNKNOWN and root is not None:
                text = root["text"] or ""
                cause = _of_report(module + root["name"], text, text, mistakes)
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
    system = of_system(whole)
    for machine in (system, of_phrases(unquoted(f"{name} {whole}"))):
        if machine in OF_MACHINES:
            return machine
    if patterns.DIVERGED.search(text):
        return Cause.NAN
    if patterns.OPTION.match(text):
        return Cause.CONFIG
    is_mistake = mistakes.match(name) or mistakes.match(text)
    if DATA.search(text) and ((cause is Cause.UNKNOWN and not is_mistake) or "SyntaxError" in name):
        return cause_of_exception(("JSONDecodeError", "ValueError"), text)  # or the config, if it names that
    cause = Cause.CODE if is_mistake and cause is Cause.UNKNOWN else cause
    return next((each for each in (cause, system, of_words(text)) if each is not Cause.UNKNOWN), cause)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
