"""The client of a broker that hangs or dies: an error that passes, in time."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator

import pytest

from orchestrator.store import client
from orchestrator.store.access import is_transient
from orchestrator.store.client import BrokerLost, Connection


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> Iterator[Connection]:
    """A connection to a process that takes calls and never replies."""
    monkeypatch.setattr(client, "LIMIT_S", 0.1)
    monkeypatch.setattr(client, "PULSE_S", 0.05)
    connection = Connection("s3://nowhere/x")
    command = ["sh", "-c", "cat >/dev/null"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
    connection._process = process
    yield connection
    process.kill()
    connection.close()


@pytest.mark.parametrize("num_bytes", [0, 60_000])
def test_a_broker_that_hangs_is_an_error_after_a_time_that_grows_with_the_content(
    silent: Connection, num_bytes: int
) -> None:
    start_s = time.monotonic()

    def give_up() -> None:
        assert time.monotonic() - start_s < 60, "waited too long"

    with pytest.raises(OSError, match="did not answer") as error:
        silent.call("create", "x", data=bytes(num_bytes), keepalive=give_up)
    least_s = 0.15 + 0.2 + num_bytes / client.SLOW_BYTES_S
    assert least_s <= time.monotonic() - start_s
    assert is_transient(error.value)


def test_a_broker_that_dies_in_a_create_is_an_error_that_may_pass(
    silent: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert silent._process is not None
    monkeypatch.setattr(client, "LIMIT_S", 60.0)
    with pytest.raises(BrokerLost, match="broker died") as error:
        silent.call("create", "x", data=b"1", keepalive=silent._process.kill)
    assert is_transient(error.value)
