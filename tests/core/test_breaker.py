"""The breaker: cells that have in common what failed ones have do not start. Tables over records."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from msgspec.structs import replace

from orchestrator.core.evidence import NO_HOLDS, Attempt, Evidence
from orchestrator.core.failure import Cause
from orchestrator.core.gates import Gate, Gates, is_given_up
from orchestrator.core.holding import SweepRecords, attributed, holds_of
from orchestrator.core.plan import summarize_requests
from orchestrator.core.records import Claim, Done, End, Owner, Process, Request, StartRecord
from orchestrator.core.settings import Policy
from orchestrator.core.state import State, cell_status, stage_status
from orchestrator.core.sweep import Cell, ComposedSweep, Input, StageInstance

OLD, NEW = "0" * 64, "1" * 64
OWNER = Owner(host="h", process=Process(boot_id="b", namespace="n", pid=1, start="1"))
CLAIM = Claim(nonce="", owner=OWNER, lease_s=90.0, generation=1, sweep="s", cell="c")
POLICY = Policy(retries={"unknown": 1})


def failed(
    number: int = 1, message: str = "row 1 is bad", *, code: str = OLD, cause: Cause = Cause.CODE
) -> Evidence:
    """Return the evidence of a stage whose attempts all failed, the last with this message."""
    end = End(nonce="", outcome="failed", cause=cause, exception="ValueError", message=message)
    start = StartRecord(parent=None, uses={}, provenance={"code": code})
    return Evidence(tuple(Attempt(n, CLAIM, start, None, end) for n in range(1, number + 1)))


def made(*, code: str = OLD, rows: Sequence[Mapping[str, Any]] = ({"x": 1},)) -> Evidence:
    """Return the evidence of a stage with a product."""
    done = Done(
        nonce="",
        stage="train",
        digest="",
        generation=1,
        attempt=1,
        files=(),
        rows=tuple(map(dict, rows)),
        seconds=1.0,
        code=f"abcd1234+.{code[:8]}",
    )
    return Evidence((Attempt(1),), done=done)


class Records:
    """The records of a sweep: per task and model a `train`, and per task and mixture one shared `prepare`."""

    def __init__(
        self,
        tasks: Sequence[str] = ("math", "api"),
        models: Sequence[str] = ("a", "b", "c", "d"),
        mixtures: Sequence[str] = ("en",),
    ) -> None:
        stages: dict[str, StageInstance] = {}
        cells = []
        for task, model, mixture in itertools.product(tasks, models, mixtures):
            shard, train = f"prepare.{task}.{mixture}", f"train.{task}.{model}.{mixture}"
            stages[shard] = StageInstance(stage="prepare", label=mixture, digest=shard, reads={})
            taken = (Input("prepare", mixture, shard),) if mixture != "none" else ()
            stages[train] = StageInstance(stage="train", digest=train, reads={}, inputs=taken)
            chain = (shard, train) if mixture != "none" else (train,)
            axes = {"task": task, "model": model, "mixture": mixture}
            name = f"{task}.{model}.{mixture}"
            cells.append(Cell(id=name, axes=axes, columns={}, config={}, stage_digests=chain))
        self.sweep = ComposedSweep(name="s", specs={}, stages=stages, cells=tuple(cells))
        self.found: dict[str, Evidence] = {digest: made() for digest in stages if digest.startswith("prep")}
        self.requests = [self.request("launch")]
        self.policy = POLICY
        self.code = OLD

    def request(self, verb: Any, cells: Sequence[str] | None = None, **more: Any) -> Request:
        """Return the next request, as if it were recorded now."""
        number = len(self.requests) + 1 if hasattr(self, "requests") else 1
        named = None if cells is None else tuple(cells)
        return Request(nonce="", number=number, verb=verb, revision=1, cells=named, **more)

    def ask(self, verb: Any, cells: Sequence[str] | None = None) -> None:
        """Record a launch or rerun with the attempts that there are."""
        wanted = {
            digest
            for cell in self.sweep.cells
            if cells is None or cell.id in cells
            for digest in cell.stage_digests
        }
        numbers = {
            digest: each.attempts[-1].number
            for digest, each in self.found.items()
            if each.done is None and each.attempts
        }
        after = {digest: number for digest, number in numbers.items() if digest in wanted}
        others = {digest: number for digest, number in numbers.items() if digest not in wanted}
        self.requests.append(self.request(verb, cells, after=after, failures=others))

    def records(self) -> SweepRecords:
        summary = summarize_requests(self.requests, [cell.id for cell in self.sweep.cells])

        def evidence(digest: str) -> Evidence:
            return self.found.get(digest, Evidence())

        return SweepRecords(
            sweep=self.sweep,
            evidence=evidence,
            status=lambda d: stage_status(evidence(d), summary.budget(d, self.policy.retries)),
            unfinished=[d for d, e in self.found.items() if e.attempts and e.done is None],
            requests=summary,
            policy=self.policy,
            codes={cell.id: self.code for cell in self.sweep.cells},
        )

    def held(self) -> set[str]:
        return set(holds_of(self.records()).cells)

    def all_of(self, **axes: str) -> set[str]:
        return {c.id for c in self.sweep.cells if all(c.axes[k] == v for k, v in axes.items())}


def three_failed(records: Records, **more: Any) -> Records:
    for model in ("a", "b", "c"):
        records.found[f"train.math.{model}.en"] = failed(message=f"row {ord(model)} is bad", **more)
    return records


def test_three_alike_hold_all_cells_that_have_in_common_what_they_have():
    records = three_failed(Records())
    assert records.held() == records.all_of(task="math", mixture="en")
    hold = holds_of(records.records()).cells["math.d.en"]
    assert hold.is_final and hold.cause is Cause.CODE
    assert hold.reason.startswith("3 cells with task=math failed alike: ValueError: row 97 is bad")
    assert "sweep logs s math.a.en --stage train" in hold.reason
    assert "sweep rerun s --only task=math" in hold.reason


def test_the_state_of_a_held_cell_is_blocked_and_that_of_a_failed_one_stays_failed():
    records = three_failed(Records())
    seen = records.records()
    statuses = {digest: seen.status(digest) for digest in records.sweep.stages}
    states = {
        cell.id: cell_status(
            cell, records.sweep.stages, statuses, cancelled=False, holds=holds_of(seen)
        ).state
        for cell in records.sweep.cells
    }
    assert states["math.a.en"] is State.FAILED
    assert states["math.d.en"] is State.BLOCKED
    assert states["api.a.en"] is State.PENDING


def test_two_alike_or_three_that_differ_hold_nothing():
    records = three_failed(Records())
    records.found["train.math.c.en"] = failed(message="another thing")
    assert records.held() == set()


def test_a_breaker_of_zero_is_off_and_one_of_four_needs_four():
    records = three_failed(Records())
    records.policy = replace(POLICY, breaker=0)
    assert records.held() == set()
    records.policy = replace(POLICY, breaker=4)
    assert records.held() == set()
    records.found["train.math.d.en"] = failed(message="row 9 is bad")
    assert records.held() == records.all_of(task="math")


def test_a_stage_that_may_be_tried_again_has_not_failed():
    records = three_failed(Records(), cause=Cause.UNKNOWN)
    assert records.held() == set()
    records = three_failed(Records(), cause=Cause.UNKNOWN, number=2)
    assert records.held() == records.all_of(task="math")


def test_what_a_machine_did_to_three_cells_tells_nothing_about_others():
    assert three_failed(Records(), cause=Cause.BAD_NODE).held() == set()


def test_one_success_among_them_under_the_same_code_frees_them():
    records = three_failed(Records())
    records.found["train.math.d.en"] = made(code=NEW)
    assert records.held() == records.all_of(task="math") - {"math.d.en"}, "made by other code; itself is done"
    records.found["train.math.d.en"] = made()
    assert records.held() == set()


def test_a_success_outside_of_what_they_have_in_common_changes_nothing():
    records = three_failed(Records())
    records.found["train.api.d.en"] = made()
    assert records.held() == records.all_of(task="math")


def test_a_product_of_nothing_is_no_success():
    records = three_failed(Records())
    records.found["train.math.d.en"] = made(rows=())
    assert records.held() == records.all_of(task="math") - {"math.d.en"}


def test_finished_baselines_are_no_success_of_those_with_more_to_do():
    records = Records(models=[str(n) for n in range(23)], mixtures=["none", "en", "es", "sw", "all"])
    assert len(records.sweep.cells) == 230
    for cell in records.sweep.cells:
        if cell.axes["mixture"] == "none":
            records.found[cell.stage_digests[-1]] = made()
    for model, mixture in (("0", "en"), ("7", "es"), ("9", "sw")):
        records.found[f"train.math.{model}.{mixture}"] = failed(message=f"row {model} is bad")
    assert records.held() == records.all_of(task="math") - records.all_of(mixture="none")
    assert len(records.held()) == 92


def test_one_shared_stage_that_fails_holds_nothing_but_blocks_what_takes_it():
    records = Records(models=list("abcdefgh"))
    records.found["prepare.math.en"] = failed()
    seen = records.records()
    assert holds_of(seen).cells == {}
    statuses = {digest: seen.status(digest) for digest in records.sweep.stages}
    cell = records.sweep.cells[0]
    status = cell_status(cell, records.sweep.stages, statuses, cancelled=False, holds=holds_of(seen))
    assert status.stages["train.math.a.en"].state is State.BLOCKED


def test_three_shared_stages_hold_the_cells_that_still_need_one():
    records = Records(mixtures=["en", "es", "sw", "hi"])
    for mixture in ("en", "es", "sw"):
        records.found[f"prepare.math.{mixture}"] = failed(message=f"row {len(mixture)} is bad")
    del records.found["prepare.math.hi"]
    assert records.held() == records.all_of(task="math")
    records.found["prepare.math.hi"] = made(code=NEW)
    assert records.held() == records.all_of(task="math") - records.all_of(mixture="hi")


def test_other_code_lets_them_go_on_and_the_old_code_does_not():
    records = three_failed(Records())
    records.ask("launch")
    assert records.held() == records.all_of(task="math"), "the same code would fail again"
    records.code = NEW
    assert records.held() == set()
    records.found["train.math.d.en"] = failed(code=NEW)
    assert records.held() == set(), "one under the new code, three under the old"


def test_a_launch_lets_cells_go_on_after_failures_that_chance_may_cure():
    records = three_failed(Records(), cause=Cause.UNKNOWN, number=2)
    records.ask("launch")
    assert records.held() == set()


def test_a_rerun_lets_exactly_those_go_on_that_it_names():
    records = three_failed(Records(models=list("abcdef")))
    records.ask("rerun", ["math.d.en"])
    assert records.held() == records.all_of(task="math") - {"math.d.en"}
    records.ask("launch")
    assert records.held() == records.all_of(task="math") - {"math.d.en"}, "a later launch takes nothing back"
    records.ask("rerun", ["math.a.en"])
    assert records.held() == records.all_of(task="math") - {"math.d.en", "math.a.en"}
    records.found["train.math.a.en"] = made()
    assert records.held() == set(), "the failed one works now under the same code"


def test_failures_after_a_rerun_hold_its_cells_again():
    records = three_failed(Records(models=list("abcdef")))
    records.ask("rerun")
    assert records.held() == set()
    for model in "abd":
        records.found[f"train.math.{model}.en"] = failed(number=2 if model != "d" else 1)
    assert records.held() == records.all_of(task="math")


def test_a_rerun_of_an_earlier_version_lets_its_cells_go_on():
    records = three_failed(Records())
    records.requests.append(records.request("rerun", ["math.d.en"]))
    assert records.held() == records.all_of(task="math") - {"math.d.en"}


def test_failures_without_anything_in_common_hold_all_that_is_left():
    records = Records()
    for name in ("math.a", "api.b", "math.c"):
        records.found[f"train.{name}.en"] = failed()
    records.found["train.api.d.en"] = made(code=NEW)
    assert records.held() == {cell.id for cell in records.sweep.cells} - {"api.d.en"}


def test_cells_that_differ_on_one_axis_only_have_nothing_in_common_to_fail_by():
    assert three_failed(Records(tasks=["math"], models=list("abcdef"))).held() == set()


def test_failures_are_due_to_axes_only_if_other_cells_differ_on_them():
    records = Records()
    records.found["train.math.a.en"] = failed()
    one = ["train.math.a.en"]
    assert attributed(records.records(), one) == set(), "one failure has nothing in common with another"
    records.found["train.math.b.en"] = failed()
    two = [*one, "train.math.b.en"]
    assert attributed(records.records(), two) == set(two)
    records.found["train.math.c.en"] = made()
    assert attributed(records.records(), two) == set(), "another one like them works"
    del records.found["train.math.c.en"]
    records.found["train.api.c.en"] = failed()
    assert attributed(records.records(), two) == set(), "a machine on which all fail"


def with_gates_of(records: Records) -> SweepRecords:
    """The records with a gate for each model and task, which is done, or failed as `found` says."""
    gates = {f"{c.axes['task']}.{c.axes['model']}": c for c in records.sweep.cells}
    instances = {name: StageInstance(stage="check", digest=name, reads={}) for name in gates}
    waits = {
        c.id: (Gate(f"{c.axes['task']}.{c.axes['model']}", (c.stage_digests[-1],)),)
        for c in records.sweep.cells
    }
    found = Gates(instances, {name: (name,) for name in instances}, waits)
    sweep = replace(records.sweep, stages={**records.sweep.stages, **instances})
    return records.records()._replace(sweep=sweep, gates=found)


def test_two_gates_that_fail_alike_hold_the_classes_that_have_in_common_what_they_have():
    records = Records(mixtures=("en", "es"))
    records.found["math.a"] = failed(message="row 7 is bad")
    assert holds_of(with_gates_of(records)) == NO_HOLDS
    records.found["math.b"] = failed(message="row 9 is bad")
    found = with_gates_of(records)
    holds = holds_of(found)
    others = records.all_of(task="math", model="c") | records.all_of(task="math", model="d")
    assert set(holds.cells) == others  # those of the gates that failed are held by these
    assert all(hold.is_final for hold in holds.cells.values())
    given_up = {gate for gate in found.gates.instances if is_given_up(gate, found.gates, holds)}
    assert given_up == {"math.c", "math.d"}
    records.found["math.c"] = made()
    assert holds_of(with_gates_of(records)) == NO_HOLDS  # one like them has passed
    del records.found["math.c"]
    records.found["math.b"] = failed(message="another thing")
    assert holds_of(with_gates_of(records)) == NO_HOLDS
