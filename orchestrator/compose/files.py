"""Files of a sweep: where it and its config lie, and the schema and fingerprints that the config declares.

A schema adds types, defaults and checks. A fingerprint is a digest of content, and replaces a path in the
identity of stages. A path may change while the content stays, and the reverse. Stages therefore read the
fingerprint, and use the path. A value such as ``org/name`` that is no existing path is a hub id, identified
by its revision.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from omegaconf import DictConfig, OmegaConf

import orchestrator
from orchestrator.compose.axes import Axis, KeyValue, axis_of, cut, texts_of
from orchestrator.compose.reading import read_yaml
from orchestrator.core.selector import Selector, Subject, any_of
from orchestrator.core.sweep import SweepFile, check_name, parse
from orchestrator.core.tree import MISSING, dotted_keys, pick
from orchestrator.errors import UnknownSweep, UserError, home_expanded, nearest, real_path
from orchestrator.manifest import Stamp, file_digest, scan, stamps
from orchestrator.registry import load

CONDITIONS: Final = "orchestrator.compose.conditions:Conditions"
"""Loaded by name: only sweeps with the key `when` need it."""

_SUFFIXES = (".yaml", ".yml")


class SweepEntry(NamedTuple):
    """One line of `sweep list`.

    Attributes:
        name: the sweep's name on the command line.
        path: its file.
        description: first line of its description.
        num_cells: number of cells of its grid; None if that is unknown without composing.
        error: what is wrong with the file, None for a valid file.
    """

    name: str
    path: Path
    description: str
    num_cells: int | None
    error: str | None


def shipped(kind: str) -> Path:
    """Return the folder ``conf`` or ``sweeps`` that comes with the package, from a wheel or a checkout."""
    package = Path(orchestrator.__file__).parent
    # A wheel has the folder inside the package, a checkout beside it.
    inside = package / kind
    return inside if inside.is_dir() else package.parent / kind


def config_folders(cwd: Path, sweep_folder: Path | None = None) -> list[Path]:
    """Return the user's folders of config groups, the nearest first. The built-in folder is not among them.

    Args:
        cwd: the working folder.
        sweep_folder: the folder of the sweep file, searched before the working folder.
    """
    places = ([sweep_folder] if sweep_folder else []) + [cwd]
    folders = dict.fromkeys(real_path(place / "conf") for place in places)
    return [folder for folder in folders if folder.is_dir()]


def locate(sweep: str, cwd: Path) -> Path:
    """Return the file of a sweep.

    Args:
        sweep: a path (with a slash, or ending in .yaml) or a name.
        cwd: the working folder.

    Raises:
        UnknownSweep: no file has this name.
        UserError: there is no file at the path.
    """
    if "/" in sweep or sweep.endswith(_SUFFIXES):
        path = real_path(cwd / home_expanded(sweep))
        if not _is_file(path):
            others = _files(path.parent) if path.parent.is_dir() else []
            what = f"no sweep file {cut(sweep)!r}"
            if os.path.islink(cwd / home_expanded(sweep)):  # noqa: PTH114 - the method raises for long names
                what += f", but a link to {cut(str(path))}, where no file is"
            raise UserError(what, allowed=nearest(path.name, [p.name for p in others]))
        return path
    known: dict[str, Path] = {}
    for path in _all_files(cwd):
        known.setdefault(path.stem, path)
    if sweep not in known:
        beside = [path.name for path in _files(cwd) if path.stem == sweep]
        fix = f"{beside[0]} is a file here" if beside else "`sweep list`, or a path to a file"
        if _is_file(cwd / sweep):
            fix = f"{sweep} is a file, but the name of a sweep file ends in .yaml or .yml"
        if sweep.endswith((".py", ".sh")) and _is_file(cwd / sweep):
            fix = f"a script runs by --run or --app; `sweep new {sweep}` writes a sweep file for it"
        raise UnknownSweep(cut(sweep), [*known, *beside], fix=fix)
    return known[sweep]


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that is too long, or holds a null character
        return False


def read_sweep(path: Path, *, where: str = "") -> SweepFile:
    """Read and validate a sweep file.

    Args:
        path: the file.
        where: how messages name the file; its path by default.

    Raises:
        UserError: the YAML is malformed, a key is unknown, or a type is wrong.
    """
    return parse(_whole(path, where or str(path), ()), where=where or str(path))


def _whole(path: Path, where: str, seen: tuple[Path, ...]) -> dict[str, Any]:
    """Return the mapping of a sweep file, completed from the file that it names as `like`."""
    tree = read_yaml(path, where=where)
    if not isinstance(tree, dict):
        raise UserError("a sweep file holds a mapping", where=where)
    other = tree.pop("like", None)
    if other is None:
        return tree
    if not isinstance(other, str):
        raise UserError(f"like is {other!r}", where=where, allowed="the name of a sweep, or a path")
    source = _other(other, path)
    if source in (*seen, path):
        raise UserError(f"sweep files are `like` one another in a circle: {other}", where=where)
    base = _whole(source, str(source), (*seen, path))
    merged = {key: value for key, value in base.items() if key not in _OWN} | tree
    for key in ("axes", "when", "overrides"):
        if isinstance(base.get(key), dict) and isinstance(tree.get(key), dict):
            merged[key] = base[key] | tree[key]
    return merged


_OWN = ("description", "expect_cells")
"""Keys of a sweep file that are never taken from the file that it is `like`."""


def _other(name: str, path: Path) -> Path:
    """Return the file of another sweep: beside this file, else built in, else found by its name or path."""
    # Later entries win, so a file beside this one hides a built-in sweep of the same name.
    beside = {file.stem: file for file in [*_files(shipped("sweeps").resolve()), *_files(path.parent)]}
    return real_path(beside[name]) if name in beside else locate(name, path.parent)


class SweepSource(NamedTuple):
    """A sweep as written.

    Attributes:
        file: its content.
        text: the same as text, which is recorded.
        name: of the sweep.
        folder: where it lies, and its stages run.
        where: how messages name it.
    """

    file: SweepFile
    text: str
    name: str
    folder: Path
    where: str


def source_in_file(sweep: str, cwd: Path) -> SweepSource:
    """Return a sweep from its file.

    Args:
        sweep: a name, or a path to a YAML file.
        cwd: the working folder.

    Raises:
        UserError: there is no such file, or a mistake in it.
    """
    path = locate(sweep, cwd)
    where = str(path.relative_to(cwd) if path.is_relative_to(cwd) else path)
    file = read_sweep(path, where=where)
    return SweepSource(file, path.read_text(encoding="utf-8"), path.stem, path.parent, where)


def sweep_name(stem: str, name: str | None, *, where: str = "") -> str:
    """Return the name of a sweep in the store: the stem of its file, unless another name is given.

    Args:
        stem: of the sweep file, or of an app's script.
        name: another name, or None.
        where: the sweep file, for messages.

    Raises:
        UserError: the name is not allowed.
    """
    if name is None:
        return check_name(stem, what="sweep", where=where)
    return check_name(name, what="sweep")


def find_sweeps(cwd: Path | None = None) -> list[SweepEntry]:
    """Return the sweeps in ``sweeps/`` of the working folder, then the built-in ones, without composing.

    Args:
        cwd: the working folder; the current one by default.
    """
    entries: dict[str, SweepEntry] = {}
    for path in _all_files(cwd or Path.cwd()):
        if path.stem not in entries:
            entries[path.stem] = _entry(path)
    return list(entries.values())


def _entry(path: Path) -> SweepEntry:
    try:
        file = read_sweep(path)
        description = file.description.strip().partition("\n")[0]
        return SweepEntry(path.stem, path, description, _num_cells(file, str(path)), None)
    except UserError as error:
        return SweepEntry(path.stem, path, "", None, error.what)


def _num_cells(file: SweepFile, where: str) -> int | None:
    by_name = {name: axis_of(name, value, where=where) for name, value in file.axes.items()}
    axes = list(by_name.values())
    if file.phases:  # the most that can exist, which only the file itself states without composing
        return file.expect_cells
    if file.search is not None:
        found = file.search.get("num_cells")
        return found if isinstance(found, int) else None
    excludes = [Selector.parse(text) for text in file.exclude]
    includes = [Selector.parse(text) for text in file.include]
    num_points = math.prod(len(axis.labels) for axis in axes)
    if num_points > file.max_cells:
        return None
    # Selectors of config keys need composed configs; the file's own number is the best answer here.
    if not all(selector.keys <= by_name.keys() for selector in (*excludes, *includes)):
        return file.expect_cells
    if not excludes and not includes and not file.when:
        return num_points
    points = (
        load(CONDITIONS)(file.when, by_name, where=where).points(axes)
        if file.when
        else itertools.product(*(axis.labels for axis in axes))
    )
    subjects = [Subject(texts_of(axes, labels), {}, {}) for labels in points]
    return sum(
        any_of(includes, subject) and not any(selector.matches(subject) for selector in excludes)
        for subject in subjects
    )


def labels_of(axes: Iterable[Axis]) -> Mapping[str, frozenset[str]]:
    """Return the labels of each axis, by its name."""
    return {axis.name: frozenset(label.text for label in axis.labels) for axis in axes}


def _all_files(cwd: Path) -> Iterator[Path]:
    for folder in dict.fromkeys([real_path(cwd / "sweeps"), shipped("sweeps").resolve()]):
        yield from _files(folder)


def _files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.suffix in _SUFFIXES and path.is_file())


_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_LOCAL_KEY = re.compile(r"(.*_)?(dir|folder|file)s?")
"""Keys that always name a local folder or file, so their values are never hub ids."""


class Fingerprints:
    """The fingerprints that a config requests.

    Args:
        wanted: key of a fingerprint to the keys of the paths whose content it represents.
        cwd: the folder to which paths are relative.
        where: what to name in errors.
    """

    def __init__(self, wanted: Mapping[str, Sequence[str]], *, cwd: Path, where: str = "") -> None:
        self._wanted, self._cwd, self._where = wanted, cwd, where
        self._known: dict[tuple[str, tuple[Any, ...]], KeyValue] = {}

    def __call__(self, tree: Mapping[str, Any]) -> list[KeyValue]:
        """Return the settings for a tree. A fingerprint whose paths are all null gets none.

        Args:
            tree: the resolved config.

        Raises:
            UserError: a path does not exist or cannot be read.
        """
        settings = []
        for key, path_keys in self._wanted.items():
            values = [(name, pick(tree, name), self._revision(tree, name)) for name in path_keys]
            held = tuple(
                (name, value, revision) for name, value, revision in values if value not in (None, MISSING)
            )
            if held:
                # All cells of a composition see the same content, even if a file is edited meanwhile. The
                # same object again means "unchanged" to `Patched`.
                if (key, held) not in self._known:
                    self._known[key, held] = KeyValue(key, self._fingerprint(held))
                settings.append(self._known[key, held])
        return settings

    @staticmethod
    def _revision(tree: Mapping[str, Any], path_key: str) -> Any:
        section = path_key.rpartition(".")[0]
        revision = pick(tree, f"{section}.revision" if section else "revision")
        return None if revision is MISSING else revision

    def _fingerprint(self, held: Sequence[tuple[str, Any, Any]]) -> str:
        prints = [self._one(*item) for item in held]
        if len(prints) == 1:
            return prints[0]
        together = "\n".join(prints).encode()
        return f"sha256:{hashlib.sha256(together).hexdigest()}"

    def _one(self, key: str, value: Any, revision: Any) -> str:
        if not isinstance(value, str):
            raise UserError(f"{key} is {value!r}", where=self._where, allowed="a path")
        path = real_path(self._cwd / home_expanded(value))
        if path.exists():
            return content_fingerprint(path)
        is_hub_id = _HUB_ID.fullmatch(value) and not _LOCAL_KEY.fullmatch(key.rpartition(".")[2])
        if is_hub_id:
            # A branch such as main may move on under an unchanged fingerprint; a commit cannot.
            return f"hub:{value}@{revision or 'main'}"
        raise UserError(
            f"missing path {value!r}",
            where=f"{key}, {self._where}" if self._where else key,
            fix=f"{key}=PATH",
        )


def content_fingerprint(path: Path) -> str:
    """Return a digest of a file's content, or of the relative paths, sizes and contents of a folder's files.

    The result is cached until a file changes, because many compositions of a process need the same folders.

    Args:
        path: absolute.

    Raises:
        UserError: the path cannot be read, or a folder contains no file.
    """
    try:
        return _content_fingerprint(path, stamps(path))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None


@functools.lru_cache(maxsize=1024)
def _content_fingerprint(path: Path, stamped: tuple[Stamp, ...]) -> str:
    """Return the digest; `stamped` is part of the cache's key only."""
    if path.is_file():
        return f"sha256:{file_digest(path)}"
    files = scan(path)
    if not files:
        raise UserError(f"{path} holds no file")
    lines = "".join(f"{file.path}\0{file.size}\0{file.sha256}\n" for file in files)
    return f"sha256:{hashlib.sha256(lines.encode()).hexdigest()}"


def unknown_key(key: str, known: Iterable[str], *, where: str = "", fix: str = "") -> UserError:
    """Return the error for a key that a config does not have.

    Args:
        key: the unknown key.
        known: keys that it may be a misspelling of.
        where: what to name in the error.
        fix: how to add the key. It is not shown if a similar key exists, since the key then is a slip.
    """
    # an axis may be named like an unknown key
    allowed = nearest(key, (name for name in known if name != key))
    is_near = allowed.startswith("did you mean")  # then it is a slip
    return UserError(f"unknown key {key!r}", where=where, allowed=allowed, fix="" if is_near else fix)


def known_keys(config: DictConfig) -> list[str]:
    """Return the dotted keys of a composed config."""
    tree: Any = OmegaConf.to_container(config, resolve=False)
    return [*dotted_keys(tree)]
