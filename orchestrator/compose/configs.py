"""The resolved config of each point of the grid: Hydra for group choices, patches for the rest."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf

from orchestrator.compose.axes import Axis, Label, Setting
from orchestrator.compose.commandline import Overrides, is_engine_key, refuse_secrets
from orchestrator.compose.fingerprints import Fingerprints
from orchestrator.compose.overlaps import Overlaps, agreed
from orchestrator.compose.patched import SPECIAL, Patched
from orchestrator.compose.root import Root, translated
from orchestrator.compose.schema import Schema
from orchestrator.core.secrets import known_values
from orchestrator.core.tree import settled
from orchestrator.errors import UserError


class _Composed(NamedTuple):
    patched: Patched
    schema: Schema | None


class Configs:
    """Composes the cells of a sweep.

    Args:
        root: the cells' config root.
        overrides: what is set for all cells, and the axes.
        cwd: what relative paths are relative to.
        import_paths: folders from which a schema may be imported.
        where: the sweep file.

    Raises:
        UserError: an axis chooses an option that does not exist, or sets an engine key.
    """

    def __init__(
        self, root: Root, overrides: Overrides, *, cwd: Path, import_paths: Sequence[str], where: str
    ) -> None:
        self._root, self._overrides, self._where = root, overrides, where
        self._cwd, self._import_paths = cwd, tuple(import_paths)
        self._composed: dict[tuple[str, ...], _Composed] = {}
        self._schemas: dict[str, Schema] = {}
        self._before: dict[str, Any] = {}
        self._known = known_values(os.environ)
        self._groups: dict[str, bool] = {}
        self._last: Patched | None = None
        self._axes = list(overrides.axes.values())
        for axis in self._axes:
            self._check(axis)
        self._overlaps = Overlaps(self._axes, lambda key: self._groups.get(key, False), where=where)

    def config(self, labels: Sequence[Label], *, where: str) -> dict[str, Any]:
        """Returns the typed and resolved config of one point.

        Raises:
            UserError: two axes set one key, or it does not compose, resolve or fit its schema.
        """
        self._overlaps.check(labels)
        groups: list[Setting] = []
        values: list[Setting] = []
        for label in labels:
            for setting in label.settings:
                (groups if self._groups[setting.key] else values).append(setting)
        composed = self._compose(groups)
        self._last = composed.patched
        tree = composed.patched.resolved(values, where=where)
        if composed.schema is not None:
            tree = settled(composed.schema(tree, where=where), self._before)
        refuse_secrets(tree, where=where, checked=self._before, known=self._known)
        self._before = tree
        return tree

    def varying(self, sections: Sequence[str]) -> Iterator[str]:
        """Yield the keys of the last composed point whose value is another each time it is composed.

        Args:
            sections: keys; what is neither in nor above one of them is left out.
        """
        if self._last is not None:
            yield from self._last.varying(sections)

    def shown(self, labels: Sequence[Label], config: Mapping[str, Any], *, where: str) -> list[Label]:
        """Return the labels of a composed point, which say what its config has.

        Args:
            labels: one of each axis.
            config: what `config` returned for them.
            where: the cell.

        Raises:
            UserError: the config has another value than a label says.
        """
        return [
            label
            if axis.is_map or self._groups[label.settings[0].key]
            else agreed(label, config, where=where)
            for axis, label in zip(self._axes, labels, strict=True)
        ]

    def _compose(self, groups: Sequence[Setting]) -> _Composed:
        choices = tuple(_choice(setting) for setting in groups)
        if choices not in self._composed:
            fixed = self._overrides.fixed(self._root, {setting.key for setting in groups})
            config = self._root.compose([*fixed, *choices])
            with translated(self._where):
                special = {key: _special(config, key) for key in SPECIAL}
            wanted = _wanted(special["fingerprints"], self._where)
            patched = Patched(
                config,
                also=list(self._overrides.axes),
                fingerprints=Fingerprints(wanted, cwd=self._cwd, where=self._where),
            )
            self._composed[choices] = _Composed(patched, self._schema(special["schema"]))
        return self._composed[choices]

    def _schema(self, target: Any) -> Schema | None:
        if target is None:
            return None
        if str(target) not in self._schemas:
            schema = Schema(target, import_paths=self._import_paths, where=self._where)
            self._schemas[str(target)] = schema
        return self._schemas[str(target)]

    def _check(self, axis: Axis) -> None:
        where = f"axis {axis.name!r}, {self._where}"
        for label in axis.labels:
            for setting in label.settings:
                refuse_secrets(setting.value, key=setting.key, where=where)
                if is_engine_key(setting.key):
                    raise UserError(
                        f"the engine setting {setting.key!r} cannot be on an axis",
                        where=where,
                        allowed="it is the same for all cells and part of no identity",
                    )
                if setting.key not in self._groups:
                    self._groups[setting.key] = self._root.is_group(setting.key)
                if self._groups[setting.key]:
                    self._root.check_option(setting.key, setting.value, where=where)


def _choice(setting: Setting) -> str:
    """Writes a group choice in Hydra's grammar; an option's name is text, even ``1``."""
    value = setting.value if isinstance(setting.value, list) else str(setting.value)
    return setting._replace(value=value).text


def _special(config: DictConfig, key: str) -> Any:
    value = config.get(key)
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def _wanted(tree: Any, where: str) -> Mapping[str, Sequence[str]]:
    """Checks the shape of `fingerprints`: key of a fingerprint to keys of paths."""
    if tree is None:
        return {}
    if not isinstance(tree, Mapping) or not all(isinstance(keys, list) for keys in tree.values()):
        raise UserError(f"fingerprints is {tree!r}", where=where, allowed="{KEY: [KEY OF A PATH, ...]}")
    return tree
