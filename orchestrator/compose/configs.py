"""The resolved config of each point of the grid. Hydra composes group choices; patches do the rest."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import Container, DictConfig, OmegaConf, open_dict
from omegaconf.errors import ConfigAttributeError, ConfigKeyError

from orchestrator.compose.axes import Axis, KeyValue, Label
from orchestrator.compose.files import Fingerprints, known_keys, unknown_key
from orchestrator.compose.interpolations import (
    Interpolation,
    KeyPath,
    Overlaps,
    agreed,
    depends,
    has_interpolation,
    holds,
    in_order,
    is_related,
    may_vary,
    references,
    varying,
)
from orchestrator.compose.overrides import Overrides, is_engine_key, refuse_secrets
from orchestrator.compose.root import Root, Schema, translated
from orchestrator.core.secrets import known_values
from orchestrator.core.tree import MISSING, pick, share_unchanged, with_value
from orchestrator.errors import UserError

SPECIAL = ("schema", "fingerprints")
"""Top-level keys that configure the engine, and are removed from a cell's config."""


class _Reached(NamedTuple):
    """What to resolve again after some keys changed.

    Attributes:
        asked: paths that OmegaConf resolves.
        filled: interpolations that are filled in here, in an order in which each finds its inputs.
    """

    asked: list[KeyPath]
    filled: list[Interpolation]


class _Resolved(NamedTuple):
    config: DictConfig
    plain: dict[str, Any]
    settings: Sequence[KeyValue]


class Patched:
    """One composed config, patched for one cell after another.

    Hydra and OmegaConf are too slow to compose and resolve each of ten thousand cells. But cells with the
    same group choices differ in few keys, so each is derived from the one before it:

        lr: 0.1   seed: 0   name: run-${seed}   schedule: {peak: ${lr}}
        seed 0 -> 1:  set `seed`, then fill in `name` again; `lr` and `schedule` stay the same objects

    This is correct only if a setting can be undone, see `_is_simple`. All other cells patch a copy of the
    composed config and resolve it as a whole. Both ways give the same tree as Hydra does for the cell alone.

    Args:
        config: as composed, in struct mode. It is modified.
        also: further names that an unknown key may be a misspelling of.
        fingerprints: returns further settings for a resolved tree.
    """

    def __init__(
        self,
        config: DictConfig,
        *,
        also: Sequence[str] = (),
        fingerprints: Callable[[Mapping[str, Any]], Sequence[KeyValue]] = lambda tree: (),
    ) -> None:
        with open_dict(config):
            for key in SPECIAL:
                config.pop(key, None)
        self._pristine, self._also, self._fingerprints = config, also, fingerprints
        self._config = config
        self._raw: dict[str, Any] = OmegaConf.to_container(config, resolve=False)  # type: ignore[assignment]
        self._references = list(references(self._raw))
        self._last = _Resolved(config, {}, ())
        self._current: dict[str, KeyValue] = {}
        self._plain: dict[str, Any] | None = None
        self._prints: tuple[KeyValue, ...] = ()
        self._memo: dict[tuple[frozenset[str], frozenset[str]], _Reached] = {}
        self._simple: dict[tuple[str, ...], bool] = {}

    @cached_property
    def _varying(self) -> list[str]:
        """The keys with interpolations whose values differ from one resolution to the next."""
        keys = (".".join(each.path) for each in self._references)
        return [key for key in keys if may_vary(str(pick(self._raw, key)))]

    def resolved(self, settings: Sequence[KeyValue], *, where: str = "") -> dict[str, Any]:
        """Return the resolved plain tree for some settings, which replace those of the previous call.

        Args:
            settings: keys and their values.
            where: the cell, for messages.

        Raises:
            UserError: a key is unknown, a value is not set, or an interpolation refers to nothing.
        """
        tree = self._resolved([*settings, *self._prints], where)
        # Paths are resolved values, so fingerprints need a tree first. They seldom change between cells.
        prints = tuple(self._fingerprints(tree))
        if prints != self._prints:
            self._prints = prints
            tree = self._resolved([*settings, *prints], where)
        return tree

    def varying(self, sections: Sequence[str]) -> Iterator[str]:
        """Yield the keys of the last resolved tree whose values would differ if it was resolved again.

        Args:
            sections: keys to restrict the search to, with all that is in or above them.
        """
        config, plain, settings = self._last
        keys = tuple(setting.key for setting in settings)
        if not self._varying and not any(may_vary(str(setting.value)) for setting in settings):
            return
        if self._simple[keys]:
            seeds = {
                next((key for key in keys if f"{each}.".startswith(f"{key}.")), each)
                for each in self._varying
            }
            seeds |= {setting.key for setting in settings if has_interpolation(setting.value)}
            asked, filled = self._reached(frozenset(seeds), frozenset(keys))
            paths = [*asked, *(reference.path for reference in filled)]
        else:
            paths = [(str(name),) for name in plain]
        paths = [path for path in paths if any(holds(section, ".".join(path)) for section in sections)]
        if paths:
            yield from varying(config, plain, paths, _value)

    def _resolved(self, settings: Sequence[KeyValue], where: str) -> dict[str, Any]:
        keys = tuple(setting.key for setting in settings)
        if keys not in self._simple:
            self._simple[keys] = self._is_simple(settings)
        with translated(where):
            if self._simple[keys]:
                tree: dict[str, Any] = self._incremental(
                    {setting.key: setting for setting in settings}, where
                )
                self._last = _Resolved(self._config, tree, settings)
                return tree
            config = copy.deepcopy(self._pristine)
            for setting in settings:
                self._update(config, setting, where)
            tree = _plain(config)
            self._last = _Resolved(config, tree, settings)
            return tree

    def _incremental(self, wanted: dict[str, KeyValue], where: str) -> dict[str, Any]:
        current = self._current
        changed = {key for key in {*current, *wanted} if current.get(key) is not wanted.get(key)}
        plain, self._plain = self._plain, None  # stays None if this cell fails
        if plain is None:  # the first cell, or the previous one failed halfway
            self._config, current, changed = copy.deepcopy(self._pristine), {}, set(wanted)
        # Restore keys that are no longer set, and mappings, which OmegaConf merges instead of replacing.
        for key in sorted(changed, key=len):
            raw = pick(self._raw, key)
            values = [raw, *(cell[key].value for cell in (current, wanted) if key in cell)]
            if key not in wanted or any(isinstance(value, Mapping) for value in values):
                OmegaConf.update(self._config, key, copy.deepcopy(raw), merge=False)
        for key in changed & wanted.keys():
            self._update(self._config, wanted[key], where)
        if plain is None:
            plain = _plain(self._config)
        else:
            # An interpolation that a setting brings along is resolved again in every cell.
            reaching = {key for key, setting in wanted.items() if has_interpolation(setting.value)}
            asked, filled = self._reached(frozenset(changed | reaching), frozenset(wanted))
            for path in asked:
                plain = with_value(plain, path, _value(self._config, path))
            for reference in filled:
                value = reference.filled(plain)
                plain = with_value(
                    plain, reference.path, _value(self._config, reference.path) if value is MISSING else value
                )
        self._current, self._plain = wanted, plain
        return plain

    def _reached(self, seeds: frozenset[str], patched: frozenset[str]) -> _Reached:
        """Return what to resolve again after some keys changed, without paths inside other such paths.

        Starting from the changed keys, add every interpolation that may read one of them, until none is left.

        Args:
            seeds: the changed keys.
            patched: the keys of all settings in force.
        """
        if (seeds, patched) not in self._memo:
            roots = [tuple(key.split(".")) for key in patched]
            dirty = {tuple(key.split(".")) for key in seeds}
            left = {reference.path: reference for reference in self._references}
            while found := [item for item in left.values() if item.path in dirty or depends(item, dirty)]:
                for item in found:
                    del left[item.path]
                    # A patch may have replaced the section with the interpolation; then resolve the section.
                    dirty.add(next((root for root in roots if item.path[: len(root)] == root), item.path))
            paths = [path for path in dirty if not any(path[:n] in dirty for n in range(1, len(path)))]
            filled = in_order(
                item
                for item in self._references
                if item.template and item.path in paths and item.path not in roots
            )
            done = {reference.path for reference in filled}
            self._memo[seeds, patched] = _Reached([path for path in paths if path not in done], filled)
        return self._memo[seeds, patched]

    def _is_simple(self, settings: Sequence[KeyValue]) -> bool:
        """Return whether restoring raw values can undo the settings: all keys exist, and no two overlap."""
        keys = [setting.key.split(".") for setting in settings]
        overlap = any(is_related(tuple(a), tuple(b)) for index, a in enumerate(keys) for b in keys[:index])
        plain = all(
            not setting.prefix and pick(self._raw, setting.key) is not MISSING for setting in settings
        )
        return plain and not overlap

    def _update(self, config: DictConfig, setting: KeyValue, where: str) -> None:
        force_add = setting.prefix != ""
        try:
            OmegaConf.update(config, setting.key, setting.value, merge=True, force_add=force_add)
        except (ConfigAttributeError, ConfigKeyError):
            known = [*self._also, *known_keys(self._pristine)]
            raise unknown_key(setting.key, known, where=where) from None


def _value(config: DictConfig, path: KeyPath) -> Any:
    """Return the resolved value at a path."""
    value: Any = config
    for part in path:
        value = value[part]
    return _plain(value) if isinstance(value, Container) else value


def _plain(config: Container) -> Any:
    """Return a container as plain dicts and lists, with all interpolations resolved."""
    return OmegaConf.to_container(config, resolve=True, throw_on_missing=True)


class _Composed(NamedTuple):
    patched: Patched
    schema: Schema | None


class Configs:
    """Composer of the configs of a sweep's cells.

    Args:
        root: the cells' config root.
        overrides: the settings for all cells, and the axes.
        cwd: the folder to which paths are relative.
        import_paths: folders from which a schema may be imported.
        where: the sweep file.

    Raises:
        UserError: an axis chooses an unknown option, or sets an engine setting or a credential.
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
        axes = list(overrides.axes.values())
        for axis in axes:
            self._check(axis)
        self._overlaps = Overlaps(axes, lambda key: self._groups.get(key, False), where=where)

    def config(self, labels: Sequence[Label], *, where: str) -> dict[str, Any]:
        """Return the resolved config of one point, converted by its schema.

        Args:
            labels: one of each axis.
            where: the cell, for messages.

        Raises:
            UserError: two axes set one key, the config contains a credential, or it cannot be composed,
                resolved or converted.
        """
        self._overlaps.check(labels)
        groups: list[KeyValue] = []
        values: list[KeyValue] = []
        for label in labels:
            for setting in label.settings:
                (groups if self._groups[setting.key] else values).append(setting)
        composed = self._compose(groups)
        self._last = composed.patched
        tree = composed.patched.resolved(values, where=where)
        if composed.schema is not None:
            tree = share_unchanged(composed.schema(tree, where=where), self._before)
        refuse_secrets(tree, where=where, checked=self._before, known=self._known)
        self._before = tree
        return tree

    def varying(self, sections: Sequence[str]) -> Iterator[str]:
        """Yield the keys of the last composed point whose values differ each time it is composed.

        Args:
            sections: keys to restrict the search to, with all that is in or above them.
        """
        if self._last is not None:
            yield from self._last.varying(sections)

    def shown(self, labels: Sequence[Label], config: Mapping[str, Any], *, where: str) -> list[Label]:
        """Return the labels of a composed point, after a check that they state what its config has.

        Args:
            labels: one of each axis.
            config: the result of `config` for them.
            where: the cell.

        Raises:
            UserError: the config has another value than a label states.
        """
        return [
            label
            if axis.is_map or not label.settings or self._groups[label.settings[0].key]
            else agreed(label, config, where=where)
            for axis, label in zip(self._overrides.axes.values(), labels, strict=True)
        ]

    def _compose(self, groups: Sequence[KeyValue]) -> _Composed:
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


def _choice(setting: KeyValue) -> str:
    """Return a group choice in Hydra's grammar. The name of an option is text, even ``1``."""
    value = setting.value if isinstance(setting.value, list) else str(setting.value)
    return setting._replace(value=value).text


def _special(config: DictConfig, key: str) -> Any:
    value = config.get(key)
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def _wanted(tree: Any, where: str) -> Mapping[str, Sequence[str]]:
    """Return `fingerprints` if it has the right form: key of a fingerprint to keys of paths."""
    if tree is None:
        return {}
    if not isinstance(tree, Mapping) or not all(isinstance(keys, list) for keys in tree.values()):
        raise UserError(f"fingerprints is {tree!r}", where=where, allowed="{KEY: [KEY OF A PATH, ...]}")
    return tree
