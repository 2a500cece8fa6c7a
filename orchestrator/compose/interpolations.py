"""Which interpolations of a raw config tree depend on which keys, and the values of the plain ones. Pure.

OmegaConf parses an interpolation anew each time that it is read, some 0.3 ms. The common forms, ``${a.b}``
and text around such, are therefore filled in here; for all others OmegaConf is asked.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from orchestrator.core.tree import MISSING, pick

Path = tuple[str, ...]

_INNER = re.compile(r"\$\{([^${}]*)\}")
_PART = r"[^\s.:,'\"\[\]{}$\\]+"
_KEY = re.compile(rf"\.*{_PART}(?:\.{_PART}|\[{_PART}\])*\.?|\.+")
_CONSTANT = re.compile(r"oc\.env:\w+(,[\w./-]*)?")
_PLAIN_KEY = re.compile(r"\.*[A-Za-z_][\w-]*(?:\.[A-Za-z_][\w-]*)*")
_PLAIN_TEXT = re.compile(r"[\w./:,+=@!?%;()# -]*")
_NESTED = "\0"


class Reference(NamedTuple):
    """A value with an interpolation, or a list that holds one.

    Attributes:
        path: where it lies.
        reads: the paths that it can read; None: any.
        template: texts and paths in turn, beginning and ending with a text; None: ask OmegaConf.
    """

    path: Path
    reads: tuple[Path, ...] | None
    template: tuple[str | Path, ...] | None

    def filled(self, tree: Mapping[str, Any]) -> Any:
        """Returns its value in a resolved tree, MISSING where OmegaConf must be asked."""
        if self.template is None:
            return MISSING
        values = [pick(tree, ".".join(path)) if isinstance(path, tuple) else path for path in self.template]
        if len(values) == 3 and values[0] == values[2] == "":
            return values[1]
        if all(isinstance(value, str | int | float) for value in values):
            return "".join(map(str, values))
        return MISSING


def references(raw: Mapping[str, Any], path: Path = ()) -> Iterator[Reference]:
    """Yields the interpolations of an unresolved tree. A list counts as one value."""
    for name, value in raw.items():
        here = (*path, str(name))
        if isinstance(value, Mapping):
            yield from references(value, here)
        elif isinstance(value, list) and has_interpolation(value):
            reads = [_reads(text, here) if "${." not in text else None for text in _texts(value)]
            known = [read for read in reads if read is not None]
            yield Reference(here, sum(known, ()) if len(known) == len(reads) else None, None)
        elif isinstance(value, str) and "${" in value:
            yield Reference(here, _reads(value, here), _template(value, here))


def has_interpolation(value: Any) -> bool:
    """Tells whether an interpolation lies in a value."""
    return any("${" in text for text in _texts(value))


def is_related(one: Path, other: Path) -> bool:
    """Tells whether one path lies in the other."""
    length = min(len(one), len(other))
    return one[:length] == other[:length]


def depends(reference: Reference, changed: Iterable[Path]) -> bool:
    """Tells whether a reference can read, or lies in, one of some paths."""
    return reference.reads is None or any(
        is_related(read, path) for path in changed for read in (*reference.reads, reference.path)
    )


def in_order(found: Iterable[Reference]) -> list[Reference]:
    """Orders references so that each comes after those that it reads; those in a circle are left out."""
    order: list[Reference] = []
    left = list(found)
    while ready := [
        one for one in left if not any(depends(one, [other.path]) for other in left if other is not one)
    ]:
        order += ready
        left = [one for one in left if one not in ready]
    return order


def _texts(value: Any) -> Iterator[str]:
    match value:
        case str():
            yield value
        case Mapping():
            for item in value.values():
                yield from _texts(item)
        case list() | tuple():
            for item in value:
                yield from _texts(item)


def _reads(text: str, path: Path) -> tuple[Path, ...] | None:
    """Returns the paths that an interpolation reads, None when the text alone does not tell."""
    reads = []
    # From the inside out: ${data.${task.name}} reads task.name, and anything in data.
    while match := _INNER.search(text):
        key, nested, _ = match[1].strip().partition(_NESTED)
        if not (_CONSTANT.fullmatch(key) and not nested):
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


def _template(text: str, path: Path) -> tuple[str | Path, ...] | None:
    pieces = _INNER.split(text)
    texts, keys = pieces[::2], pieces[1::2]
    if not all(map(_PLAIN_TEXT.fullmatch, texts)) or not all(map(_PLAIN_KEY.fullmatch, keys)):
        return None
    template: list[str | Path] = [texts[0]]
    for key, after in zip(keys, texts[1:], strict=True):
        template += [_absolute(key, path), after]
    return tuple(template)


def _absolute(key: str, path: Path) -> Path:
    num_dots = len(key) - len(key.lstrip("."))
    parts = tuple(part for part in re.split(r"[.\[\]]+", key) if part)
    return path[: max(0, len(path) - num_dots)] + parts if num_dots else parts
