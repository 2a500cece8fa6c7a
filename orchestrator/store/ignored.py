"""Which files git ignores, each by the work tree that it really lies in."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from orchestrator.errors import UserError
from orchestrator.store.project import git


class _Place(NamedTuple):
    """Where a folder really lies.

    Attributes:
        folder: without symbolic links.
        tree: the top of its git work tree, "" without one.
        doors: work trees, and paths in them that lead here: links to folders, and work trees inside.
    """

    folder: str
    tree: str
    doors: tuple[tuple[str, str], ...] = ()


class Ignored:
    """What git ignores below a folder, beyond symbolic links and in work trees inside too.

    Git answers for no path beyond a link, nor for one in a submodule. Answers are kept.

    Args:
        root: absolute and resolved.
    """

    def __init__(self, root: Path) -> None:
        self._places = {str(root): _Place(str(root), str(root) if _is_tree(str(root)) else "")}
        self._answers: dict[tuple[str, str], bool] = {}
        self._files: dict[str, bool] = {}

    def without(self, paths: Iterable[str], *, known: Collection[str] = ()) -> list[str]:
        """Return the paths that git does not ignore.

        Args:
            paths: of files below the root.
            known: paths of which git need not be asked, since it tracks them.
        """
        paths = list(paths)
        asked = {
            path: self._questions(path) for path in paths if path not in self._files and path not in known
        }
        missing: defaultdict[str, set[str]] = defaultdict(set)
        for tree, path in (question for questions in asked.values() for question in questions):
            if (tree, path) not in self._answers:
                missing[tree].add(path)
        for tree, names in missing.items():
            ignored = _ignored(tree, sorted(names))
            self._answers.update({(tree, name): name in ignored for name in names})
        for path, questions in asked.items():
            self._files[path] = any(self._answers[question] for question in questions)
        return [path for path in paths if not self._files.get(path)]

    def _questions(self, path: str) -> list[tuple[str, str]]:
        folder, name = os.path.split(path)
        place = self._place(folder)
        return [*place.doors, *_question(place, name)]

    def _place(self, folder: str) -> _Place:
        if folder not in self._places:
            parent, name = self._place(os.path.dirname(folder)), os.path.basename(folder)  # noqa: PTH119, PTH120
            real = os.path.realpath(os.path.join(parent.folder, name))  # noqa: PTH118
            is_link = real != os.path.join(parent.folder, name)  # noqa: PTH118
            tree = _tree_of(real) if is_link else real if _is_tree(real) else parent.tree
            doors = _question(parent, name) if is_link or tree != parent.tree else ()
            self._places[folder] = _Place(real, tree, (*parent.doors, *doors))
        return self._places[folder]


def _question(place: _Place, name: str) -> tuple[tuple[str, str], ...]:
    path = os.path.join(place.folder, name)  # noqa: PTH118
    return ((place.tree, os.path.relpath(path, place.tree)),) if place.tree else ()


def _is_tree(folder: str) -> bool:
    """Tell whether a folder is the top of a work tree that git reads."""
    if not os.path.lexists(os.path.join(folder, ".git")):  # noqa: PTH118
        return False
    try:
        top = git(Path(folder), "rev-parse", "--show-toplevel")
    except UserError:  # as without git
        return False
    return top is not None and os.fsdecode(top.removesuffix(b"\n")) == folder


def _tree_of(folder: str) -> str:
    return next((str(path) for path in (Path(folder), *Path(folder).parents) if _is_tree(str(path))), "")


def _ignored(tree: str, names: Sequence[str]) -> set[str]:
    """Return which paths git ignores; one that it refuses hides no answer to the others."""
    asked = b"\0".join(os.fsencode(name) for name in names)
    try:
        listing = git(Path(tree), "check-ignore", "-z", "--stdin", given=asked)
    except UserError:
        half = len(names) // 2
        return _ignored(tree, names[:half]) | _ignored(tree, names[half:]) if half else set()
    return {os.fsdecode(name) for name in (listing or b"").split(b"\0") if name}
