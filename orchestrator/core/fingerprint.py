"""Which failures look alike: a digest of what a failure has in common with others of its kind. Pure."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from orchestrator.core.records import End
from orchestrator.core.sweep import Cell

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
_FRAME = re.compile(r'\s*File "(?P<file>[^"]+)", line \d+, in (?P<name>.+)')
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
