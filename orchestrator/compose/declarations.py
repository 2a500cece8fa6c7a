"""What a config declares beyond its values: a schema, and fingerprints of the files that it names.

A schema adds types, defaults and checks. A fingerprint is a digest of content, and replaces a path in the
identity of stages. A path may change while the content stays, and the reverse. Stages therefore read the
fingerprint, and use the path. A value such as ``org/name`` that is no existing path is a hub id, identified
by its revision.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from orchestrator.compose.axes import KeyValue
from orchestrator.core.tree import MISSING, convert, pick
from orchestrator.errors import UserError
from orchestrator.manifest import Stamp, file_digest, scan, stamps
from orchestrator.registry import importable, load


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
        path = (self._cwd / Path(value).expanduser()).resolve()
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
