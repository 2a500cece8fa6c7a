"""What a mirror shows of a cell, from the evidence alone."""

from __future__ import annotations

import pytest

from orchestrator.core.evidence import Attempt, Evidence
from orchestrator.core.records import Done
from orchestrator.trackers.following import state_of
from tests.store.builders import claim, end

DONE = Evidence(
    attempts=(Attempt(1, claim(), end=end("succeeded")),),
    done=Done(
        nonce="n", stage="s", digest="d", generation=1, attempt=1, files=(), rows=(), seconds=1.0,
        at="2026-01-01T00:00:10+00:00",
    ),
)  # fmt: skip
FAILED = Evidence(attempts=(Attempt(1, claim(), end=end("failed")),))
RUNNING = Evidence(attempts=(Attempt(1, claim(), end=end("failed")), Attempt(2, claim())))
RELEASED = Evidence(attempts=(Attempt(1, claim(), end=end("released", why="stopped")),))


@pytest.mark.parametrize(
    ("chain", "state"),
    [
        ([DONE, DONE], "done"),
        ([DONE, RUNNING], "running"),
        ([FAILED, RUNNING], "running"),
        ([DONE, FAILED], "failed"),
        ([RELEASED, FAILED], "failed"),
        ([DONE, RELEASED], "stopped"),
        ([DONE, Evidence()], "stopped"),
    ],
)
def test_the_state_of_a_cell_is_that_of_the_last_attempts_of_its_chain(
    chain: list[Evidence], state: str
) -> None:
    assert state_of(chain)[0] == state


def test_a_cell_is_done_when_its_last_product_was() -> None:
    assert state_of([DONE, DONE]) == ("done", 1767225610.0)
    assert state_of([DONE, RUNNING])[1] == 0.0
