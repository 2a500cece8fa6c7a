"""What of an app's composed config is stored: its sealed form, and its identity.

It runs in the app's environment. A node is sealed as its plain value if it has the form that an untyped
config, or the structured config around it, would give it. Any other node is ``{"$": [CLASS, FORM, VALUE]}``,
where FORM lists its types and flags::

    {"lr": 0.1, "out": "${hydra:runtime.output_dir}", "opt": {"$": ["DictConfig", [...], {"name": "adam"}]}}

The format is ours. OmegaConf's own fields are set, since its setters would convert values a second time.
"""

from __future__ import annotations

import base64
import copy
import dataclasses
import enum
import functools
import importlib
import json
import math
import pathlib
import re
import types
import typing
from collections.abc import Collection
from typing import Any

from omegaconf import Container, DictConfig, ListConfig, OmegaConf, base
from omegaconf import nodes as kinds
from omegaconf.basecontainer import BaseContainer

ROWS = "sweep-rows.json"
"""File in the output folder with the result rows of a task."""

METRICS = "metrics.json"
"""File in the output folder that a task may write, with further columns of its rows."""

_OUTPUT = re.compile(
    r"(out|output|log|logs|logging|work|run|save|ckpt|checkpoints?|results?|tmp|temp|cache|default_root)"
    r"_?(dir|folder|root)|(out|output|log|save)_path"
)
"""Names of keys that hold output folders: they change where a result lies, and not the result."""

_PATH = re.compile(r"(?:/[^/\s]+(?:/[^\n]*)?|~/[^\n]*|file://[^\n]*)\Z")
_PURE = ("oc.create", "oc.decode", "oc.deprecated", "oc.dict.keys", "oc.dict.values", "oc.select")
"""Resolvers whose value follows from the config alone. All others are left to the attempt."""

_LEFT_OUT = object()


def _type_text(kind: Any) -> Any:
    """Return a type as JSON."""
    if kind is None or kind is Any:
        return None if kind is None else "Any"
    origin = typing.get_origin(kind)
    if origin is None:
        return kind.__module__ + ":" + kind.__qualname__
    name = "Union" if origin is typing.Union or origin is getattr(types, "UnionType", None) else None
    return [name or _type_text(origin), [_type_text(arg) for arg in typing.get_args(kind)]]


def _type_of(text: Any) -> Any:
    """Return the type that `_type_text` wrote.

    Raises:
        ImportError, AttributeError: the app no longer has such a class.
    """
    if text is None or text == "Any":
        return None if text is None else Any
    if isinstance(text, list):
        name, args = text[0], tuple(_type_of(arg) for arg in text[1])
        if name == "Union":
            return typing.Union[args]  # noqa: UP007 - of a tuple
        # OmegaConf's own are typing.Dict[...], which differ from dict[...].
        return getattr(typing, name.partition(":")[2].capitalize())[args]
    module, _, name = text.partition(":")
    return functools.reduce(getattr, name.split("."), importlib.import_module(module))


_FIELDS = ("ref_type", "object_type", "optional", "key_type", "element_type", "flags")


def _form(node: Any) -> tuple[Any, ...]:
    data = node._metadata
    flags = tuple(sorted((data.flags or {}).items()))
    return (type(node).__name__, *(getattr(data, name, None) for name in _FIELDS[:-1]), flags)


@functools.cache
def _plain_nodes() -> dict[str, Any]:
    root = DictConfig({"dict": {}, "list": [], "any": None})
    return {key: root._get_node(key) for key in ("dict", "list", "any")}


@functools.cache
def _template(kind: Any) -> Any:
    """Return the structured config of a class, None for an untyped one."""
    if kind in (None, dict, list) or not (dataclasses.is_dataclass(kind) or hasattr(kind, "__attrs_attrs__")):
        return None
    try:
        return OmegaConf.structured(kind)
    except Exception:  # noqa: BLE001 - a class that cannot be made without arguments: its nodes keep their forms
        return None


def _default(parent: Any, key: Any) -> Any:
    """Return the node that a structured config would have at a key, None for an untyped one."""
    template = _template(parent._metadata.object_type) if parent is not None else None
    return template._get_node(key) if template is not None and key in template._content else None


def seal(node: Any, default: Any = None) -> Any:
    """Return a node as JSON.

    Args:
        node: of a config, with its interpolations.
        default: the node that stands in its place in the structured config around it.
    """
    if isinstance(node, Container):
        content = node._content
        if isinstance(content, dict):
            plain = all(isinstance(key, str) and key[:1] != "$" for key in content)
            items = [(key, seal(child, _default(node, key))) for key, child in content.items()]
            value: Any = dict(items) if plain else {"$keys": [[_value(key), item] for key, item in items]}
        elif isinstance(content, list):
            value = [seal(child) for child in content]
        else:  # None, missing or an interpolation; a union holds a node
            value = seal(content) if hasattr(content, "_metadata") else content
    else:
        content = node._content if hasattr(node, "_content") else node._val
        value = seal(content) if hasattr(content, "_metadata") else _value(content)
    kind = "dict" if isinstance(value, dict) else "list" if isinstance(value, list) else "any"
    # A union's value is a node with a form of its own, which would be taken for the union's.
    is_union = type(node).__name__ == "UnionNode"
    if not is_union and _form(node) == _form(default if default is not None else _plain_nodes()[kind]):
        return value
    data = node._metadata
    form = [_type_text(data.ref_type), _type_text(data.object_type), data.optional]
    form += [_type_text(getattr(data, "key_type", None)), _type_text(getattr(data, "element_type", None))]
    return {"$": [type(node).__name__, [*form, data.flags], value]}


def _value(value: Any) -> Any:
    """Return a leaf as JSON."""
    if isinstance(value, enum.Enum):
        return {"$enum": [_type_text(type(value)), value.name]}
    if isinstance(value, bytes):
        return {"$bytes": base64.b64encode(value).decode()}
    if isinstance(value, pathlib.Path):
        return {"$path": str(value)}
    if isinstance(value, float) and not math.isfinite(value):
        return {"$float": repr(value)}
    return value


def _leaf(value: Any) -> Any:
    """Return the value that `_value` wrote."""
    if not isinstance(value, dict):
        return value
    ((tag, inner),) = value.items()
    if tag == "$enum":
        return _type_of(inner[0])[inner[1]]
    makers: dict[str, Any] = {"$bytes": base64.b64decode, "$path": pathlib.Path, "$float": float}
    return makers[tag](inner)


def unseal(value: Any, default: Any = None) -> Any:
    """Return the node that `seal` wrote.

    Args:
        value: JSON.
        default: as for `seal`.
    """
    form, name = None, ""
    if isinstance(value, dict) and "$" in value:
        name, form, value = value["$"]
    elif default is not None:
        name = type(default).__name__
    else:
        is_leaf = not isinstance(value, (dict, list)) or (
            isinstance(value, dict) and len(value) == 1 and next(iter(value)) in _LEAF_TAGS
        )
        name = "AnyNode" if is_leaf else "DictConfig" if isinstance(value, dict) else "ListConfig"
    if name == "DictConfig":
        node: Any = DictConfig({})
    elif name == "ListConfig":
        node = ListConfig([])
    elif name == "EnumNode":
        kind = _type_of(form[0]) if form else default._metadata.ref_type
        node = kinds.EnumNode(kind)
    elif name == "UnionNode":
        node = getattr(base, name)(None, _type_of(form[0]) if form else default._metadata.ref_type)
    else:
        node = getattr(kinds, name)(None)
    _set_form(node, form, default)
    _fill(node, name, value)
    return node


_LEAF_TAGS = ("$enum", "$bytes", "$path", "$float")


def _set_form(node: Any, form: Any, default: Any) -> None:
    data = node._metadata
    if form is not None:
        values = [*map(_type_of, form[:2]), form[2], *map(_type_of, form[3:5]), form[5]]
    elif default is not None:
        values = [getattr(default._metadata, name, None) for name in _FIELDS]
    else:
        plain = _plain_nodes()
        kind = {"DictConfig": "dict", "ListConfig": "list"}.get(type(node).__name__, "any")
        values = [getattr(plain[kind]._metadata, name, None) for name in _FIELDS]
    for name, value in zip(_FIELDS, values):  # noqa: B905 - the app's Python may be 3.9
        if hasattr(data, name):
            setattr(data, name, copy.copy(value))


def _fill(node: Any, name: str, value: Any) -> None:
    """Set the content of a node: OmegaConf's own fields, since its setters would convert the values again."""
    if name == "DictConfig" and isinstance(value, dict):
        pairs = value["$keys"] if "$keys" in value else value.items()
        content: Any = {}
        for key, item in pairs:
            key = _leaf(key)
            content[key] = _placed(unseal(item, _default(node, key)), node, key)
    elif name == "ListConfig" and isinstance(value, list):
        content = [_placed(unseal(item), node, index) for index, item in enumerate(value)]
    elif name == "UnionNode" and not (value is None or isinstance(value, str)):
        content = _placed(unseal(value), node, None)
    else:
        content = _leaf(value)
    node.__dict__["_content" if "_content" in node.__dict__ else "_val"] = content


def _placed(child: Any, parent: Any, key: Any) -> Any:
    child._set_parent(parent)
    child._set_key(key)
    return child


class without_resolvers:
    """Context manager in which each resolver not in `_PURE` raises. It yields the list of their names."""

    def __enter__(self) -> list[str]:
        self._before = BaseContainer._resolvers
        touched: list[str] = []

        def refused(name: str) -> Any:
            def resolver(*args: Any, **kwargs: Any) -> Any:
                touched.append(name)
                raise ValueError(name)

            return resolver

        BaseContainer._resolvers = {
            name: inner if name in _PURE else refused(name) for name, inner in self._before.items()
        }
        return touched

    def __exit__(self, *error: object) -> None:
        BaseContainer._resolvers = self._before


class Identity:
    """The part of a config that is a cell's identity: values as they are resolved, without volatile keys.

    Args:
        volatile: keys that the user leaves out.
        given: keys that an axis or an override sets; their values count as they are written.
        base: `texts` of the config without overrides. A chosen group sets keys too: what differs counts.

    Attributes:
        left_out: key to the reason why it is no part of the identity.
        texts: key to the value as it is written, of those that are places or resolve in the attempt.
        touched: resolvers that were refused since the last key: the list of `without_resolvers`.
    """

    def __init__(self, volatile: list[str], given: Collection[str], base: Any = None) -> None:
        self._volatile, self._given, self._base = volatile, given, base
        self.left_out: dict[str, str] = {}
        self.texts: dict[str, Any] = {}
        self.touched: list[str] = []

    def tree(self, config: Any, path: str = "", is_given: bool = False) -> Any:
        """Return a container as plain data, without the keys that are left out."""
        if isinstance(config._content, list):
            items = [self._of_key(config, index, path, is_given) for index in range(len(config._content))]
            return [None if item is _LEFT_OUT else item for item in items]
        found = {}
        for key in config._content:
            item = self._of_key(config, key, path, is_given)
            if item is not _LEFT_OUT:
                found[key.name if hasattr(key, "name") else str(key)] = item
        return found

    def _of_key(self, config: Any, key: Any, path: str, is_given: bool) -> Any:
        name = key.name if hasattr(key, "name") else str(key)
        full = path + "." + name if path else name
        node = config._get_node(key)
        is_given = is_given or full in self._given
        if is_given:
            return self._of_node(node, full, is_given)
        reason = "named as volatile" if full in self._volatile else ""
        inner = any(each.startswith(full + ".") for each in self._given)
        if not reason and not inner and _OUTPUT.fullmatch(name) and not isinstance(key, int):
            reason = "an output folder"
        if reason:
            return self._leave_out(full, reason)
        del self.touched[:]
        try:
            found = node._maybe_dereference_node(throw_on_resolution_failure=True)
        except Exception as error:  # noqa: BLE001 - Hydra's own errors, and those of resolvers
            if self.touched:
                return self._text_or_leave(node, full, self.touched[0])
            if type(error).__name__ == "UnsupportedInterpolationType":  # of an app that is not there
                return self._text_or_leave(node, full, "a resolver of the app")
            return node._value()  # missing, or an interpolation to nowhere: the task meets the same
        return self._of_node(found, full, False, node)

    def _text_or_leave(self, node: Any, full: str, reason: str) -> Any:
        """Leave a key out, unless a chosen group sets it: then return its text."""
        text = self.texts[full] = str(node._value())
        if self._base is None or self._base.get(full) == text:
            return self._leave_out(full, reason)
        return "literal:" + text

    def _leave_out(self, full: str, reason: str) -> Any:
        self.left_out[full] = reason
        return _LEFT_OUT

    def _of_node(self, node: Any, full: str, is_given: bool, written: Any = None) -> Any:
        if isinstance(node, Container) and isinstance(node._content, (dict, list)):
            return self.tree(node, full, is_given)
        value = node._value()
        if hasattr(value, "_metadata"):
            value = value._value()
        if isinstance(value, (bytes, pathlib.Path)):
            value = str(value)
        elif hasattr(value, "name"):
            value = value.name
        if isinstance(value, float) and not math.isfinite(value):
            return str(value)
        if isinstance(value, str) and _PATH.match(value):
            return "literal:" + value if is_given else self._text_or_leave(written, full, "an absolute path")
        return value


def write_rows(output: pathlib.Path, returned: Any) -> None:
    """Write the result rows: what the task returned, and what it wrote as `METRICS`.

    Raises:
        FloatingPointError: a value is not finite.
    """
    columns = _columns(returned)
    path = output / METRICS
    found: Any = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    rows = [{**flat(each), **columns} for each in (found if isinstance(found, list) else [found])]
    for row in rows:
        for key, value in row.items():
            if isinstance(value, float) and not math.isfinite(value):
                raise FloatingPointError("the task's " + key + " is " + str(value))
    text = json.dumps([row for row in rows if row], default=str)
    (output / ROWS).write_text(text, encoding="utf-8")


def _columns(returned: Any) -> dict[str, Any]:
    """Return the columns of what a task returned: a number, numbers or a mapping; other values give none."""
    value = _scalar(returned)
    if isinstance(value, (bool, int, float)):
        return {"value": value}
    if hasattr(value, "items"):
        return flat(value)
    items = [_scalar(item) for item in value] if isinstance(value, (tuple, list)) else []
    if items and all(isinstance(item, (int, float)) for item in items):
        return {"value" + (str(index) if index else ""): item for index, item in enumerate(items)}
    if value is not None:
        print("the task returned", type(value).__name__, "which gives no column: a number or a mapping does")
    return {}


def flat(tree: Any, root: str = "") -> dict[str, Any]:
    """Return the leaves of a mapping by dotted keys; a leaf that is no scalar is left out."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        value = _scalar(value)
        if hasattr(value, "items"):
            found.update(flat(value, root + str(key) + "."))
        elif value is None or isinstance(value, (bool, int, float, str)):
            found[root + str(key)] = value
    return found


def _scalar(value: Any) -> Any:
    """Return the number in an array or tensor of one item; any other value unchanged."""
    try:
        return value.item() if hasattr(value, "item") else value
    except Exception:  # noqa: BLE001 - an array of several items
        return value
