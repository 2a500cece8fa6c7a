"""Patching one composed config cell by cell: only what a patch can reach is resolved again.

Hydra takes some 50 ms a composition. A value axis changes a few keys of the same composition, so they are
set with the very call that Hydra uses (`OmegaConf.update`), and of the resolved plain tree only these
keys, and the interpolations that can depend on them, are made anew; the rest is shared between cells.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from omegaconf import Container, DictConfig, OmegaConf, open_dict
from omegaconf.errors import ConfigAttributeError, ConfigKeyError

from orchestrator.compose.axes import Setting
from orchestrator.compose.interpolations import (
    Path,
    Reference,
    depends,
    has_interpolation,
    in_order,
    is_related,
    references,
)
from orchestrator.compose.root import known_keys, translated, unknown_key
from orchestrator.compose.varying import holds, may_vary, varying
from orchestrator.core.tree import MISSING, pick, placed

SPECIAL = ("schema", "fingerprints")
"""Top-level keys that speak to the engine and are no part of a cell's config."""


class _Reached(NamedTuple):
    """What to make anew: paths for which OmegaConf is asked, then references in an order to fill them in."""

    asked: list[Path]
    filled: list[Reference]


class _Resolved(NamedTuple):
    config: DictConfig
    plain: dict[str, Any]
    settings: Sequence[Setting]


class Patched:
    """One composition that cells patch in turn.

    Args:
        config: as composed, in struct mode; it is taken over.
        also: names that an unknown key may have been meant to be.
        fingerprints: tells from a resolved tree what to set besides.
    """

    def __init__(
        self,
        config: DictConfig,
        *,
        also: Sequence[str] = (),
        fingerprints: Callable[[Mapping[str, Any]], Sequence[Setting]] = lambda tree: (),
    ) -> None:
        with open_dict(config):
            for key in SPECIAL:
                config.pop(key, None)
        self._pristine, self._also, self._fingerprints = config, also, fingerprints
        self._config = config
        self._raw: dict[str, Any] = OmegaConf.to_container(config, resolve=False)  # type: ignore[assignment]
        self._references = list(references(self._raw))
        self._varying = [
            ".".join(each.path)
            for each in self._references
            if may_vary(str(pick(self._raw, ".".join(each.path))))
        ]
        self._last = _Resolved(config, {}, ())
        self._current: dict[str, Setting] = {}
        self._plain: dict[str, Any] | None = None
        self._prints: tuple[Setting, ...] = ()
        self._memo: dict[tuple[frozenset[str], frozenset[str]], _Reached] = {}
        self._simple: dict[tuple[str, ...], bool] = {}

    def resolved(self, settings: Sequence[Setting], *, where: str = "") -> dict[str, Any]:
        """Returns the resolved plain tree with some settings, which replace those of the cell before.

        Raises:
            UserError: an unknown key, a value that is not set, an interpolation that leads nowhere.
        """
        tree = self._resolved([*settings, *self._prints], where)
        prints = tuple(self._fingerprints(tree))
        if prints != self._prints:
            self._prints = prints
            tree = self._resolved([*settings, *prints], where)
        return tree

    def varying(self, sections: Sequence[str]) -> Iterator[str]:
        """Yield the keys of the last resolved tree that another resolution gives another value.

        Args:
            sections: keys; what is neither in nor above one of them is left out.
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

    def _resolved(self, settings: Sequence[Setting], where: str) -> dict[str, Any]:
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

    def _incremental(self, wanted: dict[str, Setting], where: str) -> dict[str, Any]:
        current = self._current
        changed = {key for key in {*current, *wanted} if current.get(key) is not wanted.get(key)}
        plain, self._plain = self._plain, None
        if plain is None:  # the first cell, or the one before ended in an error half way through
            self._config, current, changed = copy.deepcopy(self._pristine), {}, set(wanted)
        for key in sorted(changed, key=len):
            raw = pick(self._raw, key)
            values = [raw, *(cell[key].value for cell in (current, wanted) if key in cell)]
            # a leaf is replaced by the next value; what merges, or is not set any more, is first restored
            if key not in wanted or any(isinstance(value, Mapping) for value in values):
                OmegaConf.update(self._config, key, copy.deepcopy(raw), merge=False)
        for key in changed & wanted.keys():
            self._update(self._config, wanted[key], where)
        if plain is None:
            plain = _plain(self._config)
        else:
            reaching = {key for key, setting in wanted.items() if has_interpolation(setting.value)}
            asked, filled = self._reached(frozenset(changed | reaching), frozenset(wanted))
            for path in asked:
                plain = placed(plain, path, _value(self._config, path))
            for reference in filled:
                value = reference.filled(plain)
                plain = placed(
                    plain, reference.path, _value(self._config, reference.path) if value is MISSING else value
                )
        self._current, self._plain = wanted, plain
        return plain

    def _reached(self, seeds: frozenset[str], patched: frozenset[str]) -> _Reached:
        """Finds what to make anew when some keys were set; what lies inside another is left out."""
        if (seeds, patched) not in self._memo:
            roots = [tuple(key.split(".")) for key in patched]
            dirty = {tuple(key.split(".")) for key in seeds}
            left = {reference.path: reference for reference in self._references}
            while found := [item for item in left.values() if item.path in dirty or depends(item, dirty)]:
                for item in found:
                    del left[item.path]
                    # a patch may have replaced the section that held the interpolation
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

    def _is_simple(self, settings: Sequence[Setting]) -> bool:
        """Tells whether each setting replaces a value of its own, so that it can be taken back."""
        keys = [setting.key.split(".") for setting in settings]
        overlap = any(is_related(tuple(a), tuple(b)) for index, a in enumerate(keys) for b in keys[:index])
        plain = all(
            not setting.prefix and pick(self._raw, setting.key) is not MISSING for setting in settings
        )
        return plain and not overlap

    def _update(self, config: DictConfig, setting: Setting, where: str) -> None:
        force_add = setting.prefix != ""
        try:
            OmegaConf.update(config, setting.key, setting.value, merge=True, force_add=force_add)
        except (ConfigAttributeError, ConfigKeyError):
            known = [*self._also, *known_keys(self._pristine)]
            raise unknown_key(setting.key, known, where=where) from None


def _value(config: DictConfig, path: Path) -> Any:
    """Resolves what lies at a path."""
    value: Any = config
    for part in path:
        value = value[part]
    return _plain(value) if isinstance(value, Container) else value


def _plain(config: Container) -> Any:
    """Resolves a container into plain dicts and lists."""
    return OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
