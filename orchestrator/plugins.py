"""Plugins: what other installed distributions bring, found by their entry points.

A group is named ``polysweep.GROUP``, see `orchestrator.registry.PLUGGABLE`; ``polysweep.conf`` names packages
with a folder ``conf``. To read the metadata of all distributions takes some 10 ms, so it is read only for a
name that is not built in.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import sys
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, NamedTuple

from orchestrator.errors import StageFailure, SweepError, UserError, counted


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
