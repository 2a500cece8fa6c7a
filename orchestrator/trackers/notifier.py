"""The sending of a sweep's notices: a short process of its own, now and then, and the channels that it uses.

A launch, a driver or a job starts the process (`orchestrator.api.notices`). It reads the store, sends what is
due and ends within `LIMIT_S`. So no message slows or fails what works on the cells.

A channel is a command, a webhook or Apprise, and sends one notice in bounded time. Each result states whether
the notice may have arrived. It was *refused* only if the receiver answered so, or if nothing can have reached
it. Whatever else went wrong is *unclear*::

    200                                        delivered
    3xx, 4xx, 5xx; connection refused          refused
    no answer in time; connection broken off   unclear
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import queue
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import IO, Any, Literal, NamedTuple

from orchestrator import provenance
from orchestrator.core.secrets import MASK
from orchestrator.core.settings import NotifySettings
from orchestrator.errors import UserError, one_line, retry_after_s
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

    def poll(self) -> None:
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


SEND_S, CONNECT_S = 15.0, 5.0
"""Seconds that sending one notice may take, and connecting to a webhook."""

MAX_DETAIL = 200
"""Characters of an answer that are kept."""

MIN_PART = 6
"""Length from which parts of an address are taken out of texts: shorter ones are no credentials."""


class Sent(NamedTuple):
    """What became of a notice.

    Attributes:
        outcome: ``delivered``, ``refused`` or ``unclear``.
        detail: what was answered, without credentials.
        wait_s: seconds for which the receiver requested a pause; None for nothing.
    """

    outcome: Literal["delivered", "refused", "unclear"]
    detail: str = ""
    wait_s: float | None = None


def can_send(channel: str, value: str) -> bool:
    """Return whether a channel works in this process: its variable is set, and its package installed.

    Args:
        channel: ``command``, ``webhook`` or ``apprise``.
        value: the command, or the name of the variable.
    """
    if channel == "apprise" and importlib.util.find_spec("apprise") is None:
        return False
    return channel == "command" or bool(os.environ.get(value, "").strip())


def send(channel: str, value: str, message: Mapping[str, Any]) -> Sent:
    """Send a notice through a channel that works here.

    Args:
        channel: ``command``, ``webhook`` or ``apprise``.
        value: the command, or the name of the variable with the address.
        message: JSON values; ``text`` is for people.
    """
    if channel == "command":
        return _run(["bash", "-c", value], message, ())
    address = os.environ[value].strip()
    if channel == "webhook":
        return _post(address, message)
    command = [sys.executable, "-m", "orchestrator.trackers.notifier", value]
    return _run(command, message, address.split(), unclear=_UNCLEAR)


def without_address(text: str, addresses: Collection[str]) -> str:
    """Return a text on one line, without credentials and without addresses or long parts of them."""
    for address in addresses:
        parts = re.split(r"[/?&=:@;\s]+", address)
        for part in (address, *sorted(parts, key=len, reverse=True)):
            if len(part) >= MIN_PART:
                text = text.replace(part, MASK)
    return one_line(provenance.without_secrets(text), MAX_DETAIL)


# A webhook


def _post(address: str, message: Mapping[str, Any]) -> Sent:
    """Post to a webhook, in a thread: a server that sends one byte a second keeps all timeouts of sockets."""
    answers: queue.Queue[Sent] = queue.Queue()
    thread = threading.Thread(target=lambda: answers.put(_answer(address, message)), daemon=True)
    thread.start()
    try:
        sent = answers.get(timeout=SEND_S)
    except queue.Empty:
        sent = Sent("unclear", f"no answer within {SEND_S:.0f} s")
    return sent._replace(detail=without_address(sent.detail, [address]))


def _answer(address: str, message: Mapping[str, Any]) -> Sent:
    import httpx

    timeout = httpx.Timeout(SEND_S, connect=CONNECT_S)
    # These three are markup in Slack's texts: <!channel> in a failure's message would alert everybody.
    text = str(message["text"]).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    try:
        # A redirect would show the address's path to another server, so none is followed.
        with (
            httpx.Client(timeout=timeout, follow_redirects=False) as client,
            client.stream("POST", address, json={**message, "text": text}) as response,
        ):
            code = response.status_code
            if 200 <= code < 300:  # it is delivered, whatever becomes of the rest of the answer
                return Sent("delivered", f"HTTP {code}")
            body = ""
            with contextlib.suppress(httpx.HTTPError):
                body = next(response.iter_bytes(MAX_DETAIL), b"").decode(errors="replace")
            pause_s = retry_after_s(response.headers.get("Retry-After", ""))
            return Sent("refused", f"HTTP {code} {body}".strip(), pause_s)
    except (
        httpx.ConnectError,
        httpx.ConnectTimeout,
        httpx.ProxyError,
        httpx.UnsupportedProtocol,
        httpx.InvalidURL,
    ) as error:
        return Sent("refused", f"{type(error).__name__}: {error}")
    except Exception as error:  # noqa: BLE001 - whatever it is, the notice may have arrived
        return Sent("unclear", f"{type(error).__name__}: {error}")


# A command


def _run(
    command: Sequence[str],
    message: Mapping[str, Any],
    addresses: Collection[str],
    *,
    unclear: int | None = None,
) -> Sent:
    """Run a command with the message on its standard input; end its process group if it takes too long.

    Args:
        command: a program and its arguments.
        message: JSON values.
        addresses: to keep out of what is returned.
        unclear: the exit code of a failure after which the message may have arrived.
    """
    with contextlib.ExitStack() as files:
        try:
            # Files instead of pipes: what the command leaves in the background would keep a pipe open.
            given, output = (files.enter_context(tempfile.TemporaryFile()) for _ in range(2))
            given.write(json.dumps(message).encode())
            given.seek(0)
            process = subprocess.Popen(
                command, stdin=given, stdout=output, stderr=output, start_new_session=True
            )
        except OSError as error:  # such as a full disk
            return Sent("refused", without_address(f"cannot be started: {error}", addresses))
        try:
            code = process.wait(SEND_S)
            outcome: Literal["delivered", "refused", "unclear"]
            # bash returns 128 and the number of the signal that killed what it ran.
            was_killed = code < 0 or 128 < code <= 128 + signal.SIGRTMAX
            outcome = "delivered" if code == 0 else "unclear" if was_killed or code == unclear else "refused"
            how = f"exit code {code}" if code >= 0 else f"killed by signal {-code}"
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            outcome, how = "unclear", f"killed after {SEND_S:.0f} s"
        output.seek(0)
        lines = output.read(1 << 16).decode(errors="replace").strip().splitlines()
    detail = f"{how}: {lines[-1]}" if lines and outcome != "delivered" else how
    return Sent(outcome, without_address(detail, addresses))


# Apprise, in a process of its own: it runs the code of many services.

_BAD_ADDRESS, _UNCLEAR = 2, 3


def main(argv: Sequence[str] | None = None) -> int:
    """Send the message on standard input by Apprise to the addresses in a variable; return the exit code."""
    (name,) = sys.argv[1:] if argv is None else argv
    import apprise

    message = json.load(sys.stdin)
    receivers = apprise.Apprise()
    if not all(receivers.add(address) for address in os.environ[name].split()):
        print("an address is none of Apprise's")
        return _BAD_ADDRESS
    kind = {"done": "success", "failure": "failure"}.get(message.get("event", ""), "warning")
    if receivers.notify(title=f"sweep {message.get('sweep', '')}", body=message["text"], notify_type=kind):
        return 0
    # Apprise returns one answer for refusals, lost answers, and one receiver of several.
    print("Apprise could not reach all addresses")
    return _UNCLEAR


if __name__ == "__main__":
    sys.exit(main())
