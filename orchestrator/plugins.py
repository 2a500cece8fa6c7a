"""Code of others: plugins of installed distributions, and what a sweep file names as ``module:object``.

Plugins are found by their entry points. A group is named ``polysweep.GROUP``, see
`orchestrator.registry.PLUGGABLE`; ``polysweep.conf`` names packages with a folder ``conf``. To read the
metadata of all distributions takes some 10 ms, so it is read only for a name that is not built in.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import inspect
import sys
import warnings
from importlib.machinery import ModuleSpec, PathFinder
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, NamedTuple

from orchestrator.errors import StageFailure, SweepError, UserError, counted, nearest


class _Shape(NamedTuple):
    """What the objects of a group have to be.

    Attributes:
        like: protocols; an object has the methods of one of them.
        num_given: number of arguments with which the object is called; None for one that is not called.
        at_launch: whether it is called before anything is recorded.
    """

    like: tuple[str, ...] = ()
    num_given: int | None = None
    at_launch: bool = False


_LAUNCHERS = "orchestrator.launchers.base"
_SHAPES = {
    "launchers": _Shape((f"{_LAUNCHERS}:Launcher", f"{_LAUNCHERS}:Submitter"), 3, at_launch=True),
    "schedulers": _Shape((f"{_LAUNCHERS}:Scheduler",), 1, at_launch=True),
    "trackers": _Shape(("orchestrator.saving:Tracker",), 1),
    "mirrors": _Shape(("orchestrator.trackers.protocol:Mirror",), 1, at_launch=True),
    "generators": _Shape(("orchestrator.sft.generators.base:Engine",), 1),
    "tasks": _Shape(("orchestrator.tasks.base:Task",)),
    "reports": _Shape(num_given=2),
    "stages": _Shape(("orchestrator.stage:StageSpec",)),
}
"""Group to what its objects have to be; see docs/plugins.md."""


def points(group: str, name: str | None = None) -> dict[str, EntryPoint]:
    """Return the entry points of a group by name. Nothing is imported.

    Args:
        group: without ``polysweep.``; "" for a table that plugins cannot extend.
        name: return only the one of this name, if there is one; None for all.

    Raises:
        UserError: several distributions have an entry point of the name.
    """
    found = _sorted_points(group, tuple(sys.path))
    if name is None:
        return {each.name: each for each in found}
    same = [each for each in found if each.name == name]
    if len(same) > 1:
        raise UserError(
            f"several plugins are named {name!r}",
            where=f"entry points polysweep.{group}",
            allowed=f"one of them; they are from {' and '.join(map(_origin, same))}",
            fix=f"pip uninstall {_origin(same[-1]).partition(' ')[0]}",
        )
    return {each.name: each for each in same}


@functools.lru_cache(maxsize=64)
def _sorted_points(group: str, path: tuple[str, ...]) -> list[EntryPoint]:
    """Return the entry points of a group; `path` only completes the key of the cache."""
    return sorted(entry_points(group=f"polysweep.{group}"), key=lambda each: (each.name, _origin(each)))


def imported(group: str, name: str) -> Any:
    """Import the object of an entry point.

    Raises:
        UserError: it cannot be imported or used, or several distributions have one of this name.
    """
    point = points(group, name)[name]
    what, where = f"the plugin {name!r} of {_origin(point)}", f"entry point polysweep.{group}: {point.value}"
    fix = f"pip install --upgrade {_origin(point).partition(' ')[0]}, or pip uninstall it"
    try:
        with contextlib.redirect_stdout(sys.stderr):  # standard output may be for JSON or a table alone
            made = point.load()
    except (Exception, SystemExit) as error:  # the code of others may raise anything
        problem = f"{what} cannot be imported: {type(error).__name__}: {error}"
        raise UserError(problem, where=where, fix=fix) from error
    return fitting(group, made, what=what, where=where, fix=fix)


def fitting(group: str, made: Any, *, what: str, where: str, fix: str = "") -> Any:
    """Return an object of somebody else's, or raise unless it has what its group needs.

    Args:
        group: without ``polysweep.``; "" for a table that plugins cannot extend.
        made: the object.
        what: its name, for messages.
        where: what names it.
        fix: what to type if it cannot be used.

    Raises:
        UserError: it lacks a method, is of another kind, or cannot be called with what it is given. What it
            returns raises it too, if the object is called before anything is recorded, and fails.
    """
    shape = _SHAPES.get(group, _Shape())
    if problem := _misfit(shape, made):
        like = f"one like {' or '.join(shape.like)}" if shape.like else ""
        raise UserError(f"{what} {problem}", where=where, allowed=like, fix=fix)
    if not shape.at_launch:
        return made

    @functools.wraps(made)
    def make(*given: Any) -> Any:
        try:
            return made(*given)
        except (SweepError, StageFailure, OSError):
            raise
        except Exception as error:
            problem = f"{what} cannot be used: {type(error).__name__}: {error}"
            raise UserError(problem, where=where, fix=fix) from error

    return make


def _misfit(shape: _Shape, made: Any) -> str:
    """Return why an object cannot be used, "" if it can."""
    if shape.num_given is None and isinstance(made, type):
        return "is a class, and an object of it is needed"
    if shape.num_given is not None and not callable(made):
        return f"is of type {type(made).__name__}, and cannot be called"
    if shape.num_given is None or isinstance(made, type):  # not a function, which only makes the object
        lacking = [_lacking(resolve_name(target), made) for target in shape.like]
        fewest = min(lacking, key=len, default=[])
        if fewest:
            return f"lacks {', '.join(fewest)}"
    if shape.num_given is not None:
        with contextlib.suppress(ValueError):  # some callables have no signature
            try:
                inspect.signature(made).bind_partial(*range(shape.num_given))
            except TypeError:
                given = counted(shape.num_given, "argument")
                return f"takes {inspect.signature(made)}, and is called with {given}"
    return ""


def _lacking(kind: Any, made: Any) -> list[str]:
    """Return the methods of a protocol that an object lacks; for a struct, whether it is none."""
    if not getattr(kind, "_is_protocol", False):
        return [] if isinstance(made, kind) else [f"the fields of a {kind.__name__}"]
    needed = [name for name, value in vars(kind).items() if inspect.isfunction(value) and name[0] != "_"]
    return [name for name in needed if not callable(getattr(made, name, None))]


def conf_folders() -> tuple[tuple[Path, ...], str]:
    """Return the folders ``conf`` of the packages that the entry points ``polysweep.conf`` name.

    Returns:
        The folders; and, for a message, the entry points that name no such package or folder: the others are
        used all the same.
    """
    found, problems = [], []
    # The name of a point with a folder stands for nothing, so that two distributions may have the same.
    for point in _sorted_points("conf", tuple(sys.path)):
        spec = None
        # The package around a nested one is imported, and may raise anything.
        with contextlib.suppress(Exception, SystemExit):
            spec = find_spec(point.value)
        places = [Path(place) / "conf" for place in (spec and spec.submodule_search_locations) or ()]
        folders = [place for place in places if place.is_dir()]
        found += folders
        if not folders:
            problem = f"the plugin {point.name!r} of {_origin(point)} has no folder conf in {point.value}"
            problems.append(f"{problem}: pip uninstall {_origin(point).partition(' ')[0]}, or upgrade it")
    return tuple(found), "; ".join(problems)


def _origin(point: EntryPoint) -> str:
    """Return the distribution of an entry point, as ``name version``."""
    return f"{point.dist.name} {point.dist.version}" if point.dist else "an unknown distribution"


def unfound(target: str) -> tuple[str, str]:
    """Return why ``module:object`` cannot be loaded, and what is there instead; two empty texts if it may be.

    Nothing is imported, which might take long or need a GPU: only what the files show beyond doubt counts.
    """
    module, _, name = target.partition(":")
    parts, spec = module.split("."), None
    for depth in range(1, len(parts) + 1):
        parent, part = spec, ".".join(parts[:depth])
        spec = _spec(part, parent)
        if spec is None and (parent is None or not _defined(parent).is_open):
            return f"no module {part!r} can be imported", ""
        if spec is None:
            return "", ""
    assert spec is not None
    defined = _defined(spec)
    if defined.problem:
        return defined.problem, f"python -m py_compile {spec.origin} shows where"
    if defined.is_open or name in defined.names:
        return "", ""
    return f"module {module!r} has no {name!r}", nearest(name, defined.public)


def _spec(name: str, parent: ModuleSpec | None) -> ModuleSpec | None:
    """Return where a module is, without an import of the package that it is in."""
    if parent is not None:
        # By its last name: by the whole one, Python would look for the package among what is imported.
        path = parent.submodule_search_locations
        return None if path is None else PathFinder.find_spec(name.rpartition(".")[2], path)
    try:
        return find_spec(name) if name else None
    except ValueError:  # of __main__
        return None


class _Defined(NamedTuple):
    """What the source of a module defines.

    Attributes:
        names: all that it binds, in any scope.
        public: its own functions and classes.
        is_open: whether it may define more when it runs, or its source cannot be read.
        problem: why it cannot be imported; "" if it can.
    """

    names: frozenset[str] = frozenset()
    public: tuple[str, ...] = ()
    is_open: bool = True
    problem: str = ""


def _defined(spec: ModuleSpec) -> _Defined:
    if not (spec.has_location and str(spec.origin).endswith(".py")):
        return _Defined(is_open=spec.origin is not None or spec.submodule_search_locations is None)
    try:
        with warnings.catch_warnings():  # such as "invalid escape sequence", which some users make an error
            warnings.simplefilter("ignore")
            tree = ast.parse(Path(str(spec.origin)).read_bytes())
    except SyntaxError as error:
        return _Defined(problem=f"{spec.origin}, line {error.lineno}, is no Python: {error.msg}")
    except (OSError, ValueError, MemoryError, RecursionError):
        return _Defined()
    names, is_open = set[str](), False
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                names.add(node.name)
            case ast.alias():
                names.add(node.asname or node.name)
            case ast.Name(ctx=ast.Store()):
                names.add(node.id)
            case ast.Attribute(ctx=ast.Store()):
                names.add(node.attr)
            case (
                ast.Name("globals" | "exec" | "__path__")
                | ast.Call(ast.Name("vars" | "locals"), [])
                | ast.Attribute(ast.Name("sys"), "modules")
            ):
                is_open = True
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    public = tuple(each.name for each in tree.body if isinstance(each, kinds) and each.name[0] != "_")
    return _Defined(
        frozenset(names), public, is_open or not {"*", "__getattr__", "__path__"}.isdisjoint(names)
    )
