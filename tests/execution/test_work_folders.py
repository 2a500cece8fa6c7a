"""The work folder of a stage: the next attempt goes on in it, and a former owner cannot reach it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator.count import COUNT
from orchestrator.errors import StageFailure
from orchestrator.execution import work
from orchestrator.stage import Context, StageSpec
from orchestrator.store import layout
from orchestrator.store.objects import idle
from orchestrator.trackers.base import history
from tests.execution.faults import Start, finish, order_for
from tests.execution.jobs import Jobs
from tests.execution.stages import spec
from tests.execution.waiting import tree, until
from tests.store.builders import claim, instance_of, ledger_at, owner, seal, sweep_of

KILLED_AT = {1: "wrote temporary", 2: "replaced", 3: "wrote temporary", 4: "replaced"}

SCRIPT = """
import argparse, json, os, time
parser = argparse.ArgumentParser()
parser.add_argument("--outdir"); parser.add_argument("--resume", action="store_true")
parser.add_argument("--seed", type=int)
args = parser.parse_args()
state = os.path.join(args.outdir, "state.json")
step = json.load(open(state))["step"] if args.resume and os.path.exists(state) else 0
start = step
print("from", step, flush=True)
while step < 20:
    while step == 8 and not os.path.exists(os.path.join(os.path.dirname(__file__), "go")):
        time.sleep(0.01)
    time.sleep(0.01)
    step += 1
    with open(os.path.join(args.outdir, "history"), "a") as stream:
        stream.write(f"{step} ")
    with open(os.environ["SWEEP_METRICS"], "a") as stream:
        stream.write(json.dumps({"step": step, "loss": 1 / step}) + "\\n")
    with open(state + ".tmp", "w") as stream:
        json.dump({"step": step}, stream)
    os.replace(state + ".tmp", state)
    print("step", step, flush=True)
with open(os.path.join(args.outdir, "model-20.ckpt"), "w") as stream:
    stream.write("weights")
link = os.path.join(args.outdir, "last.ckpt")
if not os.path.lexists(link):
    os.symlink(os.path.join(args.outdir, "model-20.ckpt"), link)
with open(os.path.join(args.outdir, "result.json"), "w") as stream:
    json.dump({"start": start, "steps": step}, stream, indent=2)
"""


def script(folder: Path) -> StageSpec:
    """A script that goes beyond step 8 once there is a file `go` beside it."""
    (folder / "train.py").write_text(SCRIPT)
    return StageSpec(
        command="{python} train.py --outdir {work} --resume {args}",
        keep=("last.*", "result.json", "history"),
        results="result.json",
    )


def test_a_script_that_resumes_in_its_own_folder_goes_on_after_its_death(store: Path, run: Jobs) -> None:
    job = run(script(store.parent))
    job.wait_for("step 8")
    os.kill(tree(job.process.pid)[0], signal.SIGKILL)
    (store.parent / "go").touch()
    assert job.end(2).outcome == "succeeded"
    done, _ = ledger_at(store).product(job.instance, 1)
    assert done is not None and done.rows[0]["start"] == 8
    output = job.folder(2) / layout.OUTPUT
    assert sorted(path.name for path in output.iterdir()) == ["history", "last.ckpt", "result.json"]
    assert (output / "last.ckpt").read_text() == "weights" and not (output / "last.ckpt").is_symlink()
    curve = [row["step"] for row in history(ledger_at(store), job.instance, 2)]
    assert curve == list(range(1, 21))  # of both attempts, each step once
    assert not (job.folder(1) / layout.WORK).exists() and not (job.folder(2) / layout.WORK).exists()


def test_an_owner_that_was_frozen_past_its_lease_cannot_change_what_its_heir_made(
    store: Path, run: Jobs
) -> None:
    frozen = run(script(store.parent), lease_s=1.0)
    frozen.wait_for("step 8")
    pids = tree(frozen.process.pid)
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    (store.parent / "go").touch()
    heir = run(script(store.parent), lease_s=1.0)
    try:
        assert heir.end(2).outcome == "succeeded"
        done, _ = ledger_at(store).product(heir.instance, 1)
        output = heir.folder(2) / layout.OUTPUT
        before = {path.name: path.read_bytes() for path in output.iterdir()}
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
    assert done is not None and done.rows[0]["start"] == 8
    assert frozen.end(1).why == "superseded"
    assert {path.name: path.read_bytes() for path in output.iterdir()} == before
    assert {int(step) for step in before["history"].split()} == set(range(1, 21))


FUNCTION = """
import os
def main(config, inputs, context):
    seen = sorted(path.name for path in context.work.iterdir())
    (context.work / f"attempt-{context.attempt}").touch()
    print("sees", *seen, flush=True)
    if context.attempt < 3:
        os.kill(os.getpid(), 9)
    return [{"seen": len(seen)}]
"""


def test_a_function_has_a_work_folder_too(store: Path, run: Jobs) -> None:
    (store.parent / "working.py").write_text(FUNCTION)
    job = run(StageSpec(run="working:main", keep=("attempt-*",)))
    job.end(3)
    assert "sees attempt-1 attempt-2" in job.log(3)
    assert len(list((job.folder(3) / layout.OUTPUT).iterdir())) == 3


def former(store: Path) -> tuple[Path, Path]:
    """The work folder of a first attempt whose owner is on another machine, and where the second's goes."""
    ledger, instance = ledger_at(store), instance_of(sweep_of(1))
    ledger.claim(instance, 1, claim(owner=owner(host="elsewhere", boot="other")))
    old = store / layout.payload(instance, 1) / layout.WORK
    new = store / layout.payload(instance, 2)
    old.mkdir(parents=True)
    new.mkdir(parents=True)
    return old, new


def take(store: Path, new: Path, keepalive: Callable[[], None] = idle) -> Path:
    ledger, instance = ledger_at(store), instance_of(sweep_of(1))
    assert work.take_over(ledger, instance, ledger.attempts(instance), new, keepalive=keepalive) == 1
    return new / layout.WORK


def test_a_copy_shares_nothing_with_the_former_owner_and_its_links_point_into_the_copy(store: Path) -> None:
    old, new = former(store)
    (old / "a" / "b").mkdir(parents=True)
    (old / "a" / "b" / "w").write_text("weights")
    (old / "last").symlink_to(old / "a" / "b" / "w")
    os.link(old / "a" / "b" / "w", old / "same")
    os.mkfifo(old / "pipe")
    mine = take(store, new)
    (old / "a" / "b" / "w").write_text("later")
    assert (mine / "last").read_text() == (mine / "same").read_text() == "weights"
    assert (mine / "last").readlink() == mine / "a" / "b" / "w"
    assert not (mine / "pipe").exists() and old.is_dir()


def test_what_changes_while_it_is_copied_is_copied_again(store: Path) -> None:
    old, new = former(store)
    for number in range(200):
        (old / f"{number:03d}").write_text("0")
    rounds = iter(range(1, 12))

    def write() -> None:
        """What the owner does at any time meanwhile."""
        if (round_ := next(rounds, None)) is not None:
            for number in (0, 199):  # a pair that must be of one round
                (old / f"{number:03d}").write_text(str(round_))
            (old / f"gone-{round_}").touch()
            (old / f"gone-{round_ - 1}").unlink(missing_ok=True)

    mine = take(store, new, keepalive=write)
    assert (mine / "000").read_text() == (mine / "199").read_text() == "11"
    assert [path.name for path in mine.glob("gone-*")] == ["gone-11"]


def test_a_copy_that_was_cut_off_is_no_work_folder(store: Path) -> None:
    old, new = former(store)
    (old / "w").write_text("whole")
    half = new / work.COPYING
    half.mkdir()
    (half / "w").write_text("ha")
    assert (take(store, new) / "w").read_text() == "whole"


def test_kept_files_are_named_by_patterns_and_a_pattern_without_files_is_a_failure(tmp_path: Path) -> None:
    context = Context(tmp_path)
    (context.work / "best").mkdir()
    (context.work / "best" / "w").write_text("x")
    (context.work / "last").symlink_to("best")
    made = work.keep(context, ["last", "**/w"])
    assert sorted(path.relative_to(context.output).as_posix() for path in made) == ["best/w", "last/w"]
    work.undo(made)
    with pytest.raises(StageFailure, match=r"'\*\.pt'.*best"):
        work.keep(context, ["best", "*.pt"])
    assert not [path for path in context.output.rglob("*") if path.is_file()]


def test_a_work_folder_outlives_a_failed_read_of_results(store: Path, run: Jobs) -> None:
    command = "bash -c 'echo trains; echo x >> {work}/w; echo {seen} > {work}/r.json'".replace(
        "{seen}", '"[1]"'
    )
    job = run(StageSpec(command=command, keep=("r.json", "w"), results="r.json"), retries={"data": 2})
    until(lambda: ledger_at(store).attempt(job.instance, 3))
    assert job.end(3).cause == "data"
    assert ["trains" in job.log(number) for number in (1, 2, 3)] == [True, False, True]
    assert (job.folder(3) / layout.WORK / "w").read_text() == "x\nx\n"


@pytest.mark.long
def test_discarding_an_unfinished_stage_begins_anew(sweep: Any) -> None:
    (sweep.folder / "s.yaml").write_text(
        "config: {x: 1, n: 9}\naxes: {x: [1]}\nstages:\n  fit:\n    reads: [x]\n    shell: true\n"
        "    command: ls {work} > {output}/seen; touch {work}/a; test $(wc -l < {output}/seen) = {uses.n}\n"
        "    uses: [n]\n"
    )
    sweep("launch", "s.yaml", "policy.retries.unknown=0", code=1)
    assert "work folder of attempt 1" in str(sweep.json("plan", "s.yaml"))
    said = sweep("discard", "s", "x=1", "--stage", "fit", "--reason", "a bug")
    assert "what attempts of 1 unfinished stage left" in said
    assert "work folder" not in str(sweep.json("plan", "s.yaml"))
    sweep("launch", "s.yaml", "n=0")


@pytest.mark.parametrize("at", KILLED_AT)
def test_an_attempt_that_dies_while_it_starts_loses_neither_work_nor_curve_of_the_one_before(
    store: Path, start: Start, at: int
) -> None:
    """It is killed while it records its start, before and after it took the work over."""
    sweep = sweep_of(1, {"count": COUNT, "fit": spec("working", after=("count",))})
    seal(store, sweep)
    ledger, instance, order = ledger_at(store), instance_of(sweep), order_for(store, sweep.name)
    key = layout.attempt(instance, 2, layout.START)
    killed = start(order, at=at, key=key)
    assert killed.wait() == -signal.SIGKILL and f"kill at {KILLED_AT[at]}" in killed.output
    finish(start, order)
    done, _ = ledger.product(instance, 1)
    assert done is not None and (done.attempt, done.rows) == (3, ({"found": ["trained"]},))
    assert [row["step"] for row in history(ledger, instance, 3)] == [1, 2], (
        "the curve begins where the work did"
    )
