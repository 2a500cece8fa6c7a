"""A stage of a raised version is made from what its earlier version kept, though its inputs were retired."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from orchestrator.core.grid import Chains
from orchestrator.core.identity import former_instance
from orchestrator.core.records import Request, Retired
from orchestrator.core.selector import Subject
from orchestrator.core.sweep import Cell, ComposedSweep, StageInstance
from orchestrator.core.tree import place
from orchestrator.sft.stages import EVALUATE, EVALUATE_BEFORE
from orchestrator.stage import StageSpec
from orchestrator.store import layout
from orchestrator.store.ledger import Ledger
from tests.execution.faults import order_for
from tests.execution.here import work
from tests.execution.test_retiring import STORE, run
from tests.store.builders import ledger_at, seal, void

ANSWER = "tests.execution.stages:answering"
BEFORE = replace(EVALUATE_BEFORE[0], run=ANSWER, after=("count",))
TODAY = replace(EVALUATE, run=ANSWER, after=("count",), uses=(), preload=(), estimate="", needs="", skip="")


def answers(spec: StageSpec) -> ComposedSweep:
    """One cell, whose last stage lets the product of the first go."""
    chains = Chains({"count": STORE, "evaluate": spec})
    config: dict[str, Any] = {"shared": 0}
    for key in EVALUATE.reads:
        place(config, key, 0)
    chain = chains.chain(Subject({"seed": "0"}, {}, config))
    cell = Cell(id="seed0", axes={"seed": "0"}, columns={}, config=config, stage_digests=chain)
    return ComposedSweep(name="answers", specs=dict(chains.specs), stages=chains.stages, cells=(cell,))


class Kept:
    """A store with the product of the earlier version, and the revision of today's, not yet run."""

    def __init__(self, root: Path, policy: str) -> None:
        self.root, self.policy = root, policy
        before = answers(BEFORE)
        run(root, seal(root, before), policy)
        self.revision = seal(root, answers(TODAY))
        self.source, self.instance = (
            self.revision.sweep.stages[d] for d in self.revision.sweep.cells[0].stage_digests
        )
        former = former_instance(EVALUATE_BEFORE[0], self.instance)
        assert former is not None and former.digest in before.stages
        self.former: StageInstance = former
        self.answer = root / layout.output(former, 1) / "answer"
        assert self.ledger.retired(self.source, 1)

    @property
    def ledger(self) -> Ledger:
        return ledger_at(self.root)

    def work(self, **rest: Any) -> list[str]:
        order = order_for(self.root, "answers", policy={"retention": self.policy}, **rest)
        worked = work(self.ledger, self.revision, replace(order, revision=self.revision.number))
        assert worked.code == 0, worked.lines
        return worked.lines

    def ends(self) -> list[tuple[str, str, str]]:
        """How the attempts of today's stage ended."""
        ends = [attempt.end for attempt in self.ledger.attempts(self.instance)]
        return [(end.outcome, str(end.cause or ""), end.why) for end in ends if end is not None]


@pytest.fixture
def kept(store: Path) -> Kept:
    return Kept(store, "best")


@pytest.mark.parametrize("policy", ["best", "none"])
def test_what_was_kept_is_used_and_nothing_is_made_again(store: Path, sweep: Any, policy: str) -> None:
    kept = Kept(store, policy)
    (cell,) = sweep.json("plan", "answers@2")["cells"]
    steps = {stage["stage"]: stage for stage in cell["stages"]}
    assert cell["state"] == "pending"
    assert {stage: step["action"] for stage, step in steps.items()} == {
        "count": "reuse",
        "evaluate": "resume",
    }
    assert (
        steps["evaluate"]["reason"]
        == "scored again from kept predictions, without the retired files of count"
    )
    assert "scored again from kept predictions" in sweep("why", "answers@2", "seed0")
    kept.work()
    assert kept.ends() == [("succeeded", "", "")]
    done, _ = kept.ledger.product(kept.instance, 1)
    assert done is not None and done.rows[0]["kept"] and done.rows[0]["text"] == kept.answer.read_text()
    assert kept.ledger.numbers(kept.source) == [1] and len(kept.ledger.retired(kept.source, 1)) == 1
    assert kept.work() == []


def gone(kept: Kept) -> None:
    kept.answer.unlink()


def discarded(kept: Kept) -> None:
    kept.ledger.void(kept.former, void(1, "discarded"))


def retired(kept: Kept) -> None:
    done, _ = kept.ledger.product(kept.former, 1)
    assert done is not None
    record = Retired(
        nonce="r", generation=1, attempt=1, policy="none", files=done.files, why="", by="", at=""
    )
    kept.ledger.retire(kept.former, record)
    kept.answer.unlink()


def unwanted(kept: Kept) -> None:
    """Today's own product was discarded: it is wanted from nothing."""
    kept.ledger.void(kept.instance, void(1, "discarded"))


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (gone, "its product is damaged: answer is missing"),
        (discarded, "its product was discarded"),
        (retired, "files of it were retired (1 file under policy none)"),
        (unwanted, ""),
    ],
)
def test_where_nothing_usable_was_kept_the_input_is_made_again_as_ever(
    kept: Kept, sweep: Any, spoil: Callable[[Kept], None], says: str
) -> None:
    spoil(kept)
    assert kept.work() == [] and kept.ends() == []
    (cell,) = sweep.json("plan", "answers@2")["cells"]
    step = cell["stages"][-1]
    assert (cell["state"], step["action"]) == ("blocked", "leave")
    assert "--stage count" in step["reason"] and says in step["reason"]
    assert ("cannot be used" in step["reason"]) == bool(says)
    assert not says or f"cannot be used: {says}" in sweep("plan", "answers@2")
    sweep("discard", "answers@2", "seed0", "--stage", "count", "--reason", "wanted again")
    kept.work()
    assert kept.ledger.numbers(kept.source) == [1, 2]
    done, _ = kept.ledger.product(kept.instance, 2 if spoil is unwanted else 1)
    assert done is not None and not done.rows[0]["kept"]


def rewritten(kept: Kept) -> dict[str, str]:
    """As long as before: only an attempt, which compares the content, can see it."""
    kept.answer.write_text(kept.answer.read_text()[::-1])
    return {}


@pytest.mark.parametrize(
    ("spoil", "says"),
    [(rewritten, "it is not whole"), (lambda kept: {"TEST_WRONG": "missing"}, "one answer is missing")],
    ids=["rewritten", "too little was kept"],
)
def test_what_does_not_suffice_is_tried_once_and_then_left_until_a_rerun(
    kept: Kept, sweep: Any, spoil: Callable[[Kept], dict[str, str]], says: str
) -> None:
    env = spoil(kept)
    for verb, tries in (("launch", 1), ("launch", 1), ("rerun", 2)):
        after = {kept.instance.digest: len(kept.ends())}
        request = Request(nonce=f"{verb}{tries}", number=0, verb=verb, revision=2, after=after)  # type: ignore[arg-type]
        kept.ledger.add_request("answers", request)
        kept.work(env=env)
        assert kept.ends() == [("released", "", "not_kept")] * tries
    cell = sweep.json("status", "answers@2")["cells"][0]
    assert cell["state"] == "blocked"
    assert f"attempt 2 found: {says}" in cell["reason"] and "--stage count" in cell["reason"]


def test_an_error_of_the_stage_that_goes_on_is_its_own_and_no_want_of_inputs(kept: Kept, sweep: Any) -> None:
    kept.work(env={"TEST_WRONG": "bug"})
    assert kept.ends() == [("failed", "code", "")]
    cell = sweep.json("status", "answers@2")["cells"][0]
    assert (cell["state"], cell["cause"]) == ("failed", "code") and "a bug of the scorer" in cell["reason"]
    kept.ledger.add_request(
        "answers", Request(nonce="r", number=0, verb="rerun", revision=2, after={kept.instance.digest: 1})
    )
    kept.work()
    assert kept.ends()[1:] == [("succeeded", "", "")]


def test_what_will_be_used_is_not_cleaned_and_what_was_used_is(kept: Kept, sweep: Any) -> None:
    assert sweep.json("clean", "--yes")["stages"] == []
    assert kept.answer.exists()
    kept.work()
    (left,) = sweep.json("clean", "--yes")["stages"]
    assert left["digest"] == kept.former.digest and not kept.answer.exists()
    assert sweep.json("status", "answers@2")["counts"] == {"done": 1}
