"""Decisions in the store: one of them exists, whoever dies while making it or makes it too."""

from __future__ import annotations

import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from orchestrator.core.evidence import Evidence
from orchestrator.core.records import Done
from orchestrator.core.state import StageStatus, State, SweepFacts
from orchestrator.errors import InfrastructureError
from orchestrator.store.decisions import DecisionLog
from orchestrator.store.ledger import Ledger, open_ledger
from tests.core.test_phase_decisions import two_phases

KEY = "sweeps/s/decisions/1/000001.json"


def _status(digest: str) -> StageStatus:
    return StageStatus(State.DONE, "product")


def _evidence(digest: str) -> Evidence:
    rows = ({"score": float(digest[1])},)
    done = Done(nonce="", stage="fit", digest=digest, generation=1, attempt=1, files=(), rows=rows, seconds=1)
    return Evidence(done=done, generation=1)


FACTS = SweepFacts(_status, _evidence)


class _Deadly:
    """A ledger's create that kills its process before or after the record exists."""

    def __init__(self, ledger: Ledger, *, after: bool) -> None:
        self._create, self._after = ledger.create, after

    def __call__(self, *args: Any) -> bool:
        if self._after:
            self._create(*args)
        os.kill(os.getpid(), signal.SIGKILL)
        return False


def _dies(url: str, *, after: bool) -> None:
    ledger = open_ledger(url)
    ledger.create = _Deadly(ledger, after=after)  # type: ignore[method-assign]
    DecisionLog(ledger, two_phases(), 1).make(FACTS, by="the dead")


@pytest.mark.parametrize("after", [False, True])
def test_a_process_that_is_killed_leaves_no_decision_or_the_whole_one(tmp_path: Path, after: bool) -> None:
    ledger = open_ledger(str(tmp_path / "store"), create=True)
    process = multiprocessing.get_context("fork").Process(
        target=_dies, args=(str(tmp_path / "store"),), kwargs={"after": after}
    )
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    log = DecisionLog(ledger, two_phases(), 1)
    assert (log.unfolded.question is None) is after
    assert log.make(FACTS, by="the living") is None
    (decision,) = log.unfolded.decisions
    assert decision.by == ("the dead" if after else "the living")
    assert decision.chosen == ("lr=2",)


def test_who_loses_the_race_takes_the_decision_of_the_other(tmp_path: Path) -> None:
    ledger = open_ledger(str(tmp_path / "store"), create=True)
    logs = [DecisionLog(ledger, two_phases(), 1) for _ in range(2)]
    for number, log in enumerate(logs):
        assert log.make(FACTS, by=f"process {number}") is None
    assert logs[0].unfolded.decisions == logs[1].unfolded.decisions
    assert logs[1].unfolded.decisions[0].by == "process 0"


def test_a_decision_for_what_cannot_be_chosen_is_not_trusted(tmp_path: Path) -> None:
    ledger = open_ledger(str(tmp_path / "store"), create=True)
    DecisionLog(ledger, two_phases(), 1).make(FACTS, by="me")
    path = tmp_path / "store" / KEY
    text = path.read_text(encoding="utf-8").replace("lr=2", "lr=9")
    path.unlink()
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InfrastructureError, match="names what cannot be chosen"):
        DecisionLog(ledger, two_phases(), 1).check()
