"""The JSON schemas: of sweep files, of the settings, and of what verbs print with ``--json``."""

from __future__ import annotations

import inspect
import re
import types
import typing
from collections.abc import Mapping
from typing import Any

import msgspec

from orchestrator.compose.apps import AppSpec
from orchestrator.compose.search import SearchFile
from orchestrator.core.settings import RunSettings
from orchestrator.core.sweep import SweepFile
from orchestrator.registry import load
from orchestrator.spec import StageSpec

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def schemas() -> dict[str, dict[str, Any]]:
    """Return the JSON schemas of a sweep file, and of the settings of how a sweep is run, by name."""
    sweep = _schema(SweepFile)
    defs, body = sweep["$defs"], sweep["$defs"]["SweepFile"]
    for kind in (StageSpec, AppSpec, SearchFile):
        part = _schema(kind)
        defs |= part["$defs"]
    stage = {"anyOf": [{"$ref": "#/$defs/StageSpec"}, {"type": "null"}]}
    named = {"type": "array", "items": {"type": "string"}}
    body["properties"]["stages"] |= {"anyOf": [named, {"type": "object", "additionalProperties": stage}]}
    app = {"anyOf": [{"type": "string"}, {"$ref": "#/$defs/AppSpec"}]}
    body["properties"]["app"] = {**app, "description": body["properties"]["app"]["description"]}
    text = body["properties"]["search"]["description"]
    body["properties"]["search"] = {"$ref": "#/$defs/SearchFile", "description": text}
    body["properties"]["like"] = {"type": "string", "description": "another sweep, which completes this file"}
    return {"sweep": sweep, "conf": _schema(RunSettings)}


def output_schemas() -> dict[str, dict[str, Any]]:
    """Return the JSON schema of what each verb prints with ``--json``, by verb, and of an error.

    A verb that prints another object for another option has an ``anyOf``, with the option as the title.
    """
    from orchestrator.api.outputs import OUTPUTS, ErrorOutput  # imports most of the API

    found = {verb: _output(f"sweep {verb} --json", forms) for verb, forms in OUTPUTS.items()}
    return {**found, "error": _output("an error, with --json", {"": ErrorOutput})}


def _output(title: str, forms: Mapping[str, Any]) -> dict[str, Any]:
    """Return the schema of one verb."""
    parts, defs = [], dict[str, Any]()
    for option, kind in forms.items():
        part = _schema(load(kind) if isinstance(kind, str) else kind)
        defs |= part.pop("$defs", {})
        del part["$schema"]
        parts.append({**({"title": option} if option else {}), **part})
    body = parts[0] if len(parts) == 1 else {"anyOf": parts}
    return {"$schema": DIALECT, **body, "title": title, **({"$defs": defs} if defs else {})}


def _schema(kind: Any) -> dict[str, Any]:
    """Return the schema of a type, with the description of each key from its class."""
    known: dict[str, tuple[Any, Any]] = {}
    found: dict[str, Any] = msgspec.json.schema(_as_objects(kind, known))
    for name, part in found.get("$defs", {}).items():
        source, _ = known.get(name, (None, None))
        text = inspect.getdoc(source) if source else part.get("description")
        part["description"] = (text or "").partition("\n")[0]
        texts = _attributes(source) if source else {}
        for key, value in part.get("properties", {}).items():
            if text := texts.get(key):
                value["description"] = text
    return {"$schema": DIALECT, **found}


def _as_objects(kind: Any, known: dict[str, tuple[Any, Any]]) -> Any:
    """Return a type with a `TypedDict` in the place of each named tuple, as its ``_asdict`` is encoded.

    Named tuples within structs stay, because these are encoded as arrays.

    Args:
        kind: any type.
        known: collects the classes that occur, by name, each with what stands for it.
    """
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        _note(kind, known)
        return kind
    if typing.is_typeddict(kind) or (isinstance(kind, type) and hasattr(kind, "_fields")):
        if kind.__name__ not in known:
            hints = typing.get_type_hints(kind, include_extras=True)
            fields = {name: _as_objects(hint, known) for name, hint in hints.items()}
            total = getattr(kind, "__total__", True)
            made: Any = typing.TypedDict(kind.__name__, fields, total=total)  # type: ignore[misc]
            known[kind.__name__] = kind, made
        return known[kind.__name__][1]
    arguments, origin = typing.get_args(kind), typing.get_origin(kind)
    if not arguments or origin in (typing.Literal, typing.Annotated):
        return kind
    inner = tuple(each if each is ... else _as_objects(each, known) for each in arguments)
    if origin in (types.UnionType, typing.Union):
        return typing.Union[inner]  # noqa: UP007 - the members are values
    return origin[inner if len(inner) > 1 else inner[0]]


def _note(kind: type[msgspec.Struct], known: dict[str, tuple[Any, Any]]) -> None:
    """Collect a struct, and those that are the type of a field."""
    if kind.__name__ not in known:
        known[kind.__name__] = kind, kind
        for field in msgspec.structs.fields(kind):
            todo = [field.type]
            while todo:
                each = todo.pop()
                todo += typing.get_args(each)
                if isinstance(each, type) and issubclass(each, msgspec.Struct):
                    _note(each, known)


def _attributes(kind: type) -> dict[str, str]:
    """Return the descriptions of a class's attributes: in its docstring, or behind ``#:`` in its source."""
    text = (inspect.getdoc(kind) or "").partition("Attributes:\n")[2]
    if not text and typing.is_typeddict(kind):
        return dict(re.findall(r"^    (\w+): .*  #: (.*)$", inspect.getsource(kind), re.MULTILINE))
    found: dict[str, str] = {}
    names: list[str] = []
    for line in text.splitlines():
        if match := re.match(r"    (\w+(?:, \w+)*): (.*)", line):
            names = match[1].split(", ")
            found |= dict.fromkeys(names, match[2])
        elif line.startswith("        ") and found:
            found |= {name: f"{found[name]} {line.strip()}" for name in names}
        elif line.strip():
            break
    return found
