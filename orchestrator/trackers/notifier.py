"""What sends a sweep's notices for a launch, a driver or a job: a short process of its own, now and then.

The process (`orchestrator.api.notices`) reads the store, sends what is due and ends within `LIMIT_S`. So no
message slows or fails what works on the cells.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from typing import IO

from orchestrator.core.settings import NotifySettings
from orchestrator.errors import UserError
from orchestrator.registry import require

FIRST_S, INTERVAL_S, COST = 10.0, 60.0, 20.0
"""Seconds before the first process, and between two; and the least pause, in durations of the last one."""

LIMIT_S = 60.0
"""Seconds after which the process starts nothing more. It then ends within one message's time."""

FINISH_S = 25.0
"""Likewise for the last process, for which a launch or a job waits. GPUs may be held meanwhile."""

KILL_S = 45.0
"""Seconds beyond its limit after which the process is killed."""


def check_notify(settings: NotifySettings, environment: Mapping[str, str] = os.environ) -> None:
    """Refuse channels that cannot work here, before anything is recorded. No message shows an address.

    Raises:
        UserError: a variable is not set or holds no address, or a package is missing.
    """
    for channel, name in settings.channels.items():
        if channel == "command":
            continue
        value = environment.get(name, "").strip()
        if not value:
            raise UserError(
                f"notify.{channel}_env={name}, and this variable is not set",
                fix=f"export {name}=ADDRESS, or notify.{channel}_env=null",
            )
        if channel == "webhook" and not value.startswith(("http://", "https://")):
            raise UserError(
                f"notify.webhook_env={name}, and this variable holds no http or https address",
                fix=f"export {name}=https://...",
            )
        if channel == "apprise":
            require("notify", what="notify.apprise_env")


class Notifier:
    """The sending of a sweep's notices, as long as a launch, a driver or a job works.

    Args:
        url: address of the store.
        sweep: name of the sweep.
        settings: of the launch; nothing is started if they name no channel.
        notify: receives lines for people: what was sent, and what was not.
    """

    def __init__(self, url: str, sweep: str, settings: NotifySettings, notify: Callable[[str], None]) -> None:
        # A job's worker runs a snapshot of the code, which a package in the working folder must not replace.
        safe = ["-P"] if sys.flags.safe_path else []
        self._command = [sys.executable, *safe, "-m", "orchestrator.api.notices", url, sweep]
        self._is_on = bool(settings.channels and settings.events)
        self._notify = notify
        self._process: subprocess.Popen[bytes] | None = None
        self._output: IO[bytes] | None = None
        self._start_s = 0.0
        self._next_s = time.monotonic() + FIRST_S

    def pulse(self) -> None:
        """Start the process if it is due; this returns at once."""
        now_s = time.monotonic()
        if not self._is_on or self._is_running() or now_s < self._next_s:
            return
        self._start(LIMIT_S)

    def finish(self, limit_s: float = FINISH_S) -> None:
        """Send what is due at the end, and wait for that.

        Args:
            limit_s: seconds after which no further message is sent.
        """
        if not self._is_on:
            return
        end_s = time.monotonic() + limit_s
        if self._process is not None:
            self._wait(limit_s)
        # Even a late one may record what it could not send.
        self._start(max(1.0, end_s - time.monotonic()), is_last=True)
        self._wait(max(1.0, end_s - time.monotonic()) + KILL_S)
        self._kill()

    def _start(self, limit_s: float, *, is_last: bool = False) -> None:
        self._start_s = time.monotonic()
        self._next_s = self._start_s + INTERVAL_S
        words = [f"{limit_s:.1f}", "last" if is_last else "now"]
        try:
            self._output = tempfile.TemporaryFile()  # noqa: SIM115 - read when the process has ended
            self._process = subprocess.Popen(
                [*self._command, *words],
                stdin=subprocess.DEVNULL,
                stdout=self._output,
                stderr=self._output,
                start_new_session=True,  # Ctrl-C and a stopped job must not cut off a message
            )
        except OSError as error:
            self._notify(f"notices cannot be sent: {error}")

    def _is_running(self) -> bool:
        """Return whether the process runs; show its output when it has ended."""
        if self._process is None:
            return False
        took_s = time.monotonic() - self._start_s
        if self._process.poll() is None:
            if took_s < LIMIT_S + KILL_S:
                return True
            self._kill()
        self._process = None
        self._next_s = max(self._next_s, self._start_s + COST * took_s)
        if self._output is not None:
            with self._output as output:
                output.seek(0)
                for line in output.read().decode(errors="replace").splitlines():
                    self._notify(line)
        return False

    def _wait(self, limit_s: float) -> None:
        if self._process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(limit_s)
        self._is_running()

    def _kill(self) -> None:
        if self._process is not None and self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
