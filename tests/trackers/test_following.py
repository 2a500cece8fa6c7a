"""What a mirror shows of a cell, from the evidence alone, and what it notes of its runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.core.evidence import Attempt, Evidence
from orchestrator.core.records import Done
from orchestrator.store.ledger import open_ledger
from orchestrator.trackers.following import state_of
from orchestrator.trackers.protocol import MirrorProgress, Notes
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


@pytest.mark.parametrize("data", [b"", b'{"a": {"lin', b'{"a": {"lines": "many"}}', b"[]", b"\xff"])
def test_a_damaged_note_counts_as_none_and_one_that_cannot_be_read_is_not_replaced(
    tmp_path: Path, data: bytes
) -> None:
    objects = open_ledger(str(tmp_path / "store"), create=True).objects
    notes = Notes(objects, "sweeps/s/m", "sent.json")
    path = tmp_path / "store/sweeps/s/m/sent.json"
    notes.note("a", MirrorProgress(lines=1))
    notes.note("b", MirrorProgress(lines=2))
    assert (notes.of("a").lines, notes.of("b").lines) == (1, 2)
    path.write_bytes(data)
    assert Notes(objects, "sweeps/s/m", "sent.json").of("a") == MirrorProgress()
    path.unlink()
    path.symlink_to(path)  # it is there, and reading it fails
    with pytest.raises(OSError, match="symbolic links"):
        notes.note("c", MirrorProgress(lines=3))
    assert path.is_symlink()
