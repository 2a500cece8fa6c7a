"""Recorded outcomes, in files of a folder ``recorded/`` beside the tests, which these compare.

``compare`` has answers to many questions, each on a line; a changed answer is shown with its first question.
``compare_text`` has one outcome, such as what a verb prints; a changed one is shown as a diff.

What is meant to change is recorded again, and reviewed as a change of its file:
``POLYSWEEP_RECORD=1 pytest tests/core -k recorded``, which fails for each file that it has changed.
"""

from __future__ import annotations

import difflib
import hashlib
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType

import msgspec

from orchestrator.errors import StageFailure, SweepError

RECORDS = bool(os.environ.get("POLYSWEEP_RECORD"))
Answers = Iterator[tuple[str, object]]


def compare(file: Path, answers: Answers) -> None:
    """Fail where an answer is another than the recorded one."""
    lines = list(_grouped(answers))
    assert lines, "nothing was asked"
    recorded = _recorded(file, "".join(f"{line}\n" for line in lines)).splitlines()
    new = [line for line in lines if line not in recorded]
    gone = [f"was {line}" for line in recorded if line not in lines]
    assert not new + gone, "\n".join(new[:3] + gone[:3])


def questions(*modules: ModuleType) -> dict[str, Callable[[], Answers]]:
    """Return the questions of some modules, in the ``ASKED`` of each, by the names of their files."""
    found = {name: ask for module in modules for name, ask in module.ASKED.items()}
    assert len(found) == sum(len(module.ASKED) for module in modules), "two questions have one name"
    return found


def compare_text(file: Path, text: str, words: Mapping[str, str] | None = None) -> None:
    """Fail where a text is another than the recorded one.

    Args:
        file: of the recorded text.
        text: what a test found.
        words: pattern to what stands in its place, for what differs from run to run: paths, times, processes.
    """
    for pattern, word in (words or {}).items():
        text = re.sub(pattern, word, text)
    text = text if text.endswith("\n") else f"{text}\n"
    recorded = _recorded(file, text)
    lines = difflib.unified_diff(recorded.splitlines(), text.splitlines(), "recorded", "found", "", "", 1, "")
    assert recorded == text, "\n".join([str(file), *lines][:30])


def _recorded(file: Path, new: str) -> str:
    """Return what a file has; where tests record, it has the new text from then on."""
    recorded = file.read_text("utf-8") if file.exists() else ""
    if RECORDS:
        file.parent.mkdir(exist_ok=True)
        file.write_text(new, "utf-8")
    return recorded


def answer(act: Callable[[], object]) -> object:
    """Return what a function returns, or the error that it raises as a user sees it."""
    try:
        return act()
    except (SweepError, StageFailure) as error:
        return f"{type(error).__name__}: {error}"


def _grouped(answers: Answers) -> Iterator[str]:
    """Each answer on a line, with its questions: how many, the first, and a digest of them all."""
    questions: dict[str, list[str]] = {}
    # With their numbers, as questions of equal words may follow different ones.
    for number, (question, found) in enumerate(answers):
        questions.setdefault(plain(found), []).append(f"{number} {question.strip()}")
    for found, asked in questions.items():
        digest = hashlib.sha256("\n".join(asked).encode()).hexdigest()[:8]
        more = f", and {len(asked) - 1} more ({digest})" if asked[1:] else ""
        yield f"{found} <- {asked[0].partition(' ')[2]}{more}".replace("\n", "|")


def plain(found: object) -> str:
    """Return an answer as text: words in place of members of enumerations."""
    if isinstance(found, tuple | list):
        return "(" + ", ".join(map(plain, found)) + ")"
    if isinstance(found, Mapping):
        return "{" + ", ".join(f"{key}: {plain(value)}" for key, value in found.items()) + "}"
    if isinstance(found, msgspec.Struct):
        # Without defaults, so that a new setting changes no answer.
        fields = msgspec.structs.fields(found)
        values = {each.name: (getattr(found, each.name), _default(each)) for each in fields}
        return plain({name: value for name, (value, default) in values.items() if value != default})
    return str(found) if isinstance(found, str) else repr(found)


def _default(field: msgspec.structs.FieldInfo) -> object:
    made = field.default_factory
    return field.default if made is msgspec.NODEFAULT else made()
