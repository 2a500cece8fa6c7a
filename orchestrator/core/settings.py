"""The engine's settings: how a sweep is run, never what it computes, so never part of an identity. Pure."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from orchestrator.core.failure import Cause
from orchestrator.core.tree import convert
from orchestrator.costs import DEVICES, Hardware
from orchestrator.errors import UserError, nearest
from orchestrator.formats import SINCE_2, Settings

_TIME = re.compile(r"(?:(?P<days>\d+)-)?(?P<hours>\d+)(?::(?P<minutes>\d\d)(?::(?P<seconds>\d\d))?)?")

Retention = Literal["all", "best", "none"]
RETIRING: tuple[Retention, ...] = ("best", "none")
"""The policies under which files of products may be retired, in the order in which they let go more."""


class StoreSettings(Settings, frozen=True):
    """Where the store is.

    Attributes:
        url: a folder or URL; None means SWEEP_STORE, or else ``runs`` in the working folder.
        shared: make a new store for its folder's group (mode 2770) instead of its maker alone (0700).
        outage_s: seconds for which workers and launches wait for a shared folder that does not answer.
    """

    url: str | None = None
    shared: Annotated[bool, SINCE_2] = False
    outage_s: Annotated[float, SINCE_2] = 600.0


class TrackerSettings(Settings, frozen=True):
    """Where metrics go.

    Attributes:
        name: a key of `orchestrator.registry.TRACKERS`.
        options: the tracker's own.
    """

    name: str = "store"
    options: dict[str, Any] = {}


class Policy(Settings, frozen=True, kw_only=True):
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


class HardwareSettings(Settings, frozen=True, kw_only=True):
    """What a plan assumes that the cells run on; a launch asks its launcher instead.

    Attributes:
        device: a key of `orchestrator.costs.DEVICES`.
        max_gpus: that one cell may have, on one machine.
        mfu: model FLOPs utilisation in (0, 1]; None for the stages' own guess.
        cells_at_once: for wall time and for the peak of the disk.
    """

    device: str = "a100"
    max_gpus: int = 8
    mfu: float | None = None
    cells_at_once: int = 8

    @property
    def assumed(self) -> Hardware:
        """The hardware that a plan is made for."""
        device = DEVICES[self.device]
        return Hardware(
            device=self.device,
            memory_gib=device.memory_gib,
            peak_tflops=device.peak_tflops,
            max_gpus=self.max_gpus,
            mfu=self.mfu,
        )


class RunSettings(Settings, frozen=True, kw_only=True):
    """All of `conf/engine.yaml`.

    Attributes:
        launcher: free-form but for ``name``: each launcher checks its own keys.
        cluster: the profile of the cluster, which launchers that need one check.
        tracker: where metrics go.
        policy: leases, retries and checkpoints.
        store: where the store is.
        hardware: what a plan assumes.
    """

    launcher: dict[str, Any]
    tracker: TrackerSettings
    policy: Policy
    store: StoreSettings
    hardware: HardwareSettings = HardwareSettings()
    cluster: dict[str, Any] = {}


def engine_from(tree: dict[str, Any], *, where: str = "") -> RunSettings:
    """Types the composed engine tree.

    Raises:
        UserError: an unknown key, a wrong type, or a value that makes no sense.
    """
    for section in ("launcher", "cluster"):
        if section in tree:
            tree = {**tree, section: with_hours(tree[section], section, where=where)}
    settings = convert(tree, RunSettings, where=where)
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
    _at_least("store.outage_s", settings.store.outage_s, 0, where)
    _at_least("policy.grace_s", settings.policy.grace_s, 0, where)
    for stage, limit_s in settings.policy.limits_s.items():
        if not limit_s > 0:
            raise UserError(f"policy.limits_s.{stage} is {limit_s!r}", where=where, allowed="more than 0")
    check_hardware(settings.hardware, where=where)
    return settings


def with_hours(value: Any, key: str, *, where: str = "") -> Any:
    """Return a settings tree in which times of keys ``hours`` and ``*_hours`` are numbers of hours.

    A time is written as ``1:30`` (hours and minutes), ``1:30:00``, or with days before it as Slurm prints it:
    ``2-00:00:00``, ``2-12``.

    Args:
        value: the tree, or a value in it.
        key: its dotted key.
        where: what to name in an error.

    Raises:
        UserError: such a key has a text that is no time.
    """
    match value:
        case dict():
            return {name: with_hours(item, f"{key}.{name}", where=where) for name, item in value.items()}
        case list() | tuple():
            return [with_hours(item, f"{key}[{index}]", where=where) for index, item in enumerate(value)]
        case str() if key.endswith((".hours", "_hours")):
            return _hours(value, key, where)
        case _:
            return value


def _hours(text: str, key: str, where: str) -> float:
    match = _TIME.fullmatch(text)
    parts = [int(part or 0) for part in match.group("days", "hours", "minutes", "seconds")] if match else []
    if not match or (match["days"] is None and match["minutes"] is None) or max(parts[2:]) > 59:
        raise UserError(f"{key} is {text!r}", where=where, allowed="hours, such as 1.5, 1:30 or 2-00:00:00")
    days, hours, minutes, seconds = parts
    return 24 * days + hours + minutes / 60 + seconds / 3600


def check_hardware(settings: HardwareSettings, *, where: str = "") -> None:
    """Refuses hardware that there is not.

    Raises:
        UserError: an unknown device, or a number that makes no sense.
    """
    if settings.device not in DEVICES:
        raise UserError(
            f"unknown device {settings.device!r}", where=where, allowed=nearest(settings.device, DEVICES)
        )
    _at_least("hardware.max_gpus", settings.max_gpus, 1, where)
    _at_least("hardware.cells_at_once", settings.cells_at_once, 1, where)
    if settings.mfu is not None and not 0 < settings.mfu <= 1:
        raise UserError(
            f"hardware.mfu is {settings.mfu!r}", where=where, allowed="more than 0 and at most 1, such as 0.4"
        )


def _at_least(key: str, value: float, least: float, where: str) -> None:
    if not value >= least:  # also catches NaN
        raise UserError(f"{key} is {value!r}", where=where, allowed=f"at least {least}")
