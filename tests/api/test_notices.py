"""Notices of real sweeps: sent once by whoever comes first, never twice, and shown when not delivered."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.api import notices
from orchestrator.api.notices import send_due, undelivered
from orchestrator.api.state import SweepState, open_view
from orchestrator.core import notices as rules
from orchestrator.trackers import notifier
from tests.cli.launches import SLOW, Running, wait_for
from tests.conftest import Sweep
from tests.trackers.receiver import PATH, Receiver, receiving

pytestmark = pytest.mark.xdist_group("notices")  # they share what is expensive to make

SWEEP = """
config: {seed: 0, count: {num_steps: 2, checkpoint_every: 1, step_s: 0, fail: null}}
axes: {seed: [0, 1]}
stages: [count]
overrides: {notify: {webhook_env: HOOK}, launcher.workers: 1}
"""


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    with receiving() as made:
        monkeypatch.setenv("HOOK", made.url)
        yield made


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a sweep that has ended, its store, and no record of a notice."""
    folder = tmp_path_factory.mktemp("ended")
    (folder / "project").mkdir()
    (folder / "project/s.yaml").write_text(SWEEP)
    with receiving() as receiver:
        one = Sweep(folder / "project", folder / "store", {**os.environ, "HOOK": receiver.url})
        one("launch", "s.yaml")
        assert receiver.kinds == ["done"]
    shutil.rmtree(folder / "store/sweeps/s/notices")
    return folder


@pytest.fixture
def ended(launched: Path, sweep: Any, receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A sweep that has ended, and of which no notice was sent."""
    shutil.copytree(launched, sweep.folder.parent, dirs_exist_ok=True)
    monkeypatch.chdir(sweep.folder)
    return sweep


def view_of(sweep: Any) -> SweepState:
    return open_view("s", str(sweep.store))


def send_now(sweep: Any, *, is_last: bool = False) -> list[str]:
    return send_due(view_of(sweep), limit_s=60.0, is_last=is_last)


def outcomes(sweep: Any) -> dict[str, str]:
    """Return the outcome of each try, by its name; "" while there is none."""
    folder = sweep.store / "sweeps/s/notices"
    ends = {path.name: json.loads(path.read_text()) for path in folder.glob("*/*.outcome.json")}
    tries = [path for path in folder.glob("*/*.json") if "outcome" not in path.name]
    return {
        path.name: ends.get(path.name.replace(".json", ".outcome.json"), {"outcome": ""})["outcome"]
        for path in tries
    }


def test_what_was_sent_is_not_sent_again_and_readers_send_nothing(ended: Any, receiver: Receiver) -> None:
    said = ended("status", "s")
    assert "not delivered by webhook: done@1-" in said and "no process has sent it yet" in said
    (left,) = ended.json("status", "s")["undelivered"]
    assert (left["channel"], left["tries"]) == ("webhook", 0) and "s@1 is done: 2 cells" in left["text"]
    assert receiver.got == []
    (line,) = send_now(ended)
    assert "by webhook: delivered (HTTP 200)" in line
    assert send_now(ended) == [] and receiver.kinds == ["done"]
    assert ended.json("status", "s")["undelivered"] == [] and "not delivered" not in ended("status", "s")


@pytest.mark.long
def test_a_launch_that_does_nothing_is_no_end_and_another_attempt_is(ended: Any, receiver: Receiver) -> None:
    ended("launch", "s.yaml")
    assert receiver.kinds == ["done"]
    ended("launch", "s.yaml")
    assert receiver.kinds == ["done"]
    ended("discard", "s", "seed0", "--stage", "count", "--reason", "again")
    ended("launch", "s.yaml")
    assert receiver.kinds == ["done", "done"]


def test_senders_at_once_send_each_notice_once(ended: Any, receiver: Receiver) -> None:
    command = [sys.executable, "-m", "orchestrator.api.notices", str(ended.store), "s", "60", "now"]
    senders = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(4)]
    said = [process.communicate(timeout=60)[0] for process in senders]
    assert receiver.kinds == ["done"]
    assert sum(b"delivered" in each for each in said) == 1


def test_a_sender_killed_while_sending_leaves_an_unclear_notice(ended: Any, receiver: Receiver) -> None:
    receiver.answers = ["hang"]
    command = [sys.executable, "-m", "orchestrator.api.notices", str(ended.store), "s", "60", "now"]
    process = subprocess.Popen(command, start_new_session=True)
    wait_for(lambda: receiver.got)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert outcomes(ended) == {"webhook.1.json": ""}
    assert send_now(ended, is_last=True) == [] and len(receiver.got) == 1
    (left,) = undelivered(view_of(ended))
    assert left.why.endswith("is sending it")
    (path,) = (ended.store / "sweeps/s/notices").glob("*/webhook.1.json")
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, "at": "2026-01-01T00:00:00+00:00"}))  # long ago
    (left,) = undelivered(view_of(ended))
    assert left.why.startswith("unclear, its sender") and left.why.endswith("was lost: not tried again")


@pytest.mark.parametrize("data", [b"", b'{"nonce": "n", "ev', b'{"nonce": 1}', b"[]", b"\xff"])
def test_a_damaged_record_of_a_try_counts_as_a_try(ended: Any, receiver: Receiver, data: bytes) -> None:
    send_now(ended)
    (path,) = (ended.store / "sweeps/s/notices").glob("*/webhook.1.json")
    path.write_bytes(data)
    assert ended.json("status", "s")["undelivered"] == []  # its outcome is there
    path.with_suffix(".outcome.json").write_bytes(data)
    assert send_now(ended, is_last=True) == [] and len(receiver.got) == 1
    (left,) = undelivered(view_of(ended))
    assert left.why == "unclear, its sender (its record is damaged) was lost: not tried again"


def test_a_try_that_was_recorded_and_not_sent_is_not_made_up_for(ended: Any, receiver: Receiver) -> None:
    """What a process leaves that is killed between the record and the sending."""
    view = view_of(ended)
    (notice,) = notices.due_now(view, notices.settings_now(view))
    assert notices.NoticeBook(view.ledger, "s").begin(notice, "webhook", 1) is not None
    assert notices.NoticeBook(view.ledger, "s").begin(notice, "webhook", 1) is None  # the second one
    assert send_now(ended) == [] and receiver.got == []


def test_refusals_are_tried_three_times_more_and_an_unclear_answer_never(
    ended: Any, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    receiver.answers = [500, 429, "cut", 200]
    # The pauses are 2, 60 and 600 s; their lengths are tested where they are computed.
    monkeypatch.setattr(rules, "PAUSES_S", (3600.0, 3600.0, 3600.0))
    (first,) = send_now(ended)
    assert "refused (HTTP 500" in first and send_now(ended) == []  # the pause is not over
    (path,) = (ended.store / "sweeps/s/notices").glob("*/webhook.1.outcome.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), "pause_s": 0.0}))  # now it is
    monkeypatch.setattr(rules, "PAUSES_S", (0.0, 0.0, 0.0))
    said = send_now(ended, is_last=True)
    assert [line.partition(": ")[2].split()[0] for line in said] == ["refused", "unclear"]
    assert send_now(ended, is_last=True) == [] and len(receiver.got) == 3
    (left,) = ended.json("status", "s")["undelivered"]
    assert left["tries"] == 3 and left["why"].endswith("not tried again")
    text = "".join(path.read_text() for path in ended.store.rglob("notices/*/*.json"))
    assert receiver.url not in text and "secretpart" not in text

    for path in (ended.store / "sweeps/s/notices").rglob("*.json"):
        path.unlink()
    receiver.answers = [500] * 9
    receiver.got.clear()
    assert len(send_now(ended, is_last=True)) == 4 and len(receiver.got) == 4
    (left,) = ended.json("status", "s")["undelivered"]
    assert left["why"].startswith("refused 4 times: HTTP 500")


@pytest.mark.long
def test_channels_are_separate_and_one_without_its_variable_waits_for_another_sender(
    ended: Any, receiver: Receiver, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOOK", "")
    assert send_now(ended) == [] and outcomes(ended) == {}
    monkeypatch.setenv("HOOK", receiver.url)
    assert len(send_now(ended)) == 1 and receiver.kinds == ["done"]
    ended("launch", "s.yaml", "notify.command='cat > got.json; exit 9'", "notify.webhook_env=null")
    assert outcomes(ended) == {
        "webhook.1.json": "delivered",
        "command.1.json": "refused",
        "command.2.json": "refused",
    }
    assert json.loads((ended.folder / "got.json").read_text())["event"] == "done"
    assert receiver.kinds == ["done"]


@pytest.mark.long
def test_cron_sends_the_notice_of_a_launch_that_was_killed_and_a_launch_checks_its_channels(
    sweep: Any, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    (sweep.folder / "slow.yaml").write_text(SLOW)
    words = ("notify.webhook_env=HOOK", "notify.stalled_minutes=0.002", "count.num_steps=2000")
    running = Running(sweep.folder, sweep.store, ("launch", "slow.yaml", *words, "--only", "seed=0"))
    wait_for(lambda: list(sweep.store.glob("records/*/*/*/heartbeat.json")))
    running.process.kill()
    running.process.wait()
    wait_for(lambda: sweep.json("status", "slow")["counts"].get("running", 0) == 0)
    said = sweep("reconcile", "slow")
    assert "was launched without jobs" in said and "by webhook: delivered" in said, said
    assert receiver.kinds == ["stalled"] and "has stood still for 0 minutes" in receiver.got[0]["text"]
    sweep("reconcile", "slow")
    assert receiver.kinds == ["stalled"]
    monkeypatch.delenv("HOOK")
    said = sweep("launch", "slow.yaml", *words, code=2)
    assert "notify.webhook_env=HOOK, and this variable is not set" in said
    monkeypatch.setenv("HOOK", f"ftp:/{PATH}")
    said = sweep("launch", "slow.yaml", *words, code=2)
    assert "holds no http or https address" in said and "secretpart" not in said


@pytest.mark.parametrize("key", ["webhook_env", "apprise_env"])
def test_an_address_in_place_of_its_variable_is_refused_and_not_shown(sweep: Any, key: str) -> None:
    (sweep.folder / "s.yaml").write_text(SWEEP)
    for value in (f"https://x.org{PATH}", f"json://x.org{PATH}"):
        said = sweep("launch", "s.yaml", f"notify.{key}={value}", code=2)
        assert f"notify.{key}=SWEEP_" in said and "secretpart" not in said and "x.org" not in said
    assert not sweep.store.exists()


@pytest.mark.long
def test_a_hanging_sender_delays_the_end_of_a_launch_by_a_bounded_time(
    ended: Any, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    # A launch waits for 45 s beyond the limit. 1 s is less than a channel's own limit, so the kill is seen.
    monkeypatch.setattr(notifier, "KILL_S", 1.0)
    receiver.answers = ["hang"]
    settings = notices.settings_now(view_of(ended))
    one = notifier.Notifier(str(ended.store), "s", settings, said.append)
    start_s = time.monotonic()
    one.finish(0.3)
    assert time.monotonic() - start_s < notifier.SEND_S - 5
    assert said == [] and list(outcomes(ended).values()) in ([""], [])  # it was killed
