"""Content fingerprints: what stands in a stage's identity for a path that may move.

It reads files; a path of the form ``org/name`` that is not there is a hub id, pinned by its revision.
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
from orchestrator.errors import UserError
from orchestrator.manifest import file_digest, scan

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_LOCAL_KEY = re.compile(r"(.*_)?(dir|folder|file)s?")
"""Keys that name a folder or file; a hub id is never meant by them."""


class Fingerprints:
    """The fingerprints that a config asks for.

    Args:
        wanted: key of a fingerprint to the keys of the paths whose content it stands for.
        cwd: what relative paths are relative to.
        where: what to name in errors.
    """

    def __init__(self, wanted: Mapping[str, Sequence[str]], *, cwd: Path, where: str = "") -> None:
        self._wanted, self._cwd, self._where = wanted, cwd, where
        self._known: dict[str, tuple[tuple[Any, ...], KeyValue]] = {}

    def __call__(self, tree: Mapping[str, Any]) -> list[KeyValue]:
        """Returns what to set: nothing for a fingerprint whose paths are all null.

        Raises:
            UserError: a path that is not there.
        """
        settings = []
        for key, path_keys in self._wanted.items():
            values = [(name, pick(tree, name), self._revision(tree, name)) for name in path_keys]
            held = tuple(
                (name, value, revision) for name, value, revision in values if value not in (None, MISSING)
            )
            if held:
                if self._known.get(key, ((), None))[0] != held:
                    self._known[key] = held, KeyValue(key, self._fingerprint(held))
                settings.append(self._known[key][1])
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
            return f"hub:{value}@{revision or 'main'}"
        raise UserError(
            f"missing path {value!r}",
            where=f"{key}, {self._where}" if self._where else key,
            fix=f"{key}=PATH",
        )


@functools.cache
def content_fingerprint(path: Path) -> str:
    """Returns a digest of a file's content, or of a folder's relative paths, sizes and contents.

    Remembered for the life of the process: a plan asks for the same folder in every cell.

    Raises:
        UserError: it cannot be read, or a folder holds no file.
    """
    try:
        if path.is_file():
            return f"sha256:{file_digest(path)}"
        files = scan(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    if not files:
        raise UserError(f"{path} holds no file")
    lines = "".join(f"{file.path}\0{file.size}\0{file.sha256}\n" for file in files)
    return f"sha256:{hashlib.sha256(lines.encode()).hexdigest()}"
