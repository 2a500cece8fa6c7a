"""The gates of a launch: their classes, and what they hold back."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from orchestrator.core.evidence import NO_HOLDS, Hold, Holds
from orchestrator.core.failure import Cause
from orchestrator.core.gates import (
    GateJobs,
    Gates,
    gate_jobs,
    gates_of,
    gates_of_requests,
    stands_for,
    too_dear,
)
from orchestrator.core.identity import check_digests
from orchestrator.core.plan import Claimable, Scan, next_stage
from orchestrator.core.records import Request
from orchestrator.core.state import StageStatus, State
from orchestrator.core.sweep import Cell, ComposedSweep, GateFacts, Input, StageInstance
from orchestrator.errors import InfrastructureError
from orchestrator.stage import StageSpec

SPECS = {
    "data": StageSpec(run="m:data", each={"language": "languages"}),
    "check": StageSpec(run="m:check", reads=("model",), after=("data",)),
    "fit": StageSpec(run="m:fit", reads=("model", "languages"), after=("data",), gated_by=("check",)),
}
FACTS = GateFacts(code="c0", packages="p", device="h100", num_gpus=8)
PENDING, DONE = StageStatus(State.PENDING, "not started"), StageStatus(State.DONE, "product")
RUNNING = StageStatus(State.RUNNING, "alive")
FAILED = StageStatus(State.FAILED, "a bug (code)", Cause.CODE, 1)
NOBODY: frozenset[str] = frozenset()


def sweep_of(*cells: tuple[str, str]) -> ComposedSweep:
    """Returns a sweep of cells, each a model and its languages, such as ``("small", "en es")``."""
    stages: dict[str, StageInstance] = {}
    made = []
    for model, words in cells:
        data = [StageInstance(stage="data", label=w, digest=f"data-{w}", reads={}) for w in words.split()]
        fit = StageInstance(
            stage="fit",
            digest=f"fit-{model}-{words}",
            reads={"model": model},
            inputs=tuple(Input("data", each.label, each.digest) for each in data),
        )
        chain = [*data, fit]
        stages |= {each.digest: each for each in chain}
        config = {"model": model, "languages": words.split()}
        made.append(
            Cell(
                id=f"{model} {words}",
                axes={"model": model, "languages": words},
                columns={},
                config=config,
                stage_digests=tuple(each.digest for each in chain),
            )
        )
    return ComposedSweep(name="s", specs=SPECS, stages=stages, cells=tuple(made))


SWEEP = sweep_of(("small", "en"), ("small", "en es"), ("large", "es"), ("large", "en"))


def claimed(
    gates: Gates,
    states: dict[str, StageStatus],
    sweep: ComposedSweep = SWEEP,
    *,
    cancelled: frozenset[str] = NOBODY,
    holds: Holds = NO_HOLDS,
) -> tuple[str, bool]:
    """Returns the name of the stage that a worker would claim, "" for none, and whether it would wait."""
    instances = {**sweep.stages, **gates.instances}
    named = {f"{each.name}": digest for digest, each in gates.instances.items()}
    known = {named.get(name, name): status for name, status in states.items()}
    scan: Scan = next_stage(
        sweep.cells,
        instances,
        lambda d: known.get(d, PENDING),
        cancelled=cancelled,
        holds=holds,
        gates=gates,
    )
    found: Claimable | None = scan.claimable
    return (found.instance.name if found else ""), scan.waiting


def test_a_class_is_of_all_cells_that_agree_on_what_the_gate_reads_and_takes_all_of_their_inputs() -> None:
    gates = gates_of(SWEEP, FACTS)
    found = {each.name: [taken.label for taken in each.inputs] for each in gates.instances.values()}
    assert found == {"check[small]": ["en", "es"], "check[large]": ["en", "es"]}
    for instance in gates.instances.values():
        assert instance.reads["launch"] == {"code": "c0", "packages": "p", "device": "h100", "num_gpus": 8}
    gated = {cell: [gate.stages for gate in found] for cell, found in gates.cells.items()}
    assert gated == {cell.id: [(cell.stage_digests[-1],)] for cell in SWEEP.cells}


@pytest.mark.parametrize("change", [{"code": "c1"}, {"packages": "q"}, {"device": "a100"}, {"num_gpus": 4}])
def test_other_code_packages_or_gpus_are_another_rehearsal(change: dict[str, object]) -> None:
    other = gates_of(SWEEP, replace(FACTS, **change))
    assert not gates_of(SWEEP, FACTS).instances.keys() & other.instances.keys()


def test_a_gate_has_the_digest_of_what_it_would_run() -> None:
    gates = gates_of(SWEEP, FACTS)
    check_digests(replace(SWEEP, stages=gates.instances), "gates")
    forged = {
        digest: replace(gate, reads={**gate.reads, "more": 1}) for digest, gate in gates.instances.items()
    }
    assert forged
    with pytest.raises(InfrastructureError):
        check_digests(replace(SWEEP, stages=forged), "gates")


def test_cells_whose_inputs_of_one_name_differ_are_two_classes() -> None:
    one = sweep_of(("small", "en"))
    other = replace(one.stages["data-en"], digest="data-en-2")
    fit = replace(one.stages["fit-small-en"], digest="fit-2", inputs=(Input("data", "en", "data-en-2"),))
    cell = replace(one.cells[0], id="second", stage_digests=("data-en-2", "fit-2"))
    stages = {**one.stages, "data-en-2": other, "fit-2": fit}
    gates = gates_of(replace(one, cells=(*one.cells, cell), stages=stages), FACTS)
    assert len(gates.instances) == 2


def test_gates_follow_from_the_launch_that_named_a_cell_last() -> None:
    requests = [
        Request(nonce="", number=1, verb="launch", revision=1, gates=FACTS),
        Request(
            nonce="", number=2, verb="rerun", revision=1, cells=("large es",), gates=replace(FACTS, code="c1")
        ),
        Request(nonce="", number=3, verb="launch", revision=2, gates=replace(FACTS, code="c2")),
    ]
    asked = {"small en": 1, "small en es": 1, "large es": 2, "large en": 1}
    found = gates_of_requests(SWEEP, 1, requests, asked)
    codes = {cell: found.instances[of[0].digest].reads["launch"]["code"] for cell, of in found.cells.items()}
    assert codes == {"small en": "c0", "small en es": "c0", "large es": "c1", "large en": "c0"}


def test_a_launch_without_facts_or_without_cells_has_no_gates() -> None:
    assert gates_of(SWEEP, None).instances == {}
    assert gates_of(SWEEP, FACTS, []).instances == {}


def test_a_stage_waits_for_its_gate_and_the_gate_for_its_inputs() -> None:
    gates = gates_of(SWEEP, FACTS)
    data = {"data-en": DONE, "data-es": DONE}
    assert claimed(gates, {}) == ("data[en]", True)
    assert claimed(gates, {"data-en": DONE}) == ("data[es]", True)
    assert claimed(gates, data) == ("check[small]", True)
    assert claimed(gates, {**data, "check[small]": RUNNING}) == ("check[large]", True)
    assert claimed(gates, {**data, "check[small]": RUNNING, "check[large]": RUNNING}) == ("", True)
    assert claimed(gates, {**data, "check[small]": DONE, "check[large]": RUNNING}) == ("fit", True)


def test_gates_that_come_first_keep_others_waiting_as_long_as_one_runs() -> None:
    first = gates_of(SWEEP, FACTS)._replace(are_first=True)
    data = {"data-en": DONE, "data-es": DONE}
    assert claimed(first, {**data, "check[small]": DONE, "check[large]": RUNNING}) == ("", True)
    assert claimed(first, {**data, "check[small]": DONE, "check[large]": FAILED}) == ("fit", True)


def test_a_failed_gate_blocks_its_class_alone_and_nobody_waits_for_it() -> None:
    gates = gates_of(SWEEP, FACTS)
    data = {"data-en": DONE, "data-es": DONE, "check[small]": FAILED}
    assert claimed(gates, data) == ("check[large]", True)
    assert claimed(gates, {**data, "check[large]": FAILED}) == ("", False)


def test_a_gate_without_its_input_holds_back_only_what_takes_the_input_too() -> None:
    gates = gates_of(SWEEP, FACTS)
    states = {"data-en": DONE, "data-es": FAILED}
    assert claimed(gates, states) == ("fit", True)  # of the cell "small en"
    assert claimed(gates, {**states, "fit-small-en": DONE, "fit-large-en": DONE}) == ("", False)


def test_a_gate_is_not_run_when_nothing_waits_for_it() -> None:
    gates = gates_of(SWEEP, FACTS)
    fitted = dict.fromkeys(SWEEP.stages, DONE)
    assert claimed(gates, fitted) == ("", False)
    assert claimed(gates, {**fitted, "fit-large-es": RUNNING}) == ("", True)
    assert claimed(gates, {**fitted, "fit-large-es": PENDING}) == ("check[large]", True)


@pytest.mark.parametrize("is_final", [True, False])
def test_a_gate_is_not_run_for_cells_that_are_cancelled_or_held_for_good(is_final: bool) -> None:
    sweep = sweep_of(("small", "en"), ("small", "es"))
    gates = gates_of(sweep, FACTS)
    states = {"data-en": DONE, "data-es": DONE, "fit-small-es": DONE}
    assert claimed(gates, states, sweep) == ("check", True)
    assert claimed(gates, states, sweep, cancelled=frozenset({"small en"})) == ("", False)
    holds = Holds({"small en": Hold("why", is_final)})
    assert claimed(gates, states, sweep, holds=holds)[0] == ("" if is_final else "check")


def test_a_gate_that_costs_more_than_it_may_save_is_left_out_by_estimate_alone() -> None:
    gates = gates_of(SWEEP, FACTS)
    small, large = gates.instances
    hours = {small: 0.1, large: 0.1, "fit-small-en": 4.0, "fit-small-en es": 4.0, "fit-large-es": 2.0}
    hours["fit-large-en"] = 2.0
    found = too_dear(gates, hours, lambda digest: False)
    assert list(found) == [large]
    assert "360 s for stages of 14400 s" in found[large]
    assert list(too_dear(gates, hours, lambda digest: digest == "fit-small-en")) == [small, large]
    assert too_dear(gates, {}, lambda digest: False) == {}
    left_out = gates_of(SWEEP, replace(FACTS, left_out=found))
    assert list(left_out.instances) == [small]


def test_a_rehearsal_of_more_stands_for_one_of_fewer_and_not_the_other_way() -> None:
    (more, _), (fewer,) = (list(gates_of(SWEEP, FACTS, n).instances.values()) for n in (None, ["small en"]))
    assert stands_for(more, fewer) and not stands_for(fewer, more) and not stands_for(more, more)


def test_the_first_job_of_each_class_runs_its_gate_and_the_others_start_after_the_longest_one() -> None:
    gates = gates_of(SWEEP, FACTS)
    small, large = gates.instances
    states = {**dict.fromkeys(SWEEP.stages, PENDING), small: PENDING, large: PENDING}
    hours = {small: 0.1, large: 0.2}
    ordered = [SWEEP.cells[number] for number in (3, 0, 1, 2)]
    found = gate_jobs(ordered, gates, states, hours)
    assert (found.first, found.later) == ({"large en", "small en"}, {"small en es", "large es"})
    assert found.seconds == 1.25 * 720 + 60
    jobs = [("7", [("small en es",), ("small en",)]), ("8", [("large en", "large es")])]
    assert found.tasks(jobs) == ("7_1", "8_0")


def test_no_job_starts_later_for_a_gate_that_runs_or_is_done_or_of_unknown_length() -> None:
    gates = gates_of(SWEEP, FACTS)
    small, large = gates.instances
    states = {**dict.fromkeys(SWEEP.stages, PENDING), small: DONE, large: RUNNING}
    assert gate_jobs(SWEEP.cells, gates, states, {small: 0.1, large: 0.2}) == GateJobs()
    assert gate_jobs(SWEEP.cells, gates, {**states, large: PENDING}, {small: 0.1}) == GateJobs()
    assert gate_jobs(SWEEP.cells, gates, {**states, large: PENDING}, {large: 0.2}).later == {"large en"}
