"""Exceptions as tracebacks and logs show them, and which failures look alike. Pure."""

from __future__ import annotations

import builtins
import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:  # the records import the causes of failures, whose rules import this module
    from orchestrator.core.records import End
    from orchestrator.core.sweep import Cell

OUT_OF_MEMORY = re.compile(r"OutOf\w*Memory")
"""Names of exceptions that no base class explains: GPU and host memory have the same."""

_RANK = re.compile(r"(\[?(?:rank|default)\s?\d*\]?:\s?)+|\d+: ", re.IGNORECASE)
_BOX = re.compile(r"╭─+ Traceback \(most recent call last\) ─+╮")  # the heading that the library rich draws
_HEADING = re.compile(r"(Original )?Traceback \(most recent call last\):")
_LINKS = {"The above exception was the direct cause": True, "During handling of the above exception": False}
"""Beginnings of the lines between an exception and the next one, and whether that was raised from it."""
_EXCEPTION = re.compile(r"((?:[A-Za-z_]\w*\.)*[A-Z_a-z]\w*)(?::(?: (.*))?)?$")
_PLACE = re.compile(r'\s*File "(?P<file>[^"]+)", line \d+(?:, in (?P<name>.+))?')
_SIDE = re.compile(
    r"(?P<parallel>Exception in thread |.*\bException in callback "
    r"|.*\b(?:Task|Future) exception was never retrieved)"
    r"|(?P<ignored>Exception ignored |Error in (?:atexit|sys\.excepthook)|--- Logging error ---|Call stack:$)"
)
"""Lines before tracebacks of threads and tasks, and of what Python prints and ignores."""
_DETAIL = re.compile(r"(future|handle|task|protocol|transport): ")
"""What asyncio prints between such a line and the traceback."""
_MAX_TEXT, _NUM_TEXT_LINES, _MAX_LINE = 65536, 12, 2000
"""Characters of an exception, lines of its message in a log, and characters of a line that are judged.

Further lines may be another program's. Some patterns take quadratic time, so long lines are cut.
"""


class Frame(NamedTuple):
    """A frame of a traceback.

    Attributes:
        file: path of the module.
        function: name of the function.
        line: text of the source line, "" if it is not shown.
    """

    file: str
    function: str
    line: str = ""

    @property
    def module(self) -> str:
        """The module's path inside an installed package or the standard library; "" for the user's own."""
        match = _INSTALLED.match(self.file)
        return self.file[match.end() :] if match else self.file.strip("<>") if self.file[:1] == "<" else ""


_INSTALLED = re.compile(r".*[/\\](?:site-packages|dist-packages|lib[/\\]python[\d.]+(?![^/\\]))[/\\]")


class Raised(NamedTuple):
    """An exception as a traceback shows it.

    Attributes:
        names: its class and the base classes, nearest first, each with its module unless that is unknown.
        text: its message.
        frames: where it was raised, the innermost last; empty if this is unknown.
        before: the exception that was handled when this one was raised, None without one.
        is_declared: whether it was raised ``from`` the one before.
    """

    names: tuple[str, ...]
    text: str
    frames: tuple[Frame, ...] = ()
    before: Raised | None = None
    is_declared: bool = False

    @property
    def classes(self) -> tuple[str, ...]:
        """The names without modules."""
        return tuple(name.rpartition(".")[2] for name in self.names)

    @property
    def inside(self) -> tuple[Frame, ...]:
        """The frames of libraries that the user's innermost frame called."""
        own = max((number for number, frame in enumerate(self.frames) if not frame.module), default=-1)
        return self.frames[own + 1 :]

    @property
    def is_stated(self) -> bool:
        """Whether a ``raise`` statement raised it, and not an operation or a compiled function."""
        return not self.line or self.line.startswith(("raise ", "assert "))

    @property
    def line(self) -> str:
        """The source line that raised it."""
        return self.frames[-1].line if self.frames else ""

    @property
    def is_of_library(self) -> bool:
        """Whether its message was written by a library, not by the user."""
        return bool(self.frames) and (bool(self.inside) or not self.is_stated)


def exception_in(text: str, names: Sequence[str], message: str) -> Raised:
    """Return an exception of this process, with the frames and the earlier exceptions of its traceback.

    Args:
        text: its traceback, as Python prints it.
        names: full names of its class and base classes, nearest first.
        message: its text.
    """
    lines = [("", line[:_MAX_LINE]) for line in text[-_MAX_TEXT:].splitlines()]
    found = [shown.raised for shown in exceptions_in(lines)]
    last = found[-1] if found else None
    message = "\n".join(line[:_MAX_LINE] for line in message[:_MAX_TEXT].split("\n"))
    if last is None or last.classes[0] != names[0].rpartition(".")[2]:
        return Raised(tuple(names), message, before=last, is_declared=True)
    # A worker process of a DataLoader hands on its traceback inside the message of an equal exception.
    return last._replace(names=tuple(names), text=message if len(found) == 1 else last.text)


def ranked(line: str) -> tuple[str, str]:
    """Return the rank mark before a line, as torch and launchers write it, "" without one, and the line.

    Of a long line only the beginning is returned.
    """
    line = line[:_MAX_LINE]
    match = _RANK.match(line)
    return (match.group() if match else "", line)


class Shown(NamedTuple):
    """An exception at the end of a traceback in a log.

    Attributes:
        line: number of the traceback's last line, from 0.
        rank: the rank mark of its lines.
        raised: the exception.
        side: "" for one that ended its process, "parallel" for one of a thread or a task, "ignored" for one
            that Python printed and ignored, as in ``__del__``.
    """

    line: int
    rank: str
    raised: Raised
    side: str


def exceptions_in(lines: Sequence[tuple[str, str]]) -> Iterator[Shown]:
    """Yield the exception of each traceback, in the order in which the tracebacks end.

    The lines of several ranks may alternate, so each rank's traceback is followed separately.

    Args:
        lines: of a log, each with its rank mark, as `ranked` returns them.
    """
    inside: dict[str, list[Frame]] = {}
    before: dict[str, Raised] = {}
    links: dict[str, bool] = {}
    sides: dict[str, str] = {}
    for number, (rank, marked) in enumerate(lines):
        line = marked.removeprefix(rank)
        if _HEADING.match(line) or _BOX.match(line):
            inside[rank] = []
            if rank not in links:  # else it goes on with what the earlier exception belongs to
                sides[rank] = _side_before(lines[max(0, number - _NUM_TEXT_LINES) : number], rank)
        elif line == "Call stack:":
            # The module logging prints the stack of its caller, which ends with `Message: ...`.
            inside[rank] = []
            sides[rank] = "ignored"
        elif match := _PLACE.match(line):
            # A syntax error in the program's own file has no heading, only the line `File "..."`.
            if rank not in inside:
                sides[rank] = ""
            inside.setdefault(rank, []).append(Frame(match["file"], (match["name"] or "").strip()))
        elif rank in inside and line and not (line[0].isspace() or line[0] in "│╰"):
            frames = inside.pop(rank)
            if match := _EXCEPTION.match(line):
                text = "\n".join([(match[2] or "").strip(), *_more(lines[number + 1 :], rank)])
                earlier = before.get(rank) if rank in links else None
                raised = Raised(with_bases(match[1]), text, tuple(frames), earlier, links.pop(rank, False))
                before[rank] = raised
                yield Shown(number, rank, raised, sides.get(rank, ""))
        elif rank in inside and inside[rank] and not inside[rank][-1].line and line.strip():
            inside[rank][-1] = inside[rank][-1]._replace(line=line.strip())
        else:
            links |= [(rank, is_cause) for words, is_cause in _LINKS.items() if line.startswith(words)]


def _side_before(lines: Sequence[tuple[str, str]], rank: str) -> str:
    """Return what the line before a heading states of its traceback, as `Shown.side`."""
    for mark, marked in reversed(lines):
        line = marked.removeprefix(mark)
        if mark == rank and not _DETAIL.match(line):
            match = _SIDE.match(line)
            return (match.lastgroup or "") if match else ""
    return ""


def _more(lines: Sequence[tuple[str, str]], rank: str) -> Iterator[str]:
    """Yield the further lines of a message."""
    for mark, marked in lines[:_NUM_TEXT_LINES]:
        line = marked.removeprefix(mark)
        if mark != rank or _HEADING.match(line) or line.startswith(tuple(_LINKS)):
            return
        yield line


def with_bases(name: str) -> tuple[str, ...]:
    """Return the name of a class and of its base classes, as far as the name shows them.

    Python's own classes are known. Libraries name theirs after them: ``_ArrayMemoryError`` of numpy is a
    ``MemoryError``.

    Args:
        name: of the class, with or without its module.
    """
    bare = name.rpartition(".")[2]
    if OUT_OF_MEMORY.search(bare):
        return (name,)
    endings = (bare[at:] for at in range(len(bare)))
    kind = next((found for end in endings if isinstance(found := getattr(builtins, end, None), type)), None)
    if kind is None or not issubclass(kind, BaseException):
        return (name,)
    bases = tuple(base.__name__ for base in kind.__mro__)
    return bases if bases[0] == name else (name, *bases)


NUM_FRAMES = 3
"""Innermost frames of the user's own code that count; our choice."""
FINGERPRINT_LENGTH = 10
"""Hexadecimal digits of a fingerprint: 40 bits, so that a thousand differ with near certainty."""

_QUOTED = re.compile(r"(?<!\w)(['\"])([^'\"]*)\1")
_PATH = re.compile(r"(?<![\w.~+@-])(?:[A-Za-z]:)?[\w.~+@-]*[/\\][\w./\\~+@=,-]*")
_IDS = re.compile(
    r"\b(?:0x[0-9a-fA-F]+|(?=[0-9a-f]*\d)[0-9a-f]{8,}|[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12})\b"
)
_NUMBERS = re.compile(r"[-+]?\b\d[\d_,.]*(?:[eE][-+]?\d+)?(?:\s?[KMGT]i?B\b)?")
_FRAME = re.compile(r'File "(?P<file>[^"]+)", line \d+, in (?P<name>.+)')
_FOREIGN = re.compile(r"(^|[/\\])(site-packages|dist-packages|lib[/\\]python\d)|^<")


class Fingerprint(NamedTuple):
    """What failures that look alike have in common.

    Attributes:
        digest: the first hexadecimal digits of a SHA-256 over the other fields.
        stage: that failed.
        cause: of the failure.
        exception: class name; "" if no exception was raised.
        message: without numbers, ids and paths.
        frames: the innermost frames of the user's own code, as ``file:function``, the innermost last.
    """

    digest: str
    stage: str
    cause: str
    exception: str
    message: str
    frames: tuple[str, ...]


def fingerprint(stage: str, end: End) -> Fingerprint:
    """Return the fingerprint of a failed attempt, equal for failures that look alike.

    Ten cells that fail on ten different rows of one broken file are one problem. Their messages differ in
    numbers and paths, so these are taken out. The form is ours::

        ValueError: row 17 of /data/en.jsonl has no answer  ->  ValueError: row # of <path> has no answer
        ValueError: row 93 of /data/de.jsonl has no answer  ->  the same

    Args:
        stage: name of the stage in the sweep file.
        end: record of the attempt's end.
    """
    cause = str(end.cause or "unknown")
    message, frames = (
        without_particulars(end.message.removeprefix(f"{end.exception}: ")),
        own_frames(end.log_tail),
    )
    parts = "\0".join((stage, cause, end.exception, message, *frames))
    digest = hashlib.sha256(parts.encode()).hexdigest()[:FINGERPRINT_LENGTH]
    return Fingerprint(digest, stage, cause, end.exception, message, frames)


def without_particulars(message: str) -> str:
    """Return a message with paths, ids and numbers replaced by signs."""
    # A path in quotes may hold spaces.
    found = _QUOTED.sub(lambda quoted: "<path>" if re.search(r"[/\\]", quoted[2]) else quoted[0], message)
    found = _IDS.sub("<id>", _PATH.sub("<path>", found))
    return " ".join(_NUMBERS.sub("#", found).split())


def own_frames(log: str) -> tuple[str, ...]:
    """Return the innermost frames of the last traceback of a log that are not of installed packages.

    Line numbers are left out: an edit above a function moves them. If all frames are of packages, the
    innermost of those are returned.
    """
    frames: list[tuple[str, str]] = []
    is_inside = False
    for line in log.splitlines():
        if "Traceback (most recent call last):" in line:
            frames, is_inside = [], True
        elif is_inside and (match := _FRAME.search(line)):
            frames.append((match["file"], match["name"].strip()))
    own = [frame for frame in frames if not _FOREIGN.search(frame[0])] or frames
    return tuple(
        f"{file.replace(chr(92), '/').rpartition('/')[2]}:{name}" for file, name in own[-NUM_FRAMES:]
    )


class Alike(NamedTuple):
    """Stage instances that failed alike under the same code.

    Attributes:
        failure: their common fingerprint.
        code: digest of the code.
        ends: digest of a stage to the end of its attempt.
        axes: the axes on which all cells of these stages agree, and others differ, with the value.
        cell: id of a cell of the first one.
    """

    failure: Fingerprint
    code: str
    ends: Mapping[str, End]
    axes: Mapping[str, str]
    cell: str

    def box(self, cells: Sequence[Cell]) -> list[Cell]:
        """Return the cells that agree with the failed ones on every axis on which these agree."""
        for name, value in self.axes.items():
            cells = [cell for cell in cells if cell.axes.get(name) == value]
        return list(cells)


def common_axes(axes: Mapping[str, str] | None, more: Mapping[str, str]) -> dict[str, str]:
    """Return the axes that have the same value in both; all of `more` if there is nothing to compare."""
    return {k: v for k, v in more.items() if axes is None or axes.get(k) == v}


def varying_axes(cells: Sequence[Cell]) -> set[str]:
    """Return the axes on which cells differ."""
    return {name for cell in cells for name, value in cell.axes.items() if value != cells[0].axes.get(name)}
