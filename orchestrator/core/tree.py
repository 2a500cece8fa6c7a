"""Plain config trees (mappings, lists, scalars) and dotted keys into them. Pure."""

from __future__ import annotations

import contextlib
import copy
import json
import math
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, TypeVar

import msgspec

from orchestrator.errors import StageFailure, UserError, is_utf8, nearest


class Missing(msgspec.Struct, frozen=True):
    """The type of `MISSING`, which stands for an absent key. None cannot, since null is a valid value."""


MISSING: Final = Missing()


def pick(tree: Mapping[str, Any], key: str) -> Any:
    """Return the value at a dotted key, or MISSING."""
    value: Any = tree
    for part in key.split("."):
        # `dict` first: a test against the abstract class takes ten times as long, and this is a hot path.
        if not isinstance(value, dict | Mapping) or part not in value:
            return MISSING
        value = value[part]
    return value


def place(tree: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key in place, and create missing sections."""
    *sections, last = key.split(".")
    for section in sections:
        tree = tree.setdefault(section, {})
    tree[last] = value


def with_value(tree: Mapping[str, Any], path: Sequence[str], value: Any) -> dict[str, Any]:
    """Return a copy with another value at a path. All subtrees beside the path are shared."""
    copy = dict(tree)
    if len(path) == 1:
        copy[path[0]] = value
    else:
        copy[path[0]] = with_value(copy.get(path[0]) or {}, path[1:], value)
    return copy


def without_key(tree: Mapping[str, Any], key: str) -> dict[str, Any]:
    """Return a copy without a dotted key. All subtrees beside it are shared."""
    first, _, rest = key.partition(".")
    copy = dict(tree)
    if not rest:
        copy.pop(first, None)
    elif isinstance(copy.get(first), Mapping):
        copy[first] = without_key(copy[first], rest)
    return copy


def dotted_keys(tree: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield the dotted keys of all sections and values.

    Args:
        tree: mappings, lists and scalars.
        prefix: put before each key.
    """
    for name, value in tree.items():
        yield f"{prefix}{name}"
        if isinstance(value, Mapping):
            yield from dotted_keys(value, f"{prefix}{name}.")


def changed_keys(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the dotted keys of values (not sections) that differ, each with both values; None if absent."""
    changed = {}
    for key in sorted({*dotted_keys(old), *dotted_keys(new)}):
        before, after = pick(old, key), pick(new, key)
        if before != after and not isinstance(before, Mapping) and not isinstance(after, Mapping):
            changed[key] = (None if before is MISSING else before, None if after is MISSING else after)
    return changed


def share_unchanged(value: Any, before: Any) -> Any:
    """Return an equal tree of lists and dicts that shares all unchanged subtrees with an earlier tree.

    The configs of a sweep's cells differ in a few keys. With sharing, ten thousand cells hold each section a
    few times instead of ten thousand times. Two cells with other seeds share all but the root and one
    section:

        before   {model: M, training: {seed: 0, data: D}}
        result   {model: M, training: {seed: 1, data: D}}      M and D are the same objects

    ``1``, ``1.0`` and ``true`` count as different values, although Python considers them equal.

    Args:
        value: the tree.
        before: the earlier tree, or MISSING.
    """
    if isinstance(value, dict):
        old = before if isinstance(before, dict) else {}
        new = {name: share_unchanged(item, old.get(name, MISSING)) for name, item in value.items()}
        same = len(new) == len(old) and all(item is old.get(name, MISSING) for name, item in new.items())
        return before if same and isinstance(before, dict) else new
    if isinstance(value, list | tuple):
        olds = before if isinstance(before, list) and len(before) == len(value) else [MISSING] * len(value)
        items = [share_unchanged(item, old) for item, old in zip(value, olds, strict=True)]
        same = isinstance(before, list) and all(a is b for a, b in zip(items, olds, strict=True))
        return before if same and len(before) == len(items) else items
    return before if type(before) is type(value) and before == value else value


def scalar_text(value: Any) -> str:
    """Return a value as it would be written in YAML: ``true``, ``null``, ``1e-05``, ``en+sw`` for a list."""
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


_Struct = TypeVar("_Struct")
_UNKNOWN = re.compile(r"Object contains unknown field `(?P<name>.*?)`")
_ABSENT = re.compile(r"Object missing required field `(?P<name>.*?)`")
_TYPE = re.compile(r"Expected `(?P<expected>.*?)`, got `(?P<got>.*?)`")
_encode = json.JSONEncoder(allow_nan=False, skipkeys=True, default=str).encode
_RANGE = re.compile(r"Expected `\w+` (?P<sign>[<>]=?) (?P<bound>\S+)")
_NAMES = {"array": "list", "object": "mapping"}
_BOUNDS = {">=": "at least", ">": "more than", "<=": "at most", "<": "less than"}


def convert(tree: Any, to: type[_Struct], *, where: str = "", key: str = "") -> _Struct:
    """Convert a plain tree into a struct, strictly: a number in quotes stays text.

    Args:
        tree: what YAML gave.
        to: the struct type.
        where: the file or cell, for messages.
        key: the dotted key of the tree, for messages.

    Raises:
        UserError: a key is unknown or missing, a value has the wrong type, or a number is not finite.
    """
    refuse_non_finite(tree, where=where, key=key)
    try:
        return msgspec.convert(tree, to)
    except msgspec.ValidationError as error:
        raise _explained(str(error), tree, to, where, key) from None


def refuse_non_finite(tree: Any, *, where: str = "", key: str = "") -> None:
    """Refuse infinities and NaN. JSON has no representation for them, so no record could hold one.

    Args:
        tree: a plain tree.
        where: the file or cell, for messages.
        key: the dotted key of the tree, for messages.

    Raises:
        UserError: there is one; the message names its key.
    """
    try:
        _encode(tree)  # the encoder runs in C; only trees with such a number are walked in Python
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
    # msgspec reports the place only in its message: "Expected `int`, got `str` - at `$.policy.lease_s`".
    problem, _, place = message.partition(" - at `")
    steps = re.findall(r"\[\.\.\.\]|\[\d+\]|\.[^.\[\]]+", place.rstrip("`").removeprefix("$"))
    found = _keyed(tree, to, steps)
    path = "".join(found).lstrip(".")
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
        value = _value(tree, found)
        shown = f" ({value!r})" if isinstance(value, str | int | float) else ""
        what = f"{'a key of ' if place.startswith('key`') else ''}{full or 'the value'}"
        return UserError(
            f"{what} is of the wrong type: {_NAMES.get(match['got'], match['got'])}{shown}",
            where=where,
            allowed=f"expected {expected.replace(' | ', ' or ')}",
        )
    if match := _RANGE.fullmatch(problem):
        allowed = f"{_BOUNDS[match['sign']]} {float(match['bound']):g}"
        return UserError(f"{full or 'the value'} is {_value(tree, found)!r}", where=where, allowed=allowed)
    allowed = ", ".join(_choices(_type_at(to, steps))) if problem.startswith("Invalid enum value") else ""
    return UserError(
        f"{full or 'the value'}: {problem[:1].lower()}{problem[1:]}", where=where, allowed=allowed
    )


def _keyed(tree: Any, to: type[Any], steps: list[str]) -> list[str]:
    """Return a path with keys in place of ``[...]``: the first one whose value alone fails."""
    before = steps[: steps.index("[...]")] if "[...]" in steps else []
    for name in (_value(tree, before) or ()) if "[...]" in steps else ():
        alone = copy.deepcopy(tree)
        place = _value(alone, before)
        for other in set(place) - {name}:
            del place[other]
        with contextlib.suppress(msgspec.ValidationError):
            msgspec.convert(alone, to)
            continue
        return _keyed(tree, to, [*before, f".{name}", *steps[len(before) + 1 :]])
    return steps


def _choices(info: Any) -> list[str]:
    """Return the values that a type lists, as they are typed."""
    match info:
        case msgspec.inspect.UnionType():
            return [choice for each in info.types for choice in _choices(each)]
        case msgspec.inspect.LiteralType():
            return [str(value) for value in info.values]
        case msgspec.inspect.EnumType():
            return [str(member.value) for member in info.cls]
        case msgspec.inspect.BoolType():
            return ["true", "false"]
    return []


def _fields(to: Any, steps: list[str]) -> list[str]:
    """Return the field names of the struct at a path."""
    info = _type_at(to, steps)
    info = _not_none(info) if isinstance(info, msgspec.inspect.UnionType) else info  # `Struct | None`
    return [field.encode_name for field in getattr(info, "fields", ())]


def _not_none(info: msgspec.inspect.UnionType) -> Any:
    return next((t for t in info.types if not isinstance(t, msgspec.inspect.NoneType)), None)


def _type_at(to: Any, steps: list[str]) -> Any:
    """Return the type at a path."""
    info: Any = msgspec.inspect.type_info(to)
    for step in steps:
        if isinstance(info, msgspec.inspect.UnionType):
            info = _not_none(info)
        if step == "[...]":
            info = getattr(info, "value_type", None)
        elif step.startswith("["):
            info = getattr(info, "item_type", None)
        else:
            info = next((f.type for f in getattr(info, "fields", ()) if f.encode_name == step[1:]), None)
        while isinstance(info, msgspec.inspect.Metadata):
            info = info.type
    return info


def _value(tree: Any, steps: list[str]) -> Any:
    try:
        for step in steps:
            tree = tree[int(step[1:-1])] if step.startswith("[") else tree[step[1:]]
    except (KeyError, IndexError, ValueError, TypeError):  # "[...]" stands for any key
        return None
    return tree


class _Refused(Exception):
    """Raised when a value cannot be in a row, with the place of the value in the row."""

    def __init__(self, path: str, why: str) -> None:
        super().__init__(why)
        self.path, self.why = path, why


def checked_rows(value: object, *, cause: str = "code") -> tuple[dict[str, Any], ...]:
    """Return a stage's rows as plain JSON values.

    Scalars of numpy and torch are unwrapped, and tuples become lists.

    Args:
        value: what the stage returned, or what its results file contains.
        cause: failure cause to raise with.

    Raises:
        StageFailure: `value` is neither None nor a list of mappings, or a row contains a value that JSON
            cannot represent. The message names the row and the key.
    """
    if value is None:
        return ()
    if not isinstance(value, list):
        raise StageFailure(
            cause, f"the rows must be a list of mappings, they are {_name(value)}; return None for no rows"
        )
    rows = []
    for number, row in enumerate(value, start=1):
        if not isinstance(row, Mapping):
            raise StageFailure(cause, f"row {number} must be a mapping, it is {_name(row)}")
        try:
            rows.append(_mapping("", row))
        except _Refused as refused:
            where = f"row {number}, key {refused.path!r}" if refused.path else f"row {number}"
            raise StageFailure(cause, f"{where}: {refused.why}") from None
    return tuple(rows)


def _mapping(path: str, mapping: Mapping[Any, Any]) -> dict[str, Any]:
    plain = {}
    for key, value in mapping.items():
        if not isinstance(key, str):
            raise _Refused(path, f"keys must be text, one is {key!r}")
        name = _text(path, key)
        plain[name] = _plain(f"{path}.{name}" if path else name, value)
    return plain


def _plain(path: str, value: Any) -> Any:
    if isinstance(value, Mapping):  # first, since a mapping may offer its keys as attributes
        return _mapping(path, value)
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        # A scalar of numpy or torch: an array without dimensions.
        value = value.item()
    match value:
        case None | bool():
            return value
        case str():
            return _text(path, value)
        case int():
            if abs(value) > sys.float_info.max:  # means and plots are computed in floating point
                raise _Refused(path, "it has more digits than a number can have; give text")
            return int(value)
        case float():
            if not math.isfinite(value):
                raise _Refused(path, f"{float(value)} is no JSON; give None (null) instead")
            return float(value)
        case list() | tuple():
            return [_plain(f"{path}[{index}]", item) for index, item in enumerate(value)]
    hint = "; give its .tolist()" if hasattr(value, "tolist") else ""
    raise _Refused(path, f"{_name(value)} is no JSON value{hint}")


def _text(path: str, value: str) -> str:
    if not is_utf8(value):  # no JSON record could hold it
        raise _Refused(path, f"{value!r} cannot be written as UTF-8")
    return str.__str__(value)


def _name(value: object) -> str:
    kind = type(value)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def each_values(config: Mapping[str, Any], key: str) -> Sequence[Any]:
    """Return the list that a stage's `each` names.

    Raises:
        UserError: it is not a list of different values.
    """
    values = pick(config, key)
    if values is MISSING:
        raise UserError(
            f"`each` names the unknown key {key!r}",
            allowed=nearest(key, dotted_keys(config)),
        )
    if not isinstance(values, list | tuple):
        raise UserError(f"`each` names {key!r}, which is no list: {values!r}")
    texts = [scalar_text(value) for value in values]
    if len(set(texts)) < len(texts):
        twice = next(text for text in texts if texts.count(text) > 1)
        raise UserError(f"`each` names {key!r}, which lists {twice!r} twice")
    return values
