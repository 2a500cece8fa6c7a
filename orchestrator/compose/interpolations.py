"""Which interpolations of a raw config tree depend on which keys, and the values of the plain ones. Pure.

OmegaConf parses an interpolation anew each time that it is read, some 0.3 ms. The common forms, ``${a.b}``
and text around such, are therefore filled in here; for all others OmegaConf is asked.
"""

from __future__ import annotations

import contextlib
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple

from hydra.core.utils import setup_globals
from omegaconf import DictConfig, OmegaConf

from orchestrator.core.tree import MISSING, pick
from orchestrator.errors import UserError
from orchestrator.stage import StageSpec

KeyPath = tuple[str, ...]

_INNER = re.compile(r"\$\{([^${}]*)\}")
_PART = r"[^\s.:,'\"\[\]{}$\\]+"
_KEY = re.compile(rf"\.*{_PART}(?:\.{_PART}|\[{_PART}\])*\.?|\.+")
_CONSTANT = re.compile(r"oc\.env:\w+(,[\w./-]*)?")
_PLAIN_KEY = re.compile(r"\.*[A-Za-z_][\w-]*(?:\.[A-Za-z_][\w-]*)*")
_PLAIN_TEXT = re.compile(r"[\w./:,+=@!?%;()# -]*")
_NESTED = "\0"


class Interpolation(NamedTuple):
    """A value with an interpolation, or a list that holds one.

    Attributes:
        path: where it lies.
        reads: the paths that it can read; None: any.
        template: texts and paths in turn, beginning and ending with a text; None: ask OmegaConf.
    """

    path: KeyPath
    reads: tuple[KeyPath, ...] | None
    template: tuple[str | KeyPath, ...] | None

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


def references(raw: Mapping[str, Any], path: KeyPath = ()) -> Iterator[Interpolation]:
    """Yields the interpolations of an unresolved tree. A list counts as one value."""
    for name, value in raw.items():
        here = (*path, str(name))
        if isinstance(value, Mapping):
            yield from references(value, here)
        elif isinstance(value, list) and has_interpolation(value):
            reads = [_reads(text, here) if "${." not in text else None for text in _texts(value)]
            known = [read for read in reads if read is not None]
            yield Interpolation(here, sum(known, ()) if len(known) == len(reads) else None, None)
        elif isinstance(value, str) and "${" in value:
            yield Interpolation(here, _reads(value, here), _template(value, here))


def has_interpolation(value: Any) -> bool:
    """Tells whether an interpolation lies in a value."""
    return any("${" in text for text in _texts(value))


def is_related(one: KeyPath, other: KeyPath) -> bool:
    """Tells whether one path lies in the other."""
    length = min(len(one), len(other))
    return one[:length] == other[:length]


def depends(reference: Interpolation, changed: Iterable[KeyPath]) -> bool:
    """Tells whether a reference can read, or lies in, one of some paths."""
    return reference.reads is None or any(
        is_related(read, path) for path in changed for read in (*reference.reads, reference.path)
    )


def in_order(found: Iterable[Interpolation]) -> list[Interpolation]:
    """Orders references so that each comes after those that it reads; those in a circle are left out."""
    order: list[Interpolation] = []
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


def _reads(text: str, path: KeyPath) -> tuple[KeyPath, ...] | None:
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


def _template(text: str, path: KeyPath) -> tuple[str | KeyPath, ...] | None:
    pieces = _INNER.split(text)
    texts, keys = pieces[::2], pieces[1::2]
    if not all(map(_PLAIN_TEXT.fullmatch, texts)) or not all(map(_PLAIN_KEY.fullmatch, keys)):
        return None
    template: list[str | KeyPath] = [texts[0]]
    for key, after in zip(keys, texts[1:], strict=True):
        template += [_absolute(key, path), after]
    return tuple(template)


def _absolute(key: str, path: KeyPath) -> KeyPath:
    num_dots = len(key) - len(key.lstrip("."))
    parts = tuple(part for part in re.split(r"[.\[\]]+", key) if part)
    return path[: max(0, len(path) - num_dots)] + parts if num_dots else parts


_RESOLVER = re.compile(r"\$\{\s*([A-Za-z_][\w.]*)\s*:")
_STEADY: Final = frozenset(
    {"oc.env", "oc.select", "oc.decode", "oc.create", "oc.deprecated", "oc.dict.keys", "oc.dict.values"}
)
"""Resolvers whose value depends on the config and the environment alone."""

_ELSEWHEN: Final = tuple(
    timedelta(days=397, hours=hours, minutes=7, seconds=11, microseconds=13) for hours in (5, 17)
)
"""From now to two times of which no part is the same: year, month, day of the month and week, hour and so on.
They are half a day apart, so that one of them is on the other side of noon."""


def may_vary(text: str) -> bool:
    """Tell whether a text asks a resolver that could return another value at the next plan."""
    return any(name not in _STEADY for name in _RESOLVER.findall(text))


def varying(
    config: DictConfig, plain: Mapping[str, Any], paths: Sequence[Sequence[str]], value: Callable[..., Any]
) -> Iterator[str]:
    """Yield the dotted keys whose value is another when the config is resolved again.

    Args:
        config: unresolved; values of resolvers that it remembers are put aside for a while.
        plain: what it was resolved to.
        paths: where to look.
        value: resolves what lies in a config at a path.
    """
    remembered = OmegaConf.create()
    OmegaConf.copy_cache(config, remembered)
    try:
        for shift in _ELSEWHEN:
            OmegaConf.clear_cache(config)
            with _clock_at(shift):
                found = [value(config, path) for path in paths]
            for path, other in zip(paths, found, strict=True):
                key = ".".join(path)
                yield from _different(pick(plain, key), other, key)
    finally:
        OmegaConf.copy_cache(remembered, config)


def refuse_varying(
    specs: Mapping[str, StageSpec], varying_of: Callable[[Sequence[str]], Iterator[str]], *, where: str
) -> None:
    """Refuse a stage that reads such a key; one that it `uses` is given to it and enters no digest.

    Args:
        specs: the stages.
        varying_of: finds such keys in or above some keys.
        where: the cell.

    Raises:
        UserError: stage and key are named, with the way out.
    """
    reads = {name: (*spec.reads, *spec.each.values()) for name, spec in specs.items()}
    for key in varying_of([*itertools.chain(*reads.values())]):
        for name, spec in specs.items():
            if any(holds(read, key) for read in reads[name]) and not any(
                holds(use, key) for use in spec.uses
            ):
                raise UserError(
                    f"stage {name!r} reads {key}, which is another value at every plan",
                    where=where,
                    allowed="the stage would have another digest each time, and never be done",
                    fix=f"move {key} from `reads` to `uses`, or give it a fixed value",
                )


def holds(section: str, key: str) -> bool:
    """Tell whether one of two keys lies in the other."""
    return f"{key}.".startswith(f"{section}.") or f"{section}.".startswith(f"{key}.")


def _different(one: Any, other: Any, key: str) -> Iterator[str]:
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        for name in {**one, **other}:
            inner = f"{key}.{name}" if key else str(name)
            yield from _different(one.get(name, MISSING), other.get(name, MISSING), inner)
    elif one != other and (one == one or other == other):  # NaN differs from itself
        yield key


@contextlib.contextmanager
def _clock_at(shift: timedelta) -> Iterator[None]:
    """Let ``${now:...}`` be another time for a while."""
    OmegaConf.register_new_resolver(
        "now", lambda pattern: (datetime.now() + shift).strftime(pattern), replace=True
    )
    try:
        yield
    finally:
        setup_globals()  # Hydra's own resolvers, as each of its compositions registers them
