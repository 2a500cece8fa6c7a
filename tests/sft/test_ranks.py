"""Several processes for one stage: what they are told, and that none outlives it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import StageFailure, StopRequested
from orchestrator.saving import MANIFEST
from orchestrator.sft.distributed import launcher
from orchestrator.stage import Config, Context, Inputs, StopSignal
from tests.execution.waiting import lives
from tests.sft.chain import FORKS, Log, forks

pytestmark = pytest.mark.xdist_group("ranks")


def run(name: str, context: Context, inputs: dict[str, Path] | None = None, **config: Any) -> Any:
    folders = {stage: {"": folder} for stage, folder in (inputs or {}).items()}
    return launcher.run(
        f"tests.sft.ranked:{name}", Config(config), Inputs(folders), context, num_processes=2, device="cpu"
    )


def forked(name: str, attempt: Path, answer: Any, **config: Any) -> None:
    """In a process that computed nothing yet: calls a function in two ranks that a spare starts."""
    spare = launcher.Spare()
    assert spare.poll() is None
    given = Config(config), Inputs({"base": {"": attempt}}), Context(attempt)
    try:
        answer.send(
            launcher.run(f"tests.sft.ranked:{name}", *given, num_processes=2, device="cpu", spare=spare)
        )
    except BaseException as error:
        answer.send((type(error), getattr(error, "cause", None), str(error)))


def in_forks(name: str, attempt: Path, **config: Any) -> Any:
    mine, other = FORKS.Pipe()
    child = forks().Process(target=forked, args=(name, attempt, other), kwargs=config)
    child.start()
    answer = mine.recv()
    child.join()
    assert child.exitcode == 0
    return answer


@pytest.mark.long
def test_ranks_that_are_forked_import_nothing_again_and_know_nothing_of_the_job_around_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RANK", "WORLD_SIZE", "SLURM_PROCID", "MASTER_PORT", "PET_NNODES"):
        monkeypatch.setenv(name, "7")
    in_forks("gather", tmp_path, word="warm")  # the fork server imports once
    start_s = time.monotonic()
    result = in_forks("gather", tmp_path / "again", word="hello")
    assert time.monotonic() - start_s < 5
    folder = str(tmp_path / "again/checkpoints/00000001")
    assert [facts[:4] for facts in result["seen"]] == [(folder, False, False, 1)] * 2
    assert not result["slurm"] and not any(lives(facts[4]) for facts in result["seen"])


@pytest.mark.parametrize(
    ("how", "rank", "kind", "cause", "message"),
    [
        pytest.param("failure", 1, StageFailure, "nan", "loss is nan", marks=pytest.mark.long),
        ("kill", 1, StageFailure, "unknown", "rank 1 was killed by SIGKILL"),
        pytest.param(
            "kill", 0, StageFailure, "unknown", "rank 0 was killed by SIGKILL", marks=pytest.mark.long
        ),
        pytest.param("exit", 1, StageFailure, "unknown", "rank 1 exited with code 3", marks=pytest.mark.long),
        ("exception", 0, FileNotFoundError, None, "/data"),
    ],
)
def test_a_forked_rank_that_fails_ends_all_with_its_own_cause(
    tmp_path: Path, how: str, rank: int, kind: type[Exception], cause: str | None, message: str
) -> None:
    pids = tmp_path / "pids"
    pids.mkdir()
    raised, named, text = in_forks("fail", tmp_path, how=how, rank=rank, folder=str(pids))
    assert (raised, named) == (kind, cause) and message in text
    assert len(list(pids.iterdir())) == 4
    wait_until(lambda: not any(lives(int(path.read_text())) for path in pids.iterdir()))


def in_a_spare(folder: Path) -> None:
    forked("fail", folder, FORKS.Pipe()[0], how="wait", rank=0, folder=str(folder / "pids"))


def test_no_forked_rank_and_nothing_that_it_started_outlives_a_stage_that_is_killed(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    pids.mkdir()
    stage = forks().Process(target=in_a_spare, args=(tmp_path,))
    stage.start()
    wait_until(lambda: len([path for path in pids.glob("[01]") if path.read_text()]) == 2)
    os.kill(stage.pid or 0, signal.SIGKILL)
    stage.join()
    assert len(list(pids.iterdir())) == 4
    wait_until(lambda: not any(lives(int(path.read_text())) for path in pids.iterdir()))


def wait_until(condition: Callable[[], bool], timeout_s: float = 60) -> None:
    end_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end_s, "waited in vain"
        time.sleep(0.02)


@pytest.mark.long
def test_all_ranks_share_one_context_and_know_nothing_of_the_job_around_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "SLURM_PROCID", "MASTER_PORT", "PET_NNODES"):
        monkeypatch.setenv(name, "7")
    monkeypatch.setenv("MASTER_ADDR", "nowhere.invalid")
    log = Log()
    context = Context(tmp_path, trackers=[log], num_threads=2, checkpoint_interval_s=3600)
    result = run("gather", context, {"base": tmp_path / "base"}, word="hello")
    folder = str(tmp_path / "checkpoints/00000001")
    assert [facts[:4] for facts in result["seen"]] == [(folder, False, False, 1)] * 2
    assert result["input"] == str(tmp_path / "base") and not result["slurm"]
    assert sorted(path.name for path in Path(folder).iterdir()) == [MANIFEST, "rank-0", "rank-1"]
    assert log.entries == [(1, {"loss": 0.5})]
    assert not any(lives(facts[4]) for facts in result["seen"])


@pytest.mark.parametrize(
    ("how", "rank", "kind", "cause", "message"),
    [
        pytest.param("failure", 1, StageFailure, "nan", "loss is nan", marks=pytest.mark.long),
        ("kill", 1, StageFailure, "unknown", "rank 1 was killed by SIGKILL"),
        pytest.param("kill", 0, StageFailure, "unknown", "rank 0 was killed", marks=pytest.mark.long),
        pytest.param("half", 1, StageFailure, "unknown", "rank 1 was killed", marks=pytest.mark.long),
        pytest.param("abort", 1, StageFailure, "unknown", "killed by SIGABRT", marks=pytest.mark.long),
        pytest.param("exit", 1, StageFailure, "unknown", "rank 1 exited with code 3", marks=pytest.mark.long),
        pytest.param("exception", 0, FileNotFoundError, None, "/data", marks=pytest.mark.long),
    ],
)
def test_a_rank_that_fails_ends_all_with_its_own_cause(
    tmp_path: Path, how: str, rank: int, kind: type[Exception], cause: str | None, message: str
) -> None:
    pids = tmp_path / "pids"
    pids.mkdir()
    with pytest.raises(kind, match=message) as caught:
        run("fail", Context(tmp_path), how=how, rank=rank, folder=str(pids))
    assert getattr(caught.value, "cause", None) == cause
    assert len(list(pids.iterdir())) == 4
    assert not any(lives(int(path.read_text())) for path in pids.iterdir())
    assert not list((tmp_path / "checkpoints").iterdir())


@pytest.mark.long
def test_a_stop_ends_all_ranks_after_a_checkpoint(tmp_path: Path) -> None:
    signal_ = StopSignal()
    log = Log(lambda step: signal_.ask("preempted") if step == 3 else None)
    context = Context(tmp_path, trackers=[log], stop=signal_, checkpoint_interval_s=3600)
    with pytest.raises(StopRequested, match="preempted"):
        run("count", context, num_steps=10_000)
    (folder,) = (tmp_path / "checkpoints").iterdir()
    assert (folder / "rank-0").read_text() == (folder / "rank-1").read_text() == str(int(folder.name))


@pytest.mark.long
def test_a_fenced_attempt_saves_nothing_and_is_released(tmp_path: Path) -> None:
    def fence() -> None:
        raise StopRequested("superseded")

    context = Context(tmp_path, fence=fence, checkpoint_interval_s=0)
    with pytest.raises(StopRequested, match="superseded"):
        run("count", context, num_steps=10_000)
    assert not list((tmp_path / "checkpoints").iterdir())


def in_process(folder: Path) -> None:
    run("fail", Context(folder), how="wait", rank=0, folder=str(folder / "pids"))


@pytest.mark.long
def test_no_rank_and_nothing_that_ranks_started_outlives_a_stage_that_is_killed(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    pids.mkdir()
    stage = multiprocessing.get_context("fork").Process(target=in_process, args=(tmp_path,))
    stage.start()
    wait_until(lambda: len([path for path in pids.glob("[01]") if path.read_text()]) == 2)
    os.kill(stage.pid or 0, signal.SIGKILL)
    stage.join()
    assert len(list(pids.iterdir())) == 4
    wait_until(lambda: not any(lives(int(path.read_text())) for path in pids.iterdir()))


@pytest.mark.long
def test_ranks_go_on_while_they_write_and_the_checkpoint_counts_after_the_slowest(tmp_path: Path) -> None:
    held_s, all_s = run("save_later", Context(tmp_path), how="slow", rank=1, seconds=0.5)
    assert held_s < 0.4 < 0.5 <= all_s
    for step in ("00000001", "00000002"):
        names = sorted(path.name for path in (tmp_path / "checkpoints" / step).iterdir())
        assert names == [MANIFEST, "rank-0", "rank-1"]


@pytest.mark.long
def test_checkpoints_for_which_one_rank_has_no_space_are_skipped_by_all(tmp_path: Path) -> None:
    context = Context(tmp_path)
    run("save_later", context, how="full", rank=1, seconds=0.1)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["00000001"]
    assert context.saves.num_skipped == 2  # one that they wait for, and one that threads write


@pytest.mark.long
@pytest.mark.parametrize(
    ("how", "kind", "message"),
    [("broken", OSError, "Input/output error"), ("kill", StageFailure, "rank 1 was killed by SIGKILL")],
)
def test_a_rank_that_cannot_write_fails_all_and_leaves_the_former_checkpoint(
    tmp_path: Path, how: str, kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        run("save_later", Context(tmp_path), how=how, rank=1, seconds=0.1)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["00000001"]
