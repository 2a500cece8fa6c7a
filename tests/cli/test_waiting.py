"""`sweep wait` and `sweep events`: exit codes that a script relies on, and a history without gaps."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from orchestrator.api import reconciling
from orchestrator.api.events import History
from orchestrator.api.reconciling import JobPasses, PendingLaunch, SubmitPass, SubmitResult
from orchestrator.api.state import SweepState
from orchestrator.api.submission import Dispatch
from orchestrator.cli import launch, progress
from orchestrator.cli.main import main
from orchestrator.core.evidence import Hold, Holds
from orchestrator.core.failure import Cause
from orchestrator.core.records import Request
from orchestrator.core.settings import NotifySettings
from orchestrator.core.state import Goal, Outlook, State, outlook
from orchestrator.errors import AccessDenied, InfrastructureError, SchedulerUnavailable
from orchestrator.jobs.records import JobEnd
from orchestrator.jobs.submissions import Submissions
from orchestrator.provenance import now
from orchestrator.store.ledger import open_ledger
from tests.cli.launches import Running, wait_for
from tests.execution.waiting import running
from tests.store import builders

FAILING = """
config: {seed: 0, count: {num_steps: 2, checkpoint_every: 1, step_s: 0, fail: null}}
axes: {seed: [0, 1]}
stages: [count]
"""

EVENTS = (sys.executable, "-m", "orchestrator", "events")


@pytest.mark.parametrize(
    ("goal", "states", "quiet_s", "expected"),
    [
        ("done", "done done", 0, "reached"),
        ("done", "done running", 0, "open"),
        ("done", "failed running", 0, "impossible"),
        ("done", "cancelled pending", 0, "impossible"),
        ("done", "blocked running", 0, "open"),  # a success elsewhere may unblock it
        ("done", "blocked done", 0, "impossible"),
        ("failed", "running failed", 0, "reached"),
        ("failed", "done done", 0, "impossible"),
        ("failed", "done lost", 900, "open"),
        ("failed", "blocked done", 0, "impossible"),
        ("stalled", "done pending", 60, "reached"),
        ("stalled", "done running", 59, "open"),
        ("stalled", "queued pending", 900, "open"),  # a scheduler's queue is no stall
        ("stalled", "done failed", 900, "impossible"),
        ("stalled", "unknown", 60, "reached"),
    ],
)
def test_what_is_reached_and_what_cannot_be(goal: str, states: str, quiet_s: float, expected: str) -> None:
    found = outlook(Goal(goal), [State(word) for word in states.split()], quiet_s=quiet_s, stall_s=60)
    assert found is Outlook(expected)


def test_a_wait_ends_with_the_code_of_what_happened(slow: Any, background: Callable[..., Running]) -> None:
    assert "was never launched" in slow("wait", "slow.yaml", code=2)
    launch = background("launch", "slow.yaml", "launcher.workers=3", "count.num_steps=10")
    wait_for(lambda: list(slow.store.glob("records/*/*/1/claim.json")))
    assert "not done after 0 s" in slow("wait", "slow", "--timeout", "0", code=4)
    assert slow.json("wait", "slow", "--timeout", "60")["result"] == "reached"
    assert launch.end()[0] == 0
    assert "never failed as it is" in slow("wait", "slow", "--until", "failed", code=1)
    assert "never stalled" in slow("wait", "slow", "--until", "stalled", code=1)
    slow("discard", "slow", "seed=0", "--stage", "count", "--reason", "a bug")
    assert "stalled" in slow("wait", "slow", "--until", "stalled", "--stall", "0.6")
    assert "seconds" in slow("wait", "slow", "--timeout", "nan", code=2)


def test_a_wait_for_all_ends_when_one_has_failed(sweep: Any) -> None:
    (sweep.folder / "own.yaml").write_text(FAILING)
    sweep("launch", "own.yaml", "count.fail=config", "launcher.workers=1", "--only", "seed=0", code=1)
    assert "never done" in sweep("wait", "own", code=1)
    assert "failed" in sweep("wait", "own", "--until", "failed")


def test_a_store_that_went_away_is_silent_not_empty(
    slow: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    slow(
        "launch", "slow.yaml", "count.step_s=0", "--only", "seed=0", "store.outage_s=1", "launcher.workers=1"
    )
    monkeypatch.chdir(slow.folder)
    waiting = threading.current_thread()

    def take_away() -> None:
        wait_for(lambda: "_pause" in running(waiting))  # between two looks
        slow.store.rename(slow.store.with_name("elsewhere"))

    thread = threading.Thread(target=take_away)
    thread.start()
    assert main(["wait", "slow", "--store", str(slow.store)]) == 3
    thread.join()
    assert "the store does not answer" in capsys.readouterr().err


def _events(sweep: Any, *words: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in sweep("events", *words, "--json").splitlines()]


@pytest.mark.long
def test_the_events_of_a_sweep_are_its_records_in_an_order_that_stays(slow: Any) -> None:
    quick = ("count.step_s=0", "launcher.workers=1")
    slow("launch", "slow.yaml", *quick, "--only", "seed=0,1")
    slow("discard", "slow", "seed=0", "--stage", "count", "--reason", "a bug")
    first = _events(slow, "slow")
    kinds = [event["event"] for event in first]
    assert sorted(kinds) == ["claim"] * 2 + ["end"] * 2 + ["product"] * 2 + ["request"] * 2 + ["void"]
    assert kinds[0] == "request"
    for event in first:  # the id is that of its record, on any machine
        assert (slow.store / f"{event['id']}.json").is_file()
    by_digest = [(e["digest"], e["event"]) for e in first if e["event"] in ("claim", "product", "end")]
    for digest in {digest for digest, _ in by_digest}:
        assert [kind for found, kind in by_digest if found == digest] == ["claim", "product", "end"]
    slow("launch", "slow.yaml", *quick)
    every = _events(slow, "slow")
    assert [event["id"] for event in every[: len(first)]] == [event["id"] for event in first]
    for number in (0, 3, len(every) - 1):
        assert _events(slow, "slow", "--after", every[number]["id"]) == every[number + 1 :]
    assert "an id that" in slow("events", "slow", "--after", "nothing", code=2)
    assert "claim" in slow("events", "slow")


def test_whoever_follows_and_goes_on_elsewhere_misses_and_repeats_nothing(
    slow: Any, background: Callable[..., Running], tmp_path: Path
) -> None:
    launch = background("launch", "slow.yaml", "launcher.workers=2", "count.num_steps=12")
    wait_for(lambda: list(slow.store.glob("records/*/*/1/claim.json")))
    seen: list[str] = []
    while launch.process.poll() is None or len(seen) < 1:
        after = ("--after", seen[-1]) if seen else ()
        path = tmp_path / "seen.jsonl"
        with path.open("w") as stream:
            following = subprocess.Popen(
                [*EVENTS, "slow", "--follow", "--json", *after, "--store", str(slow.store)],
                cwd=slow.folder,
                stdout=stream,
            )
            # Killed when it has written, at any moment.
            while not path.stat().st_size and (not seen or launch.process.poll() is None):
                time.sleep(0.02)
            time.sleep(0.3)
            following.kill()
            following.wait()
        seen += [json.loads(line)["id"] for line in path.read_text().splitlines()]
    seen += [event["id"] for event in _events(slow, "slow", *(("--after", seen[-1]) if seen else ()))]
    assert len(seen) == len(set(seen))
    assert set(seen) == {event["id"] for event in _events(slow, "slow")}


def test_a_machine_whose_clock_is_ahead_delays_no_one(tmp_path: Path) -> None:
    sweep = builders.sweep_of(1)
    builders.seal(tmp_path, sweep)
    ledger = open_ledger(str(tmp_path))
    ledger.claim(builders.instance_of(sweep), 1, builders.claim(at="2999-01-01T00:00:00Z"))
    history = History(ledger, "counts")
    history._settle_s = 0.3
    assert [event.kind for event in history.snapshot()] == ["claim"]
    wait_for(history.settled)


def test_the_jobs_of_a_scheduler_are_events_of_their_revision_and_end_once(tmp_path: Path) -> None:
    for num_cells in (1, 3):
        sweep = builders.sweep_of(num_cells)
        builders.seal(tmp_path, sweep)
    ledger = open_ledger(str(tmp_path))
    submissions = Submissions(ledger, sweep.name)
    for number in (1, 2):
        tasks = (("seed0",), ("seed1", "seed2"))
        submission = builders.submission_of(
            number, nonce=f"n{number}", revision=number, tasks=tasks, by="ann"
        )
        assert submissions.file(submission)
    lost = JobEnd(index=1, word="NODE_FAIL", cause=Cause.NODE_LOST, detail="n3")
    submissions.close(1, [lost], at="2026-01-01T00:00:00Z")
    for revision, numbers in ((None, [1, 2]), (1, [1]), (2, [2])):
        events = History(ledger, sweep.name, revision).all()
        facts = [event.as_json() for event in events if event.kind == "submission"]
        assert [each["number"] for each in facts] == numbers
        assert [each["revision"] for each in facts] == numbers
        assert all((each["num_jobs"], each["cluster"], each["by"]) == (2, "lab", "ann") for each in facts)
        ends = [event.as_json() for event in events if event.kind == "job_end"]
        assert [(each["submission"], each["index"]) for each in ends] == [(1, 1)] * (1 in numbers)
        for each in ends:
            assert (each["cells"], each["word"], each["detail"]) == (("seed1", "seed2"), "NODE_FAIL", "n3")
            assert each["cause"] == "node_lost"


def test_only_who_waits_waits_for_a_scheduler_that_does_not_answer(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(launch, "WAIT_S", 0.0)
    answers = iter([SchedulerUnavailable("slurm is away"), SchedulerUnavailable("slurm is away"), None])

    def asked() -> str:
        if (error := next(answers)) is not None:
            raise error
        return "ok"

    with pytest.raises(SchedulerUnavailable):
        launch._patiently(asked, wait=False)
    assert launch._patiently(asked, wait=True) == "ok"
    assert capsys.readouterr().out.count("slurm is away; trying again") == 1
    with pytest.raises(InfrastructureError, match="damaged"):  # waiting does not help here
        launch._patiently(lambda: (_ for _ in ()).throw(InfrastructureError("damaged")), wait=True)


@pytest.fixture
def passes(tmp_path: Path) -> JobPasses:
    """Passes over a sweep whose cells have yet to run."""
    return _passes(tmp_path)


def _passes(store: Path, **changes: Any) -> JobPasses:
    sweep = builders.sweep_of(1)
    builders.seal(store, sweep)
    ledger = builders.ledger_at(store)
    settings = msgspec.structs.replace(builders.settings(), **changes)
    request = Request(nonce="", number=1, verb="launch", revision=1, settings=settings)
    request = ledger.add_request(sweep.name, request)
    limits: Any = None
    return JobPasses(SweepState(ledger, sweep, 1, sealed=True), [PendingLaunch(request, limits, limits)])


def test_a_scheduler_that_is_not_reached_is_tried_half_as_often_each_time(
    passes: JobPasses, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each try files a submission. A pass between two of them records the ends of jobs alone."""
    now_s, tries = 1000.0, list[float]()

    def submits(view: Any, asked: Any, *, notify: Any, hold: str) -> SubmitPass:
        if not hold and now_s < 9000:
            tries.append(now_s)
            raise SchedulerUnavailable("slurm was not reached", where="nothing was submitted", fix="later")
        return SubmitPass(view, SubmitResult(limit=hold), [])

    monkeypatch.setattr(reconciling, "submit_pass", submits)
    monkeypatch.setattr(reconciling.time, "monotonic", lambda: now_s)
    while now_s < 3500:
        passes.make(print)
        assert passes.problem in ("", "slurm was not reached\n  nothing was submitted\n  later")
        now_s += 10
    assert [after - before for before, after in itertools.pairwise(tries)] == [
        30,
        60,
        120,
        240,
        480,
        600,
        600,
    ]
    now_s = 9000.0
    passes.make(print)
    now_s = 9010.0
    passes.make(print)
    assert passes._num_outages == 0


def test_a_limit_of_a_scheduler_holds_for_a_while_and_a_full_disk_until_the_next_look(
    passes: JobPasses, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, limits = list[str](), iter(("the disk is full", "MaxJobs", "MaxJobs"))

    def submits(view: SweepState, asked: Any, *, notify: Any, hold: str) -> SubmitPass:
        seen.append(hold)
        view = view.fresh()
        full = Hold("the disk is full", is_final=False, cause=Cause.STORAGE)
        view.__dict__["holds"] = Holds(stages={"a": full})
        return SubmitPass(view, SubmitResult(limit=next(limits)), [])

    monkeypatch.setattr(reconciling, "submit_pass", submits)
    for _ in range(3):
        passes.make(print)
    assert seen == ["", "", "MaxJobs"]


def test_a_notice_that_cannot_be_sent_is_a_line_of_the_passes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no-python"))
    passes = _passes(tmp_path, notify=NotifySettings(command="true"))
    (line,) = passes.finish()
    assert line.startswith("  notices cannot be sent: ") and "no-python" in line
    assert _passes(tmp_path).finish() == []


def test_a_token_that_is_not_accepted_ends_the_wait(
    passes: JobPasses, monkeypatch: pytest.MonkeyPatch
) -> None:
    def submits(*_: Any, **__: Any) -> SubmitPass:
        raise AccessDenied("401", fix="RAY_AUTH_TOKEN")

    monkeypatch.setattr(reconciling, "submit_pass", submits)
    with pytest.raises(AccessDenied):
        passes.make(print)


def test_why_a_pass_failed_is_printed_with_what_to_do_and_again_after_a_while(
    monkeypatch: pytest.MonkeyPatch, passes: JobPasses, capsys: pytest.CaptureFixture[str]
) -> None:
    num_left = 4

    def make(self: JobPasses, notify: Any) -> list[str]:
        nonlocal num_left
        num_left -= 1
        self.problem = "slurm was not reached\n  nothing was submitted\n  later: sweep reconcile s"
        return []

    monkeypatch.setattr(JobPasses, "make", make)
    monkeypatch.setattr(JobPasses, "is_open", property(lambda self: num_left > 0))
    passes.pause_s = 0.01
    for repeat_s, times in ((300.0, 1), (0.0, 4)):
        num_left = 4
        monkeypatch.setattr(progress, "REPEAT_S", repeat_s)
        progress._stay(passes)
        said = capsys.readouterr().out
        assert said.count("  slurm was not reached; trying again\n") == times
        assert said.count("    later: sweep reconcile s\n") == times


@pytest.mark.parametrize(("pause_s", "number", "num_cells"), [(60.0, 1, 0), (0.0, 1, 2), (60.0, 0, 2)])
def test_a_cell_whose_next_stage_pauses_for_space_gets_no_job_meanwhile(
    tmp_path: Path, pause_s: float, number: int, num_cells: int
) -> None:
    """Its job would start, and leave again. A launch that is not recorded yet will end the pause."""
    sweep = builders.sweep_of(2)
    builders.seal(tmp_path, sweep)
    ledger, instance = builders.ledger_at(tmp_path), builders.instance_of(sweep)
    settings = builders.settings(space_pause_s=pause_s)
    request = Request(nonce="", number=1, verb="launch", revision=1, settings=settings)
    request = ledger.add_request(sweep.name, request)
    assert ledger.claim(instance, 1, builders.claim())
    full = replace(builders.end("failed", Cause.STORAGE), message="No space left on device", at=now())
    ledger.end(instance, 1, full)
    limits: Any = None
    view = SweepState(ledger, sweep, 1, sealed=True)
    found = Dispatch(view, replace(request, number=number), limits, limits)._unheld()
    assert len(found) == num_cells


@pytest.mark.parametrize("age_s", [130.0, 170.0, 200.0, 230.0])
def test_of_cells_that_are_to_run_alone_one_gets_a_job_at_any_time(tmp_path: Path, age_s: float) -> None:
    """A queue knows no clock, and `sweep reconcile` from cron may never come in the turn of a cell."""
    sweep = builders.sweep_of(3)
    builders.seal(tmp_path, sweep)
    ledger, settings = builders.ledger_at(tmp_path), builders.settings(retries={"storage": 2})
    request = Request(nonce="", number=1, verb="launch", revision=1, settings=settings)
    request = ledger.add_request(sweep.name, request)
    at = f"{datetime.now(UTC) - timedelta(seconds=age_s):%Y-%m-%dT%H:%M:%SZ}"
    full = replace(builders.end("failed", Cause.STORAGE), message="No space left on device", at=at)
    limits: Any = None

    def unheld(num_lacking: int) -> list[str]:
        for number in (1, 2):
            instance = builders.instance_of(sweep, num_lacking - 1)
            assert ledger.claim(instance, number, builders.claim())
            ledger.end(instance, number, full)
        view = SweepState(ledger, sweep, 1, sealed=True)
        return [cell.id for cell in Dispatch(view, request, limits, limits)._unheld()]

    ids = [cell.id for cell in sweep.cells]
    assert unheld(1) == ids[1:] and unheld(2) == ids[2:], "those that need not run alone come first"
    assert len(unheld(3)) == 1
