"""Content fingerprints: digests of files, which replace their paths in the identity of stages.

A path may change while the content stays, and the reverse. Stages therefore read the fingerprint, and use
the path. A value such as ``org/name`` that is no existing path is a hub id, identified by its revision.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from orchestrator.compose.axes import KeyValue
from orchestrator.core.tree import MISSING, pick
from orchestrator.digests import file_digest
from orchestrator.errors import UserError
from orchestrator.manifest import Stamp, scan, stamps

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
