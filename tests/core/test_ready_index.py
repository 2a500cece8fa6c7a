"""The index of stages that may be claimed finds what a scan of all cells would find, and reads less."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core.evidence import Hold, Holds
from orchestrator.core.plan import Claimable, ReadyIndex, Scan, is_claimable
from orchestrator.core.state import StageStatus, State
from orchestrator.core.sweep import Cell, Input, StageInstance

CHAINS = {"one": "abcf", "two": "abe", "three": "d", "four": "ae", "five": "dg"}
INPUTS = {"a": "", "b": "a", "c": "ab", "d": "", "e": "a", "f": "c", "g": "d"}
INSTANCES = {
    digest: StageInstance(
        stage=digest, digest=digest, reads={}, inputs=tuple(Input(taken, "", taken) for taken in inputs)
    )
    for digest, inputs in INPUTS.items()
}
CELLS = tuple(
    Cell(id=name, axes={}, columns={}, config={}, stage_digests=tuple(chain))
    for name, chain in CHAINS.items()
)
PENDING = StageStatus(State.PENDING, "not started")


def full_scan(
    cells: Sequence[Cell], statuses: Mapping[str, StageStatus], cancelled: frozenset[str], holds: Holds
) -> tuple[Scan, int]:
    """All claimable stages by looking at every stage of every cell: the first, and how many there are."""
    found: list[Claimable] = []
    is_waiting = False
    for cell in cells:
        for digest in cell.stage_digests:
            if cell.id in cancelled:
                continue
            is_waiting |= statuses[digest].state is State.RUNNING
            if is_claimable(statuses[digest], [statuses[taken] for taken in INPUTS[digest]]):
                hold = holds.of(cell.id, digest)
                if hold is None:
                    found.append(Claimable(cell, INSTANCES[digest]))
                is_waiting |= hold is not None and not hold.is_final
    digests = {each.instance.digest for each in found}
    return Scan(found[0] if found else None, bool(found) or is_waiting), len(digests)


STATES = [State.DONE, State.DONE, State.PENDING, State.RUNNING, State.FAILED, State.LOST, State.RELEASED]
STATUSES = st.sampled_from([PENDING._replace(state=s, retired=r) for s in STATES for r in ("", "3 files")])
HOLD = st.builds(Hold, st.just("why"), st.booleans())
HOLDS = st.builds(
    Holds,
    st.dictionaries(st.sampled_from(list(CHAINS)), HOLD, max_size=2),
    st.dictionaries(st.sampled_from(list(INPUTS)), HOLD, max_size=2),
)
CHANGES = st.one_of(
    st.tuples(st.just("record"), st.sampled_from(list(INPUTS)), STATUSES),
    st.tuples(st.just("records"), st.dictionaries(st.sampled_from(list(INPUTS)), STATUSES), st.none()),
    st.tuples(st.just("cancel"), st.frozensets(st.sampled_from(list(CHAINS))), st.none()),
    st.tuples(st.just("hold"), HOLDS, st.none()),
    st.tuples(st.just("leave out"), st.sampled_from(list(INPUTS)), st.none()),
    st.tuples(st.just("look again"), st.none(), st.none()),
)


@given(st.lists(st.tuples(CHANGES, st.booleans()), max_size=20))
def test_after_any_changes_the_index_finds_what_a_full_scan_finds(changes: list) -> None:
    statuses = dict.fromkeys(INPUTS, PENDING)
    cancelled: frozenset[str] = frozenset()
    holds = Holds()
    index = ReadyIndex(CELLS, INSTANCES)
    for (what, value, status), is_counted in changes:
        if what == "record":
            statuses[value] = status
            index.touch([value])
        elif what == "records":
            statuses |= value
            index.touch(value)
        elif what == "cancel":
            cancelled = value
        elif what == "hold":
            holds = value
        elif what == "leave out":
            index.leave_out(value)
        else:
            index.touch(None)
        scan, number = full_scan(index.cells, statuses, cancelled, holds)
        if is_counted:
            found = index.count(statuses.__getitem__, cancelled=cancelled, holds=holds)
            assert found == (number, scan.waiting)
        assert index.next_stage(statuses.__getitem__, cancelled=cancelled, holds=holds) == scan


def test_a_state_is_read_again_only_after_its_records_changed() -> None:
    statuses, read = dict.fromkeys(INPUTS, PENDING), []

    def status_of(digest: str) -> StageStatus:
        read.append(digest)
        return statuses[digest]

    index = ReadyIndex(CELLS, INSTANCES)
    index.next_stage(status_of, cancelled=frozenset())
    assert read == ["a"]  # nothing that comes after the first claimable stage
    statuses["a"] = PENDING._replace(state=State.DONE)
    index.touch(["a"])
    scan = index.next_stage(status_of, cancelled=frozenset())
    assert scan.claimable is not None and scan.claimable.instance.digest == "b"
    assert read == ["a", "a", "b"]
    index.next_stage(status_of, cancelled=frozenset({"three"}))
    assert read == ["a", "a", "b"]
