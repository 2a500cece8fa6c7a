"""The launcher that starts nothing: ``sweep work`` starts workers, wherever it runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import msgspec

from orchestrator.core.selector import Subject
from orchestrator.core.tree import convert
from orchestrator.costs import Hardware
from orchestrator.launchers.base import Launch, LaunchGpus, check_device, overrides_of


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
