"""What every launcher does: start workers, say how many live, stop them. The store tells all the rest."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from orchestrator.core.settings import EngineSettings
from orchestrator.costs import Hardware


class Launch(NamedTuple):
    """What a launcher is asked to start.

    Attributes:
        store: URL of the store.
        revision: of the sweep.
        request: number of the request that asked; names the logs.
        cells: ids of the cells; None for all of the revision.
        preload: modules that fork servers import.
        log_folder: local folder for the logs of workers.
    """

    store: str
    sweep: str
    revision: int
    request: int
    cells: tuple[str, ...] | None
    settings: EngineSettings
    import_paths: tuple[str, ...]
    code_digest: str
    preload: tuple[str, ...]
    log_folder: str


class Launcher(Protocol):
    """Starts the workers of one launch. Made with ``(settings, num_cells)``: the options of `launcher` in the
    config, and how many cells there are; making one raises `UserError` for settings that cannot be met.
    """

    def hardware(self) -> Hardware | None:
        """Says what one worker has, before anything is started; None when it cannot be known."""

    def start(self, launch: Launch) -> None:
        """Starts the workers; returns when they are started or queued."""

    def poll(self) -> int:
        """Returns how many workers live or are queued; starts anew those that died without finishing."""

    def stop(self, *, kill: bool = False) -> None:
        """Asks the workers to checkpoint and end; with `kill` ends them at once."""

    def refusal(self) -> str:
        """Says why workers would not work, "" when they do."""
