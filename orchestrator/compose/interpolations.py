"""Interpolations of a config tree: the keys they read, their values in simple cases, and true labels.

OmegaConf parses an interpolation each time that it reads one, which takes about 0.3 ms. The common forms,
``${a.b}`` alone or with text around it, are therefore filled in here. OmegaConf resolves all others.

Labels must state what ran, so no two axes may set one key. The later one would win, and the label of the
other would be false::

    axes: {lr: [0.1], recipe: {small: {lr: 0.5}}}     the cell "lr=0.1 recipe=small" would run with 0.5

An axis of a config group may be refined by an axis of a key in the group, such as ``trainer: [tiny, paper]``
by ``trainer.lr: [0.1, 0.2]``. The key is set after the group, so both labels are true.
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

from orchestrator.compose.axes import Axis, Label, leaf_keys
from orchestrator.core.tree import MISSING, pick, scalar_text
from orchestrator.errors import UserError
from orchestrator.spec import StageSpec

KeyPath = tuple[str, ...]

_INNER = re.compile(r"\$\{([^${}]*)\}")
_PART = r"[^\s.:,'\"\[\]{}$\\]+"
_KEY = re.compile(rf"\.*{_PART}(?:\.{_PART}|\[{_PART}\])*\.?|\.+")
_CONSTANT = re.compile(r"oc\.env:\w+(,[\w./-]*)?")
_PLAIN_KEY = re.compile(r"\.*[A-Za-z_][\w-]*(?:\.[A-Za-z_][\w-]*)*")
_PLAIN_TEXT = re.compile(r"[\w./:,+=@!?%;()# -]*")
_NESTED = "\0"


class Interpolation(NamedTuple):
    """A value with an interpolation, or a list that contains one.

    Attributes:
        path: its place in the tree.
        reads: the paths that it can read; None if it may read any.
        template: texts and paths in turn, with a text at both ends; None if only OmegaConf can resolve it.
    """

    path: KeyPath
    reads: tuple[KeyPath, ...] | None
    template: tuple[str | KeyPath, ...] | None

    def filled(self, tree: Mapping[str, Any]) -> Any:
        """Return its value in a resolved tree, or MISSING if only OmegaConf can resolve it.

        Args:
            tree: in which the paths that it reads are resolved.
        """
        if self.template is None:
            return MISSING
        values = [pick(tree, ".".join(path)) if isinstance(path, tuple) else path for path in self.template]
        # ${a.b} alone takes over the value with its type; with text around it, the result is text.
        if len(values) == 3 and values[0] == values[2] == "":
            return values[1]
        if all(isinstance(value, str | int | float) for value in values):
            return "".join(map(str, values))
        return MISSING


def references(raw: Mapping[str, Any], path: KeyPath = ()) -> Iterator[Interpolation]:
    """Yield the interpolations of an unresolved tree. A list counts as one value.

    Args:
        raw: the tree.
        path: of the tree in the whole config.
    """
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
    """Return whether a value contains an interpolation."""
    return any("${" in text for text in _texts(value))


def is_related(one: KeyPath, other: KeyPath) -> bool:
    """Return whether one path lies in the other, or both are equal."""
    length = min(len(one), len(other))
    return one[:length] == other[:length]


def depends(reference: Interpolation, changed: Iterable[KeyPath]) -> bool:
    """Return whether an interpolation can read one of some paths, or lies in or above one of them."""
    return reference.reads is None or any(
        is_related(read, path) for path in changed for read in (*reference.reads, reference.path)
    )


def in_order(found: Iterable[Interpolation]) -> list[Interpolation]:
    """Return interpolations ordered so that each comes after those that it reads. Omit those in a cycle."""
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
    """Return the paths that an interpolation reads, None if its text alone does not determine them."""
    reads = []
    # From the inside out: ${data.${task.name}} reads task.name, and may read anything in data.
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
    # Quotes, backslashes and nested interpolations have rules that only OmegaConf applies.
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
"""Resolvers whose value depends only on the config and the environment."""

_ELSEWHEN: Final = tuple(
    timedelta(days=397, hours=hours, minutes=7, seconds=11, microseconds=13) for hours in (5, 17)
)
"""Distances to two times that differ from now in every part: year, month, day, weekday, hour and so on.

They are half a day apart, so that for one of them AM and PM are exchanged.
"""


def may_vary(text: str) -> bool:
    """Return whether a text uses a resolver that may return another value at the next plan."""
    return any(name not in _STEADY for name in _RESOLVER.findall(text))


def varying(
    config: DictConfig, plain: Mapping[str, Any], paths: Sequence[Sequence[str]], value: Callable[..., Any]
) -> Iterator[str]:
    """Yield the dotted keys whose values change when the config is resolved again.

    Resolving twice in a row would not reveal ``${now:%Y}``. The clock of ``now`` is therefore moved, to two
    times that differ from the present in every part.

    Args:
        config: unresolved. Its cache of resolver results is cleared for a while and then restored.
        plain: the result of resolving it.
        paths: the paths to compare.
        value: returns the resolved value at a path of a config.
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
    """Refuse a stage that reads a key whose value changes at every plan. A key that it `uses` may change.

    Args:
        specs: the stages.
        varying_of: returns the changing keys in or above some keys.
        where: the cell.

    Raises:
        UserError: there is such a stage. The message names the stage, the key and a remedy.
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
    """Return whether one of two dotted keys lies in the other, or both are equal."""
    return f"{key}.".startswith(f"{section}.") or f"{section}.".startswith(f"{key}.")


def _different(one: Any, other: Any, key: str) -> Iterator[str]:
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        for name in {**one, **other}:
            inner = f"{key}.{name}" if key else str(name)
            yield from _different(one.get(name, MISSING), other.get(name, MISSING), inner)
    elif one != other and (one == one or other == other):  # NaN is not equal to itself
        yield key


@contextlib.contextmanager
def _clock_at(shift: timedelta) -> Iterator[None]:
    """Move the clock of ``${now:...}`` for a while."""
    OmegaConf.register_new_resolver(
        "now", lambda pattern: (datetime.now() + shift).strftime(pattern), replace=True
    )
    try:
        yield
    finally:
        setup_globals()  # restores Hydra's own resolvers


class _Overlap(NamedTuple):
    """A key that two axes both set.

    Attributes:
        first: position of an axis.
        first_key: the key that it sets.
        second: position of a later axis.
        second_key: the key that it sets: the same key, or one in or above it.
    """

    first: int
    first_key: str
    second: int
    second_key: str


class Overlaps:
    """The keys that several axes set.

    Args:
        axes: of the sweep.
        is_group: returns whether a key is a config group. A choice of an option does not set the group's
            keys.
        where: the sweep file.
    """

    def __init__(self, axes: Sequence[Axis], is_group: Callable[[str], bool], *, where: str) -> None:
        self._axes, self._where, self._is_group = axes, where, is_group
        keys = [{key for label in axis.labels for key in self._named(label)} for axis in axes]
        # Found once, over all labels. Each point then only tests whether its own labels collide.
        self._found = [
            _Overlap(i, one, j, other)
            for j in range(len(axes))
            for i in range(j)
            for one in sorted(keys[i])
            for other in sorted(keys[j])
            if self._is_same(one, other)
        ]

    def check(self, labels: Sequence[Label]) -> None:
        """Refuse a point whose labels set a key twice.

        Only points are refused, not pairs of axes, so that exclusions can remove the points that collide.

        Args:
            labels: one of each axis.

        Raises:
            UserError: two labels set one key. The message names both axes and the key.
        """
        for i, one, j, other in self._found:
            if one in self._named(labels[i]) and other in self._named(labels[j]):
                first, second = (
                    f"{self._axes[n].name!r}"
                    + (f" (value {labels[n].text!r})" if self._axes[n].is_map else "")
                    for n in (i, j)
                )
                raise UserError(
                    f"the axes {first} and {second} both set {max(one, other, key=len)!r}",
                    where=self._where,
                    allowed="one of the two labels would be false",
                    fix="let one axis alone set it, or exclude the cells where both do",
                )

    def _named(self, label: Label) -> set[str]:
        return {key for setting in label.settings for key in self._keys(setting.key, setting.value)}

    def _keys(self, key: str, value: Any) -> Iterable[str]:
        return [key] if self._is_group(key) else leaf_keys(key, value)

    def _is_same(self, one: str, other: str) -> bool:
        if self._is_group(one) or self._is_group(other):
            return one == other
        return is_related(tuple(one.split(".")), tuple(other.split(".")))


def agreed(label: Label, config: Mapping[str, Any], *, where: str) -> Label:
    """Return the label of an axis whose name is a key, with an interpolation replaced by the cell's value.

    Args:
        label: with one setting, of a key that is no config group.
        config: of the cell, resolved and converted.
        where: the cell and the sweep file.

    Raises:
        UserError: the config has another value than the label states.
    """
    (setting,) = label.settings
    value = pick(config, setting.key)
    if has_interpolation(setting.value):
        text = scalar_text(value)
        return label._replace(text=text, part=text)
    if value is not MISSING and not _agree(setting.value, value):
        raise UserError(
            f"the label of {setting.key} is {label.text}, but the cell has {scalar_text(value)}",
            where=where,
            allowed="something sets it after the axis: the schema, or a fingerprint",
        )
    return label


def _agree(label: Any, value: Any) -> bool:
    """Return whether a config's value is the one on a label.

    A section may have further keys, and ``1`` equals ``1.0``, since a schema may convert it.
    """
    match label:
        case Mapping():
            return isinstance(value, Mapping) and all(
                name in value and _agree(item, value[name]) for name, item in label.items()
            )
        case list() | tuple():
            return (
                isinstance(value, list | tuple)
                and len(label) == len(value)
                and all(map(_agree, label, value))
            )
        case _:
            return bool(label == value or (label != label and value != value))  # NaN is refused elsewhere
