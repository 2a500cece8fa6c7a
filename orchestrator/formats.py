"""The store formats: how records evolve, and how they are read and written across versions.

Format 1 was read strictly: an unknown field or word made the record unreadable. In a store of format 2,
records may gain optional fields and words. A store keeps the format that it was made with.

- A field that came with format 2 has a default and is marked: ``name: Annotated[str, SINCE_2] = ""``.
- A marked field at its default is never written, so that equal content has equal bytes.
- A store of an earlier format cannot hold a marked field. Information is left out; a setting (`Settings`) is
refused.
- A reader ignores unknown fields, and keeps them if it writes the record again.
- An unknown word reads as ``unknown``, or else as the field's default.

Structs stay strict (`forbid_unknown_fields`), because what users type is converted strictly, see `core.tree`.
Only `decode` is lenient.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, NamedTuple, TypeVar

import msgspec
from msgspec import inspect

from orchestrator.errors import UserError

FORMAT = 2
"""The format of new stores. A store of a later format is refused. A change of meaning raises it."""

SINCE_2 = msgspec.Meta(extra={"since": 2})
"""Mark of a field that only stores of format 2 or later hold: ``Annotated[str | None, SINCE_2] = None``."""

_LATER = "_later"
_UNKNOWN = "unknown"

T = TypeVar("T")


class Stored(msgspec.Struct, frozen=True, forbid_unknown_fields=True, dict=True):
    """The base of records in a store. An instance keeps the fields that `decode` could not place."""


class Settings(Stored, frozen=True):
    """The base of settings that users choose. A setting that a store cannot hold is refused, not dropped."""


def encode(record: msgspec.Struct, *, store_format: int = FORMAT) -> bytes:
    """Return a record as JSON for a store of a format. Mappings keep their order, because people read them.

    Raises:
        UserError: the store cannot hold a setting.
        ValueError: the record holds an infinity or NaN, which JSON would turn into null.
    """
    data = msgspec.json.encode(_written(record, store_format))
    # The text search is cheap, and rules out many records before all values are looked at.
    if b"null" in data:
        try:
            json.dumps(msgspec.to_builtins(record, str_keys=True), allow_nan=False)
        except ValueError:
            raise ValueError(f"a {type(record).__name__} holds a number that is not finite") from None
    return data


def decode(data: bytes, kind: type[T]) -> T:
    """Read a record leniently, because a later version may have written it.

    Raises:
        msgspec.DecodeError: the data is no such record.
        UnicodeDecodeError: the data is not text.
    """
    try:
        try:
            return msgspec.json.decode(data, type=kind)
        except msgspec.ValidationError:
            # The strict way above is fast, and fits all records of this version. This one walks the tree.
            value = _Reader().read(msgspec.json.decode(data), inspect.type_info(kind))
            return msgspec.convert(value, kind)
    except RecursionError:
        raise msgspec.DecodeError("JSON is nested too deeply") from None


def canonical(record: msgspec.Struct) -> bytes:
    """Return the JSON of a record for content digests: equal content gives equal bytes in every version.

    Fields of format 1 come first in their order, then all later fields that are set, by name.
    """
    return msgspec.json.encode(_canonical(record))


def canonical_tree(tree: Any, kind: type[msgspec.Struct]) -> bytes:
    """Return what `canonical` returns for the record that was written as this tree, without added defaults.

    An earlier version could not write later fields, so their defaults must not enter its digest.
    """
    return msgspec.json.encode(_sealed_tree(tree, inspect.type_info(kind)))


def refuse_unheld(value: msgspec.Struct, *, store_format: int, store: str) -> None:
    """Raise if a store cannot hold some settings, before anything is recorded.

    Args:
        value: the settings, or a struct that holds some.
        store_format: format of the store.
        store: its address, for the message.

    Raises:
        UserError: the store cannot hold a setting.
    """
    try:
        _written(value, store_format)
    except UserError as error:
        raise UserError(error.what, where=store, allowed=error.allowed, fix=error.fix) from None


def kept(old: T, new: T) -> T:
    """Return `new`, made from `old`, after copying to it the fields of `old` that this version lacks."""
    if isinstance(old, Stored) and isinstance(new, Stored) and _LATER in old.__dict__:
        new.__dict__[_LATER] = old.__dict__[_LATER]
        for name in old.__struct_fields__:
            kept(getattr(old, name), getattr(new, name, None))
    return new


class _Reader:
    """The conversion of a plain tree into structs; fields without a place are attached to the struct."""

    def __init__(self) -> None:
        self._found = 0

    def read(self, tree: Any, info: inspect.Type) -> Any:
        """Return a tree in which structs, containers and words are read leniently."""
        info = _bare(info)
        if isinstance(info, inspect.UnionType):
            info = _chosen(tree, info)
        if isinstance(info, inspect.StructType) and isinstance(tree, dict):
            return self._struct(tree, info)
        if isinstance(info, inspect.DictType) and isinstance(tree, dict):
            return {key: self.read(value, info.value_type) for key, value in tree.items()}
        if isinstance(info, inspect.ListType | inspect.VarTupleType) and isinstance(tree, list):
            return [self.read(value, info.item_type) for value in tree]
        words = _words(info)
        return _UNKNOWN if words and tree not in words and _UNKNOWN in words else tree

    def _struct(self, tree: dict[str, Any], info: inspect.StructType) -> Any:
        """Return a struct made from a mapping; unknown fields and words are kept on it."""
        before = self._found
        fields = {field.encode_name: field for field in info.fields}
        later = {name: value for name, value in tree.items() if name not in fields}
        read = {}
        for name, value in tree.items():
            if name not in fields:
                continue
            read[name] = self.read(value, fields[name].type)
            words = _words(_bare(fields[name].type))
            if isinstance(value, str) and read[name] != value:
                later[name] = value
            # An unknown word in a type without the word "unknown": drop it, so that the default applies.
            elif words and value not in words and not fields[name].required:
                later[name] = value
                del read[name]
        self._found += len(later)
        record = msgspec.convert(read, info.cls)
        if self._found > before and isinstance(record, Stored):
            record.__dict__[_LATER] = later
        return record


def _bare(info: inspect.Type) -> inspect.Type:
    while isinstance(info, inspect.Metadata):
        info = info.type
    return info


def _chosen(tree: Any, union: inspect.UnionType) -> inspect.Type:
    """Return the member of a union that a value is probably meant for."""
    kinds: tuple[type[Any], ...] = (inspect.EnumType, inspect.LiteralType, inspect.StrType)
    if isinstance(tree, dict):
        kinds = (inspect.StructType, inspect.DictType)
    elif isinstance(tree, list):
        kinds = (inspect.ListType, inspect.VarTupleType)
    members = [_bare(member) for member in union.types]
    return next((m for kind in kinds for m in members if isinstance(m, kind)), union)


def _words(info: inspect.Type) -> tuple[Any, ...]:
    """Return the words that an enumeration or a literal type allows; none for other types."""
    if isinstance(info, inspect.EnumType):
        return tuple(member.value for member in info.cls)
    return tuple(info.values) if isinstance(info, inspect.LiteralType) else ()


def _written(value: Any, store_format: int) -> Any:
    """Return a tree without the fields that must not be written; parts without changes stay as they are."""
    return _reduced(value, lambda item: _written(item, store_format), lambda item: item, store_format)


def _sealed_tree(tree: Any, info: inspect.Type) -> Any:
    """Return a tree for `canonical_tree`, ordered like the records of the given type."""
    info = _bare(info)
    if isinstance(info, inspect.UnionType):
        info = _chosen(tree, info)
    if isinstance(info, inspect.StructType) and isinstance(tree, dict):
        first = {f.encode_name: f.type for f in info.fields if _since(f.type) == 1 and f.encode_name in tree}
        later = {name: _sorted(tree[name]) for name in sorted(tree) if name not in first}
        return {name: _sealed_tree(tree[name], kind) for name, kind in first.items()} | later
    if isinstance(info, inspect.DictType) and isinstance(tree, dict):
        return {name: _sealed_tree(tree[name], info.value_type) for name in sorted(tree)}
    if isinstance(info, inspect.ListType | inspect.VarTupleType) and isinstance(tree, list):
        return [_sealed_tree(item, info.item_type) for item in tree]
    return _sealed(tree)


def _sealed(value: Any) -> msgspec.Raw:
    return msgspec.Raw(msgspec.json.encode(value, order="deterministic"))


def _canonical(value: Any) -> Any:
    """Return a tree for `canonical`: mappings sorted, and later fields last."""
    # Cells and stages, by the ten thousand: one call for all of them takes a third of the time.
    if isinstance(value, dict | list | tuple) and all(
        map(_is_whole, value.values() if isinstance(value, dict) else value)
    ):
        return _sealed(value)
    if isinstance(value, dict):
        return {key: _canonical(value[key]) for key in sorted(value)}
    return _reduced(value, _canonical, _sealed, FORMAT, later_last=True)


def _reduced(
    value: Any,
    inner: Callable[[Any], Any],
    whole: Callable[[Any], Any],
    store_format: int,
    *,
    later_last: bool = False,
) -> Any:
    """Return a struct as a mapping of the fields to write, and a container with its items converted.

    Args:
        value: a struct, a container or a plain value.
        inner: converts a field or an item.
        whole: converts a value that needs no change.
        store_format: format of the store.
        later_last: whether fields later than format 1 follow the others, sorted by name.

    Raises:
        UserError: the store cannot hold a setting.
    """
    if isinstance(value, dict):
        return {key: inner(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [inner(item) for item in value]
    if not isinstance(value, msgspec.Struct):
        return whole(value)
    if _is_whole(value):
        return whole(value)
    later = value.__dict__.get(_LATER) if isinstance(value, Stored) else None
    tree, added = {}, dict(later or {})
    for attribute, name, since, default, is_plain in _fields(type(value)):
        item = getattr(value, attribute)
        # `added` also holds words that this version could not read: their original text is written back.
        if since == 1 and name not in added:
            tree[name] = whole(item) if is_plain else inner(item)
        elif since == 1 or item == default():
            continue
        elif since <= store_format:
            added[name] = _written(item, store_format)
        elif isinstance(value, Settings):
            raise UserError(
                f"the store is of format {store_format} and cannot hold the setting {name!r}",
                allowed=f"leave it out, or upgrade the store to format {FORMAT} when nothing runs in it",
                fix="sweep upgrade",
            )
    if later_last:
        return tree | {name: _sorted(added[name]) for name in sorted(added)}
    return tree | added


def _is_whole(value: Any) -> bool:
    """Whether a struct is written with all of its fields, as msgspec writes it."""
    if not isinstance(value, msgspec.Struct) or _evolved(type(value)):
        return False
    return not isinstance(value, Stored) or _LATER not in value.__dict__


def _sorted(value: Any) -> msgspec.Raw:
    return msgspec.Raw(msgspec.json.encode(value, order="sorted"))


def inspect_records() -> None:
    """Inspect all records that this process has imported, so that processes forked from it need not."""
    kinds: list[type[Stored]] = [Stored]
    for kind in kinds:
        kinds += kind.__subclasses__()
        _evolved(kind)


@cache
def _fields(kind: type[msgspec.Struct]) -> tuple[_Field, ...]:
    """Return what is known of each field of a struct."""
    return tuple(
        _Field(f.name, f.encode_name, _since(f.type), _default(f), isinstance(_bare(f.type), _PLAIN))
        for f in _inspected(kind).fields
    )


_INSPECTED: dict[type, inspect.StructType] = {}
"""Structs by class. To inspect one takes 1 ms and more, with all that it may hold: that is inspected once."""


def _inspected(kind: type[msgspec.Struct]) -> inspect.StructType:
    if kind not in _INSPECTED:
        for found in _structs(inspect.type_info(kind), set()):
            _INSPECTED.setdefault(found.cls, found)
    return _INSPECTED[kind]


def _structs(info: inspect.Type, seen: set[type[msgspec.Struct]]) -> Iterator[inspect.StructType]:
    """Yield a struct and all that it may hold, each once."""
    info = _bare(info)
    if isinstance(info, inspect.StructType) and info.cls not in seen:
        seen.add(info.cls)
        yield info
        for field in info.fields:
            yield from _structs(field.type, seen)
    for name in ("value_type", "item_type"):
        if isinstance(inside := getattr(info, name, None), inspect.Type):
            yield from _structs(inside, seen)
    for name in ("types", "item_types"):
        for inside in getattr(info, name, None) or ():
            yield from _structs(inside, seen)


class _Field(NamedTuple):
    """A field of a struct.

    Attributes:
        attribute, name: its name in the struct, and in records.
        since: format with which it came.
        default: makes its default.
        is_plain: whether its values hold no others.
    """

    attribute: str
    name: str
    since: int
    default: Callable[[], Any]
    is_plain: bool


_PLAIN = (inspect.StrType, inspect.IntType, inspect.FloatType, inspect.BoolType, inspect.EnumType)


def _since(info: inspect.Type) -> int:
    """Return the format with which a field came."""
    if isinstance(info, inspect.Metadata):
        return int((info.extra or {}).get("since", 1))
    return 1


def _default(field: inspect.Field) -> Callable[[], Any]:
    factory: Any = field.default_factory
    return factory if callable(factory) else lambda: field.default


@cache
def _evolved(kind: type[msgspec.Struct]) -> bool:
    """Whether a struct, or one that it may hold, has a marked field."""
    return any(f.since > 1 for each in _structs(_inspected(kind), set()) for f in _fields(each.cls))
