"""Mistakes that the simulation must find: each is a small change of the source, with the rule that it breaks.

A bug is applied to the source as its module is imported, so the bugs of a process must be chosen before
anything of the package is.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[3]


class Edit(NamedTuple):
    """A change of a file: its path from the root of the project, the text that goes, the text that comes."""

    file: str
    old: str
    new: str


class Bug(NamedTuple):
    """A mistake.

    Attributes:
        name: one word a part, joined by hyphens.
        rule: that it breaks: a number of the store protocol in docs/design.md, or ``jobs <number>``.
        what: it is, in a sentence.
        edits: that make it.
        kind: of the runs that can find it, see `tests.simulation.runs`.
        peer: whether a peer of this project has or had it.
    """

    name: str
    rule: str
    what: str
    edits: tuple[Edit, ...]
    kind: str = "workers"
    peer: bool = False


class _Patched(importlib.machinery.SourceFileLoader):
    """Loads a module with a bug's edits."""

    edits: Sequence[Edit] = ()

    def get_code(self, fullname: str) -> Any:
        text = Path(self.path).read_text(encoding="utf-8")
        for edit in self.edits:
            text = edited(text, edit)
        return compile(text, self.path, "exec", dont_inherit=True)


def edited(text: str, edit: Edit) -> str:
    """The text of a file with an edit; the old text must be there exactly once."""
    assert text.count(edit.old) == 1, f"{edit.file} has {text.count(edit.old)} times: {edit.old}"
    return text.replace(edit.old, edit.new)


class _Finder(importlib.abc.MetaPathFinder):
    def __init__(self, bug: Bug) -> None:
        self._edits: dict[str, list[Edit]] = {}
        for edit in bug.edits:
            self._edits.setdefault(edit.file.removesuffix(".py").replace("/", "."), []).append(edit)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname not in self._edits:
            return None
        file = ROOT / (fullname.replace(".", "/") + ".py")
        loader = _Patched(fullname, str(file))
        loader.edits = self._edits[fullname]
        return importlib.util.spec_from_file_location(fullname, file, loader=loader)


def apply(bug: Bug) -> None:
    """Put a bug into this process, which must not have imported the modules that it changes."""
    early = {edit.file.removesuffix(".py").replace("/", ".") for edit in bug.edits} & set(sys.modules)
    assert not early, f"imported already: {early}"
    sys.meta_path.insert(0, _Finder(bug))
