"""The files of a project's code: what git tracks or would track, or else the content of the folder.

- In a git work tree: tracked files that exist, and untracked files that are not ignored. Nested repositories
  and initialised submodules are listed by their own git.
- Elsewhere: all files except hidden folders, ``node_modules`` and virtual environments.
- Never ``__pycache__``, which Python rewrites.
- A symbolic link stays a link, made relative, when its target is listed too. Otherwise the content of the
  target file takes its place. A link to a folder outside is left out, because such folders hold data.
"""

from __future__ import annotations

import ast
import os
import re
import stat
import subprocess
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Literal, NamedTuple

from orchestrator.errors import UserError
from orchestrator.provenance import git_environment

MAX_LISTED = 200_000
"""Most files to list. A home folder may hold millions, and an error message needs only the largest."""


class Found(NamedTuple):
    """A file or link of a project.

    Attributes:
        path: Path relative to the project's root, with ``/``.
        kind: File, executable file, or link.
        source: Path from which the content is read.
        size: Size in bytes; of a link, the length of its target.
        mode: Permission bits.
        link: Target of a link, relative to the link's folder; "" for a file.
    """

    path: str
    kind: Literal["file", "exec", "link"]
    source: Path
    size: int
    mode: int = 0o400
    link: str = ""


def root_of(folder: Path) -> Path:
    """Return the top of the git work tree that contains a folder, or the folder itself.

    The folder itself is also returned when git ignores it, because then its files would not be listed.

    Args:
        folder: Absolute and resolved path.

    Raises:
        UserError: Git refuses to read the work tree.
    """
    top = git(folder, "rev-parse", "--show-toplevel")
    if not top:
        return folder
    root = Path(os.fsdecode(top.removesuffix(b"\n")))
    # Example: a scratch folder inside a repository, listed in its .gitignore.
    if folder != root and git(root, "check-ignore", "--quiet", "--", str(folder)) is not None:
        return folder
    return root


def paths_in(root: Path, left_out: Sequence[Path] = ()) -> set[Path]:
    """List the files and links of a project, at most `MAX_LISTED`.

    Args:
        root: Absolute and resolved path.
        left_out: Folders whose files are not listed.

    Raises:
        UserError: Git refuses to read a work tree.
    """
    return set(islice(_listed(root, left_out), MAX_LISTED))


def files_of(root: Path, paths: Iterable[Path]) -> list[Found]:
    """Describe the files of a project, sorted by path. Files that no longer exist are left out.

    Args:
        root: The project's root.
        paths: Files and links below it.

    Raises:
        UserError: A file cannot be read.
    """
    links: list[Path] = []
    found: dict[str, Found] = {}
    for path in paths:
        try:
            info = path.lstat()
        except (FileNotFoundError, NotADirectoryError):
            continue  # tracked by git, but deleted
        except OSError as error:
            raise unreadable(path, error) from error
        if stat.S_ISLNK(info.st_mode):
            links.append(path)
        elif stat.S_ISREG(info.st_mode):
            found[path.relative_to(root).as_posix()] = _file(path, root, path, info)
    listed = {*found, *(parent.as_posix() for name in found for parent in Path(name).parents)}
    kept = {file.path: file for link in links if (file := _link(link, root, listed)) is not None}
    for name in list(found):
        # A link to a folder covers the files below it; they are listed under their real path.
        if any(parent.as_posix() in kept for parent in Path(name).parents):
            del found[name]
    return [file for _, file in sorted({**found, **kept}.items())]


def unreadable(path: Path, error: OSError) -> UserError:
    """Return the error for a file that cannot be read."""
    return UserError(f"cannot read {path}: {error.strerror}", fix="mend it, or list it in .gitignore")


def everything_in(root: Path) -> list[Found]:
    """List a package's files without compiled and hidden ones, whether or not git ignores them."""
    paths = (Path(folder, name) for folder, _, names in os.walk(root) for name in names)
    shown = [path for path in paths if not any(is_hidden(p) for p in path.relative_to(root).parts)]
    return sorted(_file(p, root, p, p.stat()) for p in shown if p.suffix != ".pyc" and p.is_file())


def is_hidden(name: str) -> bool:
    """Return whether a name is hidden, or a folder that Python rewrites."""
    return name.startswith(".") or name == "__pycache__"


def _file(path: Path, root: Path, source: Path, info: os.stat_result) -> Found:
    kind: Literal["file", "exec"] = "exec" if info.st_mode & 0o100 else "file"
    return Found(path.relative_to(root).as_posix(), kind, source, info.st_size, stat.S_IMODE(info.st_mode))


def _link(path: Path, root: Path, listed: set[str]) -> Found | None:
    """Describe a link, or the file that it leads to; return None when there is nothing to include."""
    try:
        target = path.resolve(strict=True)
        info = target.stat()
    except (OSError, RuntimeError):  # dangling or circular
        return None
    if target.is_relative_to(root) and target.relative_to(root).as_posix() in listed:
        # Relative, so that the link leads to the file in the snapshot, not to the original.
        text = os.path.relpath(target, path.parent)
        return Found(path.relative_to(root).as_posix(), "link", path, len(os.fsencode(text)), link=text)
    return _file(path, root, target, info) if stat.S_ISREG(info.st_mode) else None


def _listed(folder: Path, left_out: Sequence[Path]) -> Iterator[Path]:
    """Yield the files of a folder, including those of submodules and nested repositories."""
    by_git = _list_by_git(folder, left_out) if (folder / ".git").exists() else None
    outside = tuple(str(path) for path in left_out)
    for path in _walk(folder, left_out) if by_git is None else by_git:
        text = str(path)
        if "/__pycache__/" in text or any(text == out or text.startswith(f"{out}/") for out in outside):
            continue
        if _is_folder(path):  # a submodule or a nested repository
            yield from _listed(path, left_out)
        else:
            yield path


def _is_folder(path: Path) -> bool:
    try:
        return stat.S_ISDIR(path.lstat().st_mode)
    except OSError:
        return False


def _list_by_git(folder: Path, left_out: Sequence[Path]) -> list[Path] | None:
    """Return the files that git lists; None when git cannot be used here."""
    inside = [path.relative_to(folder).as_posix() for path in left_out if path.is_relative_to(folder)]
    # Escape characters that are special in git's patterns.
    patterns = [re.sub(r"([^/\w.-])", r"\\\1", name) for name in inside if name != "."]
    # Excluded already by git, because a store may hold millions of files.
    excluded = [f"--exclude=/{pattern}" for pattern in patterns]
    listing = git(folder, "ls-files", "-z", "--cached", "--others", "--exclude-standard", *excluded)
    if listing is None:
        return None
    names = (os.fsdecode(name).rstrip("/") for name in listing.split(b"\0"))
    return [folder / name for name in dict.fromkeys(names) if name not in ("", ".")]


def _walk(folder: Path, left_out: Sequence[Path]) -> Iterator[Path]:
    """Yield files, and folders that are git work trees of their own."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except (FileNotFoundError, PermissionError):  # a folder that cannot be read cannot be imported either
        return
    for entry in entries:
        path = Path(entry.path)
        if not entry.is_dir(follow_symlinks=False):
            if path.suffix != ".pyc":
                yield path
        elif not (is_hidden(entry.name) or entry.name == "node_modules" or path in left_out):
            if (path / ".git").exists():
                yield path
            elif not (path / "pyvenv.cfg").exists():
                yield from _walk(path, left_out)


def is_installed(path: Path) -> bool:
    """Return whether a folder belongs to an environment, whose packages are recorded separately."""
    return not {"site-packages", "dist-packages"}.isdisjoint(path.parts)


def git(folder: Path, *words: str, given: bytes = b"") -> bytes | None:
    """Return the output of a git command; None when it reports "no", is not installed, or finds no work tree.

    Args:
        folder: Folder in which git runs.
        words: Arguments of git.
        given: Standard input.

    Raises:
        UserError: Git failed for another reason, such as a work tree that belongs to another user.
    """
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *words],
            capture_output=True,
            env=git_environment(),
            input=given,
            check=False,
        )
    except FileNotFoundError:
        return None
    # Exit code 1 is an answer: "not ignored", or "nothing found".
    if done.returncode in (0, 1):
        return done.stdout if done.returncode == 0 else None
    says = done.stderr.decode(errors="replace").strip()
    if "not a git repository" in says or "must be run in a work tree" in says:
        return None
    lines = says.splitlines() or [f"exit code {done.returncode}"]
    raise UserError(
        f"git cannot list the code in {folder}: {lines[0]}",
        fix=next((line.strip() for line in lines if line.strip().startswith("git ")), ""),
    )


class _WorkTree(NamedTuple):
    """The real location of a folder.

    Attributes:
        folder: Path without symbolic links.
        tree: Top of its git work tree, "" without one.
        doors: Pairs of a work tree and a path in it through which the folder is reached: a link to a folder,
            or a nested work tree. If git ignores one of them, it ignores the folder.
    """

    folder: str
    tree: str
    doors: tuple[tuple[str, str], ...] = ()


class Ignored:
    """The files that git ignores below a folder, also beyond symbolic links and in nested work trees.

    Git answers neither for a path beyond a link nor for one in a submodule. Each path is therefore translated
    into queries to the work trees that it passes through, and is ignored when any of them ignores it::

        project/link/x.py, link -> /data/repo/sub     queries: "link" in project, "sub/x.py" in /data/repo

    Results are cached.

    Args:
        root: Absolute and resolved path.
    """

    def __init__(self, root: Path) -> None:
        self._places = {str(root): _WorkTree(str(root), str(root) if _is_tree(str(root)) else "")}
        self._answers: dict[tuple[str, str], bool] = {}
        self._files: dict[str, bool] = {}

    def without(self, paths: Iterable[str], *, known: Collection[str] = ()) -> list[str]:
        """Return the paths that git does not ignore.

        Args:
            paths: Files below the root.
            known: Paths that git tracks, which need no query.
        """
        paths = list(paths)
        asked = {
            path: self._questions(path) for path in paths if path not in self._files and path not in known
        }
        missing: defaultdict[str, set[str]] = defaultdict(set)
        for tree, path in (question for questions in asked.values() for question in questions):
            if (tree, path) not in self._answers:
                missing[tree].add(path)
        # One git process per work tree, for all paths at once.
        for tree, names in missing.items():
            ignored = _ignored(tree, sorted(names))
            self._answers.update({(tree, name): name in ignored for name in names})
        for path, questions in asked.items():
            self._files[path] = any(self._answers[question] for question in questions)
        return [path for path in paths if not self._files.get(path)]

    def _questions(self, path: str) -> list[tuple[str, str]]:
        """Return the queries, as (work tree, path), that decide about one file."""
        folder, name = os.path.split(path)
        place = self._place(folder)
        return [*place.doors, *_question(place, name)]

    def _place(self, folder: str) -> _WorkTree:
        """Return where a folder really lies; derived from its parent, and cached."""
        if folder not in self._places:
            parent, name = self._place(os.path.dirname(folder)), os.path.basename(folder)  # noqa: PTH119, PTH120
            real = os.path.realpath(os.path.join(parent.folder, name))  # noqa: PTH118
            is_link = real != os.path.join(parent.folder, name)  # noqa: PTH118
            tree = _tree_of(real) if is_link else real if _is_tree(real) else parent.tree
            doors = _question(parent, name) if is_link or tree != parent.tree else ()
            self._places[folder] = _WorkTree(real, tree, (*parent.doors, *doors))
        return self._places[folder]


def _question(place: _WorkTree, name: str) -> tuple[tuple[str, str], ...]:
    path = os.path.join(place.folder, name)  # noqa: PTH118
    return ((place.tree, os.path.relpath(path, place.tree)),) if place.tree else ()


def _is_tree(folder: str) -> bool:
    """Return whether a folder is the top of a work tree that git can read."""
    if not os.path.lexists(os.path.join(folder, ".git")):  # noqa: PTH118
        return False
    try:
        top = git(Path(folder), "rev-parse", "--show-toplevel")
    except UserError:  # git refuses to read it: treat it as a plain folder
        return False
    return top is not None and os.fsdecode(top.removesuffix(b"\n")) == folder


def _tree_of(folder: str) -> str:
    """Return the innermost work tree that contains a folder, "" when there is none."""
    return next((str(path) for path in (Path(folder), *Path(folder).parents) if _is_tree(str(path))), "")


def _ignored(tree: str, names: Sequence[str]) -> set[str]:
    """Return the paths that git ignores.

    Git fails as a whole when it rejects one path. The list is then halved until the rejected path is alone,
    so that all others get their answer.
    """
    asked = b"\0".join(os.fsencode(name) for name in names)
    try:
        listing = git(Path(tree), "check-ignore", "-z", "--stdin", given=asked)
    except UserError:
        half = len(names) // 2
        return _ignored(tree, names[:half]) | _ignored(tree, names[half:]) if half else set()
    return {os.fsdecode(name) for name in (listing or b"").split(b"\0") if name}


def imported_files(script: str) -> Iterator[str]:
    """Yield the modules beside a script that it imports, also through one another.

    Python searches the folder of a script before all others.

    Args:
        script: path of the script, without symbolic links.
    """
    home, todo, seen = os.path.dirname(script), [script], {script}  # noqa: PTH120
    while todo:
        path = todo.pop()
        try:
            names = list(_modules_named(ast.parse(Path(path).read_bytes()), path, home))
        except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
            continue  # Python rejects it too, or it is nested too deeply to be read
        for name in names:
            for found in (f"{name}.py", f"{name}/__init__.py"):
                if found not in seen and os.path.isfile(found):  # noqa: PTH113
                    seen.add(found)
                    todo.append(found)
                    yield found


def _modules_named(tree: ast.Module, path: str, home: str) -> Iterator[str]:
    """Yield the paths, without suffix, of the modules that a file's imports may mean."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            named, folder = [alias.name for alias in node.names], home
        elif isinstance(node, ast.ImportFrom):
            above = Path(path).parents
            if node.level > len(above):
                continue  # above the root: an import that fails, perhaps caught
            folder = str(above[node.level - 1]) if node.level else home
            named = [f"{node.module or ''}.{alias.name}".lstrip(".") for alias in node.names]
        else:
            continue
        for parts in (name.split(".") for name in named):
            yield from (os.path.join(folder, *parts[:end]) for end in range(1, len(parts) + 1))  # noqa: PTH118
