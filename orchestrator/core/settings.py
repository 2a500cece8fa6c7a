"""The engine's settings: how a sweep is run. They never change what it computes, nor any identity. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any, Literal

from orchestrator.core.failure import Cause
from orchestrator.core.tree import convert
from orchestrator.costs import DEVICES, Hardware
from orchestrator.errors import UserError, counted, nearest
from orchestrator.formats import SINCE_2, Settings

_TIME = re.compile(r"(?:(?P<days>\d+)-)?(?P<hours>\d+)(?::(?P<minutes>\d\d)(?::(?P<seconds>\d\d))?)?")

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

_STORE = "store.url="

Retention = Literal["all", "best", "none"]
RETIRING: tuple[Retention, ...] = ("best", "none")
"""The retention policies under which files may be deleted, from the more careful one to the more thorough."""


class StoreSettings(Settings, frozen=True):
    """Where the store is.

    Attributes:
        url: a folder or a URL. None means SWEEP_STORE, or else ``runs`` in the working folder.
        shared: whether a new store is made for its folder's group (mode 2770) instead of its creator (0700).
        outage_s: how long workers and launches wait for a shared folder that does not respond, in seconds.
    """

    url: str | None = None
    shared: Annotated[bool, SINCE_2] = False
    outage_s: Annotated[float, SINCE_2] = 600.0


MIRROR_FINISH_S = 60.0
"""Seconds for a mirror to upload what is left after the launch has ended."""


class TrackerSettings(Settings, frozen=True):
    """Where metrics are sent.

    Metrics always go to the store. Mirrors show them elsewhere too.

    Attributes:
        name: a key of `orchestrator.registry.TRACKERS`, or ``wandb``.
        options: options of that tracker.
        mlflow: options of the mirror in MLflow; None without one.
        tensorboard: options of the mirror to TensorBoard's files; None without one.
        trackio: options of the mirror in Trackio; None without one.
        plugins: names of mirrors that plugins bring, each with its options.
    """

    name: str = "store"
    options: dict[str, Any] = {}
    mlflow: Annotated[dict[str, Any] | None, SINCE_2] = None
    tensorboard: Annotated[dict[str, Any] | None, SINCE_2] = None
    trackio: Annotated[dict[str, Any] | None, SINCE_2] = None
    plugins: Annotated[dict[str, dict[str, Any]], SINCE_2] = {}

    @property
    def mirrors(self) -> dict[str, dict[str, Any]]:
        """The mirrors of a launch, by name in `orchestrator.registry.MIRRORS`, each with its options."""
        found = {**self.plugins, **({"wandb": self.options} if self.name == "wandb" else {})}
        sections = {"mlflow": self.mlflow, "tensorboard": self.tensorboard, "trackio": self.trackio}
        return found | {name: options for name, options in sections.items() if options is not None}


class SpendingLimit(Settings, frozen=True, kw_only=True):
    """What a sweep may spend, over all its revisions and launches. The newest launch sets it.

    Attributes:
        gpu_hours: GPU-hours that its workers may hold, whether they compute or wait. Workers without GPUs
            add nothing. None for no limit.
        until: the time, in ISO 8601 with a zone, after which no stage is started. None for no limit.
    """

    gpu_hours: float | None = None
    until: str | None = None

    @property
    def is_set(self) -> bool:
        """Whether there is a limit."""
        return self != SpendingLimit()

    def has_ended(self, now: float) -> bool:
        """Return whether `until` is past.

        Args:
            now: the time on this machine's clock, in seconds since 1970.
        """
        return self.until is not None and now >= datetime.fromisoformat(self.until).timestamp()

    def refuse(self, sweep: str, *, spent_s: float, needed_s: float, num_cells: int, now: float) -> None:
        """Raise if a launch would cost more: GPU-seconds spent, and needed for so many cells by estimate.

        Args:
            sweep: the sweep's name, for the command that names cells to drop.
        """
        if self.has_ended(now):
            raise UserError(f"policy.budget.until={self.until} is past", fix="policy.budget.until=null")
        total_h, limit = (spent_s + needed_s) / 3600, self.gpu_hours
        # The cost of stages without an estimate is not known before one has run: then the rest is zero.
        if limit is not None and num_cells and (total_h > limit or spent_s >= 3600 * limit):
            what = f"the forecast is {total_h:.4g} GPU-hours, over the budget of {limit:.4g}"
            where = f"{spent_s / 3600:.4g} are spent, {needed_s / 3600:.4g} are needed"
            to_drop = f"sweep plan {sweep} --budget policy.budget.gpu_hours={limit:.4g} names cells to drop"
            fix = f"{to_drop} (--only), or raise the budget"
            raise UserError(what, where=f"{where} for {counted(num_cells, 'cell')}", fix=fix)


class Policy(Settings, frozen=True, kw_only=True):
    """When an attempt counts as dead, how often it is retried, which files are kept, and what may be spent.

    Attributes:
        lease_s: seconds without a heartbeat after which an attempt may be considered dead.
        retries: failure cause to the number of automatic retries.
        checkpoint_interval_s: seconds between checkpoints.
        limits_s: stage name to seconds after which an attempt counts as hanging and is ended. This takes
            precedence over the limit of the stage itself.
        grace_s: seconds that a stage has to write a checkpoint after a stop request.
        keep_checkpoints: whether to keep the checkpoints of finished stages. They may be links to the files
            of products.
        retention: which files of a product stay when all stages made from it are done. ``all`` keeps every
            file. ``best`` and ``none`` keep those that these stages name for the policy, see
            `Context.retire`.
        quarantine_s: how long a node is left out on which attempts failed at once, in seconds; 0 for never.
        rehearse: whether stages wait for their gates; ``auto`` leaves out gates that cost more than they
            may save.
        budget: what the sweep may spend.
        breaker: how many stages that fail alike hold back the cells that have in common what these have;
            0 holds back none.
        audit_segments: how many pairs of checkpoints of each training are kept, between which it can be
            computed again; see `orchestrator.execution.audit`.
        space_pause_s: for how long stages of one name wait after one lacked space on a disk, in seconds.
    """

    lease_s: float = 90.0
    retries: dict[str, int] = {}
    checkpoint_interval_s: float = 60.0
    limits_s: dict[str, float] = {}
    grace_s: float = 60.0
    keep_checkpoints: bool = False
    retention: Retention = "all"
    quarantine_s: Annotated[float, SINCE_2] = 3600.0
    rehearse: Annotated[bool | Literal["auto"], SINCE_2] = "auto"
    budget: Annotated[SpendingLimit, SINCE_2] = SpendingLimit()
    breaker: Annotated[int, SINCE_2] = 3
    audit_segments: Annotated[int, SINCE_2] = 0
    space_pause_s: Annotated[float, SINCE_2] = 60.0

    def pause_for_space_s(self, times: int) -> float:
        """Return for how many seconds stages wait after one lacked space so many times in a row; ours."""
        return min(3600.0, self.space_pause_s * 2.0 ** (times - 1))


class HardwareSettings(Settings, frozen=True, kw_only=True):
    """The hardware that a plan assumes. A launch uses the hardware that its launcher reports instead.

    Attributes:
        device: a key of `orchestrator.costs.DEVICES`.
        max_gpus: the number of GPUs that one cell may use, all in one machine.
        mfu: model FLOPs utilisation in (0, 1]; None for the estimates of the stages.
        cells_at_once: number of cells that run at the same time, for wall time and peak disk use.
        moldable: whether a cell may get more GPUs than it needs, so that the sweep ends earlier. A launch
            obeys this one too.
    """

    device: str = "a100"
    max_gpus: int = 8
    mfu: float | None = None
    cells_at_once: int = 8
    moldable: Annotated[bool, SINCE_2] = False

    @property
    def assumed(self) -> Hardware:
        """The hardware for which a plan is made."""
        known = DEVICES[self.device]._asdict()
        return Hardware(device=self.device, max_gpus=self.max_gpus, mfu=self.mfu, **known)


NoticeKind = Literal["done", "failure", "breaker", "stalled", "budget"]
NOTICE_KINDS: tuple[NoticeKind, ...] = ("failure", "breaker", "budget", "stalled", "done")
"""The kinds of events about which notices are sent, in the order of sending."""


class NotifySettings(Settings, frozen=True, kw_only=True):
    """Where notices about events are sent. Addresses are credentials, so only their variables are named.

    Attributes:
        command: a shell line that receives each notice as JSON on standard input. None for none.
        webhook_env: the environment variable with the address of a webhook. None for none.
        apprise_env: the environment variable with addresses for Apprise. None for none.
        stalled_minutes: minutes without any change after which a sweep counts as stalled; 0 for never.
        events: the kinds of events that are sent.
    """

    command: str | None = None
    webhook_env: str | None = None
    apprise_env: str | None = None
    stalled_minutes: float = 30.0
    events: tuple[NoticeKind, ...] = NOTICE_KINDS

    @property
    def channels(self) -> dict[str, str]:
        """Name of each channel that is set, to its command or variable."""
        named = {"command": self.command, "webhook": self.webhook_env, "apprise": self.apprise_env}
        return {name: value for name, value in named.items() if value}


class RunSettings(Settings, frozen=True, kw_only=True):
    """All settings of `conf/engine.yaml`.

    Attributes:
        launcher: any keys beside ``name``; each launcher validates its own.
        cluster: the profile of the cluster, validated by launchers that need one.
        notify: where notices about events are sent.
        tracker: where metrics are sent.
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
    notify: Annotated[NotifySettings, SINCE_2] = NotifySettings()

    @property
    def is_external(self) -> bool:
        """Whether a launch starts no workers, because ``sweep work`` does."""
        return self.launcher.get("name") == "external"


def split_store(words: Sequence[str]) -> tuple[str | None, list[str]]:
    """Split a command line into the URL of its last ``store.url=URL``, or None, and the other words.

    The URL is taken literally, since a path may contain characters that Hydra's grammar interprets.

    Args:
        words: of the command line: overrides, and for some verbs names of sweeps.

    Raises:
        UserError: ``store.url=`` names nothing.
    """
    urls = [word.removeprefix(_STORE) for word in words if word.startswith(_STORE)]
    if not all(urls):
        raise UserError(f"{_STORE} names no store", fix=f"{_STORE}FOLDER")
    return (urls[-1] if urls else None), [word for word in words if not word.startswith(_STORE)]


def engine_from(tree: dict[str, Any], *, where: str = "") -> RunSettings:
    """Convert the composed tree of settings, and validate it.

    Args:
        tree: the resolved tree.
        where: what to name in an error.

    Raises:
        UserError: a key is unknown, a value has the wrong type, or a value is out of range.
    """
    # These sections have no schema here, so their times are converted before the launcher validates them.
    for section in ("launcher", "cluster"):
        if section in tree:
            tree = {**tree, section: with_hours(tree[section], section, where=where)}
    _refuse_addresses(tree.get("notify"), where)
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
    _at_least("policy.quarantine_s", settings.policy.quarantine_s, 0, where)
    _at_least("policy.space_pause_s", settings.policy.space_pause_s, 0, where)
    _at_least("policy.breaker", settings.policy.breaker, 0, where)
    _at_least("policy.audit_segments", settings.policy.audit_segments, 0, where)
    for stage, limit_s in settings.policy.limits_s.items():
        if not limit_s > 0:
            raise UserError(f"policy.limits_s.{stage} is {limit_s!r}", where=where, allowed="more than 0")
    _check_budget(settings.policy.budget, where)
    _at_least("notify.stalled_minutes", settings.notify.stalled_minutes, 0, where)
    check_hardware(settings.hardware, where=where)
    return settings


def _refuse_addresses(notify: object, where: str) -> None:
    """Refuse an address in place of the name of its variable. The message does not show the value."""
    tree = notify if isinstance(notify, dict) else {}
    for key, variable in (("webhook_env", "SWEEP_WEBHOOK"), ("apprise_env", "SWEEP_APPRISE")):
        value = tree.get(key)
        if value is not None and not _VARIABLE.fullmatch(str(value)):
            raise UserError(
                f"notify.{key} is no name of an environment variable, and an address is a credential",
                where=where,
                allowed="what a sweep is launched with is recorded in the store for all who read it",
                fix=f"export {variable}=ADDRESS, and notify.{key}={variable}",
            )


def _check_budget(budget: SpendingLimit, where: str) -> None:
    if budget.gpu_hours is not None and not 0 <= budget.gpu_hours < math.inf:
        raise UserError(
            f"policy.budget.gpu_hours is {budget.gpu_hours!r}", where=where, allowed="0 or more, or null"
        )
    if budget.until is None:
        return
    try:
        has_zone = datetime.fromisoformat(budget.until).tzinfo is not None
    except ValueError:
        has_zone = False
    if not has_zone:
        raise UserError(
            f"policy.budget.until is {budget.until!r}",
            where=where,
            allowed="a time with its zone, such as 2026-12-24T18:00+01:00, or null",
        )


def with_hours(value: Any, key: str, *, where: str = "") -> Any:
    """Return a settings tree in which the times under ``hours`` and ``*_hours`` are numbers of hours.

    Times are written as hours and minutes, or as Slurm prints them, with days in front:

        1:30   1:30:00   ->   1.5
        2-00:00:00       ->   48.0
        2-12             ->   60.0

    Args:
        value: the tree, or a value in it.
        key: its dotted key.
        where: what to name in an error.

    Raises:
        UserError: the value of such a key is text, but no time.
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
    # A single number such as "90" is refused as text: it could mean minutes, as in Slurm, or hours.
    if not match or (match["days"] is None and match["minutes"] is None) or max(parts[2:]) > 59:
        raise UserError(f"{key} is {text!r}", where=where, allowed="hours, such as 1.5, 1:30 or 2-00:00:00")
    days, hours, minutes, seconds = parts
    return 24 * days + hours + minutes / 60 + seconds / 3600


def check_hardware(settings: HardwareSettings, *, where: str = "") -> None:
    """Validate the hardware settings.

    Args:
        settings: the assumed hardware.
        where: what to name in an error.

    Raises:
        UserError: the device is unknown, or a number is out of range.
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
