"""The engine's settings: how a sweep is run, never what it computes, so never part of an identity. Pure."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from orchestrator.core.failure import Cause
from orchestrator.core.typed import typed
from orchestrator.errors import UserError, nearest

Retention = Literal["all", "best", "none"]
RETIRING: tuple[Retention, ...] = ("best", "none")
"""The policies under which files of products may be retired, in the order in which they let go more."""


class StoreSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where the store is.

    Attributes:
        url: a folder or URL; None means SWEEP_STORE, or else ``runs`` in the working folder.
    """

    url: str | None = None


class TrackerSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where metrics go.

    Attributes:
        name: a key of `orchestrator.registry.TRACKERS`.
        options: the tracker's own.
    """

    name: str = "store"
    options: dict[str, Any] = {}


class Policy(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """When an attempt counts as dead, what is tried again, what is kept.

    Attributes:
        lease_s: seconds without a heartbeat after which an attempt may be called dead.
        retries: failure cause to the number of automatic retries.
        checkpoint_interval_s: seconds between checkpoints.
        limits_s: stage name to seconds after which an attempt is ended as hanging; outranks the stage's own.
        grace_s: seconds that a stage has for its checkpoint after it was asked to stop.
        keep_checkpoints: keep the checkpoints of stages that are done, which may be links to products' files.
        retention: which files of a product stay when all that is made from it is done: all of them, or those
            that the stages which took it name for ``best`` or ``none``, see `Context.retire`.
    """

    lease_s: float = 90.0
    retries: dict[str, int] = {}
    checkpoint_interval_s: float = 60.0
    limits_s: dict[str, float] = {}
    grace_s: float = 60.0
    keep_checkpoints: bool = False
    retention: Retention = "all"


class EngineSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """All of `conf/engine.yaml`.

    Attributes:
        launcher: free-form but for ``name``: each launcher checks its own keys.
        tracker: where metrics go.
        policy: leases, retries and checkpoints.
        store: where the store is.
    """

    launcher: dict[str, Any]
    tracker: TrackerSettings
    policy: Policy
    store: StoreSettings


def engine_from(tree: dict[str, Any], *, where: str = "") -> EngineSettings:
    """Types the composed engine tree.

    Raises:
        UserError: an unknown key, a wrong type, or a value that makes no sense.
    """
    settings = typed(tree, EngineSettings, where=where)
    if not isinstance(settings.launcher.get("name"), str):
        raise UserError("launcher.name is not set", where=where, fix="launcher=local")
    for cause, num_retries in settings.policy.retries.items():
        if cause not in [*Cause]:
            raise UserError(
                f"unknown failure cause {cause!r} in policy.retries",
                where=where,
                allowed=nearest(cause, [*Cause]),
            )
        _at_least(f"policy.retries.{cause}", num_retries, 0, where)
    _at_least("policy.lease_s", settings.policy.lease_s, 1, where)
    _at_least("policy.checkpoint_interval_s", settings.policy.checkpoint_interval_s, 0, where)
    _at_least("policy.grace_s", settings.policy.grace_s, 0, where)
    for stage, limit_s in settings.policy.limits_s.items():
        if not limit_s > 0:
            raise UserError(f"policy.limits_s.{stage} is {limit_s!r}", where=where, allowed="more than 0")
    return settings


def _at_least(key: str, value: float, least: float, where: str) -> None:
    if not value >= least:  # also catches NaN
        raise UserError(f"{key} is {value!r}", where=where, allowed=f"at least {least}")
