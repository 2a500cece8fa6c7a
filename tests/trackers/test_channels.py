"""Channels of notices against a real server and real commands: what arrived is known, or it is unclear."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.trackers import notifier
from orchestrator.trackers.notifier import can_send, send
from tests.cli.launches import wait_for
from tests.trackers.receiver import PATH, Receiver, receiving, refusing

MESSAGE = {"text": "a <!channel> & b", "event": "done", "sweep": "s"}


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    monkeypatch.setattr(notifier, "SEND_S", 60.0)
    with receiving() as made:
        monkeypatch.setenv("HOOK", made.url)
        yield made


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        (200, "delivered"),
        (204, "delivered"),
        ("cut_body", "delivered"),  # the status arrived
        (302, "refused"),
        (400, "refused"),
        (429, "refused"),
        (500, "refused"),
        ("cut", "unclear"),
        ("hang", "unclear"),
        ("drip", "unclear"),
    ],
)
def test_a_webhook_refuses_only_by_a_status(
    receiver: Receiver, answer: Any, outcome: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    receiver.answers = [answer]
    receiver.headers = {"Retry-After": "7", "Location": "/elsewhere"}
    if answer in ("hang", "drip"):  # for a minute and more, and then a status: nobody may wait for that
        monkeypatch.setattr(notifier, "SEND_S", 0.6)
    sent = send("webhook", "HOOK", MESSAGE)
    assert sent.outcome == outcome
    wait_for(lambda: receiver.got)
    assert sent.wait_s == (7.0 if outcome == "refused" else None)
    assert len(receiver.got) == 1  # no redirect was followed, and nothing was tried again
    assert not any(part in sent.detail for part in PATH.split("/") if part), sent.detail


def test_text_for_slack_is_escaped_and_fields_are_not_changed(receiver: Receiver) -> None:
    send("webhook", "HOOK", MESSAGE)
    assert receiver.got == [{**MESSAGE, "text": "a &lt;!channel&gt; &amp; b"}]


def test_a_webhook_that_cannot_be_reached_has_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with refusing() as port:
        monkeypatch.setenv("HOOK", f"http://127.0.0.1:{port}/secretpath")
        assert send("webhook", "HOOK", MESSAGE).outcome == "refused"
    monkeypatch.setenv("HOOK", "http://no-such-host.invalid/secretpath")
    sent = send("webhook", "HOOK", MESSAGE)
    assert sent.outcome in ("refused", "unclear") and "secretpath" not in sent.detail
    monkeypatch.setenv("HOOK", "")
    assert not can_send("webhook", "HOOK") and not can_send("webhook", "NO_SUCH_VARIABLE")


@pytest.mark.parametrize(
    ("command", "outcome", "detail"),
    [
        ("cat > got.json", "delivered", "exit code 0"),
        ("true", "delivered", "exit code 0"),  # it need not read
        ("echo first; echo no such receiver >&2; exit 3", "refused", "exit code 3: no such receiver"),
        ("no-such-program-here", "refused", "exit code 127"),
        ("kill -9 $$", "unclear", "killed by signal 9"),
        ("bash -c 'kill -9 $$'; exit $?", "unclear", "exit code 137"),
        ("sleep 47 & sleep 47", "unclear", "killed after 1 s"),
        ("echo token=$API_TOKEN; exit 1", "refused", "exit code 1: token=***"),
    ],
)
def test_a_command_gets_json_and_ends_in_time(
    command: str, outcome: str, detail: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(notifier, "SEND_S", 1.0 if "sleep" in command else 60.0)
    monkeypatch.setenv("API_TOKEN", "s3cr3t-value-of-it")
    # More than fits into a pipe.
    sent = send("command", command, {**MESSAGE, "long": "x" * 200_000})
    assert sent.outcome == outcome and detail in sent.detail
    if command.startswith("cat"):
        assert json.loads(Path("got.json").read_text())["text"] == MESSAGE["text"]
    wait_for(lambda: not any(b"sleep\x0047" in read(path) for path in Path("/proc").glob("[0-9]*/cmdline")))


def read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def test_apprise_delivers_and_is_unclear_when_it_fails(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("apprise")
    monkeypatch.setattr(notifier, "SEND_S", 60.0)
    place = receiver.url.removeprefix("http://")
    monkeypatch.setenv("APPRISE", f"json://{place}")
    assert send("apprise", "APPRISE", MESSAGE).outcome == "delivered"
    (body,) = receiver.got  # Apprise's own form of JSON
    assert body["message"] == MESSAGE["text"] and body["title"] == "sweep s"
    receiver.answers = [500]
    sent = send("apprise", "APPRISE", MESSAGE)
    assert sent.outcome == "unclear" and "secretpart" not in sent.detail
    monkeypatch.setenv("APPRISE", "nosuchservice://secretpartofaddress")
    sent = send("apprise", "APPRISE", MESSAGE)
    assert sent.outcome == "refused" and "secretpart" not in sent.detail
