"""Overrides of sweep files and command lines, and the engine's settings that are composed from them."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
from hydra.core.override_parser.types import Override
from omegaconf import OmegaConf

from orchestrator.compose.axes import (
    Axis,
    KeyValue,
    checked,
    cut,
    leaf_keys,
    list_axis,
    narrowed,
    parse_override,
    plain,
    values_of,
)
from orchestrator.compose.files import config_folders, shipped
from orchestrator.compose.root import Root, translated
from orchestrator.core.secrets import found_in, known_values
from orchestrator.core.settings import RunSettings, engine_from, split_store
from orchestrator.errors import UserError
from orchestrator.formats import kept

ENGINE_KEYS = frozenset({"launcher", "cluster", "tracker", "policy", "store", "hardware", "notify"})
"""First components of the keys of engine settings."""


def is_engine_key(key: str) -> bool:
    """Return whether a key belongs to the engine's config root."""
    return re.split(r"[./@\[]", key, maxsplit=1)[0] in ENGINE_KEYS


def refuse_secrets(
    tree: Any,
    *,
    key: str = "",
    where: str = "",
    shell: bool = False,
    checked: Any = None,
    known: Collection[str] | None = None,
) -> None:
    """Refuse settings that contain a credential, since everyone with access to the store could read it.

    Args:
        tree: settings.
        key: the dotted key of the tree.
        where: the file or cell, for messages.
        shell: whether texts are shell lines, see `orchestrator.core.secrets.found_in`.
        checked: a tree checked before; objects that both trees share are not checked again.
        known: the credentials of the environment; None to look them up.

    Raises:
        UserError: a setting contains a credential. The message does not show the value.
    """
    known = known_values(os.environ) if known is None else known
    for name, reason in found_in(tree, key, known=known, shell=shell, checked=checked):
        raise UserError(
            f"{name} looks like a secret ({reason}), and secrets do not belong in a sweep",
            where=where,
            allowed="what a sweep is launched with is recorded in the store for all who read it",
            fix="set it in the environment of what uses it and name the variable here, as api_key_env: NAME; "
            "if it is no secret, give the key another name",
        )


@dataclass
class Overrides:
    """The settings for all cells, in Hydra's grammar, and the axes. A later override replaces an earlier one.

    Attributes:
        axes: the axes after the command line was applied.
        cell: overrides of the cells' config.
        engine: overrides of the engine's settings.
        expect_cells: the value on the command line, None if not given.
        max_cells: the value on the command line, None if not given.
        touched: names of axes that the command line changed, added or removed.
        conditional: names of axes that do not count at all points of the grid.
    """

    axes: dict[str, Axis]
    cell: list[str] = field(default_factory=list)
    engine: list[str] = field(default_factory=list)
    expect_cells: int | None = None
    max_cells: int | None = None
    touched: list[str] = field(default_factory=list)
    conditional: Collection[str] = ()

    def parse(self, text: str, *, where: str = "") -> Override:
        """Return a parsed override; see `orchestrator.compose.axes.parse_override`."""
        return parse_override(text, where=where)

    def is_engine(self, key: str) -> bool:
        """Return whether a key belongs to the engine's settings."""
        return is_engine_key(key)

    def fixed(self, root: Root, chosen: Collection[str]) -> list[str]:
        """Return the cells' overrides with one choice for each config group.

        Hydra refuses two choices for one group, so only the last choice is kept. A choice is dropped if an
        axis chooses for the group.

        Args:
            root: the config root, which distinguishes groups from keys.
            chosen: the groups that the axes choose.
        """
        last = {key_of(text): index for index, text in enumerate(self.cell)}
        return [
            text
            for index, text in enumerate(self.cell)
            if not root.is_group(key_of(text)) or (last[key_of(text)] == index and key_of(text) not in chosen)
        ]

    def add_file(self, overrides: Mapping[str, Any] | Sequence[str], root: Root, *, where: str) -> None:
        """Add the `overrides` of a sweep file.

        Args:
            overrides: key to value, or a list in Hydra's grammar.
            root: the cells' config root.
            where: the file, for messages.

        Raises:
            UserError: an override is malformed, has several values, or sets the store.
        """
        texts = list(overrides)
        if isinstance(overrides, Mapping):
            texts = [setting.text for setting in _flat(overrides, root)]
        for text in texts:
            override = self.parse(text, where=where)
            if override.is_sweep_override():
                raise UserError(f"{text!r} has several values", where=where, fix="make it one of the `axes`")
            if re.split(r"[./@]", override.key_or_group)[0] == "store":
                raise UserError(
                    f"{text!r}: the store is not the sweep's to choose",
                    where=where,
                    fix="SWEEP_STORE=FOLDER, or store.url=FOLDER on the command line",
                )
            self._fix(override, text, root, where)

    def add_command_line(self, overrides: Iterable[str], root: Root) -> None:
        """Add the overrides of the command line. They can change, add and remove axes.

        For a sweep file with ``axes: {model: [a, b], seed: [0, 1]}``:

            model=a           narrows the axis to one value
            seed=0,1,2        replaces the values of the axis
            training.lr=1,2   adds an axis, since there are several values
            ~seed             removes the axis
            training.lr=1     sets the key in all cells

        Args:
            overrides: in Hydra's grammar.
            root: the cells' config root.

        Raises:
            UserError: an override is malformed, names an unknown label, gives an engine setting several
                values, or has no effect, because an axis sets its key in every cell.
        """
        fixed: list[Override] = []
        for text in overrides:
            override = self.parse(text)
            key = override.key_or_group
            if key == "expect_cells":
                self.expect_cells = _count(override)
            elif key == "max_cells":
                self.max_cells = _count(override)
            elif self.is_engine(key):
                if override.is_sweep_override():
                    raise UserError(
                        f"{text!r}: an engine setting cannot be an axis",
                        allowed="it is the same for all cells and part of no identity",
                    )
                self._fix(override, text, root, "")
            # An override with a package (model@other) places the group elsewhere, so it is not the axis.
            elif key in self.axes and override.package is None and override.is_delete():
                self.touched.append(key)
                del self.axes[key]
            elif key in self.axes and override.package is None:
                if text.endswith("="):
                    raise UserError(
                        f"{text!r} leaves the axis {key!r} without a value", fix=f"{key}=''  for empty text"
                    )
                self.touched.append(key)
                values = values_of(override, root.options(key))
                self.axes[key] = checked(narrowed(self.axes[key], values), where=cut(text))
            elif override.is_sweep_override():
                name = override.get_key_element().lstrip("+")
                prefix = override.get_key_element().removesuffix(name)
                self.touched.append(name)
                values = values_of(override, root.options(key))
                self.axes[name] = checked(list_axis(name, values, prefix=prefix), where=cut(text))
            else:
                fixed.append(override)
                self._fix(override, text, root, "")
        for override in fixed:  # only after the loop: a later override may add or remove axes
            self._refuse_shadowed(override, root)

    def _fix(self, override: Override, text: str, root: Root, where: str) -> None:
        key = override.key_or_group
        # The engine never runs Hydra's launcher, so such a setting would be silently ignored.
        if key == "hydra" or override.is_hydra_override():
            raise UserError(f"{text!r}: Hydra's own settings have no meaning here", where=where)
        value = plain(override._value)
        if override.is_delete():
            texts = [text]
        else:
            if value is not None:
                refuse_secrets(value, key=key, where=where)
            # Written again with quotes, since Hydra reads some unquoted words differently from `reading`.
            texts = [setting.text for setting in _flat({override.get_key_element(): value}, root)]
        if is_engine_key(key):
            self.engine.extend(texts)
            return
        if not isinstance(value, Mapping) and root.is_group(key) and not override.is_delete():
            root.check_option(key, value, where=where)
        self.cell.extend(texts)

    def _refuse_shadowed(self, override: Override, root: Root) -> None:
        """Refuse an override that would have no effect, because every label of an axis sets its key.

        A label that sets a section around the key counts too. A label that chooses a group's option does not:
        the override then refines the option.
        """
        if override.is_delete() or override.package is not None:  # model@other sets another section
            return
        keys = list(leaf_keys(override.key_or_group, plain(override._value)))
        for axis in (each for each in self.axes.values() if each.name not in self.conditional):
            for key in keys:
                if all(any(_covers(s, key, root) for s in label.settings) for label in axis.labels):
                    raise UserError(
                        f"{cut(str(override.input_line))!r} would change nothing: "
                        f"every value of the axis {axis.name!r} sets {key!r}",
                        fix=f"choose with {axis.name}=... or take the axis away with ~{axis.name}",
                    )


def _covers(setting: KeyValue, key: str, root: Root) -> bool:
    """Return whether a setting determines the value of a key."""
    if root.is_group(setting.key) and not isinstance(setting.value, Mapping):
        return key == setting.key
    return any(key == name or key.startswith(f"{name}.") for name in leaf_keys(setting.key, setting.value))


def _flat(tree: Mapping[str, Any], root: Root, prefix: str = "") -> Iterable[KeyValue]:
    """Yield the settings of a tree. A mapping under the name of a group sets keys; it chooses no option."""
    for key, value in tree.items():
        full = f"{prefix}{key}"
        if isinstance(value, Mapping) and (prefix or root.is_group(full) or is_engine_key(full)):
            yield from _flat(value, root, f"{full}.")
        else:
            yield KeyValue(full, value)


def key_of(text: str) -> str:
    """Return the key or group of an override, without ``+`` and ``~``."""
    return text.lstrip("+~").partition("=")[0]


def _count(override: Override) -> int:
    value = override.value()
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise UserError(f"{override.input_line!r} is no number of cells")
    return value


_OPEN = (
    *("policy.limits_s.", "launcher.environment."),
    *("cluster.partitions.", "cluster.environment.", "cluster.sbatch."),
)
"""Mappings with free keys. Their overrides get Hydra's ``++``, since the config does not list the keys."""

_WHERE = "the engine's settings"


def run_settings(overrides: Sequence[str] = (), cwd: Path | None = None) -> RunSettings:
    """Return the engine's settings, composed without a sweep. Commands that only need the store use this.

    Args:
        overrides: of engine settings, in Hydra's grammar.
        cwd: the working folder; the current one by default.

    Raises:
        UserError: a key is unknown, or a value is not allowed.
    """
    url, texts = _engine_texts(
        overrides, "launcher, cluster, tracker, policy, hardware and store, such as store.url="
    )
    return composed_run_settings(texts, config_folders((cwd or Path.cwd()).resolve()), url)


def run_settings_with(
    settings: RunSettings, overrides: Sequence[str], cwd: Path | None = None
) -> RunSettings:
    """Return settings with some of them changed. A new choice for a group replaces its whole section.

    For example, ``launcher=slurm`` drops all settings of the earlier launcher, and ``launcher.workers=4``
    changes one of them.

    Args:
        settings: of an earlier launch.
        overrides: of engine settings, in Hydra's grammar.
        cwd: the working folder, for its config groups; the current one by default.

    Raises:
        UserError: a key is unknown, or a value is not allowed.
    """
    allowed = "only engine settings may be changed here, such as launcher.workers="
    url, texts = _engine_texts(overrides, allowed)
    root = _root(config_folders((cwd or Path.cwd()).resolve()))
    choices = [text for text in texts if root.is_group(key_of(text))]
    tree = msgspec.to_builtins(settings)
    if choices:
        composed = _tree(root, choices)
        for section in {key_of(text).partition("/")[0] for text in choices}:
            tree.pop(section, None)
            tree.update({section: composed[section]} if section in composed else {})
    changed = _tree(Root.inline(escaped(tree), ()), [text for text in texts if text not in choices])
    # Fields that a later version wrote into the settings are unknown here, and kept.
    return kept(settings, _checked(engine_from(changed, where=_WHERE), url))


def composed_run_settings(
    overrides: Sequence[str], folders: Sequence[Path], store_url: str | None
) -> RunSettings:
    """Return the engine's settings, composed from config groups and overrides.

    Args:
        overrides: of engine settings alone.
        folders: the user's folders of config groups.
        store_url: replaces the composed URL of the store, unless None.

    Raises:
        UserError: a key is unknown, or a value is not allowed.
    """
    settings = engine_from(_tree(_root(folders), overrides), where=_WHERE)
    return _checked(settings, store_url)


def _engine_texts(overrides: Sequence[str], allowed: str) -> tuple[str | None, list[str]]:
    for text in overrides:
        if not is_engine_key(key_of(text)):
            raise UserError(f"{key_of(text)!r} is no engine setting", allowed=allowed)
    url, words = split_store(overrides)
    merged = Overrides({})
    merged.add_command_line(words, Root("engine", ()))
    return url, merged.engine


def _root(folders: Sequence[Path]) -> Root:
    return Root("engine", [*folders, shipped("conf")])


def _tree(root: Root, overrides: Sequence[str]) -> dict[str, Any]:
    merged = Overrides({})
    merged.cell = [f"++{text}" if text.startswith(_OPEN) else text for text in overrides]
    for text in overrides:
        if root.is_group(key_of(text)) and text.partition("=")[2]:
            option = plain(parse_override(text)._value)
            root.check_option(key_of(text), option)
            if isinstance(option, list):
                merged.cell[merged.cell.index(text)] = root.several(key_of(text), option)
    config = root.compose(merged.fixed(root, ()))
    with translated(_WHERE):
        tree: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    return dict(tree)


def escaped(value: Any) -> Any:
    """Return resolved values with each ``${`` escaped, so that a second resolution leaves it as it is."""
    match value:
        case str():
            # OmegaConf halves the backslashes before "${", so they are doubled, and one more escapes the
            # "${".
            return re.sub(r"(\\*)\$\{", r"\1\1\\${", value)
        case dict():
            return {key: escaped(item) for key, item in value.items()}
        case list() | tuple():
            return [escaped(item) for item in value]
        case _:
            return value


def _checked(settings: RunSettings, url: str | None) -> RunSettings:
    """Return settings with the store at a URL. Refuse settings that contain a credential."""
    if url is not None:
        settings = msgspec.structs.replace(settings, store=msgspec.structs.replace(settings.store, url=url))
    refuse_secrets(msgspec.to_builtins(settings), where=_WHERE, shell=True)
    return settings
