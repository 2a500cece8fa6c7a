"""A launcher: workers as processes of this machine, each behind a command, such as ``nice`` or ``taskset``.

The prefix must replace itself by the worker (exec), as these do, so that signals reach the worker.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from orchestrator.core.tree import convert
from orchestrator.costs import Hardware
from orchestrator.errors import UserError
from orchestrator.formats import encode
from orchestrator.launchers.base import Launch, LaunchGpus, Positive
from orchestrator.launchers.local import assignment_of, host_hardware

MAX_RESTARTS = 20


class CommandSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`conf/launcher/command.yaml`.

    Attributes:
        prefix: words before the worker's command.
        workers: number of workers.
    """

    name: str = "command"
    prefix: tuple[str, ...] = ()
    workers: Positive = 1


class CommandLauncher:
    """See `orchestrator.launchers.base.Launcher`."""

    takes_snapshot = False

    def __init__(
        self, settings: Mapping[str, Any], num_cells: int, cluster: Mapping[str, Any] | None = None
    ) -> None:
        self._settings = convert(dict(settings), CommandSettings, key="launcher")
        self._number = min(self._settings.workers, max(1, num_cells))
        self._workers: dict[int, subprocess.Popen[bytes]] = {}
        self._restarts = 0
        self._is_stopping = False
        self._refused = ""

    def hardware(self) -> Hardware | None:
        """Return what this machine has."""
        return host_hardware()

    def gpus(self) -> LaunchGpus | None:
        """Return None: this launcher chooses no GPUs."""
        return None

    def start(self, launch: Launch) -> None:
        """Start the workers."""
        self._launch = launch
        for slot in range(self._number):
            self._start(slot)

    def _start(self, slot: int) -> None:
        launch, log = self._launch, self._log(slot)
        order = assignment_of(launch, slot=slot, num_slots=self._number)
        log.parent.mkdir(parents=True, exist_ok=True)
        file = log.with_suffix(".json")
        file.write_bytes(encode(order))
        # -P: files of the working folder must not hide modules of the standard library.
        words = [sys.executable, "-P", "-m", "orchestrator.execution.main", str(file)]
        with log.open("ab") as stream:
            try:
                self._workers[slot] = subprocess.Popen(
                    [*self._settings.prefix, *words],
                    stdin=subprocess.DEVNULL,
                    stdout=stream,
                    stderr=stream,
                    start_new_session=True,  # Ctrl-C reaches the launch alone, which then stops its workers
                )
            except OSError as error:
                raise UserError(f"launcher.prefix cannot be run: {error}") from None

    def _log(self, slot: int) -> Path:
        return Path(self._launch.log_folder) / f"request-{self._launch.request}-worker-{slot}.log"

    def poll(self) -> int:
        """Return how many workers live. Replace those that were killed."""
        for slot, worker in list(self._workers.items()):
            if (code := worker.poll()) is None:
                continue
            del self._workers[slot]
            if code < 0 and not self._is_stopping and self._restarts < MAX_RESTARTS:
                self._restarts += 1
                self._start(slot)
            elif code != 0 and not self._is_stopping:
                self._refused = f"worker {slot} ended with code {code}, see {self._log(slot)}"
        return len(self._workers)

    def stop(self, *, kill: bool = False) -> None:
        """Signal all workers to save a checkpoint and end, or kill them."""
        self._is_stopping = True
        for worker in self._workers.values():
            worker.kill() if kill else worker.terminate()

    def refusal(self) -> str:
        """Return why a worker refused to work, "" if none did."""
        return self._refused
