"""The schema that a config names: types, defaults and checks beyond those that YAML can express."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Iterable, Iterator, Sequence
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import msgspec

from orchestrator.core.tree import convert
from orchestrator.errors import UserError
from orchestrator.manifest import Stamp, stamps
from orchestrator.registry import load


class Schema:
    """A converter that applies a schema to resolved trees.

    Args:
        target: ``module:Struct``, a `msgspec.Struct`.
        import_paths: folders from which it may be imported, besides `sys.path`.
        where: what to name in errors.

    Raises:
        UserError: there is no such struct.
    """

    def __init__(self, target: Any, *, import_paths: Sequence[str] = (), where: str = "") -> None:
        if not isinstance(target, str):
            raise UserError(f"schema is {target!r}", where=where, allowed="module:Struct")
        with importable(import_paths):
            self._struct = load(target, where=f"schema, {where}")
        if not (isinstance(self._struct, type) and issubclass(self._struct, msgspec.Struct)):
            raise UserError(f"schema {target!r} is no msgspec.Struct", where=where)

    def __call__(self, tree: dict[str, Any], *, where: str = "") -> dict[str, Any]:
        """Return the tree with converted values and defaults.

        Args:
            tree: the resolved config.
            where: the cell, for messages.

        Raises:
            UserError: a key is unknown, a type is wrong, or the struct's own `check` refuses the config.
        """
        config = convert(tree, self._struct, where=where)
        check = getattr(config, "check", None)
        if callable(check):
            try:
                check()
            except UserError as error:
                raise UserError(
                    error.what, where=error.where or where, allowed=error.allowed, fix=error.fix
                ) from None
        # Identities are digests of plain trees, so the struct itself is not kept.
        plain: dict[str, Any] = msgspec.to_builtins(config)
        return plain


@contextlib.contextmanager
def importable(folders: Sequence[str]) -> Iterator[None]:
    """Put folders at the front of `sys.path` for a while.

    A notebook composes sweeps of several folders, and edits their code meanwhile. Two folders may have a
    module of the same name. So modules that were imported here before are imported again if the file of one
    has changed, or if another file has its name now.
    """
    before = list(sys.path)
    sys.path[:0] = [folder for folder in folders if folder not in before]
    _forget_stale()
    known = {*sys.modules}
    try:
        yield
    finally:
        sys.path[:] = before
        _remember(sys.modules.keys() - known, folders)


class _Imported(NamedTuple):
    """A module that was imported from one of the user's folders, and its file as it was then."""

    module: ModuleType
    file: str
    stamps: tuple[Stamp, ...]


_imported: dict[str, _Imported] = {}


def _remember(names: Iterable[str], folders: Sequence[str]) -> None:
    """Remember those of some new modules that lie in the folders, but not in an environment inside them."""
    for name in names:
        module, top = sys.modules[name], sys.modules.get(name.partition(".")[0])
        file, first = getattr(module, "__file__", None), getattr(top, "__file__", None)
        if file and first:
            place = Path(first).parent.parent if hasattr(top, "__path__") else Path(first).parent
            if str(place) in folders:
                _imported[name] = _Imported(module, file, stamps(Path(file)))


def _forget_stale() -> None:
    """Have all remembered modules imported again if one of them is stale, since others may have used it."""
    importlib.invalidate_caches()
    if any(each.stamps != stamps(Path(each.file)) or _is_hidden(name) for name, each in _imported.items()):
        for name, each in _imported.items():
            if sys.modules.get(name) is each.module:
                del sys.modules[name]
        _imported.clear()


def _is_hidden(name: str) -> bool:
    """Return whether an import of a top-level module would find another file now."""
    spec = PathFinder.find_spec(name) if "." not in name else None
    return spec is not None and spec.origin != _imported[name].file
