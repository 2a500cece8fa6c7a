"""Plugins: what other installed distributions bring, found by their entry points.

A group is named ``polysweep.GROUP``, see `orchestrator.registry.PLUGGABLE`; ``polysweep.conf`` names packages
with a folder ``conf``. To read the metadata of all distributions takes some 10 ms, so it is read only for a
name that is not built in.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from orchestrator.errors import UserError


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
        UserError: it cannot be imported, or several distributions have one of this name.
    """
    point = points(group, name)[name]
    try:
        return point.load()
    except Exception as error:  # the code of others may raise anything
        raise UserError(
            f"the plugin {name!r} of {_origin(point)} cannot be imported: {type(error).__name__}: {error}",
            where=f"entry point polysweep.{group}: {point.value}",
            fix=f"pip install --upgrade {_origin(point).partition(' ')[0]}, or pip uninstall it",
        ) from error


def conf_folders() -> tuple[Path, ...]:
    """Return the folders ``conf`` of the packages that the entry points ``polysweep.conf`` name.

    Raises:
        UserError: there is no such package, or it has no such folder.
    """
    found = []
    # The name of a point with a folder stands for nothing, so that two distributions may have the same.
    for point in _sorted_points("conf", tuple(sys.path)):
        spec = None
        with contextlib.suppress(
            Exception
        ):  # the package around a nested one is imported, and may raise anything
            spec = find_spec(point.value)
        places = [Path(place) / "conf" for place in (spec and spec.submodule_search_locations) or ()]
        folders = [place for place in places if place.is_dir()]
        if not folders:
            raise UserError(
                f"the plugin {point.name!r} of {_origin(point)} has no folder conf",
                where=f"entry point polysweep.conf: {point.value}",
                fix=f"pip uninstall {_origin(point).partition(' ')[0]}, or upgrade it",
            )
        found += folders
    return tuple(found)


def _origin(point: EntryPoint) -> str:
    """Return the distribution of an entry point, as ``name version``."""
    return f"{point.dist.name} {point.dist.version}" if point.dist else "an unknown distribution"
