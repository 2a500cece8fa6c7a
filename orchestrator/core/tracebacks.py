"""The lines of a log, and the exceptions that its tracebacks show. Pure."""

from __future__ import annotations

import builtins
import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

from orchestrator.errors import SEQUENCE

OUT_OF_MEMORY = re.compile(r"OutOf\w*Memory|ResourceExhaustedError")
"""Names of exceptions that no base class explains: GPU and host memory have the same."""

HEADING = "Traceback (most recent call last)"
_CLOCK = re.compile(r"\d\d:\d\d:\d\d(?:\\?[.,]\d+)?")
"""The time in what a launcher writes before each line, also where its dot is escaped."""

_PROGRESS = re.compile(r"(?:[^\n%]{0,80}: *)?\s*\d{1,3}(?:\.\d+)?%\s?\|.*|\s*\d+(?:\.\d+)?\w{0,2}it \[.*")
"""A bar of progress, which is drawn again and again in one line."""

_RANK = re.compile(
    r"(\[?(?:rank|default)\s?\d*\]?:\s?)+|\d+: |\([\w. :]*\bpid=\d+(?:, ip=[\w.:]+)?\) "
    r"|\[\d+,\d+\]<std\w+>:\s?",
    re.IGNORECASE,
)
"""What torch, srun, Ray and mpirun write before the lines of a rank."""
_BOX = re.compile(r"╭─+ Traceback \(most recent call last\) ─+╮")  # the heading that the library rich draws
_HEADING = re.compile(r"(?:Original |Exception Group )?Traceback \(most recent call last\):")
_MARGIN = re.compile(
    r"(?P<indent> {2,40})(?:\| ?|\+ (?=Exception Group Traceback )|(?=\+(?P<first>-\+)?-{16}[ -]))"
)
_EDGE = re.compile(r"\+(?:-\+)?-{16}(?:(?P<member> (?:\d+|\.{3}) -{16})|-{20})$")
"""What Python draws beside the lines of a group of exceptions, and between its members."""
_LINKS = {"The above exception was the direct cause": True, "During handling of the above exception": False}
"""Beginnings of the lines between an exception and the next one, and whether that was raised from it."""
_EXCEPTION = re.compile(r"((?:[A-Za-z_]\w*\.)*[A-Z_a-z]\w*)(?::(?: (.*))?)?$")
_PLACE = re.compile(r'(?:> |\s*)File "(?P<file>[^"]+)", line \d+(?:, in (?P<name>.+))?')
_SIDE = re.compile(
    r"(?P<parallel>Exception in thread |.*\bException in callback "
    r"|.*\b(?:Task|Future) exception was never retrieved)"
    r"|(?P<ignored>Exception ignored |Error in (?:atexit|sys\.excepthook)|--- Logging error ---|Call stack:$)"
)
"""Lines before tracebacks of threads and tasks, and of what Python prints and ignores."""
_DETAIL = re.compile(r"(future|handle|task|protocol|transport): ")
"""What asyncio prints between such a line and the traceback."""
_MAX_TEXT, _NUM_TEXT_LINES, _MAX_LINE = 65536, 12, 2000
"""Characters of an exception, lines of its message (further ones may be another program's), and characters
of a line that are judged: some patterns take quadratic time."""


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
        if self.file.endswith((".pyx", ".pxi")):  # of Cython, which compiles libraries
            return self.file
        match = _INSTALLED.match(self.file)
        return self.file[match.end() :] if match else self.file.strip("<>") if self.file[:1] == "<" else ""


_INSTALLED = re.compile(r".*[/\\](?:site-packages|dist-packages|lib[/\\]python[\d.]+(?![^/\\]))[/\\]")


class Raised(NamedTuple):
    """An exception as a traceback shows it.

    Attributes:
        names: its class and the base classes, nearest first, each with its module unless that is unknown.
        text: its message.
        frames: where it was raised, the innermost last.
        before: the exception that was handled when this one was raised, None without one.
        is_declared: whether it was raised ``from`` the one before.
        members: the exceptions of a group, such as those of a ``TaskGroup``.
    """

    names: tuple[str, ...]
    text: str
    frames: tuple[Frame, ...] = ()
    before: Raised | None = None
    is_declared: bool = False
    members: tuple[Raised, ...] = ()

    @property
    def first(self) -> Raised:
        """The first member of a group that is no group, else the exception itself."""
        return self.members[0].first if self.members else self

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
        line = self.frames[-1].line if self.frames else ""
        return not line or line.startswith(("raise ", "assert "))

    @property
    def is_answer(self) -> bool:
        """Whether the function that handled the earlier exception raised this one itself."""
        if self.before is None or not self.frames or not self.before.frames:
            return False
        return self.is_stated and self.frames[-1][:2] == self.before.frames[0][:2]

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
    lines = [marked(line)._replace(rank="") for line in text[-_MAX_TEXT:].splitlines()]
    found = [shown.raised for shown in exceptions_in(lines)]
    last = found[-1] if found else None
    message = "\n".join(line[:_MAX_LINE] for line in message[:_MAX_TEXT].split("\n"))
    if last is None or last.classes[0] != names[0].rpartition(".")[2]:
        return Raised(tuple(names), message, before=last, is_declared=True)
    # A worker process of a DataLoader hands on its traceback inside the message of an equal exception.
    return last._replace(names=tuple(names), text=message if len(found) == 1 else last.text)


class Line(NamedTuple):
    """A line of a log without what launchers and Python write before it.

    Attributes:
        rank: the mark of its rank, as torch and launchers write it, "" without one.
        text: the line itself.
        level: 1 for the members of a group of exceptions, 2 for those of a group in it; else 0.
    """

    rank: str
    text: str
    level: int = 0


def marked(line: str) -> Line:
    """Return a line without its marks; of a long line only the beginning."""
    line = line[:_MAX_LINE]
    match = _RANK.match(line)
    rank = match.group() if match else ""
    text = line[len(rank) :]
    if (margin := _MARGIN.match(text)) is None:
        return Line(rank, text)
    level = len(margin["indent"]) // 2 - 1 + (margin["first"] is not None)
    return Line(rank, text[margin.end() :], level)


def lines_of(log: str) -> list[Line]:
    """Return the lines of a log without blank ones, bars of progress, and what launchers write before each.

    What a launcher writes before the lines of a traceback, such as a host or a time, stands before its first
    lines alike::

        n1: Traceback (most recent call last):
        n1:   File "train.py", line 7, in <module>
    """
    parts = [part.rstrip() for part in re.split(r"[\r\n]", SEQUENCE.sub("", log))]
    texts = [text for part in parts if (text := _without_progress(part))]
    margins: set[str] = set()
    for first, second in pairwise(texts):
        at = first.find(HEADING, 0, 200)
        if at > 0 and marked(first[:at]).text:
            # Only the time in it may differ between lines.
            margin = _CLOCK.sub(lambda _: _CLOCK.pattern, re.escape(first[:at]))
            if re.match(rf'{margin}  File "', second):
                margins.add(margin)
    begun = re.compile("|".join(sorted(margins, reverse=True)))
    return [_marked(text, begun) for text in texts]


def _without_progress(part: str) -> str:
    """Return a part of a line, "" for a bar of progress; of one that a traceback follows, its heading."""
    if not part.strip() or not _PROGRESS.fullmatch(part[:300]):
        return "" if part.isspace() else part
    return part[at:] if (at := part.find(HEADING)) >= 0 else ""


def _marked(text: str, margin: re.Pattern[str]) -> Line:
    match = margin.match(text)
    begun = match.group() if match else ""
    line = marked(text[len(begun) :])
    return line._replace(rank=_CLOCK.sub("", begun) + line.rank)


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


def exceptions_in(lines: Sequence[Line]) -> list[Shown]:
    """Return the exception of each traceback, in the order in which the tracebacks end.

    The lines of several ranks may alternate, so each rank's traceback is followed separately. So are the
    members of a group, which stand behind a margin: ``  | `` for the group itself, ``    | `` for a member.
    """
    reader = _Reader(lines)
    for number in range(len(lines)):
        reader.read(number)
    return reader.shown


_Key = tuple[str, int]  # the rank and the level of a traceback's lines


class _Reader:
    """Follows the tracebacks of a log."""

    def __init__(self, lines: Sequence[Line]) -> None:
        self.shown: list[Shown] = []
        self._lines = lines
        self._last: dict[str, int] = {}  # of each rank, the number of its last exception
        self._inside: dict[_Key, list[Frame]] = {}
        self._before: dict[_Key, Raised] = {}
        self._links: dict[_Key, bool] = {}
        self._sides: dict[_Key, str] = {}

    def read(self, number: int) -> None:
        """Read a line, the next one."""
        shown = self._lines[number]
        line, key = shown.text, (shown.rank, shown.level)
        inside = self._inside.get(key)
        if shown.level and (edge := _EDGE.match(line)):
            self._begin_member(number, key, is_next=edge["member"] is not None)
        elif _HEADING.match(line) or _BOX.match(line):
            self._inside[key] = []
            if key not in self._links:  # else it goes on with what the earlier exception belongs to
                self._sides[key] = _side_before(
                    self._lines[max(0, number - _NUM_TEXT_LINES) : number], shown.rank
                )
        elif line == "Call stack:":
            # The module logging prints the stack of its caller, which ends with `Message: ...`.
            self._inside[key] = []
            self._sides[key] = "ignored"
        elif match := _PLACE.match(line):
            # A syntax error in the program's own file has no heading, only the line `File "..."`.
            if inside is None:
                self._sides[key] = ""
            frame = Frame(match["file"], (match["name"] or "").strip())
            self._inside.setdefault(key, []).append(frame)
        elif inside is not None and line and not (line[0].isspace() or line[0] in "│╰"):
            del self._inside[key]
            if match := _EXCEPTION.match(line):
                text = "\n".join([(match[2] or "").strip(), *_more(self._lines[number + 1 :], shown)])
                earlier = self._before.get(key) if key in self._links else None
                is_declared = self._links.pop(key, False)
                raised = Raised(with_bases(match[1]), text, tuple(inside), earlier, is_declared)
                self._add(number, key, raised)
        elif inside and not inside[-1].line and line.strip():
            inside[-1] = inside[-1]._replace(line=line.strip())
        else:
            self._links |= [(key, is_cause) for words, is_cause in _LINKS.items() if line.startswith(words)]

    def _begin_member(self, number: int, key: _Key, *, is_next: bool) -> None:
        """Begin the next member of a group, or end the last one."""
        for known in (self._before, self._links, self._inside):
            known.pop(key, None)
        if is_next:
            self._inside[key] = []  # a member that was never raised has no heading
            self._sides[key] = ""
        elif (last := self._last.get(key[0])) is not None:
            self.shown[last] = self.shown[last]._replace(line=number)

    def _add(self, number: int, key: _Key, raised: Raised) -> None:
        """Add an exception, to the group whose member it is if there is one."""
        rank, level = key
        self._before[key] = raised
        old, new = raised.before, raised
        for above in range(level - 1, -1, -1):
            group = self._before.get((rank, above))
            if group is None:  # its beginning is not in the log
                break
            members = group.members[:-1] if group.members and group.members[-1] is old else group.members
            old, new = group, group._replace(members=(*members, new))
            self._before[rank, above] = new
        else:
            if level:
                last = self._last[rank]
                self.shown[last] = self.shown[last]._replace(line=number, raised=new)
                return
        self._last[rank] = len(self.shown)
        self.shown.append(Shown(number, rank, raised, self._sides.get(key, "")))


def _side_before(lines: Sequence[Line], rank: str) -> str:
    """Return what the line before a heading states of its traceback, as `Shown.side`."""
    for line in reversed(lines):
        if line.rank == rank and not _DETAIL.match(line.text):
            match = _SIDE.match(line.text)
            return (match.lastgroup or "") if match else ""
    return ""


def _more(lines: Sequence[Line], first: Line) -> Iterator[str]:
    """Yield the further lines of the message that begins with a line."""
    for line in lines[:_NUM_TEXT_LINES]:
        is_other = (line.rank, line.level) != (first.rank, first.level) or (
            line.level and _EDGE.match(line.text)
        )
        if is_other or _HEADING.match(line.text) or line.text.startswith(tuple(_LINKS)):
            return
        yield line.text


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
