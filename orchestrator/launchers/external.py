"""The launcher that starts nothing, and workers side by side in one process, which other programs start.

``sweep work`` starts workers, wherever it runs; so does a scheduler's job.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Mapping, Sequence
from types import FrameType
from typing import Annotated, Any, NamedTuple

import msgspec

from orchestrator.core.selector import Subject
from orchestrator.core.tree import convert
from orchestrator.costs import Hardware
from orchestrator.jobs.records import REFUSED, RELEASED
from orchestrator.launchers.base import Launch, LaunchGpus, check_device, overrides_of
from orchestrator.launchers.local import LocalLauncher

POLL_S = 0.2


class GpuOverride(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What cells of a selector need, instead of what the plan computes.

    Attributes:
        only: the selector; "" for all cells.
        gpus: for each stage that does not run on CPUs alone.
    """

    only: str = ""
    gpus: Annotated[int, msgspec.Meta(ge=0)] | None = None


class ExternalSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`conf/launcher/external.yaml`.

    Attributes:
        device: for which GPUs are planned: a key of `orchestrator.costs.DEVICES`, or ``cpu``; None for what
            the machine of a worker has.
        resources: what selected cells need; later entries override earlier ones.
    """

    name: str = "external"
    device: str | None = None
    resources: tuple[GpuOverride, ...] = ()


class ExternalLauncher:
    """A launcher of which only the settings and the snapshot of the code matter.

    Args:
        settings: the config's `launcher`.
        num_cells: ignored.
        cluster: ignored.

    Raises:
        UserError: invalid settings.
    """

    takes_snapshot = True

    def __init__(
        self, settings: Mapping[str, Any], num_cells: int, cluster: Mapping[str, Any] | None = None
    ) -> None:
        found = convert(dict(settings), ExternalSettings, key="launcher")
        if found.device is not None:
            check_device(found.device, "launcher.device")
        self._resources = found.resources

    def check(self, known: Sequence[Subject]) -> None:
        """Check the selectors of `launcher.resources` against all cells of the revision.

        Raises:
            UserError: a selector is wrong.
        """
        overrides_of(self._resources, [subject.cell for subject in known], known)

    def hardware(self) -> Hardware | None:
        """Return None: where workers will run is not known."""
        return None

    def gpus(self) -> LaunchGpus | None:
        """Return None, likewise."""
        return None

    def start(self, launch: Launch) -> None:
        """Start nothing."""

    def poll(self) -> int:
        """Return 0: no worker belongs to the launch."""
        return 0

    def stop(self, *, kill: bool = False) -> None:
        """Stop nothing."""

    def refusal(self) -> str:
        """Return "": nothing was started that could refuse."""
        return ""


class PoolEnd(NamedTuple):
    """How the workers of a pool ended: the exit code for all of them, and why they refused to work."""

    code: int
    refusal: str


def work_side_by_side(
    pool: LocalLauncher, launch: Callable[[], Launch], watch: Callable[[], None] = lambda: None
) -> PoolEnd:
    """Run a pool of workers until all have ended.

    SIGTERM and SIGINT stop them with a checkpoint, a second SIGINT kills them. SIGUSR1 announces a time
    limit, which workers watch themselves.

    Args:
        pool: not started yet.
        launch: returns what it works on. It is called when stops are handled, as it may read the store.
        watch: called at each poll.
    """
    stops: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        if number != signal.SIGUSR1:
            stops.append(number)
            pool.stop(kill=stops.count(signal.SIGINT) > 1)

    # Stops are passed on, since the workers have sessions of their own.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, stop)
    pool.start(launch())
    while pool.poll() > 0:
        watch()
        time.sleep(POLL_S)
    watch()
    if refusal := pool.refusal():
        return PoolEnd(REFUSED, refusal)
    return PoolEnd(pool.released or (RELEASED if stops else 0), "")
