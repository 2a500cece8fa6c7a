"""The channels of notices: a command, a webhook, and Apprise. Each sends one notice in bounded time.

Each result states whether the notice may have arrived. It was *refused* only if the receiver answered so, or
if nothing can have reached it. Whatever else went wrong is *unclear*::

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
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from orchestrator import provenance
from orchestrator.core.secrets import MASK
from orchestrator.errors import one_line, retry_after_s

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
    command = [sys.executable, "-m", "orchestrator.trackers.channels", value]
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
            said = ""
            with contextlib.suppress(httpx.HTTPError):
                said = next(response.iter_bytes(MAX_DETAIL), b"").decode(errors="replace")
            pause_s = retry_after_s(response.headers.get("Retry-After", ""))
            return Sent("refused", f"HTTP {code} {said}".strip(), pause_s)
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
    said = f"{how}: {lines[-1]}" if lines and outcome != "delivered" else how
    return Sent(outcome, without_address(said, addresses))


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
