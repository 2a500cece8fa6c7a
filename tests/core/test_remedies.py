"""Remedies as pure decisions: what a rung changes, on which one an attempt starts, and what failures cost."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core.commandspec import check_remedies
from orchestrator.core.evidence import Attempt, Budget, Evidence, spent
from orchestrator.core.failure import Cause
from orchestrator.core.records import End, StartRecord
from orchestrator.core.remedies import (
    LONGEST_PAUSE_S,
    Remedied,
    adapted,
    class_of,
    described,
    has_rungs,
    pause_after,
    remedied,
    rungs_of,
    status_in_job,
    suggestions,
    with_shipped,
)
from orchestrator.core.state import State, num_starved, stage_status
from orchestrator.core.sweep import StageInstance
from orchestrator.registry import REMEDIES, STAGES, load
from orchestrator.stage import StageSpec

LADDER: tuple[dict[str, Any], ...] = (
    {"halve": "fit.micro", "double": "fit.accumulation", "times": 2},
    {"set": {"fit.recompute": True}},
)
SPEC = StageSpec(run="m:f", reads=("model", "seed"), uses=("fit",), remedies={"oom_gpu": LADDER})
USES: dict[str, Any] = {"fit": {"micro": 8, "accumulation": 1, "recompute": False}}


def start(rung: int, uses: dict[str, Any] = USES, spec: StageSpec = SPEC) -> Remedied:
    return remedied(spec, uses, {Cause.OOM_GPU: rung})


def tried(*ends: tuple[int, Cause | None], uses: dict[str, Any] = USES) -> Evidence:
    """A stage whose attempts started on these rungs and ended by these causes; None is success."""
    attempts = []
    for number, (rung, cause) in enumerate(ends, 1):
        begin = start(rung, uses)
        record = StartRecord(
            parent=None, uses=begin.uses, provenance={}, remedies=begin.rungs, before=begin.before
        )
        end = End(nonce="", outcome="failed" if cause else "released", cause=cause)
        attempts.append(Attempt(number, None, record, None, end))
    return Evidence(attempts=tuple(attempts))


OOM, NAN = Cause.OOM_GPU, Cause.NAN


@pytest.mark.parametrize(
    ("rung", "micro", "accumulation", "recompute"),
    [(0, 8, 1, False), (1, 4, 2, False), (2, 2, 4, False), (3, 2, 4, True), (9, 2, 4, True)],
)
def test_a_rung_adds_its_changes_to_those_below_it(
    rung: int, micro: int, accumulation: int, recompute: bool
) -> None:
    begin = start(rung)
    assert begin.uses["fit"] == {"micro": micro, "accumulation": accumulation, "recompute": recompute}
    assert begin.rungs == {"oom_gpu": (min(rung, 3), 3)}
    changed = {"fit.micro": 8, "fit.accumulation": 1} if rung else {}
    assert begin.before == changed | ({"fit.recompute": False} if recompute else {})


@pytest.mark.parametrize(
    ("fit", "num_rungs"),
    [
        ({"micro": 2, "accumulation": 1, "recompute": False}, 2),  # 1 cannot be halved
        ({"micro": 3, "accumulation": 1, "recompute": False}, 1),  # 1 x 2 is another effective batch
        ({"micro": None, "accumulation": 1, "recompute": False}, 1),
        ({"micro": 8, "accumulation": 1, "recompute": True}, 2),
        ({"micro": True, "accumulation": 1, "recompute": True}, 0),
        ({"recompute": True}, 0),
    ],
)
def test_a_rung_that_changes_nothing_or_the_effective_batch_is_left_out(
    fit: dict[str, Any], num_rungs: int
) -> None:
    begin = start(0, {"fit": fit})
    assert begin.rungs == ({"oom_gpu": (0, num_rungs)} if num_rungs else {})


@given(st.integers(1, 4096), st.integers(1, 64), st.integers(0, 9))
def test_no_rung_changes_the_effective_batch(micro: int, accumulation: int, rung: int) -> None:
    uses = {"fit": {"micro": micro, "accumulation": accumulation, "recompute": False}}
    fit = start(rung, uses).uses["fit"]
    assert fit["micro"] * fit["accumulation"] == micro * accumulation


@pytest.mark.parametrize(
    ("members", "rung"),
    [
        ([], 0),
        ([tried((0, OOM))], 1),
        ([tried((0, NAN))], 0),
        ([tried((0, OOM), (1, OOM))], 2),
        ([tried((0, OOM), (1, None))], 1),  # what worked stays
        ([tried((0, OOM)), tried((0, OOM), (1, OOM))], 2),
        ([tried((3, OOM))], 4),
        ([tried((0, OOM), uses={"fit": {**USES["fit"], "micro": 16}})], 0),  # of other settings
    ],
)
def test_the_next_rung_follows_from_the_failures_of_the_class(members: list[Evidence], rung: int) -> None:
    found = rungs_of(SPEC, USES, [(evidence, 0) for evidence in members])
    assert found.get(OOM, 0) == rung
    assert found == rungs_of(SPEC, USES, [(evidence, 0) for evidence in reversed(members)])


def test_a_rerun_starts_at_the_bottom_of_the_ladder_again() -> None:
    evidence = tried((0, OOM), (1, OOM))
    assert rungs_of(SPEC, USES, [(evidence, 2)]) == {}
    assert rungs_of(SPEC, USES, [(evidence, 1)]) == {OOM: 2}


RETRIES = {"oom_gpu": 1, "nan": 0}


@pytest.mark.parametrize(
    ("ends", "expected"),
    [
        ([(0, OOM), (1, OOM), (2, OOM)], None),
        ([(0, OOM), (1, OOM), (2, OOM), (3, OOM)], None),
        ([(0, OOM), (1, OOM), (2, OOM), (3, OOM), (3, OOM)], (OOM, 2)),
        ([(0, NAN)], (NAN, 1)),
        ([(0, OOM), (0, OOM), (0, OOM)], (OOM, 2)),  # free once a rung
    ],
)
def test_a_failure_that_a_further_rung_answers_costs_nothing(
    ends: list[tuple[int, Cause]], expected: tuple[Cause, int] | None
) -> None:
    evidence = tried(*ends)
    assert spent(evidence, Budget(RETRIES)) == expected
    status = stage_status(evidence, Budget(RETRIES))
    assert status.state is (State.FAILED if expected else State.PENDING)


def test_the_status_names_whether_a_remedy_or_a_retry_is_left() -> None:
    assert "another remedy is left" in stage_status(tried((0, OOM)), Budget(RETRIES)).reason
    assert "a retry is left" in stage_status(tried((3, OOM)), Budget(RETRIES)).reason


@given(st.lists(st.sampled_from([OOM, NAN, None]), max_size=12))
def test_a_ladder_ends_and_each_rung_is_tried_once(causes: list[Cause | None]) -> None:
    """Attempts that start where the records of their own stage say, whatever they end by."""
    ends: list[tuple[int, Cause | None]] = []
    for cause in causes:
        rung = rungs_of(SPEC, USES, [(tried(*ends), 0)]).get(OOM, 0)
        ends.append((min(rung, 3), cause))
    below = [rung for rung, cause in ends if cause is OOM and rung < 3]
    assert below == sorted(set(below))


def test_values_that_a_stage_chose_itself_become_the_rung_that_has_them() -> None:
    begin = adapted(SPEC, USES, start(0), {"fit.micro": 2})
    assert begin.rungs == {"oom_gpu": (2, 3)}
    assert begin.uses["fit"]["micro"] == 2
    assert begin.before == {"fit.micro": 8}
    other = adapted(SPEC, USES, start(1), {"fit.micro": 5})
    assert other.rungs == {"oom_gpu": (1, 3)}
    assert other.uses["fit"]["micro"] == 5


def test_a_class_is_what_agrees_on_the_named_keys_or_else_on_all_that_is_read() -> None:
    one = StageInstance(stage="fit", digest="1", reads={"model": "a", "seed": 1})
    two = StageInstance(stage="fit", digest="2", reads={"model": "a", "seed": 2})
    assert class_of(SPEC, one, {}) != class_of(SPEC, two, {})
    alike = StageSpec(run="m:f", alike=("model",))
    assert class_of(alike, one, one.reads) == class_of(alike, two, two.reads)
    assert class_of(alike, one, one.reads) != class_of(alike, one, {"model": "b"})
    rehearsal = StageInstance(stage="rehearse", digest="3", reads={"model": "a"})
    assert class_of(alike, rehearsal, one.reads) == class_of(alike, one, one.reads)


@pytest.mark.parametrize("name", sorted(REMEDIES))
def test_what_ships_here_changes_only_what_a_stage_uses(name: str) -> None:
    shipped: StageSpec = load(STAGES[name])
    spec = with_shipped(shipped)
    check_remedies(name, spec, "")
    assert spec.remedies
    own = StageSpec(run="m:f", name=name, remedies={"oom_gpu": ()})
    assert with_shipped(own).remedies["oom_gpu"] == ()
    assert with_shipped(StageSpec(run="m:f")).remedies == {}


@pytest.mark.parametrize(
    ("cause", "message", "earlier", "pause_s"),
    [
        (Cause.COMMUNICATION, "Connection reset by peer", [], 1.0),
        (
            Cause.COMMUNICATION,
            "Connection reset by peer",
            [Cause.COMMUNICATION, NAN, Cause.COMMUNICATION],
            4.0,
        ),
        (Cause.COMMUNICATION, "Connection reset by peer", [Cause.COMMUNICATION] * 9, LONGEST_PAUSE_S),
        (Cause.STORAGE, "OSError: [Errno 28] No space left on device", [], 1.0),
        (Cause.STORAGE, "the store did not answer", [], 0.0),
        (OOM, "CUDA out of memory", [], 0.0),
    ],
)
def test_a_worker_pauses_longer_after_each_failure_of_the_network_or_a_full_disk(
    cause: Cause, message: str, earlier: list[Cause], pause_s: float
) -> None:
    end = End(nonce="", outcome="failed", cause=cause, message=message)
    assert pause_after(end, tried(*((0, each) for each in earlier)).attempts) == pause_s


def test_a_start_is_described_by_its_rung_and_what_it_changed() -> None:
    record = tried((1, OOM)).attempts[0].start
    assert (
        described(record)
        == "oom_gpu rung 1 of 3: fit.accumulation 2, configured 1; fit.micro 4, configured 8"
    )
    assert described(tried((0, OOM)).attempts[0].start) == ""
    assert described(None) == ""


def test_what_a_person_could_do_is_named_and_never_applied() -> None:
    rungs: tuple[dict[str, Any], ...] = ({"suggest": "a smaller model"},)
    spec = StageSpec(run="m:f", uses=("fit",), remedies={"oom_gpu": rungs})
    assert suggestions(spec, OOM) == ["a smaller model"]
    assert suggestions(spec, NAN) == suggestions(spec, None) == []
    assert not has_rungs(spec)
    assert remedied(spec, USES, {OOM: 9}) == Remedied(USES)


def starved(*rungs: int | None) -> Evidence:
    """A stage whose attempts ran out of host memory in jobs on these rungs; None is one without a request."""
    attempts = []
    for number, rung in enumerate(rungs, 1):
        of_job = {} if rung is None else {Cause.OOM_HOST: (rung, 1)}
        record = StartRecord(parent=None, uses={}, provenance={}, remedies=of_job)
        end = End(nonce="", outcome="failed", cause=Cause.OOM_HOST)
        attempts.append(Attempt(number, None, record, None, end))
    return Evidence(attempts=tuple(attempts))


@pytest.mark.parametrize(
    ("evidence", "retries", "rung", "state"),
    [
        (starved(0), 0, 0, State.QUEUED),  # this job has too little
        (starved(0), 0, 1, State.PENDING),  # this one has twice as much
        (starved(0, 1), 1, 1, State.PENDING),  # a retry, with as much or more
        (starved(0, 1), 0, 1, State.FAILED),
        (starved(None), 1, 0, State.PENDING),  # more memory was never asked for
        (starved(0, 0), 1, 0, State.QUEUED),
    ],
)
def test_a_stage_that_ran_out_of_host_memory_waits_for_a_job_with_more(
    evidence: Evidence, retries: int, rung: int, state: State
) -> None:
    budget = Budget({"oom_host": retries})
    assert status_in_job(evidence, budget, {Cause.OOM_HOST: (rung, 1)}).state is state
    assert status_in_job(evidence, budget, {}) == stage_status(evidence, budget)  # outside of a job


def test_what_ran_out_of_memory_before_a_rerun_asks_for_no_more() -> None:
    evidence = starved(0, 1, None)
    assert [num_starved(evidence, after) for after in (0, 1, 2)] == [2, 1, 0]
    assert status_in_job(evidence, Budget({}, after=2), {Cause.OOM_HOST: (0, 1)}).state is not State.QUEUED
