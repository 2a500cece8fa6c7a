"""The schema that a config names: types, defaults and checks beyond those that YAML can express."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from orchestrator.core.tree import convert
from orchestrator.errors import UserError
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
    """Put folders at the front of `sys.path` for a while."""
    before = list(sys.path)
    sys.path[:0] = [folder for folder in folders if folder not in before]
    try:
        yield
    finally:
        sys.path[:] = before
