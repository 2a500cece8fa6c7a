"""Overrides, from the sweep file and the command line, sorted by whom they concern."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hydra.core.override_parser.types import Override

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
from orchestrator.compose.root import Root
from orchestrator.core.secrets import found_in, known_values
from orchestrator.errors import UserError

ENGINE_KEYS = frozenset({"launcher", "cluster", "tracker", "policy", "store", "hardware"})
"""First components of the keys that say how a sweep is run."""


def is_engine_key(key: str) -> bool:
    """Tells whether a key belongs to the engine's config root."""
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
    """Refuse settings that hold a credential: they would be sealed for all to read.

    Args:
        tree: of settings.
        key: its dotted key.
        where: the file or cell, for the message.
        shell: whether texts are shell lines, see `orchestrator.core.secrets.found_in`.
        checked: a tree that was checked before; what the two share is not checked again.
        known: the credentials of the environment; None to look them up.

    Raises:
        UserError: it holds one; the value is not shown.
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
    """What is set for all cells, in Hydra's grammar, later ones on top, and what became axes.

    Attributes:
        cell: overrides of the cells' config.
        engine: overrides of the engine's settings.
        axes: the axes after narrowing.
        expect_cells: as given, None if not.
        max_cells: likewise.
        touched: axes that the command line changed, added or took away.
    """

    axes: dict[str, Axis]
    cell: list[str] = field(default_factory=list)
    engine: list[str] = field(default_factory=list)
    expect_cells: int | None = None
    max_cells: int | None = None
    touched: list[str] = field(default_factory=list)

    def fixed(self, root: Root, chosen: Collection[str]) -> list[str]:
        """Returns the cells' overrides with one choice a group: the last, and none where an axis chooses.

        Args:
            root: knows the groups.
            chosen: the groups that the axes of a cell choose.
        """
        last = {_key(text): index for index, text in enumerate(self.cell)}
        return [
            text
            for index, text in enumerate(self.cell)
            if not root.is_group(_key(text)) or (last[_key(text)] == index and _key(text) not in chosen)
        ]

    def add_file(self, overrides: Mapping[str, Any] | Sequence[str], root: Root, *, where: str) -> None:
        """Takes the `overrides` of a sweep file.

        Raises:
            UserError: one is malformed, a sweep, or of the store.
        """
        texts = list(overrides)
        if isinstance(overrides, Mapping):
            texts = [setting.text for setting in _flat(overrides, root)]
        for text in texts:
            override = parse_override(text, where=where)
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
        """Takes the overrides of the command line: an axis is narrowed, replaced, added or taken away.

        Raises:
            UserError: one is malformed, names no label of an axis, or would sweep over an engine setting.
        """
        fixed: list[Override] = []
        for text in overrides:
            override = parse_override(text)
            key = override.key_or_group
            if key == "expect_cells":
                self.expect_cells = _count(override)
            elif key == "max_cells":
                self.max_cells = _count(override)
            elif is_engine_key(key):
                if override.is_sweep_override():
                    raise UserError(
                        f"{text!r}: an engine setting cannot be an axis",
                        allowed="it is the same for all cells and part of no identity",
                    )
                self._fix(override, text, root, "")
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
        for override in fixed:  # now that all axes are known
            self._refuse_shadowed(override, root)

    def _fix(self, override: Override, text: str, root: Root, where: str) -> None:
        key = override.key_or_group
        if key == "hydra" or override.is_hydra_override():
            raise UserError(f"{text!r}: Hydra's own settings have no meaning here", where=where)
        value = plain(override._value)
        if override.is_delete():
            texts = [text]
        else:
            if value is not None:
                refuse_secrets(value, key=key, where=where)
            texts = [setting.text for setting in _flat({override.get_key_element(): value}, root)]
        if is_engine_key(key):
            self.engine.extend(texts)
            return
        if not isinstance(value, Mapping) and root.is_group(key) and not override.is_delete():
            root.check_option(key, value, where=where)
        self.cell.extend(texts)

    def _refuse_shadowed(self, override: Override, root: Root) -> None:
        """Refuse an override of a key that every label of an axis sets, or sets a section around.

        A label that chooses an option of a group shadows no key in it: the key refines the option.
        """
        if override.is_delete() or override.package is not None:  # model@other sets another section
            return
        keys = list(leaf_keys(override.key_or_group, plain(override._value)))
        for axis in self.axes.values():
            for key in keys:
                if all(any(_covers(s, key, root) for s in label.settings) for label in axis.labels):
                    raise UserError(
                        f"{cut(str(override.input_line))!r} would change nothing: "
                        f"every value of the axis {axis.name!r} sets {key!r}",
                        fix=f"choose with {axis.name}=... or take the axis away with ~{axis.name}",
                    )


def _covers(setting: KeyValue, key: str, root: Root) -> bool:
    """Tell whether a setting decides a key."""
    if root.is_group(setting.key) and not isinstance(setting.value, Mapping):
        return key == setting.key
    return any(key == name or key.startswith(f"{name}.") for name in leaf_keys(setting.key, setting.value))


def _flat(tree: Mapping[str, Any], root: Root, prefix: str = "") -> Iterable[KeyValue]:
    """Yields settings; a mapping under the name of a group sets keys, it does not choose an option."""
    for key, value in tree.items():
        full = f"{prefix}{key}"
        if isinstance(value, Mapping) and (prefix or root.is_group(full) or is_engine_key(full)):
            yield from _flat(value, root, f"{full}.")
        else:
            yield KeyValue(full, value)


def _key(text: str) -> str:
    return re.split("=", text.lstrip("+~"), maxsplit=1)[0]


def _count(override: Override) -> int:
    value = override.value()
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise UserError(f"{override.input_line!r} is no number of cells")
    return value
