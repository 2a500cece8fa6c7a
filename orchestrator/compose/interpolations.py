"""Which interpolations of a raw config tree can depend on which keys; in doubt, on all of them. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

Path = tuple[str, ...]

_INNER = re.compile(r"\$\{([^${}]*)\}")
_KEY = re.compile(r"\.*[^\s.:,'\"\[\]{}$\\]+(?:\.[^\s.:,'\"\[\]{}$\\]+|\[\d+\])*\.?|\.+")
_NESTED = "\0"


class Reference(NamedTuple):
    """A value (or a list that holds one) with an interpolation, and the paths that it reads; None: any."""

    path: Path
    reads: tuple[Path, ...] | None


def references(raw: Mapping[str, Any], path: Path = ()) -> Iterator[Reference]:
    """Yields the interpolations of an unresolved tree. A list counts as one value."""
    for name, value in raw.items():
        here = (*path, str(name))
        if isinstance(value, Mapping):
            yield from references(value, here)
        elif isinstance(value, list) and has_interpolation(value):
            yield Reference(here, None)
        elif isinstance(value, str) and "${" in value:
            yield Reference(here, _reads(value, here))


def has_interpolation(value: Any) -> bool:
    """Tells whether an interpolation lies in a value."""
    match value:
        case str():
            return "${" in value
        case Mapping():
            return any(map(has_interpolation, value.values()))
        case list() | tuple():
            return any(map(has_interpolation, value))
        case _:
            return False


def is_related(one: Path, other: Path) -> bool:
    """Tells whether one path lies in the other."""
    length = min(len(one), len(other))
    return one[:length] == other[:length]


def depends(reference: Reference, changed: Iterable[Path]) -> bool:
    """Tells whether a reference can read, or lies in, one of some paths."""
    return reference.reads is None or any(
        is_related(read, path) for path in changed for read in (*reference.reads, reference.path)
    )


def _reads(text: str, path: Path) -> tuple[Path, ...] | None:
    """Returns the paths that an interpolation reads, None when the text alone does not tell."""
    reads = []
    # From the inside out: ${data.${task.name}} reads task.name, and anything in data.
    while match := _INNER.search(text):
        key, nested, _ = match[1].strip().partition(_NESTED)
        if not _KEY.fullmatch(key):
            return None  # a resolver, or nothing before the nested part
        read = _absolute(key, path)
        if nested and not key.endswith("."):
            read = read[:-1]  # ${data.x${y}} reads some key in data
        if not read:
            return None
        reads.append(read)
        text = f"{text[: match.start()]}{_NESTED}{text[match.end() :]}"
    return None if "${" in text else tuple(reads)


def _absolute(key: str, path: Path) -> Path:
    num_dots = len(key) - len(key.lstrip("."))
    parts = tuple(part for part in re.split(r"[.\[\]]+", key) if part)
    return path[: max(0, len(path) - num_dots)] + parts if num_dots else parts
