"""Plain config trees (mappings, lists, scalars) and the dotted keys into them. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import msgspec


class Missing(msgspec.Struct, frozen=True):
    """The type of `MISSING`: there is no such key (which null would not say)."""


MISSING: Final = Missing()


def pick(tree: Mapping[str, Any], key: str) -> Any:
    """Returns the value at a dotted key, or MISSING."""
    value: Any = tree
    for part in key.split("."):
        # dict first: asking the abstract class takes ten times as long, and this is called a million times
        if not isinstance(value, dict | Mapping) or part not in value:
            return MISSING
        value = value[part]
    return value


def place(tree: dict[str, Any], key: str, value: Any) -> None:
    """Sets a dotted key in place, making the sections it lacks."""
    *sections, last = key.split(".")
    for section in sections:
        tree = tree.setdefault(section, {})
    tree[last] = value


def placed(tree: Mapping[str, Any], path: Sequence[str], value: Any) -> dict[str, Any]:
    """Returns a copy with another value at a path; all that is beside the path is shared."""
    copy = dict(tree)
    if len(path) == 1:
        copy[path[0]] = value
    else:
        copy[path[0]] = placed(copy.get(path[0]) or {}, path[1:], value)
    return copy


def without(tree: Mapping[str, Any], key: str) -> dict[str, Any]:
    """Returns a copy without a dotted key; all that is beside it is shared."""
    first, _, rest = key.partition(".")
    copy = dict(tree)
    if not rest:
        copy.pop(first, None)
    elif isinstance(copy.get(first), Mapping):
        copy[first] = without(copy[first], rest)
    return copy


def dotted_keys(tree: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Yields the dotted keys of all sections and values."""
    for name, value in tree.items():
        yield f"{prefix}{name}"
        if isinstance(value, Mapping):
            yield from dotted_keys(value, f"{prefix}{name}.")


def settled(value: Any, before: Any) -> Any:
    """Returns an equal tree of lists and dicts that shares with an earlier one all that did not change.

    Ten thousand cells then hold each section a few times instead of ten thousand times. ``1``, ``1.0``
    and ``true`` are not taken for one another.
    """
    if isinstance(value, dict):
        old = before if isinstance(before, dict) else {}
        new = {name: settled(item, old.get(name, MISSING)) for name, item in value.items()}
        same = len(new) == len(old) and all(item is old.get(name, MISSING) for name, item in new.items())
        return before if same and isinstance(before, dict) else new
    if isinstance(value, list | tuple):
        olds = before if isinstance(before, list) and len(before) == len(value) else [MISSING] * len(value)
        items = [settled(item, old) for item, old in zip(value, olds, strict=True)]
        same = isinstance(before, list) and all(a is b for a, b in zip(items, olds, strict=True))
        return before if same and len(before) == len(items) else items
    return before if type(before) is type(value) and before == value else value


def scalar_text(value: Any) -> str:
    """Returns a value as one would write it in YAML: ``true``, ``null``, ``1e-05``, ``en+sw`` for a list."""
    match value:
        case str():
            return value
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case list() | tuple() if not any(isinstance(item, list | tuple | Mapping) for item in value):
            return "+".join(map(scalar_text, value))
        case list() | tuple() | Mapping():
            return json.dumps(value, ensure_ascii=False, default=str)
        case _:
            return str(value)
