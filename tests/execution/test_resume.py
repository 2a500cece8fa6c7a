"""Rule 6: which checkpoint an attempt goes on from, and what saving, rotating and adopting do to files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from orchestrator.core.evidence import Attempt
from orchestrator.core.failure import Cause
from orchestrator.core.records import Parent, StartRecord
from orchestrator.core.sweep import Input, StageInstance
from orchestrator.count import COUNT
from orchestrator.errors import StageFailure, StopRequested
from orchestrator.execution.inheritance import Inherited, adopt_checkpoint, inherit
from orchestrator.saving import MANIFEST, write_checkpoint_manifest
from orchestrator.stage import Context, StageSpec
from orchestrator.store import layout
from orchestrator.store.ledger import Ledger
from tests.store.builders import claim, end, instance_of, ledger_at, sweep_of, void

NODE = instance_of(sweep_of(1))


@pytest.fixture
def ledger(store: Path) -> Ledger:
    return ledger_at(store)


def folder_of(ledger: Ledger, attempt: int, instance: StageInstance = NODE) -> Path:
    return ledger.objects.workspace(layout.payload(instance, attempt))


def save(ledger: Ledger, attempt: int, *steps: int, of: StageInstance = NODE) -> None:
    """Leaves whole checkpoints in an attempt's folder."""
    for step in steps:
        folder = folder_of(ledger, attempt, of) / layout.CHECKPOINTS / f"{step:08d}"
        folder.mkdir(parents=True)
        (folder / "state").write_text(f"attempt {attempt} step {step}")
        write_checkpoint_manifest(folder, step=step, attempt=attempt)


def failed(number: int, cause: Cause = Cause.UNKNOWN) -> Attempt:
    return Attempt(number, claim(), None, None, end("failed", cause))


def adopted(ledger: Ledger, *attempts: Attempt) -> str | None:
    """What the next attempt would read as its state, None for a start from nothing."""
    number = attempts[-1].number + 1
    found = adopt_checkpoint(ledger, NODE, attempts, folder_of(ledger, number))
    if found is None:
        return None
    checkpoint, parent = found
    text = (checkpoint.folder / "state").read_text()
    assert text.endswith(f" step {parent.step}") and checkpoint.step == parent.step
    return text


def released(number: int) -> Attempt:
    return Attempt(number, claim(), None, None, end("released", why="stopped"))


def test_the_highest_step_is_adopted_and_of_equal_ones_the_latest_attempt(ledger: Ledger) -> None:
    save(ledger, 1, 5, 9)
    save(ledger, 2, 7, 9)
    save(ledger, 3, 8)
    assert adopted(ledger, released(1), released(2), released(3)) == "attempt 2 step 9"


def test_adopting_links_the_files_and_leaves_the_source_as_it_was(ledger: Ledger) -> None:
    save(ledger, 1, 5)
    assert adopted(ledger, released(1)) == "attempt 1 step 5"
    source, mine = (folder_of(ledger, n) / layout.CHECKPOINTS / "00000005" for n in (1, 2))
    assert (source / "state").stat().st_ino == (mine / "state").stat().st_ino
    assert (source / MANIFEST).stat().st_ino != (mine / MANIFEST).stat().st_ino


def test_a_stage_that_writes_into_what_it_goes_on_from_changes_no_other_checkpoint(ledger: Ledger) -> None:
    save(ledger, 1, 5)
    for number in (2, 3):
        found = adopt_checkpoint(ledger, NODE, [released(1)], folder_of(ledger, number), is_copied=True)
        assert found is not None and found[0].step == 5
        (found[0].folder / "state").write_text("changed")


@pytest.mark.parametrize(
    "harm",
    [
        lambda folder: os.truncate(folder / "state", 3),
        lambda folder: (folder / "state").write_text("attempt 1 step 8"),
        lambda folder: (folder / "state").unlink(),
        lambda folder: os.truncate(folder / MANIFEST, 20),
        lambda folder: (folder / MANIFEST).write_bytes(b""),
        lambda folder: (folder / MANIFEST).write_bytes(b"\xff\xfe"),
        lambda folder: (folder / MANIFEST).unlink(),
    ],
    ids=["truncated", "altered", "deleted", "torn manifest", "empty manifest", "no text", "no manifest"],
)
def test_a_checkpoint_that_does_not_verify_is_passed_over_for_the_next(ledger: Ledger, harm: object) -> None:
    save(ledger, 1, 5, 9)
    harm(folder_of(ledger, 1) / layout.CHECKPOINTS / "00000009")  # type: ignore[operator]
    assert adopted(ledger, released(1)) == "attempt 1 step 5"
    assert not (folder_of(ledger, 2) / layout.CHECKPOINTS / "00000009").exists()


def test_a_heartbeat_may_be_put_before_each_file_that_is_adopted(ledger: Ledger) -> None:
    """Verifying the files of a large model takes longer than a lease."""
    folder = folder_of(ledger, 1) / layout.CHECKPOINTS / "00000005"
    folder.mkdir(parents=True)
    for number in range(5):
        (folder / f"part{number}").write_text("part")
    write_checkpoint_manifest(folder, step=5, attempt=1)
    pulses: list[int] = []
    found = adopt_checkpoint(
        ledger, NODE, [released(1)], folder_of(ledger, 2), keepalive=lambda: pulses.append(1)
    )
    assert found is not None and len(pulses) == 5


def test_without_a_checkpoint_that_verifies_an_attempt_starts_from_nothing(ledger: Ledger) -> None:
    save(ledger, 1, 5)
    os.truncate(folder_of(ledger, 1) / layout.CHECKPOINTS / "00000005/state", 0)
    assert adopted(ledger, released(1)) is None


def test_a_checkpoint_from_which_two_attempts_failed_is_skipped(ledger: Ledger) -> None:
    save(ledger, 1, 5, 9)
    assert adopted(ledger, failed(1)) == "attempt 1 step 9"
    assert adopted(ledger, failed(1), failed(2)) == "attempt 1 step 5"


def test_a_checkpoint_after_which_one_attempt_failed_by_nan_is_skipped(ledger: Ledger) -> None:
    save(ledger, 1, 5, 9)
    assert adopted(ledger, failed(1, Cause.NAN)) == "attempt 1 step 5"


def test_a_failure_with_a_newer_checkpoint_does_not_count_against_the_older_one(ledger: Ledger) -> None:
    save(ledger, 1, 5)
    assert adopted(ledger, failed(1)) == "attempt 1 step 5"
    save(ledger, 2, 7)
    assert adopted(ledger, failed(1), failed(2)) == "attempt 2 step 7"
    assert adopted(ledger, failed(1), failed(2), failed(3)) == "attempt 1 step 5"


@pytest.mark.parametrize("cause", [Cause.PREEMPTED, Cause.NODE_LOST, Cause.COMMUNICATION, Cause.STORAGE])
def test_failures_that_no_checkpoint_can_cause_do_not_count_against_one(ledger: Ledger, cause: Cause) -> None:
    save(ledger, 1, 5)
    assert adopted(ledger, failed(1, cause)) == "attempt 1 step 5"
    assert adopted(ledger, failed(1, cause), failed(2, cause)) == "attempt 1 step 5"
    assert adopted(ledger, failed(1, cause), failed(2, cause), failed(3, cause)) == "attempt 1 step 5"


def test_checkpoints_of_a_discarded_product_are_not_gone_on_from(ledger: Ledger) -> None:
    """`discard` is for products that a bug made: what that bug left behind must not come back."""
    save(ledger, 1, 5)
    ledger.void(NODE, void(1, "discarded"))
    assert adopted(ledger, Attempt(1, claim(generation=1))) is None


def test_checkpoints_of_a_damaged_product_are_gone_on_from(ledger: Ledger) -> None:
    save(ledger, 1, 5)
    ledger.void(NODE, void(1, "damaged"))
    assert adopted(ledger, Attempt(1, claim(generation=1))) == "attempt 1 step 5"


def test_checkpoints_made_from_a_discarded_input_are_not_gone_on_from(ledger: Ledger) -> None:
    """Only products are discarded; an attempt that failed half-way used the same bad input."""
    after = StageSpec(run=COUNT.run, reads=COUNT.reads, uses=COUNT.uses, after=("count",))
    sweep = sweep_of(1, {"count": COUNT, "more": after})
    first, second = (sweep.stages[digest] for digest in sweep.cells[0].stage_digests)
    folder = folder_of(ledger, 1, second) / layout.CHECKPOINTS / "00000005"
    folder.mkdir(parents=True)
    (folder / "state").write_text("attempt 1 step 5")
    write_checkpoint_manifest(folder, step=5, attempt=1)
    start = StartRecord(parent=None, uses={}, provenance={}, inputs={first.digest: 1})
    attempts = (Attempt(1, claim(), start, None, end()),)
    assert adopt_checkpoint(ledger, second, attempts, folder_of(ledger, 2, second)) is not None
    ledger.void(first, void(1, "discarded"))
    assert adopt_checkpoint(ledger, second, attempts, folder_of(ledger, 3, second)) is None


# Saving and rotating


def steps_in(folder: Path) -> list[int]:
    return sorted(int(path.parent.name) for path in (folder / "checkpoints").glob(f"*/{MANIFEST}"))


def save_steps(context: Context, *steps: int) -> None:
    for step in steps:
        with context.checkpoint(step) as folder:
            (folder / "state").write_text(f"attempt 1 step {step}")


def test_rotation_keeps_the_two_newest(tmp_path: Path) -> None:
    save_steps(Context(tmp_path, keep=1), 1, 2, 3, 4)
    assert steps_in(tmp_path) == [3, 4]


def test_rotation_knows_that_a_longer_number_is_a_higher_step(tmp_path: Path) -> None:
    save_steps(Context(tmp_path), 99_999_998, 99_999_999, 100_000_000, 100_000_001)
    assert steps_in(tmp_path) == [100_000_000, 100_000_001]


def test_nothing_is_saved_or_rotated_by_an_attempt_that_was_superseded(tmp_path: Path) -> None:
    """Rule 5: the fence is asked before a checkpoint and before rotation."""
    calls = [0]

    def fence() -> None:
        calls[0] += 1
        if calls[0] > allowed:
            raise StopRequested("superseded")

    allowed = 2
    context = Context(tmp_path, fence=fence)
    save_steps(context, 1, 2)
    with pytest.raises(StopRequested):
        save_steps(context, 3)
    assert steps_in(tmp_path) == [1, 2] and not (tmp_path / "checkpoints/00000003").exists()
    allowed = 4
    with pytest.raises(StopRequested):
        save_steps(context, 4)
    assert steps_in(tmp_path) == [1, 2, 4]


def test_a_checkpoint_that_exists_is_never_overwritten(tmp_path: Path) -> None:
    context = Context(tmp_path)
    save_steps(context, 1)
    file = tmp_path / "checkpoints/00000001/state"
    before = file.stat()
    with context.checkpoint(1) as folder:
        (folder / "state").write_text("another")
    assert (file.read_text(), file.stat().st_ino) == ("attempt 1 step 1", before.st_ino)


def test_a_save_that_fails_leaves_no_torn_checkpoint_and_frees_its_space(tmp_path: Path) -> None:
    context = Context(tmp_path)
    with pytest.raises(OSError, match="full"), context.checkpoint(1) as folder:
        (folder / "state").write_text("half of it")
        raise OSError("full")
    assert not (tmp_path / "checkpoints/00000001").exists()
    save_steps(context, 1)
    assert steps_in(tmp_path) == [1]


def test_a_file_of_the_stage_may_have_the_name_of_the_manifest_of_a_folder_below(ledger: Ledger) -> None:
    context = Context(folder_of(ledger, 1))
    with context.checkpoint(5) as folder:
        (folder / "state").write_text("attempt 1 step 5")
        (folder / "model").mkdir()
        (folder / "model" / MANIFEST).write_text("the model's own")
    assert adopted(ledger, released(1)) == "attempt 1 step 5"
    assert (folder_of(ledger, 2) / "checkpoints/00000005/model" / MANIFEST).read_text() == "the model's own"


def test_a_stage_that_saves_a_file_with_the_manifests_name_is_told_so(tmp_path: Path) -> None:
    """It would be overwritten, and the checkpoint would never verify: better to fail than to lose it."""
    with pytest.raises(StageFailure, match=MANIFEST), Context(tmp_path).checkpoint(1) as folder:
        (folder / MANIFEST).write_text("mine")


@pytest.mark.parametrize("has_work", [True, False])
@pytest.mark.parametrize("own", [(), (7,)])
def test_all_that_a_later_part_takes_is_recorded_before_it_lies_there(
    ledger: Ledger, own: tuple[int, ...], has_work: bool
) -> None:
    first = StageInstance(stage="fit", label="rung 1", digest="f1", reads={})
    second = StageInstance(
        stage="fit", label="rung 2", digest="f2", reads={}, inputs=(Input("fit", "rung 1", "f1"),)
    )
    ledger.claim(first, 1, claim())
    ledger.end(first, 1, end("succeeded"))
    save(ledger, 1, 5, of=first)
    save(ledger, 1, *own, of=second)
    if has_work:
        (folder_of(ledger, 1, second) / layout.WORK).mkdir(parents=True)
        (folder_of(ledger, 1, second) / layout.WORK / "notes").write_text("x")
    folder, recorded = folder_of(ledger, 2, second), list[Inherited]()

    def record(taken: Inherited) -> None:
        recorded.append(taken)
        assert taken.parent is None or not (folder / layout.CHECKPOINTS).exists()

    spec = StageSpec(run="m:f", reads=("seed",))
    start = StartRecord(parent=None, uses={}, provenance={}, inputs={"f1": 1})
    before = failed(1)._replace(start=start)
    found = inherit(ledger, second, spec, [before], folder, former=None, keepalive=int, record=record)
    assert found.work == (1 if has_work else None) and found.checkpoint is not None
    parent = Parent(attempt=1, step=7) if own else Parent(attempt=0, step=5)
    assert found.parent == parent and found.checkpoint.step == parent.step
    assert recorded[-1] == Inherited(parent=parent, work=found.work)
    assert [each.work for each in recorded] == [found.work] * (1 + has_work)
