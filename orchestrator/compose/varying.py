"""Values that are another each time a config is resolved: ``${now:...}``, and resolvers that draw at random.

In what a stage reads such a value would give each plan another digest, and nothing would ever be done. They
are found by resolving the config a second time, at another time of another day, and comparing.
"""

from __future__ import annotations

import contextlib
import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final

from hydra.core.utils import setup_globals
from omegaconf import DictConfig, OmegaConf

from orchestrator.core.tree import MISSING, pick
from orchestrator.errors import UserError
from orchestrator.stage import StageSpec

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
