"""From plain trees to typed structs; what does not fit is the user's error, named with its key. Pure."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import msgspec

from orchestrator.errors import UserError, nearest

_Struct = TypeVar("_Struct")
_UNKNOWN = re.compile(r"Object contains unknown field `(?P<name>.*?)`")
_ABSENT = re.compile(r"Object missing required field `(?P<name>.*?)`")
_TYPE = re.compile(r"Expected `(?P<expected>.*?)`, got `(?P<got>.*?)`")
_encode = json.JSONEncoder(allow_nan=False, skipkeys=True, default=str).encode
_NAMES = {"array": "list", "object": "mapping"}


def typed(tree: Any, to: type[_Struct], *, where: str = "", key: str = "") -> _Struct:
    """Converts a plain tree into a struct, strictly (a number in quotes is text).

    Args:
        tree: what YAML gave.
        to: the struct.
        where: the file, or the cell, for the message.
        key: the dotted key under which the tree lies, for the message.

    Raises:
        UserError: an unknown or missing key, a value of the wrong type, or a number that is not finite.
    """
    refuse_non_finite(tree, where=where, key=key)
    try:
        return msgspec.convert(tree, to)
    except msgspec.ValidationError as error:
        raise _explained(str(error), tree, to, where, key) from None


def refuse_non_finite(tree: Any, *, where: str = "", key: str = "") -> None:
    """Refuse infinities and NaN: no record can hold one, as JSON has no word for it.

    Args:
        tree: a plain tree.
        where: the file, or the cell, for the message.
        key: the dotted key under which the tree lies, for the message.

    Raises:
        UserError: there is one; its key is named.
    """
    try:
        _encode(tree)  # in C, for the many trees in which there is none
    except ValueError:
        for found, value in _floats(tree, key):
            if not math.isfinite(value):
                raise UserError(
                    f"{found or 'the value'} is {value!r}",
                    where=where,
                    allowed="a finite number; null where a setting has no limit",
                ) from None


def _floats(tree: Any, key: str) -> Iterator[tuple[str, float]]:
    if isinstance(tree, float):
        yield key, tree
    elif isinstance(tree, Mapping):
        for name, item in tree.items():
            yield from _floats(item, f"{key}.{name}" if key else str(name))
    elif isinstance(tree, list | tuple):
        for index, item in enumerate(tree):
            yield from _floats(item, f"{key}[{index}]")


def _explained(message: str, tree: Any, to: type[Any], where: str, key: str) -> UserError:
    problem, _, place = message.partition(" - at `")
    steps = re.findall(r"\[\.\.\.\]|\[\d+\]|\.[^.\[\]]+", place.rstrip("`").removeprefix("$"))
    path = "".join(steps).lstrip(".")
    full = ".".join(part for part in (key, path) if part)
    if match := _UNKNOWN.fullmatch(problem):
        name = f"{full}.{match['name']}" if full else match["name"]
        known = [f"{full}.{field}" if full else field for field in _fields(to, steps)]
        return UserError(f"unknown key {name!r}", where=where, allowed=nearest(name, known))
    if match := _ABSENT.fullmatch(problem):
        name = f"{full}.{match['name']}" if full else match["name"]
        return UserError(f"{name} is not set", where=where)
    if match := _TYPE.fullmatch(problem):
        expected = re.sub(r"array|object", lambda m: _NAMES[m[0]], match["expected"])
        value = _value(tree, steps)
        shown = f" ({value!r})" if isinstance(value, str | int | float) else ""
        got = _NAMES.get(match["got"], match["got"])
        return UserError(
            f"{full or 'the value'} is of the wrong type: {got}{shown}",
            where=where,
            allowed=f"expected {expected.replace(' | ', ' or ')}",
        )
    return UserError(f"{full or 'the value'}: {problem[:1].lower()}{problem[1:]}", where=where)


def _fields(to: Any, steps: list[str]) -> list[str]:
    """Lists the field names of the struct at a path."""
    info: Any = msgspec.inspect.type_info(to)
    for step in ["", *steps]:
        if step == "[...]":
            info = getattr(info, "value_type", None)
        elif step.startswith("["):
            info = getattr(info, "item_type", None)
        elif step:
            info = next((f.type for f in getattr(info, "fields", ()) if f.encode_name == step[1:]), None)
        if isinstance(info, msgspec.inspect.UnionType):
            info = next((t for t in info.types if not isinstance(t, msgspec.inspect.NoneType)), None)
    return [field.encode_name for field in getattr(info, "fields", ())]


def _value(tree: Any, steps: list[str]) -> Any:
    try:
        for step in steps:
            tree = tree[int(step[1:-1])] if step.startswith("[") else tree[step[1:]]
    except (KeyError, IndexError, ValueError, TypeError):  # "[...]" does not say which key
        return None
    return tree
